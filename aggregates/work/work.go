// Package work guards one work order: one external effect asked of one region,
// taken up by one epoch of that region's agent at a time, done, failed, or undone.
package work

import (
	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

type phase int

const (
	ordered phase = iota + 1
	started
	done
	failed
	undoing
	undone
	stuck
	writtenOff
)

// State is what decisions need to know of a work order.
type State struct {
	phase   phase
	undo    bool // the undo was ordered
	epoch   int  // the highest that took it up
	attempt int
}

// Fold is the state after e.
func (s State) Fold(e events.WorkEvent) State {
	switch e := e.(type) {
	case events.WorkOrdered:
		s.phase = ordered
	case events.WorkStarted:
		if !s.undo {
			s.phase = started
		}
		s.epoch, s.attempt = e.Epoch, e.Attempt
	case events.WorkDone:
		s.phase = done
	case events.WorkFailed:
		s.phase = failed
	case events.WorkUndoOrdered:
		s.phase, s.undo = undoing, true
	case events.WorkUndone:
		s.phase = undone
	case events.WorkStuck:
		s.phase = stuck
	case events.WorkRetried:
		s.phase = ordered
		if s.undo {
			s.phase = undoing
		}
	case events.WorkWrittenOff:
		s.phase = writtenOff
	}
	return s
}

// Ref addresses one work order; every command carries it.
type Ref struct {
	Region events.RegionID `json:"region"`
	Work   events.WorkID   `json:"work"`
}

// Aggregate is the work order.
func (r Ref) Aggregate(a events.AccountID) events.Aggregate {
	return events.Aggregate{Account: a, Region: r.Region, Kind: events.KindWork, ID: string(r.Work)}
}

func (s State) known(r Ref) error {
	if s.phase == 0 {
		return aggregates.RefuseAs(aggregates.NotFound, "work-unknown", "%s has no work order %s", r.Region, r.Work)
	}
	return nil
}

// hears says why an agent of this epoch has no say in the order.
func (s State) hears(r Ref, epoch int) error {
	if err := s.known(r); err != nil {
		return err
	}
	if epoch < s.epoch {
		return aggregates.Refuse("stale-epoch", "epoch %d has lost the region to epoch %d", epoch, s.epoch)
	}
	return nil
}

// Order asks the region for one effect.
type Order struct {
	Ref
	events.WorkOrdered
}

// Decide orders it once.
func (c Order) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if s.phase != 0 {
		return nil, nil
	}
	return c.WorkOrdered, nil
}

// Start is an agent taking the order up, with its epoch.
type Start struct {
	Ref
	Epoch int `json:"epoch"`
}

// Decide lets the newest epoch have it; an older one has lost its region.
func (c Start) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.hears(c.Ref, c.Epoch); err != nil {
		return nil, err
	}
	switch {
	case s.phase == ordered, (s.phase == started || s.phase == undoing) && c.Epoch > s.epoch:
		return events.WorkStarted{Epoch: c.Epoch, Attempt: s.attempt + 1}, nil
	case s.phase == started || s.phase == undoing:
		return nil, nil
	}
	return nil, aggregates.Refuse("work-closed", "work order %s is not open", c.Work)
}

// ReportDone says that the effect is there.
type ReportDone struct {
	Ref
	Epoch  int           `json:"epoch"`
	Result events.Result `json:"result"`
}

// Decide accepts it from the epoch that has the order. Once the undo is
// ordered, "done" comes too late: the undo will take the effect away.
func (c ReportDone) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.hears(c.Ref, c.Epoch); err != nil {
		return nil, err
	}
	switch {
	case s.phase == started && c.Epoch == s.epoch:
		return events.WorkDone{Epoch: c.Epoch, Result: c.Result}, nil
	case s.phase == done, s.undo, s.phase == writtenOff:
		return nil, nil
	}
	return nil, notStarted(c.Work, c.Epoch)
}

func notStarted(w events.WorkID, epoch int) error {
	return aggregates.Refuse("work-not-started", "epoch %d has not started work order %s", epoch, w)
}

// ReportFailed says that the effect is not there and will not come by itself.
type ReportFailed struct {
	Ref
	Epoch int          `json:"epoch"`
	Cause events.Cause `json:"cause"`
}

// Decide records the failure of a started order.
func (c ReportFailed) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.hears(c.Ref, c.Epoch); err != nil {
		return nil, err
	}
	switch {
	case s.phase == started && c.Epoch == s.epoch:
		return events.WorkFailed{Epoch: c.Epoch, Cause: c.Cause}, nil
	case s.phase == ordered || s.phase == started:
		return nil, notStarted(c.Work, c.Epoch)
	}
	return nil, nil // it has ended, or its undo has been ordered: this comes too late
}

// OrderUndo asks for whatever there is of the effect to go.
type OrderUndo struct {
	Ref
	Why events.Cause `json:"why"`
}

// Decide orders the undo, also of an order that is done or failed.
func (c OrderUndo) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.known(c.Ref); err != nil {
		return nil, err
	}
	if s.undo || s.phase == writtenOff {
		return nil, nil
	}
	return events.WorkUndoOrdered{Why: c.Why}, nil
}

// ReportUndone says that nothing of the effect is left.
type ReportUndone struct {
	Ref
	Epoch int `json:"epoch"`
}

// Decide records the undo that was ordered.
func (c ReportUndone) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.hears(c.Ref, c.Epoch); err != nil {
		return nil, err
	}
	switch {
	case (s.phase == undoing || s.phase == stuck) && c.Epoch == s.epoch:
		return events.WorkUndone{Epoch: c.Epoch}, nil
	case s.phase == undoing || s.phase == stuck:
		return nil, notStarted(c.Work, c.Epoch)
	case s.phase == undone || s.phase == writtenOff:
		return nil, nil
	}
	return nil, aggregates.Refuse("undo-not-ordered", "nobody asked to undo work order %s", c.Work)
}

// ReportStuck says that the undo did not work; a person must look.
type ReportStuck struct {
	Ref
	Epoch int          `json:"epoch"`
	Cause events.Cause `json:"cause"`
}

// Decide records it for an undo under way.
func (c ReportStuck) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.hears(c.Ref, c.Epoch); err != nil {
		return nil, err
	}
	switch {
	case s.phase == undoing && c.Epoch == s.epoch:
		return events.WorkStuck{Epoch: c.Epoch, Cause: c.Cause}, nil
	case s.phase == undoing:
		return nil, notStarted(c.Work, c.Epoch)
	}
	return nil, nil
}

// Retry opens a failed or stuck order again.
type Retry struct{ Ref }

// Decide opens it where there is something to try again.
func (c Retry) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.known(c.Ref); err != nil {
		return nil, err
	}
	if s.phase != failed && s.phase != stuck {
		return nil, aggregates.Already("work order %s is neither failed nor stuck", c.Work)
	}
	return events.WorkRetried{}, nil
}

// WriteOff says that nobody will do it any more.
type WriteOff struct {
	Ref
	Why events.Cause `json:"why"`
}

// Decide closes what is not closed.
func (c WriteOff) Decide(s State, _ aggregates.Facts) (events.WorkEvent, error) {
	if err := s.known(c.Ref); err != nil {
		return nil, err
	}
	switch s.phase {
	case writtenOff, undone:
		return nil, nil
	case done:
		return nil, aggregates.Already("work order %s is done", c.Work)
	}
	return events.WorkWrittenOff{Why: c.Why}, nil
}
