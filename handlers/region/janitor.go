package region

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Effect is one thing that this agent finds on its host, with the order that
// it was made for.
type Effect struct {
	Kind  string        `json:"kind"` // "root", "hold", "upload", "export", "environment", "machine", "network"
	Name  string        `json:"name"`
	Owner events.WorkID `json:"owner"` // of an export: its own id; of a machine and a network: the order that made the environment
}

// Inventory lists what is really there, from the host alone.
func (a *Agent) Inventory(ctx context.Context) ([]Effect, error) {
	var out []Effect
	roots, err := a.store.Roots(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range roots {
		out = append(out, Effect{"root", r.Name, events.WorkID(r.Owner)})
	}
	holds, err := a.store.Holds(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		out = append(out, Effect{"hold", h.Owner, events.WorkID(h.Owner)})
	}
	entries, err := os.ReadDir(filepath.Join(a.cfg.Dir, "uploads"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		out = append(out, Effect{"upload", e.Name(), events.WorkID(e.Name())})
	}
	exports, err := a.exports.kept()
	if err != nil {
		return nil, err
	}
	for _, id := range exports {
		out = append(out, Effect{"export", id, events.WorkID(id)})
	}
	entries, err = os.ReadDir(filepath.Join(a.cfg.Dir, "environments"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		// One that was killed before it wrote down its order has no owner.
		owner, err := os.ReadFile(a.environmentPath(events.EnvironmentID(e.Name()), "order"))
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		out = append(out, Effect{"environment", e.Name(), orderOf(owner)})
	}
	running, err := a.guests.inventory(ctx)
	return append(out, running...), err
}

// orderOf reads the id of the order that made an environment.
func orderOf(file []byte) events.WorkID { return events.WorkID(strings.TrimSpace(string(file))) }

// Orphans lists the effects that no order owns: the order is not known, it was
// undone or written off, or it is done and this is what it kept only while it was
// under way. What an export keeps is its own until it expires.
func (a *Agent) Orphans(ctx context.Context) ([]Effect, error) {
	// The inventory first: what is made after it has its order in the view.
	effects, err := a.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	tip, err := a.cfg.Journal.Tip(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.feed.WaitFor(ctx, tip); err != nil {
		return nil, err
	}
	view, err := a.feed.Now("work-orders")
	if err != nil {
		return nil, err
	}
	defer view.Close()
	var out []Effect
	for _, e := range effects {
		if (e.Kind == "export" || e.Kind == "hold") && a.exports.alive(string(e.Owner)) {
			continue
		}
		row, ok, err := projections.WorkOrders{}.Work(view, e.Owner)
		if err != nil {
			return nil, err
		}
		if !ok || row.Region != a.cfg.Region || gone(e.Kind, row.State) {
			out = append(out, e)
		}
	}
	return out, nil
}

// gone says that an effect of this kind should not be there any more, with its
// order in this state.
func gone(kind string, s projections.WorkState) bool {
	meanwhile := kind == "hold" || kind == "upload"
	return s == projections.WorkStateUndone || s == projections.WorkStateWrittenOff || meanwhile && s == projections.WorkStateDone
}

// NotAnOrphan is the code of what Reap leaves alone.
const NotAnOrphan = "not-an-orphan"

// Reap removes an orphan. What has an owner is left alone (not-an-orphan).
func (a *Agent) Reap(ctx context.Context, e Effect) error {
	orphans, err := a.Orphans(ctx)
	if err != nil {
		return err
	}
	for _, o := range orphans {
		if o != e {
			continue
		}
		a.cfg.Log.Warn("reaping what no order owns", "kind", e.Kind, "name", e.Name, "owner", e.Owner)
		if err := a.remove(ctx, e); err != nil {
			return err
		}
		a.counts.reaped.Add(1)
		return nil
	}
	return &Error{Code: NotAnOrphan, Text: e.Kind + " " + e.Name + " has an owner, or is gone", Next: "look at the orphans again"}
}

// Counts are what the agent has done about its host since it started.
type Counts struct {
	Orphans int64 // that the janitor saw last
	Reaped  int64
	Scrubs  int64
	Damaged int64 // chunks that scrubs found
}

type counts struct{ orphans, reaped, scrubs, damaged atomic.Int64 }

// Counts says what the agent has done about its host since it started.
func (a *Agent) Counts() Counts {
	c := &a.counts
	return Counts{c.orphans.Load(), c.reaped.Load(), c.scrubs.Load(), c.damaged.Load()}
}

// orphanage remembers since when effects have been orphans without a break.
type orphanage map[Effect]time.Time

// due takes in what are orphans now and gives those that were for the whole time.
func (o orphanage) due(now time.Time, grace time.Duration, orphans []Effect) []Effect {
	maps.DeleteFunc(o, func(e Effect, _ time.Time) bool { return !slices.Contains(orphans, e) })
	var out []Effect
	for _, e := range orphans {
		since, known := o[e]
		if !known {
			o[e], since = now, now
		}
		if now.Sub(since) >= grace {
			out = append(out, e)
		}
	}
	return out
}

// keepClean reaps what has been an orphan for the whole grace time, until the
// context ends. It looks ten times within that time.
func (a *Agent) keepClean(ctx context.Context) error {
	ticks := time.NewTicker(max(a.cfg.Grace/10, 10*time.Millisecond))
	defer ticks.Stop()
	known := orphanage{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticks.C:
			if err := a.clean(ctx, known, now); err != nil && ctx.Err() == nil {
				a.cfg.Log.Error("orphans could not be looked after; trying again", "error", err)
			}
		}
	}
}

func (a *Agent) clean(ctx context.Context, known orphanage, now time.Time) error {
	orphans, err := a.Orphans(ctx)
	if err != nil {
		return err
	}
	a.counts.orphans.Store(int64(len(orphans)))
	var errs []error
	for _, e := range known.due(now, a.cfg.Grace, orphans) {
		errs = append(errs, a.Reap(ctx, e))
	}
	return errors.Join(errs...)
}

func (a *Agent) remove(ctx context.Context, e Effect) (err error) {
	switch e.Kind {
	case "root":
		_, err = a.store.Unpublish(ctx, e.Name)
	case "hold":
		_, err = a.store.Release(ctx, e.Name)
	case "upload":
		err = a.uploads.drop(e.Owner)
	case "export":
		err = a.exports.drop(ctx, e.Name)
	case "machine":
		environment, machine, _ := strings.Cut(e.Name, "/")
		err = a.guests.machines.Kill(ctx, a.guests.epoch(), machineID(events.EnvironmentID(environment), machine))
	case "network":
		err = a.guests.networks.Remove(ctx, a.guests.epoch(), e.Name)
	case "environment":
		err = a.dropEnvironment(ctx, events.EnvironmentID(e.Name))
	}
	return errors.Join(err, a.collect(ctx))
}

func (a *Agent) collect(ctx context.Context) error {
	_, err := a.store.Collect(ctx, chunks.CollectRequest{Now: now()})
	return err
}
