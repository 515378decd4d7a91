package chunkstest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Harness is an implementation under test.
type Harness struct {
	Open   func(t *testing.T) chunks.Store                  // an empty store; the suite closes it
	Damage func(t *testing.T, s chunks.Store, id chunks.ID) // flips a bit of a stored chunk
}

// Run holds an implementation to the contract in package chunks.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"round trip", roundTrip}, {"nothing stored for zeros", zeros}, {"dedup", dedup}, {"holes of a file", holes},
		{"incremental", incremental}, {"base is not whole", baseMissing}, {"source changes", sourceChanges}, {"cancelled", cancelled},
		{"bad input", badInput}, {"publish", publish}, {"holds", holds}, {"collect", collect},
		{"verify, scrub, fetch again", scrub}, {"export", export}, {"small cache", smallCache}, {"all at once", allAtOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &suite{Store: h.Open(t), damage: h.Damage, t: t, ctx: t.Context()}
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			c.run(t, s)
		})
	}
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type suite struct {
	chunks.Store
	damage func(*testing.T, chunks.Store, chunks.ID)
	t      *testing.T
	ctx    context.Context
}

// Disk makes a disk of about half text, a quarter noise and a quarter zeros, in blocks, with a short last block and
// some blocks twice. Equal seeds give equal disks.
func Disk(seed uint64, blocks int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, blocks*chunks.BlockSize+777)
	for i := 0; i < len(b); i += chunks.BlockSize {
		block := b[i:min(len(b), i+chunks.BlockSize)]
		switch k := r.IntN(8); {
		case k < 4:
			for j := range min(len(block), 1024) {
				block[j] = "environment "[(j*j/10+int(seed)+i/chunks.BlockSize)%12]
			}
			for j := 1024; j < len(block); j *= 2 {
				copy(block[j:], block[:j])
			}
			for range 2000 {
				block[r.IntN(len(block))] = byte(r.Uint32())
			}
		case k < 6:
			for j := 0; j+8 <= len(block); j += 8 {
				binary.LittleEndian.PutUint64(block[j:], r.Uint64())
			}
		case k == 6 && i > 0 && len(block) == chunks.BlockSize:
			copy(block, b[:chunks.BlockSize])
		}
	}
	b[len(b)-1], b[len(b)-2] = 1, byte(seed)
	return b
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantCode(t *testing.T, err error, code chunks.Code) {
	t.Helper()
	if chunks.CodeOf(err) != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
}

func (s *suite) session(owner string) chunks.Session {
	s.t.Helper()
	if err := s.Hold(s.ctx, owner, now.Add(time.Hour)); err != nil {
		s.t.Fatal(err)
	}
	n, err := s.Begin(s.ctx, owner)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *suite) ingest(owner string, disk []byte) chunks.IngestResult {
	s.t.Helper()
	n := s.session(owner)
	defer n.Close()
	return must[chunks.IngestResult](s.t)(chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk))}))
}

// publish ingests a disk and leaves only its root.
func (s *suite) publish(name string, disk []byte) chunks.IngestResult {
	s.t.Helper()
	r := s.ingest(name, disk)
	if err := s.Publish(s.ctx, chunks.Root{Name: name, Owner: name, Indexes: []chunks.Digest{r.Digest}}); err != nil {
		s.t.Fatal(err)
	}
	must[bool](s.t)(s.Release(s.ctx, name))
	return r
}

func (s *suite) collect() chunks.CollectResult {
	s.t.Helper()
	return must[chunks.CollectResult](s.t)(s.Collect(s.ctx, chunks.CollectRequest{Now: now}))
}

