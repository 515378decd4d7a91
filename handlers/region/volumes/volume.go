package volumes

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Volume is an open disk: base and overlay, readable and writable. It is safe for concurrent use. As with any disk, what
// requests at the same time to the same bytes come to is one or the other.
type Volume struct {
	dir   string
	fs    filesystem
	cache *chunks.Cache
	lock  io.Closer
	size  int64

	// Locks are taken in this order: saving, flushing, mu, blocks, a layer's.

	saving   sync.Mutex // held by a Snapshot
	flushing sync.Mutex // one flush, or change of the description, at a time
	meta     meta       // as it is on the disk
	next     int        // number of the next layer

	mu     sync.RWMutex // requests hold it for reading
	base   *chunks.Disk // nil: zeros
	layers []*layer     // the top first; at most two
	closed bool

	failMu sync.Mutex
	failed error

	// Writers of the same block take turns, because a write of a part of a block brings the rest up from below.
	blocks [64]sync.Mutex
}

// lockUnit is how many blocks share a lock.
const lockUnit = 16

// Create makes a volume of size bytes over a base in dir, durably; the empty digest stands for a base of zeros. Behind the
// end of a smaller base there are zeros. A repeat does nothing. Who calls keeps the base in the chunk store by a root.
// Errors: volume-invalid; volume-exists; volume-full; io-failed.
func Create(dir string, base chunks.Digest, size int64) error { return create(osFS{}, dir, base, size) }

func create(fsys filesystem, dir string, base chunks.Digest, size int64) error {
	m := meta{Size: size, Base: base, Layers: []int{1}}
	if err := m.check(); err != nil {
		return err
	}
	if err := fsys.mkdir(dir); err != nil {
		return ioError(err, "make %s", dir)
	}
	lock, err := lockDir(fsys, dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	old, err := readMeta(fsys, dir)
	switch {
	case err == nil && old.Base == base && old.Size == size:
		return ioError(fsys.syncDir(dir), "sync %s", dir)
	case err == nil:
		return errorf(VolumeExists, "%s holds a volume of %d bytes over %q", dir, old.Size, old.Base)
	case CodeOf(err) != VolumeMissing:
		return err
	}
	l, err := createLayer(fsys, dir, 1, size)
	if err != nil {
		return ioError(err, "make the first layer in %s", dir)
	}
	if err := l.close(); err != nil {
		return ioError(err, "make the first layer in %s", dir)
	}
	// The folder is synced with the description, and the layer's empty files with it.
	return writeMeta(fsys, dir, m)
}

func lockDir(fsys filesystem, dir string) (io.Closer, error) {
	lock, err := fsys.lock(filepath.Join(dir, "LOCK"))
	switch {
	case errors.Is(err, errLocked):
		return nil, wrap(VolumeInUse, err, "%s", dir)
	case errors.Is(err, fs.ErrNotExist):
		return nil, errorf(VolumeMissing, "%s holds no volume", dir)
	case err != nil:
		return nil, ioError(err, "lock %s", dir)
	}
	return lock, nil
}

// Open opens the volume in dir. Until it is closed its base stays in the chunk store, and no other process can open it.
// Errors: volume-missing; volume-in-use; volume-format-unknown; volume-damaged; base-unreadable; volume-full; io-failed.
func Open(ctx context.Context, dir string, cache *chunks.Cache) (*Volume, error) {
	return open(ctx, osFS{}, dir, cache)
}

func open(ctx context.Context, fsys filesystem, dir string, cache *chunks.Cache) (_ *Volume, err error) {
	v := &Volume{dir: dir, fs: fsys, cache: cache}
	if v.lock, err = lockDir(fsys, dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.release())
		}
	}()
	if v.meta, err = readMeta(fsys, dir); err != nil {
		return nil, err
	}
	v.size = v.meta.Size
	// A process that was killed may have renamed a file and not come to sync the folder; what is flushed from now on must
	// not be lost with the old name.
	if err := fsys.syncDir(dir); err != nil {
		return nil, wrap(IOFailed, err, "sync %s", dir)
	}
	if v.next, err = tidy(fsys, dir, v.meta); err != nil {
		return nil, err
	}
	for _, n := range v.meta.Layers {
		l, err := openLayer(fsys, dir, n, v.size)
		if err != nil {
			return nil, err
		}
		v.layers = append(v.layers, l)
	}
	if v.base, err = v.openBase(ctx, v.meta.Base); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *Volume) openBase(ctx context.Context, d chunks.Digest) (*chunks.Disk, error) {
	if d == "" {
		return nil, nil
	}
	base, err := v.cache.Open(ctx, d)
	if err != nil {
		return nil, wrap(BaseUnreadable, err, "open the base of %s", v.dir)
	}
	if base.Size() > v.size {
		return nil, errors.Join(errorf(VolumeInvalid, "the base of %s has %d bytes, the volume %d", v.dir, base.Size(), v.size), base.Close())
	}
	return base, nil
}

