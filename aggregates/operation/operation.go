// Package operation guards what people ask of an operation and how it ended.
package operation

import (
	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// State is what decisions need to know of an operation.
type State struct {
	cancelled bool
	attempts  int
	outcome   events.Outcome
}

// Fold is the state after e.
func (s State) Fold(e events.OperationEvent) State {
	switch e := e.(type) {
	case events.CancelAsked:
		s.cancelled = true
	case events.RetryAsked:
		s.attempts, s.outcome = e.Attempt, ""
	case events.OperationFinished:
		s.outcome = e.Outcome
	}
	return s
}

// final says that nothing changes how it ended.
func (s State) final() bool {
	return s.outcome != "" && s.outcome != events.Partly && s.outcome != events.LeftBehind
}

// Of names an operation's aggregate.
func Of(account events.AccountID, id events.OperationID) events.Aggregate {
	return events.Aggregate{Account: account, Region: events.None, Kind: events.KindOperation, ID: string(id)}
}

// Cancel asks for what is not finished to be undone.
type Cancel struct {
	Operation events.OperationID `json:"operation"`
}

// Aggregate is the operation.
func (c Cancel) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Operation) }

// Decide accepts it while the operation goes on, or could after a retry.
func (c Cancel) Decide(s State, _ aggregates.Facts) (events.OperationEvent, error) {
	switch {
	case s.cancelled:
		return nil, aggregates.Already("its cancellation was asked for before")
	case s.final():
		return nil, aggregates.Already("the operation has ended: %s", s.outcome)
	}
	return events.CancelAsked{}, nil
}

// Retry asks for what failed to be tried again, in one region or in all.
type Retry struct {
	Operation events.OperationID `json:"operation"`
	Region    events.RegionID    `json:"region,omitempty"`
}

// Aggregate is the operation.
func (c Retry) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Operation) }

// Decide accepts it unless there is nothing left to try. Of a cancelled operation
// that has not ended it is the undoing that is tried again.
func (c Retry) Decide(s State, _ aggregates.Facts) (events.OperationEvent, error) {
	switch {
	case s.outcome == events.Succeeded:
		return nil, aggregates.Already("everything in it has succeeded")
	case s.outcome == events.RolledBack || s.outcome == events.Cancelled:
		return nil, aggregates.Refuse("operation-undone", "operation %s was undone: everything is as before it", c.Operation).
			WithNext("send its command again, as a new one")
	}
	return events.RetryAsked{Region: c.Region, Attempt: s.attempts + 1}, nil
}

// Finish records how it ended.
type Finish struct {
	Operation events.OperationID `json:"operation"`
	Outcome   events.Outcome     `json:"outcome"`
	Cause     *events.Cause      `json:"cause,omitempty"`
}

// Aggregate is the operation.
func (c Finish) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Operation) }

// Decide records a first or a new outcome: what has ended partly may still end
// better or be given up. Every other end is final.
func (c Finish) Decide(s State, _ aggregates.Facts) (events.OperationEvent, error) {
	if s.outcome == c.Outcome || s.final() {
		return nil, aggregates.Already("the operation has ended: %s", s.outcome)
	}
	return events.OperationFinished{Outcome: c.Outcome, Cause: c.Cause}, nil
}
