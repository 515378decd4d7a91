package packs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

// small makes packs of a few chunks, so that every test sees several.
var small = Options{PackSize: 400 << 10}

func TestStore(t *testing.T) {
	for name, o := range map[string]Options{"small packs": small, "default": {}} {
		t.Run(name, func(t *testing.T) {
			chunkstest.Run(t, chunkstest.Harness{
				Open: func(t *testing.T) chunks.Store { return mustOpen(t, t.TempDir(), o) },
				Damage: func(t *testing.T, s chunks.Store, id chunks.ID) {
					damage(t, s.(*Store), id)
				},
			})
		})
	}
}

func mustOpen(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustClose(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// damage flips a bit of the chunk's payload in its pack.
func damage(t *testing.T, s *Store, id chunks.ID) {
	t.Helper()
	s.mu.Lock()
	e := s.chunks[id]
	path := s.packs[e.pack].path()
	s.mu.Unlock()
	flip(t, path, int64(e.off+e.len/2))
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{b[0] ^ 1}, at); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code chunks.Code) {
	t.Helper()
	if chunks.CodeOf(err) != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
}

func TestOneProcessOnly(t *testing.T) {
	dir := t.TempDir()
	s := mustOpen(t, dir, small)
	_, err := Open(dir, small)
	wantCode(t, err, chunks.StoreInUse)
	mustClose(t, s)
	mustClose(t, mustOpen(t, dir, small))
}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	mustClose(t, mustOpen(t, dir, small))
	for _, text := range []string{"tombolo chunk store, format 2\n", "", "something else"} {
		if err := os.WriteFile(filepath.Join(dir, "FORMAT"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, small)
		wantCode(t, err, chunks.StoreFormatUnknown)
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "holiday.jpg"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Open(other, small)
	wantCode(t, err, chunks.StoreFormatUnknown)
	half := t.TempDir() // a first opening that was cut
	if err := os.Mkdir(filepath.Join(half, "packs"), 0o755); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, half, small))
	_, err = Open(t.TempDir(), Options{PackSize: 5 << 30})
	wantCode(t, err, chunks.RangeInvalid)
}
