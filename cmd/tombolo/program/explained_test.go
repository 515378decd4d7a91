package program

import (
	"errors"
	"fmt"
	"testing"

	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/projections"
)

// A journal that ends before what a reader has seen, or has something else there, was set back; one that lacks
// an event in between is damaged. Whoever runs the agent does something else about each.
func TestAGapIsExplained(t *testing.T) {
	for _, c := range []struct {
		err  error
		code string
	}{
		{&journal.GapError{Missing: 7}, "journal-set-back"},
		{&journal.GapError{Missing: 7, Found: 8}, "journal-gap"},
		{&projections.StoppedError{Sequence: 7, Err: &projections.Error{Code: projections.CodeSetBack}}, "journal-set-back"},
	} {
		var e *Error
		if err := explained(fmt.Errorf("follow the journal: %w", c.err)); !errors.As(err, &e) || e.Code != c.code || e.Next == "" {
			t.Errorf("%v: %v, want %s", c.err, err, c.code)
		}
	}
}
