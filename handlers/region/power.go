package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

const (
	// stopPatience is how long a guest may take to shut down where nobody says otherwise.
	stopPatience = 90 * time.Second
	// switchPatience bounds what must not stop in the middle: machines that stand
	// still are let go on, or away, though the order is cancelled.
	switchPatience = 30 * time.Second
)

// powering is one order that brings machines to a power state.
type powering struct {
	*job
	env   events.EnvironmentID
	graph graph.Graph
	net   graph.Networking
}

// power brings the machines to the states asked for: in the order of what they
// depend on, or its reverse where they are ended. What can be done is done; the
// machines that failed are named.
func (j *job) power(ctx context.Context) (events.Result, error) {
	env := j.Order.Environment
	g, err := j.content()
	if err != nil {
		return events.Result{}, err
	}
	p := &powering{job: j, env: env, graph: g}
	if p.net, err = networkingOf(g); err != nil {
		return events.Result{}, err
	}
	wanted, err := p.wanted(ctx)
	if err != nil {
		return events.Result{}, err
	}
	byState := map[graph.Power][]graph.Node{}
	var ids []machines.ID
	for _, n := range machineNodes(g) {
		if state, ok := wanted[n.ID]; ok {
			byState[state] = append(byState[state], n)
			ids = append(ids, machineID(env, n.ID))
		}
	}
	// Of a try that was killed: what it had stored is in use by now, or is stored again.
	if err := dropHold(ctx, j.agent, string(j.Work)); err != nil {
		return events.Result{}, ended(err)
	}
	if err := j.agent.guests.available(ctx); err != nil {
		return events.Result{}, p.cannot(ctx, byState, err)
	}
	if _, connected, err := j.agent.keptNetwork(env); err != nil {
		return events.Result{}, err
	} else if !connected && len(p.net.Segments) > 0 { // of a time when networks were not made
		if err := j.applyNetwork(ctx, g); err != nil {
			return events.Result{}, err
		}
	}
	defer j.agent.guests.take(ids...)()
	failures := map[string]error{}
	for _, step := range []struct {
		state graph.Power
		do    func(context.Context, []graph.Node, map[string]error) error
	}{{graph.PoweredOff, p.off}, {graph.Stopped, p.stop}, {graph.Suspended, p.suspend}, {graph.Running, p.start}} {
		if nodes := byState[step.state]; len(nodes) > 0 {
			if err := step.do(ctx, nodes, failures); err != nil {
				return events.Result{}, err
			}
		}
	}
	return events.Result{}, failed(failures)
}

