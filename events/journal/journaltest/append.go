package journaltest

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

func roundTrip(s *suite) {
	p := s.propose(region("sydney"), events.Head{}, events.RegionAdded{Region: "sydney", Profile: events.RegionProfile{Name: "Sydney", Aliases: []string{"SYD"}, Latitude: -33.87, Longitude: 151.21}})
	p.Time = p.Time.In(time.FixedZone("AEDT", 11*3600))
	p.Actor = events.Actor{Account: "acme", User: "Zoë \"Z\" 100%\r\n"}
	p.Correlation = "an operation %41"
	p.Causation = "cause"
	p.TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	got := s.append(p)
	want := events.Record{
		ID: p.ID, Aggregate: p.Aggregate, Sequence: 1, Revision: 1, Time: p.Time.UTC(), Actor: p.Actor, Command: p.Command,
		Correlation: p.Correlation, Causation: p.Causation, TraceParent: p.TraceParent, Schema: 1,
		Digest: got.Digest, Event: p.Event, Payload: got.Payload,
	}
	if !got.Digest.Valid() || len(got.Payload) == 0 || !reflect.DeepEqual(got, want) {
		s.Fatalf("appended:\n%+v\nwant:\n%+v", got, want)
	}
	next := s.append(s.propose(p.Aggregate, got.Head(), epoch(1)))
	if next.Revision != 2 || next.Previous != got.Digest {
		s.Fatalf("the second event has revision %d and names %s before it", next.Revision, next.Previous)
	}
	loaded, followed := s.load(p.Aggregate, events.Head{}), s.followTo(0, 2)
	for i, r := range []events.Record{got, next} {
		if loaded[i].Stored.IsZero() || !loaded[i].Stored.Equal(followed[i].Stored) {
			s.Errorf("stored at %s when loaded, %s when followed", loaded[i].Stored, followed[i].Stored)
		}
		loaded[i].Stored, followed[i].Stored = time.Time{}, time.Time{}
		if !reflect.DeepEqual(loaded[i], r) || !reflect.DeepEqual(followed[i], r) {
			s.Errorf("appended:\n%+v\nloaded:\n%+v\nfollowed:\n%+v", r, loaded[i], followed[i])
		}
	}
	subject, header, payload := s.Message(1)
	if d := journal.DigestOf(subject, header, payload); d != got.Digest {
		s.Errorf("the stored message's digest is %s, the record's %s", d, got.Digest)
	}
}

func refusedProposals(s *suite) {
	good := func() journal.Proposal { return s.propose(region("sydney"), events.Head{}, epoch(1)) }
	for name, c := range map[string]struct {
		spoil func(*journal.Proposal)
		want  error
	}{
		"no event":         {func(p *journal.Proposal) { p.Event = nil }, journal.ErrProposal},
		"no id":            {func(p *journal.Proposal) { p.ID = "" }, journal.ErrProposal},
		"no time":          {func(p *journal.Proposal) { p.Time = time.Time{} }, journal.ErrProposal},
		"bad name":         {func(p *journal.Proposal) { p.Aggregate.ID = "a.>" }, journal.ErrProposal},
		"other kind":       {func(p *journal.Proposal) { p.Aggregate.Kind = "pool" }, journal.ErrProposal},
		"half a head":      {func(p *journal.Proposal) { p.Expect.Sequence = 7 }, journal.ErrProposal},
		"not UTF-8":        {func(p *journal.Proposal) { p.Correlation = "\xff" }, journal.ErrProposal},
		"unknown event":    {func(p *journal.Proposal) { p.Event = unregistered{} }, events.ErrUnknownEvent},
		"large payload":    {func(p *journal.Proposal) { p.Event = added(events.MaxPayload) }, events.ErrTooLarge},
		"large headers":    {func(p *journal.Proposal) { p.Correlation = strings.Repeat("c", journal.MaxHeaders) }, events.ErrTooLarge},
		"headers escaping": {func(p *journal.Proposal) { p.Correlation = strings.Repeat(" ", journal.MaxHeaders/2) }, events.ErrTooLarge},
	} {
		p := good()
		c.spoil(&p)
		_, err := s.Journal.Append(s.ctx, p)
		s.wantError(name, err, c.want)
	}
	if tip := s.tip(); tip != 0 {
		s.Fatalf("%d events are stored", tip)
	}
	// The largest that fits.
	p := s.propose(region("sydney"), events.Head{}, added(events.MaxPayload-200))
	p.Correlation = strings.Repeat("c", journal.MaxHeaders-1200)
	s.append(p)
}

