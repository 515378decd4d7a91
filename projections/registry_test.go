package projections

import (
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tombolo-vdc/tombolo/events"
)

// TestEveryEventIsKnown: an event that a projection's aggregate has and the
// projection does not know would stop all reads, everywhere, when it first
// happens. Each is folded here after the event that its aggregate begins with.
func TestEveryEventIsKnown(t *testing.T) {
	first := map[events.Kind]events.Event{
		events.KindTemplate: events.TemplateCreated{}, events.KindInstance: events.CopyWanted{}, events.KindEnvironment: events.EnvironmentDeclared{},
		events.KindWork: events.WorkOrdered{}, events.KindRegion: events.RegionAdded{}, events.KindAccount: events.AccountCreated{},
	}
	store, err := Open("reads", Options{fs: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	known := 0
	for _, d := range events.NewRegistry().Definitions() {
		for _, p := range All() {
			tables := map[string]bool{}
			for _, described := range p.Tables() {
				for _, id := range described.describe() {
					tables[id.name] = true
				}
			}
			w := Batch{t: newTxn(store, newRun(0), newRowCache(), func() error { return nil }), target: target{name: p.Name(), space: 1, tables: tables}, seq: 2}
			a := events.Aggregate{Account: "acme", Region: "sydney", Kind: d.Kind, ID: "x"}
			record := func(seq uint64, e events.Event) events.Record {
				return events.Record{Sequence: seq, Revision: seq, Aggregate: a, Stored: time.Unix(1, 0), Event: e}
			}
			if e := first[d.Kind]; e != nil && e.EventType() != d.Type {
				if err := p.Apply(&w, record(1, e)); err != nil {
					t.Fatalf("%s cannot fold %s: %v", p.Name(), e.EventType(), err)
				}
			}
			// Other errors are about rows that a zero event does not have.
			if err := p.Apply(&w, record(2, d.Zero)); errors.Is(err, events.ErrUnknownEvent) {
				t.Errorf("%v\ncure: fold it, or say with a case of its own that nothing follows", err)
			}
			known++
		}
	}
	if known == 0 {
		t.Fatal("there is nothing to fold")
	}
}