func (s *suite) read(d chunks.Digest) []byte {
	s.t.Helper()
	cache := must[*chunks.Cache](s.t)(chunks.NewCache(s, 1<<20))
	defer cache.Close()
	disk := must[*chunks.Disk](s.t)(cache.Open(s.ctx, d))
	defer disk.Close()
	b, err := io.ReadAll(io.NewSectionReader(disk, 0, disk.Size()))
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func (s *suite) has(ids ...chunks.ID) []bool {
	s.t.Helper()
	return must[[]bool](s.t)(s.Has(s.ctx, ids))
}

// distinct gives the ids of a disk once each.
func distinct(x *chunks.DiskIndex) []chunks.ID {
	ids := slices.Clone(x.DataIDs())
	slices.SortFunc(ids, func(a, b chunks.ID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(ids)
}

func roundTrip(t *testing.T, s *suite) {
	disk := Disk(1, 80)
	r := s.publish("a", disk)
	if !bytes.Equal(s.read(r.Digest), disk) {
		t.Fatal("the disk reads back differently")
	}
	if r.BytesRead != int64(len(disk)) || r.NewChunks != len(distinct(r.Index)) ||
		r.NewBytes+r.DedupBytes+r.ZeroBytes != int64(len(disk)) || r.StoredBytes <= 0 || r.StoredBytes >= r.NewBytes {
		t.Fatalf("figures do not add up: %+v", r)
	}
	if x := must[*chunks.DiskIndex](t)(s.Index(s.ctx, r.Digest)); x.Digest() != r.Digest || x.Size() != int64(len(disk)) {
		t.Fatal("the index reads back differently")
	}
	st := must[chunks.Stats](t)(s.Stats(s.ctx))
	if st.Roots != 1 || st.Holds != 0 || st.LogicalBytes != int64(len(disk)) || st.Chunks != r.NewChunks || st.StoredBytes < r.StoredBytes {
		t.Fatalf("stats %+v after %+v", st, r)
	}
	var listed []chunks.ID
	if err := s.List(s.ctx, func(ids []chunks.ID) error { listed = append(listed, ids...); return nil }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(listed, func(a, b chunks.ID) int { return bytes.Compare(a[:], b[:]) })
	if !slices.Equal(listed, distinct(r.Index)) {
		t.Fatalf("%d chunks listed, %d stored", len(listed), r.NewChunks)
	}
	stop := errors.New("enough")
	if err := s.List(s.ctx, func([]chunks.ID) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("List ended with %v", err)
	}
	// Reads at odd places.
	cache := must[*chunks.Cache](t)(chunks.NewCache(s, 1<<20))
	defer cache.Close()
	d := must[*chunks.Disk](t)(cache.Open(s.ctx, r.Digest))
	defer d.Close()
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		off, n := rnd.IntN(len(disk)), rnd.IntN(200_000)
		p := make([]byte, n)
		got, err := d.ReadAt(p, int64(off))
		want := disk[off:min(len(disk), off+n)]
		if !bytes.Equal(p[:got], want) || (err == io.EOF) != (len(want) < n) || err != nil && err != io.EOF {
			t.Fatalf("read %d+%d: %d bytes, %v", off, n, got, err)
		}
	}
	_, err := d.ReadAt(make([]byte, 1), -1)
	wantCode(t, err, chunks.RangeInvalid)
}

func zeros(t *testing.T, s *suite) {
	for _, size := range []int{0, 1, chunks.BlockSize, 5*chunks.BlockSize + 3} {
		r := s.ingest("a", make([]byte, size))
		if r.StoredBytes != 0 || r.NewChunks != 0 || r.ZeroBytes != int64(size) || !bytes.Equal(s.read(r.Digest), make([]byte, size)) {
			t.Fatalf("%d zeros: %+v", size, r)
		}
	}
	if !s.has(chunks.ZeroID)[0] {
		t.Fatal("zeros are not present")
	}
	if st := must[chunks.Stats](t)(s.Stats(s.ctx)); st.Chunks != 0 {
		t.Fatalf("stats %+v", st)
	}
}

func dedup(t *testing.T, s *suite) {
	disk := Disk(2, 40)
	first := s.publish("a", disk)
	again := s.ingest("b", disk)
	if again.Digest != first.Digest || again.StoredBytes != 0 || again.NewChunks != 0 || again.DedupBytes+again.ZeroBytes != int64(len(disk)) {
		t.Fatalf("the same disk again: %+v", again)
	}
	disk[5*chunks.BlockSize] ^= 1
	if third := s.ingest("b", disk); third.NewChunks != 1 || third.Digest == first.Digest {
		t.Fatalf("one bit changed: %+v", third)
	}
}

func holes(t *testing.T, s *suite) {
	path := filepath.Join(t.TempDir(), "disk")
	f := must[*os.File](t)(os.Create(path))
	defer f.Close()
	const size = 128 << 20
	data := Disk(3, 3)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	must[int](t)(f.WriteAt(data, 50<<20))
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	n := s.session("a")
	defer n.Close()
	r := must[chunks.IngestResult](t)(chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: f, Size: size}))
	if r.BytesRead > 4<<20 || r.Index.Size() != size {
		t.Fatalf("read %d bytes of a disk of holes", r.BytesRead)
	}
	// The same content without looking for holes is the same disk.
	whole := must[chunks.IngestResult](t)(chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: f, Size: size, Extents: []chunks.Extent{{Length: size}}}))
	if whole.BytesRead != size || whole.Digest != r.Digest || whole.NewChunks != 0 {
		t.Fatalf("with the holes read: %+v", whole)
	}
	// Extents in any order, overlapping, not aligned.
	part := must[chunks.IngestResult](t)(chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: f, Size: size, Extents: []chunks.Extent{
		{Offset: 50<<20 + 70_000, Length: int64(len(data)) - 70_000}, {Offset: size, Length: 0}, {Offset: 50 << 20, Length: 90_000}}}))
	if part.Digest != r.Digest {
		t.Fatal("the same extents told otherwise give another disk")
	}
}

