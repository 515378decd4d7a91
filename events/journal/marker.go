package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MarkerFile keeps the journal's id in a file outside the stream, for Options.
// It gives the id that the file holds (empty if there is no file) and a function
// that writes it durably. An unreadable or empty file is an error: guessing
// could make an empty journal of a lost one.
func MarkerFile(path string) (known string, remember func(id string) error, err error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", nil, fmt.Errorf("read the journal's id: %w", err)
	default:
		if known = strings.TrimSpace(string(b)); known == "" {
			return "", nil, fmt.Errorf("the journal's id: %s is empty", path)
		}
	}
	return known, func(id string) error { return writeDurably(path, id+"\n") }, nil
}

// writeDurably leaves either the old file or the whole new one after a power cut.
func writeDurably(path, content string) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
