package processes

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/projections"
)

// installation is a journal with a real runner over it.
type installation struct {
	t       *testing.T
	dir     string
	journal *journal.Memory
	faulty  *killer // the journal as the runner has it
	people  *commands.Executor
	table   []Definition
	sent    int

	store  *projections.Store
	runner *Runner
	done   chan error
}

func install(t *testing.T) *installation {
	i := &installation{t: t, dir: t.TempDir(), journal: journal.NewMemory(events.NewRegistry(), time.Now), table: All()}
	i.people = commands.NewExecutor(i.journal, time.Now)
	i.faulty = &killer{Journal: i.journal}
	return i
}

func (i *installation) start() {
	i.t.Helper()
	var err error
	if i.store, err = projections.Open(i.dir, projections.Options{}); err != nil {
		i.t.Fatal(err)
	}
	if i.runner, err = newRunner(i.table, i.faulty, commands.NewExecutor(i.faulty, time.Now), i.store, slog.New(slog.DiscardHandler)); err != nil {
		i.t.Fatal(err)
	}
	i.done = make(chan error, 1)
	go func() { i.done <- i.runner.Run(context.Background()) }()
	<-i.runner.Running()
}

func (i *installation) stop() {
	i.t.Helper()
	if err := i.runner.Close(); err != nil {
		i.t.Error(err)
	}
	if err := <-i.done; err != nil {
		i.t.Error(err)
	}
	if err := i.store.Close(); err != nil {
		i.t.Error(err)
	}
}

