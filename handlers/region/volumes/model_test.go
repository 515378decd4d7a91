package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

var until = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

// shelf is a chunk store with a cache, and what it takes to keep disks in it.
type shelf struct {
	tb    testing.TB
	store chunks.Store
	cache *chunks.Cache
	saves int
}

func newShelf(tb testing.TB, store chunks.Store) *shelf {
	tb.Helper()
	cache, err := chunks.NewCache(store, 4<<20)
	if err != nil {
		tb.Fatal(err)
	}
	if err := store.Hold(tb.Context(), "test", until); err != nil {
		tb.Fatal(err)
	}
	return &shelf{tb: tb, store: store, cache: cache}
}

// keep stores a disk under a root of its own.
func (s *shelf) keep(disk []byte) chunks.Digest {
	s.tb.Helper()
	session, err := s.store.Begin(s.tb.Context(), "test")
	if err != nil {
		s.tb.Fatal(err)
	}
	defer session.Close()
	r, err := chunks.Ingest(s.tb.Context(), session, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk))})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.publish(r.Digest)
	return r.Digest
}

// publish makes a root of the only disks that the store is to keep from now on.
func (s *shelf) publish(disks ...chunks.Digest) {
	s.tb.Helper()
	s.saves++
	disks = slices.DeleteFunc(disks, func(d chunks.Digest) bool { return d == "" })
	if err := s.store.Publish(s.tb.Context(), chunks.Root{Name: fmt.Sprint("environment/", s.saves), Owner: "test", Indexes: disks}); err != nil {
		s.tb.Fatal(err)
	}
}

// collect forgets all roots but the last and takes everything away that nothing else protects.
func (s *shelf) collect() {
	s.tb.Helper()
	if _, err := s.store.Unpublish(s.tb.Context(), fmt.Sprint("environment/", s.saves-1)); err != nil {
		s.tb.Fatal(err)
	}
	if _, err := s.store.Release(s.tb.Context(), "test"); err != nil {
		s.tb.Fatal(err)
	}
	if _, err := s.store.Collect(s.tb.Context(), chunks.CollectRequest{Now: time.Now()}); err != nil {
		s.tb.Fatal(err)
	}
	if err := s.store.Hold(s.tb.Context(), "test", until); err != nil {
		s.tb.Fatal(err)
	}
}

// random gives a disk of pieces of zeros, noise and repeats.
func random(rnd *rand.Rand, size int64) []byte {
	disk := make([]byte, size)
	for off := int64(0); off < size; {
		n := min(size-off, rnd.Int64N(100<<10)+1)
		if kind := rnd.IntN(3); kind > 0 {
			seed := byte(rnd.Uint32())
			for i := range disk[off : off+n] {
				disk[off+int64(i)] = seed + byte(kind-1)*byte(rnd.Uint32())
			}
		}
		off += n
	}
	return disk
}

// model is what a volume must read as.
type model struct {
	now, flushed []byte
	since        []change // since the last flush, whether answered or not
	doubt        []change // begun and not answered when the process ended
}

type change struct {
	off   int64
	bytes []byte
}

// check compares what was read with what may be: after a power cut each byte is as it was flushed or as any write since
// made it.
func (m *model) check(t *testing.T, got []byte, must []byte, may []change) {
	t.Helper()
	if bytes.Equal(got, must) {
		return
	}
	good := make([]bool, len(got))
	for i := range got {
		good[i] = got[i] == must[i]
	}
	for _, c := range may {
		for i, b := range c.bytes {
			at := c.off + int64(i)
			good[at] = good[at] || got[at] == b
		}
	}
	if i := slices.Index(good, false); i >= 0 {
		t.Fatalf("byte %d (block %d) is %#x, must be %#x", i, i/BlockSize, got[i], must[i])
	}
}

// run is one life story of a volume.
type run struct {
	t       *testing.T
	rnd     *rand.Rand
	fs      *powerFS
	shelf   *shelf
	v       *Volume
	m       model
	history []string
}

func (r *run) note(format string, args ...any) {
	r.history = append(r.history, fmt.Sprintf(format, args...))
}

func (r *run) open() error {
	r.t.Helper()
	v, err := open(r.t.Context(), r.fs, "disk", r.shelf.cache)
	if err != nil {
		return err
	}
	r.v = v
	if n := len(r.fs.names); n > 1+2*len(v.layers) {
		r.t.Fatalf("%d files for %d layers", n, len(v.layers))
	}
	return nil
}

func (r *run) read() []byte {
	r.t.Helper()
	got := make([]byte, len(r.m.now))
	if _, err := r.v.ReadAt(got, 0); err != nil {
		r.t.Fatal("read: ", err)
	}
	return got
}

// place picks a range, aligned now and then.
func (r *run) place() (off, n int64) {
	size := int64(len(r.m.now))
	off = r.rnd.Int64N(size)
	n = min(size-off, 1+r.rnd.Int64N(10*BlockSize))
	switch r.rnd.IntN(5) {
	case 0:
		off = off / BlockSize * BlockSize
	case 1:
		off = off / BlockSize * BlockSize
		n = min(size-off, max(BlockSize, n/BlockSize*BlockSize))
	case 2:
		n = size - off
	}
	return off, n
}

