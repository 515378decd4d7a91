package packs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

func publish(t *testing.T, s *Store, name string, disk []byte) (chunks.IngestResult, error) {
	t.Helper()
	if err := s.Hold(t.Context(), name, until); err != nil {
		return chunks.IngestResult{}, err
	}
	n, err := s.Begin(t.Context(), name)
	if err != nil {
		return chunks.IngestResult{}, err
	}
	defer n.Close()
	r, err := chunks.Ingest(t.Context(), n, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk))})
	if err != nil {
		return r, err
	}
	return r, s.Publish(t.Context(), chunks.Root{Name: name, Owner: name, Indexes: []chunks.Digest{r.Digest}})
}

func mustPublish(t *testing.T, s *Store, name string, disk []byte) chunks.IngestResult {
	t.Helper()
	r, err := publish(t, s, name, disk)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func glob(t *testing.T, parts ...string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(parts...))
	if err != nil || len(found) == 0 {
		t.Fatalf("%v: %v", parts, err)
	}
	return found
}

func TestPackIndexesAreMadeAgain(t *testing.T) {
	dir, disk := t.TempDir(), chunkstest.Disk(1, 60)
	s := mustOpen(t, dir, small)
	r := mustPublish(t, s, "a", disk)
	mustClose(t, s)
	for i, path := range glob(t, dir, "packs", "*.idx") {
		switch i % 3 {
		case 0:
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		case 1:
			flip(t, path, 30)
		case 2:
			if err := os.Truncate(path, 50); err != nil {
				t.Fatal(err)
			}
		}
	}
	s = mustOpen(t, dir, small)
	if !bytes.Equal(readAll(t, s, r.Digest), disk) {
		t.Fatal("the disk reads back differently")
	}
	mustClose(t, s)
	if n, m := len(glob(t, dir, "packs", "*.idx")), len(glob(t, dir, "packs", "*.pack")); n != m || n < 3 {
		t.Fatalf("%d indexes of %d packs", n, m)
	}
}

// TestRotInside damages one record in the middle of a pack whose index is lost: all others are still found.
func TestRotInside(t *testing.T) {
	dir, disk := t.TempDir(), chunkstest.Disk(2, 40)
	s := mustOpen(t, dir, Options{})
	r := mustPublish(t, s, "a", disk)
	bad := []chunks.ID{s.active.entries[3].id, s.active.entries[7].id}
	header := int64(s.active.entries[7].off) + 5
	damage(t, s, bad[0])
	pack := s.active.path()
	mustClose(t, s)
	flip(t, pack, header) // where the record cannot even tell its length
	if err := os.Remove(glob(t, dir, "packs", "*.idx")[0]); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, dir, Options{})
	defer mustClose(t, s)
	v, err := chunks.Verify(t.Context(), s, r.Digest, nil)
	if err != nil || len(v.Damaged) != 0 || len(v.Missing) != 2 || !slices.Contains(v.Missing, bad[0]) || !slices.Contains(v.Missing, bad[1]) {
		t.Fatalf("verify %+v, %v", v, err)
	}
	if again, err := publish(t, s, "b", disk); err != nil || again.NewChunks != 2 {
		t.Fatalf("stored again: %+v, %v", again, err)
	}
	if !bytes.Equal(readAll(t, s, r.Digest), disk) {
		t.Fatal("the disk reads back differently")
	}
}

