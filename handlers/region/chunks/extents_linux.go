package chunks

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// fileExtents asks the file system for the ranges that hold data (lseek(2), SEEK_DATA and SEEK_HOLE). It moves no
// offset that others see: it opens the file anew.
func fileExtents(f *os.File, size int64) ([]Extent, error) {
	own, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return nil, errors.ErrUnsupported
	}
	defer own.Close()
	fd := int(own.Fd())
	out := []Extent{}
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no data from here to the end
			// A block device answers so too, though all of it is data.
			if info, serr := own.Stat(); serr != nil || !info.Mode().IsRegular() {
				return nil, errors.ErrUnsupported
			}
			break
		} else if err != nil {
			return nil, errors.ErrUnsupported
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, errors.ErrUnsupported
		}
		if data >= size {
			break
		}
		out = append(out, Extent{Offset: data, Length: min(hole, size) - data})
		at = hole
	}
	return out, nil
}
