package packs

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// filesystem is what the store changes files with; tests put a disk beneath that fills up or loses power.
type filesystem interface {
	create(name string) (file, error) // for reading and writing; must not exist
	open(name string) (file, error)   // for reading and writing
	rename(from, to string) error
	remove(name string) error
	syncDir(name string) error
	free(name string) (int64, error) // bytes that may still be written below a folder
}

type file interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
}

type osFS struct{}

func (osFS) create(name string) (file, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
}
func (osFS) open(name string) (file, error) { return os.OpenFile(name, os.O_RDWR, 0) }
func (osFS) rename(from, to string) error   { return os.Rename(from, to) }
func (osFS) remove(name string) error       { return os.Remove(name) }
func (osFS) syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
func (osFS) free(name string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
