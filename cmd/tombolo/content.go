package main

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"

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

// localDisk is a file with a disk's content, as it was when it was looked at.
type localDisk struct {
	path   string
	format disks.Format // recognized if empty
	info   os.FileInfo
}

func (l localDisk) Open(context.Context) (diskContent, error) { return l.open() }

func (l localDisk) open() (_ localContent, err error) {
	f, err := os.Open(l.path)
	if err != nil {
		return localContent{}, err
	}
	image, err := disks.Open(f, l.info.Size(), disks.Options{Format: l.format})
	if err != nil {
		return localContent{}, errors.Join(err, f.Close())
	}
	return localContent{image, f, l}, nil
}

type localContent struct {
	*disks.Image
	file  *os.File
	local localDisk
}

func (c localContent) Close() error { return c.file.Close() }

// Unchanged compares the file with what it was when it was looked at.
func (c localContent) Unchanged(context.Context) error {
	now, err := c.file.Stat()
	if err != nil {
		return err
	}
	before := c.local.info
	there, err := os.Stat(c.local.path)
	if err != nil || !os.SameFile(there, before) || now.Size() != before.Size() || !now.ModTime().Equal(before.ModTime()) {
		return fail(exitError, "disk-changed", "%s changed while it was read; the environment is not made", c.local.path).withNext("stop what writes to it, then make the environment again")
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
