package region

import (
	"slices"
	"testing"
	"time"
)

// What is reaped was an orphan the whole grace time: one that had an owner in
// between, or was seen too short, is left alone.
func TestOrphanage(t *testing.T) {
	begin := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	a, b := Effect{"root", "instance/1@1", "a"}, Effect{"upload", "b", "b"}
	known := orphanage{}
	for _, step := range []struct {
		minute  int
		orphans []Effect
		due     []Effect
	}{
		{0, []Effect{a, b}, nil},
		{5, []Effect{a}, nil}, // b has an owner now
		{6, []Effect{a, b}, nil},
		{9, []Effect{a, b}, nil},
		{10, []Effect{a, b}, []Effect{a}},
		{11, []Effect{b}, nil}, // a is gone
		{15, []Effect{b}, nil},
		{16, []Effect{b, a}, []Effect{b}},
	} {
		due := known.due(begin.Add(time.Duration(step.minute)*time.Minute), 10*time.Minute, step.orphans)
		if !slices.Equal(due, step.due) {
			t.Errorf("after %d minutes %v are due, not %v", step.minute, due, step.due)
		}
	}
}
