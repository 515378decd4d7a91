// Package datadir marks data directories with the format of what is in them, so
// that a program never works on one that it does not understand.
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Format is the format that this program writes and reads.
const Format = 1

// ErrUnknown says that a directory was written by another program.
var ErrUnknown = errors.New("the data directory is of an unknown format")

// Check marks a directory that has no mark, and refuses one whose mark is not
// Format: ErrUnknown, or what the file system answers. The caller has locked it.
func Check(dir string) error {
	path := filepath.Join(dir, "format")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return mark(path)
	}
	if err != nil {
		return err
	}
	text := strings.TrimSpace(string(b))
	if n, err := strconv.Atoi(text); err != nil || n != Format {
		return fmt.Errorf("%w: %s says %.20q, this program reads %d", ErrUnknown, path, text, Format)
	}
	return nil
}

// mark writes the file so that after a crash it is whole or not there.
func mark(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".format-")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, Format)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
