package volumes

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// filesystem is what volumes change files with; tests put a disk beneath that loses power.
type filesystem interface {
	mkdir(name string) error          // with its parents, durably; there already is no error
	create(name string) (file, error) // for reading and writing, empty
	open(name string) (file, error)   // for reading and writing
	rename(from, to string) error
	remove(name string) error
	list(dir string) ([]string, error)
	syncDir(name string) error
	lock(name string) (io.Closer, error) // errLocked where another one has it
	boot() (bootID, error)
}

type file interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Truncate(size int64) error
	Punch(off, n int64) error // makes a hole, where the filesystem has holes; the bytes may stay where it has none
	Sync() error              // fdatasync(2)
	Close() error
}

// bootID tells one run of the kernel from another (random(4)): within one, bytes that were written and not synced are
// still there whatever became of the process.
type bootID [16]byte

var errLocked = errors.New("another one has the lock")

type osFS struct{}

func (osFS) mkdir(name string) error {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := (osFS{}).mkdir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return osFS{}.syncDir(parent)
}

func (osFS) create(name string) (file, error) {
	return opened(os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600))
}

func (osFS) open(name string) (file, error) {
	return opened(os.OpenFile(name, os.O_RDWR, 0))
}

func opened(f *os.File, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) rename(from, to string) error { return os.Rename(from, to) }
func (osFS) remove(name string) error     { return os.Remove(name) }

func (osFS) list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (osFS) syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, err
	}
	return f, nil
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Sync() error {
	for {
		if err := fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
