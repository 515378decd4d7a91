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

// LeasesReserved: the instance holds these. Inherited names leases of the
// instance before it, which become its own when its version is activated.
type LeasesReserved struct {
	inPool
	Owner     Owner     `json:"owner"`
	Leases    []Lease   `json:"leases,omitempty"`
	Inherited []LeaseID `json:"inherited,omitempty"`
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
	From Owner `json:"from"`
	To   Owner `json:"to"`
}

// EventType is the wire name.
func (LeasesInherited) EventType() Type { return "pool.leases-inherited" }

// LeasesBound: an environment uses these: leases of its instance that were
// free, and fresh ones.
type LeasesBound struct {
	inPool
	Owner Owner     `json:"owner"` // the environment
	Bound []LeaseID `json:"bound,omitempty"`
	Fresh []Lease   `json:"fresh,omitempty"`
}

// EventType is the wire name.
func (LeasesBound) EventType() Type { return "pool.leases-bound" }

// LeasesReleased: the owner holds nothing of this pool any more. What another
// uses (an environment a lease of its instance) stays with that one.
type LeasesReleased struct {
	inPool
	Owner Owner  `json:"owner"`
	Why   string `json:"why"` // "removed", "expired", "abandoned", "lost"
}

// EventType is the wire name.
func (LeasesReleased) EventType() Type { return "pool.leases-released" }

// Substitution is one line of a map: in place of From, this region uses To.
type Substitution struct {
	Resource string  `json:"resource"`
	Type     string  `json:"type"`
	From     string  `json:"from,omitempty"`
	To       string  `json:"to"`
	Chosen   Chosen  `json:"chosen"`
	Lease    LeaseID `json:"lease,omitempty"` // empty for what follows another
}
