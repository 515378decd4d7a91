package program_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// wait bounds what a test waits for.
const wait = time.Minute

func start(t *testing.T, dir string) *program.Program {
	t.Helper()
	p, err := program.New(t.Context(), program.Config{Dir: dir, HTTP: "127.0.0.1:0", NATS: "127.0.0.1:0", Regions: []string{"sydney"}, Lazy: true, Guests: program.Guests{Accelerator: "none"},
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	within, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := p.Ready(within); err != nil {
		t.Fatal(err)
	}
	return p
}

func ask(t *testing.T, c contexts.Context, method, path string, body any) []byte {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, c.HTTP+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.Token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, answer, err)
	}
	return answer
}

// subscribe asks until the account has its stream, which follows its creation.
func subscribe(ctx context.Context, t *testing.T, conn *bus.Conn, account string) bus.Subscribed {
	t.Helper()
	for {
		m := nats.NewMsg("tombolo.subscribe." + account)
		m.Data = []byte(`{"name":"mailer","kinds":["region"]}`)
		answer, err := conn.RequestMsgWithContext(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		var s struct {
			bus.Subscribed
			Error *struct{ Code bus.Code } `json:"error"`
		}
		if err := json.Unmarshal(answer.Data, &s); err != nil {
			t.Fatal(err)
		}
		switch {
		case s.Error == nil:
			return s.Subscribed
		case s.Error.Code != bus.AccountUnknown:
			t.Fatalf("%s", answer.Data)
		}
	}
}

// TestTenants: every account has its stream of events, those made later too, and
// who is removed is thrown out.
func TestTenants(t *testing.T) {
	p := start(t, t.TempDir())
	administrator, operator := p.Administrator(), p.Operator()
	closed := make(chan struct{})
	conn, err := bus.Connect(operator.NATS, operator.Seed, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	within, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()

	s := subscribe(within, t, conn, "default")
	js, err := jetstream.NewWithAPIPrefix(conn.Conn, s.APIPrefix)
	if err != nil {
		t.Fatal(err)
	}
	mailer, err := js.Consumer(within, s.Stream, s.Consumer)
	if err != nil {
		t.Fatal(err)
	}
	first, err := mailer.Next(jetstream.FetchMaxWait(wait))
	if err != nil || first.Headers().Get("ce-type") != "region.added" {
		t.Fatalf("%v %v", first, err)
	}

	ask(t, administrator, http.MethodPost, "/v1/accounts", map[string]string{"account": "acme", "display": "Acme"})
	admin, err := bus.Connect(administrator.NATS, administrator.Seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	if s := subscribe(within, t, admin, "acme"); s.Stream != "EVENTS_acme" {
		t.Errorf("%+v", s)
	}

	ask(t, administrator, http.MethodDelete, "/v1/accounts/default/users/operator", nil)
	select {
	case <-closed:
	case <-within.Done():
		t.Fatal("a removed user is connected still")
	}
	if _, err := bus.Connect(operator.NATS, operator.Seed); err == nil {
		t.Error("a removed user was let in again")
	}
}
