package bus_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// raw is a client of the plain protocol, which can say what no library would.
type raw struct {
	t     *testing.T
	conn  net.Conn
	in    *bufio.Reader
	nonce string
}

func dial(t *testing.T, url string) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "nats://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := &raw{t: t, conn: conn, in: bufio.NewReader(conn)}
	var info struct{ Nonce string }
	if err := json.Unmarshal([]byte(strings.TrimPrefix(r.line(), "INFO ")), &info); err != nil || info.Nonce == "" {
		t.Fatalf("the server's greeting has no nonce: %v", err)
	}
	r.nonce = info.Nonce
	return r
}

func (r *raw) line() string {
	line, err := r.in.ReadString('\n')
	if err != nil {
		return "closed: " + err.Error()
	}
	return strings.TrimSpace(line)
}

// connect says CONNECT and gives the server's answer: PONG is a welcome.
func (r *raw) connect(fields map[string]any) string {
	r.t.Helper()
	all := map[string]any{"verbose": false, "pedantic": false, "protocol": 1, "headers": true, "no_responders": true}
	for k, v := range fields {
		all[k] = v
	}
	b, err := json.Marshal(all)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(r.conn, "CONNECT %s\r\nPING\r\n", b); err != nil {
		return "closed: " + err.Error()
	}
	for {
		if line := r.line(); !strings.HasPrefix(line, "INFO ") && line != "PING" {
			return line
		}
	}
}

func sign(t *testing.T, seed, nonce string) string {
	t.Helper()
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := pair.Sign([]byte(nonce))
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sig)
}

// TestOnlyAProvenKeyConnects: every other credential, and every mixture, is
// refused. A password beside an nkey is how a user could be spoofed.
func TestOnlyAProvenKeyConnects(t *testing.T) {
	p := newPlace(t)
	ann, bob, nobody := p.people["ann"], p.people["bob"], stranger(t)
	removed := p.users.add(t, bus.User{Account: "acme", User: "old", Role: events.Operator})
	p.users.remove(removed.public)
	homeless := p.users.add(t, bus.User{Account: "acme", User: "x", Role: events.Agent, Region: "sydney"})
	roleless := p.users.add(t, bus.User{Account: "acme", User: "x", Role: "owner"})
	agent := p.users.add(t, bus.User{Account: events.None, User: "x", Role: events.Agent})
	dots := p.users.add(t, bus.User{Account: "acme", User: "a.>", Role: events.Operator})
	elsewhere := p.users.add(t, bus.User{Account: "CORE", User: "x", Role: events.Operator})
	key := func(p person, nonce string) map[string]any {
		return map[string]any{"nkey": p.public, "sig": sign(t, p.seed, nonce)}
	}
	with := func(m map[string]any, k string, v any) map[string]any { m[k] = v; return m }
	for name, c := range map[string]struct {
		fields  func(nonce string) map[string]any
		welcome bool
	}{
		"the key":                       {func(n string) map[string]any { return key(ann, n) }, true},
		"a jwt beside the key is void":  {func(n string) map[string]any { return with(key(ann, n), "jwt", "eyJ0eXAi.e30.x") }, true},
		"nothing":                       {func(string) map[string]any { return nil }, false},
		"a password":                    {func(string) map[string]any { return map[string]any{"user": "ann", "pass": "x"} }, false},
		"a token":                       {func(string) map[string]any { return map[string]any{"auth_token": "x"} }, false},
		"a jwt":                         {func(string) map[string]any { return map[string]any{"jwt": "eyJ0eXAi.e30.x"} }, false},
		"a password naming a key":       {func(string) map[string]any { return map[string]any{"user": "a", "pass": "x", "nkey": bob.public} }, false},
		"a key naming a user":           {func(n string) map[string]any { return with(key(ann, n), "user", "bob") }, false},
		"a key with a password":         {func(n string) map[string]any { return with(key(ann, n), "pass", "x") }, false},
		"a key with a token":            {func(n string) map[string]any { return with(key(ann, n), "auth_token", "x") }, false},
		"a key naming an account":       {func(n string) map[string]any { return with(key(ann, n), "account", "beta") }, false},
		"a key that is not proven":      {func(string) map[string]any { return map[string]any{"nkey": bob.public} }, false},
		"a signature that is no base64": {func(n string) map[string]any { return with(key(ann, n), "sig", "%") }, false},
		"another's signature":           {func(n string) map[string]any { return with(key(ann, n), "nkey", bob.public) }, false},
		"an old signature":              {func(string) map[string]any { return key(ann, "yesterday") }, false},
		"a stranger":                    {func(n string) map[string]any { return key(nobody, n) }, false},
		"a removed user":                {func(n string) map[string]any { return key(removed, n) }, false},
		"an agent in a tenant":          {func(n string) map[string]any { return key(homeless, n) }, false},
		"an agent without a region":     {func(n string) map[string]any { return key(agent, n) }, false},
		"a role that is none":           {func(n string) map[string]any { return key(roleless, n) }, false},
		"a name that is a pattern":      {func(n string) map[string]any { return key(dots, n) }, false},
		"a user of the control plane's": {func(n string) map[string]any { return key(elsewhere, n) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := dial(t, p.server.URL())
			answer := r.connect(c.fields(r.nonce))
			if (answer == "PONG") != c.welcome {
				t.Errorf("the server says %q", answer)
			}
		})
	}
}

