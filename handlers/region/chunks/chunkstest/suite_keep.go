package chunkstest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

func publish(t *testing.T, s *suite) {
	a, b := s.ingest("order-1", Disk(10, 12)), s.ingest("order-1", Disk(11, 12))
	root := chunks.Root{Name: "template/73291467@1", Owner: "order-1", Indexes: []chunks.Digest{a.Digest, b.Digest}}
	for range 2 {
		if err := s.Publish(s.ctx, root); err != nil {
			t.Fatal(err)
		}
	}
	for code, r := range map[chunks.Code]chunks.Root{
		chunks.RootConflict: {Name: root.Name, Owner: "order-1", Indexes: []chunks.Digest{a.Digest}},
		chunks.RootInvalid:  {Name: "x", Owner: "", Indexes: root.Indexes},
		chunks.IndexMissing: {Name: "x", Owner: "o", Indexes: []chunks.Digest{chunks.DigestOf(nil)}},
	} {
		wantCode(t, s.Publish(s.ctx, r), code)
	}
	wantCode(t, s.Publish(s.ctx, chunks.Root{Name: root.Name, Owner: "order-2", Indexes: root.Indexes}), chunks.RootConflict)
	if roots := must[[]chunks.Root](t)(s.Roots(s.ctx)); len(roots) != 1 || roots[0].Owner != "order-1" || !slices.Equal(roots[0].Indexes, root.Indexes) {
		t.Fatalf("roots %+v", roots)
	}
	// An index whose chunks are not all there is not published.
	n := s.session("order-3")
	defer n.Close()
	builder := chunks.NewIndexBuilder(2 * chunks.BlockSize)
	builder.Append(a.Index.DataIDs()[0])
	builder.Append(chunks.ID{9})
	d := must[chunks.Digest](t)(n.Attach(s.ctx, must[*chunks.DiskIndex](t)(builder.Index())))
	wantCode(t, s.Publish(s.ctx, chunks.Root{Name: "x", Owner: "o", Indexes: []chunks.Digest{d}}), chunks.ChunkMissing)
	for _, want := range []bool{true, false} {
		if existed := must[bool](t)(s.Unpublish(s.ctx, root.Name)); existed != want {
			t.Fatalf("unpublish said %v", existed)
		}
	}
	if roots := must[[]chunks.Root](t)(s.Roots(s.ctx)); len(roots) != 0 {
		t.Fatalf("roots %+v", roots)
	}
}

func holds(t *testing.T, s *suite) {
	_, err := s.Begin(s.ctx, "nobody")
	wantCode(t, err, chunks.HoldUnknown)
	wantCode(t, s.Hold(s.ctx, "", now), chunks.HoldInvalid)
	wantCode(t, s.Hold(s.ctx, "a", time.Time{}), chunks.HoldInvalid)
	r := s.ingest("a", Disk(12, 5))
	if err := s.Hold(s.ctx, "a", now.Add(2*time.Hour)); err != nil { // renewed
		t.Fatal(err)
	}
	h := must[[]chunks.Hold](t)(s.Holds(s.ctx))
	if len(h) != 1 || h[0].Owner != "a" || !h[0].Until.Equal(now.Add(2*time.Hour)) || !slices.Equal(h[0].Indexes, []chunks.Digest{r.Digest}) {
		t.Fatalf("holds %+v", h)
	}
	n := must[chunks.Session](t)(s.Begin(s.ctx, "a"))
	defer n.Close()
	if !must[bool](t)(s.Release(s.ctx, "a")) || must[bool](t)(s.Release(s.ctx, "a")) {
		t.Fatal("release does not say what was")
	}
	_, err = n.Attach(s.ctx, r.Index)
	wantCode(t, err, chunks.HoldUnknown)
}

