package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// maxDepth bounds how deep a tree is followed.
const maxDepth = 256

// directory is one of the image's while it is built; its entries are written once all are known.
type directory struct {
	number, parent uint32
	mode           uint16
	subdirs        int
	entries        []dirent
	dirs           map[string]*directory
	names          map[string]bool
}

// builder copies trees into a volume.
type builder struct {
	ctx    context.Context
	v      *volume
	spec   Spec
	report Report
	origin *Origin
	dirs   []*directory // in the order of making, the root first
	buffer []byte
	limit  int64 // file data after which the tree at hand ends
}

// errEnough ends the walk of a tree.
var errEnough = errors.New("enough bytes")

func newBuilder(ctx context.Context, v *volume, spec Spec) (*builder, error) {
	if err := v.format(); err != nil {
		return nil, err
	}
	b := &builder{ctx: ctx, v: v, spec: spec, buffer: make([]byte, 0, 1<<20)}
	root := &directory{number: rootInode, parent: rootInode, mode: 0o755, dirs: map[string]*directory{}, names: map[string]bool{}}
	b.dirs = append(b.dirs, root)
	b.v.groups[0].usedDirs++
	lost, err := b.mkdir(root, "lost+found", 0o700)
	if err == nil && lost.number != lostFoundInode {
		return nil, fmt.Errorf("lost+found got inode %d", lost.number)
	}
	return b, err
}

func (b *builder) build() error {
	b.limit = b.spec.MaxBytes
	for _, t := range b.spec.Trees {
		if err := b.tree(t); err != nil {
			return err
		}
	}
	b.limit = b.spec.MinBytes
	for _, t := range b.spec.More {
		if b.report.Bytes < b.spec.MinBytes {
			if err := b.tree(t); err != nil {
				return err
			}
		}
	}
	if b.report.Bytes < b.spec.MinBytes {
		return &Error{Code: CodeTooSmall, Text: fmt.Sprintf("%d bytes of files were found, %d are needed: name more trees",
			b.report.Bytes, b.spec.MinBytes)}
	}
	for i, d := range b.dirs {
		if err := b.finish(d, i == 0); err != nil {
			return err
		}
	}
	b.report.Dirs = len(b.dirs)
	return b.v.seal(b.spec.FreeBytes / blockSize)
}

func (b *builder) tree(t Tree) error {
	root, err := os.OpenRoot(t.Source)
	if err != nil {
		return &Error{Code: CodeSource, Text: "the tree cannot be opened", Err: err}
	}
	defer root.Close()
	dir := b.dirs[0]
	for _, name := range strings.Split(filepath.ToSlash(filepath.Clean(t.At)), "/") {
		if name == "." {
			continue
		}
		if dir, err = b.mkdir(dir, name, 0o755); err != nil {
			return err
		}
		if dir == nil {
			return &Error{Code: CodeSpec, Text: fmt.Sprintf("%q is not a directory in another tree", path.Clean(t.At))}
		}
	}
	b.report.Origins = append(b.report.Origins, Origin{Tree: t})
	b.origin = &b.report.Origins[len(b.report.Origins)-1]
	if err := b.walk(root, dir, 0); err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return nil
}

