package projections

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/tombolo-vdc/tombolo/events"
)

// TestRegions runs testdata/regions. A line of an event is "<region> <type> <json>".
func TestRegions(t *testing.T) {
	registry := events.NewRegistry()
	datadriven.Walk(t, "testdata/regions", func(t *testing.T, path string) {
		s := openStore(t, "db", inMemory())
		defer s.Close()
		f, log, q := feedOf(t, s, Regions{}), newStream(), Regions{}
		stop := start(t, f, log)
		defer stop()
		revisions := map[string]uint64{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "events" {
				var seq uint64
				for line := range strings.Lines(d.Input) {
					w := strings.SplitN(strings.TrimSpace(line), " ", 3)
					e, err := registry.Decode(events.Type(w[1]), 1, []byte(w[2]))
					must(t, err)
					revisions[w[0]]++
					seq = log.addRecord(events.Record{
						Aggregate: events.Aggregate{Account: events.None, Region: events.RegionID(w[0]), Kind: events.KindRegion, ID: w[0]},
						Revision:  revisions[w[0]], Event: e,
						Stored: time.Date(2025, 1, 2, 3, 0, len(log.records), 0, time.UTC),
					})
				}
				if err := f.WaitFor(t.Context(), seq); err != nil {
					return fmt.Sprintf("error: %v\n", err)
				}
				return fmt.Sprintf("position %d\n", seq)
			}
			v, err := f.Now()
			if d.HasArg("as-of") {
				v.Close()
				var seq uint64
				d.ScanArgs(t, "as-of", &seq)
				v, err = f.AsOf(seq)
			}
			must(t, err)
			defer v.Close()
			var rows []RegionRow
			switch w := strings.TrimSpace(d.Input); d.Cmd {
			case "region":
				row, ok, err := q.Region(v, events.RegionID(w))
				must(t, err)
				if !ok {
					return "none\n"
				}
				b, err := json.MarshalIndent(row, "", "  ")
				must(t, err)
				return string(b) + "\n"
			case "spelled":
				rows, err = q.Spelled(v, w)
			case "list":
				var page Page[RegionRow]
				page, err = q.List(v, 0, "")
				rows = page.Rows
			case "state":
				var page Page[RegionRow]
				page, err = q.InState(v, RegionState(w), 0, "")
				rows = page.Rows
			case "in":
				continent, country, _ := strings.Cut(w, "/")
				var page Page[RegionRow]
				page, err = q.In(v, continent, country, 0, "")
				rows = page.Rows
			default:
				t.Fatalf("unknown command %s", d.Cmd)
			}
			must(t, err)
			var b strings.Builder
			for _, r := range rows {
				fmt.Fprintf(&b, "%s %q %s epoch %d\n", r.Region, r.Profile.Name, r.State, r.Epoch)
			}
			if b.Len() == 0 {
				return "none\n"
			}
			return b.String()
		})
	})
}

// Every event of a region must be folded: one that is forgotten fails here.
func TestRegionsKnowAllEvents(t *testing.T) {
	for _, d := range events.NewRegistry().Definitions() {
		if d.Kind != events.KindRegion {
			continue
		}
		s := openStore(t, "db", inMemory())
		f, log := feedOf(t, s, Regions{}), newStream(events.RegionAdded{Region: "sydney"})
		log.addRecord(events.Record{Event: d.Zero, Aggregate: events.Aggregate{Kind: events.KindRegion, ID: "sydney"}})
		stop := start(t, f, log)
		if err := f.WaitFor(t.Context(), 2); err != nil {
			t.Errorf("%s: %v", d.Type, err)
		}
		stop()
		must(t, s.Close())
	}
}