func collect(t *testing.T, s *suite) {
	rooted := s.publish("rooted", Disk(20, 20))
	held := s.ingest("held", Disk(21, 20))
	read := s.publish("read", Disk(22, 20))
	garbage := s.ingest("garbage", Disk(23, 20))
	shared := s.ingest("garbage", edit(Disk(20, 20), 3*chunks.BlockSize, 7*chunks.BlockSize))
	if got := s.collect(); got.ChunksRemoved != 0 || got.BytesFreed != 0 {
		t.Fatalf("with holds on all: %+v", got)
	}
	_, release, err := s.Acquire(s.ctx, read.Digest)
	if err != nil {
		t.Fatal(err)
	}
	must[bool](t)(s.Unpublish(s.ctx, "read"))
	must[bool](t)(s.Release(s.ctx, "garbage"))
	touching := s.session("touching")
	touched := distinct(garbage.Index)[0]
	if have := must[[]bool](t)(touching.Touch(s.ctx, []chunks.ID{touched, {7}, chunks.ZeroID})); !slices.Equal(have, []bool{true, false, true}) {
		t.Fatalf("touch said %v", have)
	}
	before := must[chunks.Stats](t)(s.Stats(s.ctx))
	got := s.collect()
	after := must[chunks.Stats](t)(s.Stats(s.ctx))
	if want := garbage.NewChunks + shared.NewChunks - 1; got.ChunksRemoved != want || got.IndexesRemoved != 2 || got.BytesFreed <= 0 ||
		after.StoredBytes >= before.StoredBytes || after.Chunks != before.Chunks-want {
		t.Fatalf("collect %+v, want %d chunks; before %+v, after %+v", got, want, before, after)
	}
	if !s.has(touched)[0] {
		t.Fatal("a touched chunk was collected")
	}
	for i, r := range []chunks.IngestResult{rooted, held, read} {
		if !bytes.Equal(s.read(r.Digest), Disk(uint64(20+i), 20)) {
			t.Fatalf("disk %d changed", i)
		}
	}
	_, err = s.Index(s.ctx, garbage.Digest)
	wantCode(t, err, chunks.IndexMissing)
	// What was collected can be stored again.
	if r := s.ingest("again", Disk(23, 20)); r.NewChunks != garbage.NewChunks-1 {
		t.Fatalf("stored again: %+v", r)
	}
	release()
	release()
	touching.Close()
	// Holds end with time.
	last, err := s.Collect(s.ctx, chunks.CollectRequest{Now: now.Add(2 * time.Hour)})
	if err != nil || !slices.Equal(last.HoldsExpired, []string{"again", "held", "touching"}) {
		t.Fatalf("collect after the holds: %+v, %v", last, err)
	}
	if st := must[chunks.Stats](t)(s.Stats(s.ctx)); st.Chunks != rooted.NewChunks || st.Holds != 0 {
		t.Fatalf("stats %+v, want the %d chunks of the root", st, rooted.NewChunks)
	}
	if !bytes.Equal(s.read(rooted.Digest), Disk(20, 20)) {
		t.Fatal("the root's disk changed")
	}
	// The removal of the last root takes everything.
	must[bool](t)(s.Unpublish(s.ctx, "rooted"))
	s.collect()
	if st := must[chunks.Stats](t)(s.Stats(s.ctx)); st.Chunks != 0 || st.StoredBytes > 64 {
		t.Fatalf("stats of an emptied store %+v", st)
	}
	wantCodeOfCollect(t, s)
}

func wantCodeOfCollect(t *testing.T, s *suite) {
	t.Helper()
	gone, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.Collect(gone, chunks.CollectRequest{Now: now}); err == nil {
		t.Fatal("a cancelled collect succeeded")
	}
}

