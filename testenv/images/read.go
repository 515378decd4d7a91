package images

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path"
)

// Entry is a file, directory or symbolic link of an image.
type Entry struct {
	Path   string // slash-separated, without a leading slash
	Mode   fs.FileMode
	Size   int64
	Target string // of a symbolic link
}

// Walk reads an image that Build or Evolve made and calls visit for all it holds, a directory before its content, in
// the order of the directory. The reader is of a regular file's data, empty otherwise, and ends with the call.
//
// Errors: CodeForeign, the context's, visit's, and those of reading.
func Walk(ctx context.Context, image string, visit func(Entry, io.Reader) error) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	v, err := open(f)
	if err != nil {
		return err
	}
	return v.walk(ctx, f, func(_ uint32, n inode, _ uint32, p string) error {
		e := Entry{Path: p, Mode: n.fileMode(), Size: n.size}
		switch {
		case e.Mode.IsRegular():
			return visit(e, n.reader(f))
		case e.Mode&fs.ModeSymlink != 0:
			if e.Target, err = n.readlink(f); err != nil {
				return err
			}
		}
		return visit(e, bytes.NewReader(nil))
	})
}

func open(f *os.File) (*volume, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return load(f, info.Size())
}

// walk calls visit with each entry's inode, the number of the directory it is in, and its path.
func (v *volume) walk(ctx context.Context, from io.ReaderAt, visit func(number uint32, n inode, parent uint32, p string) error) error {
	seen := map[uint32]bool{rootInode: true}
	var into func(dir uint32, p string) error
	into = func(dir uint32, p string) error {
		entries, err := v.list(from, dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := v.inode(e.inode)
			if err != nil {
				return err
			}
			at := path.Join(p, e.name)
			if err := visit(e.inode, n, dir, at); err != nil {
				return err
			}
			if n.mode&modeType != modeDir {
				continue
			}
			// No directory has two names; a damaged image may say so, and must not send us in circles.
			if seen[e.inode] {
				return foreign("directory %s stands twice in the tree", at)
			}
			seen[e.inode] = true
			if err := into(e.inode, at); err != nil {
				return err
			}
		}
		return nil
	}
	return into(rootInode, "")
}

// list gives a directory's entries without "." and "..".
func (v *volume) list(from io.ReaderAt, dir uint32) ([]dirent, error) {
	n, err := v.inode(dir)
	if err != nil {
		return nil, err
	}
	if n.mode&modeType != modeDir || n.size%blockSize != 0 {
		return nil, foreign("inode %d is not a directory", dir)
	}
	var out []dirent
	block := make([]byte, blockSize)
	for i := range n.size / blockSize {
		if _, err := from.ReadAt(block, n.blockAt(i)); err != nil {
			return nil, err
		}
		entries, err := slots(block)
		if err != nil {
			return nil, err
		}
		for _, s := range entries {
			if s.inode == 0 || s.name == "." || s.name == ".." {
				continue
			}
			if s.name == "" || bytes.ContainsAny([]byte(s.name), "/\x00") {
				return nil, foreign("a directory entry without a proper name")
			}
			out = append(out, s.dirent)
		}
	}
	return out, nil
}

// blockAt is where a file's block begins in the image, in bytes.
func (n inode) blockAt(index int64) int64 {
	for _, e := range n.extents {
		if index < int64(e.logical)+int64(e.length) {
			return (int64(e.start) + index - int64(e.logical)) * blockSize
		}
	}
	return -1
}

func (n inode) reader(from io.ReaderAt) io.Reader {
	parts := make([]io.Reader, 0, len(n.extents))
	for _, e := range n.extents {
		parts = append(parts, io.NewSectionReader(from, int64(e.start)*blockSize, int64(e.length)*blockSize))
	}
	return io.LimitReader(io.MultiReader(parts...), n.size)
}

func (n inode) readlink(from io.ReaderAt) (string, error) {
	if n.target != "" {
		return n.target, nil
	}
	if n.size > maxSymlink {
		return "", foreign("a symbolic link of %d bytes", n.size)
	}
	target, err := io.ReadAll(n.reader(from))
	return string(target), err
}
