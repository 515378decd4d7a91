package region

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// suspend stores the memory of machines, all of one moment, and ends them. What
// fails leaves them running.
func (p *powering) suspend(ctx context.Context, nodes []graph.Node, failures map[string]error) (err error) {
	var live []graph.Node
	for _, n := range nodes {
		s, there, err := p.status(ctx, n)
		if err != nil {
			return err
		}
		switch {
		case there && s.State == machines.Paused && p.suspended(n.ID): // stored before a crash; it has not run since
			if err := p.dismiss(ctx, n); err != nil {
				return err
			}
			if err := p.say(ctx, graph.Suspended, nil, n); err != nil {
				return err
			}
		case there && s.State != machines.Ended:
			if err := p.forgetMemory(ctx, n.ID); err != nil { // it runs: what is kept is not its any more
				return err
			}
			live = append(live, n)
		case p.suspended(n.ID):
			if err := p.say(ctx, graph.Suspended, nil, n); err != nil {
				return err
			}
		default:
			failures[n.ID] = fail("machine-off", "start it first", "it is off, and has no memory that could be kept")
		}
	}
	if len(live) == 0 {
		return nil
	}
	next, err := p.agent.suspendAll(ctx, p.env, p.graph, live, string(p.Work), p.epoch, func(c chunks.Progress) {
		p.progress(Progress{Step: "storing memory", Done: c.Done, Total: c.Total})
	})
	if err != nil {
		return refusedByGuests(ended(err))
	}
	p.graph = next
	for _, n := range live {
		if err := p.dismiss(ctx, n); err != nil {
			return err
		}
	}
	return p.say(ctx, graph.Suspended, nil, live...)
}

// dismiss ends the process of a machine whose memory is stored.
func (p *powering) dismiss(ctx context.Context, n graph.Node) error {
	done := p.agent.around(KillMachine)
	if err := p.agent.guests.machines.Kill(ctx, p.epoch, machineID(p.env, n.ID)); err != nil {
		return err
	}
	done()
	return nil
}

// suspendAll pauses machines together, stores their memory, and makes that the
// environment's. They stand still after it, their processes there. After an
// error they run as before, unless it is not known whether their memory is the
// environment's: a machine that ran on then would meet it again, with newer disks.
func (a *Agent) suspendAll(ctx context.Context, env events.EnvironmentID, g graph.Graph, nodes []graph.Node, owner string, epoch int, progress func(chunks.Progress)) (out graph.Graph, err error) {
	var ids []machines.ID
	for _, n := range nodes {
		ids = append(ids, machineID(env, n.ID))
	}
	if err := a.store.Hold(ctx, owner, time.Now().Add(holdTime)); err != nil {
		return g, err
	}
	session, err := a.store.Begin(ctx, owner)
	if err != nil {
		return g, err
	}
	defer session.Close()
	driver := a.guests.machines
	done := a.around(PauseMachines)
	if err := driver.Pause(ctx, epoch, ids...); err != nil {
		return g, err
	}
	done()
	next := g
	for _, n := range nodes {
		if next, err = a.storeMachine(ctx, session, next, n, machineID(env, n.ID), epoch, progress); err != nil {
			return g, errors.Join(err, a.goOn(ctx, epoch, owner, ids))
		}
	}
	// From here on a cancelled order is as one that came too late.
	late, cancel := within(ctx, switchPatience)
	defer cancel()
	for _, id := range ids {
		if s, err := driver.Status(late, id); err != nil || s.State != machines.Paused {
			return g, errors.Join(fail("machine-not-still", "suspend it again", "machine %s did not stand still until its memory was stored", id), err, a.goOn(late, epoch, owner, ids))
		}
	}
	if err := a.keepStored(late, env, next); err != nil {
		if back := a.keepGraph(env, g); back != nil {
			return g, errors.Join(err, back) // they stand still, until it is known what is kept
		}
		return g, errors.Join(err, a.goOn(late, epoch, owner, ids))
	}
	if err := dropHold(late, a, owner); err != nil {
		a.cfg.Log.Warn("a hold is kept for now", "owner", owner, "error", err)
	}
	return next, nil
}

// storeMachine stores the memory of one machine that stands still, and gives the
// graph that tells of it.
func (a *Agent) storeMachine(ctx context.Context, session chunks.Session, g graph.Graph, n graph.Node, id machines.ID, epoch int, progress func(chunks.Progress)) (graph.Graph, error) {
	c, err := a.guests.machines.Capture(ctx, epoch, id)
	if err != nil {
		return g, err
	}
	out, _, err := a.storeMemory(ctx, session, g, map[string]*machines.Capture{n.ID: c}, progress)
	return out, errors.Join(err, c.Close())
}

// goOn lets machines run that were to be suspended and are not, and lets go of
// what was stored of them.
func (a *Agent) goOn(ctx context.Context, epoch int, owner string, ids []machines.ID) error {
	late, cancel := within(ctx, switchPatience)
	defer cancel()
	return errors.Join(a.guests.machines.Continue(late, epoch, ids...), dropHold(late, a, owner))
}

// undoPower lets go of what was stored and not used, and of machines that were
// left standing still half way: one whose memory is kept is suspended, one that
// was seen running runs, and any other is off.
func (j *job) undoPower(ctx context.Context) error {
	if err := dropHold(ctx, j.agent, string(j.Work)); err != nil {
		return err
	}
	g, err := j.agent.environmentGraph(j.Order.Environment)
	if os.IsNotExist(err) || j.agent.guests.machines == nil {
		return nil
	}
	if err != nil {
		return err
	}
	p := &powering{job: j, env: j.Order.Environment, graph: g}
	seen, _, err := j.agent.guests.row(p.env)
	if err != nil {
		return err
	}
	for _, n := range machineNodes(g) {
		release := j.agent.guests.take(machineID(p.env, n.ID))
		err := p.settle(ctx, n, graph.Power(seen.machines[n.ID].Observed))
		release()
		if err != nil {
			return err
		}
	}
	return nil
}

// settle brings a machine that stands still to a state that lasts.
func (p *powering) settle(ctx context.Context, n graph.Node, was graph.Power) error {
	s, there, err := p.status(ctx, n)
	if err != nil || !there || s.State != machines.Paused {
		return err
	}
	switch {
	case p.suspended(n.ID):
		if err := p.dismiss(ctx, n); err != nil {
			return err
		}
		return p.say(ctx, graph.Suspended, nil, n)
	case was == graph.Running:
		return p.agent.guests.machines.Continue(ctx, p.epoch, machineID(p.env, n.ID))
	}
	return p.end(ctx, n, graph.PoweredOff)
}

func dropHold(ctx context.Context, a *Agent, owner string) error {
	_, err := a.store.Release(ctx, owner)
	return err
}