// countingReader counts the bytes that are read.
type countingReader struct {
	io.ReaderAt
	mu sync.Mutex
	n  int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, off)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += int64(n)
	return n, err
}

func incremental(t *testing.T, s *suite) {
	disk := Disk(4, 60)
	base := s.publish("a", disk)
	n := s.session("b")
	defer n.Close()
	for _, c := range []struct {
		name    string
		disk    []byte
		changed []chunks.Extent
		most    int64
	}{
		{"nothing", disk, nil, 0},
		{"two ranges", edit(disk, 10*chunks.BlockSize+5, 40*chunks.BlockSize-2), []chunks.Extent{span(40*chunks.BlockSize-2, 8), span(10*chunks.BlockSize+5, 8)}, 3 * chunks.BlockSize},
		{"a range of zeros", append(make([]byte, 8*chunks.BlockSize), disk[8*chunks.BlockSize:]...), []chunks.Extent{span(0, 8*chunks.BlockSize)}, 8 * chunks.BlockSize},
		{"grown", append(bytes.Clone(disk), make([]byte, 3*chunks.BlockSize)...), nil, chunks.BlockSize},
		{"grown and written", append(bytes.Clone(disk), Disk(9, 1)...), []chunks.Extent{span(int64(len(disk)), int64(len(Disk(9, 1))))}, 3 * chunks.BlockSize},
		{"shrunk", disk[:20*chunks.BlockSize+9], nil, chunks.BlockSize},
		{"shrunk at a block", disk[:20*chunks.BlockSize], nil, 0},
	} {
		source := &countingReader{ReaderAt: bytes.NewReader(c.disk)}
		r, err := chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: source, Size: int64(len(c.disk)), Base: base.Index, Changed: c.changed})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		whole := s.ingest("c", c.disk)
		if r.Digest != whole.Digest || source.n > c.most || r.BytesRead != source.n {
			t.Errorf("%s: same disk %v, read %d bytes, at most %d wanted", c.name, r.Digest == whole.Digest, source.n, c.most)
		}
	}
}

func span(offset, length int64) chunks.Extent {
	return chunks.Extent{Offset: offset, Length: length}
}

