// Package images builds ext4 disk images of real file trees and lets them age, without privileges and without any
// tool but this program: the disks that the demo's and the tests' machines have. Decision 0003 says why the format is
// written here.
//
// An image is an ordinary ext4 file system with a journal: a kernel mounts it read-write, e2fsck -fn finds nothing.
// The same trees and the same Spec give the same bytes. Evolve makes version 2 of an image the way use does: in place,
// so that whatever was not touched stays where it was.
package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// Code is a stable, searchable name for a kind of refusal.
type Code string

// The codes of this package's errors.
const (
	CodeSpec     Code = "image-spec-invalid"   // a Spec or Change that cannot be followed
	CodeTooSmall Code = "image-tree-too-small" // the trees hold less than MinBytes
	CodeTooFew   Code = "image-files-too-few"  // an image has fewer files than a Change asks for
	CodeFull     Code = "image-full"           // no blocks or inodes are left
	CodeForeign  Code = "image-not-ours"       // an image that this package did not build, or that was damaged
	CodeSource   Code = "image-source-missing" // a tree's directory cannot be opened
)

// Error is a refusal with a stable code.
type Error = fault.Error[Code]

// Tree is a directory of this machine and the place it gets in the image ("usr/local/go"; empty is the root).
type Tree struct {
	Source string
	At     string
}

// Spec says what an image holds. The zero values of the limits mean their defaults.
type Spec struct {
	// Label is the volume's name, 1 to 16 bytes of a-z, 0-9, '.', '_' and '-'. The UUID derives from it.
	Label string
	// Trees are stored whole, More only until the image holds MinBytes of file data. Where two trees have an entry
	// at the same path, the first one stays.
	Trees, More []Tree
	// MinBytes is the least file data, in bytes; a machine that has less is an error.
	MinBytes int64
	// MaxBytes ends the building once so much file data is stored (default 8 GiB).
	MaxBytes int64
	// MaxFileBytes is the largest file that is taken (default and at most 64 MiB); a larger one is skipped.
	MaxFileBytes int64
	// FreeBytes is the room left for the machine that will use the disk (default 64 MiB).
	FreeBytes int64
	// Time is every timestamp in the image (default 2025-01-01, UTC): content alone decides the bytes.
	Time time.Time
}

// Origin says how much of an image came from where.
type Origin struct {
	Tree
	Files int
	Bytes int64
}

// Skipped counts what was not taken, by reason.
type Skipped struct {
	Unreadable int // no permission, gone meanwhile, or a name that ext4 cannot hold
	Special    int // devices, sockets, pipes
	TooLarge   int // larger than MaxFileBytes
	Conflict   int // another tree has this path already
}

// Report says what Build made. Bytes counts file data, Size is the length of the image.
type Report struct {
	Files, Dirs, Symlinks int
	Bytes, Size           int64
	Origins               []Origin
	Skipped               Skipped
	Elapsed               time.Duration
}

const (
	maxFileBytes     = 64 << 20 // a file never needs more extents than fit into its inode
	defaultMaxBytes  = 8 << 30
	defaultFreeBytes = 64 << 20
)

var labelForm = regexp.MustCompile(`^[a-z0-9._-]{1,16}$`)