func scrub(t *testing.T, s *suite) {
	disk := Disk(30, 30)
	a := s.publish("a", disk)
	s.publish("b", Disk(31, 10))
	if v := must[chunks.VerifyResult](t)(chunks.Verify(s.ctx, s, a.Digest, nil)); v.Err() != nil || v.Chunks != a.NewChunks || v.Bytes != a.NewBytes {
		t.Fatalf("verify %+v of %+v", v, a)
	}
	var last chunks.Progress
	if got := must[chunks.ScrubResult](t)(chunks.Scrub(s.ctx, s, func(p chunks.Progress) { last = p })); got.Err() != nil || len(got.Hurt) != 0 || last.Done != last.Total || last.Total == 0 {
		t.Fatalf("scrub of a good store: %+v, progress %+v", got, last)
	}
	bad := distinct(a.Index)[3]
	s.damage(t, s.Store, bad)
	if v := must[chunks.VerifyResult](t)(chunks.Verify(s.ctx, s, a.Digest, nil)); !slices.Equal(v.Damaged, []chunks.ID{bad}) || chunks.CodeOf(v.Err()) != chunks.ChunkDamaged {
		t.Fatalf("verify %+v", v)
	}
	cache := must[*chunks.Cache](t)(chunks.NewCache(s, 1<<20))
	defer cache.Close()
	d := must[*chunks.Disk](t)(cache.Open(s.ctx, a.Digest))
	defer d.Close()
	_, err := io.Copy(io.Discard, io.NewSectionReader(d, 0, d.Size()))
	wantCode(t, err, chunks.ChunkDamaged)

	got := must[chunks.ScrubResult](t)(chunks.Scrub(s.ctx, s, nil))
	if !slices.Equal(got.Damaged, []chunks.ID{bad}) || len(got.Hurt) != 1 || got.Hurt[0].Root.Name != "a" || !slices.Equal(got.Hurt[0].Chunks, []chunks.ID{bad}) {
		t.Fatalf("scrub %+v", got)
	}
	if s.has(bad)[0] {
		t.Fatal("a damaged chunk still counts as present")
	}
	again := must[chunks.ScrubResult](t)(chunks.Scrub(s.ctx, s, nil))
	if len(again.Damaged) != 0 || !slices.Equal(again.Missing, []chunks.ID{bad}) || len(again.Hurt) != 1 {
		t.Fatalf("scrub again %+v", again)
	}
	if r := s.ingest("repair", disk); r.NewChunks != 1 {
		t.Fatalf("repair %+v", r)
	}
	if got := must[chunks.ScrubResult](t)(chunks.Scrub(s.ctx, s, nil)); got.Err() != nil || len(got.Hurt) != 0 {
		t.Fatalf("scrub of a repaired store: %+v", got)
	}
	if dropped := must[[]chunks.ID](t)(s.Quarantine(s.ctx, []chunks.ID{bad, {1}})); len(dropped) != 0 || !s.has(bad)[0] {
		t.Fatal("a good chunk was dropped")
	}
}

func export(t *testing.T, s *suite) {
	disk := append(append(Disk(40, 10), make([]byte, 64<<20)...), Disk(41, 3)...)
	r := s.publish("a", disk)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	var last chunks.Progress
	if err := chunks.Export(s.ctx, s, r.Digest, path, func(p chunks.Progress) { last = p }); err != nil {
		t.Fatal(err)
	}
	if got := must[[]byte](t)(os.ReadFile(path)); !bytes.Equal(got, disk) {
		t.Fatal("the image differs from the disk")
	}
	if last.Done != last.Total || last.Total != int64(len(disk))-r.ZeroBytes {
		t.Fatalf("progress %+v", last)
	}
	if st, ok := must[os.FileInfo](t)(os.Stat(path)).Sys().(*syscall.Stat_t); !ok || st.Blocks*512 > 8<<20 {
		t.Fatal("the image has no holes")
	}
	// A failed export leaves what was there, and nothing beside it.
	s.damage(t, s.Store, distinct(r.Index)[2])
	wantCode(t, chunks.Export(s.ctx, s, r.Digest, path, nil), chunks.ChunkDamaged)
	if left := must[[]os.DirEntry](t)(os.ReadDir(dir)); len(left) != 1 || !bytes.Equal(must[[]byte](t)(os.ReadFile(path)), disk) {
		t.Fatalf("after a failed export: %v", left)
	}
}

