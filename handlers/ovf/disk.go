package ovf

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// Source is the content of a disk: its bytes, its length, and the ranges outside of which all is zeros. A *disks.Image is
// one; so is the Content of a package's disk.
type Source interface {
	io.ReaderAt
	Size() int64
	Extents(ctx context.Context) iter.Seq2[disks.Extent, error]
}

// Content is a disk of a package, open for reading. Its methods may be called concurrently.
type Content struct {
	image   *disks.Image // nil for an empty disk
	size    int64
	closers []io.Closer
}

// Size is the disk's length in bytes, as in the graph.
func (c *Content) Size() int64 { return c.size }

// Format is how the disk is stored in the package, empty for a disk without content.
func (c *Content) Format() disks.Format {
	if c.image == nil {
		return ""
	}
	return c.image.Format()
}

// ReadAt reads the disk. Behind the end of an image that is shorter than the disk there are zeros.
func (c *Content) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("negative offset %d: %w", offset, os.ErrInvalid)
	}
	if offset >= c.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), c.size-offset)]
	n := 0
	if c.image != nil && offset < c.image.Size() {
		var err error
		if n, err = c.image.ReadAt(want, offset); err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
	}
	clear(want[n:])
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// Extents gives the ranges that hold data.
func (c *Content) Extents(ctx context.Context) iter.Seq2[disks.Extent, error] {
	if c.image == nil {
		return func(func(disks.Extent, error) bool) {}
	}
	return c.image.Extents(ctx)
}

// Close closes the disk's file and removes what was unpacked for it.
func (c *Content) Close() error {
	var errs []error
	for _, closer := range slices.Backward(c.closers) {
		errs = append(errs, closer.Close())
	}
	return errors.Join(errs...)
}

