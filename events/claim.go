package events

import "time"

// KindName: a name in use within an account. Templates' names have no region;
// environments' names have theirs. The id is the name's slug.
const KindName Kind = "name"

// KindNumber: a template's number. Account None; never used a second time.
const KindNumber Kind = "number"

// NameEvent is a fact about a name.
type NameEvent interface {
	Event
	ofName()
}

type inName struct{}

func (inName) ofName() {}

// NameClaimed: the name is held for an owner that is about to appear. A claim
// whose owner has not confirmed it by Until may be taken by another.
type NameClaimed struct {
	inName
	Owner string    `json:"owner"` // the template's or environment's id
	Until time.Time `json:"until"`
}

// EventType is the wire name.
func (NameClaimed) EventType() Type { return "name.claimed" }

// NameConfirmed: the owner exists; the name is its own until released.
type NameConfirmed struct {
	inName
	Owner string `json:"owner"`
}

// EventType is the wire name.
func (NameConfirmed) EventType() Type { return "name.confirmed" }

// NameReleased: the owner's deletion was accepted; the name is free.
type NameReleased struct {
	inName
	Owner string `json:"owner"`
}

// EventType is the wire name.
func (NameReleased) EventType() Type { return "name.released" }

// NumberEvent is a fact about a template's number.
type NumberEvent interface {
	Event
	ofNumber()
}

type inNumber struct{}

func (inNumber) ofNumber() {}

// NumberClaimed: the number is held for the template that the command creates.
type NumberClaimed struct {
	inNumber
	Account AccountID `json:"account"`
	Owner   string    `json:"owner"` // the operation that creates the template
	Until   time.Time `json:"until"`
}

// EventType is the wire name.
func (NumberClaimed) EventType() Type { return "number.claimed" }

// NumberConfirmed: the template exists; the number is spent for ever.
type NumberConfirmed struct {
	inNumber
	Owner string `json:"owner"`
}

// EventType is the wire name.
func (NumberConfirmed) EventType() Type { return "number.confirmed" }
