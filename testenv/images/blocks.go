package images

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
)

// Difference counts blocks of two images by what became of them. Zero blocks are such in both.
type Difference struct {
	Total, Zero, Changed int
}

// ChangedShare is the share of changed blocks among those that are not zero in both images.
func (d Difference) ChangedShare() float64 {
	if d.Total == d.Zero {
		return 0
	}
	return float64(d.Changed) / float64(d.Total-d.Zero)
}

// Compare compares two images in aligned blocks of size bytes. Where one is longer, the other counts as zeros.
func Compare(ctx context.Context, before, after string, size int) (Difference, error) {
	if size <= 0 {
		return Difference{}, &Error{Code: CodeSpec, Text: "a block has at least one byte"}
	}
	a, err := os.Open(before)
	if err != nil {
		return Difference{}, err
	}
	defer a.Close()
	b, err := os.Open(after)
	if err != nil {
		return Difference{}, err
	}
	defer b.Close()
	var d Difference
	x, y := make([]byte, size), make([]byte, size)
	for {
		if err := ctx.Err(); err != nil {
			return Difference{}, err
		}
		n, err := readBlock(a, x)
		m, err2 := readBlock(b, y)
		if err := errors.Join(err, err2); err != nil {
			return Difference{}, err
		}
		if n == 0 && m == 0 {
			return d, nil
		}
		d.Total++
		switch {
		case !bytes.Equal(x, y):
			d.Changed++
		case allZero(x):
			d.Zero++
		}
	}
}

// readBlock fills a block, with zeros behind the end of the file, and says how much was read.
func readBlock(from io.Reader, block []byte) (int, error) {
	n, err := io.ReadFull(from, block)
	clear(block[n:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}

// copySparse copies a file and leaves blocks of zeros out.
func copySparse(ctx context.Context, to *os.File, from io.Reader) error {
	buffer := make([]byte, writeBatch)
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := readBlock(from, buffer)
		if err != nil {
			return err
		}
		if n == 0 {
			return to.Truncate(at)
		}
		if err := writeNonZero(to, buffer[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
}

// zeros is compared against; bytes.Equal is many times faster than a loop.
const zeros = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func allZero(p []byte) bool {
	// A block is zero if it starts with zeros and equals itself shifted by as much.
	head := min(len(p), len(zeros))
	return string(p[:head]) == zeros[:head] && bytes.Equal(p[head:], p[:len(p)-head])
}
