package commands

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// Origin says where a command comes from: what the credential and the headers
// say, never the body.
type Origin struct {
	Account     events.AccountID // on whose behalf
	Actor       events.Actor
	Command     events.CommandRef
	Correlation string // the operation, or what the client gave
	Causation   string // the event that led to it; empty for people's commands
	TraceParent string
	IfRevision  *uint64 // refuse unless the aggregate is at this revision
}

// Outcome is what came of a command.
type Outcome struct {
	Aggregate events.Aggregate
	Head      events.Head // of the aggregate, with this command's event if there is one
	Event     events.Type // empty when there was nothing to do
	EventID   string
	Sequence  uint64 // of the event; without one, of the aggregate's last
	Because   string // why there was nothing to do
	Replayed  bool   // the command had been executed before; this is what came of it then
}

// Executor has what executing needs. It may be used from many goroutines.
type Executor struct {
	journal journal.Journal
	now     func() time.Time
	cache   *cache
}

// CacheSize is how many aggregates' states an executor keeps.
const CacheSize = 100_000

// NewExecutor makes an executor over a journal.
func NewExecutor(j journal.Journal, now func() time.Time) *Executor {
	return &Executor{journal: j, now: now, cache: newCache(CacheSize)}
}

// attempts bounds how often a decision is taken anew because another writer was
// faster; within one process a lock per aggregate makes even one rare.
const attempts = 10

// Execute has the aggregate decide the command and appends its event. The role
// tells apart the events of one command that spans several aggregates.
//
// The same command id with the same body gives the same outcome however often
// it comes; with another body it is refused (command-id-reused). Errors: a
// *aggregates.Refusal, or what the journal answers.
func Execute[S aggregates.State[S, E], E events.Event](ctx context.Context, x *Executor, o Origin, role string, c aggregates.Command[S, E]) (Outcome, error) {
	a := c.Aggregate(o.Account)
	if err := a.Validate(); err != nil {
		return Outcome{}, aggregates.RefuseAs(aggregates.Invalid, "bad-name", "%v", err)
	}
	id := events.DeriveID(o.Account, o.Command.ID, role)
	slot := x.cache.acquire(a)
	defer x.cache.release(slot)

	for range attempts {
		if !slot.loaded {
			if err := load[S, E](ctx, x, slot); err != nil {
				return Outcome{}, err
			}
		}
		if before, ok, err := slot.recall(id, o); ok || err != nil {
			return before, err
		}
		state, _ := slot.state.(S)
		event, err := decide(slot.head, state, o, x.now().UTC(), c)
		var already *aggregates.AlreadySo
		if err != nil && !errors.As(err, &already) || any(event) == nil {
			// "No" and "nothing to do" are true at the tip only.
			last, lerr := x.journal.Last(ctx, a)
			if lerr != nil {
				return Outcome{}, lerr
			}
			if last != slot.head.Sequence {
				slot.loaded = false
				continue
			}
			if err != nil && already == nil {
				return Outcome{}, err
			}
			out := Outcome{Aggregate: a, Head: slot.head, Sequence: slot.head.Sequence, Because: "it is already so"}
			if already != nil {
				out.Because = already.Because
			}
			return out, nil
		}
		rec, err := x.journal.Append(ctx, journal.Proposal{
			Aggregate: a, Expect: slot.head, ID: id, Time: x.now().UTC(), Actor: o.Actor, Command: o.Command,
			Correlation: o.Correlation, Causation: o.Causation, TraceParent: o.TraceParent, Event: event,
		})
		if errors.Is(err, journal.ErrConflict) {
			slot.loaded = false
			continue
		}
		if err != nil {
			slot.loaded = false // it may have been stored all the same
			return Outcome{}, err
		}
		if rec.Previous != slot.head.Digest || rec.Revision != slot.head.Revision+1 {
			slot.loaded = false // an earlier try of this command was stored before others
			continue
		}
		fold[S, E](slot, rec)
		return slot.answered[id].outcome, nil
	}
	return Outcome{}, aggregates.Refuse("busy", "%s changes faster than this command can be decided", a).WithNext("send it again")
}

