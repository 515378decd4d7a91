package disks

import (
	"errors"
	"io"
	"math"
	"os"
	"syscall"
)

// rawSource is a file that is the disk.
type rawSource struct {
	file  file
	holes *os.File // where the file system knows about holes
}

// The whence values of lseek(2) that find data and holes; Linux's.
const (
	seekData = 3
	seekHole = 4
)

func openRaw(f file) (source, int64, error) {
	if f.size == 0 || f.size%sector != 0 {
		return nil, 0, refuse(CodeTruncated, "a raw disk is made of whole sectors of 512 bytes, this file has %d bytes", f.size)
	}
	holes, _ := f.ReaderAt.(*os.File)
	return rawSource{f, holes}, f.size, nil
}

func (r rawSource) find(offset int64) (location, int64, error) {
	data := location{present: true, at: offset}
	if r.holes == nil {
		return data, math.MaxInt64, nil
	}
	// Only the position of the handle moves, and nothing here reads from it.
	next, err := r.holes.Seek(offset, seekData)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return location{}, math.MaxInt64, nil
	case err != nil:
		return data, math.MaxInt64, nil // a file system that cannot tell: all is data
	case next > offset:
		return location{}, next - offset, nil
	}
	end, err := r.holes.Seek(offset, seekHole)
	if err != nil || end <= offset {
		return data, math.MaxInt64, nil
	}
	return data, end - offset, nil
}

func (r rawSource) read(p []byte, _ int64, where location) error { return r.file.fill(p, where.at) }

var _ io.ReaderAt = (*Image)(nil)
