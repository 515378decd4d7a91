// Package environment guards a virtual data center: declared, created from
// disks that came in or from a template, the power states of its machines, what
// its edge lets through, deleted.
package environment

import (
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

type phase int

const (
	declared phase = iota + 1
	created
	failed
	deleting
	deleted
)

// State is what decisions need to know of an environment.
type State struct {
	phase     phase
	operation events.OperationID
	until     time.Time
	mapped    bool
	power     map[string]string // declared, by machine; "" is the one for all that were set last
	observed  map[string]seen   // by machine
	deaths    map[string][]time.Time
	epoch     int // the highest that reported
	edge      *events.EdgeSet
}

// Fold is the state after e.
func (s State) Fold(e events.EnvironmentEvent) State {
	switch e := e.(type) {
	case events.EnvironmentDeclared:
		s.phase, s.operation, s.until = declared, e.Operation, e.Until
	case events.EnvironmentMapped:
		s.mapped = true
	case events.EnvironmentCreated:
		s.phase = created
	case events.EnvironmentFailed:
		s.phase = failed
	case events.PowerSet:
		s.declare(e)
	case events.MachinesObserved:
		s.observe(e)
	case events.EdgeSet:
		s.edge = &e
	case events.EnvironmentDeletionAccepted:
		s.phase = deleting
	case events.EnvironmentDeleted:
		s.phase = deleted
	}
	return s
}

// Of names an environment's aggregate.
func Of(account events.AccountID, r events.RegionID, id events.EnvironmentID) events.Aggregate {
	return events.Aggregate{Account: account, Region: r, Kind: events.KindEnvironment, ID: string(id)}
}

// Ref addresses one environment; every command carries it.
type Ref struct {
	Region      events.RegionID      `json:"region"`
	Environment events.EnvironmentID `json:"environment"`
}

// Aggregate is the environment.
func (r Ref) Aggregate(a events.AccountID) events.Aggregate { return Of(a, r.Region, r.Environment) }

func (s State) usable(r Ref) error {
	switch s.phase {
	case 0:
		return aggregates.RefuseAs(aggregates.NotFound, "environment-unknown", "%s has no environment %s", r.Region, r.Environment)
	case declared:
		return aggregates.Refuse("environment-not-ready", "environment %s is still being made", r.Environment)
	case failed:
		return aggregates.Refuse("environment-failed", "environment %s could not be made", r.Environment)
	case deleting, deleted:
		return aggregates.Refuse("environment-deleted", "environment %s is deleted", r.Environment)
	}
	return nil
}

// Declare wants the environment; its disks follow.
type Declare struct {
	Ref
	events.EnvironmentDeclared
}

// Decide declares it once.
func (c Declare) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	switch {
	case s.phase != 0 && s.operation == c.Operation:
		return nil, nil
	case s.phase != 0:
		return nil, aggregates.Refuse("environment-exists", "environment %s exists already", c.Environment)
	case len(c.Resources) > events.MaxResources:
		return nil, aggregates.RefuseAs(aggregates.Invalid, "too-many-resources", "%d region-bound resources, at most %d are allowed", len(c.Resources), events.MaxResources)
	}
	return c.EnvironmentDeclared, nil
}

// StillMade changes nothing: it is what a process asks before it takes something
// for an environment on the strength of an old event.
type StillMade struct{ Ref }

// Decide refuses environment-not-made once it is made, failed or deleted.
func (c StillMade) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	if s.phase != declared {
		return nil, aggregates.Refuse("environment-not-made", "environment %s is not being made", c.Environment)
	}
	return nil, nil
}

// StillUsable changes nothing: it is what a process asks before it has anything
// done with the environment's machines or its network.
type StillUsable struct{ Ref }

// Decide refuses what is not made yet, has failed, or is deleted.
func (c StillUsable) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	return nil, s.usable(c.Ref)
}

// RecordMap fixes the values of its region-bound resources.
type RecordMap struct {
	Ref
	Map []events.Substitution `json:"map"`
}

// Decide records the map once.
func (c RecordMap) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	if s.phase == 0 {
		return nil, s.usable(c.Ref)
	}
	if s.mapped {
		return nil, nil
	}
	return events.EnvironmentMapped{Map: c.Map}, nil
}

// RecordCreated says that the disks are there.
type RecordCreated struct {
	Ref
	Graph events.Digest `json:"graph"`
}

// Decide records it once.
func (c RecordCreated) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	switch s.phase {
	case declared:
		return events.EnvironmentCreated{Graph: c.Graph}, nil
	case created:
		return nil, nil
	}
	return nil, s.usable(c.Ref)
}

// RecordFailed says that it could not be made.
type RecordFailed struct {
	Ref
	Cause events.Cause `json:"cause"`
}

// Decide records the failure of one that was being made.
func (c RecordFailed) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	switch s.phase {
	case 0:
		return nil, s.usable(c.Ref)
	case declared:
		return events.EnvironmentFailed{Cause: c.Cause}, nil
	}
	return nil, nil
}

// Expire gives up an environment whose disks did not come in time.
type Expire struct{ Ref }

// Decide refuses not-due while there is time, and where there is no limit.
func (c Expire) Decide(s State, f aggregates.Facts) (events.EnvironmentEvent, error) {
	switch {
	case s.phase == 0:
		return nil, s.usable(c.Ref)
	case s.phase != declared:
		return nil, aggregates.Already("environment %s is not being made", c.Environment)
	case s.until.IsZero() || f.Now.Before(s.until):
		return nil, aggregates.Refuse("not-due", "environment %s has time", c.Environment)
	}
	return events.EnvironmentFailed{Cause: events.Cause{Code: "upload-expired", Text: "its disks did not come by " + s.until.Format(time.RFC3339), Next: "create it again"}}, nil
}

// Delete takes the environment away.
type Delete struct {
	Ref
	Operation events.OperationID `json:"operation"`
}

// Decide accepts it, also for one that is still being made or has failed.
func (c Delete) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	switch s.phase {
	case 0:
		return nil, s.usable(c.Ref)
	case deleting, deleted:
		return nil, aggregates.Already("environment %s is deleted", c.Environment)
	}
	return events.EnvironmentDeletionAccepted{Operation: c.Operation}, nil
}

// RecordDeleted says that nothing of it is left.
type RecordDeleted struct{ Ref }

// Decide records it after the deletion was accepted.
func (c RecordDeleted) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	switch s.phase {
	case deleting:
		return events.EnvironmentDeleted{}, nil
	case deleted:
		return nil, nil
	}
	return nil, aggregates.Refuse("environment-not-deleted", "nobody asked to delete environment %s", c.Environment)
}