// TestPackInsideDisk stores a disk that holds a pack. Behind broken bytes its records look like the store's own.
func TestPackInsideDisk(t *testing.T) {
	dir := t.TempDir()
	inner := mustOpen(t, filepath.Join(dir, "inner"), Options{})
	noise := chunkstest.Disk(3, 8)
	mustPublish(t, inner, "a", noise)
	mustClose(t, inner)
	disk, err := os.ReadFile(glob(t, dir, "inner", "packs", "*.pack")[0])
	if err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, filepath.Join(dir, "outer"), Options{})
	r := mustPublish(t, s, "a", disk)
	mustClose(t, s)
	pack := glob(t, dir, "outer", "packs", "*.pack")[0]
	flip(t, pack, packHeaderSize) // the first record's magic
	if err := os.Remove(glob(t, dir, "outer", "packs", "*.idx")[0]); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, filepath.Join(dir, "outer"), Options{})
	defer mustClose(t, s)
	res, err := chunks.Scrub(t.Context(), s, nil)
	if err != nil || len(res.Damaged) != 0 || len(res.Missing) != 1 || res.Missing[0] != r.Index.At(0) {
		t.Fatalf("scrub %+v, %v", res, err)
	}
	if again, err := publish(t, s, "b", disk); err != nil || again.NewChunks != 1 || !bytes.Equal(readAll(t, s, r.Digest), disk) {
		t.Fatalf("stored again: %+v, %v", again, err)
	}
}

func TestQuarantineOutlivesAnOpening(t *testing.T) {
	dir, disk := t.TempDir(), chunkstest.Disk(4, 20)
	s := mustOpen(t, dir, small)
	r := mustPublish(t, s, "a", disk)
	bad := r.Index.At(r.Index.Blocks() - 1)
	damage(t, s, bad)
	if dropped, err := s.Quarantine(t.Context(), []chunks.ID{bad}); err != nil || !slices.Equal(dropped, []chunks.ID{bad}) {
		t.Fatalf("dropped %v, %v", dropped, err)
	}
	mustClose(t, s)
	s = mustOpen(t, dir, small)
	defer mustClose(t, s)
	if have, err := s.Has(t.Context(), []chunks.ID{bad}); err != nil || have[0] {
		t.Fatalf("present again: %v, %v", have, err)
	}
}

func TestDamagedNamesStopCollect(t *testing.T) {
	for _, folder := range []string{"roots", "holds", "indexes"} {
		dir, disk := t.TempDir(), chunkstest.Disk(5, 10)
		s := mustOpen(t, dir, small)
		r := mustPublish(t, s, "a", disk)
		mustClose(t, s)
		flip(t, glob(t, dir, folder, "*")[0], 40)
		s = mustOpen(t, dir, small)
		_, err := s.Collect(t.Context(), chunks.CollectRequest{Now: until.Add(time.Hour)})
		wantCode(t, err, chunks.StoreDamaged)
		if have, err := s.Has(t.Context(), r.Index.DataIDs()[:1]); err != nil || !have[0] {
			t.Fatalf("collected nevertheless: %v", err)
		}
		// The same again heals: store, hold, publish.
		if folder == "roots" {
			_, err := s.Roots(t.Context())
			wantCode(t, err, chunks.StoreDamaged)
		}
		mustPublish(t, s, "a", disk)
		if _, err := s.Collect(t.Context(), chunks.CollectRequest{Now: until.Add(time.Hour)}); err != nil {
			t.Fatalf("after it was published again: %v", err)
		}
		if !bytes.Equal(readAll(t, s, r.Digest), disk) {
			t.Fatal("the disk reads back differently")
		}
		mustClose(t, s)
	}
}

func TestQuota(t *testing.T) {
	s := mustOpen(t, t.TempDir(), Options{PackSize: small.PackSize, MaxBytes: 1 << 20})
	defer mustClose(t, s)
	disk := chunkstest.Disk(6, 12)
	r := mustPublish(t, s, "a", disk)
	_, err := publish(t, s, "b", chunkstest.Disk(7, 200))
	wantCode(t, err, chunks.StoreFull)
	usableAfterFull(t, s, r, disk)
}

