package journal_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/events/journal/journaltest"
)

// startServer runs a real server with JetStream in dir.
func startServer(t testing.TB, dir string) *server.Server {
	t.Helper()
	return startServerOn(t, dir, server.RANDOM_PORT)
}

func portOf(t testing.TB, s *server.Server) int {
	t.Helper()
	address, ok := s.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("the server listens on %v", s.Addr())
	}
	return address.Port
}

func startServerOn(t testing.TB, dir string, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not answer")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

func connect(t testing.TB, url string, options ...nats.Option) *nats.Conn {
	t.Helper()
	options = append([]nats.Option{nats.ReconnectWait(5 * time.Millisecond), nats.ReconnectJitter(0, 0), nats.MaxReconnects(-1)}, options...)
	conn, err := nats.Connect(url, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// options are those of the suite.
func options() journal.Options {
	return journal.Options{Registry: events.NewRegistry(), MaxBytes: journaltest.Limit, Finishing: journaltest.Finishing, AckWait: 300 * time.Millisecond}
}

func open(t testing.TB, conn *nats.Conn, o journal.Options) *journal.JetStream {
	t.Helper()
	j, err := journal.Open(t.Context(), conn, o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJetStreamConforms(t *testing.T) {
	journaltest.Run(t, func(t *testing.T) journaltest.Subject {
		s := startServer(t, t.TempDir())
		line := newProxy(t, s.Addr().String())
		j := open(t, connect(t, "nats://"+line.address()), options())
		admin := connect(t, s.ClientURL())
		js, err := jetstream.New(admin)
		if err != nil {
			t.Fatal(err)
		}
		return journaltest.Subject{
			Journal: j,
			Reopen: func() error {
				o := options()
				o.Known = j.ID()
				_, err := journal.Open(t.Context(), admin, o)
				return err
			},
			LoseAck: line.loseAck,
			Cut:     line.cut,
			Heal:    line.heal,
			Remove:  func(sequence uint64) { lose(t, js, sequence) },
			Put: func(subject string, header nats.Header, payload []byte) {
				if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: header, Data: payload}); err != nil {
					t.Fatal(err)
				}
			},
			Message: func(sequence uint64) (string, nats.Header, []byte) {
				stream, err := js.Stream(t.Context(), journal.StreamName)
				if err != nil {
					t.Fatal(err)
				}
				m, err := stream.GetMsg(t.Context(), sequence)
				if err != nil {
					t.Fatal(err)
				}
				return m.Subject, m.Header, m.Data
			},
			Vanish: func() {
				if err := js.DeleteStream(t.Context(), journal.StreamName); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// lose makes the stream lack a message. The stream denies deletions and that cannot be
// taken back, so the same stream is made once more without the denial.
func lose(t *testing.T, js jetstream.JetStream, sequence uint64) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	stream, err := js.Stream(t.Context(), journal.StreamName)
	must(err)
	var all []*nats.Msg
	for n := uint64(1); n <= stream.CachedInfo().State.LastSeq; n++ {
		m, err := stream.GetMsg(t.Context(), n)
		must(err)
		all = append(all, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
	}
	config := stream.CachedInfo().Config
	must(js.DeleteStream(t.Context(), journal.StreamName))
	config.DenyDelete = false
	stream, err = js.CreateStream(t.Context(), config)
	must(err)
	for _, m := range all {
		_, err := js.PublishMsg(t.Context(), m)
		must(err)
	}
	must(stream.DeleteMsg(t.Context(), sequence))
	config.DenyDelete = true
	_, err = js.UpdateStream(t.Context(), config)
	must(err)
}

// proxy is a TCP line between a client and a server that can fail.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	conns map[net.Conn]bool
	down  bool
	armed bool // swallow the next acknowledgement, then cut
	done  sync.WaitGroup
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.done.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.done.Wait()
	})
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		upstream, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		if p.down {
			p.mu.Unlock()
			_, _ = client.Close(), upstream.Close()
			continue
		}
		p.conns[client], p.conns[upstream] = true, true
		p.mu.Unlock()
		p.done.Go(func() { p.pump(upstream, client, false) })
		p.done.Go(func() { p.pump(client, upstream, true) })
	}
}

// pump copies one direction; the answers pass under the eye of loseAck.
func (p *proxy) pump(to, from net.Conn, answers bool) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if answers && bytes.Contains(buf[:n], []byte(`{"stream":"`+journal.StreamName+`"`)) && p.disarm() {
			return // the acknowledgement dies with the connection
		}
		if _, err := io.Copy(to, bytes.NewReader(buf[:n])); err != nil {
			return
		}
	}
}

func (p *proxy) disarm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.armed
	p.armed = false
	return was
}

func (p *proxy) loseAck() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = true
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}
