package region

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/projections"
)

// lookAgain is the longest time between two looks at the machines: what the
// driver tells is looked at at once, and this finds what nobody told.
const lookAgain = 30 * time.Second

// run holds the guests to what they should be until the context ends: it serves
// the disks of those that run already, applies networks that were lost, lets go
// on what a killed agent left standing still, and reports what machines did by
// themselves.
func (g *guests) run(ctx context.Context) error {
	if g.machines == nil && g.networks == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if g.machines != nil {
		if err := g.machines.Adopt(ctx, g.epoch()); err != nil {
			return fmt.Errorf("adopt the machines: %w", err)
		}
		watching := make(chan error, 1)
		ctx, cancel := context.WithCancel(ctx)
		defer func() { cancel(); <-watching }()
		go func() {
			watching <- g.machines.Watch(ctx, func(machines.Status) { g.wake() })
		}()
	}
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		if err := g.observe(ctx); err != nil && ctx.Err() == nil {
			g.agent.cfg.Log.Error("the machines could not be looked at; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.look:
		case <-again.C:
		}
	}
}

func (g *guests) epoch() int {
	g.agent.mu.Lock()
	defer g.agent.mu.Unlock()
	return g.agent.epoch
}

// environments are those that are complete here.
func (g *guests) environments() ([]events.EnvironmentID, error) {
	entries, err := os.ReadDir(filepath.Join(g.agent.cfg.Dir, "environments"))
	if err != nil {
		return nil, err
	}
	var out []events.EnvironmentID
	for _, e := range entries {
		if _, err := os.Stat(g.agent.environmentPath(events.EnvironmentID(e.Name()), "graph.json")); err == nil {
			out = append(out, events.EnvironmentID(e.Name()))
		}
	}
	return out, nil
}

// observe looks at everything once.
func (g *guests) observe(ctx context.Context) error {
	environments, err := g.environments()
	if err != nil {
		return err
	}
	var errs []error
	for _, env := range environments {
		errs = append(errs, g.observeNetwork(ctx, env), g.observeMachines(ctx, env))
	}
	return errors.Join(errs...)
}

// observeNetwork applies again a network that was lost.
func (g *guests) observeNetwork(ctx context.Context, env events.EnvironmentID) error {
	n, ok, err := g.agent.keptNetwork(env)
	if err != nil || !ok || g.networks == nil {
		return err
	}
	if _, err := g.networks.Network(ctx, string(env)); err == nil {
		return nil
	}
	n.Epoch = g.epoch()
	if err := g.networks.Apply(ctx, n); err != nil {
		return fmt.Errorf("apply the network of environment %s again: %w", env, err)
	}
	return g.plugAll(ctx, n.Epoch, n)
}

// observeMachines reports what became of an environment's machines without an
// order, and cleans up behind those that ended.
func (g *guests) observeMachines(ctx context.Context, env events.EnvironmentID) error {
	if g.machines == nil {
		return nil
	}
	content, err := g.agent.environmentGraph(env)
	if err != nil {
		return err
	}
	row, ok, err := g.row(env)
	if err != nil || !ok {
		return err
	}
	var errs []error
	for _, n := range machineNodes(content) {
		if g.isBusy(machineID(env, n.ID)) {
			continue // its job says what becomes of it
		}
		errs = append(errs, g.observeMachine(ctx, row, env, n))
	}
	return errors.Join(errs...)
}

// known is what the control plane was told of an environment.
type known struct {
	projections.EnvironmentRow
	machines map[string]projections.MachineRow
}

// row is what the control plane knows of an environment; false if it is not
// there, or on its way out.
func (g *guests) row(env events.EnvironmentID) (k known, ok bool, err error) {
	view, err := g.agent.feed.Now("environments")
	if err != nil {
		return k, false, err
	}
	defer view.Close()
	if k.EnvironmentRow, ok, err = (projections.Environments{}).Environment(view, env); err != nil || !ok {
		return k, false, err
	}
	seen, err := projections.Environments{}.Machines(view, env)
	k.machines = map[string]projections.MachineRow{}
	for _, m := range seen {
		k.machines[m.Machine] = m
	}
	return k, k.State == projections.EnvironmentCreated || k.State == projections.EnvironmentReceiving, err
}

func (g *guests) observeMachine(ctx context.Context, row known, env events.EnvironmentID, n graph.Node) error {
	id := machineID(env, n.ID)
	was := graph.Power(row.machines[n.ID].Observed)
	s, err := g.machines.Status(ctx, id)
	switch {
	case machines.CodeOf(err) == machines.MachineUnknown:
		switch {
		case hasMemory(n) && was == graph.Running:
			return g.report(ctx, row.Account, env, n.ID, graph.Suspended, &events.Cause{Code: events.CauseRegionStopped, Text: "it was suspended when its region's agent ended"})
		case !hasMemory(n) && (was == graph.Running || was == graph.Suspended):
			return g.report(ctx, row.Account, env, n.ID, events.MachineFailed, &events.Cause{Code: events.CauseCrashed, Text: "its process was gone when the region's agent came back"})
		}
		return nil
	case err != nil:
		return err
	}
	switch s.State {
	case machines.Running:
		return g.report(ctx, row.Account, env, n.ID, graph.Running, nil)
	case machines.Paused:
		if hasMemory(n) || was != graph.Running {
			return nil // an order is open that goes on from here
		}
		// Somebody was killed between pausing and continuing it.
		g.agent.cfg.Log.Warn("a machine was left standing still and goes on", "environment", env, "machine", n.ID)
		return g.machines.Continue(ctx, g.epoch(), id)
	}
	is, cause := graph.Power(events.MachineFailed), events.Cause{Code: events.CauseCrashed, Text: "its process ended: " + s.Text}
	if s.End == machines.EndGuest {
		is, cause = graph.Stopped, events.Cause{Code: events.CauseGuestShutdown, Text: "the guest switched itself off"}
	}
	if s.End != machines.EndKilled {
		if err := g.report(ctx, row.Account, env, n.ID, is, &cause); err != nil {
			return err
		}
	}
	return g.machines.Kill(ctx, g.epoch(), id)
}

// report tells the control plane what a machine is, if it does not know, and
// waits until this agent's own projections do.
func (g *guests) report(ctx context.Context, account events.AccountID, env events.EnvironmentID, machine string, is graph.Power, cause *events.Cause) error {
	row, ok, err := g.row(env)
	if err != nil || !ok {
		return err
	}
	was := row.machines[machine]
	if was.Observed == string(is) && (cause == nil && was.Cause == nil || cause != nil && was.Cause != nil && *was.Cause == *cause) {
		return nil
	}
	a := g.agent
	said := environment.MachineReport{Machine: machine, Power: string(is), Cause: cause}
	if is == graph.Running {
		can, err := g.machines.Capabilities(ctx)
		if err != nil {
			return err
		}
		said.Accelerator = can.Hardware.Accelerator
	}
	body := environment.ReportMachines{Ref: environment.Ref{Region: a.cfg.Region, Environment: env}, Epoch: g.epoch(), Machines: []environment.MachineReport{said}}
	// The same fact about the same past is one command, however often it is sent.
	id := events.CommandID(events.DeriveID(account, events.CommandID(env), fmt.Sprintf("%s is %s at %d in %d", machine, is, row.Revision, body.Epoch)))
	sequence, err := retry(ctx, func() (uint64, error) {
		return a.cfg.Commander.Command(ctx, "", account, events.KindEnvironment, "report-machines", id, body)
	})
	if err != nil {
		return err
	}
	return a.feed.WaitFor(ctx, sequence, "environments")
}
