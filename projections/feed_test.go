package projections

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

func one(id string, value uint64) edited {
	return edited{Put: []thing{{Group: "a", ID: id, Value: value, Tags: []string{"t" + id}}}}
}

// An event that cannot be folded stops the feed just before it, for all
// projections, visibly; the rows of the events before it are there.
func TestStopsAtAnError(t *testing.T) {
	for _, batch := range []int{1, 0} {
		o := inMemory()
		o.BatchBytes = batch
		s := openStore(t, "db", o)
		f := feedOf(t, s, counts{}, things{})
		bad := one("3", 3)
		bad.Fail = true
		log := newStream(one("1", 1), one("2", 2), bad, one("4", 4))
		err := f.Run(t.Context(), log)
		var stopped *StoppedError
		if !errors.As(err, &stopped) || stopped.Sequence != 3 || stopped.Projection != "things" || !errors.Is(err, errTold) {
			t.Fatalf("the feed ended with %v", err)
		}
		if st := f.Status(); st.Running || st.Position != 2 || !errors.As(st.Stopped, &stopped) {
			t.Errorf("status: %+v", st)
		}
		v, err := f.Now()
		must(t, err)
		n, _, err := countRows.Get(v, "events")
		must(t, err)
		if rows := collect(t, thingRows, v, Query[thing]{}); v.Position() != 2 || n.N != 2 || len(rows) != 2 {
			t.Errorf("at %d: count %d, rows %v", v.Position(), n.N, rows)
		}
		must(t, v.Close())
		var behind *BehindError
		if err := f.WaitFor(t.Context(), 3); !errors.As(err, &behind) || behind.Position != 2 || !errors.Is(err, errTold) {
			t.Errorf("waiting for an event behind the stop: %v", err)
		}
		// A program that can fold it goes on from there.
		must(t, s.Close())
		s = openStore(t, "db", o)
		f = feedOf(t, s, counts{}, things{trust: true})
		feedTo(t, f, log, 4)
		if digest(t, f, 4, "counts") == digest(t, f, 3, "counts") {
			t.Error("nothing was folded")
		}
		must(t, s.Close())
	}
}

func TestStopsAtAGap(t *testing.T) {
	s := openStore(t, "db", inMemory())
	defer s.Close()
	f, log := feedOf(t, s, things{}), newStream(one("1", 1), one("2", 2))
	log.addRecord(events.Record{Sequence: 4, Event: one("4", 4)})
	err := f.Run(t.Context(), log)
	var stopped *StoppedError
	if !errors.As(err, &stopped) || stopped.Sequence != 3 || !errors.Is(err, journal.ErrGap) {
		t.Fatalf("the feed ended with %v", err)
	}
	if p, err := f.Position(); p != 2 || err != nil {
		t.Errorf("position %d, %v", p, err)
	}
}

func TestStopsWithTheJournal(t *testing.T) {
	s := openStore(t, "db", inMemory())
	defer s.Close()
	f, log := feedOf(t, s, things{}), newStream(one("1", 1))
	log.fails = journal.ErrVanished
	err := f.Run(t.Context(), log)
	var stopped *StoppedError
	if !errors.As(err, &stopped) || stopped.Sequence != 2 || !errors.Is(f.Status().Stopped, journal.ErrVanished) {
		t.Fatalf("the feed ended with %v", err)
	}
	if p, _ := f.Position(); p != 1 {
		t.Errorf("position %d", p)
	}
}

func TestWaitFor(t *testing.T) {
	s := openStore(t, "db", inMemory())
	defer s.Close()
	f, log := feedOf(t, s, things{}), newStream()
	stop := start(t, f, log)
	defer stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var behind *BehindError
	if err := f.WaitFor(ctx, 1); !errors.As(err, &behind) || behind.Wanted != 1 || behind.Position != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("waiting in vain: %v", err)
	}
	var wg sync.WaitGroup
	for i := range uint64(20) {
		wg.Go(func() {
			id := fmt.Sprint(i)
			seq := log.add(one(id, i))
			if err := f.WaitFor(t.Context(), seq, "things"); err != nil {
				t.Error(err)
				return
			}
			v, err := f.Now()
			if err != nil {
				t.Error(err)
				return
			}
			defer v.Close()
			if row, ok, err := thingRows.Get(v, "a", id); !ok || err != nil || row.Value != i {
				t.Errorf("own write %s not read at %d: %v %v", id, v.Position(), row, err)
			}
		})
	}
	wg.Wait()
	if _, err := f.AsOf(21); !errors.As(err, &behind) || behind.Position != 20 || codeOf(err) != CodeBehind {
		t.Errorf("a view of the future: %v", err)
	}
}

