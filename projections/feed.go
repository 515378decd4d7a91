package projections

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tombolo-vdc/tombolo/events"
)

// Feed folds a set of projections in stream order, all of them in one batch
// with one position, and gives the views that answer questions. Its methods may
// be called from many goroutines.
type Feed struct {
	store *Store
	set   []Projection
	wake  chan struct{} // a build has ended or was asked for

	mu       sync.RWMutex
	served   map[string]served // what reads see of each projection
	builds   map[string]*build // what is built beside it
	position uint64
	digest   events.Digest // of the event at position; empty where a store of an earlier program does not say
	running  bool
	stopped  error           // why the last Run ended, unless its context did
	moved    chan struct{}   // closed when anything that Status shows changes
	tail     []events.Record // the last events folded, while there are builds
}

// served is where reads of a projection go; tables is nil before its first build.
type served struct {
	space    uint32
	shape    int
	tables   map[string]bool
	frozen   bool
	position uint64 // if frozen
}

func (s spaceRecord) served() served {
	return served{s.Space, s.Shape, setOf(s.Tables), s.Frozen, s.Position}
}

// Feed makes the store's feed, once, of the whole set of projections. What the
// store holds of projections that are not in the set is deleted; one whose
// shape has changed, or that is new in a store that has folded events, is built
// beside the others when the feed runs.
func (s *Store) Feed(set ...Projection) (*Feed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feed {
		return nil, fail(CodeInUse, nil, "the store has a feed already")
	}
	f := &Feed{
		store: s, set: set, wake: make(chan struct{}, 1),
		served: map[string]served{}, builds: map[string]*build{}, moved: make(chan struct{}),
	}
	b := s.db.NewIndexedBatch()
	defer b.Close()
	last, err := readFolded(b)
	if err != nil {
		return nil, err
	}
	f.position, f.digest = last.position, last.digest
	for _, p := range set {
		if err := f.prepare(b, p); err != nil {
			return nil, fmt.Errorf("projection %s: %w", p.Name(), err)
		}
	}
	if err := f.dropOthers(b); err != nil {
		return nil, err
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return nil, err
	}
	s.feed = true
	return f, nil
}

// prepare compares what the store holds of a projection with what the program
// folds, and begins a build where they differ.
func (f *Feed) prepare(b *pebble.Batch, p Projection) error {
	name := p.Name()
	if !events.IsToken(name) {
		return fail(CodeUndeclared, nil, "its name is not a token")
	}
	if _, twice := f.served[name]; twice {
		return fail(CodeUndeclared, nil, "two projections have this name")
	}
	tables, err := tableNames(name, p.Tables())
	if err != nil {
		return err
	}
	old, exists, err := readRecord(b, metaKey(metaProjection, name))
	if err != nil {
		return err
	}
	building, begun, err := readRecord(b, metaKey(metaBuilding, name))
	if err != nil {
		return err
	}
	if begun && !building.sameShape(p.Shape(), tables) { // of a program that has gone
		if err := errors.Join(dropSpace(b, building.Space), b.Delete(metaKey(metaBuilding, name), nil)); err != nil {
			return err
		}
		begun = false
	}
	if !exists && f.position == 0 && !begun {
		old = spaceRecord{Shape: p.Shape(), Tables: tables}
		if old.Space, err = newSpace(b); err != nil {
			return err
		}
		f.served[name] = old.served()
		return writeRecord(b, metaKey(metaProjection, name), old)
	}
	current := exists && !old.Frozen && old.sameShape(p.Shape(), tables)
	if exists && !old.Frozen && !current {
		old.Frozen, old.Position = true, f.position
		if err := writeRecord(b, metaKey(metaProjection, name), old); err != nil {
			return err
		}
	}
	f.served[name] = served{}
	if exists {
		f.served[name] = old.served()
	}
	if !begun && current {
		return nil
	}
	if !begun {
		if building, err = beginBuild(b, p, tables); err != nil {
			return err
		}
	}
	f.builds[name] = &build{projection: p, record: building, position: building.Position}
	return nil
}

