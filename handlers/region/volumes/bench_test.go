package volumes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// numbered is a disk without zeros or repeats, made as it is read.
type numbered struct{}

func (numbered) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for i := 0; i < len(p); i += chunks.BlockSize {
		binary.BigEndian.PutUint64(p[i:], uint64(off)+uint64(i)+1)
	}
	return len(p), nil
}

// base stores a disk of which the first data bytes are not zeros.
func base(b *testing.B, s served, size, data int64) chunks.Digest {
	b.Helper()
	session, err := s.store.Begin(b.Context(), "test")
	if err != nil {
		b.Fatal(err)
	}
	defer session.Close()
	r, err := chunks.Ingest(b.Context(), session, chunks.IngestRequest{Source: numbered{}, Size: size, Extents: []chunks.Extent{{Length: data}}})
	if err != nil {
		b.Fatal(err)
	}
	s.publish(r.Digest)
	return r.Digest
}

// BenchmarkClone is how long it takes from nothing until a random 4 KiB were read, written and flushed through the socket
// of a fresh clone. "full" disks hold a chunk at every 64 KiB, "sparse" ones 256 MiB of data; "in use" says that another
// clone of the same base is open.
func BenchmarkClone(b *testing.B) {
	s := serve(b, b.TempDir(), openPacks(b, b.TempDir()))
	type disk struct {
		size   int64
		full   bool
		digest chunks.Digest
	}
	var disks []disk
	for _, d := range []disk{{size: 1 << 30}, {size: 16 << 30}, {size: 1 << 30, full: true}, {size: 16 << 30, full: true}} {
		data := int64(256 << 20)
		if d.full {
			data = d.size
		}
		d.digest = base(b, s, d.size, data)
		disks = append(disks, d)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	n := 0
	for _, d := range disks {
		kind := "sparse"
		if d.full {
			kind = "full"
		}
		b.Run(fmt.Sprintf("%dGiB-%s", d.size>>30, kind), func(b *testing.B) {
			p := make([]byte, BlockSize)
			for b.Loop() {
				n++
				e := fmt.Sprint("e", n)
				if err := s.Create(b.Context(), e, []Disk{{Name: "root", Base: d.digest, Size: d.size}}); err != nil {
					b.Fatal(err)
				}
				c, err := nbd.Dial(b.Context(), s.socket, ExportName(e, "root"))
				if err != nil {
					b.Fatal(err)
				}
				_, rerr := c.ReadAt(p, rnd.Int64N(d.size/BlockSize)*BlockSize)
				_, werr := c.WriteAt(p, rnd.Int64N(d.size/BlockSize)*BlockSize)
				if err := errors.Join(rerr, werr, c.Flush()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := errors.Join(c.Close(), s.Discard(e)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// device is an open clone of a disk of the Go tree, through its socket.
func device(b *testing.B, size int64) (*nbd.Client, served) {
	b.Helper()
	s := serve(b, b.TempDir(), openPacks(b, b.TempDir()))
	path := filepath.Join(b.TempDir(), "disk")
	chunkstest.RealDisk(b, path, size)
	f, err := osFS{}.open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	session, err := s.store.Begin(b.Context(), "test")
	if err != nil {
		b.Fatal(err)
	}
	defer session.Close()
	r, err := chunks.Ingest(b.Context(), session, chunks.IngestRequest{Source: f, Size: size})
	if err != nil {
		b.Fatal(err)
	}
	s.publish(r.Digest)
	if err := s.Create(b.Context(), "e", []Disk{{Name: "root", Base: r.Digest, Size: size}}); err != nil {
		b.Fatal(err)
	}
	c, err := nbd.Dial(b.Context(), s.socket, "e/root")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c, s
}

// each runs n requests, depth at a time.
func each(b *testing.B, n, depth int, do func(i int) error) time.Duration {
	b.Helper()
	var next atomic.Int64
	var work sync.WaitGroup
	start := time.Now()
	for range depth {
		work.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	return time.Since(start)
}

// BenchmarkDevice tells what a clone of a disk of 1 GiB does through its socket.
func BenchmarkDevice(b *testing.B) {
	const size = 1 << 30
	c, _ := device(b, size)
	sequential := func(name string, do func([]byte, int64) (int, error)) {
		b.Run("sequential-"+name, func(b *testing.B) {
			const part = 256 << 10
			b.SetBytes(size)
			for range b.N {
				each(b, size/part, 4, func(i int) error {
					_, err := do(make([]byte, part), int64(i)*part)
					return err
				})
			}
		})
	}
	sequential("read", c.ReadAt)
	for _, depth := range []int{1, 16} {
		places := rand.New(rand.NewPCG(1, 1)).Perm(size / BlockSize)
		random := func(name string, do func(p []byte, off int64) (int, error)) {
			b.Run(fmt.Sprintf("%s-4KiB-%d", name, depth), func(b *testing.B) {
				bufs := sync.Pool{New: func() any { p := make([]byte, BlockSize); return &p }}
				b.SetBytes(BlockSize)
				took := each(b, b.N, depth, func(i int) error {
					p := bufs.Get().(*[]byte)
					defer bufs.Put(p)
					_, err := do(*p, int64(places[i%len(places)])*BlockSize)
					return err
				})
				b.ReportMetric(float64(b.N)/took.Seconds(), "IOPS")
			})
		}
		random("read", c.ReadAt)
		random("write", c.WriteAt)
	}
	places := rand.New(rand.NewPCG(2, 2)).Perm(size / BlockSize)
	b.Run("write-4KiB-flush", func(b *testing.B) {
		p := make([]byte, BlockSize)
		if err := c.Flush(); err != nil { // what was written before
			b.Fatal(err)
		}
		b.ResetTimer()
		took := each(b, b.N, 1, func(i int) error {
			_, err := c.WriteAt(p, int64(places[i%len(places)])*BlockSize)
			return errors.Join(err, c.Flush())
		})
		b.ReportMetric(float64(b.N)/took.Seconds(), "IOPS")
	})
	sequential("write", c.WriteAt)
	b.Logf("peak RSS %d MiB, of client and server together", chunkstest.PeakRSS(b)>>20)
}
