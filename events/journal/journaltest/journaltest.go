// Package journaltest is the conformance suite that every journal passes.
package journaltest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// Limit is the size that a Subject's journal must have, in bytes.
const Limit = 2 << 20

// Finishing is what a Subject's journal must take for events that finish.
func Finishing(p journal.Proposal) bool {
	return p.Event.EventType() == events.RegionRetired{}.EventType()
}

// Subject is an empty journal and the faults that the suite puts it through.
// Each fault is real for the implementation at hand.
type Subject struct {
	Journal journal.Journal
	// Reopen opens the same store once more, knowing what was there.
	Reopen func() error
	// LoseAck lets the next append be stored and loses its acknowledgement.
	LoseAck func()
	// Cut loses the connection until Heal.
	Cut, Heal func()
	// Remove makes the store lose an event.
	Remove func(sequence uint64)
	// Put stores a message past the journal.
	Put func(subject string, header nats.Header, payload []byte)
	// Message gives a stored message as it is.
	Message func(sequence uint64) (subject string, header nats.Header, payload []byte)
	// Vanish deletes the whole store.
	Vanish func()
}

// Run puts a journal through the suite; open gives a fresh, empty one each time.
func Run(t *testing.T, open func(*testing.T) Subject) {
	for _, c := range []struct {
		name string
		run  func(*suite)
	}{
		{"an event comes back as it was", roundTrip},
		{"proposals that cannot be stored", refusedProposals},
		{"the expected sequence is checked", expectedSequence},
		{"of racing writers one wins", race},
		{"many writers at once", manyWriters},
		{"a repeat gives the same record", repeat},
		{"an old proposal repeated after more events", oldRepeat},
		{"a lost acknowledgement", lostAck},
		{"an append during a cut is ambiguous, and safe to repeat", cutAppend},
		{"load from any head, few and many", load},
		{"a head that the aggregate does not have", wrongHead},
		{"a well-made chain is accepted", goodChain},
		{"an altered event breaks the chain", alteredEvent},
		{"a skipped revision breaks the chain", skippedRevision},
		{"a message without headers breaks the chain", bareMessage},
		{"follow from any position, then live", follow},
		{"follow ends with what each returns", followStops},
		{"follow rides over a cut", followCut},
		{"a gap stops follow", gap},
		{"a gap at the end stops follow", gapAtEnd},
		{"a position beyond the end stops follow", beyondEnd},
		{"an unknown type stops follow", unknownType},
		{"a newer schema stops follow", newerSchema},
		{"an event of another journal stops follow", foreignEvent},
		{"positions by time", at},
		{"a full journal", full},
		{"a vanished stream", vanished},
		{"ended contexts", contexts},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			c.run(&suite{T: t, Subject: open(t), ctx: ctx})
		})
	}
}

// suite is one case on its way.
type suite struct {
	*testing.T
	Subject
	ctx   context.Context
	drawn int
}

func region(name string) events.Aggregate {
	return events.Aggregate{Account: events.None, Region: events.RegionID(name), Kind: events.KindRegion, ID: name}
}

// propose makes a proposal that differs from all others of the case.
func (s *suite) propose(a events.Aggregate, expect events.Head, e events.Event) journal.Proposal {
	s.drawn++
	command := events.CommandID(fmt.Sprintf("command-%d", s.drawn))
	return journal.Proposal{
		Aggregate: a, Expect: expect, Event: e,
		ID:          events.DeriveID("acme", command, "event"),
		Time:        time.Date(2026, 11, 21, 10, 0, s.drawn, 123456789, time.UTC),
		Actor:       events.Actor{Account: "acme", User: "ada"},
		Command:     events.CommandRef{ID: command, Digest: events.DigestOf([]byte(command))},
		Correlation: "operation-1",
	}
}

func epoch(n int) events.Event {
	return events.EpochStarted{Epoch: n, Agent: "agent", Transfer: "127.0.0.1:1", HTTP: "127.0.0.1:2"}
}

// append stores a proposal that must go well.
func (s *suite) append(p journal.Proposal) events.Record {
	s.Helper()
	r, err := s.Journal.Append(s.ctx, p)
	if err != nil {
		s.Fatalf("append: %v", err)
	}
	return r
}

// grow appends n events to the aggregate after the head.
func (s *suite) grow(a events.Aggregate, head events.Head, n int) []events.Record {
	s.Helper()
	var out []events.Record
	for i := range n {
		r := s.append(s.propose(a, head, epoch(i+1)))
		out, head = append(out, r), r.Head()
	}
	return out
}

func (s *suite) load(a events.Aggregate, after events.Head) []events.Record {
	s.Helper()
	records, err := s.Journal.Load(s.ctx, a, after)
	if err != nil {
		s.Fatalf("load: %v", err)
	}
	return records
}

func (s *suite) tip() uint64 {
	s.Helper()
	tip, err := s.Journal.Tip(s.ctx)
	if err != nil {
		s.Fatalf("tip: %v", err)
	}
	return tip
}

func (s *suite) wantError(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: %v, want: %v", what, err, want)
	}
}

// errReached ends a follow that has seen enough.
var errReached = errors.New("reached")

// followTo gives what Follow says between two positions, and fails on anything else.
func (s *suite) followTo(after, to uint64) []events.Record {
	s.Helper()
	var out []events.Record
	err := s.Journal.Follow(s.ctx, after, func(r events.Record) error {
		out = append(out, r)
		if r.Sequence >= to {
			return errReached
		}
		return nil
	})
	s.wantError("follow", err, errReached)
	return out
}

// followFails runs Follow until it fails by itself.
func (s *suite) followFails(after uint64, want error) (seen []uint64, err error) {
	s.Helper()
	err = s.Journal.Follow(s.ctx, after, func(r events.Record) error {
		seen = append(seen, r.Sequence)
		return nil
	})
	s.wantError("follow", err, want)
	return seen, err
}
