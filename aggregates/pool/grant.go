package pool

import (
	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// Grant gives an account one value for something that Tombolo does not run: the
// one named, or the lowest free. It counts as reserved until Revoke.
type Grant struct {
	Region  events.RegionID  `json:"region"`
	Type    events.PoolID    `json:"type"`
	Command events.CommandID `json:"command"` // this command's id, from which the lease's id derives
	For     events.AccountID `json:"for"`
	Note    string           `json:"note"` // what it is for
	Value   string           `json:"value,omitempty"`
}

// Aggregate is the region's pool of that type.
func (c Grant) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses grant-invalid, pool-undeclared, pool-exhausted,
// address-unknown and address-taken.
func (c Grant) Decide(s State, _ aggregates.Facts) (events.PoolEvent, error) {
	if c.For == "" || c.Note == "" || len(c.Note) > maxValue || c.Command == "" {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "grant-invalid", "a grant needs an account, a note of at most %d bytes and the command's id", maxValue)
	}
	r := request{pool: Of(c.Region, c.Type), command: c.Command, owner: events.Owner{Account: c.For}}
	lease := events.Lease{ID: leaseID(r, c.Note), Resource: c.Note, Value: canonical(c.Value), Chosen: events.Named}
	_, reused := s.leases.get(string(lease.ID))
	switch {
	case reused:
		return nil, aggregates.Already("the command %s has granted it", c.Command)
	case len(s.spans) == 0:
		return nil, undeclared(r.pool)
	case c.Value != "":
		if err := s.available(r, c.Note, lease.Value, nil); err != nil {
			return nil, err
		}
	case s.Free() == 0:
		return nil, exhausted(r.pool, 1, s)
	default:
		lease.Chosen = events.Automatic
		one := []events.Lease{lease}
		s.fill(one, nil)
		lease = one[0]
	}
	return events.LeaseGranted{Account: c.For, Lease: lease}, nil
}

// Revoke frees a value that was granted.
type Revoke struct {
	Region events.RegionID `json:"region"`
	Type   events.PoolID   `json:"type"`
	Lease  events.LeaseID  `json:"lease"`
}

// Aggregate is the region's pool of that type.
func (c Revoke) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses lease-in-use for what an instance or an environment holds:
// that goes with them.
func (c Revoke) Decide(s State, _ aggregates.Facts) (events.PoolEvent, error) {
	l, known := s.leases.get(string(c.Lease))
	switch {
	case !known:
		return nil, aggregates.Already("there is no lease %s", c.Lease)
	case l.Instance != "" || l.Environment != "":
		return nil, aggregates.Refuse("lease-in-use", "%s is held by %s and is released with it", l.Value, l.holder())
	}
	return events.LeaseRevoked{Lease: c.Lease}, nil
}
