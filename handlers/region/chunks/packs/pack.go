package packs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// A pack file, version 1: 16 bytes of header ("TOMBPACK", big-endian version 1 in 4 bytes, 4 bytes zero), then records
// (chunks.Record). Records are only ever appended. Its index file, version 1, is a copy of what the records say and can
// be made again from them (integers big-endian):
//
//	8 bytes   "TOMBPIX" and the version, 0x01
//	8 bytes   covered: the length of the pack up to which this index tells its records
//	4 bytes   number of entries
//	entries   id (32 bytes), offset of the record (4), length of the record (4)
//	4 bytes   CRC-32C of all before
//
// An index is written only after the bytes that it covers were fsynced. So what lies behind covered was never promised:
// there a torn record is cut off when the store is opened. What lies before was: there a broken record is damage. A
// record that is in the covered part and not in the index was quarantined.
const (
	packMagic       = "TOMBPACK\x00\x00\x00\x01\x00\x00\x00\x00"
	packHeaderSize  = int64(len(packMagic))
	packIndexMagic  = "TOMBPIX\x01"
	packIndexHeader = 20
	packEntrySize   = 40
	maxPackEntries  = 64 << 10
)

// packEntry is one record of a pack.
type packEntry struct {
	id       chunks.ID
	off, len uint32
}

// pack is one file. size and entries are guarded by Store.appendMu.
type pack struct {
	number  uint32
	dir     string
	fs      filesystem
	size    int64       // end of the last whole record
	entries []packEntry // nil once the index file tells all of them

	use    sync.RWMutex // held for reading while f is read
	f      file
	closed bool

	indexMu  sync.Mutex // one writer of the index file at a time
	covered  int64
	finished chan struct{} // closed when a full pack was fsynced
	err      error         // of its fsync, read after finished
}

func (p *pack) path() string      { return filepath.Join(p.dir, fmt.Sprintf("%08d.pack", p.number)) }
func (p *pack) indexPath() string { return filepath.Join(p.dir, fmt.Sprintf("%08d.idx", p.number)) }

// readAt reads from the pack; false means that it is gone, and the chunk must be looked up again.
func (p *pack) readAt(b []byte, off int64) (bool, error) {
	p.use.RLock()
	defer p.use.RUnlock()
	if p.closed {
		return false, nil
	}
	_, err := p.f.ReadAt(b, off)
	return true, err
}

// close waits for readers.
func (p *pack) close() error {
	p.use.Lock()
	defer p.use.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	return p.f.Close()
}

func createPack(fsys filesystem, dir string, number uint32) (*pack, error) {
	p := &pack{number: number, dir: dir, fs: fsys, size: packHeaderSize, entries: []packEntry{}}
	f, err := fsys.create(p.path())
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt([]byte(packMagic), 0); err != nil {
		return nil, errors.Join(err, f.Close(), fsys.remove(p.path()))
	}
	p.f = f
	return p, nil
}

// openPack opens a pack and gives its records: those of the index file, and those found behind them. It cuts off a torn
// tail. A pack without any whole header is removed, and nil is given.
func openPack(fsys filesystem, dir string, number uint32) (*pack, []packEntry, error) {
	p := &pack{number: number, dir: dir, fs: fsys}
	info, err := os.Stat(p.path())
	if err != nil {
		return nil, nil, err
	}
	if p.f, err = fsys.open(p.path()); err != nil {
		return nil, nil, err
	}
	head := make([]byte, packHeaderSize)
	if _, err := p.f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, errors.Join(err, p.f.Close())
	}
	entries, covered, err := readPackIndex(p.indexPath())
	if err != nil || covered > info.Size() {
		entries, covered = nil, 0
	}
	if !bytes.Equal(head, []byte(packMagic)) && covered == 0 {
		if bytes.Equal(head[:8], []byte(packMagic[:8])) && bytes.Equal(head[12:], make([]byte, 4)) && binary.BigEndian.Uint32(head[8:]) > 1 {
			return nil, nil, errors.Join(chunks.Errorf(chunks.StoreFormatUnknown, "%s is a pack of version %d", p.path(), binary.BigEndian.Uint32(head[8:])), p.f.Close())
		}
		if info.Size() <= packHeaderSize {
			return nil, nil, errors.Join(p.f.Close(), fsys.remove(p.path()))
		}
	}
	p.covered = covered
	found, end, err := scanPack(p.f, max(covered, packHeaderSize), info.Size())
	if err != nil {
		return nil, nil, errors.Join(err, p.f.Close())
	}
	p.size = end
	if end < info.Size() {
		if err := errors.Join(p.f.Truncate(end), p.f.Sync()); err != nil {
			return nil, nil, errors.Join(err, p.f.Close())
		}
	}
	p.entries = append(append([]packEntry{}, entries...), found...)
	return p, p.entries, nil
}

