//go:build !linux

package volumes

import (
	"crypto/rand"

	"golang.org/x/sys/unix"
)

// boot knows no way to tell one run of the kernel from another, so every opening counts as one of its own: only what was
// flushed survives the end of the process.
func (osFS) boot() (id bootID, err error) {
	_, err = rand.Read(id[:])
	return id, err
}

func (f osFile) Punch(int64, int64) error { return nil }

func fdatasync(fd int) error { return unix.Fsync(fd) }
