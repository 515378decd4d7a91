package projections

import (
	"context"
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tombolo-vdc/tombolo/events"
)

// tailEvents is how many of the last events the feed keeps for builds: one that
// is not farther behind is brought up with them and switched in one go.
const tailEvents = 1024

// build is a projection that is folded from the beginning beside the feed.
type build struct {
	projection Projection
	record     spaceRecord
	position   uint64
	running    bool
	failed     error
}

// errNear ends a build's own following: the rest is the feed's.
var errNear = errors.New("the build is near the feed")

// beginBuild takes a space for a build. The caller holds the store's mu.
func beginBuild(b *pebble.Batch, p Projection, tables []string) (spaceRecord, error) {
	space, err := newSpace(b)
	if err != nil {
		return spaceRecord{}, err
	}
	record := spaceRecord{Space: space, Shape: p.Shape(), Tables: tables}
	return record, writeRecord(b, metaKey(metaBuilding, p.Name()), record)
}

// Rebuild folds a projection again from the first event, beside its rows, and
// puts the new rows in their place when they have caught up: while the feed
// runs, or when it next does. A rebuild that goes on already is let be.
func (f *Feed) Rebuild(projection string) error {
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.names([]string{projection}); err != nil {
		return err
	}
	defer f.nudge()
	if b := f.builds[projection]; b != nil {
		b.failed = nil
		return nil
	}
	for _, p := range f.set {
		if p.Name() != projection {
			continue
		}
		tables, err := tableNames(projection, p.Tables())
		if err != nil {
			return err
		}
		b := f.store.db.NewIndexedBatch()
		defer b.Close()
		record, err := beginBuild(b, p, tables)
		if err != nil {
			return err
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			return err
		}
		f.builds[projection] = &build{projection: p, record: record}
	}
	return nil
}

// nudge lets the running feed look at its builds.
func (f *Feed) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// near reports whether a build at the position can be brought up by the feed,
// from the events that it keeps. The caller holds mu.
func (f *Feed) near(position uint64) bool {
	return position == f.position || len(f.tail) > 0 && f.tail[0].Sequence <= position+1
}

// settle switches the builds that are near and starts those that are not. The
// feed calls it between two batches.
func (f *Feed) settle(ctx context.Context, running *sync.WaitGroup, main *folder, from Follower) error {
	f.mu.RLock()
	none := len(f.builds) == 0
	f.mu.RUnlock()
	if none {
		return nil
	}
	f.mu.Lock()
	var ready []*build
	for _, b := range f.builds {
		if b.running || b.failed != nil {
			continue
		}
		if f.near(b.position) {
			ready = append(ready, b)
			continue
		}
		b.running = true
		running.Go(func() { f.run(ctx, b, from) })
	}
	f.mu.Unlock()
	for _, b := range ready {
		if err := f.finish(ctx, b); err != nil {
			return err
		}
	}
	if len(ready) > 0 {
		f.mu.Lock()
		main.retarget(f.live())
		f.mu.Unlock()
	}
	return nil
}

// folder gives a folder over the build's rows.
func (f *Feed) folder(b *build) *folder {
	name := b.projection.Name()
	return &folder{
		store: f.store, limit: f.store.options.BatchBytes / len(f.set), at: b.position, // all may be built at once
		targets: []foldTarget{{b.projection, target{name, b.record.Space, setOf(b.record.Tables)}}},
		mark:    buildingMark(name, b.record),
		settle:  func() error { return nil },
		hurry:   func() bool { return true },
	}
}

// run follows the journal for one build until it is near the feed.
func (f *Feed) run(ctx context.Context, b *build, from Follower) {
	fold := f.folder(b)
	fold.moved = func(position uint64, _ []events.Record) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		b.position = position
		if f.near(position) {
			return errNear
		}
		return nil
	}
	step := func(r events.Record) error {
		f.mu.RLock()
		beyond := r.Sequence > f.position
		f.mu.RUnlock()
		if beyond { // only the feed goes there; every event up to it is folded
			return errors.Join(fold.flush(), errNear)
		}
		return fold.fold(r)
	}
	err := pump(ctx, from, fold, step, nil)
	err = errors.Join(err, fold.abandon(ctx))
	f.mu.Lock()
	b.running = false
	if !errors.Is(err, errNear) && ctx.Err() == nil {
		b.failed = err
		f.tell()
	}
	f.mu.Unlock()
	f.nudge()
}

// finish brings a build up to the feed's position and puts its rows in the
// place of the old ones. The feed stands still meanwhile. An error in folding is
// the build's, one in switching is returned.
func (f *Feed) finish(ctx context.Context, b *build) error {
	f.mu.RLock()
	tail := f.tail
	f.mu.RUnlock()
	fold := f.folder(b)
	fold.moved = func(position uint64, _ []events.Record) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		b.position = position
		return nil
	}
	err := func() error {
		for _, r := range tail {
			if r.Sequence >= fold.next() {
				if err := fold.fold(r); err != nil {
					return err
				}
			}
		}
		return errors.Join(fold.flush(), fold.abandon(ctx))
	}()
	if err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		b.failed = err
		f.tell()
		return fold.abandon(ctx)
	}

	name, s := b.projection.Name(), b.record
	batch := f.store.db.NewBatch()
	defer batch.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.served[name]; old.tables != nil {
		if err := dropSpace(batch, old.space); err != nil {
			return err
		}
	}
	s.Position = 0
	err = errors.Join(writeRecord(batch, metaKey(metaProjection, name), s), batch.Delete(metaKey(metaBuilding, name), nil))
	if err != nil {
		return err
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	f.served[name] = s.served()
	delete(f.builds, name)
	f.tell()
	return nil
}

// Status is what the feed is doing, for people and for readiness probes.
type Status struct {
	Running  bool
	Position uint64 // of the feed
	Stopped  error  // why it stopped by itself; usually a *StoppedError
	// Projections in the order of the set.
	Projections []ProjectionStatus
}

// ProjectionStatus is the state of one projection.
type ProjectionStatus struct {
	Name     string
	Shape    int    // that the program folds
	Served   int    // shape of the rows that are read; 0 if there are none yet
	Position uint64 // of the rows that are read
	Building bool   // rows are being built beside them
	Built    uint64 // how far
	Failed   error  // why building ended; usually a *StoppedError
}

// Status tells what the feed is doing.
func (f *Feed) Status() Status {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := Status{Running: f.running, Position: f.position, Stopped: f.stopped}
	for _, p := range f.set {
		s := f.served[p.Name()]
		ps := ProjectionStatus{Name: p.Name(), Shape: p.Shape(), Served: s.shape, Position: f.position}
		if s.frozen || s.tables == nil {
			ps.Position = s.position
		}
		if b := f.builds[p.Name()]; b != nil {
			ps.Building, ps.Built, ps.Failed = true, b.position, b.failed
		}
		out.Projections = append(out.Projections, ps)
	}
	return out
}
