// Package datadir marks data directories with the format of what is in them, so
// that a program never works on one that it does not understand.
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// IsNew reports whether there is no data in dir yet: it is not there, or it
// holds nothing but places that were prepared for what will be in it (bus,
// reads, regions: other disks, perhaps). Errors: ErrForeign, or what the file
// system answers. Nothing is written.
func IsNew(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == markName }) {
		return false, nil
	}
	for _, e := range entries {
		foreign := ""
		switch name := e.Name(); {
		case incidental(name):
		case slices.Contains([]string{"bus", "reads", "regions"}, name):
			if foreign, err = firstFile(filepath.Join(dir, name)); err != nil {
				return false, err
			}
		default:
			foreign = filepath.Join(dir, name)
		}
		if foreign != "" {
			return false, fmt.Errorf("%w: %s", ErrForeign, foreign)
		}
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

// firstFile is a path in which there is something else than directories; "" if there is none.
func firstFile(path string) (string, error) {
	entries, err := os.ReadDir(path)
	if errors.Is(err, syscall.ENOTDIR) {
		return path, nil
	}
	for _, e := range entries {
		if e.Name() == onNewVolume {
			continue
		}
		if found, err := firstFile(filepath.Join(path, e.Name())); err != nil || found != "" {
			return found, err
		}
	}
	return "", err
}

// Discard empties a directory that IsNew had called new, and removes those that
// Make has made for it, as far as nobody else has put anything into them.
func Discard(dir, made string) error {
	err := empty(dir)
	for at := dir; err == nil && made != "" && len(at) >= len(made); at = filepath.Dir(at) {
		err = removed(at)
	}
	return err
}

// empty takes away what is in a directory; where other disks begin stays.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Name() == onNewVolume {
			continue
		}
		is, err := os.Stat(path)
		if err == nil && is.IsDir() {
			errs = append(errs, empty(path))
		}
		if err != nil || !is.IsDir() || e.IsDir() { // a link to a directory was prepared
			errs = append(errs, removed(path))
		}
	}
	return errors.Join(errs...)
}

// removed takes one entry away, unless it is in use as the root of another disk, or is not empty.
func removed(path string) error {
	if err := os.Remove(path); !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
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
