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
	"github.com/tombolo-vdc/tombolo/handlers/region/volumes"
	"github.com/tombolo-vdc/tombolo/projections"
)

// save fixes the environment's disks, all at one moment, as the content of a
// version: a root that names their indexes, and the manifest on the bus. Only
// what was written since the last save is read. The environment goes on from
// what was saved.
func (j *job) save(ctx context.Context) (events.Result, error) {
	id := j.Order.Environment
	g, err := j.content()
	if err != nil {
		return events.Result{}, err
	}
	result, err := j.saveDisks(ctx, id, &g)
	if err != nil {
		return events.Result{}, err
	}
	if err := j.asItIs(ctx, id, &g); err != nil {
		return events.Result{}, err
	}
	if !j.Order.Memory { // of those that are to run there may be one all the same: the agent was told to end meanwhile
		for _, n := range machineNodes(g) {
			if n.Power == graph.Running {
				g = withoutMemory(g, n.ID)
			}
		}
	}
	m := graph.Manifest{Format: graph.ManifestFormat, Environment: id, Region: j.Region, Depth: graph.ConfigurationData, Graph: g, Order: g.Order()}
	if result.Manifest, err = j.put(ctx, m); err != nil {
		return events.Result{}, err
	}
	result.Bytes = m.Bytes()
	for _, r := range g.Resources() {
		result.Resources = append(result.Resources, events.ResourceRef{ID: r.ID, Type: string(r.Type), Value: r.Value, LeansOn: r.LeansOn})
	}
	return result, j.dropWork(ctx)
}

// asItIs puts into the graph what was decided since it was declared: the values
// that the environment has, so that a map in another region says what it
// replaces, and the power states that its machines are declared to have ([0042]).
// Both are as of the order: what is decided while the disks are stored is not
// part of what was asked for.
func (j *job) asItIs(ctx context.Context, id events.EnvironmentID, g *graph.Graph) error {
	view, err := j.asOfOrder(ctx, "environments")
	if err != nil {
		return err
	}
	defer view.Close()
	row, _, err := projections.Environments{}.Environment(view, id)
	if err != nil {
		return err
	}
	for n := range g.Nodes {
		if node := &g.Nodes[n]; node.Type == graph.Machine {
			node.Power = graph.Power(row.PowerOf(node.ID, string(node.Power)))
		}
	}
	substitutions, _, err := projections.Environments{}.Map(view, id)
	if err != nil {
		return err
	}
	for _, s := range substitutions {
		for n := range g.Nodes {
			for r := range g.Nodes[n].Resources {
				if g.Nodes[n].Resources[r].ID == s.Resource {
					g.Nodes[n].Resources[r].Value = s.To
				}
			}
		}
	}
	return nil
}

// saveDisks stores what the disks are at one moment, and the memory of the
// machines that run at it where that is asked for, and puts the digests into the
// graph.
func (j *job) saveDisks(ctx context.Context, id events.EnvironmentID, g *graph.Graph) (result events.Result, err error) {
	open, err := j.agent.devices.of(id, *g)
	if err != nil {
		return result, err
	}
	if err := j.agent.store.Hold(ctx, string(j.Work), time.Now().Add(holdTime)); err != nil {
		return result, ended(err)
	}
	session, err := j.agent.store.Begin(ctx, string(j.Work))
	if err != nil {
		return result, ended(err)
	}
	defer session.Close()
	done := j.agent.around(FreezeVolumes)
	moment, err := volumes.Prepare(ctx, open...)
	if err != nil {
		return result, err
	}
	defer moment.Close()
	captured, pause, err := j.freeze(ctx, id, *g, moment)
	if err != nil {
		return result, refusedByGuests(err)
	}
	defer func() {
		for _, c := range captured {
			err = errors.Join(err, c.Close())
		}
	}()
	result.PauseMS = pause.Milliseconds()
	done()
	stored, err := moment.Ingest(ctx, session, func(p chunks.Progress) {
		j.progress(Progress{Step: "storing", Done: p.Done, Total: p.Total})
	})
	if err != nil {
		return result, ended(err)
	}
	for i, d := range g.Disks() {
		result.Stored += stored[i].StoredBytes
		setDigest(g, d.Name(), events.Digest(stored[i].Digest))
	}
	own := *g
	saved, bytes, err := j.agent.storeMemory(ctx, session, own, captured, func(p chunks.Progress) {
		j.progress(Progress{Step: "storing memory", Done: p.Done, Total: p.Total})
	})
	if err != nil {
		return result, ended(err)
	}
	*g, result.Stored = saved, result.Stored+bytes
	if indexes := indexesOf(saved); len(indexes) > 0 {
		if err := j.publish(ctx, chunks.Root{Name: savedRoot(j), Owner: string(j.Work), Indexes: indexes}); err != nil {
			return result, ended(err)
		}
	}
	return result, j.rebase(ctx, id, moment, own)
}

