package transfer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/packs"
)

// BenchmarkPull copies a disk of 512 MiB over loopback, from one and from three regions in the same process: packs on
// the disk at both ends, fsync at the end of each copy. The memory is that of all regions together.
func BenchmarkPull(b *testing.B) {
	const size = 512 << 20
	path := filepath.Join(b.TempDir(), "disk")
	chunkstest.RealDisk(b, path, size)
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	a := newAuthority(b)
	var sources []Source
	var held chunks.IngestResult
	for _, name := range []string{"sydney", "chicago", "oslo"} {
		r := newRegion(b, a, name, nil)
		hold(b, r.store, "v1")
		n, err := r.store.Begin(b.Context(), "v1")
		if err != nil {
			b.Fatal(err)
		}
		if held, err = chunks.Ingest(b.Context(), n, chunks.IngestRequest{Source: f, Size: size}); err != nil {
			b.Fatal(err)
		}
		n.Close()
		sources = append(sources, r.source())
	}
	for name, from := range map[string][]Source{"one source": sources[:1], "three sources": sources} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				store, err := packs.Open(b.TempDir(), packs.Options{})
				if err != nil {
					b.Fatal(err)
				}
				beijing := &region{name: "beijing", store: store, links: NewLinks("beijing"), tls: a.region("beijing")}
				p := beijing.puller(b, nil)
				b.StartTimer()
				r := mustPull(b, p, request(held.Digest, from...))
				b.StopTimer()
				b.ReportMetric(float64(r.SocketBytes)/(1<<20), "MiB-at-socket")
				b.ReportMetric(float64(r.SocketBytes)/1e6/r.Duration.Seconds(), "MB/s-at-socket")
				b.ReportMetric(float64(r.StoredBytes)/(1<<20), "MiB-stored")
				if err := store.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(chunkstest.PeakRSS(b))/(1<<20), "MiB-peak-RSS")
		})
	}
}
