package volumes

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// A log that is longer than compactAbove, and more than four times what it would be written anew, is written anew.
const compactAbove = 4 << 20

// layer is one writable overlay: bytes in a sparse file, and the log that says which of them count.
type layer struct {
	fs     filesystem
	number int
	prefix string // of its two files
	data   file
	states blockMap

	changes atomic.Uint64 // answered writes, trims and zeroings
	synced  uint64        // those that are durable; guarded by the volume's flushing

	mu        sync.Mutex // one change of the states, and thus of the log, at a time
	log       file
	end       int64 // of the log
	told      int64 // end of the last record that tells of blocks
	committed int64 // up to here commits tell of the log
	compacted int64 // the log's length when it was last written anew
	boot      bootID
	torn      bool // bytes may lie behind end
	buf       []byte
}

func layerPrefix(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("%08d", number))
}

// createLayer makes the files of an empty layer; the caller syncs the folder. An empty log is a whole one.
func createLayer(fsys filesystem, dir string, number int, size int64) (l *layer, err error) {
	l = &layer{fs: fsys, number: number, prefix: layerPrefix(dir, number), states: newBlockMap(size)}
	if l.boot, err = fsys.boot(); err != nil {
		return nil, err
	}
	if l.data, err = fsys.create(l.prefix + ".data"); err != nil {
		return nil, err
	}
	if l.log, err = fsys.create(l.prefix + ".log"); err != nil {
		return nil, errors.Join(err, l.data.Close())
	}
	return l, nil
}

// openLayer opens a layer as its log tells it. Errors: volume-damaged, volume-format-unknown, io-failed.
func openLayer(fsys filesystem, dir string, number int, size int64) (_ *layer, err error) {
	l := &layer{fs: fsys, number: number, prefix: layerPrefix(dir, number), states: newBlockMap(size)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.boot, err = fsys.boot(); err != nil {
		return nil, wrap(IOFailed, err, "ask for the boot's id")
	}
	if l.data, err = fsys.open(l.prefix + ".data"); err != nil {
		return nil, openError(err, l.prefix+".data")
	}
	if l.log, err = fsys.open(l.prefix + ".log"); err != nil {
		return nil, openError(err, l.prefix+".log")
	}
	n, err := l.log.Size()
	if err != nil {
		return nil, wrap(IOFailed, err, "look at %s.log", l.prefix)
	}
	raw := make([]byte, n)
	if err := readFull(l.log, raw, 0); err != nil {
		return nil, wrap(IOFailed, err, "read %s.log", l.prefix)
	}
	r, err := replay(raw, l.boot, &l.states)
	if err != nil {
		return nil, err
	}
	l.end, l.told, l.committed, l.compacted, l.torn = r.end, r.told, r.committed, r.end, r.end < n
	// What an earlier process was answered may be in the page cache only, so the first flush has to sync it.
	l.changes.Store(1)
	if r.stale {
		return l, l.rewrite()
	}
	// An earlier process may have ended between writing a commit and syncing it, and only the last one may be in doubt.
	if err := l.log.Sync(); err != nil {
		return nil, wrap(IOFailed, err, "sync %s.log", l.prefix)
	}
	return l, nil
}

func openError(err error, name string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return wrap(VolumeDamaged, err, "a layer's file is gone")
	}
	return wrap(IOFailed, err, "open %s", name)
}

func (l *layer) close() error {
	var errs []error
	for _, f := range []file{l.data, l.log} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// remove takes the layer's files away; names that stay after a crash go when the volume is opened.
func (l *layer) remove() error {
	return errors.Join(l.close(), l.fs.remove(l.prefix+".data"), l.fs.remove(l.prefix+".log"))
}

// mark gives blocks a state, after their bytes were written.
func (l *layer) mark(first, end int64, s state) error {
	if now, to := l.states.run(first, end); now == s && to == end {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// A log that cannot be written leaves the states as they were: the write is answered with an error.
	if err := l.append(kindBlocks, appendSpan(nil, span{first, end, s}, 0)); err != nil {
		return err
	}
	l.states.set(first, end, s)
	return nil
}

// append writes a record at the end of the log, and before the first one under which boot it is written.
func (l *layer) append(k kind, payload []byte) error {
	if l.torn {
		if err := l.log.Truncate(l.end); err != nil {
			return err
		}
		l.torn = false
	}
	b := l.buf[:0]
	if l.end == 0 {
		b = appendRecord(b, 0, kindOpened, openedPayload(l.boot))
	}
	b = appendRecord(b, l.end+int64(len(b)), k, payload)
	l.buf = b
	if _, err := l.log.WriteAt(b, l.end); err != nil {
		l.torn = true
		return err
	}
	l.end += int64(len(b))
	if k == kindBlocks {
		l.told = l.end
	}
	return nil
}

// sync makes all answered changes durable: first the bytes, then the records that tell of them.
func (l *layer) sync() error {
	want := l.changes.Load()
	if l.synced == want {
		return nil
	}
	l.mu.Lock()
	upto := l.told
	l.mu.Unlock()
	if err := l.data.Sync(); err != nil {
		return err
	}
	if err := l.commit(upto); err != nil {
		return err
	}
	l.synced = want
	return nil
}

// distrust makes the next opening drop what no commit tells of: after a failed fsync nobody knows which of these bytes the
// disk has, though the page cache still shows them.
func (l *layer) distrust() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.end == 0 {
		return nil
	}
	return l.append(kindOpened, openedPayload(bootID{}))
}

// commit tells that the bytes of all blocks that the log tells of up to an offset are durable.
func (l *layer) commit(upto int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.committed >= upto {
		return nil
	}
	if l.end > compactAbove && l.end > 4*l.compacted {
		if err := l.data.Sync(); err != nil { // for what was marked since; nobody marks now
			return err
		}
		return l.rewrite()
	}
	if err := l.append(kindCommit, commitPayload(upto)); err != nil {
		return err
	}
	// The log is synced under its lock, so that there is one commit on its way at a time.
	if err := l.log.Sync(); err != nil {
		return err
	}
	l.committed = upto
	return nil
}

// rewrite replaces the log by one that tells the states as they are; their bytes are durable.
func (l *layer) rewrite() (err error) {
	var b, payload []byte
	b = appendRecord(b, 0, kindOpened, openedPayload(l.boot))
	end := int64(0)
	l.states.spans(func(s span) bool {
		if len(payload) > maxPayload-maxSpan {
			b = appendRecord(b, int64(len(b)), kindBlocks, payload)
			payload, end = payload[:0], 0
		}
		payload = appendSpan(payload, s, end)
		end = s.end
		return true
	})
	if len(payload) > 0 {
		b = appendRecord(b, int64(len(b)), kindBlocks, payload)
	}
	b = appendRecord(b, int64(len(b)), kindCommit, commitPayload(int64(len(b))))
	f, err := replaceFile(l.fs, l.prefix+".log", b)
	if err != nil {
		return wrap(IOFailed, err, "write %s.log anew", l.prefix)
	}
	old := l.log
	n := int64(len(b))
	l.log, l.end, l.told, l.committed, l.compacted, l.torn = f, n, n, n, n, false
	return old.Close()
}

// replaceFile writes a file beside, makes it durable and renames it; it stays open.
func replaceFile(fsys filesystem, name string, content []byte) (_ file, err error) {
	f, err := fsys.create(name + ".new")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if _, err := f.WriteAt(content, 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := fsys.rename(name+".new", name); err != nil {
		return nil, err
	}
	return f, fsys.syncDir(filepath.Dir(name))
}

// readFull reads what a file holds and zeros behind its end.
func readFull(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) || errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}
