// Package datadir marks data directories with the format of what is in them, so
// that a program never works on one that it does not understand.
package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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

// Prepared are the directories, and links to some, that were in a directory
// before it had any data: other disks, perhaps. They stay.
type Prepared map[string]bool

// IsNew reports whether there is no data in dir yet: it is not there, or it
// holds nothing but places that were prepared for what will be in it (bus,
// reads, regions). Errors: ErrForeign, or what the file system answers. Nothing
// is written.
func IsNew(dir string) (bool, Prepared, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == markName }) {
		return false, nil, nil
	}
	prepared := Prepared{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		foreign := ""
		switch {
		case incidental(e):
		case slices.Contains([]string{"bus", "reads", "regions"}, e.Name()):
			if foreign, err = prepared.add(path); err != nil {
				return false, nil, err
			}
		default:
			foreign = path
		}
		if foreign != "" {
			return false, nil, fmt.Errorf("%w: %s", ErrForeign, foreign)
		}
	}
	return true, prepared, nil
}

const (
	markName    = "format"
	markBegun   = ".format-"
	lockName    = "lock"
	onNewVolume = "lost+found" // a file system makes it, and it belongs to root
)

// begunMark is how os.CreateTemp calls a mark that is being written.
var begunMark = regexp.MustCompile(`^` + regexp.QuoteMeta(markBegun) + `[0-9]+$`)

// incidental is what may be in a directory that has no data yet: a start that
// was killed before it had written the mark leaves an empty lock and a mark that
// was begun.
func incidental(e fs.DirEntry) bool {
	if e.Name() == onNewVolume {
		return e.IsDir()
	}
	info, err := e.Info()
	return err == nil && info.Mode().IsRegular() && (e.Name() == lockName && info.Size() == 0 || begunMark.MatchString(e.Name()))
}

// add notes the directories from path on, and gives a path at which there is something else; "" if there is none.
func (p Prepared) add(path string) (foreign string, err error) {
	entries, err := os.ReadDir(path)
	if errors.Is(err, syscall.ENOTDIR) {
		return path, nil
	}
	p[path] = true
	for _, e := range entries {
		if e.Name() == onNewVolume {
			continue
		}
		if foreign, err := p.add(filepath.Join(path, e.Name())); err != nil || foreign != "" {
			return foreign, err
		}
	}
	return "", err
}

// Discard takes away what has come into a directory since IsNew called it new,
// the mark last, and removes the directories that Make has made for it, as far
// as nobody else has put anything into them.
func Discard(dir, made string, prepared Prepared) error {
	err := empty(dir, prepared)
	if err == nil {
		if err = os.Remove(filepath.Join(dir, markName)); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	for at := dir; err == nil && made != "" && len(at) >= len(made); at = filepath.Dir(at) {
		err = removed(at)
	}
	return err
}

// empty takes away what is in a directory, but for the mark and what was prepared.
func empty(dir string, prepared Prepared) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Name() == onNewVolume || e.Name() == markName {
			continue
		}
		if e.IsDir() || prepared[path] {
			errs = append(errs, empty(path, prepared))
		}
		if !prepared[path] {
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