// unregistered is an event that no registry holds.
type unregistered struct{}

func (unregistered) EventType() events.Type { return "region.never-heard-of" }

// added is an ordinary event with about n bytes.
func added(n int) events.Event {
	return events.RegionAdded{Region: "sydney", Profile: events.RegionProfile{Name: strings.Repeat("n", n)}}
}

func expectedSequence(s *suite) {
	a := region("sydney")
	first := s.append(s.propose(a, events.Head{}, epoch(1)))
	s.append(s.propose(region("chicago"), events.Head{}, epoch(1))) // other aggregates do not matter
	second := s.append(s.propose(a, first.Head(), epoch(2)))

	for name, expect := range map[string]events.Head{
		"behind": first.Head(), "none": {}, "ahead": {Sequence: 9, Revision: 3, Digest: second.Digest},
		"another aggregate's": {Sequence: 2, Revision: 1, Digest: second.Digest},
	} {
		_, err := s.Journal.Append(s.ctx, s.propose(a, expect, epoch(3)))
		var conflict *journal.ConflictError
		if !errors.As(err, &conflict) || !errors.Is(err, journal.ErrConflict) || conflict.Actual != second.Head() || conflict.Expected != expect {
			s.Errorf("%s: %v (%+v), want a conflict with %+v", name, err, conflict, second.Head())
		}
	}
	if tip := s.tip(); tip != 3 {
		s.Fatalf("the tip is %d, want 3", tip)
	}
}

func race(s *suite) {
	const rounds, writers = 20, 2
	var head events.Head
	for range rounds {
		var records [writers]events.Record
		var errs [writers]error
		proposals := [writers]journal.Proposal{s.propose(region("sydney"), head, epoch(1)), s.propose(region("sydney"), head, epoch(2))}
		var group sync.WaitGroup
		for i := range writers {
			group.Go(func() { records[i], errs[i] = s.Journal.Append(s.ctx, proposals[i]) })
		}
		group.Wait()
		winner := 0
		if errs[0] != nil {
			winner = 1
		}
		if errs[winner] != nil {
			s.Fatalf("nobody won: %v; %v", errs[0], errs[1])
		}
		var conflict *journal.ConflictError
		if !errors.As(errs[1-winner], &conflict) || conflict.Actual != records[winner].Head() {
			s.Fatalf("the loser got %v, want a conflict with %+v", errs[1-winner], records[winner].Head())
		}
		head = records[winner].Head()
	}
	if n := len(s.load(region("sydney"), events.Head{})); n != rounds {
		s.Fatalf("%d events after %d rounds", n, rounds)
	}
}

func manyWriters(s *suite) {
	const writers, each = 16, 20
	var group sync.WaitGroup
	for w := range writers {
		a := region("r" + string(rune('a'+w)))
		var proposals []journal.Proposal
		for range each {
			proposals = append(proposals, s.propose(a, events.Head{}, epoch(1)))
		}
		group.Go(func() {
			var head events.Head
			for _, p := range proposals {
				p.Expect = head
				r, err := s.Journal.Append(s.ctx, p)
				if err != nil {
					s.Errorf("append: %v", err)
					return
				}
				head = r.Head()
			}
		})
	}
	group.Wait()
	heads := map[events.Aggregate]events.Record{}
	for i, r := range s.followTo(0, writers*each) {
		before := heads[r.Aggregate]
		if r.Sequence != uint64(i)+1 || r.Revision != before.Revision+1 || r.Previous != before.Digest {
			s.Fatalf("sequence %d is revision %d after %d of %s", r.Sequence, r.Revision, before.Revision, r.Aggregate)
		}
		heads[r.Aggregate] = r
	}
}

func repeat(s *suite) {
	p := s.propose(region("sydney"), events.Head{}, epoch(1))
	first, again := s.append(p), s.append(p)
	if !reflect.DeepEqual(first, again) {
		s.Fatalf("first:\n%+v\nagain:\n%+v", first, again)
	}
	if tip := s.tip(); tip != 1 {
		s.Fatalf("the tip is %d, want 1", tip)
	}
}