// OpenDisk opens the i-th of the disks that Graph gives. A disk that is compressed as a whole is unpacked into a
// temporary file without a name first, which ends with Close.
//
// Errors: CodeFileChanged if the file is not the one that Open verified, CodeExpandsTooMuch, CodeDiskSize, the codes of
// handlers/region/disks, and those of reading.
func (p *Package) OpenDisk(ctx context.Context, i int) (*Content, error) {
	d := p.disks[i]
	c := &Content{size: d.Size}
	if d.File == "" {
		return c, nil
	}
	if err := p.openContent(ctx, d, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (p *Package) openContent(ctx context.Context, d Disk, c *Content) error {
	names, err := p.parts(d.ref)
	if err != nil {
		return err
	}
	var whole joined
	for _, name := range names {
		s, err := p.files.open(name)
		if err != nil {
			return err
		}
		c.closers = append(c.closers, s)
		if born, ok := p.verified[name]; !ok || born != s.born {
			return refuse(CodeFileChanged, "%q has changed since it was verified: open the package again", name)
		}
		whole.add(s, s.size)
	}
	var from io.ReaderAt = &whole
	size := whole.size
	if d.ref.compression == "gzip" {
		scratch, n, err := p.unpack(ctx, d, io.NewSectionReader(from, 0, size))
		if err != nil {
			return err
		}
		c.closers = append(c.closers, scratch)
		from, size = scratch, n
	}
	if c.image, err = disks.Open(from, size, disks.Options{Format: d.Kind, MaxSize: p.options.Disk}); err != nil {
		return refuseDisk(d, err)
	}
	if c.image.Size() > d.Size {
		return refuse(CodeDiskSize, "disk %q has %d bytes, its descriptor says %d", d.ID, c.image.Size(), d.Size)
	}
	return nil
}

// refuseDisk adds the disk's name to an error of its image, whose code stays.
func refuseDisk(d Disk, err error) error {
	var image *disks.Error
	if errors.As(err, &image) {
		return refuseFor(image.Err, Code(image.Code), "disk %q in %q: %s", d.Name(), d.File, image.Text)
	}
	return err
}

// scratch is a file that goes when it is closed.
type scratch struct{ *os.File }

func (s scratch) Close() error { return errors.Join(s.File.Close(), os.Remove(s.Name())) }

// unpack writes a gzip file's content to a scratch file. It may be as long as an image of the disk can be, and no longer:
// the disk itself, its tables, and what a compression that gains nothing adds.
func (p *Package) unpack(ctx context.Context, d Disk, from io.Reader) (scratch, int64, error) {
	file, err := os.CreateTemp(p.options.ScratchDir, "tombolo-ovf-*")
	if err != nil {
		return scratch{}, 0, err
	}
	out := scratch{file}
	n, err := inflate(ctx, file, from, min(p.options.Scratch, d.Size+d.Size/8+16<<20))
	if err != nil {
		var own *Error
		if !errors.As(err, &own) {
			err = refuseFor(err, Code(disks.CodeDamaged), "%q does not unpack", d.File)
		}
		return scratch{}, 0, errors.Join(err, out.Close())
	}
	return out, n, nil
}

// inflate unpacks at most limit bytes; blocks of zeros become holes.
func inflate(ctx context.Context, file *os.File, from io.Reader, limit int64) (int64, error) {
	in, err := gzip.NewReader(from)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	var at int64
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := fill(in, buf)
		if int64(n) > limit-at {
			return 0, refuse(CodeExpandsTooMuch, "it unpacks to more than %d bytes, which its disk cannot need", limit)
		}
		if !allZero(buf[:n]) {
			if _, err := file.WriteAt(buf[:n], at); err != nil {
				return 0, err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return at, file.Truncate(at)
		}
		if err != nil {
			return 0, err
		}
	}
}

// fill reads until the buffer is full or the input ends. Unlike io.ReadFull it tells the input's own unexpected end, of
// a file that was cut off, from an end within the buffer.
func fill(in io.Reader, buf []byte) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := in.Read(buf[n:])
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

func allZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// joined is several files read as one.
type joined struct {
	parts []part
	size  int64
}

type part struct {
	io.ReaderAt
	at, size int64
}

func (j *joined) add(from io.ReaderAt, size int64) {
	j.parts = append(j.parts, part{from, j.size, size})
	j.size += size
}

func (j *joined) ReadAt(p []byte, offset int64) (int, error) {
	done := 0
	first, _ := slices.BinarySearchFunc(j.parts, offset, func(x part, offset int64) int {
		if x.at+x.size <= offset {
			return -1
		}
		return 1
	})
	for _, x := range j.parts[first:] {
		if done == len(p) {
			break
		}
		within := offset + int64(done) - x.at
		want := p[done:min(int64(len(p)), int64(done)+x.size-within)]
		n, err := x.ReadAt(want, within)
		done += n
		if n < len(want) {
			return done, err
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func partName(name string, i int64) string { return fmt.Sprintf("%s.%09d", name, i) }

// probe opens every disk that is not compressed as a whole: a package with a disk that cannot be read is refused as a
// whole. A disk is as long as the longer of what the descriptor and the image say, so that nothing is cut off.
func (p *Package) probe() error {
	for i := range p.disks {
		d := &p.disks[i]
		if d.File == "" || d.ref.compression == "gzip" {
			continue
		}
		size, err := p.imageSize(*d)
		if err != nil {
			return err
		}
		if size == d.Size {
			continue
		}
		p.findings = append(p.findings, graph.Finding{Code: FoundCapacity, Path: "nodes/" + d.Node + "/items/" + d.Item,
			Text: fmt.Sprintf("the descriptor says %d bytes, the image has %d: the larger counts", d.Size, size)})
		if size > d.Size {
			d.Size = size
			setSize(p.graph, *d)
		}
	}
	return nil
}

func setSize(g graph.Graph, d Disk) {
	for i := range g.Nodes {
		for j := range g.Nodes[i].Items {
			if g.Nodes[i].ID == d.Node && g.Nodes[i].Items[j].Name == d.Item {
				g.Nodes[i].Items[j].Size = d.Size
			}
		}
	}
}

func (p *Package) imageSize(d Disk) (int64, error) {
	c := &Content{}
	d.Size = p.options.Disk
	err := p.openContent(context.Background(), d, c)
	if err = errors.Join(err, c.Close()); err != nil {
		return 0, err
	}
	return c.image.Size(), nil
}
