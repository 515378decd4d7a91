package howto

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/policies"
)

// plane is a control plane with one user, who is both of the directories.
type plane struct {
	dir, listen string
	key         string // public
	context     string // the user's context file
	server      *bus.Server
	service     *commands.Service
	journal     *journal.JetStream
	door        *commands.Door
}

var _ bus.Users = (*plane)(nil)

func (p *plane) ByNKey(public string) (bus.User, bool) {
	return bus.User{Account: "acme", User: "ann", Role: events.Operator}, public == p.key
}

func (p *plane) identity(ok bool) (commands.Identity, error) {
	if !ok {
		return commands.Identity{}, commands.ErrUserUnknown
	}
	return commands.Identity{Actor: events.Actor{Account: "acme", User: "ann"}, Role: events.Operator}, nil
}

func (p *plane) ByCredential(_ context.Context, a events.AccountID, nkey string) (commands.Identity, error) {
	return p.identity(a == "acme" && nkey == p.key)
}

func (p *plane) ByActor(context.Context, events.Actor) (commands.Identity, error) {
	return p.identity(false)
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{dir: t.TempDir(), listen: "127.0.0.1:0"}
	pair, err := nkeys.CreateUser()
	must(t, err)
	p.key, err = pair.PublicKey()
	must(t, err)
	seed, err := pair.Seed()
	must(t, err)
	p.start(t)
	text, err := json.Marshal(map[string]string{"name": "ann", "nats": p.server.URL(), "account": "acme", "user": "ann", "seed": string(seed)})
	must(t, err)
	p.context = filepath.Join(t.TempDir(), "context.json")
	must(t, os.WriteFile(p.context, text, 0o600))
	return p
}

func (p *plane) start(t *testing.T) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	p.server, err = bus.Embedded(bus.Options{Dir: p.dir, Listen: p.listen, Sync: bus.SyncLazy, Users: p, Log: log})
	must(t, err)
	server := p.server
	t.Cleanup(func() { _ = server.Close() })
	p.listen = strings.TrimPrefix(server.URL(), "nats://")
	conn, err := server.Connect()
	must(t, err)
	t.Cleanup(conn.Close)
	p.journal, err = journal.Open(t.Context(), conn, journal.Options{Registry: events.NewRegistry(), MaxBytes: 64 << 20})
	must(t, err)
	store, err := documents.Open(t.Context(), conn, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)), 1)
	must(t, err)
	access, err := policies.Access()
	must(t, err)
	p.door, err = commands.New(commands.Options{Executor: commands.NewExecutor(p.journal, time.Now), Directory: p, Access: access, Documents: store, Log: log})
	must(t, err)
	p.service, err = commands.Serve(conn, p.door, nil)
	must(t, err)
	feeds, err := bus.OpenFeeds(t.Context(), conn, log)
	must(t, err)
	must(t, feeds.Add(t.Context(), "acme"))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// create makes a template as another client would, and gives its event's sequence.
func (p *plane) create(t *testing.T, name string) uint64 {
	t.Helper()
	who, _ := p.identity(true)
	a, err := p.door.Do(t.Context(), commands.Request{Account: "acme", Kind: events.KindTemplate, Verb: "create", From: who,
		Body: fmt.Appendf(nil, `{"name":%q,"environment":"env-1","region":"sydney"}`, name)})
	must(t, err)
	return a.Sequence
}

// scripts is a copy of the how-to's folder with what npm brings.
func scripts(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "javascript")
	must(t, os.CopyFS(dir, os.DirFS("../../docs/how-to/javascript")))
	must(t, os.RemoveAll(filepath.Join(dir, "node_modules")))
	npm := exec.Command("npm", "ci", "--no-audit", "--no-fund")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v\n%s", err, out)
	}
	return dir
}

func (p *plane) node(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), "node", args...)
	c.Dir, c.Env = dir, append(os.Environ(), "TOMBOLO_CONTEXT="+p.context)
	return c
}

