package commands

import (
	"context"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/policies"
	"github.com/tombolo-vdc/tombolo/projections"
)

// checkMachines refuses the power state of machines that the environment does
// not have, and puts those of a vApp into the command.
func checkMachines(ctx context.Context, p *environment.SetPower, c *call) error {
	if p.Machine == "" && len(p.Machines) == 0 && p.VApp == "" || c.door.reads == nil {
		return nil
	}
	return c.atTipWith(ctx, func(v *projections.View) error {
		g, err := c.graphOf(ctx, v, p.Environment)
		if err != nil {
			return err
		}
		names := p.Machines
		if p.Machine != "" {
			names = append([]string{p.Machine}, names...)
		}
		for _, name := range names {
			if n, ok := g.Node(name); !ok || n.Type != graph.Machine {
				return aggregates.RefuseAs(aggregates.NotFound, "machine-unknown", "the environment has no machine %q", name).
					WithNext("tombolo env show %s", p.Environment)
			}
		}
		if p.VApp == "" {
			return nil
		}
		if n, ok := g.Node(p.VApp); !ok || n.Type != graph.VApp {
			return aggregates.RefuseAs(aggregates.NotFound, "vapp-unknown", "the environment has no vApp %q", p.VApp).
				WithNext("tombolo env show %s", p.Environment)
		}
		p.Machines = append(p.Machines, g.Machines(p.VApp)...)
		return nil // one without machines is refused by the aggregate
	})
}

// judgeRestarts refuses an agent whose epoch is over, and has the restart policy
// say of each machine that does not run any more whether it is started again. What the agent says
// of that itself does not count.
func judgeRestarts(ctx context.Context, r *environment.ReportMachines, c *call) error {
	r.Restarts, r.Operation = nil, ""
	of, err := stateOf[region.State, events.RegionEvent](ctx, c.door.executor, region.Of(r.Region))
	if err != nil {
		return err
	}
	if r.Epoch < of.Epoch() {
		return aggregates.Refuse("stale-epoch", "epoch %d has lost the region to epoch %d", r.Epoch, of.Epoch())
	}
	state, err := stateOf[environment.State, events.EnvironmentEvent](ctx, c.door.executor, r.Aggregate(c.origin.Account))
	if err != nil {
		return err
	}
	now := c.door.executor.now().UTC()
	for _, m := range r.Machines {
		if !state.AsksRestart(m) {
			continue
		}
		deaths := state.Deaths(m.Machine, now)
		if m.Power == events.MachineFailed {
			deaths++
		}
		declared := state.Declared(m.Machine)
		if declared == "" {
			if declared, err = c.declaredInGraph(ctx, r.Environment, m.Machine); err != nil {
				return err
			}
		}
		d := c.door.restart.Decide(policies.RestartInput{Environment: string(r.Environment), Machine: m.Machine, Cause: m.Cause.Code,
			Deaths: deaths, Declared: declared})
		if d.Failed {
			c.door.log.Error("the restart policy failed", "environment", r.Environment, "machine", m.Machine, "why", d.Why)
		}
		if r.Restarts == nil {
			r.Restarts = map[string]events.Verdict{}
		}
		r.Restarts[m.Machine] = events.Verdict{Policy: d.Policy, Digest: d.Digest, Allowed: d.Allowed, Why: d.Why}
		r.Operation = c.operation()
	}
	return nil
}

// declaredInGraph is the power state that the machine is declared to be in where
// none was ever set; empty where the environment has no such machine.
func (c *call) declaredInGraph(ctx context.Context, id events.EnvironmentID, machine string) (power string, err error) {
	err = c.atTipWith(ctx, func(v *projections.View) error {
		g, err := c.graphOf(ctx, v, id)
		if n, ok := g.Node(machine); ok {
			power = string(n.Power)
		}
		return err
	})
	return power, err
}

// EdgePlan is what setting an edge comes to: the body of a dry run.
type EdgePlan struct {
	Before  graph.EdgeState    `json:"before"`
	After   graph.EdgeState    `json:"after"`
	Changes []graph.EdgeChange `json:"changes" jsonschema:"what is taken away and what is added; none where it is so already"`
}

// checkEdge refuses settings that the environment's edge cannot have.
func checkEdge(ctx context.Context, e *environment.SetEdge, c *call) error {
	if c.door.reads == nil {
		return nil
	}
	_, err := planEdge(ctx, e, c)
	return err
}

// planEdge says what the settings change, and refuses those that cannot be.
func planEdge(ctx context.Context, e *environment.SetEdge, c *call) (any, error) {
	plan := EdgePlan{Changes: []graph.EdgeChange{}}
	err := c.atTipWith(ctx, func(v *projections.View) error {
		g, err := c.graphOf(ctx, v, e.Environment)
		if err != nil {
			return err
		}
		row, set, err := projections.Environments{}.Edge(v, e.Environment)
		if err != nil {
			return err
		}
		if set {
			g = g.WithEdge(row.Event())
		}
		next := events.EdgeSet{Rules: e.Rules, SourcePorts: e.SourcePorts, Open: e.Open}
		if wrong := g.CheckEdge(next); len(wrong) > 0 {
			return &GraphError{Findings: wrong, Refusal: aggregates.RefuseAs(aggregates.Invalid, "edge-invalid",
				"the edge cannot be so, for %d reasons; the first: %s: %s", len(wrong), wrong[0].Path, wrong[0].Text)}
		}
		plan.Before, plan.After = g.Edge(), g.WithEdge(next).Edge()
		plan.Changes = append(plan.Changes, graph.DiffEdges(plan.Before, plan.After)...)
		return nil
	})
	return plan, err
}