// usableAfterFull reads what is there, makes room and writes again.
func usableAfterFull(t *testing.T, s *Store, r chunks.IngestResult, disk []byte) {
	t.Helper()
	if !bytes.Equal(readAll(t, s, r.Digest), disk) {
		t.Fatal("the disk reads back differently")
	}
	if res, err := chunks.Scrub(t.Context(), s, nil); err != nil || res.Err() != nil || len(res.Hurt) != 0 {
		t.Fatalf("scrub %+v, %v", res, err)
	}
	if _, err := s.Release(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context(), chunks.CollectRequest{Now: until.Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	again := chunkstest.Disk(8, 5)
	if got := mustPublish(t, s, "c", again); !bytes.Equal(readAll(t, s, got.Digest), again) {
		t.Fatal("the disk reads back differently")
	}
}

// fullFS is a disk that is full after some bytes; a write that does not fit is written in part, as on a real one.
type fullFS struct {
	osFS
	room *int64
}

type fullFile struct {
	file
	room *int64
}

func (f fullFS) create(name string) (file, error) {
	inner, err := f.osFS.create(name)
	return fullFile{inner, f.room}, err
}

func (f fullFile) WriteAt(b []byte, off int64) (int, error) {
	fits := min(int64(len(b)), *f.room)
	n, err := f.file.WriteAt(b[:fits], off)
	*f.room -= int64(n)
	if err == nil && n < len(b) {
		err = &os.PathError{Op: "write", Path: "pack", Err: syscall.ENOSPC}
	}
	return n, err
}

// TestFullAnywhere fills the disk at many points, so that each kind of file is the one that finds no room.
func TestFullAnywhere(t *testing.T) {
	disk, more := chunkstest.Disk(9, 6), chunkstest.Disk(10, 12)
	failed := 0
	for extra := int64(0); ; extra += 7_001 {
		dir, room := t.TempDir(), int64(1<<30)
		s, err := open(dir, small, fullFS{room: &room})
		if err != nil {
			t.Fatal(err)
		}
		r := mustPublish(t, s, "a", disk)
		room = extra
		_, err = publish(t, s, "b", more)
		if err == nil {
			mustClose(t, s)
			break
		}
		failed++
		wantCode(t, err, chunks.StoreFull)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the cause is lost: %v", err)
		}
		room = 1 << 30
		usableAfterFull(t, s, r, disk)
		mustClose(t, s)
		s = mustOpen(t, dir, small)
		if !bytes.Equal(readAll(t, s, r.Digest), disk) {
			t.Fatal("the disk reads back differently")
		}
		mustClose(t, s)
	}
	if failed < 10 {
		t.Fatalf("the disk was full %d times only", failed)
	}
}

// syncFailFS is a disk whose fsync fails once.
type syncFailFS struct {
	osFS
	fail *bool
}

type syncFailFile struct {
	file
	fail *bool
}

func (f syncFailFS) create(name string) (file, error) {
	inner, err := f.osFS.create(name)
	return syncFailFile{inner, f.fail}, err
}

func (f syncFailFile) Sync() error {
	if *f.fail {
		*f.fail = false
		return syscall.EIO
	}
	return f.file.Sync()
}

func TestFailedSyncPromisesNothingMore(t *testing.T) {
	dir, fail := t.TempDir(), false
	s, err := open(dir, Options{}, syncFailFS{fail: &fail})
	if err != nil {
		t.Fatal(err)
	}
	disk := chunkstest.Disk(11, 6)
	r := mustPublish(t, s, "a", disk)
	if err := s.Hold(t.Context(), "b", until); err != nil {
		t.Fatal(err)
	}
	fail = true
	for range 2 { // the second fsync would succeed and mean nothing
		_, err = publish(t, s, "b", chunkstest.Disk(12, 6))
		wantCode(t, err, chunks.StoreWriteFailed)
	}
	if !bytes.Equal(readAll(t, s, r.Digest), disk) {
		t.Fatal("the disk reads back differently")
	}
	wantCode(t, s.Close(), chunks.StoreWriteFailed)
	s = mustOpen(t, dir, Options{})
	defer mustClose(t, s)
	mustPublish(t, s, "b", chunkstest.Disk(12, 6))
}
