package packs

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

const benchSize = 512 << 20

func benchDisk(b *testing.B) *os.File {
	b.Helper()
	path := filepath.Join(b.TempDir(), "disk")
	chunkstest.RealDisk(b, path, benchSize)
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

func benchIngest(b *testing.B, dir string, f *os.File) (*Store, chunks.IngestResult) {
	b.Helper()
	s, err := Open(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Hold(b.Context(), "a", until); err != nil {
		b.Fatal(err)
	}
	n, err := s.Begin(b.Context(), "a")
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	// The zeros are read too, so that the figure is one of a disk without holes.
	r, err := chunks.Ingest(b.Context(), n, chunks.IngestRequest{Source: f, Size: benchSize, Extents: []chunks.Extent{{Length: benchSize}}})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Publish(b.Context(), chunks.Root{Name: "a", Owner: "a", Indexes: []chunks.Digest{r.Digest}}); err != nil {
		b.Fatal(err)
	}
	return s, r
}

func BenchmarkIngest(b *testing.B) {
	f := benchDisk(b)
	b.SetBytes(benchSize)
	for b.Loop() {
		s, r := benchIngest(b, b.TempDir(), f)
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(r.StoredBytes)/(1<<20), "MiB-stored")
	}
	b.ReportMetric(float64(chunkstest.PeakRSS(b))/(1<<20), "MiB-peak-RSS")
}

func BenchmarkIngestAgain(b *testing.B) {
	f := benchDisk(b)
	s, _ := benchIngest(b, b.TempDir(), f)
	defer s.Close()
	n, err := s.Begin(b.Context(), "a")
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	b.SetBytes(benchSize)
	for b.Loop() {
		if _, err := chunks.Ingest(b.Context(), n, chunks.IngestRequest{Source: f, Size: benchSize}); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRead(b *testing.B, cacheBytes int64) (*chunks.Cache, *chunks.Disk) {
	b.Helper()
	s, r := benchIngest(b, b.TempDir(), benchDisk(b))
	b.Cleanup(func() { s.Close() })
	cache, err := chunks.NewCache(s, cacheBytes)
	if err != nil {
		b.Fatal(err)
	}
	d, err := cache.Open(b.Context(), r.Digest)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close(); cache.Close() })
	return cache, d
}

func BenchmarkReadSequential(b *testing.B) {
	_, d := benchRead(b, 0)
	b.SetBytes(benchSize)
	buf := make([]byte, 1<<20)
	for b.Loop() {
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.NewSectionReader(d, 0, d.Size())}, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(chunkstest.PeakRSS(b))/(1<<20), "MiB-peak-RSS")
}

// BenchmarkReadRandom4K reads through a cache so small that nearly every read finds nothing in it.
func BenchmarkReadRandom4K(b *testing.B) {
	_, d := benchRead(b, 1<<20)
	rnd := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		if _, err := d.ReadAt(p, rnd.Int64N(benchSize/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	s, r := benchIngest(b, b.TempDir(), benchDisk(b))
	defer s.Close()
	b.SetBytes(benchSize)
	for b.Loop() {
		if v, err := chunks.Verify(b.Context(), s, r.Digest, nil); err != nil || v.Err() != nil {
			b.Fatal(err, v.Err())
		}
	}
}

func BenchmarkExport(b *testing.B) {
	s, r := benchIngest(b, b.TempDir(), benchDisk(b))
	defer s.Close()
	path := filepath.Join(b.TempDir(), "out")
	b.SetBytes(benchSize)
	for b.Loop() {
		if err := chunks.Export(b.Context(), s, r.Digest, path, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// numbered is a disk whose blocks are all different, made as it is read.
type numbered struct{}

func (numbered) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for i := 0; i < len(p); i += chunks.BlockSize {
		binary.BigEndian.PutUint64(p[i:], uint64(off)+uint64(i)+1)
	}
	return len(p), nil
}

// BenchmarkIngest16GiB shows what memory a large disk takes that has no zeros and no repeats.
func BenchmarkIngest16GiB(b *testing.B) {
	const size = 16 << 30
	b.SetBytes(size)
	for b.Loop() {
		s, err := Open(b.TempDir(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Hold(b.Context(), "a", until); err != nil {
			b.Fatal(err)
		}
		n, err := s.Begin(b.Context(), "a")
		if err != nil {
			b.Fatal(err)
		}
		r, err := chunks.Ingest(b.Context(), n, chunks.IngestRequest{Source: numbered{}, Size: size})
		if err != nil || r.NewChunks != size/chunks.BlockSize {
			b.Fatal(r, err)
		}
		n.Close()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(chunkstest.PeakRSS(b))/(1<<20), "MiB-peak-RSS")
}