func edit(disk []byte, at ...int) []byte {
	out := bytes.Clone(disk)
	for _, a := range at {
		copy(out[a:], "changed!")
	}
	return out
}

func baseMissing(t *testing.T, s *suite) {
	base := s.ingest("a", Disk(5, 10))
	must[bool](t)(s.Release(s.ctx, "a"))
	s.collect()
	n := s.session("b")
	defer n.Close()
	_, err := chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: bytes.NewReader(Disk(5, 10)), Size: base.Index.Size(), Base: base.Index})
	wantCode(t, err, chunks.ChunkMissing)
}

func sourceChanges(t *testing.T, s *suite) {
	for name, change := range map[string]func(*os.File) error{
		"written": func(f *os.File) error {
			_, err := f.WriteAt([]byte("late"), 3)
			return errors.Join(err, os.Chtimes(f.Name(), now, now))
		},
		"shrunk": func(f *os.File) error { return f.Truncate(chunks.BlockSize) },
		"grown":  func(f *os.File) error { return f.Truncate(1 << 30) },
	} {
		f := must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "disk")))
		disk := Disk(6, 100)
		must[int](t)(f.Write(disk))
		n := s.session("a")
		var once sync.Once
		_, err := chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: f, Size: int64(len(disk)), Progress: func(chunks.Progress) {
			once.Do(func() {
				if err := change(f); err != nil {
					t.Error(err)
				}
			})
		}})
		if chunks.CodeOf(err) != chunks.DiskChanged {
			t.Errorf("%s while read: %v", name, err)
		}
		n.Close()
		f.Close()
	}
	f := must[*os.File](t)(os.Create(filepath.Join(t.TempDir(), "disk")))
	defer f.Close()
	n := s.session("a")
	defer n.Close()
	_, err := chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: f, Size: 9})
	wantCode(t, err, chunks.DiskChanged)
	_, err = chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: bytes.NewReader(nil), Size: 9})
	wantCode(t, err, chunks.DiskUnreadable)
}

func cancelled(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(s.ctx)
	n := s.session("a")
	disk := Disk(7, 200)
	_, err := chunks.Ingest(ctx, n, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk)), Progress: func(chunks.Progress) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled ingest: %v", err)
	}
	n.Close()
	if r := s.ingest("a", disk); r.DedupChunks == 0 || !bytes.Equal(s.read(r.Digest), disk) {
		t.Fatalf("after a cancelled ingest: %+v", r)
	}
}

func badInput(t *testing.T, s *suite) {
	n := s.session("a")
	_, err := n.Put(s.ctx, chunks.Sealed{})
	wantCode(t, err, chunks.RecordInvalid)
	_, err = s.Index(s.ctx, "sha256:xyz")
	wantCode(t, err, chunks.DigestInvalid)
	_, err = s.Index(s.ctx, "sha256:../../../../../../../../../../../../../../../../../../../etc/passwd")
	wantCode(t, err, chunks.DigestInvalid)
	_, err = s.Index(s.ctx, chunks.DigestOf(nil))
	wantCode(t, err, chunks.IndexMissing)
	_, _, err = s.Acquire(s.ctx, chunks.DigestOf(nil))
	wantCode(t, err, chunks.IndexMissing)
	_, err = s.ReadRecord(s.ctx, chunks.ID{1}, nil)
	wantCode(t, err, chunks.ChunkMissing)
	for _, e := range []chunks.Extent{span(-1, 2), span(0, -1), span(5, 6), span(11, 0), span(1, 1<<63-1)} {
		_, err = chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: bytes.NewReader(make([]byte, 10)), Size: 10, Extents: []chunks.Extent{e}})
		wantCode(t, err, chunks.RangeInvalid)
	}
	gone, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Has(gone, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("Has with a cancelled context: %v", err)
	}
	n.Close()
	n.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = s.Has(s.ctx, nil)
	wantCode(t, err, chunks.StoreClosed)
	wantCode(t, s.Hold(s.ctx, "a", now), chunks.StoreClosed)
}