// A view shows one position, whatever is folded, rebuilt or deleted meanwhile.
func TestViewStandsStill(t *testing.T) {
	s := openStore(t, "db", inMemory())
	defer s.Close()
	f, log := feedOf(t, s, things{}, counts{}), newStream(one("1", 1), one("2", 2))
	feedTo(t, f, log, 2)
	v, err := f.Now()
	must(t, err)
	defer v.Close()
	before, err := v.Digest("things")
	must(t, err)
	log.add(edited{Clear: "a"})
	must(t, f.Rebuild("things"))
	feedTo(t, f, log, 3)
	waitBuilt(t, f, log)
	after, err := v.Digest("things")
	must(t, err)
	if before != after || v.Position() != 2 || len(collect(t, thingRows, v, Query[thing]{By: byTag})) != 2 {
		t.Errorf("the view moved")
	}
	if digest(t, f, 2, "things") != before || digest(t, f, 3, "things") == before {
		t.Errorf("as-of digests are wrong after the rebuild")
	}
}

// waitBuilt runs the feed until nothing is being built.
func waitBuilt(t testing.TB, f *Feed, from Follower) {
	t.Helper()
	stop := start(t, f, from)
	defer stop()
	for {
		f.mu.RLock()
		left, moved := len(f.builds), f.moved
		f.mu.RUnlock()
		if left == 0 {
			return
		}
		select {
		case <-moved:
		case <-t.Context().Done():
			t.Fatal("never built")
		}
	}
}

func fill(n int) *stream {
	log := newStream()
	for i := range n {
		log.add(edited{Put: []thing{{Group: fmt.Sprint(i % 7), ID: fmt.Sprint(i % 50), Value: uint64(i)}}})
	}
	return log
}

// A rebuild goes on beside the feed, which folds and serves meanwhile, and ends
// with the same rows in another space; the old space is gone.
func TestRebuildBeside(t *testing.T) {
	o := inMemory()
	o.BatchBytes = 2000
	s := openStore(t, "db", o)
	defer s.Close()
	const n = 3000 // beyond tailEvents
	log := fill(n)
	f := feedOf(t, s, counts{}, things{})
	feedTo(t, f, log, n)
	before, old := digest(t, f, n, "things"), f.served["things"].space
	half := digest(t, f, n/2, "things")

	must(t, f.Rebuild("things"))
	if digest(t, f, n, "things") != before {
		t.Error("the old rows are not served")
	}
	stop := start(t, f, log)
	seq := log.add(one("x", 1))
	must(t, f.WaitFor(t.Context(), seq))
	must(t, ignoreCanceled(stop()))
	waitBuilt(t, f, log)
	if f.served["things"].space == old {
		t.Error("the space is the old one")
	}
	if digest(t, f, n, "things") != before || digest(t, f, n/2, "things") != half {
		t.Error("the rebuilt rows differ")
	}
	assertEmptySpace(t, s, old)
	if codeOf(f.Rebuild("nothing")) != CodeUnknown {
		t.Error("an unknown projection was rebuilt")
	}
}