func (s Spec) withDefaults() (Spec, error) {
	if !labelForm.MatchString(s.Label) {
		return s, &Error{Code: CodeSpec, Text: fmt.Sprintf("label %q: 1 to 16 of a-z, 0-9, '.', '_', '-' are needed", s.Label)}
	}
	if s.MinBytes < 0 || s.MaxBytes < 0 || s.MaxFileBytes < 0 || s.FreeBytes < 0 || s.MaxFileBytes > maxFileBytes {
		return s, &Error{Code: CodeSpec, Text: "a limit is negative, or MaxFileBytes is above 64 MiB"}
	}
	if s.MaxBytes == 0 {
		s.MaxBytes = defaultMaxBytes
	}
	if s.MaxFileBytes == 0 {
		s.MaxFileBytes = maxFileBytes
	}
	if s.FreeBytes == 0 {
		s.FreeBytes = defaultFreeBytes
	}
	if s.MinBytes > s.MaxBytes {
		return s, &Error{Code: CodeSpec, Text: "MinBytes is above MaxBytes"}
	}
	if s.Time.IsZero() {
		s.Time = time.Date(2025, time.January, 1, 0, 0, 0, 0, time.UTC)
	}
	if !timeFits(s.Time) {
		return s, &Error{Code: CodeSpec, Text: "the time is outside 1970 to 2038"}
	}
	for _, t := range append(append([]Tree(nil), s.Trees...), s.More...) {
		if t.At != "" && !filepath.IsLocal(t.At) {
			return s, &Error{Code: CodeSpec, Text: fmt.Sprintf("%q is no path within an image", t.At)}
		}
	}
	return s, nil
}

// timeFits says whether a time has a place in an inode's 32-bit signed field.
func timeFits(t time.Time) bool { return t.Unix() > 0 && t.Unix() < 1<<31 }

// derive makes 16 bytes that depend on nothing but its arguments, in the form of a UUID of version 8 (RFC 9562, 5.8).
func derive(parts ...string) [16]byte {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	id := [16]byte(sum[:16])
	id[6] = id[6]&0x0F | 0x80
	id[8] = id[8]&0x3F | 0x80
	return id
}

// Build writes an image of the spec's trees to path, as a sparse file that appears there complete or not at all.
// Files that cannot be read are skipped and counted; a file that changes while it is read gives an image with some
// state of it, never a broken one.
//
// Errors: CodeSpec, CodeSource, CodeTooSmall, CodeFull, the context's, and those of writing.
func Build(ctx context.Context, spec Spec, path string) (Report, error) {
	started := time.Now()
	spec, err := spec.withDefaults()
	if err != nil {
		return Report{}, err
	}
	var report Report
	err = replace(path, func(f *os.File) error {
		out := &sparseWriter{to: f}
		v := &volume{out: out, label: spec.Label, uuid: derive("image", spec.Label), seed: derive("hash seed", spec.Label),
			made: uint32(spec.Time.Unix()), written: uint32(spec.Time.Unix()), grows: true}
		b, err := newBuilder(ctx, v, spec)
		if err != nil {
			return err
		}
		if err := b.build(); err != nil {
			return err
		}
		if err := errors.Join(v.flush(), out.flush()); err != nil {
			return err
		}
		report = b.report
		report.Size = int64(v.total) * blockSize
		return f.Truncate(report.Size)
	})
	if err != nil {
		return Report{}, err
	}
	report.Elapsed = time.Since(started)
	return report, nil
}

// replace lets write fill a new file beside path, makes it durable and gives it the name.
func replace(path string, write func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.partial")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.Close()
}

// sparseWriter gathers writes that follow each other and leaves blocks of zeros out: for a file that is new.
type sparseWriter struct {
	to      io.WriterAt
	at      int64
	pending []byte
}

const writeBatch = 1 << 20

func (w *sparseWriter) WriteAt(p []byte, at int64) (int, error) {
	if at != w.at+int64(len(w.pending)) || len(w.pending) >= writeBatch {
		if err := w.flush(); err != nil {
			return 0, err
		}
		w.at = at
	}
	w.pending = append(w.pending, p...)
	return len(p), nil
}

func (w *sparseWriter) flush() error {
	err := writeNonZero(w.to, w.pending, w.at)
	w.pending = w.pending[:0]
	return err
}

// writeNonZero writes the runs of blocks that are not all zeros.
func writeNonZero(to io.WriterAt, p []byte, at int64) error {
	for start := 0; start < len(p); {
		end := start
		for end < len(p) && !allZero(p[end:min(end+blockSize, len(p))]) {
			end = min(end+blockSize, len(p))
		}
		if end > start {
			if _, err := to.WriteAt(p[start:end], at+int64(start)); err != nil {
				return err
			}
		}
		start = end + blockSize
	}
	return nil
}