// walk copies what a directory holds, in the order of the names. Each directory is entered through its parent's
// handle, so a tree that is changed meanwhile cannot lead outside itself.
func (b *builder) walk(from *os.Root, to *directory, depth int) error {
	entries, err := fs.ReadDir(from.FS(), ".")
	if err != nil {
		// What was read before the error is sound, and what is missing is no worse than one unreadable file.
		b.report.Skipped.Unreadable++
	}
	for _, entry := range entries {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		if b.report.Bytes >= b.limit {
			return errEnough
		}
		name := entry.Name()
		if len(name) > maxName {
			b.report.Skipped.Unreadable++
			continue
		}
		var err error
		switch {
		case entry.IsDir():
			err = b.directory(from, to, name, depth)
		case to.names[name]:
			b.report.Skipped.Conflict++
		case entry.Type() == fs.ModeSymlink:
			err = b.symlink(from, to, name)
		case entry.Type().IsRegular():
			err = b.file(from, to, name)
		default:
			b.report.Skipped.Special++
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) directory(from *os.Root, to *directory, name string, depth int) error {
	if depth == maxDepth {
		b.report.Skipped.Unreadable++
		return nil
	}
	sub, err := from.OpenRoot(name)
	if err != nil {
		b.report.Skipped.Unreadable++
		return nil
	}
	defer sub.Close()
	mode := uint16(0o755)
	if info, err := sub.Stat("."); err == nil {
		mode = uint16(info.Mode().Perm())
	}
	d, err := b.mkdir(to, name, mode)
	if err != nil {
		return err
	}
	if d == nil {
		b.report.Skipped.Conflict++
		return nil
	}
	return b.walk(sub, d, depth+1)
}

// mkdir gives the directory of this name, a new one if there is none, and nil if it cannot be one.
func (b *builder) mkdir(in *directory, name string, mode uint16) (*directory, error) {
	if d := in.dirs[name]; d != nil {
		return d, nil
	}
	if in.names[name] || in.subdirs+2 >= maxLinks {
		return nil, nil
	}
	number, err := b.v.allocateInode()
	if err != nil {
		return nil, err
	}
	d := &directory{number: number, parent: in.number, mode: mode, dirs: map[string]*directory{}, names: map[string]bool{}}
	in.add(dirent{inode: number, kind: typeDir, name: name})
	in.subdirs++
	in.dirs[name] = d
	b.dirs = append(b.dirs, d)
	g, _ := place(number)
	b.v.groups[g].usedDirs++
	return d, nil
}

func (d *directory) add(e dirent) {
	d.entries = append(d.entries, e)
	d.names[e.name] = true
}

func (b *builder) symlink(from *os.Root, to *directory, name string) error {
	target, err := from.Readlink(name)
	if err != nil || target == "" || len(target) > maxSymlink {
		b.report.Skipped.Unreadable++
		return nil
	}
	n := inode{mode: modeSymlink | 0o777, links: 1, size: int64(len(target)), time: b.v.made}
	if len(target) < fastSymlink {
		n.target = target
	} else if n.extents, n.blocks, err = b.v.store([]byte(target)); err != nil {
		return err
	}
	b.report.Symlinks++
	return b.link(to, name, typeSymlink, n)
}

func (b *builder) file(from *os.Root, to *directory, name string) error {
	data, mode, why := b.read(from, name)
	if why != nil {
		*why++
		return nil
	}
	n := inode{mode: modeRegular | mode, links: 1, size: int64(len(data)), time: b.v.made}
	var err error
	if n.extents, n.blocks, err = b.v.store(data); err != nil {
		return err
	}
	b.report.Files++
	b.report.Bytes += n.size
	b.origin.Files++
	b.origin.Bytes += n.size
	return b.link(to, name, typeRegular, n)
}

func (b *builder) link(to *directory, name string, kind byte, n inode) error {
	number, err := b.v.allocateInode()
	if err != nil {
		return err
	}
	to.add(dirent{inode: number, kind: kind, name: name})
	return b.v.putInode(number, n)
}

// read reads a whole file, before anything is allocated for it: whatever happens to the file meanwhile, the image is
// of one length. It gives the counter to raise if the file cannot be taken.
func (b *builder) read(from *os.Root, name string) (data []byte, mode uint16, why *int) {
	// Without O_NONBLOCK a pipe that took the file's place would hang the building.
	f, err := from.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, &b.report.Skipped.Unreadable
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, 0, &b.report.Skipped.Unreadable
	case !info.Mode().IsRegular():
		return nil, 0, &b.report.Skipped.Special
	case info.Size() > b.spec.MaxFileBytes:
		return nil, 0, &b.report.Skipped.TooLarge
	}
	size := int(info.Size())
	if cap(b.buffer) < size {
		b.buffer = make([]byte, size)
	}
	got, err := io.ReadFull(f, b.buffer[:size])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, 0, &b.report.Skipped.Unreadable
	}
	return b.buffer[:got], uint16(info.Mode().Perm()), nil
}

// finish writes a directory's entries and its inode. The root gets a spare block: Evolve adds entries to it.
func (b *builder) finish(d *directory, root bool) error {
	entries := append([]dirent{{d.number, typeDir, "."}, {d.parent, typeDir, ".."}}, d.entries...)
	spare := 0
	if root {
		spare = 1
	}
	data := encodeDir(entries, spare)
	runs, blocks, err := b.v.store(data)
	if err != nil {
		return err
	}
	return b.v.putInode(d.number, inode{mode: modeDir | d.mode, links: uint16(2 + d.subdirs), size: int64(len(data)),
		blocks: blocks, time: b.v.made, extents: runs})
}