// A rebuild while a feed runs that began with an empty store: what the feed
// folds afterwards finds the rows that the rebuild wrote.
func TestRebuildOfARunningFeed(t *testing.T) {
	for _, table := range []int{1, 1 << 20} {
		o := inMemory()
		o.tableBytes = table
		s := openStore(t, "db", o)
		f, log := feedOf(t, s, counts{}, things{}), fill(200)
		stop := start(t, f, log)
		must(t, f.WaitFor(t.Context(), 200))
		must(t, f.Rebuild("things"))
		built := func() (bool, <-chan struct{}) {
			f.mu.RLock()
			defer f.mu.RUnlock()
			return len(f.builds) == 0, f.moved
		}
		for done, moved := built(); !done; done, moved = built() {
			<-moved
		}
		last := log.add(edited{Put: []thing{{Group: "0", ID: "0", Value: 7, Tags: []string{"new"}}}, Delete: []Key{{"1", "1"}}, Clear: "2"})
		must(t, f.WaitFor(t.Context(), last))
		must(t, ignoreCanceled(stop()))

		fresh := openStore(t, "db", inMemory())
		g := feedOf(t, fresh, things{})
		feedTo(t, g, log, last)
		if digest(t, f, last, "things") != digest(t, g, last, "things") {
			t.Error("what is folded after a rebuild differs")
		}
		must(t, errors.Join(s.Close(), fresh.Close()))
	}
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func assertEmptySpace(t *testing.T, s *Store, space uint32) {
	t.Helper()
	for _, area := range []byte{areaCurrent, areaHistory} {
		it, err := s.db.NewIter(nil)
		must(t, err)
		head := appendHead(nil, area, space)
		if it.SeekGE(head) && string(it.Key()[:headLen]) == string(head) {
			t.Errorf("space %d still holds %q", space, it.Key())
		}
		must(t, it.Close())
	}
}

// A new shape: the old rows are served, at the position where they stopped,
// until the new ones have caught up; other projections go on.
func TestNewShape(t *testing.T) {
	const n = 2500
	o, log := inMemory(), fill(n)
	s := openStore(t, "db", o)
	f := feedOf(t, s, things{}, counts{})
	feedTo(t, f, log, n)
	old := digest(t, f, n, "things")
	space := f.served["things"].space
	must(t, s.Close())

	s = openStore(t, "db", o)
	reached, release := make(chan struct{}), make(chan struct{})
	p := things{shape: 2, bump: 1000, gate: func(r events.Record) {
		if r.Sequence == 700 {
			close(reached)
			<-release
		}
	}}
	f = feedOf(t, s, p, counts{})
	stop := start(t, f, log)
	<-reached
	seq := log.add(one("new", 5))
	must(t, f.WaitFor(t.Context(), seq, "counts"))
	st := f.Status().Projections[0]
	if st.Shape != 2 || st.Served != 1 || !st.Building || st.Position != n {
		t.Errorf("status while building: %+v", st)
	}
	v, err := f.Now()
	must(t, err)
	d, err := v.Digest("things")
	must(t, err)
	c, _, err := countRows.Get(v, "events")
	must(t, err)
	if v.Position() != n || d != old || c.N != n {
		t.Errorf("the view of both is at %d with %d events counted", v.Position(), c.N)
	}
	must(t, v.Close())
	v, err = f.Now("counts")
	must(t, err)
	if v.Position() != n+1 {
		t.Errorf("the other projection stands at %d", v.Position())
	}
	must(t, v.Close())
	close(release)
	must(t, f.WaitFor(t.Context(), seq))
	v, err = f.Now("things")
	must(t, err)
	row, ok, err := thingRows.Get(v, "a", "new")
	must(t, errors.Join(err, v.Close()))
	if !ok || row.Value != 1005 {
		t.Errorf("row of the new shape: %+v %v", row, ok)
	}
	assertEmptySpace(t, s, space)
	must(t, ignoreCanceled(stop()))
	got := digest(t, f, n+1, "things")
	must(t, s.Close())

	fresh := openStore(t, "db", inMemory())
	defer fresh.Close()
	g := feedOf(t, fresh, things{shape: 2, bump: 1000})
	feedTo(t, g, log, n+1)
	if digest(t, g, n+1, "things") != got {
		t.Error("built beside and built at first differ")
	}
}

// A projection that is new in an old store answers CodeBuilding until it is
// built; one that fails while it is built leaves the others alone.
func TestNewProjection(t *testing.T) {
	const n = 1500
	o, log := inMemory(), fill(n)
	bad := one("bad", 1)
	bad.Fail = true
	s := openStore(t, "db", o)
	f := feedOf(t, s, counts{})
	log.records[9].Event = bad
	feedTo(t, f, log, n)
	must(t, s.Close())

	s = openStore(t, "db", o)
	f = feedOf(t, s, counts{}, things{})
	v, err := f.Now()
	must(t, err)
	if _, _, err := thingRows.Get(v, "a", "1"); codeOf(err) != CodeBuilding {
		t.Errorf("read before it is built: %v", err)
	}
	must(t, v.Close())
	stop := start(t, f, log)
	<-f.failedBuild()
	must(t, f.WaitFor(t.Context(), log.add(one("1", 1)), "counts"))
	must(t, ignoreCanceled(stop()))
	var stopped *StoppedError
	if st := f.Status(); !errors.As(st.Projections[1].Failed, &stopped) || stopped.Sequence != 10 || st.Stopped != nil {
		t.Errorf("status: %+v", st)
	}
	must(t, s.Close())

	s = openStore(t, "db", o) // the program is mended
	f = feedOf(t, s, counts{}, things{trust: true})
	waitBuilt(t, f, log)
	if v, err := f.Now(); err != nil || v.Position() != n+1 || len(collect(t, thingRows, v, Query[thing]{Prefix: Key{"a"}})) != 2 || v.Close() != nil {
		t.Errorf("after the build: %v", err)
	}
	must(t, s.Close())

	s = openStore(t, "db", o) // and then the projection is taken out
	feedOf(t, s, counts{})
	if names, err := recordNames(s.db, metaProjection); err != nil || len(names) != 1 {
		t.Errorf("the store still knows %v, %v", names, err)
	}
	must(t, s.Close())
}

// failedBuild gives a channel that is closed once a build has failed.
func (f *Feed) failedBuild() <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		for {
			f.mu.RLock()
			moved, failed := f.moved, false
			for _, b := range f.builds {
				failed = failed || b.failed != nil
			}
			f.mu.RUnlock()
			if failed {
				return
			}
			<-moved
		}
	}()
	return out
}
