package projections

import (
	"fmt"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Regions answers: which regions are there, where are they, who runs them, at
// which address are they reached, and which region does a spelling mean?
//
//	regions.region           <region id>                              → RegionRow
//	regions.region.spelling  <folded id, name or alias> <region id>
//	regions.region.place     <continent> <country> <region id>
//	regions.region.state     <active|draining|retired> <region id>
type Regions struct{}

// RegionState is what may still happen in a region.
type RegionState string

// The states of a region.
const (
	RegionActive   RegionState = "active"
	RegionDraining RegionState = "draining"
	RegionRetired  RegionState = "retired"
)

// RegionRow is a region as it is now.
type RegionRow struct {
	Region    events.RegionID      `json:"region"`
	Profile   events.RegionProfile `json:"profile"`
	State     RegionState          `json:"state"`
	Lost      bool                 `json:"lost,omitempty"`      // retired, and what it held written off
	Operation events.OperationID   `json:"operation,omitempty"` // that drains or retired it
	Epoch     int                  `json:"epoch"`               // 0 before any agent came
	Agent     string               `json:"agent,omitempty"`     // that started the epoch
	Successor string               `json:"successor,omitempty"` // agent that may start the next epoch in its place
	Transfer  string               `json:"transfer,omitempty"`  // host:port where other regions pull chunks
	HTTP      string               `json:"http,omitempty"`      // host:port where people ask the region
	Added     time.Time            `json:"added"`               // when the journal stored it
	Revision  uint64               `json:"revision"`            // of the aggregate
}

var (
	regionSpellings = index("spelling", func(r *RegionRow, in *entries) {
		in.add(foldSpelling(string(r.Region)))
		in.add(foldSpelling(r.Profile.Name))
		for _, a := range r.Profile.Aliases {
			in.add(foldSpelling(a))
		}
	})
	regionPlaces = index("place", func(r *RegionRow, in *entries) {
		in.add(r.Profile.Continent, r.Profile.Country)
	})
	regionStates = index("state", func(r *RegionRow, in *entries) { in.add(string(r.State)) })

	regions = NewTable("regions", "region", func(r RegionRow) Key { return Key{string(r.Region)} },
		regionSpellings, regionPlaces, regionStates)
)

// Name is "regions".
func (Regions) Name() string { return "regions" }

// Shape of the rows.
func (Regions) Shape() int { return 2 }

// Tables of regions.
func (Regions) Tables() []Described { return []Described{regions} }

// Apply folds the facts of regions.
func (Regions) Apply(w *Batch, r events.Record) error {
	fact, ok := r.Event.(events.RegionEvent)
	if !ok {
		return nil
	}
	if e, ok := fact.(events.RegionAdded); ok {
		return regions.Put(w, RegionRow{
			Region: e.Region, Profile: e.Profile, State: RegionActive, Added: r.Stored, Revision: r.Revision,
		})
	}
	var unknown error
	err := regions.Change(w, func(row *RegionRow) {
		row.Revision = r.Revision
		switch e := fact.(type) {
		case events.EpochStarted:
			row.Epoch, row.Agent, row.Transfer, row.HTTP = e.Epoch, e.Agent, e.Transfer, e.HTTP
			row.Successor = ""
		case events.AgentReplaced:
			row.Successor = e.Agent
		case events.RegionDraining:
			row.State, row.Operation = RegionDraining, e.Operation
		case events.RegionRetired:
			row.State, row.Operation, row.Lost = RegionRetired, e.Operation, e.Lost
		default:
			unknown = fmt.Errorf("regions do not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
		}
	}, r.Aggregate.ID)
	if unknown != nil {
		return unknown
	}
	return err
}

// Region reads one region by its id.
func (Regions) Region(r Reader, id events.RegionID) (RegionRow, bool, error) {
	return regions.Get(r, string(id))
}

// Spelled gives the regions that a spelling may mean: an id, a name or an
// alias, whatever its case and spacing. More than one is for the asker to choose.
func (Regions) Spelled(r Reader, spelling string) ([]RegionRow, error) {
	page, err := regions.Scan(r, Query[RegionRow]{By: regionSpellings, Prefix: Key{foldSpelling(spelling)}})
	return page.Rows, err
}

// List gives regions by id, a page at a time.
func (Regions) List(r Reader, limit int, resume string) (Page[RegionRow], error) {
	return regions.Scan(r, Query[RegionRow]{Limit: limit, Resume: resume})
}

// InState gives the regions in a state by id, a page at a time.
func (Regions) InState(r Reader, s RegionState, limit int, resume string) (Page[RegionRow], error) {
	return regions.Scan(r, Query[RegionRow]{By: regionStates, Prefix: Key{string(s)}, Limit: limit, Resume: resume})
}

// In gives the regions of a continent, or of a country of it if that is not empty, by country
// and id, a page at a time.
func (Regions) In(r Reader, continent, country string, limit int, resume string) (Page[RegionRow], error) {
	prefix := Key{continent}
	if country != "" {
		prefix = append(prefix, country)
	}
	return regions.Scan(r, Query[RegionRow]{By: regionPlaces, Prefix: prefix, Limit: limit, Resume: resume})
}

// foldSpelling makes spellings equal that people take for the same.
func foldSpelling(s string) string { return strings.Join(strings.Fields(strings.ToLower(s)), " ") }
