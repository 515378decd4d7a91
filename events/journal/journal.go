package journal

import (
	"context"
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

// Journal is the one place where facts are kept. All methods may be called from
// many goroutines.
type Journal interface {
	// Append stores one event if the aggregate still ends at p.Expect, and
	// returns it as stored, except that Stored is zero: the acknowledgement does
	// not carry it, and a repeat must answer what the first one did. Appending a
	// proposal that is already stored (same aggregate, same ID, anywhere after
	// p.Expect) returns that record and no error, also after a lost
	// acknowledgement. The head in Expect must come from a Record; only its
	// sequence can be checked by the store.
	//
	// Errors: ErrConflict, ErrAmbiguous, ErrFull, ErrVanished, ErrProposal,
	// events.ErrTooLarge, events.ErrUnknownEvent for an event without a registry
	// line, or the context's (then nothing was sent).
	Append(ctx context.Context, p Proposal) (events.Record, error)

	// Load gives the aggregate's events after the given head, in order, checked
	// against the hash chain from that head on. No events is no error. Errors:
	// ErrChain (also when the aggregate ends before the given head),
	// ErrVanished, events.ErrUnknownEvent.
	Load(ctx context.Context, a events.Aggregate, after events.Head) ([]events.Record, error)

	// Last gives the sequence of the aggregate's last event; 0 without any.
	// It is the cheap question "is my cached state at the tip?".
	Last(ctx context.Context, a events.Aggregate) (uint64, error)

	// Tip gives the sequence of the journal's last event.
	Tip(ctx context.Context) (uint64, error)

	// Follow calls each with every event after the position, in stream order,
	// one at a time, and goes on until the context ends (then it returns the
	// context's error), each returns an error (returned as is), or the journal
	// fails. A skipped sequence is ErrGap, and so is a position that the journal
	// does not reach; an event that this program cannot read is
	// events.ErrUnknownEvent; a lost stream is ErrVanished. It rides over lost
	// connections; where the journal behind them has another event than the one
	// that was seen last, it is ErrSetBack.
	Follow(ctx context.Context, after uint64, each func(events.Record) error) error

	// At gives the sequence of the last event stored not later than t; 0 if none.
	// Stored times are the store's clock and taken to never run backwards.
	At(ctx context.Context, t time.Time) (uint64, error)

	// Usage tells how full the journal is, in bytes; limit 0 means without limit.
	Usage(ctx context.Context) (used, limit uint64, err error)
}
