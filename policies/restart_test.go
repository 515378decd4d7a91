package policies_test

import (
	"testing"

	"github.com/tombolo-vdc/tombolo/policies"
)

func TestRestart(t *testing.T) {
	p, err := policies.Restart()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cause, declared string
		deaths          int
		again           bool
	}{
		{"crashed", "running", 1, true},
		{"crashed", "running", 3, true},
		{"crashed", "running", 4, false},
		{"crashed", "stopped", 1, false},
		{"crashed", "suspended", 1, false},
		{"guest-shutdown", "running", 0, false},
		{"region-stopped", "running", 0, true},
		{"region-stopped", "suspended", 0, false},
		{"memory-short", "running", 1, false},
		{"", "", 0, false},
	} {
		in := policies.RestartInput{Environment: "e1", Machine: "web", Cause: c.cause, Declared: c.declared, Deaths: c.deaths}
		if d := p.Decide(in); d.Allowed != c.again || d.Why == "" || d.Failed || d.Policy != "restart" {
			t.Errorf("%+v: %+v", in, d)
		}
	}
}
