package region

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/volumes"
)

// exports lets people read the disks of an environment, or of an instance of a
// template, out of the region.
//
// An export is one moment of all the disks. It is taken by the ingest that a
// save does too: only what was written since the disks' bases is read, the
// environment runs on, and may be saved or deleted while the export is read.
// What keeps the bytes is a hold in the chunk store under the export's id; each
// reading postpones its end, and with it the export is gone. It survives a
// restart of the agent.
//
// An export changes nothing that anybody else sees, so it is no order of the
// journal: nobody could be told of it, and nothing of it has to be undone.
type exports struct {
	agent *Agent

	mu   sync.Mutex
	open map[string]*export
}

// export is one of them; its exported part is what is kept on disk, and what
// people are answered.
type export struct {
	ID          string               `json:"id"`
	Account     events.AccountID     `json:"account"`
	Region      events.RegionID      `json:"region"`
	Environment events.EnvironmentID `json:"environment,omitempty"`
	Template    events.TemplateID    `json:"template,omitempty"`
	Version     int                  `json:"version,omitempty"`
	Taken       time.Time            `json:"taken_at"`
	Until       time.Time            `json:"expires_at"` // each reading postpones it
	Ready       bool                 `json:"ready"`
	Graph       graph.Graph          `json:"graph"`

	active int // requests that read it
	disks  map[string]*chunks.Disk
}

const (
	// exportTime is how long an export stays after it was last read.
	exportTime = time.Hour
	// exportSweep is how often is looked for those that are over.
	exportSweep = time.Minute
	// momentPatience is how long an export waits while the disks are being saved.
	momentPatience = 30 * time.Second
)

func (x *exports) path(id string) string {
	return filepath.Join(x.agent.cfg.Dir, "exports", id+".json")
}

// openExports finds the exports that there were. One that was being taken when
// the agent ended is gone: who asked for it has had no answer.
func openExports(ctx context.Context, a *Agent) (*exports, error) {
	x := &exports{agent: a, open: map[string]*export{}}
	ids, err := x.kept()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		e := &export{ID: id, disks: map[string]*chunks.Disk{}}
		raw, err := os.ReadFile(x.path(id))
		if err == nil {
			err = json.Unmarshal(raw, e)
		}
		if err != nil || !e.Ready || e.ID != id {
			if err := x.forget(ctx, id); err != nil {
				return nil, err
			}
			continue
		}
		x.open[id] = e
	}
	return x, x.sweep(ctx, now())
}

// kept lists the exports that have left something on the host.
func (x *exports) kept() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(x.agent.cfg.Dir, "exports"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			out = append(out, id)
		}
	}
	return out, nil
}

// run takes away what is over, until the context ends.
func (x *exports) run(ctx context.Context) error {
	tick := time.NewTicker(exportSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case at := <-tick.C:
			if err := x.sweep(ctx, at); err != nil && ctx.Err() == nil {
				x.agent.cfg.Log.Error("an export that is over cannot be taken away", "error", err)
			}
		}
	}
}

// sweep takes away the exports that nobody reads any more.
func (x *exports) sweep(ctx context.Context, at time.Time) error {
	var errs []error
	for _, id := range x.over(at) {
		errs = append(errs, x.drop(ctx, id))
	}
	return errors.Join(errs...)
}

func (x *exports) over(at time.Time) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for id, e := range x.open {
		if e.active == 0 && !at.Before(e.Until) {
			out = append(out, id)
		}
	}
	return out
}

// alive says whether the id is that of an export that is not over.
func (x *exports) alive(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.open[id]
	return e != nil && (e.active > 0 || now().Before(e.Until))
}

// take makes an export of the disks of what asked describes; fix stores them
// under the session's hold and puts their digests into the graph.
func (x *exports) take(ctx context.Context, asked export, fix func(context.Context, chunks.Session, *graph.Graph) error) (*export, error) {
	e := &asked
	e.ID, e.Region, e.Taken, e.Until = uuid.NewString(), x.agent.cfg.Region, now().UTC(), now().UTC().Add(exportTime)
	e.active, e.disks = 1, map[string]*chunks.Disk{}
	x.mu.Lock()
	x.open[e.ID] = e
	x.mu.Unlock()
	err := x.fill(ctx, e, fix)
	x.mu.Lock()
	e.active--
	x.mu.Unlock()
	if err != nil {
		// The request may be what has ended.
		return nil, errors.Join(err, x.drop(context.WithoutCancel(ctx), e.ID))
	}
	return e, nil
}

