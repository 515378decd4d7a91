package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// stream is a journal's follow over a slice that grows.
type stream struct {
	mu      sync.Mutex
	records []events.Record
	grown   chan struct{}
	fails   error // what Follow gives at the end of the slice
}

func newStream(facts ...events.Event) *stream {
	s := &stream{grown: make(chan struct{})}
	for _, e := range facts {
		s.add(e)
	}
	return s
}

func (s *stream) add(e events.Event) uint64 {
	return s.addRecord(events.Record{Event: e})
}

func (s *stream) addRecord(r events.Record) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Sequence == 0 {
		r.Sequence = uint64(len(s.records)) + 1
	}
	s.records = append(s.records, r)
	close(s.grown)
	s.grown = make(chan struct{})
	return r.Sequence
}

func (s *stream) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	for i := int(after); ; {
		s.mu.Lock()
		batch, grown, short := s.records[min(i, len(s.records)):], s.grown, i > len(s.records)
		s.mu.Unlock()
		if short {
			return &journal.GapError{Missing: after}
		}
		for _, r := range batch {
			if err := each(r); err != nil {
				return err
			}
			i++
		}
		if len(batch) > 0 {
			continue
		}
		if s.fails != nil {
			return s.fails
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grown:
		}
	}
}

// thing is the row of the engine's tests.
type thing struct {
	Group string   `json:"group"`
	ID    string   `json:"id"`
	Tags  []string `json:"tags,omitempty"`
	Value uint64   `json:"value"`
}

// edited is an event that says which rows change.
type edited struct {
	Put    []thing
	Delete []Key
	Clear  string // a group, all of whose rows go
	Fail   bool   // after all the others
}

func (edited) EventType() events.Type { return "test.edited" }

var (
	byTag = NewIndex("tag", func(t thing) (keys []Key) {
		for _, tag := range t.Tags {
			keys = append(keys, Key{tag})
		}
		return keys
	})
	byValue   = NewIndex("value", func(t thing) []Key { return []Key{{Number(t.Value)}} })
	thingRows = NewTable("things", "thing", func(t thing) Key { return Key{t.Group, t.ID} }, byTag, byValue)
)

var errTold = errors.New("told to fail")

// things folds edited events as they say.
type things struct {
	shape int
	bump  uint64              // added to each value: what another shape changes
	gate  func(events.Record) // called before each event
	trust bool                // ignores Fail
}

func (things) Name() string        { return "things" }
func (p things) Shape() int        { return max(p.shape, 1) }
func (things) Tables() []Described { return []Described{thingRows} }

func (p things) Apply(w *Batch, r events.Record) error {
	if p.gate != nil {
		p.gate(r)
	}
	e, ok := r.Event.(edited)
	if !ok {
		return nil
	}
	for _, row := range e.Put {
		row.Value += p.bump
		if err := thingRows.Put(w, row); err != nil {
			return err
		}
	}
	for _, k := range e.Delete {
		if err := thingRows.Delete(w, k...); err != nil {
			return err
		}
	}
	if e.Clear != "" {
		for row, err := range thingRows.All(w, Query[thing]{Prefix: Key{e.Clear}}) {
			if err != nil {
				return err
			}
			if err := thingRows.Delete(w, row.Group, row.ID); err != nil {
				return err
			}
		}
	}
	if e.Fail && !p.trust {
		return errTold
	}
	return nil
}

// count says how many events there were.
type count struct {
	Of string `json:"of"`
	N  int    `json:"n"`
}

var countRows = NewTable("counts", "count", func(c count) Key { return Key{c.Of} })

// counts reads its own rows of the same batch again and again.
type counts struct{}

func (counts) Name() string        { return "counts" }
func (counts) Shape() int          { return 1 }
func (counts) Tables() []Described { return []Described{countRows} }
func (counts) Apply(w *Batch, r events.Record) error {
	row, ok, err := countRows.Get(w, "events")
	if err != nil {
		return err
	}
	if !ok {
		row.Of = "events"
	}
	row.N++
	return countRows.Put(w, row)
}

func openStore(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func inMemory() Options { return Options{fs: vfs.NewMem()} }

func feedOf(t testing.TB, s *Store, set ...Projection) *Feed {
	t.Helper()
	f, err := s.Feed(set...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// start runs the feed and gives the function that ends it and returns Run's error.
func start(t testing.TB, f *Feed, from Follower) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, from) }()
	return sync.OnceValue(func() error {
		cancel()
		return <-done
	})
}

// feedTo runs the feed until it shows seq.
func feedTo(t testing.TB, f *Feed, from Follower, seq uint64) {
	t.Helper()
	stop := start(t, f, from)
	must(t, f.WaitFor(t.Context(), seq))
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Fatalf("the feed ended with %v", err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func codeOf(err error) Code {
	var coded interface{ ErrorCode() Code }
	if errors.As(err, &coded) {
		return coded.ErrorCode()
	}
	return ""
}

func digest(t testing.TB, f *Feed, asOf uint64, name string) events.Digest {
	t.Helper()
	v, err := f.AsOf(asOf, name)
	must(t, err)
	d, err := v.Digest(name)
	must(t, errors.Join(err, v.Close()))
	return d
}

func collect[R any](t testing.TB, table *Table[R], r Reader, q Query[R]) []R {
	t.Helper()
	out := []R{}
	for row, err := range table.All(r, q) {
		must(t, err)
		out = append(out, row)
	}
	return out
}

// model is the naive truth: all rows at each position.
type model []map[string]thing

func newModel() model { return model{{}} }

func (m *model) fold(e edited) {
	next := map[string]thing{}
	for k, v := range (*m)[len(*m)-1] {
		next[k] = v
	}
	for _, row := range e.Put {
		next[row.Group+"/"+row.ID] = row
	}
	for _, k := range e.Delete {
		delete(next, k[0]+"/"+k[1])
	}
	for k, row := range next {
		if e.Clear != "" && row.Group == e.Clear {
			delete(next, k)
		}
	}
	*m = append(*m, next)
}

// list gives the rows at a position in the order of their keys.
func (m model) list(seq uint64, want func(thing) bool) []thing {
	out := []thing{}
	for _, row := range m[seq] {
		if want(row) {
			out = append(out, row)
		}
	}
	slices.SortFunc(out, func(a, b thing) int {
		return slices.Compare([]string{a.Group, a.ID}, []string{b.Group, b.ID})
	})
	return out
}

func sameRows(a, b []thing) bool { return fmt.Sprint(a) == fmt.Sprint(b) }
