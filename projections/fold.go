package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

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
const maxBatchEvents = 1 << 16

// idleRows bounds a generation of the rows that a folder keeps while commits are small, in bytes.
const idleRows = 1 << 20

// folder folds events into targets, many in one commit. While one large run is
// written it folds the next.
type folder struct {
	store   *Store
	limit   int // about how many bytes one commit has
	targets []foldTarget
	at      uint64                                                  // position of the runs that were handed over
	mark    func(last events.Record) (key, value []byte, err error) // the position that a commit stores
	moved   func(position uint64, last []events.Record) error       // after a commit
	settle  func() error                                            // when the folder is empty and everything stored
	hurry   func() bool                                             // reports whether settle has nothing to do

	t       *txn
	w       Batch // over t; here so that it is not made anew for each event
	rows    *rowCache
	spare   []*run          // to be filled next: two at most, as one is written while another is filled
	behind  bool            // there were large runs
	strange bool            // others have written to the targets
	count   int             // events that t holds
	last    []events.Record // the last ones of them, at least tailEvents if there are so many
	writing *writing        // the run before t, nil if it is stored and told
}

// writing is a run on its way to the store.
type writing struct {
	run      *run
	position uint64
	last     []events.Record
	done     chan struct{} // closed when err is there
	err      error
}

type foldTarget struct {
	projection Projection
	target
}

// fold adds one event. On an error everything before the event is committed,
// and nothing of it.
func (f *folder) fold(r events.Record) error {
	if want := f.next(); r.Sequence != want {
		gap := fmt.Errorf("%w: sequence %d came where %d was due", journal.ErrGap, r.Sequence, want)
		return errors.Join(&StoppedError{Sequence: want, Err: gap}, f.flush())
	}
	if name, err := f.apply(r); err != nil {
		return errors.Join(&StoppedError{Sequence: r.Sequence, Projection: name, Err: err}, f.t.rollback(), f.flush())
	}
	f.t.next()
	f.count++
	if len(f.last) == 2*tailEvents {
		f.last = append(f.last[:0], f.last[tailEvents:]...)
	}
	f.last = append(f.last, r)
	if f.t.run.size() >= f.limit || f.count >= maxBatchEvents {
		return f.commit()
	}
	return nil
}

// next is the sequence of the event that is due.
func (f *folder) next() uint64 { return f.at + uint64(f.count) + 1 }

// apply folds one event into the open txn, and tells whose error it was.
func (f *folder) apply(r events.Record) (string, error) {
	if f.rows == nil {
		f.rows = newRowCache()
		if f.at == 0 && !f.strange {
			f.rows.known = newKnownKeys(f.limit / 2)
		}
	}
	if f.t == nil {
		f.t = newTxn(f.store, f.newRun(), f.rows, f.wait)
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

// newRun gives an empty run.
func (f *folder) newRun() *run {
	if n := len(f.spare); n > 0 {
		r := f.spare[n-1]
		f.spare = f.spare[:n-1]
		return r
	}
	size := 0
	if f.behind {
		size = f.limit // so that it need not grow
	}
	return newRun(size)
}

// commit writes rows and position together. A large run may still be on its way
// when it returns.
func (f *folder) commit() error {
	if f.count == 0 {
		return nil
	}
	t, w := f.t, &writing{run: f.t.run, position: f.at + uint64(f.count), last: f.last, done: make(chan struct{})}
	var err error
	if t.run.mark, t.run.position, err = f.mark(f.last[len(f.last)-1]); err != nil {
		return err
	}
	if err := f.join(); err != nil {
		return err
	}
	t.settle()
	f.t, f.count, f.last, f.at, f.writing = nil, 0, nil, w.position, w
	large := t.run.size() >= f.store.options.tableBytes
	if large {
		f.behind = true
		f.rows.age(f.limit / 2)
	} else {
		f.rows.age(min(f.limit, idleRows))
	}
	if large && f.hurry() {
		go w.write(t)
		return nil
	}
	w.write(t)
	return errors.Join(f.join(), f.settle())
}

// caughtUp lets go of what only helps a folder that is far behind.
func (f *folder) caughtUp() {
	if f.behind {
		f.behind, f.rows.known, f.spare = false, nil, nil
		f.store.pacer.hold(false)
	}
}

func (w *writing) write(t *txn) {
	defer close(w.done)
	if err := t.commit(); err != nil {
		w.err = fmt.Errorf("commit rows at position %d: %w", w.position, err)
	}
}

// wait returns when every run that was handed over is stored.
func (f *folder) wait() error {
	if f.writing == nil {
		return nil
	}
	<-f.writing.done
	return f.writing.err
}

// join is wait, and tells that the position has moved.
func (f *folder) join() error {
	w := f.writing
	if w == nil {
		return nil
	}
	err := f.wait()
	f.writing = nil
	if err != nil {
		return err
	}
	if w.run.reset(); f.behind {
		f.spare = append(f.spare, w.run)
	}
	return f.moved(w.position, w.last)
}

// flush commits, and returns when that is stored.
func (f *folder) flush() error { return errors.Join(f.commit(), f.join()) }

// retarget makes the folder fold into other spaces, whose rows it does not know.
func (f *folder) retarget(targets []foldTarget) {
	f.targets = targets
	if f.rows != nil {
		f.rows.known = nil
	}
	f.strange = true
}

// abandon throws away what is not committed, and returns when the rest is stored.
// Where the context has ended, tables that were not merged are left so: closing
// the store would wait for it.
func (f *folder) abandon(ctx context.Context) error {
	var err error
	if f.t != nil {
		err = f.t.discard()
	}
	err = errors.Join(err, f.join())
	if ctx.Err() == nil {
		f.caughtUp()
	}
	f.t, f.count, f.last, f.rows = nil, 0, nil, nil
	return err
}

// pumpLength is how many events may be on their way between a follower and a fold; each is at
// most events.MaxPayload.
const pumpLength = 256

// A feed that has folded burstEvents without a pause is catching up: it waits
// burstPause for more before it commits, for large commits cost far less.
const (
	burstEvents = 64
	burstPause  = 5 * time.Millisecond
	tablePause  = 50 * time.Millisecond // where the commit has become large
	restPause   = time.Second           // without any event, a folder has caught up
)

// pause is how long a burst waits for more.
func (f *folder) pause() time.Duration {
	if f.t.run.size() >= f.store.options.tableBytes {
		return tablePause
	}
	return burstPause
}

// pump follows the journal and folds, committing whenever nothing more is
// waiting: at the tip that is after each event. It lets the folder settle when idle and when woken.
func pump(ctx context.Context, from Follower, f *folder, step func(events.Record) error, wake <-chan struct{}) error {
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
		if waiting && f.count >= burstEvents {
			late.Reset(f.pause())
			select {
			case r, ok = <-records:
				waiting = false
			case <-late.C:
			}
		}
		switch {
		case !waiting && !ok:
			return errors.Join(f.flush(), ended(ctx, f, followed))
		case !waiting:
			if err := step(r); err != nil {
				return err
			}
			continue
		}
		if err := f.flush(); err != nil {
			return err
		}
		if err := f.settle(); err != nil {
			return err
		}
		if late.Stop(); f.behind {
			late.Reset(restPause)
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
		case <-late.C:
			f.caughtUp()
		}
	}
}

// ended says where a follower that failed by itself left the fold.
func ended(ctx context.Context, f *folder, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &StoppedError{Sequence: f.next(), Err: err}
}
