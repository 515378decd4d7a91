package bus_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// directory is a set of users in memory, as a projection keeps it.
type directory struct {
	mu    sync.Mutex
	users map[string]bus.User
}

func (d *directory) ByNKey(public string) (bus.User, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u, ok := d.users[public]
	return u, ok
}

func (d *directory) remove(public string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.users, public)
}

// person is a user with the secret.
type person struct{ seed, public string }

func (d *directory) add(t *testing.T, u bus.User) person {
	t.Helper()
	p := stranger(t)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.users[p.public] = u
	return p
}

func stranger(t *testing.T) person {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return person{string(seed), public}
}

// place is a server with two tenants and a region, and a journal.
type place struct {
	dir     string
	address string
	server  *bus.Server
	users   *directory
	core    *nats.Conn
	journal *journal.JetStream
	feeds   *bus.Feeds
	people  map[string]person
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{dir: t.TempDir(), address: "127.0.0.1:0", users: &directory{users: map[string]bus.User{}}, people: map[string]person{}}
	for name, u := range map[string]bus.User{
		"ann":    {Account: "acme", User: "ann", Role: events.Operator},
		"rita":   {Account: "acme", User: "rita", Role: events.Reader},
		"bob":    {Account: "beta", User: "bob", Role: events.Operator},
		"admin":  {Account: events.None, User: "admin", Role: events.Administrator},
		"sydney": {Account: events.None, User: "agent-sydney", Role: events.Agent, Region: "sydney"},
	} {
		p.people[name] = p.users.add(t, u)
	}
	p.start(t)
	return p
}

// start runs the server, also again after a stop.
func (p *place) start(t *testing.T) {
	t.Helper()
	var err error
	p.server, err = bus.Embedded(bus.Options{Dir: p.dir, Listen: p.address, Sync: bus.SyncLazy, Users: p.users, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := p.server
	p.address = strings.TrimPrefix(server.URL(), "nats://")
	t.Cleanup(func() { _ = server.Close() })
	if p.core, err = p.server.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.core.Close)
	if p.journal, err = journal.Open(t.Context(), p.core, journal.Options{Registry: events.NewRegistry(), MaxBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if p.feeds, err = bus.OpenFeeds(t.Context(), p.core, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []events.AccountID{"acme", "beta"} {
		if err := p.feeds.Add(t.Context(), tenant); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *place) stop(t *testing.T) {
	t.Helper()
	p.core.Close()
	if err := p.server.Close(); err != nil {
		t.Fatal(err)
	}
}

// as connects one of the people.
func (p *place) as(t *testing.T, name string, options ...nats.Option) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(p.server.URL(), p.people[name].seed, options...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(c.Close)
	return c
}

// append stores an event: a template of the account is renamed to text.
func (p *place) append(t *testing.T, account events.AccountID, id, text string) events.Record {
	t.Helper()
	a := events.Aggregate{Account: account, Region: events.None, Kind: events.KindAccount, ID: id}
	before, err := p.journal.Load(t.Context(), a, events.Head{})
	if err != nil {
		t.Fatal(err)
	}
	var head events.Head
	if len(before) > 0 {
		head = before[len(before)-1].Head()
	}
	r, err := p.journal.Append(t.Context(), journal.Proposal{Aggregate: a, Expect: head, ID: events.DeriveID(account, events.CommandID(text), "test"),
		Time: time.Now().UTC(), Actor: events.Actor{Account: account, User: "ann"}, Command: events.CommandRef{ID: events.CommandID(text), Digest: events.DigestOf([]byte(text))},
		Correlation: "test", Event: events.AccountCreated{Display: text}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// brief bounds a request that is to fail.
func brief(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// heard is what a responder in Core got.
type heard struct {
	subject string
	account string
	user    string
	told    bool // there was a Nats-Request-Info
	body    string
}

func hear(m *nats.Msg) heard {
	h := heard{subject: m.Subject, body: string(m.Data)}
	if text := m.Header.Get("Nats-Request-Info"); text != "" {
		h.told = true
		var info struct{ Acc, User string }
		if json.Unmarshal([]byte(text), &info) == nil {
			h.account, h.user = info.Acc, info.User
		}
	}
	return h
}

// listen answers a subject in Core with "done" and gives what it hears.
func (p *place) listen(t *testing.T, subject string) <-chan heard {
	t.Helper()
	out := make(chan heard, 100)
	sub, err := p.core.Subscribe(subject, func(m *nats.Msg) {
		out <- hear(m)
		if m.Reply != "" {
			_ = m.Respond([]byte("done"))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	if err := p.core.Flush(); err != nil {
		t.Fatal(err)
	}
	return out
}

// subscribe asks for a subscription as one of the people.
func (p *place) subscribe(t *testing.T, who string, account events.AccountID, s bus.Subscription) (bus.Subscribed, error) {
	t.Helper()
	var out bus.Subscribed
	return out, p.ask(t, who, "tombolo.subscribe."+string(account), s, &out)
}

// ask sends JSON and reads JSON; a refusal is a *bus.Error.
func (p *place) ask(t *testing.T, who, subject string, body, to any) error {
	t.Helper()
	m := nats.NewMsg(subject)
	var err error
	if m.Data, err = json.Marshal(body); err != nil {
		t.Fatal(err)
	}
	answer, err := p.as(t, who).RequestMsgWithContext(brief(t), m)
	if err != nil {
		return err
	}
	var refusal struct {
		Error *struct {
			Code bus.Code
			Text string
		}
	}
	if err := json.Unmarshal(answer.Data, &refusal); err != nil {
		return err
	}
	if refusal.Error != nil {
		return &bus.Error{Code: refusal.Error.Code, Text: refusal.Error.Text}
	}
	return json.Unmarshal(answer.Data, to)
}
