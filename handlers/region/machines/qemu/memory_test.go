package qemu

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// What is filled in is what is copied out, and zeros take no room on the way.
func TestFillAndCopy(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const size = 64 << 20
	for range 5 {
		content := make([]byte, size)
		var extents []machines.Extent
		var data int64
		for at := int64(0); at < size; {
			n := min(size-at, 1+r.Int64N(5<<20))
			switch r.IntN(3) {
			case 0: // a hole
			case 1: // an extent of zeros
				extents = append(extents, machines.Extent{Offset: at, Length: n})
			case 2:
				extents = append(extents, machines.Extent{Offset: at, Length: n})
				for i := at; i < at+n; i++ {
					content[i] = byte(r.Uint32())
				}
				data += n
			}
			at += n
		}
		for _, extents := range [][]machines.Extent{extents, nil} {
			ram, err := anonymous("ram", size)
			if err != nil {
				t.Fatal(err)
			}
			if err := fillRAM(t.Context(), ram, &machines.Memory{RAM: bytes.NewReader(content), Extents: extents}, size); err != nil {
				t.Fatal(err)
			}
			if got := blocks(ram); got > data+int64(len(extents)+30)*2*(64<<10) {
				t.Errorf("%d bytes of data take %d", data, got)
			}
			to, got, err := copyRAM(t.Context(), ram, size)
			if err != nil {
				t.Fatal(err)
			}
			back := make([]byte, size)
			for _, e := range got {
				if _, err := to.ReadAt(back[e.Offset:e.Offset+e.Length], e.Offset); err != nil && err != io.EOF {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(back, content) || blocks(to) != blocks(ram) {
				t.Error("the copy differs")
			}
			for _, f := range []*os.File{ram, to} {
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

// A process that was taken over by its guest cannot make the agent read, wait for, or trip over something else.
func TestHostileRAM(t *testing.T) {
	const size = 1 << 20
	sealed := func(n int64) *os.File {
		f, err := anonymous("ram", n)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	open := func() *os.File {
		f, err := os.CreateTemp(t.TempDir(), "ram")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		return f
	}
	_, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		file *os.File
		ok   bool
	}{"RAM": {sealed(size), true}, "another size": {sealed(2 * size), false}, "not sealed": {open(), false}, "pipe": {pipe, false}, "device": {zero, false}} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "sleep", "1000")
			cmd.ExtraFiles = []*os.File{c.file, c.file, c.file, c.file}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			p, err := ofChild(cmd)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := p.kill(); err != nil {
					t.Error(err)
				}
				if _, err := p.wait(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			f, err := ramOf(p.PID, size)
			if c.ok != (err == nil) {
				t.Errorf("%v", err)
			}
			if err == nil {
				f.Close()
			}
			m := &machine{proc: p}
			if l, err := m.inheritedSocket(); err == nil {
				t.Errorf("a socket: %v", l.Addr())
			}
		})
	}
}
