package commands_test

import (
	"testing"
)

// A door without reads refuses what it would have to guess, and every door what
// does not make sense.
func TestInstantiateRefused(t *testing.T) {
	w := newWorld(t)
	ann := w.as(t, "ann")
	const subject = "tombolo.command.acme.template.instantiate"
	send(t, ann, subject, "i-1", `{"template":"73291467","region":"sydney"}`).wants(t, "catalogue-missing", "409")
	send(t, ann, subject, "i-2", `{"template":"","region":"sydney"}`).wants(t, "bad-request", "400")
	send(t, ann, subject, "i-3", `{"template":"73291467","region":"Not a region"}`).wants(t, "bad-request", "400")
	send(t, ann, subject, "i-4", `{"template":"73291467","region":"sydney","name":"Ünïcode"}`).wants(t, "name-invalid", "400")
	send(t, ann, subject, "i-5", `{"region":"sydney"}`).wants(t, "bad-request", "400")
	send(t, w.as(t, "bob"), subject, "i-6", `{"template":"73291467","region":"sydney"}`).wants(t, "access-denied", "403")
	if tip, err := w.journal.Tip(t.Context()); err != nil || tip != 0 {
		t.Errorf("%d events, %v", tip, err)
	}
}