// TestSecondConnect: a connection cannot become somebody else's.
func TestSecondConnect(t *testing.T) {
	p := newPlace(t)
	ann, bob := p.people["ann"], p.people["bob"]
	for name, second := range map[string]map[string]any{
		"another key":             {"nkey": bob.public},
		"a user name":             {"user": "bob"},
		"another key, own answer": {"nkey": bob.public, "sig": "own"},
	} {
		t.Run(name, func(t *testing.T) {
			got := p.listen(t, "tombolo.command.>")
			r := dial(t, p.server.URL())
			if answer := r.connect(map[string]any{"nkey": ann.public, "sig": sign(t, ann.seed, r.nonce)}); answer != "PONG" {
				t.Fatalf("the first CONNECT: %s", answer)
			}
			if second["sig"] == "own" {
				second["sig"] = sign(t, ann.seed, r.nonce)
			}
			if answer := r.connect(second); answer == "PONG" {
				t.Error("the second CONNECT is accepted")
			}
			_, _ = fmt.Fprint(r.conn, "PUB tombolo.command.beta.template.create 2\r\n{}\r\nPUB tombolo.command.acme.template.create 2\r\n{}\r\nPING\r\n")
			for !strings.HasPrefix(r.line(), "closed: ") {
			}
			if err := p.core.Flush(); err != nil {
				t.Fatal(err)
			}
			select {
			case h := <-got:
				t.Errorf("after it, %+v was heard", h)
			default:
			}
		})
	}
}

// TestRevocation: a removed user is cut off at once, and does not come back.
func TestRevocation(t *testing.T) {
	p := newPlace(t)
	closed := make(chan error, 2)
	watch := nats.ClosedHandler(func(c *nats.Conn) { closed <- c.LastError() })
	p.as(t, "ann", watch, nats.ReconnectWait(time.Millisecond))
	p.as(t, "ann", watch, nats.NoReconnect())
	bob := p.as(t, "bob", nats.NoReconnect())
	start := time.Now()
	p.users.remove(p.people["ann"].public)
	if n, err := p.server.Disconnect(p.people["ann"].public); err != nil || n != 2 {
		t.Fatalf("%d connections are ended, want 2: %v", n, err)
	}
	for range 2 {
		select {
		case <-closed:
		case <-brief(t).Done():
			t.Fatal("the removed user is still connected")
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %s", took)
	}
	if _, err := bus.Connect(p.server.URL(), p.people["ann"].seed); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the removed user connects again: %v", err)
	}
	if err := bob.Flush(); err != nil {
		t.Errorf("another user was cut off: %v", err)
	}
	if _, err := p.server.Disconnect(""); err == nil {
		t.Error("the control plane can be disconnected")
	}
}
