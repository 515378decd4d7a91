package bus_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// sink is a log that can be read while the server still writes to it.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func start(t *testing.T, o bus.Options) (*bus.Server, *sink) {
	t.Helper()
	log := &sink{}
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	s, err := bus.Embedded(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, log
}

func refused(t *testing.T, o bus.Options, want bus.Code) {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	s, err := bus.Embedded(o)
	if err == nil {
		_ = s.Close()
	}
	var e *bus.Error
	if !errors.As(err, &e) || e.Code != want {
		t.Fatalf("Embedded gave %v, want code %s", err, want)
	}
}

func TestKeepsWhatWasAcknowledged(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	s, _ := start(t, bus.Options{Dir: dir})
	if s.URL() != "" {
		t.Fatalf("without a listener there is the address %s", s.URL())
	}
	publish := func(s *bus.Server) uint64 {
		conn, err := s.Connect()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, MaxBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		ack, err := js.Publish(ctx, "s", []byte("kept"))
		if err != nil {
			t.Fatal(err)
		}
		return ack.Sequence
	}
	if n := publish(s); n != 1 {
		t.Fatalf("first sequence is %d", n)
	}
	if err := s.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(); err == nil {
		t.Fatal("a closed server says that it is ready")
	}
	again, _ := start(t, bus.Options{Dir: dir})
	if n := publish(again); n != 2 {
		t.Fatalf("after a restart the next sequence is %d, want 2", n)
	}
}

func TestListensAndSaysWhere(t *testing.T) {
	users := &directory{users: map[string]bus.User{}}
	ann := users.add(t, bus.User{Account: "acme", User: "ann", Role: events.Operator})
	s, _ := start(t, bus.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", MaxPayload: 128 << 10, MaxStore: 64 << 20, Users: users})
	conn, err := bus.Connect(s.URL(), ann.seed)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.MaxPayload() != 128<<10 {
		t.Errorf("max payload is %d", conn.MaxPayload())
	}
	if s.MaxStore() != 64<<20 {
		t.Errorf("max store is %d", s.MaxStore())
	}
}

// TestMaxStoreCountsWhatIsTaken: what a bus has taken of its disk does not make
// less what it may take when it is started again.
func TestMaxStoreCountsWhatIsTaken(t *testing.T) {
	dir := t.TempDir()
	const taken = 1 << 40 // more than is free on any disk that tests run on; a hole
	f, err := os.Create(filepath.Join(dir, "taken"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(taken), f.Close()); err != nil {
		t.Fatal(err)
	}
	if s, _ := start(t, bus.Options{Dir: dir}); s.MaxStore() < taken/4*3 {
		t.Errorf("of a disk on which %d bytes are taken the streams may take %d", int64(taken), s.MaxStore())
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	s, _ := start(t, bus.Options{Dir: dir, Listen: "127.0.0.1:0", Users: &directory{}})
	taken := strings.TrimPrefix(s.URL(), "nats://")
	refused(t, bus.Options{Dir: dir}, bus.DataInUse)
	refused(t, bus.Options{Dir: t.TempDir(), Listen: taken, Users: &directory{}}, bus.PortInUse)
	refused(t, bus.Options{}, bus.BadOptions)
	refused(t, bus.Options{Dir: dir, Listen: "nowhere"}, bus.BadOptions)
	refused(t, bus.Options{Dir: dir, Listen: "127.0.0.1:70000"}, bus.BadOptions)
	refused(t, bus.Options{Dir: dir, Listen: "0.0.0.0:0", Users: &directory{}}, bus.BadOptions)
	refused(t, bus.Options{Dir: dir, Listen: "127.0.0.1:0"}, bus.BadOptions)
	refused(t, bus.Options{Dir: dir, Sync: "sometimes"}, bus.BadOptions)

	// A refused start holds nothing: the port's loser left its directory free.
	loser := t.TempDir()
	refused(t, bus.Options{Dir: loser, Listen: taken, Users: &directory{}}, bus.PortInUse)
	start(t, bus.Options{Dir: loser})
	// And a closed server frees its port and directory.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", taken)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	start(t, bus.Options{Dir: dir, Listen: taken, Users: &directory{}})
}

func TestLazySyncIsReported(t *testing.T) {
	durable, quiet := start(t, bus.Options{Dir: t.TempDir()})
	if durable.Sync() != bus.SyncAlways || !strings.Contains(quiet.String(), "sync=always") {
		t.Errorf("the default is %q; log:\n%s", durable.Sync(), quiet)
	}
	lazy, log := start(t, bus.Options{Dir: t.TempDir(), Sync: bus.SyncLazy})
	if lazy.Sync() != bus.SyncLazy {
		t.Errorf("sync is %q", lazy.Sync())
	}
	var warned bool
	for line := range strings.Lines(log.String()) {
		warned = warned || strings.Contains(line, "level=WARN") && strings.Contains(line, "sync=lazy")
	}
	if !warned {
		t.Errorf("no warning in the log:\n%s", log)
	}
}

func TestConnectionEndsWithItsServer(t *testing.T) {
	s, _ := start(t, bus.Options{Dir: t.TempDir()})
	closed := make(chan struct{})
	conn, err := s.Connect(nats.MaxReconnects(0), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("the connection outlives its server")
	}
}
