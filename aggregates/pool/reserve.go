package pool

import (
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// Reserve holds one value for each of an instance's resources. Asking again, or
// for more, adds only what is new. With InheritFrom, a resource that the
// instance before it has a value for takes that value over; it stays the older
// instance's own until Inherit.
type Reserve struct {
	Region      events.RegionID   `json:"region"`
	Type        events.PoolID     `json:"type"`
	Command     events.CommandID  `json:"command"` // this command's id, from which the leases' ids derive
	Owner       events.Owner      `json:"owner"`   // an instance
	Resources   []string          `json:"resources"`
	Choices     map[string]string `json:"choices,omitempty"` // resource → the value that the user named
	InheritFrom events.InstanceID `json:"inherit_from,omitempty"`
	Until       time.Time         `json:"until"` // released if not confirmed by then
}

// Aggregate is the region's pool of that type.
func (c Reserve) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses owner-invalid, resource-invalid, command-id-missing,
// until-past, too-many-resources, owner-of-another-account, command-id-reused,
// pool-undeclared, pool-exhausted, address-unknown, address-taken,
// address-named-twice, resource-mapped.
func (c Reserve) Decide(s State, f aggregates.Facts) (events.PoolEvent, error) {
	if err := checkInstance(c.Owner); err != nil {
		return nil, err
	}
	from, _ := s.holders.get(instance(c.InheritFrom))
	legacy := map[string]Held{}
	if c.InheritFrom != "" && c.InheritFrom != c.Owner.Instance && from.account == c.Owner.Account {
		for _, id := range from.leases {
			l, _ := s.leases.get(string(id))
			legacy[l.Resource] = l
		}
	}
	inherited, fresh, err := s.choose(request{Of(c.Region, c.Type), c.Command, c.Owner, c.Resources, c.Choices},
		func(resource string) (Held, bool) { l, ok := legacy[resource]; return l, ok })
	switch {
	case err != nil:
		return nil, err
	case len(inherited)+len(fresh) == 0:
		return nil, aggregates.Already("instance %s holds a value for each of its resources", c.Owner.Instance)
	case !c.Until.After(f.Now):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "until-past", "a reservation until %s would be over before it began", c.Until.Format(time.RFC3339))
	}
	for i := range inherited {
		inherited[i].Chosen = events.Inherited
	}
	return events.LeasesReserved{Owner: c.Owner, Leases: fresh, Inherited: inherited, Until: c.Until}, nil
}

// Confirm says that the instance has recorded its map: its reservation does not
// expire any more, nor does what it reserves later.
type Confirm struct {
	Region events.RegionID `json:"region"`
	Type   events.PoolID   `json:"type"`
	Owner  events.Owner    `json:"owner"`
}

// Aggregate is the region's pool of that type.
func (c Confirm) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses owner-invalid, owner-of-another-account, and reservation-gone
// where the owner holds nothing: it expired or was released.
func (c Confirm) Decide(s State, _ aggregates.Facts) (events.PoolEvent, error) {
	if err := checkInstance(c.Owner); err != nil {
		return nil, err
	}
	h, known := s.holders.get(key(c.Owner))
	switch {
	case !known:
		return nil, aggregates.Refuse("reservation-gone", "instance %s holds nothing of the pool %s of %s", c.Owner.Instance, c.Type, c.Region).
			WithNext("reserve again")
	case h.account != c.Owner.Account:
		return nil, anotherAccount()
	case h.until.IsZero():
		return nil, aggregates.Already("the reservation is confirmed")
	}
	return events.LeasesConfirmed{Owner: c.Owner}, nil
}

// Inherit makes the newer instance the owner of what it was to inherit.
type Inherit struct {
	Region events.RegionID `json:"region"`
	Type   events.PoolID   `json:"type"`
	From   events.Owner    `json:"from"`
	To     events.Owner    `json:"to"`
}

// Aggregate is the region's pool of that type.
func (c Inherit) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses owner-invalid and owner-of-another-account.
func (c Inherit) Decide(s State, _ aggregates.Facts) (events.PoolEvent, error) {
	for _, o := range []events.Owner{c.From, c.To} {
		if err := checkInstance(o); err != nil {
			return nil, err
		}
		if h, known := s.holders.get(key(o)); known && h.account != o.Account {
			return nil, anotherAccount()
		}
	}
	to, _ := s.holders.get(key(c.To))
	var leases []events.LeaseID
	for _, id := range to.inherits {
		if l, _ := s.leases.get(string(id)); l.Instance == c.From.Instance {
			leases = append(leases, id)
		}
	}
	if len(leases) == 0 {
		return nil, aggregates.Already("instance %s has nothing to inherit from %s", c.To.Instance, c.From.Instance)
	}
	return events.LeasesInherited{From: c.From, To: c.To, Leases: leases}, nil
}

// Expire frees a reservation that was never confirmed, once its time is up.
type Expire struct {
	Region events.RegionID `json:"region"`
	Type   events.PoolID   `json:"type"`
	Owner  events.Owner    `json:"owner"`
}

// Aggregate is the region's pool of that type.
func (c Expire) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Decide refuses owner-invalid, owner-of-another-account, and not-due before
// the reservation's time is up.
func (c Expire) Decide(s State, f aggregates.Facts) (events.PoolEvent, error) {
	if err := checkInstance(c.Owner); err != nil {
		return nil, err
	}
	h, known := s.holders.get(key(c.Owner))
	switch {
	case !known:
		return nil, aggregates.Already("instance %s holds nothing", c.Owner.Instance)
	case h.account != c.Owner.Account:
		return nil, anotherAccount()
	case h.until.IsZero():
		return nil, aggregates.Already("the reservation is confirmed")
	case f.Now.Before(h.until):
		return nil, aggregates.Refuse("not-due", "the reservation is held until %s", h.until.Format(time.RFC3339))
	}
	return s.released(c.Owner, h, "expired"), nil
}

func checkInstance(o events.Owner) error {
	if o.Account == "" || o.Instance == "" || o.Environment != "" {
		return aggregates.RefuseAs(aggregates.Invalid, "owner-invalid", "the owner must be an instance of an account")
	}
	return nil
}

func anotherAccount() error {
	return aggregates.RefuseAs(aggregates.Denied, "owner-of-another-account", "the owner belongs to another account")
}
