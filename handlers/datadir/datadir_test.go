package datadir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		if err := Check(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []string{"0\n", "2\n", "", "one"} {
		if err := os.WriteFile(filepath.Join(dir, "format"), []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Check(dir); !errors.Is(err, ErrUnknown) {
			t.Errorf("format %q: %v", other, err)
		}
	}
	if err := Check(filepath.Join(dir, "gone")); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("no directory: %v", err)
	}
}

func TestNewAndDiscarded(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "a", "b", "data")
	is := func(what string, want bool) {
		t.Helper()
		if got, _, err := IsNew(dir); err != nil || got != want {
			t.Fatalf("%s: new is %v (%v), want %v", what, got, err, want)
		}
	}
	write := func(path ...string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(path...), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() (made string) {
		t.Helper()
		made, err := Make(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return made
	}
	is("not there", true)
	made := begin()
	if made != filepath.Join(parent, "a") {
		t.Errorf("the first directory made is %q", made)
	}
	is("a start that was killed early", true)
	if err := Check(dir); err != nil {
		t.Fatal(err)
	}
	is("marked", false)
	if err := Discard(dir, made, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}

	made = begin()
	write(parent, "a", "of-another")
	if err := Discard(dir, made, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(parent, "a")); err != nil || len(left) != 1 {
		t.Errorf("beside another's file: %v %v", left, err)
	}

	begin()
	if made := begin(); made != "" {
		t.Errorf("made %s, which was there", made)
	}
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	is("a new volume", true)
	if err := Discard(dir, "", nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("of a directory that was there: %v %v", left, err)
	}
	elsewhere := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "regions", "oslo"), 0o700), os.Symlink(elsewhere, filepath.Join(dir, "bus"))); err != nil {
		t.Fatal(err)
	}
	is("places prepared", true)
	_, prepared, err := IsNew(dir)
	if err != nil {
		t.Fatal(err)
	}
	write(dir, "bus", "meta.inf")
	if _, _, err := IsNew(dir); !errors.Is(err, ErrForeign) {
		t.Errorf("another's bus: %v", err)
	}
	if err := Discard(dir, "", prepared); err != nil {
		t.Fatal(err)
	}
	for _, place := range []string{"bus", filepath.Join("regions", "oslo")} {
		if _, err := os.Lstat(filepath.Join(dir, place)); err != nil {
			t.Errorf("a prepared place is gone: %v", err)
		}
	}
	is("places prepared, and emptied again", true)
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("left on the other disk: %v %v", left, err)
	}
	for _, name := range []string{"lock", ".format-notes"} { // of somebody else, though called as ours are
		if err := os.MkdirAll(filepath.Join(dir, name, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, _, err := IsNew(dir); !errors.Is(err, ErrForeign) {
			t.Errorf("a directory %s: %v", name, err)
		}
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(dir, "lock")
	if _, _, err := IsNew(dir); !errors.Is(err, ErrForeign) {
		t.Errorf("a lock with something in it: %v", err)
	}
	write(dir, "thesis.tex")
	if _, _, err := IsNew(dir); !errors.Is(err, ErrForeign) {
		t.Errorf("another's directory: %v", err)
	}
}
