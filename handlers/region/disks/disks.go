// Package disks reads the disk images that people bring, in the formats they bring them, as if they were raw: qcow2,
// VMDK (monolithicSparse and streamOptimized) and raw. Nothing is converted first: an Image is an io.ReaderAt with
// the ranges that hold data.
//
// An image comes from a stranger. Whatever stands in its tables, no other file is opened, memory stays within some
// 100 MiB, and what cannot be right is refused with a code.
package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// Code is a stable, searchable name for a kind of refusal.
type Code string

// The codes of this package's errors.
const (
	CodeUnknown     Code = "disk-format-unknown"     // not one of the formats, or not the one that was named
	CodeUnsupported Code = "disk-format-unsupported" // a known format or feature that is not read
	CodeTruncated   Code = "disk-truncated"          // the file ends before the disk does
	CodeBacking     Code = "disk-has-backing-file"   // the disk is only a difference to another file
	CodeTooLarge    Code = "disk-too-large"          // larger than Options.MaxSize, or its tables are
	CodeEncrypted   Code = "disk-encrypted"          // encrypted in the image's own format
	CodeDamaged     Code = "disk-damaged"            // tables or compressed data that contradict themselves
)

// Error is a refusal with a stable code.
type Error = fault.Error[Code]

func refuse(code Code, format string, args ...any) error { return fault.New(code, format, args...) }

// Format is how a disk is stored in its file.
type Format string

// The formats that are read.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk"
)

// Options of Open; the zero value recognizes the format and takes disks of up to 16 TiB.
type Options struct {
	// Format is what the file must be. If it is empty the file's first bytes decide, and what has no mark at all and
	// is made of whole sectors is raw.
	Format Format
	// MaxSize is the largest disk, in bytes.
	MaxSize int64
}

const (
	defaultMaxSize = 16 << 40
	maxTable       = 32 << 20 // the largest first-level table, as QEMU limits it (QCOW_MAX_L1_SIZE)
	sector         = 512
)

// Extent is a range of a disk, in bytes.
type Extent struct {
	Offset, Length int64
}

// Image is an open disk. Its methods may be called concurrently.
type Image struct {
	format Format
	size   int64
	source source
}

// source is a format's knowledge of where a disk's bytes are.
type source interface {
	// find says what is stored from offset on (below the disk's size) and for how many bytes that holds, at least one.
	find(offset int64) (where location, length int64, err error)
	// read fills p from one location; p and its offset on the disk lie within what find gave.
	read(p []byte, offset int64, where location) error
}

// location is a place in the file; the zero value means that there is nothing: the disk reads as zeros.
type location struct {
	present    bool
	compressed bool
	at         int64 // in the file
	length     int64 // of compressed data
}

