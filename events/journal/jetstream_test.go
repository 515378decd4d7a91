package journal_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
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

func streams(t *testing.T, conn *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// streamConfig is the stream's present configuration.
func streamConfig(t *testing.T, js jetstream.JetStream) jetstream.StreamConfig {
	t.Helper()
	stream, err := js.Stream(t.Context(), journal.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().Config
}

func TestOpenRefusesOptions(t *testing.T) {
	conn := connect(t, startServer(t, t.TempDir()).ClientURL())
	for name, spoil := range map[string]func(*journal.Options){
		"no registry":     func(o *journal.Options) { o.Registry = nil },
		"no limit":        func(o *journal.Options) { o.MaxBytes = 0 },
		"too small limit": func(o *journal.Options) { o.MaxBytes = journal.MinBytes - 1 },
	} {
		o := options()
		spoil(&o)
		if _, err := journal.Open(t.Context(), conn, o); !errors.Is(err, journal.ErrOptions) {
			t.Errorf("%s: %v, want ErrOptions", name, err)
		}
	}
	if _, err := streams(t, conn).Stream(t.Context(), journal.StreamName); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatalf("a refused open left a stream: %v", err)
	}
}

func TestNothingCanBeTakenOut(t *testing.T) {
	conn := connect(t, startServer(t, t.TempDir()).ClientURL())
	j := open(t, conn, options())
	if _, err := j.Append(t.Context(), proposal("sydney", 1, events.Head{})); err != nil {
		t.Fatal(err)
	}
	stream, err := streams(t, conn).Stream(t.Context(), journal.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), 1); err == nil {
		t.Error("a message was deleted")
	}
	if err := stream.Purge(t.Context()); err == nil {
		t.Error("the stream was purged")
	}
	if tip, err := j.Tip(t.Context()); err != nil || tip != 1 {
		t.Errorf("the tip is %d, %v", tip, err)
	}
}

