package journaltest

import (
	"context"
	"errors"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

func load(s *suite) {
	a, b := region("sydney"), region("chicago")
	var records []events.Record
	var headA, headB events.Head
	for range 60 { // scattered
		r := s.grow(a, headA, 1)[0]
		records, headA = append(records, r), r.Head()
		headB = s.grow(b, headB, 1)[0].Head()
	}
	if none := s.load(region("beijing"), events.Head{}); len(none) != 0 {
		s.Fatalf("an aggregate without events has %d", len(none))
	}
	for _, from := range []int{0, 1, 10, 11, 12, 50, 58, 59, 60} {
		var after events.Head
		if from > 0 {
			after = records[from-1].Head()
		}
		got := s.load(a, after)
		if len(got) != len(records)-from {
			s.Fatalf("%d events after revision %d, want %d", len(got), from, len(records)-from)
		}
		for i, r := range got {
			if want := records[from+i]; r.Sequence != want.Sequence || r.Digest != want.Digest || r.Event != want.Event {
				s.Fatalf("revision %d:\n%+v\nwant\n%+v", from+i+1, r, want)
			}
		}
	}
	for _, c := range []struct {
		a    events.Aggregate
		want uint64
	}{{a, headA.Sequence}, {b, headB.Sequence}, {region("beijing"), 0}} {
		if got, err := s.Journal.Last(s.ctx, c.a); err != nil || got != c.want {
			s.Fatalf("the last event of %s is %d, %v; want %d", c.a, got, err, c.want)
		}
	}
}

func wrongHead(s *suite) {
	a := region("sydney")
	records := s.grow(a, events.Head{}, 3)
	for name, head := range map[string]events.Head{
		"beyond the end":   {Sequence: 9, Revision: 3, Digest: records[2].Digest},
		"another digest":   {Sequence: 2, Revision: 2, Digest: records[0].Digest},
		"another revision": {Sequence: 2, Revision: 1, Digest: records[1].Digest},
	} {
		_, err := s.Journal.Load(s.ctx, a, head)
		s.wantError(name, err, journal.ErrChain)
	}
}

// forge stores a message made from a genuine event's, on another aggregate.
func (s *suite) forge(from uint64, onto events.Aggregate, set map[string]string, payload []byte) events.Digest {
	_, header, original := s.Message(from)
	header = maps.Clone(header)
	header["ce-subject"] = []string{onto.Subject()[len(events.SubjectPrefix):]}
	for name, value := range set {
		header[name] = []string{value}
	}
	for name := range header {
		if len(name) > 5 && name[:5] == "Nats-" {
			delete(header, name)
		}
	}
	if payload == nil {
		payload = original
	}
	s.Put(onto.Subject(), header, payload)
	return journal.DigestOf(onto.Subject(), header, payload)
}

func goodChain(s *suite) {
	s.grow(region("sydney"), events.Head{}, 2)
	first := s.forge(1, region("chicago"), nil, nil)
	s.forge(2, region("chicago"), map[string]string{"tombolo-previous": string(first)}, nil)
	if got := s.load(region("chicago"), events.Head{}); len(got) != 2 {
		s.Fatalf("%d events, want 2", len(got))
	}
}

// wantBroken checks that loading finds the break at the sequence.
func (s *suite) wantBroken(a events.Aggregate, sequence uint64) {
	s.Helper()
	_, err := s.Journal.Load(s.ctx, a, events.Head{})
	var chain *journal.ChainError
	if !errors.As(err, &chain) || !errors.Is(err, journal.ErrChain) || chain.Sequence != sequence {
		s.Fatalf("load: %v, want a broken chain at %d", err, sequence)
	}
}

func alteredEvent(s *suite) {
	records := s.grow(region("sydney"), events.Head{}, 2)
	_, header, payload := s.Message(1)
	header["ce-subject"] = []string{"_.chicago.region.chicago"}
	genuine := journal.DigestOf(region("chicago").Subject(), header, payload)
	altered := []byte(`{"epoch":99,"agent":"mallory","transfer":"","http":""}`)
	if forged := s.forge(1, region("chicago"), nil, altered); forged == genuine {
		s.Fatal("the digest does not depend on the payload")
	}
	s.forge(2, region("chicago"), map[string]string{"tombolo-previous": string(genuine)}, nil)
	s.wantBroken(region("chicago"), 4)

	// An event slipped in behind the journal's back, with the wrong predecessor.
	s.forge(2, region("sydney"), map[string]string{"tombolo-revision": "3", "tombolo-previous": string(records[0].Digest)}, nil)
	s.wantBroken(region("sydney"), 5)
}

func skippedRevision(s *suite) {
	records := s.grow(region("sydney"), events.Head{}, 2)
	s.forge(2, region("sydney"), map[string]string{"tombolo-revision": "4", "tombolo-previous": string(records[1].Digest)}, nil)
	s.wantBroken(region("sydney"), 3)
	s.forge(2, region("chicago"), map[string]string{"tombolo-revision": "1000"}, nil)
	s.wantBroken(region("chicago"), 4)
}

func bareMessage(s *suite) {
	s.grow(region("sydney"), events.Head{}, 2)
	s.Put(region("sydney").Subject(), nil, []byte(`{}`))
	s.wantBroken(region("sydney"), 3)
	seen, _ := s.followFails(0, events.ErrUnknownEvent)
	if len(seen) != 2 {
		s.Fatalf("follow gave %v before it stopped", seen)
	}
}

func follow(s *suite) {
	head := s.grow(region("sydney"), events.Head{}, 10)[9].Head()
	for _, after := range []uint64{0, 1, 9} {
		for i, r := range s.followTo(after, 10) {
			if r.Sequence != after+uint64(i)+1 {
				s.Fatalf("after %d the %d. event is %d", after, i+1, r.Sequence)
			}
		}
	}
	// Live: each event is appended once the one before has been seen.
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	seen, done := make(chan events.Record), make(chan error, 1)
	go func() {
		done <- s.Journal.Follow(ctx, 10, func(r events.Record) error { seen <- r; return nil })
	}()
	for range 5 {
		head = s.grow(region("sydney"), head, 1)[0].Head()
		select {
		case r := <-seen:
			if r.Head() != head {
				s.Fatalf("followed %+v, want %+v", r.Head(), head)
			}
		case err := <-done:
			s.Fatalf("follow ended: %v", err)
		}
	}
	cancel()
	select {
	case err := <-done:
		s.wantError("follow", err, context.Canceled)
	case <-time.After(5 * time.Second):
		s.Fatal("follow does not end with its context")
	}
}

func followStops(s *suite) {
	s.grow(region("sydney"), events.Head{}, 5)
	mine := errors.New("mine")
	var n int
	err := s.Journal.Follow(s.ctx, 0, func(events.Record) error {
		if n++; n == 3 {
			return mine
		}
		return nil
	})
	if err != mine || n != 3 {
		s.Fatalf("follow gave %v after %d events, want mine after 3", err, n)
	}
	// A callback that ends the context is not called again.
	ctx, cancel := context.WithCancel(s.ctx)
	n = 0
	err = s.Journal.Follow(ctx, 0, func(events.Record) error { n++; cancel(); return nil })
	s.wantError("follow", err, context.Canceled)
	if n != 1 {
		s.Fatalf("called %d times, want once", n)
	}
}

func followCut(s *suite) {
	const total = 300
	head := s.grow(region("sydney"), events.Head{}, total/2)[total/2-1].Head()
	reached := make(chan struct{})
	var last atomic.Uint64
	done := make(chan error, 1)
	go func() {
		done <- s.Journal.Follow(s.ctx, 0, func(r events.Record) error {
			if r.Sequence != last.Load()+1 {
				return errors.New("sequence " + strconv.FormatUint(r.Sequence, 10) + " follows " + strconv.FormatUint(last.Load(), 10))
			}
			last.Store(r.Sequence)
			switch r.Sequence {
			case 50: // in the middle of what is on the way
				s.Cut()
				s.Heal()
			case total / 2: // waiting for more
				close(reached)
			case total:
				return errReached
			}
			return nil
		})
	}()
	select {
	case <-reached:
	case err := <-done:
		s.Fatalf("follow ended at %d: %v", last.Load(), err)
	}
	s.Cut()
	s.Heal()
	s.grow(region("sydney"), head, total/2)
	select {
	case err := <-done:
		s.wantError("follow", err, errReached)
	case <-time.After(8 * time.Second):
		s.Fatalf("follow is still at %d", last.Load())
	}
}

func gap(s *suite) {
	s.grow(region("sydney"), events.Head{}, 6)
	s.Remove(4)
	seen, err := s.followFails(0, journal.ErrGap)
	var g *journal.GapError
	if !errors.As(err, &g) || *g != (journal.GapError{Missing: 4, Found: 5}) || len(seen) != 3 {
		s.Fatalf("follow gave %v and %v", seen, err)
	}
	_, err = s.followFails(3, journal.ErrGap)
	if !errors.As(err, &g) || g.Missing != 4 {
		s.Fatalf("follow from the gap: %v", err)
	}
	// The aggregate's chain shows it too.
	s.wantBroken(region("sydney"), 5)
}

func gapAtEnd(s *suite) {
	s.grow(region("sydney"), events.Head{}, 3)
	s.Remove(3)
	if _, err := s.followFails(2, journal.ErrGap); err == nil {
		s.Fatal("no error")
	}
}

func beyondEnd(s *suite) {
	s.grow(region("sydney"), events.Head{}, 3)
	_, err := s.followFails(7, journal.ErrGap)
	var g *journal.GapError
	if !errors.As(err, &g) || *g != (journal.GapError{Missing: 7}) {
		s.Fatalf("follow: %v", err)
	}
}

// stopsAtForged checks that a forged header on an otherwise good event stops Follow there.
func (s *suite) stopsAtForged(set map[string]string) {
	s.Helper()
	s.grow(region("sydney"), events.Head{}, 2)
	s.forge(1, region("chicago"), set, nil)
	s.grow(region("beijing"), events.Head{}, 1)
	seen, _ := s.followFails(0, events.ErrUnknownEvent)
	if len(seen) != 2 {
		s.Fatalf("follow gave %v before it stopped, want 2 events", seen)
	}
	_, err := s.Journal.Load(s.ctx, region("chicago"), events.Head{})
	s.wantError("load", err, events.ErrUnknownEvent)
}

func unknownType(s *suite) { s.stopsAtForged(map[string]string{"ce-type": "region.teleported"}) }

func newerSchema(s *suite) { s.stopsAtForged(map[string]string{"tombolo-schema": "9"}) }

func foreignEvent(s *suite) {
	s.stopsAtForged(map[string]string{"ce-source": "urn:uuid:00000000-0000-4000-8000-000000000000"})
}

func at(s *suite) {
	ask := func(t time.Time) uint64 {
		s.Helper()
		got, err := s.Journal.At(s.ctx, t)
		if err != nil {
			s.Fatalf("at %s: %v", t, err)
		}
		return got
	}
	if got := ask(time.Now()); got != 0 {
		s.Fatalf("an empty journal is at %d", got)
	}
	s.grow(region("sydney"), events.Head{}, 5)
	records := s.load(region("sydney"), events.Head{})
	want := func(t time.Time) (n uint64) {
		for _, r := range records {
			if !r.Stored.After(t) {
				n = r.Sequence
			}
		}
		return n
	}
	times := []time.Time{{}, time.Unix(0, 0), records[4].Stored.Add(time.Hour), records[0].Stored.Add(-time.Hour)}
	for _, r := range records {
		times = append(times, r.Stored.Add(-1), r.Stored, r.Stored.Add(1), r.Stored.In(time.FixedZone("", 3600)))
	}
	for _, t := range times {
		if got := ask(t); got != want(t) {
			s.Errorf("at %s the sequence is %d, want %d", t.Format(time.RFC3339Nano), got, want(t))
		}
	}
}

func vanished(s *suite) {
	head := s.grow(region("sydney"), events.Head{}, 3)[2].Head()
	if err := s.Reopen(); err != nil {
		s.Fatalf("reopen: %v", err)
	}
	reached, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- s.Journal.Follow(s.ctx, 2, func(events.Record) error { close(reached); return nil })
	}()
	select {
	case <-reached:
	case err := <-done:
		s.Fatalf("follow ended early: %v", err)
	}
	s.Vanish()
	s.wantError("follow", <-done, journal.ErrVanished)
	_, err := s.Journal.Append(s.ctx, s.propose(region("sydney"), head, epoch(4)))
	s.wantError("append", err, journal.ErrVanished)
	_, err = s.Journal.Load(s.ctx, region("sydney"), events.Head{})
	s.wantError("load", err, journal.ErrVanished)
	_, err = s.Journal.Last(s.ctx, region("sydney"))
	s.wantError("last", err, journal.ErrVanished)
	_, err = s.Journal.Tip(s.ctx)
	s.wantError("tip", err, journal.ErrVanished)
	_, err = s.Journal.At(s.ctx, time.Now())
	s.wantError("at", err, journal.ErrVanished)
	_, _, err = s.Journal.Usage(s.ctx)
	s.wantError("usage", err, journal.ErrVanished)
	s.wantError("reopen", s.Reopen(), journal.ErrVanished)
}

func contexts(s *suite) {
	s.grow(region("sydney"), events.Head{}, 1)
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	_, err := s.Journal.Append(ended, s.propose(region("chicago"), events.Head{}, epoch(1)))
	s.wantError("append", err, context.Canceled)
	if errors.Is(err, journal.ErrAmbiguous) {
		s.Errorf("nothing was sent, but append says %v", err)
	}
	_, err = s.Journal.Load(ended, region("sydney"), events.Head{})
	s.wantError("load", err, context.Canceled)
	_, err = s.Journal.Last(ended, region("sydney"))
	s.wantError("last", err, context.Canceled)
	_, err = s.Journal.Tip(ended)
	s.wantError("tip", err, context.Canceled)
	_, err = s.Journal.At(ended, time.Now())
	s.wantError("at", err, context.Canceled)
	err = s.Journal.Follow(ended, 0, func(events.Record) error { return errors.New("called") })
	s.wantError("follow", err, context.Canceled)
	if tip := s.tip(); tip != 1 {
		s.Fatalf("the tip is %d, want 1", tip)
	}
}
