package processes

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/tombolo-vdc/tombolo/events"
)

// TestAtRest plays stories that nobody thought of: people and agents do what
// comes to their mind, the managers are scheduled and killed at random. When all
// regions have answered at last, nothing may be left under way: every operation
// has ended, every deletion is complete, and what holds at rest holds.
func TestAtRest(t *testing.T) {
	store := openStore(t)
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			w := newWorld(t, store, fmt.Sprint(seed))
			w.schedule = schedule(r.IntN(int(schedules)))
			w.killer.at = func(int) bool { return r.IntN(8) == 0 }
			var told []string
			defer func() {
				if t.Failed() {
					for _, line := range told {
						t.Log(line)
					}
				}
			}()
			play := func(line string) {
				told = append(told, line)
				cmd, args, err := datadriven.ParseLine(line)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range splitLines(w.tell(t, &datadriven.TestData{Cmd: cmd, CmdArgs: args})) {
					told = append(told, "  "+s)
				}
			}
			for _, line := range []string{
				"pool a public-address 192.0.2.0/29", "pool b public-address 192.0.2.8/29",
				"environment e1 a op=op-e1 resources=(web:public-address) networks=1 machines=2", "environment e2 b op=op-e2 resources=(web:public-address, api:public-address)", "agents",
			} {
				play(line)
			}
			for n := range 25 {
				play(anything(r, n, w))
			}
			// Everything is declared, everybody answers, and what failed is tried again.
			for _, region := range []string{"a", "b", "c", "d"} {
				play(fmt.Sprintf("pool %s public-address 198.51.100.%d/27", region, 32*int(region[0]-'a')))
			}
			for range 3 {
				play("agents")
				for name, a := range w.works { // an operator sees to what takes something away and does not work
					if o := w.orders[a]; o.broken && (o.undo || o.Kind == events.WorkRemove || o.Kind == events.WorkDiscard) {
						play("reopen " + name)
					}
				}
				for op, outcome := range w.operations() {
					if outcome == "" || outcome == events.Partly || outcome == events.LeftBehind {
						play("retry " + string(op))
					}
				}
			}
			play("agents")
			w.check()
			for op, outcome := range w.operations() {
				if outcome == "" || outcome == events.Partly {
					t.Errorf("%s has not ended: %q", op, outcome)
				}
			}
			for a, end := range w.ends() {
				switch end.(type) {
				case events.TemplateDeletionAccepted, events.EnvironmentDeletionAccepted, events.RemovalWanted, events.CopyFailed, events.CopyWaiting:
					t.Errorf("%s %s ends with %s", a.Kind, w.called(a.ID), end.EventType())
				}
			}
		})
	}
}

// anything is a line that makes sense now and then.
func anything(r *rand.Rand, n int, w *world) string {
	region := func() string { return string("abcd"[r.IntN(4)]) }
	template := func() string { return fmt.Sprintf("1000000%d", r.IntN(2)) }
	from := func() string { return []string{"from=e1 in=a", "from=e2 in=b"}[r.IntN(2)] }
	op := fmt.Sprintf("op%d", n)
	somebodys := func() string { return fmt.Sprintf("op%d", r.IntN(n+1)) }
	some := func(verbs ...string) string {
		works := keysOf(w.works)
		if len(works) == 0 {
			return "agents"
		}
		name := works[r.IntN(len(works))]
		verb := verbs[r.IntN(len(verbs))]
		if o := w.orders[w.works[name]]; o.undo && verb != "reopen" {
			verb = []string{"undone", "stuck"}[r.IntN(2)]
		}
		return fmt.Sprintf("%s %s code=why", verb, name)
	}
	switch r.IntN(23) {
	case 0, 1, 2:
		return fmt.Sprintf("create %s name%d op=%s %s keep=%d regions=(%s, %s)", template(), r.IntN(2), op, from(), r.IntN(3), region(), region())
	case 3, 4:
		return fmt.Sprintf("replace %s op=%s %s policy=%s n=1", template(), op, from(), []string{"all", "available", "quorum"}[r.IntN(3)])
	case 5:
		return fmt.Sprintf("rollback %s %d op=%s", template(), 1+r.IntN(3), op)
	case 6:
		return fmt.Sprintf("regions %s op=%s add=(%s)", template(), op, region())
	case 7:
		return fmt.Sprintf("regions %s op=%s remove=(%s)", template(), op, region())
	case 8:
		return fmt.Sprintf("cancel %s", somebodys())
	case 9:
		return fmt.Sprintf("retry %s", somebodys())
	case 10:
		return fmt.Sprintf("instantiate i%d %s %s@%d op=%s copy", n, region(), template(), 1+r.IntN(2), op)
	case 11:
		if r.IntN(3) == 0 {
			return fmt.Sprintf("delete %s op=%s", template(), op)
		}
		return fmt.Sprintf("discard %s%d %s op=%s", []string{"i", "n"}[r.IntN(2)], r.IntN(n+1), region(), op)
	case 16:
		return fmt.Sprintf("power e1 a %s op=%s machines=(vm%d)", []string{"running", "suspended", "stopped"}[r.IntN(3)], op, r.IntN(2))
	case 17:
		return fmt.Sprintf("see e1 a vm%d %s code=crashed restart op=%s", r.IntN(2), []string{"failed", "running"}[r.IntN(2)], op)
	case 18:
		return fmt.Sprintf("edge e1 a op=%s from=(net%d)", op, n)
	case 19:
		return fmt.Sprintf("environment n%d %s op=%s networks=1 machines=1", n, region(), op)
	case 15:
		return fmt.Sprintf("keep %s %d", template(), r.IntN(3))
	case 12, 13, 14:
		return some("done", "done", "fail", "start", "reopen")
	default:
		return "agents " + region() + " " + region()
	}
}

// operations tells how each operation ended that something was done for.
func (w *world) operations() map[events.OperationID]events.Outcome {
	out := map[events.OperationID]events.Outcome{}
	begun := func(op events.OperationID) {
		if _, known := out[op]; !known {
			out[op] = ""
		}
	}
	for _, r := range w.records {
		switch e := r.Event.(type) {
		case events.TemplateCreated:
			begun(e.Operation)
		case events.ReplacementStaged:
			begun(e.Operation)
		case events.ReplacementQueued:
			begun(e.Operation)
		case events.VersionActivated:
			begun(e.Operation)
		case events.RegionsChanged:
			begun(e.Operation)
		case events.TemplateDeletionAccepted:
			begun(e.Operation)
		case events.EnvironmentDeclared:
			begun(e.Operation)
		case events.PowerSet:
			begun(e.Operation)
		case events.EdgeSet:
			begun(e.Operation)
		case events.MachinesObserved:
			if e.Operation != "" {
				begun(e.Operation)
			}
		case events.EnvironmentDeletionAccepted:
			begun(e.Operation)
		case events.RetryAsked:
			if _, known := out[events.OperationID(r.Aggregate.ID)]; known {
				out[events.OperationID(r.Aggregate.ID)] = ""
			}
		case events.OperationFinished:
			out[events.OperationID(r.Aggregate.ID)] = e.Outcome
		}
	}
	return out
}

// ends gives each aggregate's last event.
func (w *world) ends() map[events.Aggregate]events.Event {
	out := map[events.Aggregate]events.Event{}
	for _, r := range w.records {
		out[r.Aggregate] = r.Event
	}
	return out
}

func splitLines(s string) (out []string) {
	for line := range strings.Lines(s) {
		out = append(out, strings.TrimSuffix(line, "\n"))
	}
	return out
}