func TestOpenNamesWhatDiffers(t *testing.T) {
	for want, spoil := range map[string]func(*jetstream.StreamConfig){
		"metadata":             func(c *jetstream.StreamConfig) { c.Metadata = nil },
		"subjects":             func(c *jetstream.StreamConfig) { c.Subjects = []string{"tombolo.events.*.sydney.>"} },
		"storage":              func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"retention":            func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"discard":              func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"deny_delete":          func(c *jetstream.StreamConfig) { c.DenyDelete = false },
		"deny_purge":           func(c *jetstream.StreamConfig) { c.DenyPurge = false },
		"allow_direct":         func(c *jetstream.StreamConfig) { c.AllowDirect = true },
		"max_age":              func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"max_msgs ":            func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 },
		"max_msgs_per_subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 10 },
		"max_msg_size":         func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 },
		"no_ack":               func(c *jetstream.StreamConfig) { c.NoAck = true },
		"time to live":         func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true },
		"allow_rollup_hdrs":    func(c *jetstream.StreamConfig) { c.AllowRollup, c.DenyPurge = true, false },
		"persist_mode":         func(c *jetstream.StreamConfig) { c.PersistMode = jetstream.AsyncPersistMode },
	} {
		t.Run(strings.TrimSpace(want), func(t *testing.T) {
			conn := connect(t, startServer(t, t.TempDir()).ClientURL())
			open(t, conn, options())
			c := streamConfig(t, streams(t, conn))
			// A deleted stream's directory goes in the background: use a server without one.
			conn = connect(t, startServer(t, t.TempDir()).ClientURL())
			spoil(&c)
			if _, err := streams(t, conn).CreateStream(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			_, err := journal.Open(t.Context(), conn, options())
			var mismatch *journal.MismatchError
			if !errors.As(err, &mismatch) || !strings.Contains(mismatch.Error(), want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestMarker(t *testing.T) {
	s := startServer(t, t.TempDir())
	conn := connect(t, s.ClientURL())
	js := streams(t, conn)
	path := filepath.Join(t.TempDir(), "journal-id")
	start := func() (*journal.JetStream, error) {
		t.Helper()
		o := options()
		var err error
		if o.Known, o.Remember, err = journal.MarkerFile(path); err != nil {
			return nil, err
		}
		return journal.Open(t.Context(), conn, o)
	}
	first, err := start()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != first.ID()+"\n" {
		t.Fatalf("the marker is %q, %v", b, err)
	}
	if again, err := start(); err != nil || again.ID() != first.ID() {
		t.Fatalf("reopened as %v, %v", again, err)
	}
	good := streamConfig(t, js)
	if err := js.DeleteStream(t.Context(), journal.StreamName); err != nil {
		t.Fatal(err)
	}
	if _, err := start(); !errors.Is(err, journal.ErrVanished) {
		t.Fatalf("without its stream: %v, want ErrVanished", err)
	}
	if _, err := js.Stream(t.Context(), journal.StreamName); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatalf("the stream was made anew: %v", err)
	}
	good.Metadata = map[string]string{journal.MetadataID: "another"}
	if _, err := js.CreateStream(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if _, err := start(); !errors.Is(err, journal.ErrVanished) {
		t.Fatalf("with another stream: %v, want ErrVanished", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := start(); err == nil {
		t.Fatal("an empty marker was taken for a first start")
	}
	// A marker that cannot be written is no start.
	o := options()
	mine := errors.New("mine")
	o.Remember = func(string) error { return mine }
	if _, err := journal.Open(t.Context(), conn, o); !errors.Is(err, mine) {
		t.Fatalf("an open that could not be remembered: %v", err)
	}
}

// TestReplacedStream: another stream of the same name, under a running journal.
func TestReplacedStream(t *testing.T) {
	conn := connect(t, startServer(t, t.TempDir()).ClientURL())
	js := streams(t, conn)
	j := open(t, conn, options())
	first, err := j.Append(t.Context(), proposal("sydney", 1, events.Head{}))
	if err != nil {
		t.Fatal(err)
	}
	other := streamConfig(t, js)
	other.Metadata = map[string]string{journal.MetadataID: "another"}
	if err := js.DeleteStream(t.Context(), journal.StreamName); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	// A first event is right for both streams: only its sequence gives it away.
	if _, err := j.Append(t.Context(), proposal("chicago", 1, events.Head{})); !errors.Is(err, journal.ErrVanished) {
		t.Errorf("append: %v, want ErrVanished", err)
	}
	if _, err := j.Tip(t.Context()); !errors.Is(err, journal.ErrVanished) {
		t.Errorf("tip: %v, want ErrVanished", err)
	}
	if err := j.Follow(t.Context(), first.Sequence, func(events.Record) error { return nil }); !errors.Is(err, journal.ErrVanished) {
		t.Errorf("follow: %v, want ErrVanished", err)
	}
}

func TestOpenedByManyAtOnce(t *testing.T) {
	s := startServer(t, t.TempDir())
	ids := make([]string, 8)
	var group sync.WaitGroup
	for i := range ids {
		conn := connect(t, s.ClientURL())
		group.Go(func() {
			j, err := journal.Open(t.Context(), conn, options())
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = j.ID()
		})
	}
	group.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("ids differ: %q", ids)
		}
	}
}

// fillUp appends events of the type until the journal refuses.
func fillUp(t *testing.T, j journal.Journal, head events.Head, e events.Event) events.Head {
	t.Helper()
	for i := 0; ; i++ {
		p := proposal("sydney", int(head.Revision), head)
		p.Event = e
		r, err := j.Append(t.Context(), p)
		if errors.Is(err, journal.ErrFull) {
			return head
		}
		if err != nil || i > 1000 {
			t.Fatal(err)
		}
		head = r.Head()
	}
}

func TestGrow(t *testing.T) {
	conn := connect(t, startServer(t, t.TempDir()).ClientURL())
	j := open(t, conn, options())
	big := events.RegionAdded{Profile: events.RegionProfile{Name: strings.Repeat("n", 60<<10)}}
	head := fillUp(t, j, events.Head{}, big)
	for _, n := range []int64{0, journaltest.Limit - 1, journaltest.Limit} {
		if err := j.Grow(t.Context(), n); !errors.Is(err, journal.ErrOptions) {
			t.Errorf("grow to %d: %v, want ErrOptions", n, err)
		}
	}
	if err := j.Grow(t.Context(), 2*journaltest.Limit); err != nil {
		t.Fatal(err)
	}
	grown := fillUp(t, j, head, big)
	used, limit, err := j.Usage(t.Context())
	if err != nil || limit != 2*journaltest.Limit || used < limit*8/10 || used > limit*9/10 || grown == head {
		t.Fatalf("after growing %d of %d bytes are used, %v", used, limit, err)
	}
	if _, err := journal.Open(t.Context(), conn, options()); err != nil {
		t.Fatalf("a grown journal is refused: %v", err)
	}
}

// TestFullByOthers: the store's own refusal, where this process had not known.
func TestFullByOthers(t *testing.T) {
	s := startServer(t, t.TempDir())
	idle := open(t, connect(t, s.ClientURL()), options())
	busy := open(t, connect(t, s.ClientURL()), options())
	end := events.RegionRetired{Operation: events.OperationID(strings.Repeat("o", 60<<10))}
	fillUp(t, busy, events.Head{}, end)
	p := proposal("chicago", 1, events.Head{})
	p.Event = end
	_, err := idle.Append(t.Context(), p)
	var full *journal.FullError
	var api *jetstream.APIError
	if !errors.As(err, &full) || !errors.As(err, &api) || full.Limit != journaltest.Limit {
		t.Fatalf("append: %v, want ErrFull by way of JetStream's answer", err)
	}
}

// TestServerRestart: followers and writers go on where they were.
func TestServerRestart(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, dir)
	j := open(t, connect(t, s.ClientURL()), options())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seen, done := make(chan uint64, 100), make(chan error, 1)
	go func() {
		done <- j.Follow(ctx, 0, func(r events.Record) error {
			seen <- r.Sequence
			if r.Sequence == 4 {
				return errEnd
			}
			return nil
		})
	}()
	var head events.Head
	for i := range 4 {
		if i == 2 {
			restartAt(t, s, dir)
		}
		r, err := j.Append(ctx, proposal("sydney", i, head))
		if err != nil {
			t.Fatal(err)
		}
		head = r.Head()
		if got := <-seen; got != head.Sequence {
			t.Fatalf("followed %d after appending %d", got, head.Sequence)
		}
	}
	if err := <-done; err != errEnd {
		t.Fatal(err)
	}
}

// TestSetBackUnderFollowers: a server that comes back with a journal that was
// restored, and has grown past where its readers are, is not followed on: not by
// who has read, nor by who has only said from where.
func TestSetBackUnderFollowers(t *testing.T) {
	dir, before := t.TempDir(), t.TempDir()
	put := func(at string, first, n int, what string, head events.Head) events.Head {
		t.Helper()
		s := startServer(t, at)
		defer s.WaitForShutdown()
		defer s.Shutdown()
		j := open(t, connect(t, s.ClientURL()), options())
		for i := first; i < first+n; i++ {
			p := proposal("sydney", i, head)
			p.Correlation = what
			r, err := j.Append(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			head = r.Head()
		}
		return head
	}
	head := put(dir, 0, 2, "both", events.Head{})
	if err := os.CopyFS(before, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	put(dir, 2, 2, "lost", head)
	put(before, 2, 5, "since", head)

	s := startServer(t, dir)
	j := open(t, connect(t, s.ClientURL()), options())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	seen, ended := make(chan uint64, 100), make(chan error, 1)
	go func() {
		ended <- j.Follow(ctx, 0, func(r events.Record) error { seen <- r.Sequence; return nil })
	}()
	for want := uint64(1); want <= 4; want++ {
		if got := <-seen; got != want {
			t.Fatalf("followed %d, want %d", got, want)
		}
	}
	idle := make(chan error, 1)
	conn := connect(t, s.ClientURL())
	stream, err := streams(t, conn).Stream(ctx, journal.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	reading := func() int {
		t.Helper()
		info, err := stream.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Consumers
	}
	was, reads := reading(), open(t, conn, options())
	go func() { idle <- reads.Follow(ctx, 4, func(events.Record) error { return nil }) }()
	for reading() == was { // until it waits for what comes next
	}
	port := portOf(t, s)
	s.Shutdown()
	s.WaitForShutdown()
	startServerOn(t, before, port)
	for name, end := range map[string]chan error{"who has read all": ended, "who waits": idle} {
		var back *journal.SetBackError
		if err := <-end; !errors.As(err, &back) || !errors.Is(err, journal.ErrSetBack) || back.Sequence != 4 {
			t.Errorf("%s: %v", name, err)
		}
	}
	select {
	case n := <-seen:
		t.Errorf("event %d of the other journal was followed", n)
	default:
	}
}

// restartAt stops the server and starts another on its port and directory.
func restartAt(t *testing.T, s *server.Server, dir string) {
	t.Helper()
	port := portOf(t, s)
	s.Shutdown()
	s.WaitForShutdown()
	startServerOn(t, dir, port)
}
