package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// cutter cuts what it is given into chunks and calls each with them, in order.
type cutter func(r io.Reader, each func([]byte) error) error

// chunkSizes computes, without the product, what other ways to cut the same disks would store and send: version 1, and
// what version 2 adds to it. The compression and the record's header are those of handlers/region/chunks.
func (r *real) chunkSizes(ctx context.Context) error {
	t := &report.Table{Name: "chunks", Head: []string{"cut", "v1 MiB", "v1 chunks", "v2 MiB", "v2 chunks", "v1 seconds", "v2 seconds", "index of v2, MiB"}}
	ways := []struct {
		name string
		cut  cutter
	}{
		{"fixed 4 KiB", fixed(4 << 10)}, {"fixed 16 KiB", fixed(16 << 10)}, {"fixed 32 KiB", fixed(32 << 10)},
		{"fixed 64 KiB (ours)", fixed(chunks.BlockSize)}, {"fixed 128 KiB", fixed(128 << 10)},
		{"content-defined 4 to 64, about 16 KiB", contentDefined(4<<10, 16<<10, 64<<10)},
		{"content-defined 16 to 256, about 64 KiB", contentDefined(16<<10, 64<<10, 256<<10)},
	}
	for _, w := range ways {
		held := map[[sha256.Size]byte]struct{}{}
		var found [2]tally
		for v := range found {
			began := time.Now()
			for _, m := range machines() {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := found[v].add(r.image(m, v+1), w.cut, held); err != nil {
					return fmt.Errorf("%s: %w", w.name, err)
				}
			}
			found[v].took = time.Since(began)
		}
		t.Add(w.name, float64(found[0].stored)/mib, found[0].fresh, float64(found[1].stored)/mib, found[1].fresh, found[0].took.Seconds(), found[1].took.Seconds(), float64(found[1].seen*sha256.Size)/mib)
	}
	t.Note("An offline computation on one core over the images of the table above: cut, SHA-256, and zstd (default level) of what was not there yet, with a record's header of %d bytes for each chunk; nothing was stored or sent. Zeros count nothing. The index is 32 bytes for each chunk that is not zeros.", chunks.RecordHeaderSize)
	return r.write(t)
}

// tally is what one version needs.
type tally struct {
	stored, seen int64
	fresh        int
	took         time.Duration
}

func (t *tally) add(path string, cut cutter, held map[[sha256.Size]byte]struct{}) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, encoder.Close()) }()
	var out []byte
	return cut(f, func(chunk []byte) error {
		if chunk[0] == 0 && bytes.Equal(chunk[:len(chunk)-1], chunk[1:]) {
			return nil
		}
		t.seen++
		id := sha256.Sum256(chunk)
		if _, ok := held[id]; ok {
			return nil
		}
		held[id] = struct{}{}
		out = encoder.EncodeAll(chunk, out[:0])
		t.fresh++
		t.stored += int64(chunks.RecordHeaderSize + min(len(out), len(chunk)))
		return nil
	})
}

// fixed cuts at multiples of the size.
func fixed(size int) cutter {
	return func(r io.Reader, each func([]byte) error) error {
		buf := make([]byte, size)
		for {
			n, err := io.ReadFull(r, buf)
			if n > 0 {
				if err := each(buf[:n]); err != nil {
					return err
				}
			}
			switch {
			case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
				return nil
			case err != nil:
				return err
			}
		}
	}
}

// contentDefined cuts where a gear hash of the last bytes says so, as FastCDC does (Xia and others, USENIX ATC 2016),
// with its two masks around the wanted length. A run of zeros up to the greatest length is one chunk.
func contentDefined(least, wanted, most int) cutter {
	var gear [256]uint64
	draw := rand.New(rand.NewPCG(1, 2))
	for i := range gear {
		gear[i] = draw.Uint64()
	}
	bits := 0
	for 1<<bits < wanted {
		bits++
	}
	// The bits that many bytes have had a say in are the high ones.
	strict, loose := ^uint64(0)<<(64-bits-2), ^uint64(0)<<(64-bits+2)
	length := func(b []byte) int {
		end := min(len(b), most)
		h := uint64(0)
		for i := min(least, end); i < end; i++ {
			h = h<<1 + gear[b[i]]
			mask := strict
			if i >= wanted {
				mask = loose
			}
			if h&mask == 0 {
				return i + 1
			}
		}
		return end
	}
	return func(r io.Reader, each func([]byte) error) error {
		buf := make([]byte, 0, 4*most)
		for ended := false; ; {
			for !ended && len(buf) < most {
				n, err := r.Read(buf[len(buf):cap(buf)])
				buf = buf[:len(buf)+n]
				if ended = errors.Is(err, io.EOF); err != nil && !ended {
					return err
				}
			}
			if len(buf) == 0 {
				return nil
			}
			rest := buf
			for len(rest) >= most || ended && len(rest) > 0 {
				n := length(rest)
				if err := each(rest[:n]); err != nil {
					return err
				}
				rest = rest[n:]
			}
			buf = buf[:copy(buf[:cap(buf)], rest)]
		}
	}
}