// await gives the first event that fits; it comes, or the test runs out of time.
func await[E events.Event](i *installation, fits func(events.Record, E) bool) events.Record {
	i.t.Helper()
	found := errors.New("found")
	var out events.Record
	ctx, cancel := context.WithTimeout(i.t.Context(), time.Minute)
	defer cancel()
	err := i.journal.Follow(ctx, 0, func(r events.Record) error {
		if e, ok := r.Event.(E); ok && fits(r, e) {
			out = r
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		i.t.Fatalf("waiting for a %T: %v", *new(E), err)
	}
	return out
}

func command[S aggregates.State[S, E], E events.Event](i *installation, c aggregates.Command[S, E]) {
	i.t.Helper()
	i.sent++
	id := events.CommandID("c" + string(rune('a'+i.sent)))
	if _, err := commands.Execute(i.t.Context(), i.people, commands.Origin{Account: acme, Actor: events.Actor{Account: acme, User: "ann"},
		Command: events.CommandRef{ID: id, Digest: events.DigestOf([]byte(id))}}, "event", c); err != nil {
		i.t.Fatal(err)
	}
}

func (i *installation) declare(id events.EnvironmentID, until time.Time) {
	i.t.Helper()
	command(i, name.Claim{Region: "sydney", Name: string(id), Owner: string(id), Until: time.Now().Add(time.Hour)})
	command(i, environment.Declare{Ref: environment.Ref{Region: "sydney", Environment: id}, EnvironmentDeclared: events.EnvironmentDeclared{
		Name: string(id), Operation: events.OperationID("op-" + id), Graph: events.DigestOf([]byte(id)), Until: until}})
}

// ordered waits for the order to receive the environment's disks.
func (i *installation) ordered(id events.EnvironmentID) work.Ref {
	i.t.Helper()
	r := await(i, func(_ events.Record, e events.WorkOrdered) bool { return e.Order.Environment == id })
	return work.Ref{Region: r.Aggregate.Region, Work: events.WorkID(r.Aggregate.ID)}
}

func (i *installation) perform(ref work.Ref) {
	i.t.Helper()
	command(i, work.Start{Ref: ref, Epoch: 1})
	command(i, work.ReportDone{Ref: ref, Epoch: 1})
}

func (i *installation) finished(op events.OperationID, want events.Outcome) {
	i.t.Helper()
	r := await(i, func(r events.Record, _ events.OperationFinished) bool { return r.Aggregate.ID == string(op) })
	if got := r.Event.(events.OperationFinished).Outcome; got != want {
		i.t.Errorf("%s ended %q; want %q", op, got, want)
	}
}

func (i *installation) parked() []Parked {
	i.t.Helper()
	out, err := i.runner.Parked()
	if err != nil {
		i.t.Fatal(err)
	}
	return out
}

func TestTheRunnerGoesOnWhereItWas(t *testing.T) {
	i := install(t)
	i.start()
	i.declare("e1", time.Time{})
	ref := i.ordered("e1")
	i.stop()

	i.perform(ref) // while nobody follows
	i.declare("e2", time.Time{})

	i.start()
	i.finished("op-e1", events.Succeeded)
	i.perform(i.ordered("e2"))
	i.finished("op-e2", events.Succeeded)
	i.stop()
	before, _ := i.journal.Tip(t.Context())

	i.start()
	i.declare("e3", time.Time{})
	i.perform(i.ordered("e3"))
	i.finished("op-e3", events.Succeeded)
	i.stop()
	seen := map[string]bool{}
	await(i, func(r events.Record, e events.Event) bool {
		if o, ok := e.(events.WorkOrdered); ok && seen[string(o.Order.Environment)] {
			t.Errorf("%s was ordered twice", o.Order.Environment)
		} else if ok {
			seen[string(o.Order.Environment)] = true
		}
		return r.Sequence >= before
	})
}

func TestAnEventThatCannotBeHandledNowComesAgain(t *testing.T) {
	i := install(t)
	i.faulty.at = func(n int) bool { return n == 1 || n == 3 } // stored, and the answer lost
	i.start()
	i.declare("e1", time.Time{})
	i.perform(i.ordered("e1"))
	i.finished("op-e1", events.Succeeded)
	i.stop()
}

func TestARunnerThatCannotFollowSaysSo(t *testing.T) {
	i := install(t)
	i.declare("e1", time.Time{})
	i.declare("e2", time.Time{})
	i.journal.Remove(1)
	i.start()
	if err := <-i.done; !errors.Is(err, journal.ErrGap) {
		t.Errorf("the runner ended with %v", err)
	}
	if err := i.store.Close(); err != nil {
		t.Error(err)
	}
}

func TestWhatFailsIsParkedAloneAndComesBack(t *testing.T) {
	i := install(t)
	var broken atomic.Bool
	broken.Store(true)
	i.table = []Definition{breaking(define[environments]("environments", environmentKeys), func(r events.Record) bool {
		_, mapped := r.Event.(events.EnvironmentMapped)
		return mapped && r.Aggregate.ID != "fine" && broken.Load()
	})}
	i.start()
	defer i.stop()
	i.declare("e1", time.Time{})
	i.declare("e2", time.Time{})
	i.declare("fine", time.Time{})
	// The row broke after it had sent its order, and does not know of it.
	i.perform(i.ordered("e1"))
	i.perform(i.ordered("fine"))
	i.finished("op-fine", events.Succeeded)

	parked := i.parked()
	if len(parked) != 2 || parked[0].Key != "e1" || parked[1].Key != "e2" || parked[0].Process != "environments" || parked[0].Cause.Code != "handler-failed" {
		t.Fatalf("%+v", parked)
	}
	if err := i.runner.Retry(t.Context(), "environments", "e1"); err != nil {
		t.Fatal(err)
	}
	if again := i.parked(); len(again) != 2 || again[0].Sequences[0] != parked[0].Sequences[0] {
		t.Fatalf("it cannot have worked: %+v", again)
	}
	broken.Store(false)
	if err := i.runner.Retry(t.Context(), "environments", "e1"); err != nil {
		t.Fatal(err)
	}
	i.finished("op-e1", events.Succeeded)

	// Skipped, the event that it broke at has not happened for the row.
	if err := i.runner.Skip(t.Context(), "environments", "e2"); err != nil {
		t.Fatal(err)
	}
	if left := i.parked(); len(left) != 0 {
		t.Fatalf("%+v", left)
	}
	command(i, environment.Delete{Ref: environment.Ref{Region: "sydney", Environment: "e2"}, Operation: "op-delete"})
	i.finished("op-delete", events.Succeeded)

	refused := func(err error, code string) {
		t.Helper()
		if r, ok := aggregates.AsRefusal(err); !ok || r.Code != code {
			t.Errorf("%v; want %s", err, code)
		}
	}
	refused(i.runner.Retry(t.Context(), "environments", "e1"), "not-parked")
	refused(i.runner.Skip(t.Context(), "environments", "nobody"), "not-parked")
	refused(i.runner.Retry(t.Context(), "nothing", "e1"), "handler-unknown")
	refused(i.runner.Skip(t.Context(), "nothing", "e1"), "handler-unknown")
}

func TestWhatIsParkedStaysSoOverARestart(t *testing.T) {
	i := install(t)
	var broken atomic.Bool
	broken.Store(true)
	i.table = []Definition{breaking(define[environments]("environments", environmentKeys), func(r events.Record) bool {
		_, mapped := r.Event.(events.EnvironmentMapped)
		return mapped && r.Aggregate.ID == "e1" && broken.Load()
	})}
	i.start()
	i.declare("e1", time.Time{})
	i.declare("e2", time.Time{})
	i.perform(i.ordered("e2"))
	i.finished("op-e2", events.Succeeded)
	i.stop()
	i.perform(i.ordered("e1"))
	broken.Store(false)
	i.start()
	defer i.stop()
	if parked := i.parked(); len(parked) != 1 {
		t.Fatalf("%+v", parked)
	}
	if err := i.runner.Retry(t.Context(), "environments", "e1"); err != nil {
		t.Fatal(err)
	}
	i.finished("op-e1", events.Succeeded)
}

func TestDeadlinesAreEndedAtEveryTick(t *testing.T) {
	i := install(t)
	until := time.Now().Add(time.Hour)
	i.declare("e1", until)
	i.declare("e2", until)
	late := func() time.Time { return until }
	list := &dueList{list: []Due{UploadDue(acme, "sydney", "nobody", until), UploadDue(acme, "sydney", "e1", until)}}
	ticks := make(chan time.Time)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	early := &Deadlines{Executor: i.people, List: &dueList{list: []Due{UploadDue(acme, "sydney", "e2", until)}}, Log: quiet}
	if err := early.Tick(ctx, time.Now()); err != nil { // it is listed, and not due by the aggregate's clock
		t.Fatal(err)
	}
	go func() {
		done <- (&Deadlines{Executor: commands.NewExecutor(i.journal, late), List: list, Log: quiet}).Run(ctx, ticks)
	}()
	list.fails.Store(true)
	ticks <- until // the list cannot be read; the next tick tries again
	ticks <- until
	list.fails.Store(false)
	ticks <- until
	r := await(i, func(events.Record, events.EnvironmentFailed) bool { return true })
	if r.Aggregate.ID != "e1" || r.Event.(events.EnvironmentFailed).Cause.Code != "upload-expired" {
		t.Errorf("%s: %+v", r.Aggregate, r.Event)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type dueList struct {
	list  []Due
	fails atomic.Bool
}

func (d *dueList) Due(context.Context, time.Time) ([]Due, error) {
	if d.fails.Load() {
		return nil, errors.New("not now")
	}
	return d.list, nil
}

// breaking makes a process whose rows break after they have sent what they send
// for certain events.
func breaking(d Definition, at func(events.Record) bool) Definition {
	decode := d.decode
	d.decode = func(stored []byte) (Row, error) {
		row, err := decode(stored)
		return &breakingRow{row, at}, err
	}
	return d
}

type breakingRow struct {
	Row
	at func(events.Record) bool
}

func (b *breakingRow) React(r events.Record) []Send {
	out := b.Row.React(r)
	if b.at(r) {
		out = append(out, Send{Step: "break", execute: func(context.Context, *commands.Executor, commands.Origin) (commands.Outcome, error) {
			panic("broken")
		}})
	}
	return out
}

func (b *breakingRow) MarshalJSON() ([]byte, error) { return json.Marshal(b.Row) }
