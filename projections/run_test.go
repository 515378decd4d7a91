package projections

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tombolo-vdc/tombolo/events"
)

// What a feed writes as tables of its own, several events in each, is byte for
// byte what it writes event by event through the log; also if the power is cut
// while a table is written or taken in, and the feed goes on from what is left.
func TestTablesHoldWhatBatchesHold(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 8))
	const n = 600
	h := randomHistory(t, rng, n)
	fold := func(o Options) *Store {
		s := openStore(t, "db", o)
		feedTo(t, feedOf(t, s, things{}, counts{}), h.log, n)
		return s
	}
	events := fold(Options{fs: vfs.NewMem(), BatchBytes: 1})
	defer events.Close()
	want := raw(t, events)

	tables := fold(Options{fs: vfs.NewMem(), BatchBytes: 5000, tableBytes: 1})
	defer tables.Close()
	if got := raw(t, tables); got != want {
		t.Errorf("tables hold\n%s\nevent by event it was\n%s", got, want)
	}
	if m := tables.db.Metrics(); m.Ingest.Count == 0 {
		t.Error("no table was taken in: the test shows nothing")
	}

	disk, lost := &crashDisk{MemFS: vfs.NewCrashableMem()}, 0
	for position := uint64(0); position < n; {
		s := openStore(t, "db", Options{fs: disk, BatchBytes: 1 + rng.IntN(3000), tableBytes: []int{1, 1000}[rng.IntN(2)]})
		f := feedOf(t, s, things{}, counts{})
		begun, err := f.Position()
		must(t, err)
		if begun < position {
			lost++
		}
		stop := start(t, f, h.log)
		must(t, f.WaitFor(t.Context(), min(n, begun+uint64(rng.IntN(80)))))
		crashed := disk.crash(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[rng.IntN(3)], RNG: rng})
		must(t, ignoreCanceled(stop()))
		position, err = f.Position()
		must(t, errors.Join(err, s.Close()))
		disk = crashed
	}
	if lost == 0 {
		t.Error("no crash lost anything: the test shows nothing")
	}
	crashed := fold(Options{fs: disk, tableBytes: 1})
	defer crashed.Close()
	if got := raw(t, crashed); got != want {
		t.Errorf("after %d crashes there is\n%s\nevent by event it was\n%s", lost, got, want)
	}
}

// An event that fails takes nothing with it that was folded before, and leaves
// nothing of its own, where its rows were changed in the same commit.
func TestRollbackWithinACommit(t *testing.T) {
	for _, table := range []int{1, 1 << 20} {
		o := inMemory()
		o.tableBytes = table
		s := openStore(t, "db", o)
		f := feedOf(t, s, things{})
		bad := one("1", 9)
		bad.Put = append(bad.Put, thing{Group: "a", ID: "new", Value: 3})
		bad.Delete = []Key{{"a", "2"}}
		bad.Fail = true
		log := newStream(one("1", 1), one("2", 2), one("1", 3), bad)
		var stopped *StoppedError
		if err := f.Run(t.Context(), log); !errors.As(err, &stopped) || stopped.Sequence != 4 {
			t.Fatalf("the feed ended with %v", err)
		}
		v, err := f.Now()
		must(t, err)
		if got := fmt.Sprint(collect(t, thingRows, v, Query[thing]{})); got != "[{a 1 [t1] 3} {a 2 [t2] 2}]" || v.Position() != 3 {
			t.Errorf("at %d: rows %s", v.Position(), got)
		}
		must(t, errors.Join(v.Close(), s.Close()))
	}
}

// interrupted is a stream whose reader is told to end once it has read all.
type interrupted struct {
	*stream
	end context.CancelFunc
}

func (s interrupted) Follow(_ context.Context, after uint64, each func(events.Record) error) error {
	for _, r := range s.records[after:] {
		if err := each(r); err != nil {
			return err
		}
	}
	s.end()
	return context.Canceled
}

// A feed that is ended while it is behind leaves merging held back, so that its
// store closes at once; the next Run lets it go on.
func TestEndedWhileBehind(t *testing.T) {
	o := inMemory()
	o.tableBytes, o.BatchBytes = 1, 1
	s := openStore(t, "db", o)
	f := feedOf(t, s, things{})
	held := func() bool {
		s.pacer.mu.Lock()
		defer s.pacer.mu.Unlock()
		return s.pacer.held
	}
	log := newStream(one("1", 1), one("2", 2))
	run := func() {
		ctx, end := context.WithCancel(t.Context())
		must(t, ignoreCanceled(f.Run(ctx, interrupted{log, end})))
		if position, err := f.Position(); err != nil || position != 2 {
			t.Fatalf("the feed is at %d, %v", position, err)
		}
	}
	if run(); !held() {
		t.Error("merging goes on, and closing the store waits for it")
	}
	if run(); held() { // there was nothing to fold
		t.Error("merging is held back though the feed is not behind")
	}
	must(t, s.Close())
}
