package journal_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// recorded is a journal in memory with three events of each of two regions, one after the other.
func recorded(t *testing.T) *journal.Memory {
	t.Helper()
	m := journal.NewMemory(events.NewRegistry(), time.Now)
	heads := map[events.RegionID]events.Head{}
	for i := range 6 {
		id := []events.RegionID{"sydney", "chicago"}[i%2]
		var e events.Event = events.RegionAdded{Region: id, Profile: events.RegionProfile{Name: string(id) + ", 100 %"}}
		if i > 1 {
			e = events.EpochStarted{Epoch: i, Agent: "agent"}
		}
		r, err := m.Append(t.Context(), journal.Proposal{Aggregate: events.Aggregate{Account: events.None, Region: id, Kind: events.KindRegion, ID: string(id)},
			Expect: heads[id], ID: fmt.Sprintf("event %d", i), Time: time.Now(), Actor: events.Actor{Account: events.None, User: "añn"},
			Command: events.CommandRef{ID: "c", Digest: events.DigestOf([]byte("c"))}, Correlation: "x y", Event: e})
		if err != nil {
			t.Fatal(err)
		}
		heads[id] = r.Head()
	}
	return m
}

var errAll = errors.New("all was read")

func read(t *testing.T, m *journal.Memory, last uint64, each func(events.Record) error) error {
	t.Helper()
	return m.Follow(t.Context(), 0, func(r events.Record) error {
		if err := each(r); err != nil {
			return err
		}
		if r.Sequence == last {
			return errAll
		}
		return nil
	})
}

// TestDigestOfRecord: what somebody computes from a record is what the journal computed from the wire.
func TestDigestOfRecord(t *testing.T) {
	m := recorded(t)
	err := read(t, m, 6, func(r events.Record) error {
		_, header, _ := m.Message(r.Sequence)
		if got := journal.DigestOfRecord(header.Get("ce-source"), r.Event.EventType(), r); got != r.Digest {
			t.Errorf("sequence %d: %s, and the journal says %s", r.Sequence, got, r.Digest)
		}
		return nil
	})
	if !errors.Is(err, errAll) {
		t.Fatal(err)
	}
}

// TestAuditor: whatever is done to the events, the first that is touched is named.
func TestAuditor(t *testing.T) {
	m := recorded(t)
	var whole []events.Record
	if err := read(t, m, 6, func(r events.Record) error { whole = append(whole, r); return nil }); !errors.Is(err, errAll) {
		t.Fatal(err)
	}
	walk := func(known journal.Position, records []events.Record) (journal.Position, error) {
		a := journal.NewAuditor(false, known)
		for _, r := range records {
			if err := a.Check(r); err != nil {
				return a.At(), err
			}
		}
		return a.At(), a.End()
	}
	head, err := walk(journal.Position{}, whole)
	if err != nil || head.Sequence != 6 || !head.Digest.Valid() {
		t.Fatalf("untouched: %v, %v", head, err)
	}
	if back, err := journal.ParsePosition(head.String()); err != nil || back != head {
		t.Errorf("%s is read as %v, %v", head, back, err)
	}
	change := func(f func(r []events.Record) []events.Record) []events.Record {
		return f(append([]events.Record{}, whole...))
	}
	other := events.DigestOf([]byte("other"))
	for _, c := range []struct {
		name     string
		known    journal.Position
		records  []events.Record
		code     string
		sequence uint64
	}{
		{"altered, its digest computed again", journal.Position{}, change(func(r []events.Record) []events.Record { r[2].Digest = other; return r }), journal.FoundAltered, 3},
		{"the link altered", journal.Position{}, change(func(r []events.Record) []events.Record { r[4].Previous = other; return r }), journal.FoundAltered, 3},
		{"a first event with one before it", journal.Position{}, change(func(r []events.Record) []events.Record { r[1].Previous = other; return r }), journal.FoundAltered, 2},
		{"removed", journal.Position{}, change(func(r []events.Record) []events.Record { return append(r[:2], r[3:]...) }), journal.FoundMissing, 3},
		{"removed, the rest numbered again", journal.Position{}, change(func(r []events.Record) []events.Record {
			r = append(r[:2], r[3:]...)
			for i := range r {
				r[i].Sequence = uint64(i) + 1
			}
			return r
		}), journal.FoundMissing, 4},
		{"a revision twice", journal.Position{}, change(func(r []events.Record) []events.Record { r[4].Revision = 2; return r }), journal.FoundSwapped, 5},
		{"one put behind", journal.Position{}, change(func(r []events.Record) []events.Record { return append(r, r[5]) }), journal.FoundSwapped, 6},
		{"the last one altered, the head known", head, change(func(r []events.Record) []events.Record { r[5].Digest = other; return r }), journal.FoundOther, 6},
		{"two of different aggregates changed places and numbers, the head known", head, change(func(r []events.Record) []events.Record {
			r[4], r[5] = r[5], r[4]
			r[4].Sequence, r[5].Sequence = 5, 6
			return r
		}), journal.FoundOther, 6},
		{"another time of storing, the head known", head, change(func(r []events.Record) []events.Record { r[3].Stored = r[3].Stored.Add(1); return r }), journal.FoundOther, 6},
		{"the tail cut off, the head known", head, whole[:4], journal.FoundTruncated, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := walk(c.known, c.records)
			var f *journal.Flaw
			if !errors.As(err, &f) || f.Code != c.code || f.Sequence != c.sequence {
				t.Errorf("%v, want %s at %d", err, c.code, c.sequence)
			}
		})
	}
	// What a chain alone cannot show, it does not claim to.
	if at, err := walk(journal.Position{}, whole[:4]); err != nil || at.Sequence != 4 {
		t.Errorf("a tail that nobody knows of: %v, %v", at, err)
	}
	// Of two that changed places the finding says so once the second is seen.
	_, err = walk(journal.Position{}, change(func(r []events.Record) []events.Record { r[2], r[3] = r[3], r[2]; return r }))
	var f *journal.Flaw
	if !errors.As(err, &f) || f.Misplaced(whole[4]) || !f.Misplaced(whole[2]) || f.Code != journal.FoundSwapped || f.Sequence != 3 {
		t.Errorf("swapped: %v", err)
	}
}

// TestAuditorOverJournal: what the store lost stops the follower, at the place.
func TestAuditorOverJournal(t *testing.T) {
	m := recorded(t)
	m.Remove(4)
	a := journal.NewAuditor(false, journal.Position{})
	err := m.Follow(context.WithoutCancel(t.Context()), 0, a.Check)
	var gap *journal.GapError
	if !errors.As(err, &gap) || gap.Missing != 4 || a.At().Sequence != 3 {
		t.Errorf("%v, at %v", err, a.At())
	}
}
