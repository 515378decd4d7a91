// Package aggregates holds what all aggregates share. Each aggregate is a
// package of its own below this one: what it guards, its state, the fold, and
// the commands, each of which decides by itself. Nothing here does I/O, reads a
// clock or draws at random; everything a decision may know is in its arguments.
package aggregates

import (
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Facts is what a decision may know besides the command and the state.
type Facts struct {
	Now   time.Time // UTC
	Actor events.Actor
}

// State is an aggregate's state: the fold of its events. The zero value is the
// state before the first event. Fold returns the state after e and leaves the
// receiver as it was.
type State[S any, E events.Event] interface {
	Fold(e E) S
}

// Command asks one aggregate for one change.
type Command[S any, E events.Event] interface {
	// Aggregate names the aggregate that decides, for a command of that account.
	Aggregate(account events.AccountID) events.Aggregate
	// Decide gives the one event that the command leads to; or none and no
	// error when it is already so (or Already, with words); or a Refusal.
	Decide(s S, f Facts) (E, error)
}

// Class groups refusals by what a client does about them; it decides the exit
// code and the HTTP status.
type Class string

// The classes of refusals.
const (
	Conflict     Class = "conflict"     // not in this state of things: look, then decide anew
	NotFound     Class = "not-found"    // there is no such thing
	Invalid      Class = "invalid"      // never, whatever the state
	Denied       Class = "denied"       // not by you
	Confirmation Class = "confirmation" // say that you mean it
)

// Refusal is a decision's no. Code is stable and can be searched in the source;
// Next says what can be done about it.
type Refusal struct {
	Class Class
	Code  string
	Text  string
	Next  string
}

// Error is the text with its code.
func (r *Refusal) Error() string { return r.Text + " (" + r.Code + ")" }

// WithNext adds what a person can do about it.
func (r *Refusal) WithNext(format string, args ...any) *Refusal {
	r.Next = fmt.Sprintf(format, args...)
	return r
}

// Cause is the refusal as events record it.
func (r *Refusal) Cause() events.Cause { return events.Cause{Code: r.Code, Text: r.Text, Next: r.Next} }

// Refuse makes a refusal of class Conflict, the ordinary one.
func Refuse(code, format string, args ...any) *Refusal {
	return &Refusal{Class: Conflict, Code: code, Text: fmt.Sprintf(format, args...)}
}

// RefuseAs makes a refusal of another class.
func RefuseAs(class Class, code, format string, args ...any) *Refusal {
	return &Refusal{Class: class, Code: code, Text: fmt.Sprintf(format, args...)}
}

// AsRefusal finds a refusal in an error.
func AsRefusal(err error) (*Refusal, bool) {
	var r *Refusal
	ok := errors.As(err, &r)
	return r, ok
}

// AlreadySo is a decision's "nothing to do because".
type AlreadySo struct{ Because string }

// Error says that nothing is to be done and why.
func (a *AlreadySo) Error() string { return "nothing to do because " + a.Because }

// Already says why nothing is to be done.
func Already(format string, args ...any) *AlreadySo {
	return &AlreadySo{fmt.Sprintf(format, args...)}
}
