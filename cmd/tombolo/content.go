package main

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"syscall"

	"github.com/tombolo-vdc/tombolo/handlers/ovf"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// diskContent is an open disk on its way to a region: its bytes, and the ranges
// outside of which all is zeros.
type diskContent interface {
	io.ReaderAt
	io.Closer
	Extents(ctx context.Context) iter.Seq2[disks.Extent, error]
	// Unchanged fails if what was read may not be one state of the disk.
	Unchanged(ctx context.Context) error
}

// diskSource opens a disk.
type diskSource interface {
	Open(ctx context.Context) (diskContent, error)
}

// contentError is a disk here that cannot be read or that changes: the
// environment that waits for it will never come to be.
type contentError struct{ err error }

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

// localDisk is the raw file with a disk's content.
type localDisk struct {
	path string
	info os.FileInfo
}

func (l localDisk) Open(context.Context) (diskContent, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	return rawContent{f, l}, nil
}

type rawContent struct {
	*os.File
	local localDisk
}

// Whence of lseek(2) that finds data and holes.
const (
	seekData = 3
	seekHole = 4
)

// Extents goes through the parts of the file that hold data. A file system that
// does not know holes gives the whole file.
func (r rawContent) Extents(context.Context) iter.Seq2[disks.Extent, error] {
	return func(yield func(disks.Extent, error) bool) {
		size := r.local.info.Size()
		for at := int64(0); at < size; {
			data, err := r.Seek(at, seekData)
			switch {
			case errors.Is(err, syscall.ENXIO): // nothing but a hole up to the end
				return
			case errors.Is(err, syscall.EINVAL):
				data = at
			case err != nil:
				yield(disks.Extent{}, err)
				return
			}
			end, err := r.Seek(data, seekHole)
			if err != nil {
				end = size
			}
			data, end = min(data, size), min(end, size)
			if data < end && !yield(disks.Extent{Offset: data, Length: end - data}, nil) {
				return
			}
			at = end
		}
	}
}

// Unchanged compares the file with what it was when its size was taken.
func (r rawContent) Unchanged(context.Context) error {
	now, err := r.Stat()
	if err != nil {
		return err
	}
	before := r.local.info
	there, err := os.Stat(r.local.path)
	if err != nil || !os.SameFile(there, before) || now.Size() != before.Size() || !now.ModTime().Equal(before.ModTime()) {
		return fail(exitError, "disk-changed", "%s changed while it was read; the environment is not made", r.local.path).withNext("stop what writes to it, then make the environment again")
	}
	return nil
}

// packedDisk is a disk of a package of others.
type packedDisk struct {
	from  *ovf.Package
	index int
}

func (p packedDisk) Open(ctx context.Context) (diskContent, error) {
	c, err := p.from.OpenDisk(ctx, p.index)
	if err != nil {
		return nil, err
	}
	return packedContent{c, p}, nil
}

type packedContent struct {
	*ovf.Content
	disk packedDisk
}

// Unchanged opens the disk again, which fails for a file that is not the one
// that was verified.
func (p packedContent) Unchanged(ctx context.Context) error {
	again, err := p.disk.from.OpenDisk(ctx, p.disk.index)
	if err != nil {
		return err
	}
	return again.Close()
}
