package processes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/projections"
)

const acme = events.AccountID("acme")

// world is one installation without its regions: the journal, and the process
// managers stepped by hand, so that a test is at rest when nothing more happens.
// The test plays people and agents.
type world struct {
	t        testing.TB
	now      time.Time
	journal  *journal.Memory
	killer   *killer
	people   *commands.Executor
	managers []*manager
	cursors  []uint64 // what each manager was given last
	schedule schedule
	records  []events.Record
	commands int

	resources map[events.EnvironmentID][]events.ResourceRef
	names     map[string]string // what ids are called in stories
	works     map[string]events.Aggregate
	orders    map[events.Aggregate]*order
	dues      []Due
	free      bool // which events come depends on who is faster; what holds at rest must hold
}

// order is a work order as its agent sees it.
type order struct {
	events.WorkOrdered
	open, undo, broken bool // broken: failed, or its undo stuck
}

// schedule says in which order the managers get to work.
type schedule int

const (
	takingTurns schedule = iota // one event each
	oneByOne                    // each as far as it gets
	lastFirst                   // each as far as it gets, in the reverse order
	schedules
)

// killer is the journal as the managers have it: it can kill them after an append.
type killer struct {
	journal.Journal
	appended int
	at       func(n int) bool // after which append of theirs
}

var errKilled = errors.New("killed")

func (k *killer) Append(ctx context.Context, p journal.Proposal) (events.Record, error) {
	r, err := k.Journal.Append(ctx, p)
	if err != nil {
		return r, err
	}
	if k.appended++; k.at != nil && k.at(k.appended) {
		return events.Record{}, errKilled
	}
	return r, nil
}

// newWorld makes a world whose managers' rows are in the store under a name of
// this run's own.
func newWorld(t testing.TB, store *projections.Store, run string) *world {
	w := &world{t: t, now: time.Date(2014, 1, 15, 14, 0, 0, 0, time.UTC),
		resources: map[events.EnvironmentID][]events.ResourceRef{}, names: map[string]string{}, works: map[string]events.Aggregate{}, orders: map[events.Aggregate]*order{}}
	w.journal = journal.NewMemory(events.NewRegistry(), w.clock)
	w.people = commands.NewExecutor(w.journal, w.clock)
	w.killer = &killer{Journal: w.journal}
	w.managers = w.newManagers(w.killer, store, run)
	w.cursors = make([]uint64, len(w.managers))
	return w
}

func (w *world) clock() time.Time { return w.now }

