package pool

import (
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// Bind gives an environment one value for each of its resources: the lease of
// the instance that it was made from, where no other environment uses that, and
// a fresh one otherwise (or where the instance is another account's). Asking
// again, or for more, adds only what is new. An environment exists before it
// binds, so what it binds does not expire.
type Bind struct {
	Region    events.RegionID   `json:"region"`
	Type      events.PoolID     `json:"type"`
	Command   events.CommandID  `json:"command"` // this command's id, from which the leases' ids derive
	Owner     events.Owner      `json:"owner"`   // an environment
	Instance  events.InstanceID `json:"instance,omitempty"`
	Resources []string          `json:"resources"`
	Choices   map[string]string `json:"choices,omitempty"` // resource → the value that the user named
}

// Aggregate is the region's pool of that type.
func (c Bind) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses what Reserve refuses, but for the time.
func (c Bind) Decide(s State, _ aggregates.Facts) (events.PoolEvent, error) {
	if c.Owner.Account == "" || c.Owner.Environment == "" || c.Owner.Instance != "" {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "owner-invalid", "the owner must be an environment of an account")
	}
	unused := map[string]Held{}
	if from, known := s.holders.get(instance(c.Instance)); known && from.account == c.Owner.Account {
		// What the instance is to inherit is the older instance's to lend.
		for _, id := range from.leases {
			if l, _ := s.leases.get(string(id)); l.Environment == "" {
				unused[l.Resource] = l
			}
		}
	}
	bound, fresh, err := s.choose(request{Of(c.Region, c.Type), c.Command, c.Owner, c.Resources, c.Choices},
		func(resource string) (Held, bool) { l, ok := unused[resource]; return l, ok })
	switch {
	case err != nil:
		return nil, err
	case len(bound)+len(fresh) == 0:
		return nil, aggregates.Already("environment %s has a value for each of its resources", c.Owner.Environment)
	}
	return events.LeasesBound{Owner: c.Owner, Bound: bound, Fresh: fresh}, nil
}

// Release ends what an instance or an environment holds. What an environment
// uses stays with it when the instance goes; what an instance owns stays with
// it, reserved, when the environment goes; what another instance was to inherit
// goes to that one.
type Release struct {
	Region events.RegionID `json:"region"`
	Type   events.PoolID   `json:"type"`
	Owner  events.Owner    `json:"owner"`
	Why    string          `json:"why"` // "removed", "abandoned" or "lost"
}

// Aggregate is the region's pool of that type.
func (c Release) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses owner-invalid, why-unknown and owner-of-another-account.
func (c Release) Decide(s State, _ aggregates.Facts) (events.PoolEvent, error) {
	if c.Owner.Account == "" || (c.Owner.Instance == "") == (c.Owner.Environment == "") {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "owner-invalid", "the owner must be an instance or an environment of an account")
	}
	if !slices.Contains([]string{"removed", "abandoned", "lost"}, c.Why) {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "why-unknown", "%q is not why leases are released: removed, abandoned or lost", c.Why)
	}
	h, known := s.holders.get(key(c.Owner))
	switch {
	case !known:
		return nil, aggregates.Already("the owner holds nothing of the pool")
	case h.account != c.Owner.Account:
		return nil, anotherAccount()
	}
	return s.released(c.Owner, h, c.Why), nil
}

// released says what becomes of each of the owner's leases.
func (s State) released(o events.Owner, h holding, why string) events.LeasesReleased {
	e := events.LeasesReleased{Owner: o, Why: why}
	for _, id := range h.leases {
		l, _ := s.leases.get(string(id))
		switch {
		case o.Instance != "" && len(l.Heirs) > 0:
			e.Passed = append(e.Passed, events.Passed{Lease: id, To: l.Heirs[0]})
		case o.Instance != "" && l.Environment != "", o.Environment != "" && l.Instance != "":
			e.Kept = append(e.Kept, id)
		default:
			e.Freed = append(e.Freed, id)
		}
	}
	return e
}
