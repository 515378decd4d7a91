// Package journal stores events and gives them back: Append, Load and Follow
// over a JetStream stream, with a twin in memory that passes the same
// conformance suite (package journaltest).
package journal

import (
	"context"
	"errors"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Proposal is an event on its way into the journal.
type Proposal struct {
	Aggregate   events.Aggregate
	Expect      events.Head // where the proposer believes the aggregate ends
	ID          string      // derived from the command; the same for every retry
	Time        time.Time
	Actor       events.Actor
	Command     events.CommandRef
	Correlation string
	Causation   string
	TraceParent string
	Event       events.Event
}

// Errors of a journal. A *ConflictError, *GapError or *ChainError carries more.
var (
	// ErrConflict: the aggregate has moved on since Expect; nothing was stored.
	ErrConflict = errors.New("the aggregate has other events than expected")
	// ErrAmbiguous: whether the event was stored could not be found out before
	// the context ended. Appending the same proposal again is safe.
	ErrAmbiguous = errors.New("whether the event was stored is not known")
	// ErrFull: the journal's limit is reached and the event is not one of those
	// that finish, undo or release.
	ErrFull = errors.New("the journal is full")
	// ErrGap: a sequence is missing. Nothing is ever deleted from the journal,
	// so the store beneath has lost an event; a reader must stop.
	ErrGap = errors.New("the journal has a gap")
	// ErrChain: an event does not continue its aggregate's hash chain.
	ErrChain = errors.New("the aggregate's hash chain is broken")
	// ErrVanished: a stream that once existed is gone, or is another one.
	// It is never made anew: that would present an empty history as the truth.
	ErrVanished = errors.New("the journal's stream has vanished")
)

// Journal is the one place where facts are kept. All methods may be called from
// many goroutines.
type Journal interface {
	// Append stores one event if the aggregate still ends at p.Expect, and
	// returns it as stored. Appending a proposal that is already stored (same
	// aggregate, same ID, directly or later found after p.Expect) returns the stored record and no
	// error, also after a lost acknowledgement. Errors: ErrConflict,
	// ErrAmbiguous, ErrFull, ErrVanished, events.ErrUnknownEvent for an event
	// without a registry line, or the context's.
	Append(ctx context.Context, p Proposal) (events.Record, error)

	// Load gives the aggregate's events after the given head, in order, checked
	// against the hash chain from that head on. No events is no error.
	Load(ctx context.Context, a events.Aggregate, after events.Head) ([]events.Record, error)

	// Last gives the sequence of the aggregate's last event; 0 without any.
	// It is the cheap question "is my cached state at the tip?".
	Last(ctx context.Context, a events.Aggregate) (uint64, error)

	// Tip gives the sequence of the journal's last event.
	Tip(ctx context.Context) (uint64, error)

	// Follow calls each with every event after the position, in stream order,
	// one at a time, and goes on until the context ends (then it returns the
	// context's error), each returns an error (returned as is), or the journal
	// fails. A skipped sequence is ErrGap. It rides over lost connections.
	Follow(ctx context.Context, after uint64, each func(events.Record) error) error

	// At gives the sequence of the last event stored not later than t; 0 if none.
	At(ctx context.Context, t time.Time) (uint64, error)

	// Usage tells how full the journal is, in bytes; limit 0 means without limit.
	Usage(ctx context.Context) (used, limit uint64, err error)
}
