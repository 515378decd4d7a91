package events

import "time"

// KindPool: a region's stock of one type of region-bound resource. Account
// None; its region; the id is the resource type.
const KindPool Kind = "pool"

// PoolEvent is a fact about a pool. Always free + reserved + bound = size.
type PoolEvent interface {
	Event
	ofPool()
}

type inPool struct{}

func (inPool) ofPool() {}

// RangeAdded: the pool has these resources too. The first one makes the pool.
type RangeAdded struct {
	inPool
	Prefix     string   `json:"prefix,omitempty"` // addresses, as CIDR
	Values     []string `json:"values,omitempty"` // other types, one by one
	Bind       string   `json:"bind,omitempty"`   // where the prefix is really bound, as CIDR of the same size
	PortOffset int      `json:"port_offset,omitempty"`
}

// EventType is the wire name.
func (RangeAdded) EventType() Type { return "pool.range-added" }

// Owner is who a lease is for.
type Owner struct {
	Account     AccountID     `json:"account"`
	Instance    InstanceID    `json:"instance,omitempty"`
	Environment EnvironmentID `json:"environment,omitempty"`
}

// Lease gives one value of the pool to one resource of one owner.
type Lease struct {
	ID       LeaseID `json:"id"`
	Resource string  `json:"resource"` // the logical resource id within the graph
	Value    string  `json:"value"`
	Chosen   Chosen  `json:"chosen"`
}

// Chosen says who chose a value.
type Chosen string

// Who chose.
const (
	Automatic Chosen = "automatic" // the pool's lowest free value
	Named     Chosen = "named"     // the user
	Inherited Chosen = "inherited" // taken over from the version before
	Follows   Chosen = "follows"   // it carries the value of what it leans on
)

// LeasesReserved: the instance holds these. Inherited are leases of the
// instance before it, which become its own when its version is activated; they
// stand here in full, so that the instance's map can be made from this event.
type LeasesReserved struct {
	inPool
	Owner     Owner     `json:"owner"`
	Leases    []Lease   `json:"leases,omitempty"`
	Inherited []Lease   `json:"inherited,omitempty"`
	Until     time.Time `json:"until"` // released if not confirmed by then
}

// EventType is the wire name.
func (LeasesReserved) EventType() Type { return "pool.leases-reserved" }

// LeasesConfirmed: the owner has recorded its map; the reservation stays.
type LeasesConfirmed struct {
	inPool
	Owner Owner `json:"owner"`
}

// EventType is the wire name.
func (LeasesConfirmed) EventType() Type { return "pool.leases-confirmed" }

// LeasesInherited: the newer instance owns what it inherited.
type LeasesInherited struct {
	inPool
	From   Owner     `json:"from"`
	To     Owner     `json:"to"`
	Leases []LeaseID `json:"leases"`
}

// EventType is the wire name.
func (LeasesInherited) EventType() Type { return "pool.leases-inherited" }

// LeasesBound: an environment uses these: leases of its instance that were
// free, and fresh ones.
type LeasesBound struct {
	inPool
	Owner Owner   `json:"owner"` // the environment
	Bound []Lease `json:"bound,omitempty"`
	Fresh []Lease `json:"fresh,omitempty"`
}

// EventType is the wire name.
func (LeasesBound) EventType() Type { return "pool.leases-bound" }

// LeasesReleased: the owner holds nothing of this pool any more. Each of its
// leases is in one of the three lists.
type LeasesReleased struct {
	inPool
	Owner  Owner     `json:"owner"`
	Why    string    `json:"why"`              // "removed", "expired", "abandoned", "lost"
	Freed  []LeaseID `json:"freed,omitempty"`  // nobody's any more
	Kept   []LeaseID `json:"kept,omitempty"`   // stay with the environment that uses them, or the instance that owns them
	Passed []Passed  `json:"passed,omitempty"` // an instance that was to inherit them owns them now
}

// EventType is the wire name.
func (LeasesReleased) EventType() Type { return "pool.leases-released" }

// Passed is one lease that went to the instance that was to inherit it.
type Passed struct {
	Lease LeaseID    `json:"lease"`
	To    InstanceID `json:"to"`
}

// LeaseGranted: an administrator gave one value to an account for something
// that Tombolo does not run. Its Resource is what the administrator called it.
type LeaseGranted struct {
	inPool
	Account AccountID `json:"account"`
	Lease   Lease     `json:"lease"`
}

// EventType is the wire name.
func (LeaseGranted) EventType() Type { return "pool.lease-granted" }

// LeaseRevoked: a value that an administrator gave is free again.
type LeaseRevoked struct {
	inPool
	Lease LeaseID `json:"lease"`
}

// EventType is the wire name.
func (LeaseRevoked) EventType() Type { return "pool.lease-revoked" }

// Substitution is one line of a map: in place of From, this region uses To.
type Substitution struct {
	Resource string  `json:"resource"`
	Type     string  `json:"type"`
	From     string  `json:"from,omitempty"`
	To       string  `json:"to"`
	Chosen   Chosen  `json:"chosen"`
	Lease    LeaseID `json:"lease,omitempty"` // empty for what follows another
}
