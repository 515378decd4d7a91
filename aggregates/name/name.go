// Package name decides who has a name within an account. It guards: a name has
// at most one owner at a time. Templates' names belong to no region,
// environments' names to theirs; the aggregate's id is the name's slug.
//
// A name is claimed before its owner appears, confirmed when it has, and
// released when its deletion is accepted. A claim that is not confirmed in time
// may be taken by another owner; nothing has to clear it away first.
package name

import (
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// State is who has the name. The zero value: nobody.
type State struct {
	owner     string
	until     time.Time // of a claim that is not confirmed
	confirmed bool
}

// Owner is whose the name is, confirmed or not; empty: nobody's.
func (s State) Owner() string { return s.owner }

// Fold gives the state after e.
func (s State) Fold(e events.NameEvent) State {
	switch e := e.(type) {
	case events.NameClaimed:
		return State{owner: e.Owner, until: e.Until}
	case events.NameConfirmed:
		return State{owner: e.Owner, confirmed: true}
	case events.NameReleased:
		return State{}
	}
	return s
}

// Claim holds the name for an owner that is about to appear.
type Claim struct {
	Region events.RegionID `json:"region,omitempty"` // an environment's; empty for a template
	Name   string          `json:"name"`             // the slug
	Owner  string          `json:"owner"`            // the template's or environment's id
	Until  time.Time       `json:"until"`
}

// Aggregate is the account's name.
func (c Claim) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Region, c.Name) }

// Of names the aggregate of a name: of a template where region is empty.
func Of(account events.AccountID, region events.RegionID, slug string) events.Aggregate {
	if region == "" {
		region = events.None
	}
	return events.Aggregate{Account: account, Region: region, Kind: events.KindName, ID: slug}
}

// Decide refuses name-invalid, owner-missing, until-past, and name-in-use while
// another owner has the name or a claim to it that has not run out. The same
// owner's own claim that ran out is renewed.
func (c Claim) Decide(s State, f aggregates.Facts) (events.NameEvent, error) {
	switch {
	case !events.IsToken(c.Name):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "name-invalid", "%q is not a name: use a-z, 0-9 and -, at most 63", c.Name)
	case c.Owner == "":
		return nil, aggregates.RefuseAs(aggregates.Invalid, "owner-missing", "the name %s is claimed for nobody", c.Name)
	}
	held := s.confirmed || f.Now.Before(s.until)
	switch {
	case held && s.owner == c.Owner:
		return nil, aggregates.Already("%s has the name %s", c.Owner, c.Name)
	case held:
		return nil, aggregates.Refuse("name-in-use", "the name %s is in use by %s", c.Name, s.owner).
			WithNext("choose another name, or delete %s", s.owner)
	case !c.Until.After(f.Now):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "until-past", "a claim until %s would be over before it began", c.Until.Format(time.RFC3339))
	}
	return events.NameClaimed{Owner: c.Owner, Until: c.Until}, nil
}

// Confirm says that the owner exists. It is possible after the claim's time,
// too, as long as nobody else took the name.
type Confirm struct {
	Region events.RegionID `json:"region,omitempty"`
	Name   string          `json:"name"`
	Owner  string          `json:"owner"`
}

// Aggregate is the account's name.
func (c Confirm) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Region, c.Name) }

// Decide refuses name-not-claimed where the owner has no claim, or none any more.
func (c Confirm) Decide(s State, _ aggregates.Facts) (events.NameEvent, error) {
	switch {
	case c.Owner == "" || s.owner != c.Owner:
		return nil, aggregates.Refuse("name-not-claimed", "%s has no claim to the name %s", c.Owner, c.Name).
			WithNext("claim it again, or choose another name")
	case s.confirmed:
		return nil, aggregates.Already("the name %s is confirmed", c.Name)
	}
	return events.NameConfirmed{Owner: c.Owner}, nil
}

// Release frees the name. For who does not have it there is nothing to do: a
// release that is sent again must not take the name from its next owner.
type Release struct {
	Region events.RegionID `json:"region,omitempty"`
	Name   string          `json:"name"`
	Owner  string          `json:"owner"`
}

// Aggregate is the account's name.
func (c Release) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Region, c.Name) }

// Decide refuses nothing.
func (c Release) Decide(s State, _ aggregates.Facts) (events.NameEvent, error) {
	if s.owner == "" || s.owner != c.Owner {
		return nil, aggregates.Already("%s does not have the name %s", c.Owner, c.Name)
	}
	return events.NameReleased{Owner: c.Owner}, nil
}