func oldRepeat(s *suite) {
	a := region("sydney")
	before := s.grow(a, events.Head{}, 3)
	p := s.propose(a, before[2].Head(), epoch(4))
	first := s.append(p)
	s.grow(region("chicago"), events.Head{}, 2)
	s.grow(a, first.Head(), 5)
	if again := s.append(p); !reflect.DeepEqual(first, again) {
		s.Fatalf("first:\n%+v\nagain:\n%+v", first, again)
	}
	if tip := s.tip(); tip != 11 {
		s.Fatalf("the tip is %d, want 11", tip)
	}
}

func lostAck(s *suite) {
	head := s.grow(region("sydney"), events.Head{}, 2)[1].Head()
	for i := range 3 {
		p := s.propose(region("sydney"), head, epoch(i))
		s.LoseAck()
		r := s.append(p)
		if r.ID != p.ID || r.Revision != head.Revision+1 || !r.Stored.IsZero() {
			s.Fatalf("appended %+v after %+v", r, head)
		}
		head = r.Head()
	}
	if n := len(s.load(region("sydney"), events.Head{})); n != 5 {
		s.Fatalf("%d events are stored, want 5", n)
	}
}

func cutAppend(s *suite) {
	first := s.append(s.propose(region("sydney"), events.Head{}, epoch(1)))
	p := s.propose(region("sydney"), first.Head(), epoch(2))
	s.Cut()
	short, cancel := context.WithTimeout(s.ctx, 100*time.Millisecond)
	defer cancel()
	_, err := s.Journal.Append(short, p)
	s.wantError("append during a cut", err, journal.ErrAmbiguous)
	s.wantError("append during a cut", err, context.DeadlineExceeded)
	s.Heal()
	r := s.append(p)
	if n := len(s.load(region("sydney"), events.Head{})); n != 2 || r.Revision != 2 {
		s.Fatalf("%d events are stored, the last is revision %d; want 2", n, r.Revision)
	}
}

func full(s *suite) {
	a := region("sydney")
	var p journal.Proposal
	var last events.Record
	var err error
	for range Limit / (32 << 10) {
		p = s.propose(a, last.Head(), added(60<<10))
		var r events.Record
		if r, err = s.Journal.Append(s.ctx, p); err != nil {
			break
		}
		last = r
	}
	var fullness *journal.FullError
	if !errors.As(err, &fullness) || !errors.Is(err, journal.ErrFull) || fullness.Limit != Limit || fullness.Code() != "journal-nearly-full" {
		s.Fatalf("ordinary events end with %v, want ErrFull", err)
	}
	used, limit, err := s.Journal.Usage(s.ctx)
	if err != nil || limit != Limit || used < Limit*8/10 || used > Limit*9/10 {
		s.Fatalf("usage %d of %d, %v", used, limit, err)
	}
	// A stored proposal is answered also now; a conflict is one.
	p.Expect = events.Head{}
	if _, err := s.Journal.Append(s.ctx, p); !errors.Is(err, journal.ErrConflict) {
		s.Fatalf("a stale proposal: %v, want ErrConflict", err)
	}
	p.Expect, p.ID = events.Head{}, last.ID
	if again := s.append(p); again.Sequence != last.Sequence {
		s.Fatalf("the repeat is sequence %d, not %d", again.Sequence, last.Sequence)
	}
	// What finishes goes on, until nothing fits at all.
	finish := func(n int) events.Event {
		return events.RegionRetired{Operation: events.OperationID(strings.Repeat("o", n))}
	}
	last = s.append(s.propose(a, last.Head(), finish(10)))
	for {
		r, err := s.Journal.Append(s.ctx, s.propose(a, last.Head(), finish(60<<10)))
		if err != nil {
			s.wantError("beyond the limit", err, journal.ErrFull)
			if !errors.As(err, &fullness) || fullness.Code() != "journal-full" {
				s.Fatalf("beyond the limit: %v, want journal-full", err)
			}
			break
		}
		last = r
	}
	if records := s.load(a, events.Head{}); uint64(len(records)) != last.Revision || s.tip() != last.Sequence {
		s.Fatalf("%d events are stored, want %d", len(records), last.Revision)
	}
}
