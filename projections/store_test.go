package projections

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestOneStorePerDirectory(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	if _, err := Open(dir, Options{}); codeOf(err) != CodeInUse {
		t.Errorf("a second store: %v", err)
	}
	must(t, s.Close())
	s = openStore(t, dir, Options{})
	must(t, s.Close())
}

func TestUnknownFormat(t *testing.T) {
	dir := t.TempDir()
	must(t, openStore(t, dir, Options{}).Close())
	format := filepath.Join(dir, formatFile)
	must(t, os.WriteFile(format, []byte("2\n"), 0o644))
	if _, err := Open(dir, Options{}); codeOf(err) != CodeFormatUnknown {
		t.Errorf("format 2: %v", err)
	}
	must(t, os.Remove(format))
	if _, err := Open(dir, Options{}); codeOf(err) != CodeFormatUnknown {
		t.Errorf("a database without a format: %v", err)
	}
	must(t, os.WriteFile(format, []byte("1\n"), 0o644))
	must(t, openStore(t, dir, Options{}).Close())

	// What a crash may leave of a directory that was just begun.
	dir = t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, formatFile+".new"), nil, 0o644))
	must(t, openStore(t, dir, Options{}).Close())
}

func TestConsumer(t *testing.T) {
	dir, o := "db", inMemory()
	s := openStore(t, dir, o)
	c, err := s.Consumer("things", thingRows)
	must(t, err)
	put := func(value uint64) func(*Batch) error {
		return func(w *Batch) error { return thingRows.Put(w, thing{Group: "a", ID: "1", Value: value}) }
	}
	check := func(position, value uint64) {
		t.Helper()
		v, err := c.View()
		must(t, err)
		defer v.Close()
		row, _, err := thingRows.Get(v, "a", "1")
		must(t, err)
		if c.Position() != position || v.Position() != position || row.Value != value {
			t.Fatalf("position %d (view: %d), value %d; want %d, %d", c.Position(), v.Position(), row.Value, position, value)
		}
	}
	must(t, c.Commit(3, put(30)))
	check(3, 30)
	for _, seq := range []uint64{2, 3} {
		if err := c.Commit(seq, put(99)); codeOf(err) != CodeOutOfOrder {
			t.Errorf("commit of %d after 3: %v", seq, err)
		}
	}
	err = c.Commit(4, func(w *Batch) error { return errors.Join(put(40)(w), errTold) })
	if !errors.Is(err, errTold) {
		t.Errorf("a failing commit: %v", err)
	}
	check(3, 30)
	if _, err := s.Consumer("things", thingRows); codeOf(err) != CodeInUse {
		t.Errorf("a second holder: %v", err)
	}
	// A consumer and a projection of the same name keep apart.
	f := feedOf(t, s, things{})
	feedTo(t, f, newStream(edited{Delete: []Key{{"a", "1"}}}), 1)
	check(3, 30)

	must(t, s.Close())
	s = openStore(t, dir, o)
	defer s.Close()
	c, err = s.Consumer("things", thingRows)
	must(t, err)
	check(3, 30)
	must(t, c.Commit(9, put(90)))
	check(9, 90)
}
