package segment

import (
	"fmt"
	"testing"
)

// BenchmarkSegment moves frames between two generators through a segment, and says how many arrived. A generator that
// writes one frame at a time is what QEMU does.
func BenchmarkSegment(b *testing.B) {
	for _, size := range []int{1514, 64} {
		for _, batch := range []int{1, 32} {
			b.Run(fmt.Sprintf("frame=%d/write=%d", size, batch), func(b *testing.B) {
				s := New(1500)
				from, to := plug(b, s, macA), plug(b, s, macB)
				introduce(from, to)
				flood(b, from, to, size, batch)
			})
		}
	}
}

// BenchmarkSegmentBesideAPausedMachine is the same while everything goes to a third machine too, which never reads.
func BenchmarkSegmentBesideAPausedMachine(b *testing.B) {
	s := New(1500)
	from, to, paused := plug(b, s, macA), plug(b, s, macB), plug(b, s, macC)
	introduce(from, to, paused)
	toPaused := prefixed(frame(macC, macA, ethIPv4, 1514, 0))
	for paused.port.Counts().OutDropped.Load() == 0 {
		if _, err := from.conn.Write(toPaused); err != nil {
			b.Fatal(err)
		}
	}
	flood(b, from, to, 1514, 1)
}

// flood sends for as long as b.N frames take to arrive: what is dropped on the way is sent again.
func flood(b *testing.B, from, to *machine, size, batch int) {
	var frames [][]byte
	for range batch {
		frames = append(frames, frame(to.mac, from.mac, ethIPv4, size, 0))
	}
	burst := prefixed(frames...)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	b.ResetTimer()
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := from.conn.Write(burst); err != nil {
					return
				}
			}
		}
	}()
	buf := make([]byte, 1<<20)
	want := b.N * (size + prefix)
	for got := 0; got < want; {
		n, err := to.conn.Read(buf)
		if err != nil {
			b.Fatal(err)
		}
		got += n
	}
	b.StopTimer()
	close(stop)
	go func() { // lets the sender see it
		for {
			if _, err := to.conn.Read(buf); err != nil {
				return
			}
		}
	}()
	<-stopped
	b.ReportMetric(float64(b.N)*float64(size)*8/float64(b.Elapsed().Nanoseconds()), "Gbit/s")
	b.ReportMetric(float64(to.port.Counts().OutDropped.Load())/float64(b.N), "dropped/frame")
}