func smallCache(t *testing.T, s *suite) {
	disk := Disk(50, 30)
	r := s.publish("a", disk)
	_, err := chunks.NewCache(s, 100)
	wantCode(t, err, chunks.RangeInvalid)
	for _, slots := range []int64{1, 2, 17} {
		cache := must[*chunks.Cache](t)(chunks.NewCache(s, slots*chunks.BlockSize))
		d := must[*chunks.Disk](t)(cache.Open(s.ctx, r.Digest))
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), 5))
				p := make([]byte, 70_000)
				for range 100 {
					off := rnd.IntN(len(disk) - len(p))
					if _, err := d.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, disk[off:off+len(p)]) {
						t.Errorf("read at %d through %d slots: %v", off, slots, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		_, err := d.ReadAt(make([]byte, 1), 0)
		wantCode(t, err, chunks.StoreClosed)
		if err := cache.Close(); err != nil {
			t.Error(err)
		}
		_, err = cache.Open(s.ctx, r.Digest)
		wantCode(t, err, chunks.StoreClosed)
	}
}

// allAtOnce lets writers publish and unpublish disks that share chunks, while readers read and collectors collect
// without a pause. Whatever is published or open must read back whole.
func allAtOnce(t *testing.T, s *suite) {
	const rounds, writers = 12, 3
	keep := s.publish("keep", Disk(60, 20))
	var work, collectors sync.WaitGroup
	done := make(chan struct{})
	for i := range 2 {
		collectors.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := s.Collect(s.ctx, chunks.CollectRequest{Now: now, MinGarbage: float64(i) / 4}); err != nil {
					t.Errorf("collect: %v", err)
					return
				}
			}
		})
	}
	for w := range writers {
		work.Go(func() {
			for i := range rounds {
				// Disks come again, so writers meet the garbage of others.
				disk := edit(Disk(60+uint64((w+i)%3), 20), 2*chunks.BlockSize)
				if err := s.turn(fmt.Sprintf("w%d", w), disk); err != nil {
					t.Errorf("writer %d, round %d: %v", w, i, err)
					return
				}
			}
		})
	}
	work.Go(func() {
		for range rounds {
			if v, err := chunks.Verify(s.ctx, s, keep.Digest, nil); err != nil || v.Err() != nil {
				t.Errorf("the root that stays: %v, %v", err, v.Err())
				return
			}
		}
	})
	work.Wait()
	close(done)
	collectors.Wait()
	s.collect()
	if st := must[chunks.Stats](t)(s.Stats(s.ctx)); st.Chunks != keep.NewChunks {
		t.Fatalf("%d chunks are left, the root has %d", st.Chunks, keep.NewChunks)
	}
	if !bytes.Equal(s.read(keep.Digest), Disk(60, 20)) {
		t.Fatal("the root's disk changed")
	}
}

// turn is the life of a disk: held, stored, published, opened, unpublished while read.
func (s *suite) turn(owner string, disk []byte) error {
	if err := s.Hold(s.ctx, owner, now.Add(time.Hour)); err != nil {
		return err
	}
	n, err := s.Begin(s.ctx, owner)
	if err != nil {
		return err
	}
	defer n.Close()
	r, err := chunks.Ingest(s.ctx, n, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk))})
	if err != nil {
		return err
	}
	n.Close()
	if err := s.Publish(s.ctx, chunks.Root{Name: owner, Owner: owner, Indexes: []chunks.Digest{r.Digest}}); err != nil {
		return err
	}
	if _, err := s.Release(s.ctx, owner); err != nil {
		return err
	}
	cache, err := chunks.NewCache(s, 4*chunks.BlockSize)
	if err != nil {
		return err
	}
	defer cache.Close()
	d, err := cache.Open(s.ctx, r.Digest)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := s.Unpublish(s.ctx, owner); err != nil {
		return err
	}
	got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err == nil && !bytes.Equal(got, disk) {
		return chunks.Errorf(chunks.ChunkDamaged, "the disk of %s reads back differently", owner)
	}
	return err
}
