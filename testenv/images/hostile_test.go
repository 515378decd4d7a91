package images

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// patched is an image in which one run of bytes reads otherwise.
type patched struct {
	io.ReaderAt
	at    int64
	bytes []byte
}

func (p patched) ReadAt(b []byte, at int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, at)
	for i, c := range p.bytes {
		if j := p.at + int64(i) - at; j >= 0 && j < int64(n) {
			b[j] = c
		}
	}
	return n, err
}

// FuzzWalk reads damaged images: whatever stands in them, it ends with an error or with entries, never otherwise.
func FuzzWalk(f *testing.F) {
	dir := f.TempDir()
	for _, name := range []string{"a/b/c", "a/d", "e"} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(name), 0o644)); err != nil {
			f.Fatal(err)
		}
	}
	image := filepath.Join(f.TempDir(), "disk")
	report, err := Build(context.Background(), Spec{Label: "fuzz", Trees: []Tree{{Source: dir}}, FreeBytes: 1}, image)
	if err != nil {
		f.Fatal(err)
	}
	disk, err := os.Open(image)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = disk.Close() })
	v, err := load(disk, report.Size)
	if err != nil {
		f.Fatal(err)
	}
	root, err := v.inode(rootInode)
	if err != nil {
		f.Fatal(err)
	}
	table := int64(bitmapBlock(0)+2) * blockSize
	for _, at := range []int64{superblockOffset, superblockOffset + 0x28, blockSize, table + inodeSize, table + inodeSize + 0x28, root.blockAt(0), root.blockAt(0) + 28} {
		f.Add(uint32(at), []byte{0xFF, 0xFF, 0xFF, 0xFF})
		f.Add(uint32(at), []byte{0, 0, 0, 0, 0, 0, 0, 0})
		f.Add(uint32(at), []byte{2, 0, 0, 0, 1})
	}
	f.Fuzz(func(t *testing.T, at uint32, bytes []byte) {
		from := patched{disk, int64(at), bytes}
		v, err := load(from, report.Size)
		if err == nil {
			err = v.walk(context.Background(), from, func(_ uint32, n inode, _ uint32, _ string) error {
				if n.mode&modeType == modeSymlink {
					_, err := n.readlink(from)
					return err
				}
				_, err := io.Copy(io.Discard, n.reader(from))
				return err
			})
		}
		var e *Error
		if err != nil && !errors.As(err, &e) && !errors.Is(err, io.EOF) {
			t.Errorf("an error without a code: %v", err)
		}
	})
}
