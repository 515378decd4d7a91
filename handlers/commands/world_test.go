package commands_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/policies"
)

// wait bounds what a test waits for.
const wait = time.Minute

// users is a directory of fixed users.
type users map[string]commands.Identity

func (u users) find(key string) (commands.Identity, error) {
	if i, ok := u[key]; ok {
		return i, nil
	}
	return commands.Identity{}, commands.ErrUserUnknown
}
func (u users) ByCredential(_ context.Context, a events.AccountID, nkey string) (commands.Identity, error) {
	return u.find("key:" + string(a) + "/" + nkey)
}
func (u users) ByActor(_ context.Context, a events.Actor) (commands.Identity, error) {
	return u.find("actor:" + string(a.Account) + "/" + string(a.User))
}

// world is a bus with the accounts of a real one, the journal on it, and a door.
type world struct {
	bus     *bus.Server
	core    *nats.Conn
	journal *journal.JetStream
	now     func() time.Time
	docs    documents.Store
	users   users
	door    *commands.Door
	inbox   *commands.Inbox
	service *commands.Service
	keys    map[string]nkeys.KeyPair
}

// keyring is who may connect.
type keyring map[string]bus.User

func (k keyring) ByNKey(public string) (bus.User, bool) {
	u, ok := k[public]
	return u, ok
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{keys: map[string]nkeys.KeyPair{}, now: time.Now}
	u := users{
		"actor:_/root":   {Actor: events.Actor{Account: "_", User: "root"}, Role: events.Administrator},
		"actor:acme/ann": {Actor: events.Actor{Account: "acme", User: "ann"}, Role: events.Operator},
	}
	public, ring := map[string]string{}, keyring{}
	for name, user := range map[string]bus.User{
		"ann":    {Account: "acme", User: "ann", Role: events.Operator},
		"bob":    {Account: "acme", User: "bob", Role: events.Reader},
		"mia":    {Account: "acme", User: "mia", Role: events.Member},
		"gone":   {Account: "acme", User: "gone", Role: events.Operator}, // the directory knows it no more
		"eve":    {Account: "other", User: "eve", Role: events.Operator},
		"root":   {Account: "_", User: "root", Role: events.Administrator},
		"sydney": {Account: "_", User: "agent-sydney", Role: events.Agent, Region: "sydney"},
	} {
		k, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		w.keys[name] = k
		if public[name], err = k.PublicKey(); err != nil {
			t.Fatal(err)
		}
		ring[public[name]] = user
	}
	u["key:_/"+public["root"]] = u["actor:_/root"]
	u["key:_/"+public["sydney"]] = commands.Identity{Actor: events.Actor{Account: "_", User: "agent-sydney"}, Role: events.Agent, Region: "sydney"}
	u["key:acme/"+public["ann"]] = u["actor:acme/ann"]
	u["key:acme/"+public["bob"]] = commands.Identity{Actor: events.Actor{Account: "acme", User: "bob"}, Role: events.Reader}
	u["key:acme/"+public["mia"]] = commands.Identity{Actor: events.Actor{Account: "acme", User: "mia"}, Role: events.Member, Permissions: []string{"template.instantiate"}}
	u["key:other/"+public["eve"]] = commands.Identity{Actor: events.Actor{Account: "other", User: "eve"}, Role: events.Operator}

	var err error
	w.bus, err = bus.Embedded(bus.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Sync: syncMode(), Log: slog.New(slog.DiscardHandler), Users: ring})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.bus.Close(); err != nil {
			t.Error(err)
		}
	})
	w.core = w.connect(t)
	w.journal, err = journal.Open(t.Context(), w.core, journal.Options{Registry: events.NewRegistry(), MaxBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if w.docs, err = documents.Open(t.Context(), w.core, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)), 1); err != nil {
		t.Fatal(err)
	}
	w.users = u
	w.door = w.newDoor(t, w.journal)
	if w.inbox, err = commands.OpenInbox(t.Context(), w.core, w.door, 64<<20, 1); err != nil {
		t.Fatal(err)
	}
	if w.service, err = commands.Serve(w.core, w.door, w.inbox); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		if err := w.service.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

// newDoor makes a door over a journal.
func (w *world) newDoor(t testing.TB, j journal.Journal) *commands.Door {
	t.Helper()
	return w.doorOf(t, j, w.users)
}

