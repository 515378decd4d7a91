// Package number decides which template has a number. It guards: a number that
// a template once had is never given again, to whatever account. A claim whose
// template did not appear in time may be taken over.
package number

import (
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// State is who has the number. The zero value: nobody.
type State struct {
	account events.AccountID
	owner   string
	until   time.Time // of a claim that is not confirmed
	spent   bool
}

// Fold gives the state after e.
func (s State) Fold(e events.NumberEvent) State {
	switch e := e.(type) {
	case events.NumberClaimed:
		return State{account: e.Account, owner: e.Owner, until: e.Until}
	case events.NumberConfirmed:
		s.spent = true
	}
	return s
}

// Of names the aggregate of a number, which is no account's.
func Of(n events.TemplateID) events.Aggregate {
	return events.Aggregate{Account: events.None, Region: events.None, Kind: events.KindNumber, ID: string(n)}
}

// Claim holds the number for the template that an operation creates.
type Claim struct {
	Number  events.TemplateID `json:"number"`
	Account events.AccountID  `json:"account"` // of the template
	Owner   string            `json:"owner"`   // the operation
	Until   time.Time         `json:"until"`
}

// Aggregate is the number, whoever asks.
func (c Claim) Aggregate(events.AccountID) events.Aggregate { return Of(c.Number) }

// Decide refuses number-invalid, owner-missing, until-past, and number-in-use
// where it is or was another's; it does not say whose.
func (c Claim) Decide(s State, f aggregates.Facts) (events.NumberEvent, error) {
	switch {
	case !Valid(c.Number):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "number-invalid", "%q is not a number from 10000000 to 99999999", c.Number)
	case c.Owner == "" || c.Account == "":
		return nil, aggregates.RefuseAs(aggregates.Invalid, "owner-missing", "the number %s is claimed for nobody", c.Number)
	}
	held := s.spent || f.Now.Before(s.until)
	switch {
	case held && s.owner == c.Owner && s.account == c.Account:
		return nil, aggregates.Already("%s has the number %s", c.Owner, c.Number)
	case held:
		return nil, aggregates.Refuse("number-in-use", "the number %s is or was another template's", c.Number).
			WithNext("choose another number, or leave the choice to Tombolo")
	case !c.Until.After(f.Now):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "until-past", "a claim until %s would be over before it began", c.Until.Format(time.RFC3339))
	}
	return events.NumberClaimed{Account: c.Account, Owner: c.Owner, Until: c.Until}, nil
}

// Confirm says that the template exists: the number is spent for ever.
type Confirm struct {
	Number events.TemplateID `json:"number"`
	Owner  string            `json:"owner"`
}

// Aggregate is the number, whoever asks.
func (c Confirm) Aggregate(events.AccountID) events.Aggregate { return Of(c.Number) }

// Decide refuses number-not-claimed where the owner has no claim, or none any more.
func (c Confirm) Decide(s State, _ aggregates.Facts) (events.NumberEvent, error) {
	switch {
	case c.Owner == "" || s.owner != c.Owner:
		return nil, aggregates.Refuse("number-not-claimed", "%s has no claim to the number %s", c.Owner, c.Number).
			WithNext("claim it again, or choose another number")
	case s.spent:
		return nil, aggregates.Already("the number %s is confirmed", c.Number)
	}
	return events.NumberConfirmed{Owner: c.Owner}, nil
}

// Valid says whether it is eight digits, the first not 0: what only a number may look like.
func Valid(n events.TemplateID) bool {
	if len(n) != 8 || n[0] == '0' {
		return false
	}
	for i := 0; i < len(n); i++ {
		if n[i] < '0' || n[i] > '9' {
			return false
		}
	}
	return true
}
