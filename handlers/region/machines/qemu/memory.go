package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// anonymous makes a file without a name, as large as it will ever be: who has it mapped need not fear that it shrinks.
func anonymous(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, sizeSeals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal: %w", err), f.Close())
	}
	return f, nil
}

const sizeSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// ramOf opens the RAM of a process that an earlier agent started. The process may be hostile by now: what it shows must be
// a sealed file of the right size.
func ramOf(pid int, size int64) (*os.File, error) {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", pid, ramFD), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err == nil && seals&sizeSeals != sizeSeals {
		err = errors.New("it is not sealed")
	}
	if info, serr := f.Stat(); err == nil && (serr != nil || info.Size() != size) {
		err = errors.Join(errors.New("it has another size"), serr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("descriptor %d of process %d is not RAM: %w", ramFD, pid, err), f.Close())
	}
	return f, nil
}

// piece is how much is copied at once, between looks at the context.
const piece = 8 << 20

// extentsOf asks for the parts of an anonymous file that have memory.
func extentsOf(f *os.File, size int64) ([]machines.Extent, error) {
	fd := int(f.Fd())
	out := []machines.Extent{}
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("seek data: %w", err)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("seek hole: %w", err)
		}
		out = append(out, machines.Extent{Offset: data, Length: min(hole, size) - data})
		at = hole
	}
	return out, nil
}

// copyRAM gives the same content in a file of its own, and where it has any.
func copyRAM(ctx context.Context, ram *os.File, size int64) (*os.File, []machines.Extent, error) {
	extents, err := extentsOf(ram, size)
	if err != nil {
		return nil, nil, err
	}
	// Written from a mapping: each byte is moved once, and pages are not cleared first. The file cannot shrink under it.
	from, err := unix.Mmap(int(ram.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map RAM: %w", err)
	}
	defer unix.Munmap(from)
	to, err := anonymous("capture", size)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range extents {
		for at, end := e.Offset, e.Offset+e.Length; at < end; at += piece {
			err := ctx.Err()
			if err == nil {
				_, err = to.WriteAt(from[at:min(at+piece, end)], at)
			}
			if err != nil {
				return nil, nil, errors.Join(err, to.Close())
			}
		}
	}
	return to, extents, nil
}

// fillRAM reads memory into a fresh file. What is zero takes no room. Error: machine-failed where it cannot be read.
func fillRAM(ctx context.Context, ram *os.File, m *machines.Memory, size int64) error {
	extents := m.Extents
	if extents == nil {
		extents = []machines.Extent{{Length: size}}
	}
	const block = 64 << 10
	zeros := make([]byte, block)
	buf := make([]byte, piece)
	for _, e := range extents {
		for at, end := e.Offset, e.Offset+e.Length; at < end; at += piece {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(piece, end-at)]
			if n, err := m.RAM.ReadAt(b, at); n < len(b) {
				if err == nil {
					err = io.ErrUnexpectedEOF
				}
				return machines.Wrap(machines.MachineFailed, err, "read the memory at %d", at+int64(n))
			}
			for off := 0; off < len(b); {
				next := min(off+block, len(b))
				if bytes.Equal(b[off:next], zeros[:next-off]) {
					off = next
					continue
				}
				for next < len(b) { // as much as has no zero block in it
					after := min(next+block, len(b))
					if bytes.Equal(b[next:after], zeros[:after-next]) {
						break
					}
					next = after
				}
				if _, err := ram.WriteAt(b[off:next], at+int64(off)); err != nil {
					return machines.Wrap(machines.MachineFailed, err, "fill the memory")
				}
				off = next
			}
		}
	}
	return nil
}