// follower is a running follow.mjs.
type follower struct {
	cmd    *exec.Cmd
	stderr *sink
	path   string
}

func (p *plane) follow(t *testing.T, dir, path string) *follower {
	t.Helper()
	f := &follower{cmd: p.node(t, dir, "follow.mjs", "mailer", path), stderr: &sink{}, path: path}
	f.cmd.Stderr = f.stderr
	must(t, f.cmd.Start())
	t.Cleanup(func() { _ = f.cmd.Process.Kill(); _ = f.cmd.Wait() })
	return f
}

// sink keeps what a program says.
type sink struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *sink) Write(b []byte) (int, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.b.Write(b) }
func (s *sink) String() string              { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

var _ io.Writer = (*sink)(nil)

// read gives the sequences in the follower's file.
func (f *follower) read(t *testing.T) []uint64 {
	t.Helper()
	b, err := os.ReadFile(f.path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []uint64
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		var e struct {
			Sequence uint64
			Type, ID string
			Data     struct{ Name string }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Type != "template.created" || e.ID == "" || e.Data.Name == "" {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, e.Sequence)
	}
	return out
}

// until waits until the file has so many events.
func (f *follower) until(t *testing.T, want []uint64) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(2 * time.Minute)
	for {
		got := f.read(t)
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the file has %v, want %v; the script says: %s", got, want, f.stderr)
		}
	}
}

func (f *follower) stop(t *testing.T, signal os.Signal) {
	t.Helper()
	must(t, f.cmd.Process.Signal(signal))
	if err := f.cmd.Wait(); err != nil && signal == syscall.SIGTERM {
		t.Fatalf("%v: %s", err, f.stderr)
	}
}

// TestSubscribeFromJavaScript is docs/how-to/subscribe-from-javascript.md.
func TestSubscribeFromJavaScript(t *testing.T) {
	dir, p := scripts(t), newPlane(t)
	path := filepath.Join(t.TempDir(), "templates.jsonl")

	// A command, sent twice with one id, is one event.
	var sent []uint64
	var answers []string
	for range 2 {
		out, err := p.node(t, dir, "create.mjs", "From JavaScript", "env-1", "sydney", "how-to-1").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		answers = append(answers, string(out))
	}
	var answer struct{ Sequence uint64 }
	must(t, json.Unmarshal([]byte(answers[0]), &answer))
	if answers[0] != answers[1] || answer.Sequence == 0 {
		t.Errorf("the answers are %q", answers)
	}
	sent = append(sent, answer.Sequence)
	if out, err := p.node(t, dir, "create.mjs", "From JavaScript", "env-2", "sydney").CombinedOutput(); err == nil || !strings.Contains(string(out), "name-in-use") {
		t.Errorf("a taken name: %v: %s", err, out)
	}

	first := p.follow(t, dir, path)
	first.until(t, sent)
	sent = append(sent, p.create(t, "while it runs"))
	first.until(t, sent)
	first.stop(t, syscall.SIGTERM)

	for i := range 3 {
		sent = append(sent, p.create(t, fmt.Sprint("while it is away ", i)))
	}
	second := p.follow(t, dir, path)
	second.until(t, sent)
	// The server goes away under it.
	must(t, p.server.Close())
	p.start(t)
	sent = append(sent, p.create(t, "after the server was away"))
	second.until(t, sent)
	second.stop(t, syscall.SIGTERM)

	// A crash while it wrote: half a line. And the acknowledgements of what it has
	// are lost: everything comes again, and is written once.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(`{"sequence":`)
	must(t, err)
	must(t, f.Close())
	conn, err := p.server.Connect()
	must(t, err)
	defer conn.Close()
	if _, err := conn.Request("$JS.API.CONSUMER.DELETE.EVENTS_acme.mailer", nil, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	third := p.follow(t, dir, path)
	sent = append(sent, p.create(t, "after a crash"))
	third.until(t, sent)
	third.stop(t, syscall.SIGTERM)
}