// scanPack reads records from offset from to size and gives the end of the last whole one. It steps over what is broken
// between whole records. It believes no record before it has hashed it: what looks like a record after broken bytes may
// be the payload of a disk that holds a pack.
func scanPack(r io.ReaderAt, from, size int64) (out []packEntry, end int64, err error) {
	end = from
	buf := make([]byte, 1<<20)
	codec := chunks.NewCodec()
	for at := from; at < size; {
		b := buf[:min(int64(len(buf)), size-at)]
		if _, err := r.ReadAt(b, at); err != nil {
			return nil, 0, err
		}
		atEnd := at+int64(len(b)) == size
		done := 0 // what of b is understood
		for {
			id, skip, length := nextRecord(codec, b[done:], atEnd)
			done += skip
			if length == 0 {
				break
			}
			out = append(out, packEntry{id: id, off: uint32(at + int64(done)), len: uint32(length)})
			done += length
			end = at + int64(done)
		}
		if atEnd {
			break
		}
		at += int64(done)
	}
	return out, end, nil
}

// nextRecord finds the first whole record of b after skip broken bytes. Length 0 means that there is none; unless atEnd
// one may begin behind the skipped bytes.
func nextRecord(codec *chunks.Codec, b []byte, atEnd bool) (id chunks.ID, skip, length int) {
	for ; ; skip++ {
		i := bytes.Index(b[skip:], []byte("TCR1"))
		if i < 0 {
			return id, max(skip, len(b)-3), 0
		}
		skip += i
		h, err := chunks.ParseRecordHeader(b[skip:])
		if len(b)-skip < chunks.RecordHeaderSize || err == nil && len(b)-skip < h.Size() {
			if !atEnd {
				return id, skip, 0
			}
			continue
		}
		if err != nil {
			continue
		}
		rec, err := h.Record(b[skip+chunks.RecordHeaderSize : skip+h.Size()])
		if err != nil {
			continue
		}
		if _, err := codec.Open(rec); err == nil {
			return h.ID, skip, h.Size()
		}
	}
}

// writeIndex replaces the index file, unless one that covers more is there. The pack was fsynced up to covered.
func (p *pack) writeIndex(entries []packEntry, covered int64) error {
	p.indexMu.Lock()
	defer p.indexMu.Unlock()
	if covered <= p.covered {
		return nil
	}
	if err := p.replaceIndex(entries, covered); err != nil {
		return err
	}
	p.covered = covered
	return nil
}

// dropFromIndex takes records out of the index file of a durable pack.
func (p *pack) dropFromIndex(drop map[chunks.ID]bool) error {
	p.indexMu.Lock()
	defer p.indexMu.Unlock()
	entries, covered, err := readPackIndex(p.indexPath())
	if err != nil {
		return err
	}
	kept := entries[:0]
	for _, e := range entries {
		if !drop[e.id] {
			kept = append(kept, e)
		}
	}
	return p.replaceIndex(kept, covered)
}

func (p *pack) replaceIndex(entries []packEntry, covered int64) error {
	b := make([]byte, 0, packIndexHeader+len(entries)*packEntrySize+4)
	b = append(b, packIndexMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(covered))
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries)))
	for _, e := range entries {
		b = append(b, e.id[:]...)
		b = binary.BigEndian.AppendUint32(b, e.off)
		b = binary.BigEndian.AppendUint32(b, e.len)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return replaceFile(p.fs, p.indexPath(), b)
}

func readPackIndex(path string) ([]packEntry, int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	if len(b) < packIndexHeader+4 || string(b[:8]) != packIndexMagic ||
		binary.BigEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], crc32.MakeTable(crc32.Castagnoli)) ||
		len(b) != packIndexHeader+4+packEntrySize*int(binary.BigEndian.Uint32(b[16:])) {
		return nil, 0, chunks.Errorf(chunks.StoreDamaged, "%s is not an intact pack index", path)
	}
	covered := int64(binary.BigEndian.Uint64(b[8:]))
	out := make([]packEntry, 0, binary.BigEndian.Uint32(b[16:]))
	for e := b[packIndexHeader : len(b)-4]; len(e) > 0; e = e[packEntrySize:] {
		out = append(out, packEntry{id: chunks.ID(e[:32]), off: binary.BigEndian.Uint32(e[32:]), len: binary.BigEndian.Uint32(e[36:])})
	}
	return out, covered, nil
}

// replaceFile writes a small file beside, makes it durable and renames it. The name is durable after syncDir.
func replaceFile(fsys filesystem, path string, b []byte) (err error) {
	tmp := path + ".tmp"
	if err := fsys.remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.create(tmp)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(b, 0); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fsys.rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, fsys.remove(tmp))
	}
	return nil
}