// Open reads the head of an image of fileSize bytes. The reader is used as long as the Image is.
//
// Errors: all of this package's codes, and those of reading.
func Open(from io.ReaderAt, fileSize int64, options Options) (*Image, error) {
	if options.MaxSize <= 0 {
		options.MaxSize = defaultMaxSize
	}
	head := make([]byte, 1024)
	n, err := from.ReadAt(head[:min(int64(len(head)), max(fileSize, 0))], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	head = head[:n]
	format := options.Format
	if format == "" {
		if format, err = recognize(head, fileSize); err != nil {
			return nil, err
		}
	}
	img := &Image{format: format}
	file := file{from, fileSize}
	switch format {
	case Raw:
		img.source, img.size, err = openRaw(file)
	case QCOW2:
		img.source, img.size, err = openQCOW2(file, head, options.MaxSize)
	case VMDK:
		img.source, img.size, err = openVMDK(file, head, options.MaxSize)
	default:
		err = refuse(CodeUnknown, "%q is no format: use raw, qcow2 or vmdk", format)
	}
	if err != nil {
		return nil, err
	}
	if img.size > options.MaxSize {
		return nil, refuse(CodeTooLarge, "the disk has %d bytes, %d are allowed", img.size, options.MaxSize)
	}
	return img, nil
}

// recognize knows formats by their marks, also those that are not read, so that they are never taken for raw disks.
func recognize(head []byte, fileSize int64) (Format, error) {
	unsupported := []struct {
		name string
		at   int
		mark string
	}{
		{"a VMDK descriptor whose data is in other files", 0, "# Disk DescriptorFile"},
		{"a VMDK of an ESX host", 0, "COWD"},
		{"VHDX", 0, "vhdxfile"}, {"VHD", 0, "conectix"}, {"VDI", 0x40, "\x7F\x10\xDA\xBE"},
		{"QED", 0, "QED\x00"}, {"LUKS", 0, "LUKS\xBA\xBE"},
		{"a gzip file", 0, "\x1F\x8B"}, {"an xz file", 0, "\xFD7zXZ\x00"}, {"a zstd file", 0, "\x28\xB5\x2F\xFD"},
		{"a zip file", 0, "PK\x03\x04"}, {"a tar archive (an OVA?)", 257, "ustar"},
	}
	switch {
	case bytes.HasPrefix(head, []byte(qcowMagic)):
		return QCOW2, nil
	case bytes.HasPrefix(head, []byte(vmdkMagic)):
		return VMDK, nil
	}
	for _, u := range unsupported {
		if len(head) > u.at && bytes.HasPrefix(head[u.at:], []byte(u.mark)) {
			return "", refuse(CodeUnsupported, "this is %s: unpack it, or convert it with qemu-img convert -O qcow2", u.name)
		}
	}
	if fileSize > 0 && fileSize%sector == 0 {
		return Raw, nil
	}
	return "", refuse(CodeUnknown, "no mark of a disk format, and %d bytes are no whole sectors", fileSize)
}

// Format is how the disk is stored.
func (i *Image) Format() Format { return i.format }

// Size is the disk's length in bytes, as a machine sees it.
func (i *Image) Size() int64 { return i.size }

// ReadAt reads the disk as io.ReaderAt wants it; what the file does not hold reads as zeros.
func (i *Image) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("negative offset %d: %w", offset, os.ErrInvalid)
	}
	done := 0
	for done < len(p) {
		at := offset + int64(done)
		if at >= i.size || at < 0 {
			return done, io.EOF
		}
		where, length, err := i.source.find(at)
		if err != nil {
			return done, err
		}
		part := p[done:min(int64(len(p)), int64(done)+min(length, i.size-at))]
		if !where.present {
			clear(part)
		} else if err := i.source.read(part, at, where); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

// Extents gives the ranges that hold data, in order, apart from each other; all else is zeros. What is in a range
// may be zeros too. The first error ends it: a file that is too short for its tables is found here, before its data
// is read.
func (i *Image) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var open Extent
		for at := int64(0); at < i.size; {
			if err := ctx.Err(); err != nil {
				yield(Extent{}, err)
				return
			}
			where, length, err := i.source.find(at)
			if err != nil {
				yield(Extent{}, err)
				return
			}
			length = min(length, i.size-at)
			switch {
			case where.present:
				if open.Length == 0 {
					open.Offset = at
				}
				open.Length += length
			case open.Length > 0:
				if !yield(open, nil) {
					return
				}
				open = Extent{}
			}
			at += length
		}
		if open.Length > 0 {
			yield(open, nil)
		}
	}
}

// file is an image's file and its length.
type file struct {
	io.ReaderAt
	size int64
}

// section reads a part of the file, which must be there.
func (f file) section(at, length int64) ([]byte, error) {
	if at < 0 || length < 0 || at > f.size || length > f.size-at {
		return nil, refuse(CodeTruncated, "%d bytes at %d are wanted, the file has %d", length, at, f.size)
	}
	b := make([]byte, length)
	return b, f.fill(b, at)
}

func (f file) fill(p []byte, at int64) error {
	n, err := f.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return refuse(CodeTruncated, "%d bytes at %d are wanted, %d are there", len(p), at, n)
	}
	return err
}

// cache keeps the values asked for last, at most limit of them.
type cache[V any] struct {
	mu     sync.Mutex
	limit  int
	values map[int64]V
	order  []int64
}

func newCache[V any](limit int) *cache[V] { return &cache[V]{limit: limit, values: map[int64]V{}} }

// get gives the value of a key, made if it is not there. Two callers may make it at once; either result is good.
func (c *cache[V]) get(key int64, make func() (V, error)) (V, error) {
	c.mu.Lock()
	v, ok := c.values[key]
	c.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := make()
	if err != nil {
		return v, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.values[key]; !ok {
		if len(c.order) == c.limit {
			delete(c.values, c.order[0])
			c.order = c.order[1:]
		}
		c.order = append(c.order, key)
		c.values[key] = v
	}
	return v, nil
}