// change does one write, trim or zeroing.
func (r *run) change() error {
	off, n := r.place()
	var c change
	var err error
	switch r.rnd.IntN(5) {
	case 0:
		r.note("trim %d+%d", off, n)
		from, to := min(blocksOf(off)*BlockSize, int64(len(r.m.now))), (off+n)/BlockSize*BlockSize
		if off+n == int64(len(r.m.now)) {
			to = off + n
		}
		c = change{from, make([]byte, max(0, to-from))}
		err = r.v.Trim(off, n)
	case 1:
		allocate := r.rnd.IntN(2) == 0
		r.note("zero %d+%d allocate %v", off, n, allocate)
		c = change{off, make([]byte, n)}
		err = r.v.WriteZeroes(off, n, allocate)
	default:
		r.note("write %d+%d", off, n)
		c = change{off, make([]byte, n)}
		for i := range c.bytes {
			c.bytes[i] = byte(r.rnd.Uint32())
		}
		_, err = r.v.WriteAt(c.bytes, off)
	}
	if err != nil {
		r.m.doubt = append(r.m.doubt, c)
		return err
	}
	r.m.since = append(r.m.since, c)
	copy(r.m.now[c.off:], c.bytes)
	return nil
}

func (r *run) flush() error {
	r.note("flush")
	before, known := slices.Clone(r.m.now), len(r.m.since)
	var during error
	if r.rnd.IntN(2) == 0 {
		r.fs.synced = func() { during = r.change() }
	}
	err := r.v.Flush()
	r.fs.synced = nil
	if err := errors.Join(err, during); err != nil {
		return err
	}
	r.m.flushed, r.m.since = before, r.m.since[known:]
	return nil
}

// save stores the volume while it is written to.
func (r *run) save(ctx context.Context) error {
	r.note("save")
	snapshot, err := Prepare(ctx, r.v)
	if err != nil {
		return err
	}
	defer snapshot.Close()
	if err := r.change(); err != nil {
		return err
	}
	if r.rnd.IntN(4) == 0 {
		r.note("save ends before the moment")
		return nil
	}
	if err := snapshot.Take(); err != nil {
		return err
	}
	want := slices.Clone(r.m.now)
	if err := r.change(); err != nil {
		return err
	}
	if r.rnd.IntN(4) == 0 {
		r.note("save ends before the chunks are stored")
		return nil
	}
	session, err := r.shelf.store.Begin(ctx, "test")
	if err != nil {
		return err
	}
	defer session.Close()
	results, err := snapshot.Ingest(ctx, session, nil)
	if err != nil {
		return err
	}
	saved, err := r.shelf.cache.Open(ctx, results[0].Digest)
	if err != nil {
		return err
	}
	defer saved.Close()
	got := make([]byte, len(want))
	if _, err := saved.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		r.t.Fatal("what was saved is not the moment that was frozen")
	}
	r.shelf.publish(r.v.Info().Base, results[0].Digest)
	if err := r.change(); err != nil {
		return err
	}
	if r.rnd.IntN(4) == 0 {
		r.note("save ends before the rebase")
		return nil
	}
	if err := snapshot.Rebase(ctx); err != nil {
		return err
	}
	r.note("rebased")
	r.shelf.publish(results[0].Digest)
	r.shelf.collect()
	return nil
}

// end is a crash, or an ordinary end, and what must be there after it.
func (r *run) end(power bool) {
	r.t.Helper()
	if power {
		r.note("power cut")
		r.fs.cut()
	} else {
		r.note("killed")
		r.fs.kill()
	}
	// The dead process's hold upon its base ends with it.
	if r.v.base != nil {
		r.v.base.Close()
	}
	if err := r.open(); err != nil {
		r.t.Fatal("open: ", err)
	}
	got := r.read()
	if power {
		r.m.check(r.t, got, r.m.flushed, append(r.m.since, r.m.doubt...))
		// What is there after the cut is on the disk.
		r.m.flushed, r.m.since = slices.Clone(got), nil
	} else {
		r.m.check(r.t, got, r.m.now, r.m.doubt)
		r.m.since = append(r.m.since, r.m.doubt...)
	}
	r.m.now, r.m.doubt = got, nil
}

// step does one thing; errPower is the end of the process or of the power.
func (r *run) step() error {
	switch n := r.rnd.IntN(20); {
	case n < 10:
		return r.change()
	case n < 13:
		return r.flush()
	case n < 15:
		return r.save(r.t.Context())
	case n < 16:
		r.note("close")
		if err := r.v.Close(); err != nil {
			return err
		}
		r.m.flushed, r.m.since = slices.Clone(r.m.now), nil
		return r.open()
	default:
		off, n := r.place()
		got := make([]byte, n)
		if _, err := r.v.ReadAt(got, off); err != nil {
			return err
		}
		if !bytes.Equal(got, r.m.now[off:off+n]) {
			r.t.Fatalf("%d bytes at %d are not what was written", n, off)
		}
	}
	return nil
}

func testLife(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := &run{t: t, rnd: rnd, fs: newPowerFS(seed), shelf: newShelf(t, chunkstest.NewMemory())}
	defer func() {
		if t.Failed() {
			t.Logf("seed %d: %q", seed, r.history)
		}
	}()
	size := 200<<10 + rnd.Int64N(200<<10)
	base := random(rnd, size-rnd.Int64N(2)*rnd.Int64N(100<<10))
	digest := r.shelf.keep(base)
	if rnd.IntN(4) == 0 {
		digest, base = "", nil
	}
	if err := create(r.fs, "disk", digest, size); err != nil {
		t.Fatal(err)
	}
	r.m.now = append(base, make([]byte, size-int64(len(base)))...)
	r.m.flushed = slices.Clone(r.m.now)
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		r.fs.left = rnd.IntN(150)
		var err error
		for range 60 {
			if err = r.step(); err != nil {
				break
			}
		}
		if err != nil && !errors.Is(err, errPower) {
			t.Fatal(err)
		}
		r.end(rnd.IntN(2) == 0)
	}
}

// TestAnyLife lets volumes live random lives, with the power or the process gone at any change of the disk, and compares
// them with bytes in memory.
func TestAnyLife(t *testing.T) {
	for seed := range uint64(50) {
		testLife(t, seed)
		if t.Failed() {
			return
		}
	}
}
