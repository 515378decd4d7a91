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
