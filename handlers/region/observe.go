package region

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/projections"
)

// lookAgain is the longest time between two looks at the machines: what the
// driver tells is looked at at once, and this finds what nobody told.
const lookAgain = 30 * time.Second

// adopt serves the disks of machines that run already. Nothing else is done with
// any before: one that waits for its disks does not even stand still when it is
// told to.
func (g *guests) adopt(ctx context.Context) error {
	if g.machines == nil {
		return nil
	}
	switch err := g.machines.Adopt(ctx, g.epoch()); {
	case machines.CodeOf(err) == machines.StaleEpoch || ctx.Err() != nil:
		return fmt.Errorf("adopt the machines: %w", err)
	case err != nil: // the region stores, copies and clones all the same
		g.agent.cfg.Log.Error("machines that run cannot be taken over", "error", err)
	}
	if err := g.rested(ctx); err != nil {
		g.agent.cfg.Log.Error("what an agent stored when it ended cannot be let go of", "error", err)
	}
	return nil
}

// run holds the guests to what they should be until the context ends: it applies
// networks that were lost, lets go on what a killed agent left standing still,
// and reports what machines did by themselves.
func (g *guests) run(ctx context.Context) error {
	if g.machines == nil && g.networks == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	if g.machines != nil {
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
	errs := []error{g.observePools(ctx)}
	for _, env := range environments {
		errs = append(errs, g.observeNetwork(ctx, env), g.observeMachines(ctx, env))
	}
	return errors.Join(errs...)
}

// observePools tells the networks where public addresses are really bound, of all
// regions.
func (g *guests) observePools(ctx context.Context) error {
	if g.networks == nil {
		return nil
	}
	view, err := g.agent.feed.Now("pools", "regions")
	if err != nil {
		return err
	}
	defer view.Close()
	var regions []projections.RegionRow
	for resume, more := "", true; more; more = resume != "" {
		page, err := projections.Regions{}.List(view, 0, resume)
		if err != nil {
			return err
		}
		regions, resume = append(regions, page.Rows...), page.Resume
	}
	var pools []networks.Pool
	for _, r := range regions {
		ranges, err := projections.Pools{}.Ranges(view, r.Region, events.PoolID(graph.PublicAddress))
		if err != nil {
			return err
		}
		for _, a := range ranges {
			public, err := netip.ParsePrefix(a.Prefix)
			if err != nil {
				continue // values one by one are bound as themselves
			}
			pool := networks.Pool{Public: public, PortOffset: a.PortOffset}
			if bind, err := netip.ParsePrefix(a.Bind); err == nil {
				pool.Bind = bind
			}
			pools = append(pools, pool)
		}
	}
	if slices.Equal(pools, g.pools) {
		return nil
	}
	if err := g.networks.SetPools(ctx, pools); err != nil {
		return err
	}
	g.pools = pools
	return nil
}

// observeNetwork applies again a network that was lost.
func (g *guests) observeNetwork(ctx context.Context, env events.EnvironmentID) error {
	g.wiring.Lock()
	defer g.wiring.Unlock()
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
	ours := map[string]bool{}
	for _, n := range machineNodes(content) {
		// Of one in the hands of a job, the job says what becomes of it.
		if release, ok := g.lookAt(machineID(env, n.ID)); ok {
			defer release()
			ours[n.ID] = true
		}
	}
	// What a job has just changed is seen only now.
	if content, err = g.agent.environmentGraph(env); os.IsNotExist(err) {
		return nil // it is gone
	} else if err != nil {
		return err
	}
	row, ok, err := g.row(env)
	if err != nil || !ok {
		return err
	}
	var errs []error
	var news []environment.MachineReport
	var ended []machines.ID
	for _, n := range machineNodes(content) {
		if !ours[n.ID] {
			continue
		}
		id := machineID(env, n.ID)
		said, over, err := g.observeMachine(ctx, graph.Power(row.machines[n.ID].Observed), id, n)
		if said != nil {
			news = append(news, *said)
		}
		if over {
			ended = append(ended, id)
		}
		errs = append(errs, err)
	}
	if err := g.report(ctx, row.Account, env, news...); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, id := range ended { // what is reported is cleaned up behind
		errs = append(errs, g.machines.Kill(ctx, g.epoch(), id))
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

// observeMachine gives what is to be said of one machine, and whether its process
// has ended.
func (g *guests) observeMachine(ctx context.Context, was graph.Power, id machines.ID, n graph.Node) (said *environment.MachineReport, ended bool, err error) {
	s, err := g.machines.Status(ctx, id)
	switch {
	case machines.CodeOf(err) == machines.MachineUnknown && hasMemory(n) && was == graph.Running:
		return because(n.ID, graph.Suspended, events.CauseRegionStopped, "it was suspended when its region's agent ended"), false, nil
	case machines.CodeOf(err) == machines.MachineUnknown && !hasMemory(n) && (was == graph.Running || was == graph.Suspended):
		return because(n.ID, events.MachineFailed, events.CauseCrashed, "its process was gone when the region's agent came back"), false, nil
	case machines.CodeOf(err) == machines.MachineUnknown:
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	switch s.State {
	case machines.Running:
		return g.runs(ctx, n.ID), false, nil
	case machines.Paused:
		if was != graph.Running {
			return nil, false, nil // an order is open that goes on from here
		}
		if hasMemory(n) { // somebody was killed between storing its memory and ending it
			return because(n.ID, graph.Suspended, events.CauseRegionStopped, "it was suspended when its region's agent ended"), true, nil
		}
		// Somebody was killed between pausing and continuing it.
		g.agent.cfg.Log.Warn("a machine was left standing still and goes on", "machine", id)
		return nil, false, g.machines.Continue(ctx, g.epoch(), id)
	}
	switch s.End {
	case machines.EndKilled:
		return nil, true, nil
	case machines.EndGuest:
		return because(n.ID, graph.Stopped, events.CauseGuestShutdown, "the guest switched itself off"), true, nil
	}
	return because(n.ID, events.MachineFailed, events.CauseCrashed, "its process ended: "+s.Text), true, nil
}

// because is a report with its cause.
func because(machine string, is graph.Power, code, text string) *environment.MachineReport {
	return &environment.MachineReport{Machine: machine, Power: string(is), Cause: &events.Cause{Code: code, Text: text}}
}

// runs is the report of a machine that runs.
func (g *guests) runs(ctx context.Context, machine string) *environment.MachineReport {
	can, err := g.machines.Capabilities(ctx)
	if err != nil {
		can.Hardware.Accelerator = "" // the machine runs, whatever is known of it
	}
	return &environment.MachineReport{Machine: machine, Power: string(graph.Running), Accelerator: can.Hardware.Accelerator}
}

// report tells the control plane what machines are, as far as it does not know,
// and waits until this agent's own projections do.
func (g *guests) report(ctx context.Context, account events.AccountID, env events.EnvironmentID, said ...environment.MachineReport) error {
	row, ok, err := g.row(env)
	if err != nil || !ok {
		return err
	}
	said = slices.DeleteFunc(slices.Clone(said), func(m environment.MachineReport) bool {
		was, known := row.machines[m.Machine]
		return known && was.Observed == m.Power && (m.Cause == nil && was.Cause == nil || m.Cause != nil && was.Cause != nil && *was.Cause == *m.Cause)
	})
	a := g.agent
	for some := range slices.Chunk(said, environment.MaxReported) {
		body := environment.ReportMachines{Ref: environment.Ref{Region: a.cfg.Region, Environment: env}, Epoch: g.epoch(), Machines: some}
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		// The same fact about the same past is one command, however often it is sent.
		id := events.CommandID(events.DeriveID(account, events.CommandID(env), fmt.Sprintf("report %s at %d", events.DigestOf(raw), row.Revision)))
		sequence, err := retry(ctx, func() (uint64, error) {
			return a.cfg.Commander.Command(ctx, "", account, events.KindEnvironment, "report-machines", id, body)
		})
		if err != nil {
			return err
		}
		if err := a.feed.WaitFor(ctx, sequence, "environments"); err != nil {
			return err
		}
	}
	return nil
}