// freeze takes one moment of the environment. Its machines that run stand still
// together while the disks switch to new layers and, where that is asked for,
// their memory is taken; the pause is from the first that stands still to the
// last that goes on.
func (j *job) freeze(ctx context.Context, id events.EnvironmentID, g graph.Graph, moment *volumes.Snapshot) (captured map[string]*machines.Capture, pause time.Duration, err error) {
	driver, ids := j.agent.guests.machines, []machines.ID(nil)
	if driver != nil {
		for _, n := range machineNodes(g) {
			s, err := driver.Status(ctx, machineID(id, n.ID))
			if machines.CodeOf(err) == machines.MachineUnknown || err == nil && s.State != machines.Running {
				continue
			}
			if err != nil {
				return nil, 0, err
			}
			ids = append(ids, machineID(id, n.ID))
		}
	}
	if len(ids) == 0 {
		return nil, 0, moment.Take()
	}
	defer j.agent.guests.take(ids...)()
	done := j.agent.around(PauseMachines)
	began := time.Now()
	if err := driver.Pause(ctx, j.epoch, ids...); err != nil {
		return nil, 0, err
	}
	done()
	captured = map[string]*machines.Capture{}
	defer func() {
		late, cancel := within(ctx, switchPatience)
		defer cancel()
		err = errors.Join(err, driver.Continue(late, j.epoch, ids...))
		pause = time.Since(began)
		if err == nil {
			return
		}
		for _, c := range captured {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := moment.Take(); err != nil {
		return nil, 0, err
	}
	if !j.Order.Memory {
		return captured, 0, nil
	}
	for _, machine := range ids {
		c, err := driver.Capture(ctx, j.epoch, machine)
		if err != nil {
			return nil, 0, err
		}
		captured[machine.Machine] = c
	}
	return captured, 0, nil
}

// rebase lets the environment go on from what was saved. Its roots are made
// before, and the old ones let go of after, so that a crash in between keeps
// too much rather than too little.
func (j *job) rebase(ctx context.Context, id events.EnvironmentID, moment *volumes.Snapshot, g graph.Graph) error {
	order, err := os.ReadFile(j.agent.environmentPath(id, "order"))
	if err != nil {
		return err
	}
	if err := j.agent.protect(ctx, id, orderOf(order), indexesOf(g)); err != nil {
		return ended(err)
	}
	done := j.agent.around(RebaseVolumes)
	if err := moment.Rebase(ctx); err != nil {
		return err
	}
	done()
	if err := j.agent.keepGraph(id, g); err != nil {
		return err
	}
	return j.agent.release(ctx, id, indexesOf(g))
}

func (j *job) undoSave(ctx context.Context) error {
	if err := j.dropWork(ctx); err != nil {
		return err
	}
	if err := j.unpublish(ctx, savedRoot(j)); err != nil {
		return err
	}
	_, err := j.collect(ctx)
	return err
}