// wanted are the power states asked for; where the order names none, those that
// the environment is declared to have.
func (p *powering) wanted(ctx context.Context) (map[string]graph.Power, error) {
	out := map[string]graph.Power{}
	for _, w := range p.Order.Power {
		if w.Machine != "" {
			out[w.Machine] = graph.Power(w.Power)
			continue
		}
		for _, n := range machineNodes(p.graph) { // of all
			out[n.ID] = graph.Power(w.Power)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	row, err := p.declared(ctx, p.env)
	if err != nil {
		return nil, err
	}
	for _, n := range machineNodes(p.graph) {
		out[n.ID] = graph.Power(row.PowerOf(n.ID, string(n.Power)))
	}
	return out, nil
}

// cannot is what becomes of an order in a region that runs no machines: to end
// them is no work, and a machine that was to run is off, and says why.
func (p *powering) cannot(ctx context.Context, byState map[graph.Power][]graph.Node, why error) error {
	cause := causeOf(refusedByGuests(why))
	var said []environment.MachineReport
	for _, state := range []graph.Power{graph.Running, graph.Suspended} {
		for _, n := range byState[state] {
			is := graph.PoweredOff
			if hasMemory(n) {
				is = graph.Suspended
			}
			said = append(said, environment.MachineReport{Machine: n.ID, Power: string(is), Cause: &cause})
		}
	}
	for _, state := range []graph.Power{graph.Stopped, graph.PoweredOff} {
		for _, n := range byState[state] {
			said = append(said, environment.MachineReport{Machine: n.ID, Power: string(state)})
		}
	}
	if err := p.agent.guests.report(ctx, p.Account, p.env, said...); err != nil {
		return err
	}
	if len(p.Order.Power) == 0 || len(byState[graph.Running])+len(byState[graph.Suspended]) == 0 {
		return nil
	}
	return &permanent{cause}
}

// failed names the machines that could not be brought where they should be.
func failed(failures map[string]error) error {
	if len(failures) == 0 {
		return nil
	}
	var names []string
	for name := range failures {
		names = append(names, name)
	}
	slices.Sort(names)
	first := causeOf(failures[names[0]])
	if len(names) == 1 {
		return fail(first.Code, first.Next, "machine %s: %s", names[0], first.Text)
	}
	var each []string
	for _, n := range names {
		each = append(each, n+": "+causeOf(failures[n]).Text)
	}
	return fail(first.Code, first.Next, "%d machines: %s", len(names), strings.Join(each, "; "))
}

func causeOf(err error) events.Cause {
	if p := new(permanent); errors.As(err, &p) {
		return p.cause
	}
	return events.Cause{Code: "machine-failed", Text: err.Error(), Next: "look at the region's log, then try again"}
}

// status is the process of a machine; false where there is none.
func (p *powering) status(ctx context.Context, n graph.Node) (machines.Status, bool, error) {
	s, err := p.agent.guests.machines.Status(ctx, machineID(p.env, n.ID))
	if machines.CodeOf(err) == machines.MachineUnknown {
		return s, false, nil
	}
	return s, err == nil, err
}

// off ends machines at once; what was kept of their memory is let go of.
func (p *powering) off(ctx context.Context, nodes []graph.Node, failures map[string]error) error {
	for _, n := range reversed(nodes) {
		if err := p.end(ctx, n, graph.PoweredOff); err != nil {
			return err
		}
	}
	return nil
}

// end takes a machine away, and says what it is then.
func (p *powering) end(ctx context.Context, n graph.Node, is graph.Power) error {
	done := p.agent.around(KillMachine)
	if err := p.agent.guests.machines.Kill(ctx, p.epoch, machineID(p.env, n.ID)); err != nil {
		return err
	}
	done()
	if err := p.forgetMemory(ctx, n.ID); err != nil {
		return err
	}
	return p.say(ctx, is, nil, n)
}

// stop asks guests to shut down, those that depend on others first.
func (p *powering) stop(ctx context.Context, nodes []graph.Node, failures map[string]error) error {
	patience := stopPatience
	if p.Order.Timeout > 0 {
		patience = time.Duration(p.Order.Timeout) * time.Second
	}
	for _, n := range reversed(nodes) {
		s, there, err := p.status(ctx, n)
		if err != nil {
			return err
		}
		switch {
		case there && s.State == machines.Running:
			within, cancel := context.WithTimeout(ctx, patience)
			err := p.agent.guests.machines.Stop(within, p.epoch, machineID(p.env, n.ID))
			cancel()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				failures[n.ID] = refusedByGuests(err)
				continue
			}
		case there && s.State == machines.Paused, !there && p.suspended(n.ID):
			failures[n.ID] = fail("machine-suspended", "resume it first, or power it off", "it is suspended, and only a running machine can be shut down")
			continue
		}
		if err := p.end(ctx, n, graph.Stopped); err != nil {
			return err
		}
	}
	return nil
}

func (p *powering) suspended(name string) bool {
	n, _ := p.graph.Node(name)
	return hasMemory(n)
}

// forgetMemory lets go of what is kept of machines' memory, durably: after it
// they may run.
func (p *powering) forgetMemory(ctx context.Context, names ...string) error {
	if !slices.ContainsFunc(names, p.suspended) {
		return nil
	}
	next := withoutMemory(p.graph, names...)
	if err := p.agent.keepStored(ctx, p.env, next); err != nil {
		return err
	}
	p.graph = next
	return nil
}

// keepStored makes the graph the environment's, when what it is stored in has
// changed: its roots are made before, and the old ones let go of after. What is
// not let go of is with the next change.
func (a *Agent) keepStored(ctx context.Context, env events.EnvironmentID, g graph.Graph) error {
	order, err := os.ReadFile(a.environmentPath(env, "order"))
	if err != nil {
		return err
	}
	if err := a.protect(ctx, env, orderOf(order), indexesOf(g)); err != nil {
		return ended(err)
	}
	if err := a.keepGraph(env, g); err != nil {
		return err
	}
	if err := a.release(ctx, env, indexesOf(g)); err != nil {
		a.cfg.Log.Warn("what an environment was stored in before is kept for now", "environment", env, "error", err)
	}
	return nil
}

// start makes machines run: those with stored memory all together from where
// they stood, the others from power-on, each after what it depends on.
func (p *powering) start(ctx context.Context, nodes []graph.Node, failures map[string]error) error {
	var resumed, booted []graph.Node
	for _, n := range nodes {
		s, there, err := p.status(ctx, n)
		if err != nil {
			return err
		}
		switch {
		case there && s.State == machines.Running:
			if err := p.forgetMemory(ctx, n.ID); err != nil {
				return err
			}
			if err := p.running(ctx, n); err != nil {
				return err
			}
			continue
		case there && s.State == machines.Ended:
			done := p.agent.around(KillMachine)
			if err := p.agent.guests.machines.Kill(ctx, p.epoch, machineID(p.env, n.ID)); err != nil {
				return err
			}
			done()
		}
		if p.suspended(n.ID) || there && s.State == machines.Paused {
			resumed = append(resumed, n)
		} else {
			booted = append(booted, n)
		}
	}
	cold, err := p.resume(ctx, resumed, failures)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if !slices.ContainsFunc(append(booted, cold...), func(b graph.Node) bool { return b.ID == n.ID }) {
			continue
		}
		if missing := p.lacks(n, failures); missing != "" {
			failures[n.ID] = fail("dependency-not-running", "start "+missing+" first", "%s, which it depends on, could not be started", missing)
			continue
		}
		if err := p.boot(ctx, n); err != nil {
			if err := p.failedToStart(ctx, n, err, failures); err != nil {
				return err
			}
		}
	}
	return nil
}