// dropOthers deletes what the store holds of projections that are not in the set.
func (f *Feed) dropOthers(b *pebble.Batch) error {
	for _, kind := range []string{metaProjection, metaBuilding} {
		stored, err := recordNames(b, kind)
		if err != nil {
			return err
		}
		for _, name := range stored {
			if _, ok := f.served[name]; ok {
				continue
			}
			record, _, err := readRecord(b, metaKey(kind, name))
			if err != nil {
				return err
			}
			if err := errors.Join(dropSpace(b, record.Space), b.Delete(metaKey(kind, name), nil)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Run follows the journal from the stored position, and folds, until the
// context ends (then it gives the context's error), the journal fails, or an
// event cannot be folded: a *StoppedError, which is journal.ErrGap if a sequence
// was skipped or the journal ends before the position, and CodeSetBack if it has
// another event there. Rows then stand just before that event, reads go on, and
// Status shows it. It may be run again. A build that fails ends by itself, is shown by
// Status, and is tried again by Rebuild or the next Run.
func (f *Feed) Run(ctx context.Context, from Follower) error {
	f.mu.Lock()
	if f.running {
		f.mu.Unlock()
		return fail(CodeInUse, nil, "the feed is running already")
	}
	f.running, f.stopped = true, nil
	f.tail = nil
	for _, b := range f.builds {
		b.failed = nil
	}
	f.store.pacer.hold(false) // what the last Run held back when its context ended
	main := &folder{store: f.store, limit: f.store.options.BatchBytes, at: f.position, targets: f.live(), mark: markFeed}
	last := folded{f.position, f.digest}
	f.mu.Unlock()

	buildCtx, cancel := context.WithCancel(ctx)
	var builders sync.WaitGroup
	main.settle = func() error { return f.settle(buildCtx, &builders, main, from) }
	main.hurry = func() bool {
		f.mu.RLock()
		defer f.mu.RUnlock()
		return len(f.builds) == 0
	}
	main.moved = func(position uint64, last []events.Record) error {
		f.advance(position, last)
		return nil
	}
	err := ended(ctx, main, continues(ctx, from, last))
	if err == nil {
		err = main.settle()
	}
	if err == nil {
		err = pump(ctx, from, main, main.fold, f.wake)
	}
	err = errors.Join(err, main.abandon(ctx))
	cancel()
	builders.Wait()

	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = false
	var stopped *StoppedError
	if ctx.Err() == nil || errors.As(err, &stopped) {
		f.stopped = err
	}
	f.tell()
	return err
}

// errSeen ends a following that was for one event.
var errSeen = errors.New("the event is seen")

// continues checks that the journal still has the event that was folded last: one
// that was restored from a backup may have grown past it with others, which the
// sequence alone does not tell. It waits while the journal cannot be reached.
func continues(ctx context.Context, from Follower, last folded) error {
	if last.digest == "" {
		return nil
	}
	both, end := context.WithCancelCause(ctx)
	defer end(nil)
	// Who asks for the event waits where the journal ends just before it; who asks
	// for what comes after it is told.
	var beyond sync.WaitGroup
	beyond.Go(func() {
		if err := from.Follow(both, last.position, func(events.Record) error { return errSeen }); !errors.Is(err, errSeen) {
			end(err)
		}
	})
	var found events.Record
	end(from.Follow(both, last.position-1, func(r events.Record) error {
		found = r
		return errSeen
	}))
	beyond.Wait()
	switch cause := context.Cause(both); {
	case ctx.Err() != nil:
		return ctx.Err()
	case !errors.Is(cause, errSeen):
		return cause
	case found.Sequence != last.position || found.Digest != last.digest:
		return fail(CodeSetBack, nil, "the journal's event %d is not the one that was folded (%s, not %s)", last.position, found.Digest, last.digest)
	}
	return nil
}

// live gives what the feed itself folds, in the order of the set.
func (f *Feed) live() []foldTarget {
	var out []foldTarget
	for _, p := range f.set {
		if s := f.served[p.Name()]; s.tables != nil && !s.frozen {
			out = append(out, foldTarget{p, target{p.Name(), s.space, s.tables}})
		}
	}
	return out
}

// advance makes a commit known; last are its last events.
func (f *Feed) advance(position uint64, last []events.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.position, f.digest = position, last[len(last)-1].Digest
	if len(f.builds) > 0 {
		f.tail = append(f.tail, last...)
		if extra := len(f.tail) - tailEvents; extra > 0 {
			f.tail = slices.Clone(f.tail[extra:])
		}
	} else {
		f.tail = nil
	}
	f.tell()
}

// tell wakes everybody who waits. The caller holds mu.
func (f *Feed) tell() {
	close(f.moved)
	f.moved = make(chan struct{})
}

// names checks the names of projections; none stand for all.
func (f *Feed) names(projections []string) ([]string, error) {
	if len(projections) == 0 {
		for _, p := range f.set {
			projections = append(projections, p.Name())
		}
		return projections, nil
	}
	for _, name := range projections {
		if _, ok := f.served[name]; !ok {
			return nil, fail(CodeUnknown, nil, "there is no projection %q", name)
		}
	}
	return projections, nil
}

// positionOf is the latest position that all of the named projections can show,
// where the feed itself is at position. The caller holds mu.
func (f *Feed) positionOf(names []string, position uint64) uint64 {
	for _, name := range names {
		if s := f.served[name]; s.frozen {
			position = min(position, s.position)
		}
	}
	return position
}

// Position is the latest position that all of the named projections (all of the
// set, if none is named) can show.
func (f *Feed) Position(projections ...string) (uint64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	names, err := f.names(projections)
	return f.positionOf(names, f.position), err
}

// WaitFor returns as soon as the named projections (all, if none is named) show
// the event with the sequence. It gives a *BehindError when the context ends,
// or at once if the feed has stopped.
func (f *Feed) WaitFor(ctx context.Context, seq uint64, projections ...string) error {
	for {
		f.mu.RLock()
		names, err := f.names(projections)
		position, stopped, moved := f.positionOf(names, f.position), f.stopped, f.moved
		f.mu.RUnlock()
		switch {
		case err != nil:
			return err
		case position >= seq:
			return nil
		case stopped != nil:
			return &BehindError{Wanted: seq, Position: position, Err: stopped}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return &BehindError{Wanted: seq, Position: position, Err: ctx.Err()}
		}
	}
}

// Now gives a view of the named projections (all, if none is named) at the
// latest position that all of them can show. The caller closes it.
func (f *Feed) Now(projections ...string) (*View, error) { return f.view(nil, projections) }

// AsOf gives the view that Now gave at the position seq. A *BehindError says
// that the rows are not there yet. The caller closes it.
func (f *Feed) AsOf(seq uint64, projections ...string) (*View, error) {
	return f.view(&seq, projections)
}

func (f *Feed) view(asOf *uint64, projections []string) (*View, error) {
	f.mu.RLock()
	defer f.mu.RUnlock() // a switch of spaces falls before or after the snapshot
	names, err := f.names(projections)
	if err != nil {
		return nil, err
	}
	v := &View{snapshot: f.store.db.NewSnapshot(), spaces: make(map[string]viewSpace, len(names))}
	last, err := readFolded(v.snapshot)
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	v.position = f.positionOf(names, last.position)
	if asOf != nil {
		if *asOf > v.position {
			return nil, errors.Join(&BehindError{Wanted: *asOf, Position: v.position}, v.Close())
		}
		v.position = *asOf
	}
	for _, name := range names {
		s := viewSpace{served: f.served[name]}
		rows := last.position
		if s.frozen {
			rows = s.position
		}
		s.history = rows != v.position
		v.spaces[name] = s
	}
	return v, nil
}

// buildingMark gives the function that says how a build's position is stored.
func buildingMark(name string, record spaceRecord) func(events.Record) (key, value []byte, err error) {
	return func(last events.Record) ([]byte, []byte, error) {
		record.Position = last.Sequence
		value, err := json.Marshal(record)
		return metaKey(metaBuilding, name), value, err
	}
}
