package commands_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

// start runs the inbox until the returned function is called.
func start(t *testing.T, in *commands.Inbox) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- in.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// until follows the journal until an event fits.
func (w *world) until(t *testing.T, fits func(events.Record) bool) events.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	var found events.Record
	enough := errors.New("enough")
	err := w.journal.Follow(ctx, 0, func(r events.Record) error {
		if fits(r) {
			found = r
			return enough
		}
		return nil
	})
	if err != enough {
		t.Fatal(err)
	}
	return found
}

func of(command string) func(events.Record) bool {
	return func(r events.Record) bool { return r.Command.ID == events.CommandID(command) }
}

func TestInbox(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	ann := w.as(t, "ann")
	const subject = "tombolo.inbox.acme.template.protect"

	// Nobody executes yet: the commands are kept.
	for i := range 5 {
		body := fmt.Sprintf(`{"template":"10000001","protected":%v}`, i%2 == 0)
		for range 2 { // sent twice, one effect
			r := send(t, ann, subject, fmt.Sprint("p-", i), body).ok(t)
			if !r.Accepted || r.CommandID != events.CommandID(fmt.Sprint("p-", i)) || r.Operation != commands.OperationOf("acme", r.CommandID) {
				t.Errorf("%+v", r)
			}
		}
	}
	if n := len(w.history(t, template.Of("acme", "10000001"))); n != 1 {
		t.Fatalf("%d events before anybody executes", n)
	}
	stop := start(t, w.inbox)
	w.until(t, of("p-4"))
	stop()

	// It executes again after a restart, by another instance.
	send(t, ann, subject, "p-5", `{"template":"10000001","protected":false}`).ok(t)
	reopened, err := commands.OpenInbox(t.Context(), w.core, w.door, 64<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	stop = start(t, reopened)
	w.until(t, of("p-5"))
	records := w.history(t, template.Of("acme", "10000001"))
	if len(records) != 7 {
		t.Errorf("%d events", len(records))
	}
	for i, r := range records[1:] {
		if r.Command.ID != events.CommandID(fmt.Sprint("p-", i)) || r.Actor.User != "ann" {
			t.Errorf("out of order or not ann's: %+v", r)
		}
	}

	// A refused command's outcome is that of its operation.
	refused := send(t, ann, "tombolo.inbox.acme.template.delete", "d-1", `{"template":"20000001"}`).ok(t)
	r := w.until(t, of("d-1"))
	if f, ok := r.Event.(events.OperationFinished); !ok || f.Outcome != events.RolledBack || f.Cause.Code != "template-unknown" ||
		r.Aggregate != operation.Of("acme", refused.Operation) {
		t.Errorf("%+v", r)
	}

	// What cannot be right is refused at once; what reuses an id is put aside.
	send(t, ann, subject, "x-1", `{"template":1}`).wants(t, "bad-request", "400")
	send(t, w.as(t, "bob"), subject, "x-2", `{"template":"10000001","protected":true}`).wants(t, "access-denied", "403")
	send(t, ann, subject, "p-5", `{"template":"10000001","protected":true}`).ok(t)
	send(t, ann, subject, "p-6", `{"template":"10000001","protected":true}`).ok(t)
	w.until(t, of("p-6"))
	parked, err := reopened.Parked(t.Context())
	if err != nil || len(parked) != 1 || parked[0].Command != "p-5" || parked[0].Kind != "template" || parked[0].Because == "" {
		t.Fatalf("%+v, %v", parked, err)
	}
	if err := reopened.Drop(t.Context(), parked[0].Sequence); err != nil {
		t.Error(err)
	}
	if parked, err = reopened.Parked(t.Context()); err != nil || len(parked) != 0 {
		t.Errorf("%+v, %v", parked, err)
	}
	stop()
}

// moody is a journal that is full for its first appends.
type moody struct {
	journal.Journal
	refusals atomic.Int64
}

func (m *moody) Append(ctx context.Context, p journal.Proposal) (events.Record, error) {
	if m.refusals.Add(-1) >= 0 {
		return events.Record{}, &journal.FullError{Type: p.Event.EventType()}
	}
	return m.Journal.Append(ctx, p)
}

// What a command needs may fail for a while: it is tried again, and what came
// after it waits. More failures than a poisonous command would get do not park it.
func TestInboxWaitsForTheJournal(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	m := &moody{Journal: w.journal}
	m.refusals.Store(6)
	door := w.newDoor(t, m)
	inbox, err := commands.OpenInbox(t.Context(), w.core, door, 64<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	inbox.SetPause(func(int) time.Duration { return time.Millisecond })
	for i := range 3 {
		send(t, w.as(t, "ann"), "tombolo.inbox.acme.template.protect", fmt.Sprint("p-", i), fmt.Sprintf(`{"template":"10000001","protected":%v}`, i%2 == 0)).ok(t)
	}
	stop := start(t, inbox)
	w.until(t, of("p-2"))
	stop()
	for i, r := range w.history(t, template.Of("acme", "10000001"))[1:] {
		if r.Command.ID != events.CommandID(fmt.Sprint("p-", i)) {
			t.Errorf("out of order: %+v", r)
		}
	}
	if parked, err := inbox.Parked(t.Context()); err != nil || len(parked) != 0 || m.refusals.Load() > 0 {
		t.Errorf("%+v, %v", parked, err)
	}
}

// A command is executed by what its sender is then, not when it was accepted.
func TestInboxAsksAgainWhoSent(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	const subject, body = "tombolo.inbox.acme.template.protect", `{"template":"10000001","protected":true}`
	anns := w.users["actor:acme/ann"]
	execute := func(id string) events.Record {
		t.Helper()
		stop := start(t, w.inbox)
		defer stop()
		return w.until(t, of(id))
	}
	wants := func(r events.Record, id, code string) {
		t.Helper()
		f, ok := r.Event.(events.OperationFinished)
		if !ok || f.Outcome != events.RolledBack || f.Cause.Code != code || r.Actor != anns.Actor ||
			r.Aggregate != operation.Of("acme", commands.OperationOf("acme", events.CommandID(id))) {
			t.Errorf("%+v, want %s", r, code)
		}
		if n := len(w.history(t, template.Of("acme", "10000001"))); n != 1 {
			t.Errorf("%d events of the template", n)
		}
	}

	send(t, w.as(t, "ann"), subject, "removed", body).ok(t)
	delete(w.users, "actor:acme/ann")
	wants(execute("removed"), "removed", "user-unknown")

	send(t, w.as(t, "ann"), subject, "demoted", body).ok(t)
	w.users["actor:acme/ann"] = commands.Identity{Actor: anns.Actor, Role: events.Reader}
	wants(execute("demoted"), "demoted", "access-denied")

	// The control plane itself is in no directory, and may go on.
	send(t, w.core, subject, "own", body).ok(t)
	if r := execute("own"); r.Aggregate != template.Of("acme", "10000001") || r.Actor != commands.System().Actor {
		t.Errorf("%+v", r)
	}
	if parked, err := w.inbox.Parked(t.Context()); err != nil || len(parked) != 0 {
		t.Errorf("%+v, %v", parked, err)
	}
}

// silent is a directory that does not answer at first.
type silent struct {
	commands.Directory
	times atomic.Int64
}

func (s *silent) ByActor(ctx context.Context, a events.Actor) (commands.Identity, error) {
	if s.times.Add(-1) >= 0 {
		return commands.Identity{}, errors.New("not now")
	}
	return s.Directory.ByActor(ctx, a)
}

// A directory that does not answer is waited for, longer than a poisonous command would be.
func TestInboxWaitsForTheDirectory(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	send(t, w.as(t, "ann"), "tombolo.inbox.acme.template.protect", "p-1", `{"template":"10000001","protected":true}`).ok(t)
	directory := &silent{Directory: w.users}
	directory.times.Store(7)
	inbox, err := commands.OpenInbox(t.Context(), w.core, w.doorOf(t, w.journal, directory), 64<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	inbox.SetPause(func(int) time.Duration { return time.Millisecond })
	stop := start(t, inbox)
	if r := w.until(t, of("p-1")); r.Aggregate != template.Of("acme", "10000001") {
		t.Errorf("%+v", r)
	}
	stop()
	if parked, err := inbox.Parked(t.Context()); err != nil || len(parked) != 0 || directory.times.Load() > 0 {
		t.Errorf("%+v, %v", parked, err)
	}
}

// What fails for reasons of its own is parked after a few tries.
func TestInboxParksPoison(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	door := w.newDoor(t, poisoned{w.journal})
	inbox, err := commands.OpenInbox(t.Context(), w.core, door, 64<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	inbox.SetPause(func(int) time.Duration { return time.Millisecond })
	ann := w.as(t, "ann")
	send(t, ann, "tombolo.inbox.acme.template.protect", "poison", `{"template":"10000001","protected":true}`).ok(t)
	send(t, ann, "tombolo.inbox.acme.template.protect", "fine", `{"template":"10000001","protected":true}`).ok(t)
	stop := start(t, inbox)
	w.until(t, of("fine"))
	stop()
	parked, err := inbox.Parked(t.Context())
	if err != nil || len(parked) != 1 || parked[0].Command != "poison" {
		t.Errorf("%+v, %v", parked, err)
	}
}

// poisoned panics over one command.
type poisoned struct{ journal.Journal }

func (p poisoned) Append(ctx context.Context, q journal.Proposal) (events.Record, error) {
	if q.Command.ID == "poison" {
		panic("poison")
	}
	return p.Journal.Append(ctx, q)
}

// Whatever got into the stream does not stop what comes after it.
func TestInboxParksWhatItCannotRead(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	js, err := jetstream.New(w.core)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "tombolo.queue.inbox.acme.template.protect", []byte("not a command")); err != nil {
		t.Fatal(err)
	}
	send(t, w.as(t, "ann"), "tombolo.inbox.acme.template.protect", "p-1", `{"template":"10000001","protected":true}`).ok(t)
	stop := start(t, w.inbox)
	w.until(t, of("p-1"))
	parked, err := w.inbox.Parked(t.Context())
	if err != nil || len(parked) != 1 {
		t.Fatalf("%+v, %v", parked, err)
	}
	// Put back, it comes out the same way.
	if err := w.inbox.Retry(t.Context(), parked[0].Sequence); err != nil {
		t.Fatal(err)
	}
	send(t, w.as(t, "ann"), "tombolo.inbox.acme.template.protect", "p-2", `{"template":"10000001","protected":false}`).ok(t)
	w.until(t, of("p-2"))
	if again, err := w.inbox.Parked(t.Context()); err != nil || len(again) != 1 || again[0].Sequence == parked[0].Sequence {
		t.Errorf("%+v, %v", again, err)
	}
	stop()
}
