package projections

import (
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Time is a time as rows and answers show it: RFC 3339, UTC, milliseconds.
type Time struct{ time.Time }

// MarshalJSON writes it with exactly three decimals, so that times sort as text.
func (t Time) MarshalJSON() ([]byte, error) {
	return t.UTC().AppendFormat(make([]byte, 0, 26), `"2006-01-02T15:04:05.000Z"`), nil
}

// stored is when the journal stored the event, which is what times in reads mean.
func stored(r events.Record) Time { return Time{r.Stored.UTC().Truncate(time.Millisecond)} }

// Evidence is the event that says that something is so.
type Evidence struct {
	Sequence uint64 `json:"sequence"` // its position in the journal
	Event    string `json:"event"`    // its id
}

func evidence(r events.Record) Evidence { return Evidence{r.Sequence, r.ID} }