func decide[S aggregates.State[S, E], E events.Event](head events.Head, s S, o Origin, now time.Time, c aggregates.Command[S, E]) (E, error) {
	if o.IfRevision != nil && *o.IfRevision != head.Revision {
		var none E
		return none, aggregates.Refuse("stale-revision", "it is at revision %d, not %d", head.Revision, *o.IfRevision).
			WithNext("read it again, then decide anew")
	}
	return c.Decide(s, aggregates.Facts{Now: now, Actor: o.Actor})
}

// Consider has the aggregate decide the command as of now and appends nothing:
// the event that would follow, none where there is nothing to do. What it says is
// a forecast; the same command, executed later, is decided anew.
func Consider[S aggregates.State[S, E], E events.Event](ctx context.Context, x *Executor, o Origin, c aggregates.Command[S, E]) (E, error) {
	var none E
	slot := x.cache.acquire(c.Aggregate(o.Account))
	defer x.cache.release(slot)
	if err := load[S, E](ctx, x, slot); err != nil {
		return none, err
	}
	state, _ := slot.state.(S)
	event, err := decide(slot.head, state, Origin{Actor: o.Actor}, x.now().UTC(), c)
	var already *aggregates.AlreadySo
	if errors.As(err, &already) {
		return none, nil
	}
	return event, err
}

// stateOf gives the aggregate's state as of now, for what has to be put into a
// command before it is decided. By then it may have changed.
func stateOf[S aggregates.State[S, E], E events.Event](ctx context.Context, x *Executor, a events.Aggregate) (S, error) {
	slot := x.cache.acquire(a)
	defer x.cache.release(slot)
	if err := load[S, E](ctx, x, slot); err != nil {
		var none S
		return none, err
	}
	state, _ := slot.state.(S)
	return state, nil
}

// Recall tells whether this command's event in the given role is among the
// aggregate's, and what its outcome was. It looks at the cached state first and
// is no decision: a "no" may be out of date.
func Recall[S aggregates.State[S, E], E events.Event](ctx context.Context, x *Executor, o Origin, role string, a events.Aggregate) (Outcome, bool, error) {
	slot := x.cache.acquire(a)
	defer x.cache.release(slot)
	if !slot.loaded {
		if err := load[S, E](ctx, x, slot); err != nil {
			return Outcome{}, false, err
		}
	}
	return slot.recall(events.DeriveID(o.Account, o.Command.ID, role), o)
}

// recall finds what came of the command before, unless its body was another.
func (s *slot) recall(id string, o Origin) (Outcome, bool, error) {
	before, ok := s.answered[id]
	if ok && before.body != o.Command.Digest {
		return Outcome{}, false, aggregates.Refuse("command-id-reused", "command %s was sent before with another body", o.Command.ID).
			WithNext("send a new command with a new id")
	}
	before.outcome.Replayed = ok
	return before.outcome, ok, nil
}

// load reads what the slot does not have yet.
func load[S aggregates.State[S, E], E events.Event](ctx context.Context, x *Executor, slot *slot) error {
	records, err := x.journal.Load(ctx, slot.aggregate, slot.head)
	if err != nil {
		return err
	}
	for _, r := range records {
		if _, ok := r.Event.(E); !ok {
			return fmt.Errorf("%s holds a %s: %w", slot.aggregate, r.Event.EventType(), events.ErrUnknownEvent)
		}
		fold[S, E](slot, r)
	}
	slot.loaded = true
	return nil
}

func fold[S aggregates.State[S, E], E events.Event](slot *slot, r events.Record) {
	state, _ := slot.state.(S)
	slot.state = state.Fold(r.Event.(E))
	slot.head = r.Head()
	slot.answered[r.ID] = answer{r.Command.Digest, Outcome{
		Aggregate: slot.aggregate, Head: slot.head, Event: r.Event.EventType(), EventID: r.ID, Sequence: r.Sequence,
	}}
}
