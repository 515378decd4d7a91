// Package given lets a test of a decision read as it is meant: given these
// facts, when this command, then this event or that refusal.
package given

import (
	"reflect"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// now is fixed: decisions see no other clock.
var now = time.Date(2014, 1, 15, 14, 7, 3, 211e6, time.UTC)

// Now is the time that decisions see in tests unless At says otherwise.
func Now() time.Time { return now }

// Case is a state that facts have led to.
type Case[S aggregates.State[S, E], E events.Event] struct {
	t     testing.TB
	state S
	facts aggregates.Facts
}

// Facts folds the events into a fresh state.
func Facts[S aggregates.State[S, E], E events.Event](t testing.TB, history ...E) Case[S, E] {
	t.Helper()
	var s S
	for _, e := range history {
		s = s.Fold(e)
	}
	return Case[S, E]{t, s, aggregates.Facts{Now: now, Actor: events.Actor{Account: "acme", User: "ann"}}}
}

// At sets the time that the decision sees.
func (c Case[S, E]) At(t time.Time) Case[S, E] { c.facts.Now = t; return c }

// State is the folded state, for tests that look inside.
func (c Case[S, E]) State() S { return c.state }

// When decides the command.
func (c Case[S, E]) When(cmd aggregates.Command[S, E]) Decision[S, E] {
	c.t.Helper()
	e, err := cmd.Decide(c.state, c.facts)
	return Decision[S, E]{c.t, e, err}
}

// Decision is what came of a command.
type Decision[S any, E events.Event] struct {
	t   testing.TB
	e   E
	err error
}

// Then expects exactly this event.
func (d Decision[S, E]) Then(want E) {
	d.t.Helper()
	if d.err != nil {
		d.t.Fatalf("refused: %v; want %s %+v", d.err, want.EventType(), want)
	}
	if !reflect.DeepEqual(any(d.e), any(want)) {
		d.t.Fatalf("got  %#v\nwant %#v", d.e, want)
	}
}

// Nothing expects "already so".
func (d Decision[S, E]) Nothing() {
	d.t.Helper()
	if _, already := d.err.(*aggregates.AlreadySo); already || (d.err == nil && any(d.e) == nil) {
		return
	}
	d.t.Fatalf("got %#v, %v; want nothing to do", d.e, d.err)
}

// Refused expects a refusal with this code.
func (d Decision[S, E]) Refused(code string) {
	d.t.Helper()
	r, ok := aggregates.AsRefusal(d.err)
	if !ok || r.Code != code {
		d.t.Fatalf("got %#v, %v; want refusal %q", d.e, d.err, code)
	}
}
