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

// A member's permission is for one command, and does not bring what another one
// would do along with it.
func TestMembersInstantiateAndNothingElse(t *testing.T) {
	w := newWorld(t)
	mia := w.as(t, "mia")
	const subject = "tombolo.command.acme.template.instantiate"
	send(t, mia, subject, "m-1", `{"template":"73291467","region":"sydney"}`).wants(t, "catalogue-missing", "409") // allowed, and then decided
	send(t, mia, subject, "m-2", `{"template":"73291467","region":"sydney","keep_copy":true}`).wants(t, "access-denied", "403")
	send(t, mia, "tombolo.command.acme.template.delete", "m-3", `{"template":"73291467"}`).wants(t, "access-denied", "403")
	send(t, mia, "tombolo.command.acme.template.set-regions", "m-4", `{"template":"73291467","add":["sydney"]}`).wants(t, "access-denied", "403")
	send(t, mia, "tombolo.inbox.acme.template.delete", "m-5", `{"template":"73291467"}`).wants(t, "access-denied", "403")
}
