// Package packs keeps a region's chunks in a folder.
//
//	FORMAT      the version of the layout; a later one is refused
//	LOCK        held (flock) while a process has the store open
//	packs/      NNNNNNNN.pack: records, appended; NNNNNNNN.idx: where they lie (pack.go)
//	indexes/    <hex>.idx: disk indexes, named by their digest
//	roots/      one file for each root, named by the digest of its name
//	holds/      one file for each hold, named by the digest of its owner
//
// What is promised is written in the order pack, index of the pack, directory, disk index, root; each of the small files
// is written beside, made durable and renamed. So a crash at any point leaves a store that opens, with everything that
// was promised. In memory the store keeps about 100 bytes for each chunk (1.6 MiB for 1 GiB of data).
package packs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// FormatVersion is the layout that this program writes and the only one that it reads.
const FormatVersion = 1

const formatLine = "tombolo chunk store, format %d\n"

// Options are the choices for a store; the zero value is good.
type Options struct {
	// PackSize is the length in bytes at which a new pack is begun: 128 MiB where 0, at most 2 GiB.
	PackSize int64
	// MaxBytes is the quota for packs, in bytes; 0 leaves it to the disk. Collect may pass it for a moment.
	MaxBytes int64
	// Reserve is the room in bytes that Put leaves on the disk: Collect needs some to make more. 0 means nine eighths
	// of PackSize, one pack and its index.
	Reserve int64
}

// Store implements chunks.Store.
type Store struct {
	dir     string
	options Options
	fs      filesystem
	lock    *os.File

	// Locks are taken in this order: collectMu, metaMu, syncMu, appendMu, mu.

	collectMu sync.Mutex // one Collect at a time

	metaMu sync.Mutex // roots, holds and the index files
	roots  map[string]chunks.Root
	holds  map[string]chunks.Hold
	broken map[string]error        // files of roots and holds that cannot be read
	sizes  map[chunks.Digest]int64 // of disks, as far as they were asked for

	syncMu sync.Mutex // one sync at a time

	appendMu  sync.Mutex // appending to packs
	active    *pack      // nil until the first record
	finishing []*pack    // full, on their way to the disk
	next      uint32
	buf       []byte // one record
	unchecked int    // bytes put since the disk was asked for its room
	failed    error  // after an fsync failed nothing is known of what was written

	mu       sync.Mutex // where chunks are, and what protects them
	chunks   map[chunks.ID]entry
	packs    map[uint32]*pack
	stored   int64 // bytes of all packs
	epoch    uint32
	sessions map[*session]uint32 // the epochs that they began
	collects uint32
	acquired map[chunks.Digest]*acquiredDisk
	closed   bool
}

// entry is where a chunk lies and what protects it: the number of the last Collect that found it named, and the epoch
// in which a session last touched it. Each session begins an epoch. So a session costs no memory for what it protects;
// the price is that while it is open it also protects what other sessions touched since it began.
type entry struct {
	pack, off, len  uint32
	marked, touched uint32
}

var _ chunks.Store = (*Store)(nil)

// Open opens the store in dir, which it makes where there is none. Errors: store-in-use, store-format-unknown,
// store-damaged (a root or hold cannot be read), store-full.
func Open(dir string, o Options) (*Store, error) { return open(dir, o, osFS{}) }

func open(dir string, o Options, fsys filesystem) (_ *Store, err error) {
	if o.PackSize == 0 {
		o.PackSize = 128 << 20
	}
	if o.PackSize < 0 || o.PackSize > math.MaxInt32 || o.MaxBytes < 0 || o.Reserve < 0 {
		return nil, chunks.Errorf(chunks.RangeInvalid, "pack size %d, quota %d, reserve %d", o.PackSize, o.MaxBytes, o.Reserve)
	}
	if o.Reserve == 0 {
		o.Reserve = o.PackSize + o.PackSize/8
	}
	s := &Store{
		dir: dir, options: o, fs: fsys, next: 1,
		roots: map[string]chunks.Root{}, holds: map[string]chunks.Hold{},
		chunks: map[chunks.ID]entry{}, packs: map[uint32]*pack{},
		sessions: map[*session]uint32{}, acquired: map[chunks.Digest]*acquiredDisk{},
		broken: map[string]error{}, sizes: map[chunks.Digest]int64{},
		buf: make([]byte, 0, chunks.MaxRecordSize), unchecked: roomEvery,
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, s.writeError(err, "make the folder")
	}
	if s.lock, err = os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, s.writeError(err, "open the lock")
	}
	defer func() {
		if err != nil {
			for _, p := range s.packs {
				err = errors.Join(err, p.close())
			}
			err = errors.Join(err, s.lock.Close())
		}
	}()
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, chunks.Errorf(chunks.StoreInUse, "another process has the chunk store %s open", dir)
	} else if err != nil {
		return nil, chunks.Wrap(chunks.StoreInUse, err, "lock the chunk store %s", dir)
	}
	if err := s.openFormat(); err != nil {
		return nil, err
	}
	for _, step := range []func() error{s.removeLeftovers, s.openPacks, s.openMeta} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// folders are made before FORMAT, which is therefore the sign of a whole store.
