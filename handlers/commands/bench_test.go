package commands_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// BenchmarkRaw and BenchmarkCommand publish equal bytes from TCP clients: raw
// checked publishes to a stream, and commands on warm aggregates.
func BenchmarkRaw(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			connect := plain(b)
			stream(b, connect(), "RAW", "raw.>")
			var n atomic.Uint64
			run(b, connect, clients, func(c *nats.Conn, worker int, seq *uint64) error {
				m := nats.NewMsg(fmt.Sprintf("raw.%d.%d", worker, n.Add(1)))
				m.Header = rawHeader()
				m.Header.Set("Nats-Expected-Last-Subject-Sequence", "0")
				m.Data = []byte(`{"protected":true}`)
				_, err := c.RequestMsg(m, wait)
				return err
			})
		})
	}
}

// plain runs a server without accounts, with the same JetStream settings, and
// gives connections over TCP.
func plain(b *testing.B) func() *nats.Conn {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: b.TempDir(), SyncAlways: syncMode() == bus.SyncAlways, NoSigs: true, NoLog: true})
	if err != nil {
		b.Fatal(err)
	}
	s.Start()
	b.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(wait) {
		b.Fatal("the server does not start")
	}
	return func() *nats.Conn {
		c, err := nats.Connect(s.ClientURL())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.Close)
		return c
	}
}

func rawHeader() nats.Header {
	h := nats.Header{}
	for i := range 15 { // about what an event carries
		h.Set(fmt.Sprintf("tombolo-header-%d", i), "0123456789012345678901234567890123456789")
	}
	return h
}

func BenchmarkCommand(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			w := newWorld(b)
			const templates = 1000
			for i := range templates {
				w.template(b, number(i))
				send(b, w.core, "tombolo.command.acme.template.protect", "", fmt.Sprintf(`{"template":"%s","protected":true}`, number(i))).ok(b)
			}
			var n atomic.Uint64
			n.Store(templates - 1)
			run(b, func() *nats.Conn { return w.as(b, "ann") }, clients, func(c *nats.Conn, worker int, _ *uint64) error {
				i := n.Add(1)
				m := nats.NewMsg("tombolo.command.acme.template.protect")
				m.Data = fmt.Appendf(nil, `{"template":"%s","protected":%v}`, number(int(i%templates)), i/templates%2 == 0) // each one a change
				m.Header.Set("tombolo-command-id", fmt.Sprint("c", i))
				r, err := c.RequestMsg(m, wait)
				if err == nil && r.Header.Get("Nats-Service-Error") != "" {
					err = fmt.Errorf("%s", r.Data)
				}
				return err
			})
		})
	}
}

func number(i int) events.TemplateID { return events.TemplateID(fmt.Sprint(10_000_000 + i)) }

func run(b *testing.B, connect func() *nats.Conn, clients int, once func(c *nats.Conn, worker int, seq *uint64) error) {
	conns := make([]*nats.Conn, clients)
	for i := range conns {
		conns[i] = connect()
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	errs := make(chan error, clients)
	b.ResetTimer()
	for i, c := range conns {
		go func() {
			var seq uint64
			for left.Add(-1) >= 0 {
				if err := once(c, i, &seq); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range conns {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}
