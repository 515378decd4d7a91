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
	"syscall"
)

// Format is the format that this program writes and reads.
const Format = 1

// ErrUnknown says that a directory was written by another program.
var ErrUnknown = errors.New("the data directory is of an unknown format")

// ErrForeign says that a directory holds something that no program of ours put there.
var ErrForeign = errors.New("the directory holds files and no mark of a data directory")

// IsNew reports whether there is no data in dir yet: it is not there, or it is
// empty. Errors: ErrForeign, or what the file system answers. Nothing is written.
func IsNew(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	foreign := ""
	for _, e := range entries {
		switch name := e.Name(); {
		case name == markName:
			return false, nil
		case !incidental(name):
			foreign = name
		}
	}
	if foreign != "" {
		return false, fmt.Errorf("%w: %s, in which %q is", ErrForeign, dir, foreign)
	}
	return true, nil
}

const (
	markName    = "format"
	markBegun   = ".format-"
	lockName    = "lock"
	onNewVolume = "lost+found" // a file system makes it, and it belongs to root
)

// incidental is what may be in a directory that has no data yet: a start that
// was killed before it had written the mark leaves the others.
func incidental(name string) bool {
	return name == lockName || name == onNewVolume || strings.HasPrefix(name, markBegun)
}

// Discard empties a directory that IsNew had called new, and removes those that
// Make has made for it, as far as nobody else has put anything into them.
func Discard(dir, made string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != onNewVolume {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	for at := dir; made != "" && len(at) >= len(made); at = filepath.Dir(at) {
		if err := os.Remove(at); errors.Is(err, syscall.ENOTEMPTY) {
			break
		} else if err != nil {
			errs = append(errs, err)
			break
		}
	}
	return errors.Join(errs...)
}

// Make makes the directory, and gives the first directory that had to be made
// for it; "" if it was there.
func Make(dir string) (made string, err error) {
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return made, os.MkdirAll(dir, 0o700)
		}
		made = at
	}
}

// Check marks a directory that has no mark, and refuses one whose mark is not
// Format: ErrUnknown, or what the file system answers. The caller has locked it.
func Check(dir string) error {
	path := filepath.Join(dir, markName)
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
	f, err := os.CreateTemp(filepath.Dir(path), markBegun)
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