// fill writes the export down before it holds anything, and again once it can
// be read.
func (x *exports) fill(ctx context.Context, e *export, fix func(context.Context, chunks.Session, *graph.Graph) error) error {
	if err := x.keep(e); err != nil {
		return err
	}
	if len(e.Graph.Disks()) > 0 {
		if err := x.agent.store.Hold(ctx, e.ID, e.Until); err != nil {
			return err
		}
		session, err := x.agent.store.Begin(ctx, e.ID)
		if err != nil {
			return err
		}
		defer session.Close()
		if err := fix(ctx, session, &e.Graph); err != nil {
			return err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	e.Ready = true
	return x.keep(e)
}

func (x *exports) keep(e *export) error {
	raw, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return writeDurably(x.path(e.ID), raw)
}

// fixEnvironment stores the environment's disks as they are at this moment.
func (x *exports) fixEnvironment(id events.EnvironmentID) func(context.Context, chunks.Session, *graph.Graph) error {
	return func(ctx context.Context, session chunks.Session, g *graph.Graph) error {
		open, err := x.agent.devices.of(id, *g)
		if err != nil {
			return err
		}
		moment, err := freeze(ctx, open)
		if err != nil {
			return err
		}
		defer moment.Close()
		stored, err := moment.Ingest(ctx, session, nil)
		if err != nil {
			return err
		}
		for i, d := range g.Disks() {
			setDigest(g, d.Name(), events.Digest(stored[i].Digest))
		}
		return nil
	}
}

// freeze waits a little for a save of the same disks.
func freeze(ctx context.Context, open []*volumes.Volume) (*volumes.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, momentPatience)
	defer cancel()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		moment, err := volumes.Freeze(ctx, open...)
		if volumes.CodeOf(err) != volumes.VolumeBusy {
			return moment, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// fixInstance keeps the disks of an instance, which are in the store already,
// whatever becomes of the instance.
func (x *exports) fixInstance(ctx context.Context, session chunks.Session, g *graph.Graph) error {
	for _, d := range indexesOf(*g) {
		index, release, err := x.agent.store.Acquire(ctx, d)
		if err != nil {
			return err
		}
		_, err = session.Attach(ctx, index)
		release()
		if err != nil {
			return err
		}
	}
	return nil
}

// begin takes an export for reading and postpones its end; done gives it back.
func (x *exports) begin(ctx context.Context, id string, account events.AccountID) (e *export, done func(), err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e = x.open[id]
	if e == nil || !e.Ready || account != e.Account && account != events.None {
		return nil, nil, nil
	}
	if until := now().UTC().Add(exportTime); until.Sub(e.Until) > exportTime/2 {
		e.Until = until
		if len(e.Graph.Disks()) > 0 {
			err = x.agent.store.Hold(ctx, e.ID, until)
		}
		if err = errors.Join(err, x.keep(e)); err != nil {
			return nil, nil, err
		}
	}
	e.active++
	return e, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		e.active--
	}, nil
}

// disk opens a disk of an export; it stays open as long as the export does. A
// disk that there is not is nil.
func (x *exports) disk(ctx context.Context, e *export, name string) (*chunks.Disk, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open[e.ID] != e {
		return nil, nil // ended since the reading began: nobody would close it
	}
	if d := e.disks[name]; d != nil {
		return d, nil
	}
	for _, ref := range e.Graph.Disks() {
		if ref.Name() != name {
			continue
		}
		d, err := x.agent.cache.Open(ctx, chunks.Digest(ref.Digest))
		if err != nil {
			return nil, err
		}
		e.disks[name] = d
		return d, nil
	}
	return nil, nil
}

// drop ends an export; a repeat does nothing.
func (x *exports) drop(ctx context.Context, id string) error {
	if err := x.shut(id); err != nil {
		return err
	}
	if err := x.forget(ctx, id); err != nil {
		return err
	}
	return x.agent.collect(ctx)
}

// shut closes an export's disks; no more of them are opened.
func (x *exports) shut(id string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.open[id]
	if e == nil {
		return nil
	}
	delete(x.open, id)
	return e.close()
}

// forget takes away what an export keeps; the file that tells of it goes last.
func (x *exports) forget(ctx context.Context, id string) error {
	if _, err := x.agent.store.Release(ctx, id); err != nil {
		return err
	}
	if err := os.Remove(x.path(id)); !os.IsNotExist(err) {
		return err
	}
	return nil
}

// close closes its disks; the exports' mu is held.
func (e *export) close() error {
	var errs []error
	for _, d := range e.disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// close closes the disks; the exports stay for the next start.
func (x *exports) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for _, e := range x.open {
		errs = append(errs, e.close())
	}
	x.open = nil
	return errors.Join(errs...)
}