// release lets go of everything that the volume holds.
func (v *Volume) release() error {
	var errs []error
	for _, l := range v.layers {
		errs = append(errs, l.close())
	}
	if v.base != nil {
		errs = append(errs, v.base.Close())
	}
	return errors.Join(append(errs, v.lock.Close())...)
}

// Close flushes and closes the volume, after requests in progress and after the Snapshot that it is part of. It may be
// called more than once. Errors: those of Flush; the volume is closed all the same.
func (v *Volume) Close() error {
	v.saving.Lock()
	defer v.saving.Unlock()
	v.flushing.Lock()
	defer v.flushing.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	return errors.Join(v.sync(v.layers), v.release())
}

// Remove deletes the volume in dir, and the folder with all that is in it. Error: volume-in-use, io-failed. A repeat does
// nothing.
func Remove(dir string) error {
	lock, err := lockDir(osFS{}, dir)
	if CodeOf(err) == VolumeMissing {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	// Without its description the folder holds no volume, however much of the rest a crash leaves.
	if err := os.Remove(filepath.Join(dir, metaName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return wrap(IOFailed, err, "remove the description in %s", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return wrap(IOFailed, err, "remove %s", dir)
	}
	return nil
}

// Info describes a volume.
type Info struct {
	Size    int64         // bytes that it offers
	Base    chunks.Digest // empty: zeros
	Changed int64         // bytes, in whole blocks, that differ from the base or may
}

// Inspect describes the volume in dir without opening it. Changed is not known so, and 0. Errors: volume-missing;
// volume-format-unknown; volume-damaged.
func Inspect(dir string) (Info, error) {
	m, err := readMeta(osFS{}, dir)
	return Info{Size: m.Size, Base: m.Base}, err
}

// Info describes the volume.
func (v *Volume) Info() Info {
	v.mu.RLock()
	defer v.mu.RUnlock()
	i := Info{Size: v.size}
	if v.base != nil {
		i.Base = v.base.Index().Digest()
	}
	for _, e := range changed(v.layers, v.size) {
		i.Changed += e.Length
	}
	return i
}

// Size is the length in bytes.
func (v *Volume) Size() int64 { return v.size }

// Changed gives the ranges, in whole blocks and in order, that may differ from the base.
func (v *Volume) Changed() []chunks.Extent {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return changed(v.layers, v.size)
}

func changed(layers []*layer, size int64) []chunks.Extent {
	var all []span
	for _, l := range layers {
		l.states.spans(func(s span) bool { all = append(all, s); return true })
	}
	slices.SortFunc(all, func(a, b span) int { return int(a.first - b.first) })
	out := []chunks.Extent{}
	for _, s := range all {
		from, to := s.first*BlockSize, min(s.end*BlockSize, size)
		if n := len(out); n > 0 && from <= out[n-1].Offset+out[n-1].Length {
			out[n-1].Length = max(out[n-1].Length, to-out[n-1].Offset)
			continue
		}
		out = append(out, chunks.Extent{Offset: from, Length: to - from})
	}
	return out
}

// begin enters a request; done leaves it. Errors: volume-closed, range-invalid, and for writers volume-failed.
func (v *Volume) begin(off, n int64, write bool) (done func(), err error) {
	v.mu.RLock()
	switch {
	case v.closed:
		err = errorf(VolumeClosed, "%s is closed", v.dir)
	case off < 0 || n < 0 || off > v.size || n > v.size-off:
		err = errorf(RangeInvalid, "%d bytes at %d of a volume of %d bytes", n, off, v.size)
	case write:
		err = v.failure()
	}
	if err != nil {
		v.mu.RUnlock()
		return nil, err
	}
	return v.mu.RUnlock, nil
}

// ReadAt is io.ReaderAt. Errors besides io.EOF: volume-closed, range-invalid, base-unreadable, io-failed.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), max(0, v.size-off))
	done, err := v.begin(off, n, false)
	if err != nil {
		return 0, err
	}
	defer done()
	if err := readLayers(v.layers, v.base, p[:n], off); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readLayers reads through layers, the top first, down to the base.
func readLayers(layers []*layer, base *chunks.Disk, p []byte, off int64) error {
	if len(layers) == 0 {
		if base == nil {
			clear(p)
			return nil
		}
		if err := readFull(base, p, off); err != nil {
			return wrap(BaseUnreadable, err, "read %d bytes at %d", len(p), off)
		}
		return nil
	}
	l, last := layers[0], blocksOf(off+int64(len(p)))
	for len(p) > 0 {
		s, end := l.states.run(off/BlockSize, last)
		part := p[:min(int64(len(p)), end*BlockSize-off)]
		switch s {
		case inherited:
			if err := readLayers(layers[1:], base, part, off); err != nil {
				return err
			}
		case zeroed:
			clear(part)
		default:
			if err := readFull(l.data, part, off); err != nil {
				return wrap(IOFailed, err, "read %d bytes at %d of %s.data", len(part), off, l.prefix)
			}
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// WriteAt is io.WriterAt. After an error the range holds the old bytes, the new ones, or some of each. Errors:
// volume-full, volume-failed, volume-closed, range-invalid, base-unreadable, io-failed.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	done, err := v.begin(off, int64(len(p)), true)
	if err != nil || len(p) == 0 {
		if err == nil {
			done()
		}
		return 0, err
	}
	defer done()
	first, end := off/BlockSize, blocksOf(off+int64(len(p)))
	defer v.lockBlocks(first, end)()
	top := v.layers[0]
	defer top.changes.Add(1)
	if err := v.write(top, p, off); err != nil {
		return 0, err
	}
	if err := top.mark(first, end, written); err != nil {
		return 0, ioError(err, "tell of %d bytes at %d of %s", len(p), off, v.dir)
	}
	return len(p), nil
}

// write brings bytes into the top's file, and with them the rest of blocks that they are a part of.
func (v *Volume) write(top *layer, p []byte, off int64) error {
	for len(p) > 0 {
		part := p
		within := off % BlockSize
		whole := within == 0 && (len(p) >= BlockSize || off+int64(len(p)) == v.size)
		switch {
		case !whole:
			part = p[:min(int64(len(p)), BlockSize-within)]
		case off+int64(len(p)) < v.size:
			part = p[:len(p)/BlockSize*BlockSize]
		}
		bytes, at := part, off
		if !whole && top.states.at(off/BlockSize) != written {
			at = off - within
			bytes = make([]byte, min(BlockSize, v.size-at))
			if err := readLayers(v.layers, v.base, bytes, at); err != nil {
				return err
			}
			copy(bytes[within:], part)
		}
		if _, err := top.data.WriteAt(bytes, at); err != nil {
			return ioError(err, "write %d bytes at %d of %s", len(bytes), at, v.dir)
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// Trim says that the bytes are needed no more. The whole blocks among them read as zeros from now on and take no room.
// Errors: those of WriteAt.
func (v *Volume) Trim(off, n int64) error {
	done, err := v.begin(off, n, true)
	if err != nil {
		return err
	}
	defer done()
	first, end := blocksOf(off), (off+n)/BlockSize
	if off+n == v.size {
		end = blocksOf(v.size)
	}
	return v.zero(first, end)
}

// zero makes whole blocks zeros.
func (v *Volume) zero(first, end int64) error {
	if first >= end {
		return nil
	}
	defer v.lockBlocks(first, end)()
	top := v.layers[0]
	defer top.changes.Add(1)
	var holes []span
	for b := first; b < end; {
		s, to := top.states.run(b, end)
		if s == written {
			holes = append(holes, span{first: b, end: to})
		}
		b = to
	}
	if err := top.mark(first, end, zeroed); err != nil {
		return ioError(err, "tell of zeros at %d of %s", first*BlockSize, v.dir)
	}
	for _, h := range holes {
		if err := top.data.Punch(h.first*BlockSize, (h.end-h.first)*BlockSize); err != nil {
			return ioError(err, "make a hole in %s.data", top.prefix)
		}
	}
	return nil
}

// WriteZeroes makes the bytes zeros; allocate asks that they take room all the same, so that writing them later cannot
// fail for want of it. Errors: those of WriteAt.
func (v *Volume) WriteZeroes(off, n int64, allocate bool) error {
	done, err := v.begin(off, n, true)
	if err != nil {
		return err
	}
	done()
	to := off + n
	first, end := blocksOf(off), to/BlockSize
	if to == v.size {
		end = blocksOf(v.size)
	}
	if allocate || first >= end {
		return v.writeZeros(off, to)
	}
	if err := v.writeZeros(off, first*BlockSize); err != nil {
		return err
	}
	if err := v.Trim(first*BlockSize, min(end*BlockSize, v.size)-first*BlockSize); err != nil {
		return err
	}
	return v.writeZeros(end*BlockSize, to)
}

// writeZeros writes zeros from off to end, if that is behind.
func (v *Volume) writeZeros(off, end int64) error {
	var zeros []byte
	for off < end {
		if zeros == nil {
			zeros = make([]byte, min(1<<20, end-off))
		}
		n, err := v.WriteAt(zeros[:min(int64(len(zeros)), end-off)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// Flush makes durable what was answered before. Errors: volume-failed, volume-closed.
func (v *Volume) Flush() error {
	v.flushing.Lock()
	defer v.flushing.Unlock()
	done, err := v.begin(0, 0, true)
	if err != nil {
		return err
	}
	layers := v.layers
	// Requests go on meanwhile; the layers stay open, because only who holds flushing closes one.
	done()
	return v.sync(layers)
}

// sync makes layers durable, the lower first, so that no flushed write lies above one that it was made upon and that is lost.
func (v *Volume) sync(layers []*layer) error {
	if err := v.failure(); err != nil {
		return err
	}
	for _, l := range slices.Backward(layers) {
		if err := l.sync(); err != nil {
			err = wrap(VolumeFailed, err, "%s could not be made durable; what was written since the last flush may be lost", v.dir)
			v.failMu.Lock()
			v.failed = err
			v.failMu.Unlock()
			for _, l := range layers {
				err = errors.Join(err, l.distrust())
			}
			return err
		}
	}
	return nil
}

func (v *Volume) failure() error {
	v.failMu.Lock()
	defer v.failMu.Unlock()
	return v.failed
}

// lockBlocks makes writers of the same blocks take turns.
func (v *Volume) lockBlocks(first, end int64) (unlock func()) {
	var set uint64
	from, to := first/lockUnit, (end-1)/lockUnit
	if to-from >= int64(len(v.blocks)) {
		set = ^uint64(0)
	} else {
		for i := from; i <= to; i++ {
			set |= 1 << (i % int64(len(v.blocks)))
		}
	}
	// Always upwards, so that no two wait for each other.
	for s := set; s != 0; s &= s - 1 {
		v.blocks[bits.TrailingZeros64(s)].Lock()
	}
	return func() {
		for s := set; s != 0; s &= s - 1 {
			v.blocks[bits.TrailingZeros64(s)].Unlock()
		}
	}
}

// ioError tells a full disk from other trouble.
func ioError(err error, format string, args ...any) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return wrap(VolumeFull, err, format, args...)
	default:
		return wrap(IOFailed, err, format, args...)
	}
}
