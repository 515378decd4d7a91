package networkstest

import (
	"io"
	"net"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// Benchmark measures what a TCP connection through the edge carries, each way. One end is a stack in this process too, and
// takes its part of the processors.
func Benchmark(b *testing.B, h Harness) {
	const chunk = 1 << 20
	drain := func(c net.Conn) {
		buf := make([]byte, chunk)
		for {
			if _, err := c.Read(buf); err != nil {
				_, _ = c.Write([]byte("!"))
				return
			}
		}
	}
	send := func(b *testing.B, c interface {
		net.Conn
		CloseWrite() error
	}) {
		b.SetBytes(chunk)
		b.ResetTimer()
		buf := make([]byte, chunk)
		for range b.N {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		if err := c.CloseWrite(); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N)*chunk*8/float64(b.Elapsed().Nanoseconds()), "Gbit/s")
	}
	b.Run("out", func(b *testing.B) {
		w := newWorld(b, h, 0)
		w.start()
		server := w.serveTCP(drain)
		w.apply(shop())
		send(b, w.guest(port("web", 0)).mustDialTCP(w.published(server)))
	})
	b.Run("in", func(b *testing.B) {
		w := newWorld(b, h, 1)
		w.start()
		w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 80}))
		accept(b, w.guest(port("web", 0)).listenTCP(80), drain)
		c, err := net.Dial("tcp4", w.bound(5, 80).String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		send(b, c.(*net.TCPConn))
	})
	b.Run("between", func(b *testing.B) {
		w := newWorld(b, h, 2)
		w.start()
		w.apply(shop())
		web, db := w.guest(port("web", 0)), w.guest(port("db", 0))
		l := db.listenTCP(80)
		accept(b, l, drain)
		send(b, web.mustDialTCP(l.Addr().(*net.TCPAddr).AddrPort()))
	})
}
