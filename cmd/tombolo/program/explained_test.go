package program

import (
	"errors"
	"fmt"
	"testing"

	"github.com/tombolo-vdc/tombolo/events/journal"
)

// A journal that ends before what a reader has seen was set back; one that lacks
// an event in between is damaged. Whoever runs the agent does something else about each.
func TestAGapIsExplained(t *testing.T) {
	for code, gap := range map[string]*journal.GapError{"journal-set-back": {Missing: 7}, "journal-gap": {Missing: 7, Found: 8}} {
		var e *Error
		if err := explained(fmt.Errorf("follow the journal: %w", gap)); !errors.As(err, &e) || e.Code != code || e.Next == "" {
			t.Errorf("%v: %v, want %s", gap, err, code)
		}
	}
}