func (w *world) newManagers(j journal.Journal, store *projections.Store, run string) []*manager {
	w.t.Helper()
	var out []*manager
	x := commands.NewExecutor(j, w.clock)
	for _, d := range All() {
		d.Name += "-" + run
		m, err := newManager(d, j, x, store, slog.New(slog.DiscardHandler))
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func openStore(t testing.TB) *projections.Store {
	t.Helper()
	store, err := projections.Open(t.TempDir(), projections.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

var errTip = errors.New("the end")

// read brings records up to the journal's tip.
func (w *world) read() {
	w.t.Helper()
	tip, err := w.journal.Tip(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	have := uint64(len(w.records))
	if have == tip {
		return
	}
	err = w.journal.Follow(w.t.Context(), have, func(r events.Record) error {
		w.records = append(w.records, r)
		w.note(r)
		if r.Sequence == tip {
			return errTip
		}
		return nil
	})
	if !errors.Is(err, errTip) {
		w.t.Fatal(err)
	}
}

// settle steps the managers until nothing more happens.
func (w *world) settle() {
	w.t.Helper()
	order := make([]int, len(w.managers))
	for i := range order {
		order[i] = i
	}
	if w.schedule == lastFirst {
		slices.Reverse(order)
	}
	for {
		w.read()
		rest := true
		for _, i := range order {
			for w.cursors[i] < uint64(len(w.records)) {
				rest = false
				w.step(i)
				w.read()
				if w.schedule == takingTurns {
					break
				}
			}
		}
		if rest {
			return
		}
		if len(w.records) > 5000 {
			w.t.Fatal("it does not come to rest")
		}
	}
}

// step gives one manager its next event. A manager that is killed loses what it
// has in memory, with all the others, and goes on from what is stored.
func (w *world) step(i int) {
	w.t.Helper()
	m := w.managers[i]
	err := m.handle(w.t.Context(), w.records[w.cursors[i]])
	switch {
	case errors.Is(err, errKilled):
		x := commands.NewExecutor(w.killer, w.clock)
		for i, m := range w.managers {
			m.executor, m.seen, m.passed = x, 0, 0
			w.cursors[i] = m.store.Position()
		}
	case err != nil:
		w.t.Fatalf("%s: %v", m.Name, err)
	default:
		w.cursors[i]++
	}
}

// note keeps what agents and stories need to know.
func (w *world) note(r events.Record) {
	a := r.Aggregate
	switch e := r.Event.(type) {
	case events.EnvironmentDeclared:
		w.resources[events.EnvironmentID(a.ID)] = e.Resources
	case events.CopyWanted:
		w.names[a.ID] = fmt.Sprintf("%s@%d", e.Template, e.Version)
	case events.WorkOrdered:
		o := e.Order
		called := fmt.Sprintf("%s %s@%d", e.Kind, o.Template, o.Version)
		if o.Template == "" || e.Kind == events.WorkClone {
			called = fmt.Sprintf("%s %s", e.Kind, o.Environment)
		}
		w.names[a.ID] = called
		w.works[called+" "+string(a.Region)] = a
		w.orders[a] = &order{WorkOrdered: e, open: true}
	case events.WorkDone, events.WorkUndone, events.WorkWrittenOff:
		w.orders[a].open, w.orders[a].broken = false, false
	case events.WorkFailed, events.WorkStuck:
		w.orders[a].open, w.orders[a].broken = false, true
	case events.WorkUndoOrdered:
		w.orders[a].open, w.orders[a].undo, w.orders[a].broken = true, true, false
	case events.WorkRetried:
		w.orders[a].open, w.orders[a].broken = true, false
	}
}

// do executes a command of a person or an agent; w answers with the refusal.
func do[S aggregates.State[S, E], E events.Event](w *world, account events.AccountID, c aggregates.Command[S, E]) string {
	w.t.Helper()
	w.commands++
	id := events.CommandID(fmt.Sprintf("c%d", w.commands))
	out, err := commands.Execute(w.t.Context(), w.people, commands.Origin{Account: account, Actor: events.Actor{Account: account, User: "ann"},
		Command: events.CommandRef{ID: id, Digest: events.DigestOf([]byte(id))}}, "event", c)
	if r, ok := aggregates.AsRefusal(err); ok {
		return "refused: " + r.Error() + "\n"
	}
	if err != nil {
		w.t.Fatal(err)
	}
	if out.Event == "" {
		return "nothing to do: " + out.Because + "\n"
	}
	return ""
}

// agents performs the open work of the regions until there is none.
func (w *world) agents(regions []string) string {
	var said strings.Builder
	for {
		w.settle()
		a, o := w.nextOrder(regions)
		if o == nil {
			return said.String()
		}
		said.WriteString(w.report(a, "start", ""))
		what := "done"
		if o.undo {
			what = "undone"
		}
		said.WriteString(w.report(a, what, ""))
	}
}

func (w *world) nextOrder(regions []string) (events.Aggregate, *order) {
	for _, r := range w.records {
		a := r.Aggregate
		if o := w.orders[a]; o != nil && o.open && (len(regions) == 0 || slices.Contains(regions, string(a.Region))) {
			return a, o
		}
	}
	return events.Aggregate{}, nil
}

// report is the agent of epoch 1 saying something of an order.
func (w *world) report(a events.Aggregate, what, code string) string {
	ref := work.Ref{Region: a.Region, Work: events.WorkID(a.ID)}
	o := w.orders[a]
	cause := events.Cause{Code: code, Text: "as the story has it"}
	switch what {
	case "start":
		return do(w, acme, work.Start{Ref: ref, Epoch: 1})
	case "done":
		return do(w, acme, work.ReportDone{Ref: ref, Epoch: 1, Result: w.result(a, o)})
	case "fail":
		return do(w, acme, work.ReportFailed{Ref: ref, Epoch: 1, Cause: cause})
	case "undone":
		return do(w, acme, work.ReportUndone{Ref: ref, Epoch: 1})
	case "stuck":
		return do(w, acme, work.ReportStuck{Ref: ref, Epoch: 1, Cause: cause})
	case "reopen":
		return do(w, acme, work.Retry{Ref: ref})
	case "write-off":
		return do(w, acme, work.WriteOff{Ref: ref, Why: cause})
	}
	w.t.Fatalf("an agent cannot %s", what)
	return ""
}

func (w *world) result(a events.Aggregate, o *order) events.Result {
	switch o.Kind {
	case events.WorkSave:
		return events.Result{Manifest: events.DigestOf(fmt.Appendf(nil, "%s@%d", o.Order.Template, o.Order.Version)), Bytes: 1 << 30,
			Resources: w.resources[o.Order.Environment]}
	case events.WorkCopy:
		return events.Result{Manifest: o.Order.Manifest, Received: 1 << 20, Location: fmt.Sprintf("%s@%d", o.Order.Template, o.Order.Version)}
	case events.WorkReceive, events.WorkClone:
		return events.Result{Graph: o.Order.Graph}
	}
	return events.Result{}
}

// summary is what must be the same however the managers were scheduled and
// killed: which aggregate has which events.
func (w *world) summary() []string {
	var out []string
	for _, r := range w.records {
		out = append(out, w.line(r))
	}
	slices.Sort(out)
	return out
}

// check is what holds whenever the world is at rest.
func (w *world) check() {
	w.t.Helper()
	pools := map[events.Aggregate]pool.State{}
	alive := map[string]bool{} // instances and environments that may hold leases
	said := map[events.Aggregate]events.Outcome{}
	for _, r := range w.records {
		switch e := r.Event.(type) {
		case events.PoolEvent:
			pools[r.Aggregate] = pools[r.Aggregate].Fold(e)
		case events.CopyWanted, events.EnvironmentDeclared:
			alive[r.Aggregate.ID] = true
		case events.CopyRemoved, events.EnvironmentDeleted, events.EnvironmentFailed:
			alive[r.Aggregate.ID] = false
		case events.RetryAsked:
			delete(said, r.Aggregate)
		case events.OperationFinished:
			if said[r.Aggregate] == e.Outcome {
				w.t.Errorf("%s has ended twice: %s", r.Aggregate.ID, e.Outcome)
			}
			said[r.Aggregate] = e.Outcome
		}
		if op, ok := ownOperation(r); ok && r.Correlation != string(op) {
			w.t.Errorf("%s %s is recorded as %q's, not as its own operation's", r.Event.EventType(), op, r.Correlation)
		}
	}
	for a, s := range pools {
		if s.Free()+s.Reserved()+s.Bound() != s.Size() {
			w.t.Errorf("%s: %d free + %d reserved + %d bound is not %d", a, s.Free(), s.Reserved(), s.Bound(), s.Size())
		}
		for id, ok := range alive {
			for _, o := range []events.Owner{{Account: acme, Instance: events.InstanceID(id)}, {Account: acme, Environment: events.EnvironmentID(id)}} {
				if held := s.Leases(o); !ok && len(held) > 0 {
					w.t.Errorf("%s: %s is gone and holds %v", a, w.called(id), held)
				}
			}
		}
	}
	w.checkMaps(pools)
	for _, m := range w.managers {
		parked, err := m.list()
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range parked {
			w.t.Errorf("parked: %s %s: %s", p.Process, p.Key, p.Cause.Text)
		}
	}
}

// checkMaps: what an instance that is there says of its addresses is what its
// pools say; no two instances that are there have the same one, but for a newer
// version that is still to inherit it.
func (w *world) checkMaps(pools map[events.Aggregate]pool.State) {
	w.t.Helper()
	last := map[events.Aggregate][]events.Substitution{}
	for _, r := range w.records {
		switch e := r.Event.(type) {
		case events.CopyWanted, events.RemovalWanted:
			delete(last, r.Aggregate)
		case events.ResourcesMapped:
			last[r.Aggregate] = e.Map
		}
	}
	active := map[events.TemplateID]int{}
	for _, r := range w.records {
		if e, ok := r.Event.(events.VersionActivated); ok {
			active[events.TemplateID(r.Aggregate.ID)] = e.Version
		}
	}
	for a, subs := range last {
		current := false
		for t, v := range active {
			current = current || string(instance.ID(acme, t, v, a.Region)) == a.ID
		}
		for _, s := range subs {
			if s.Lease == "" {
				continue
			}
			held := pools[pool.Of(a.Region, events.PoolID(s.Type))].Leases(events.Owner{Account: acme, Instance: events.InstanceID(a.ID)})
			i := slices.IndexFunc(held, func(h pool.Held) bool { return h.Resource == s.Resource })
			switch {
			case i < 0 && current:
				w.t.Errorf("%s in %s is active, maps %s to %s and has no lease of it", w.called(a.ID), a.Region, s.Resource, s.To)
			case i >= 0 && held[i].Value != s.To:
				w.t.Errorf("%s in %s maps %s to %s and holds %s", w.called(a.ID), a.Region, s.Resource, s.To, held[i].Value)
			case i >= 0 && current && string(held[i].Instance) != a.ID:
				w.t.Errorf("%s in %s is active and has not inherited %s", w.called(a.ID), a.Region, s.To)
			}
		}
	}
}

// ownOperation is the operation that an event of the control plane's is of,
// whichever operation led to it.
func ownOperation(r events.Record) (events.OperationID, bool) {
	if r.Actor != controlPlane {
		return "", false
	}
	switch e := r.Event.(type) {
	case events.ReplacementStaged:
		return e.Operation, true
	case events.OperationFinished:
		return events.OperationID(r.Aggregate.ID), true
	case events.VersionAbandoned:
		return e.Operation, e.Cause.Code == "deadline-passed"
	}
	return "", false
}

// replayed hands all events to managers that have lost their rows, and says what
// they added to the journal.
func (w *world) replayed(store *projections.Store, of string) []string {
	w.t.Helper()
	before := len(w.records)
	w.managers = w.newManagers(w.journal, store, of+"-again")
	names := All()
	for i, m := range w.managers {
		m.Name = names[i].Name + "-" + of // so that what it sends has the ids that it had
	}
	w.cursors = make([]uint64, len(w.managers))
	w.settle()
	var out []string
	for _, r := range w.records[before:] {
		out = append(out, w.line(r))
	}
	return out
}

func (w *world) called(id string) string {
	if n := w.names[id]; n != "" {
		return n
	}
	return id
}

func keysOf[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
