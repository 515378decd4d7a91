package testenv

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/testenv/faults"
)

// TestFailureMatrixOfMachines: capability 100, for what runs: a machine is
// started, its edge is set, it is suspended and goes on, is saved with its memory
// while it runs, goes on in another region from there, is powered off, booted and
// deleted. In each of these phases the steps that have to do with it end their
// process once, as in TestFailureMatrix; the machines and the networks have processes of their own,
// which must outlive that. In the end the guest is the one that was started, in
// what state it should be, and nothing is left on any host.
func TestFailureMatrixOfMachines(t *testing.T) {
	t.Parallel()
	kind := ending{t.TempDir()}
	w := New(t, Emulated{Kind: kind}, Options{Regions: []string{"beijing", "sydney"}, Timeout: 10 * time.Minute})
	m := &matrix{World: w, t: t, kind: kind, processes: append(w.Regions(), "server"), start: time.Now()}
	stop := w.Supervise()
	defer stop()
	w.BoundPools()
	here, there := w.Region("beijing"), w.Region("sydney")

	m.armFor("start", "host.", "command.report-", "append.environment.", "append.work.")
	env, err := w.createFrom(w.Context(), "beijing", w.oneMachine("shop", mib), bootDisk(t, 1, mib))
	if err != nil {
		t.Fatal(err)
	}
	m.rest()
	m.runs(env, "web", here)
	m.mark(env, here, 'x')

	m.armFor("edge", "host.", "command.report-", "append.environment.", "append.work.")
	m.edge(env)
	m.rest()
	m.marked(env, here, 'x')

	m.armFor("suspend", "host.", "command.report-", "append.environment.", "append.work.", "store.", "session.")
	w.Done(w.Power(env, "suspended"))
	m.rest()
	w.Seen(env, "web", "suspended")
	m.guests(here, 0)

	m.armFor("resume", "host.", "command.report-", "append.environment.", "append.work.", "store.")
	w.Done(w.Power(env, "running"))
	m.rest()
	m.marked(env, here, 'x')

	m.armFor("save", "host.", "store.Publish", "session.Attach", "command.report-done")
	saved := m.must("POST", "/v1/templates", map[string]any{"environment": env, "name": "Shop", "regions": []string{"beijing", "sydney"}, "memory": true})
	w.Done(saved.Operation)
	m.rest()
	m.marked(env, here, 'x')

	m.armFor("instantiate", "host.", "store.Publish", "command.")
	clone := m.instantiate(saved.ID, "clone")
	m.rest()
	m.marked(clone, there, 'x')
	m.marked(env, here, 'x')

	m.interrupted(env, here)
	m.marked(env, here, 'x')

	m.armFor("off", "host.", "command.report-", "append.environment.", "append.work.")
	w.Done(w.Power(env, "powered-off"))
	m.rest()
	w.Seen(env, "web", "powered-off")
	m.guests(here, 0)

	m.arm("", "boot")
	w.Done(w.Power(env, "running"))
	m.marked(env, here, '-')

	m.armFor("delete", "host.", "command.")
	for _, path := range []string{"/v1/templates/" + saved.ID, "/v1/environments/" + env, "/v1/environments/" + clone} {
		w.Done(m.must("DELETE", path, struct{}{}).Operation)
	}
	m.rest()
	m.covered(append(ofMachines(), "host."+string(region.ApplyNetwork), "host."+string(region.RemoveNetwork), "command.report-machines"))
	m.arm("", "the end")
	m.rest()
	for _, a := range []*Agent{here, there} {
		m.leases(a.Region, 0, 0)
		m.guests(a, 0)
		a.Left(t, env)
		a.Left(t, clone)
	}
	m.once()
}

// interrupted asks a region's agent to end, which suspends its machines, until it
// has: it is ended at each step of that, and started again each time.
func (m *matrix) interrupted(env string, a *Agent) {
	m.t.Helper()
	m.armFor("rest", "host.", "store.", "session.")
	for ended := false; !ended; {
		p := a.process()
		p.Interrupt()
		ended = p.Exit(m.Context()) == 0
		// It may have been suspended, or only have stood still, or neither.
		m.insist("the machine runs again", func() error {
			var host struct{ Running []machines.Status }
			if err := a.Client().Once(m.Context(), "GET", "/v1/regions/"+a.Region+"/host", nil, &host); err != nil {
				return err
			}
			seen := m.environment(env).machine("web").Observed
			if len(host.Running) != 1 || host.Running[0].State != machines.Running || seen != "running" {
				return fmt.Errorf("it is seen %s: %s", seen, JSON(host))
			}
			return nil
		})
		m.rest()
	}
	spent, err := m.kind.dir(a.Region).Spent()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, change := range []string{"host." + string(region.PauseMachines), "store.Publish", "host." + string(region.KillMachine)} {
		for _, step := range []string{faults.Before(change), faults.After(change)} {
			if !slices.Contains(spent, "rest/"+step) {
				m.t.Errorf("no end of an agent has ended at %s", step)
			}
		}
	}
}

// armFor is arm for a phase whose other steps end processes in TestFailureMatrix:
// here only those whose changes begin so.
func (m *matrix) armFor(phase string, begin ...string) {
	m.t.Helper()
	for _, change := range changes(m.t) {
		if slices.ContainsFunc(begin, func(b string) bool { return strings.HasPrefix(change, b) }) {
			continue
		}
		for _, p := range m.processes {
			for _, step := range []string{faults.Before(change), faults.After(change)} {
				if err := m.kind.dir(p).Spend(phase, step); err != nil {
					m.t.Fatal(err)
				}
			}
		}
	}
	m.arm(phase, phase)
}

// guests demands that the region's host has so many machines' processes.
func (m *matrix) guests(a *Agent, want int) {
	m.t.Helper()
	if got, _ := a.Processes(m.t); len(got) != want {
		m.t.Errorf("%s, after %s: %d machines' processes, want %d", a.Region, m.scene, len(got), want)
	}
}

// runs demands that a machine runs, once.
func (m *matrix) runs(env, machine string, a *Agent) {
	m.t.Helper()
	m.Seen(env, machine, "running")
	m.guests(a, 1)
}

// mark gives the guest a mark, which it keeps in its memory alone.
func (m *matrix) mark(env string, a *Agent, mark byte) {
	m.t.Helper()
	if got := a.Console(m.t, env, "web").Ask("m" + string(mark)); got.Mark != mark {
		m.t.Fatalf("the guest has the mark %q, want %q", got.Mark, mark)
	}
}

// marked demands that the machine runs, and that it is the one that has this mark.
func (m *matrix) marked(env string, a *Agent, mark byte) {
	m.t.Helper()
	m.runs(env, "web", a)
	if got := a.Console(m.t, env, "web").Ask("c"); got.Mark != mark {
		m.t.Errorf("%s, after %s: the guest has the mark %q, want %q", a.Region, m.scene, got.Mark, mark)
	}
}

// edge sets the environment's edge.
func (m *matrix) edge(env string) {
	m.t.Helper()
	m.Done(m.must("PUT", "/v1/environments/"+env+"/edge", map[string]any{
		"open": []any{map[string]any{"resource": "web.public", "ports": []string{"tcp/80"}}}}).Operation)
}