// lacks names a machine that this one depends on and that could not be started.
func (p *powering) lacks(n graph.Node, failures map[string]error) string {
	for _, e := range p.graph.Edges {
		if e.Type == graph.DependsOn && e.From == n.ID && failures[e.To] != nil {
			return e.To
		}
	}
	return ""
}

// failedToStart notes what will not come by itself; any other error is tried again.
func (p *powering) failedToStart(ctx context.Context, n graph.Node, err error, failures map[string]error) error {
	err = refusedByGuests(ended(err))
	if permanent := new(permanent); !errors.As(err, &permanent) {
		return err
	}
	failures[n.ID] = err
	cause, is := causeOf(err), graph.PoweredOff
	if p.suspended(n.ID) {
		is = graph.Suspended
	}
	return p.say(ctx, is, &cause, n)
}

// boot starts one machine from power-on.
func (p *powering) boot(ctx context.Context, n graph.Node) error {
	if err := p.prepare(ctx, n, nil); err != nil {
		return err
	}
	if err := p.agent.guests.machines.Continue(ctx, p.epoch, machineID(p.env, n.ID)); err != nil {
		return err
	}
	return p.running(ctx, n)
}

// prepare makes a machine's process, standing still, plugged into its networks.
func (p *powering) prepare(ctx context.Context, n graph.Node, m *machines.Memory) error {
	spec, ports, err := p.specOf(ctx, p.env, n, p.net)
	if err != nil {
		return err
	}
	done := p.agent.around(StartMachine)
	if err := p.agent.guests.machines.Start(ctx, spec, m); err != nil {
		return err
	}
	done()
	for _, port := range ports {
		if err := p.agent.guests.networks.Plug(ctx, p.epoch, port); err != nil {
			return err
		}
	}
	return nil
}

// running says that machines run.
func (p *powering) running(ctx context.Context, nodes ...graph.Node) error {
	var said []environment.MachineReport
	for _, n := range nodes {
		said = append(said, *p.agent.guests.runs(ctx, n.ID))
	}
	return p.agent.guests.report(ctx, p.Account, p.env, said...)
}

// say reports what machines are.
func (p *powering) say(ctx context.Context, is graph.Power, cause *events.Cause, nodes ...graph.Node) error {
	var said []environment.MachineReport
	for _, n := range nodes {
		said = append(said, environment.MachineReport{Machine: n.ID, Power: string(is), Cause: cause})
	}
	return p.agent.guests.report(ctx, p.Account, p.env, said...)
}

// resume lets machines go on from where they stood, together: either all of them
// or, where one cannot, none. It gives back those that are to boot instead, with
// consent, because their memory was taken on other hardware.
func (p *powering) resume(ctx context.Context, nodes []graph.Node, failures map[string]error) (cold []graph.Node, err error) {
	if len(nodes) == 0 {
		return nil, nil
	}
	for _, n := range nodes {
		err := p.restore(ctx, n)
		if machines.CodeOf(err) == machines.MemoryIncompatible && p.Order.Cold {
			cold = append(cold, n)
			continue
		}
		if err != nil {
			if err := p.failedToStart(ctx, n, err, failures); err != nil {
				return nil, err
			}
		}
	}
	var ids []machines.ID
	var names []string
	for _, n := range nodes {
		if failures[n.ID] != nil || slices.ContainsFunc(cold, func(c graph.Node) bool { return c.ID == n.ID }) {
			continue
		}
		ids, names = append(ids, machineID(p.env, n.ID)), append(names, n.ID)
	}
	if len(ids)+len(cold) < len(nodes) { // one cannot: the others go on standing still
		for i, id := range ids {
			if !p.suspended(names[i]) {
				continue
			}
			if err := p.agent.guests.machines.Kill(ctx, p.epoch, id); err != nil {
				return nil, err
			}
			failures[names[i]] = fail("peer-not-resumed", "see what keeps the other one", "machines that were suspended together go on together, and another one cannot")
		}
		return nil, nil
	}
	for _, n := range cold {
		names = append(names, n.ID)
	}
	if err := p.forgetMemory(ctx, names...); err != nil {
		return nil, err
	}
	done := p.agent.around(ContinueMachines)
	if err := p.agent.guests.machines.Continue(ctx, p.epoch, ids...); err != nil {
		return nil, err
	}
	done()
	on := slices.DeleteFunc(slices.Clone(nodes), func(n graph.Node) bool { return !slices.Contains(ids, machineID(p.env, n.ID)) })
	return cold, p.running(ctx, on...)
}

// restore makes the process of a machine as it was when its memory was taken.
func (p *powering) restore(ctx context.Context, n graph.Node) error {
	stored, _ := p.graph.Node(n.ID)
	if !hasMemory(stored) { // its process stands still, and was not ended
		return p.prepare(ctx, n, nil)
	}
	m, done, err := p.agent.openMemory(ctx, stored)
	if err != nil {
		return fmt.Errorf("the memory of %s: %w", n.ID, err)
	}
	defer done()
	return p.prepare(ctx, n, m)
}
