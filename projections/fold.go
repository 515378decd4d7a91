package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// Projection folds events into rows that answer one kind of question.
type Projection interface {
	// Name is a token, and the projection's of all its tables. It never changes.
	Name() string
	// Shape is raised whenever other rows than before would follow from the same
	// events: a field, a table, an index, a rule. The new rows are then built
	// beside the old ones. Until they are there, old rows are read into the new
	// structs; a table whose rows would be misread gets a new name, and is
	// refused (CodeBuilding) until it is built.
	Shape() int
	// Tables are all tables that Apply writes to and questions read.
	Tables() []Described
	// Apply folds one event. It writes to w alone, reads from w alone, and
	// follows from the event alone: no clock, no randomness, no outside. Events
	// that do not concern it are no error. An error stops the feed.
	Apply(w *Batch, r events.Record) error
}

// Follower is the part of a journal.Journal that a feed needs.
type Follower interface {
	Follow(ctx context.Context, after uint64, each func(events.Record) error) error
}

// maxBatchEvents bounds the events of one batch, whatever their size.
const maxBatchEvents = 8192

// folder folds events into targets, many in one commit.
type folder struct {
	store   *Store
	limit   int // about how many bytes one commit has
	targets []foldTarget
	at      uint64 // position committed
	mark    func(b *pebble.Batch, position uint64) error
	moved   func(batch []events.Record) error // after a commit; the folder is empty

	t       *txn
	w       Batch           // over t; here so that it is not made anew for each event
	filled  int             // bytes of the last commit
	rows    rowCache        // of t
	older   rowCache        // of the last commit
	pending []events.Record // what t holds
	payload int
}

type foldTarget struct {
	projection Projection
	target
}

// fold adds one event. On an error everything before the event is committed,
// and nothing of it.
func (f *folder) fold(r events.Record) error {
	if want := f.at + uint64(len(f.pending)) + 1; r.Sequence != want {
		gap := fmt.Errorf("%w: sequence %d came where %d was due", journal.ErrGap, r.Sequence, want)
		return errors.Join(&StoppedError{Sequence: want, Err: gap}, f.commit())
	}
	if name, err := f.apply(r); err != nil {
		return errors.Join(&StoppedError{Sequence: r.Sequence, Projection: name, Err: err}, f.redo())
	}
	f.pending = append(f.pending, r)
	f.payload += len(r.Payload)
	if f.t.bytes+f.payload >= f.limit || len(f.pending) >= maxBatchEvents {
		return f.commit()
	}
	return nil
}

// apply folds one event into the open txn, and tells whose error it was.
func (f *folder) apply(r events.Record) (string, error) {
	if f.t == nil {
		if f.rows == nil {
			f.rows = rowCache{}
		}
		clear(f.rows)
		f.t = newTxn(f.store.db, f.filled, f.rows, f.older)
	}
	for i := range f.targets {
		g := &f.targets[i]
		f.w = Batch{t: f.t, target: g.target, history: true, seq: r.Sequence}
		if err := g.projection.Apply(&f.w, r); err != nil {
			return g.name, err
		}
	}
	return "", nil
}

// redo commits what was folded before the event that failed, which may have
// left rows in the txn.
func (f *folder) redo() error {
	if err := f.abandon(); err != nil {
		return err
	}
	for _, r := range f.pending {
		if name, err := f.apply(r); err != nil {
			return fmt.Errorf("folding event %d again into %s: %w", r.Sequence, name, err)
		}
	}
	return f.commit()
}

// abandon throws away what is not committed.
func (f *folder) abandon() error {
	if f.t == nil {
		return nil
	}
	err := f.t.discard()
	f.t = nil
	return err
}

// commit writes rows and position in one batch.
func (f *folder) commit() error {
	if len(f.pending) == 0 {
		return f.abandon()
	}
	position := f.pending[len(f.pending)-1].Sequence
	if err := f.mark(f.t.out, position); err != nil {
		return err
	}
	t := f.t
	f.t, f.filled = nil, t.bytes
	f.rows, f.older = f.older, f.rows
	if err := t.commit(); err != nil {
		return fmt.Errorf("commit rows at position %d: %w", position, err)
	}
	batch := f.pending
	f.pending, f.payload, f.at = nil, 0, position
	return f.moved(batch)
}

// pumpLength is how many events may be on their way between a follower and a fold; each is at
// most events.MaxPayload.
const pumpLength = 256

// A feed that has folded burstEvents without a pause is catching up: it waits
// burstPause for more before it commits, for large commits cost far less.
const (
	burstEvents = 64
	burstPause  = 5 * time.Millisecond
)

// pump follows the journal and folds, committing whenever nothing more is
// waiting: at the tip that is after each event. It calls settle when idle and when woken.
func pump(ctx context.Context, from Follower, f *folder, step func(events.Record) error, wake <-chan struct{}, settle func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	records := make(chan events.Record, pumpLength)
	var followed error
	go func() {
		defer close(records)
		followed = from.Follow(ctx, f.at, func(r events.Record) error {
			select {
			case records <- r:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	defer func() {
		cancel()
		for range records { // until the follower has returned
		}
	}()
	late := time.NewTimer(0)
	defer late.Stop()
	for {
		var r events.Record
		var ok, waiting bool
		select {
		case r, ok = <-records:
		default:
			waiting = true
		}
		if waiting && len(f.pending) >= burstEvents {
			late.Reset(burstPause)
			select {
			case r, ok = <-records:
				waiting = false
			case <-late.C:
			}
		}
		switch {
		case !waiting && !ok:
			return errors.Join(f.commit(), ended(ctx, f, followed))
		case !waiting:
			if err := step(r); err != nil {
				return err
			}
			continue
		}
		if err := f.commit(); err != nil {
			return err
		}
		if err := settle(); err != nil {
			return err
		}
		select {
		case r, ok := <-records:
			if !ok {
				return ended(ctx, f, followed)
			}
			if err := step(r); err != nil {
				return err
			}
		case <-wake:
		}
	}
}

// ended says where a follower that failed by itself left the fold.
func ended(ctx context.Context, f *folder, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &StoppedError{Sequence: f.at + uint64(len(f.pending)) + 1, Err: err}
}