func (*Store) folders() []string { return []string{"packs", "indexes", "roots", "holds"} }

func (s *Store) openFormat() error {
	b, err := os.ReadFile(s.path("FORMAT"))
	switch {
	case err == nil && string(b) == fmt.Sprintf(formatLine, FormatVersion):
		return nil
	case err == nil:
		return chunks.Errorf(chunks.StoreFormatUnknown, "%s says %q; this program reads format %d", s.path("FORMAT"), strings.TrimSpace(string(b)), FormatVersion)
	case !errors.Is(err, fs.ErrNotExist):
		return chunks.Wrap(chunks.StoreFormatUnknown, err, "read the format")
	}
	// A first opening may have stopped half-way; anything else than its empty folders is not ours to take.
	found, err := os.ReadDir(s.dir)
	if err != nil {
		return chunks.Wrap(chunks.StoreFormatUnknown, err, "look into %s", s.dir)
	}
	for _, e := range found {
		switch {
		case e.Name() == "LOCK" || e.Name() == "FORMAT.tmp":
		case slices.Contains(s.folders(), e.Name()):
			if inside, err := os.ReadDir(s.path(e.Name())); err != nil || len(inside) > 0 {
				return chunks.Errorf(chunks.StoreFormatUnknown, "%s has no FORMAT file but %s is not empty", s.dir, e.Name())
			}
		default:
			return chunks.Errorf(chunks.StoreFormatUnknown, "%s has no FORMAT file and holds %s: not a chunk store", s.dir, e.Name())
		}
	}
	for _, name := range s.folders() {
		if err := os.MkdirAll(s.path(name), 0o755); err != nil {
			return s.writeError(err, "make the folder "+name)
		}
	}
	if err := replaceFile(s.fs, s.path("FORMAT"), fmt.Appendf(nil, formatLine, FormatVersion)); err != nil {
		return s.writeError(err, "write the format")
	}
	return s.writeError(errors.Join(s.fs.syncDir(s.dir), s.fs.syncDir(filepath.Dir(s.dir))), "make the format durable")
}

// removeLeftovers takes away what a crash left half written.
func (s *Store) removeLeftovers() error {
	for _, name := range s.folders() {
		left, err := filepath.Glob(s.path(name, "*.tmp"))
		if err != nil {
			return err
		}
		for _, f := range left {
			if err := s.fs.remove(f); err != nil {
				return s.writeError(err, "remove a leftover")
			}
		}
	}
	return nil
}

func (s *Store) openPacks() error {
	found, err := os.ReadDir(s.path("packs")) // sorted, so a chunk that is there twice is read from the later pack
	if err != nil {
		return chunks.Wrap(chunks.StoreDamaged, err, "list the packs")
	}
	packFiles := map[uint32]bool{}
	for _, f := range found {
		var n uint32
		if _, err := fmt.Sscanf(f.Name(), "%08d.pack", &n); err != nil || f.Name() != fmt.Sprintf("%08d.pack", n) {
			continue
		}
		p, entries, err := openPack(s.fs, s.path("packs"), n)
		if chunks.CodeOf(err) != "" {
			return err
		} else if err != nil {
			return s.writeError(err, "open pack "+f.Name())
		}
		s.next = n + 1
		if p == nil {
			continue
		}
		packFiles[n] = true
		s.packs[n] = p
		s.stored += p.size
		for _, e := range entries {
			s.chunks[e.id] = entry{pack: n, off: e.off, len: e.len}
		}
		if s.active != nil {
			s.finish(s.active)
		}
		s.active = p
	}
	for _, f := range found {
		var n uint32
		if _, err := fmt.Sscanf(f.Name(), "%08d.idx", &n); err == nil && !packFiles[n] {
			if err := s.fs.remove(s.path("packs", f.Name())); err != nil {
				return s.writeError(err, "remove the index of a pack that is gone")
			}
		}
	}
	return nil
}

// Close makes all durable, waits for reads, and frees the store for another process. It may be called more than once.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.collectMu.Lock()
	defer s.collectMu.Unlock()
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	err := s.sync()
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.packs {
		if cerr := p.close(); cerr != nil {
			err = errors.Join(err, chunks.Wrap(chunks.StoreWriteFailed, cerr, "close a pack"))
		}
	}
	// Closing the file frees the lock.
	return errors.Join(err, s.lock.Close())
}

func (s *Store) errClosed() error {
	return chunks.Errorf(chunks.StoreClosed, "the chunk store %s is closed", s.dir)
}

// writeError gives an error of the disk its code; nil stays nil.
func (s *Store) writeError(err error, doing string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return chunks.Wrap(chunks.StoreFull, err, "%s: no room in %s; free space and repeat", doing, s.dir)
	default:
		return chunks.Wrap(chunks.StoreWriteFailed, err, "%s in %s", doing, s.dir)
	}
}

// begin checks the context and that the store is open.
func (s *Store) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.errClosed()
	}
	return nil
}