// doorOf makes a door over a journal that asks a directory.
func (w *world) doorOf(t testing.TB, j journal.Journal, directory commands.Directory) *commands.Door {
	t.Helper()
	return w.doorReading(t, j, directory, nil)
}

// doorReading makes a door that has reads, too.
func (w *world) doorReading(t testing.TB, j journal.Journal, directory commands.Directory, reads commands.Reads) *commands.Door {
	t.Helper()
	access, err := policies.Access()
	if err != nil {
		t.Fatal(err)
	}
	d, err := commands.New(commands.Options{
		Reads:     reads,
		Executor:  commands.NewExecutor(j, func() time.Time { return w.now() }),
		Directory: directory, Access: access, Documents: w.docs, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// syncMode: tests need no disk; benchmarks may say that they do.
func syncMode() bus.Sync {
	if s := os.Getenv("TOMBOLO_BENCH_SYNC"); s != "" {
		return bus.Sync(s)
	}
	return bus.SyncLazy
}

func (w *world) connect(t testing.TB, o ...nats.Option) *nats.Conn {
	t.Helper()
	c, err := w.bus.Connect(o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// as connects as a tenant's user.
func (w *world) as(t testing.TB, name string, o ...nats.Option) *nats.Conn {
	t.Helper()
	public, err := w.keys[name].PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return w.connect(t, append(o, nats.Nkey(public, w.keys[name].Sign), nats.CustomInboxPrefix(bus.InboxOf(public)))...)
}

// tcp connects as a tenant's user over the network.
func (w *world) tcp(t testing.TB, name string) *bus.Conn {
	t.Helper()
	seed, err := w.keys[name].Seed()
	if err != nil {
		t.Fatal(err)
	}
	c, err := bus.Connect(w.bus.URL(), string(seed))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (w *world) stream(t testing.TB, name, subjects string) {
	t.Helper()
	js, err := jetstream.New(w.core)
	if err == nil {
		_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{subjects}})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// template makes one without its claims.
func (w *world) template(t testing.TB, n events.TemplateID) {
	t.Helper()
	x := commands.NewExecutor(w.journal, w.now)
	o := commands.Origin{Account: "acme", Command: events.CommandRef{ID: events.CommandID("make-" + n), Digest: events.DigestOf([]byte(n))}}
	_, err := commands.Execute(t.Context(), x, o, "x", template.Create{Template: n, Name: "t" + string(n), Source: events.Source{Environment: "e", Region: "sydney"}, Operation: "o"})
	if err != nil {
		t.Fatal(err)
	}
}

// reply is any answer of the door.
type reply struct {
	commands.Answer
	Accepted bool              `json:"accepted"`
	Error    *commands.Failure `json:"error"`
	status   string
}

// send is what a plain NATS client does.
func send(t testing.TB, c *nats.Conn, subject, id, body string, headers ...string) reply {
	t.Helper()
	m := nats.NewMsg(subject)
	m.Data = []byte(body)
	if id != "" {
		m.Header.Set("tombolo-command-id", id)
	}
	for i := 0; i < len(headers); i += 2 {
		m.Header.Set(headers[i], headers[i+1])
	}
	answer, err := c.RequestMsg(m, wait)
	if err != nil {
		t.Fatalf("%s: %v", subject, err)
	}
	var r reply
	if err := json.Unmarshal(answer.Data, &r); err != nil {
		t.Fatalf("%s: %v: %s", subject, err, answer.Data)
	}
	r.status = answer.Header.Get("Nats-Service-Error-Code")
	if (r.status != "") != (r.Error != nil) {
		t.Fatalf("%s: header and body disagree: %v %s", subject, answer.Header, answer.Data)
	}
	return r
}

// wants fails unless the reply is a refusal with this code and status.
func (r reply) wants(t testing.TB, code, status string) {
	t.Helper()
	if r.Error == nil || r.Error.Code != code || r.status != status || r.Error.Text == "" {
		t.Fatalf("got %+v %+v %s; want %s, %s", r.Answer, r.Error, r.status, code, status)
	}
}

func (r reply) ok(t testing.TB) reply {
	t.Helper()
	if r.Error != nil {
		t.Fatalf("refused: %+v", *r.Error)
	}
	return r
}

// history lists an aggregate's event types.
func (w *world) history(t testing.TB, a events.Aggregate) []events.Record {
	t.Helper()
	records, err := w.journal.Load(t.Context(), a, events.Head{})
	if err != nil {
		t.Fatal(err)
	}
	return records
}
