package projections

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/tombolo-vdc/tombolo/events"
)

// Pools answers: what stock has a region, how much of it is free, who has which
// value, and what does an instance or an environment have?
//
//	pools.pool               <region> <type>                            → PoolRow
//	pools.range              <region> <type> <n>                        → RangeRow, in the order in which they were added
//	pools.lease              <lease id>                                 → LeaseRow
//	pools.lease.value        <region> <type> <value's place> <lease id> addresses in their order
//	pools.lease.instance     <instance id> <lease id>                   those that it owns
//	pools.lease.environment  <environment id> <lease id>                those that it uses
//	pools.lease.account      <account> <lease id>
//	pools.holder             <region> <type> <instance|environment> <id> → holderRow
type Pools struct{}

// PoolRow is the stock of one type in one region: Free + Reserved + Bound = Size.
type PoolRow struct {
	Region   events.RegionID `json:"region"`
	Type     events.PoolID   `json:"type"`
	Size     int             `json:"size"`
	Free     int             `json:"free"`
	Reserved int             `json:"reserved"` // held, and not used by an environment
	Bound    int             `json:"bound"`    // used by an environment
	Ranges   int             `json:"ranges"`
	Created  Time            `json:"created_at"`
	Revision uint64          `json:"revision"`
}

// RangeRow is one addition to a pool.
type RangeRow struct {
	Region     events.RegionID `json:"region"`
	Type       events.PoolID   `json:"type"`
	N          int             `json:"n"` // from 1
	Prefix     string          `json:"prefix,omitempty"`
	Values     []string        `json:"values,omitempty"`
	Bind       string          `json:"bind,omitempty"` // where the prefix is really bound
	PortOffset int             `json:"port_offset,omitempty"`
	Added      Time            `json:"added_at"`
}

// LeaseRow is one value that somebody has: an instance that owns it, an
// environment that uses it, both, or neither for one that was granted.
type LeaseRow struct {
	ID          events.LeaseID       `json:"id"`
	Region      events.RegionID      `json:"region"`
	Type        events.PoolID        `json:"type"`
	Account     events.AccountID     `json:"account"`
	Value       string               `json:"value"`
	Resource    string               `json:"resource"` // the logical resource it stands for
	Chosen      events.Chosen        `json:"chosen"`
	Instance    events.InstanceID    `json:"instance,omitempty"`
	Environment events.EnvironmentID `json:"environment,omitempty"`
	Heirs       []events.InstanceID  `json:"heirs,omitempty"` // that own it after the instance, oldest claim first
	Since       Time                 `json:"since"`
}

// Holder says in a word and an id who has the value: the environment that uses
// it before the instance that owns it.
func (l LeaseRow) Holder() (kind, id string) {
	switch {
	case l.Environment != "":
		return "environment", string(l.Environment)
	case l.Instance != "":
		return "instance", string(l.Instance)
	}
	return "grant", string(l.Account)
}

// holderRow is what one instance is to inherit; what it has is in the leases.
type holderRow struct {
	Region   events.RegionID   `json:"region"`
	Type     events.PoolID     `json:"type"`
	Instance events.InstanceID `json:"instance"`
	Inherits []events.LeaseID  `json:"inherits"`
}

var (
	pools      = NewTable("pools", "pool", func(p PoolRow) Key { return Key{string(p.Region), string(p.Type)} })
	poolRanges = NewTable("pools", "range", func(a RangeRow) Key {
		return Key{string(a.Region), string(a.Type), Number(uint64(a.N))}
	})
	leaseValues = index("value", func(l *LeaseRow, in *entries) {
		in.add(string(l.Region), string(l.Type), placeOf(l.Value))
	})
	leaseInstances    = index("instance", func(l *LeaseRow, in *entries) { in.addUnlessEmpty(string(l.Instance)) })
	leaseEnvironments = index("environment", func(l *LeaseRow, in *entries) { in.addUnlessEmpty(string(l.Environment)) })
	leaseAccounts     = index("account", func(l *LeaseRow, in *entries) { in.addUnlessEmpty(string(l.Account)) })
	leases            = NewTable("pools", "lease", func(l LeaseRow) Key { return Key{string(l.ID)} },
		leaseValues, leaseInstances, leaseEnvironments, leaseAccounts)
	poolHolders = NewTable("pools", "holder", func(h holderRow) Key { return holderKey(h.Region, h.Type, h.Instance) })
)

func holderKey(region events.RegionID, t events.PoolID, i events.InstanceID) Key {
	return Key{string(region), string(t), string(i)}
}

// placeOf orders addresses by number, and before them all else by its text.
func placeOf(value string) string {
	if a, err := netip.ParseAddr(value); err == nil {
		return fmt.Sprintf("~%x", a.As16())
	}
	return value
}

// Name is "pools".
func (Pools) Name() string { return "pools" }

// Shape of the rows.
func (Pools) Shape() int { return 2 }

// Tables of pools.
func (Pools) Tables() []Described { return []Described{pools, poolRanges, leases, poolHolders} }

// Apply folds the facts of pools. It follows what an event says and decides
// nothing anew.
func (Pools) Apply(w *Batch, r events.Record) error {
	fact, ok := r.Event.(events.PoolEvent)
	if !ok {
		return nil
	}
	f := poolFold{w: w, region: r.Aggregate.Region, kind: events.PoolID(r.Aggregate.ID), at: stored(r)}
	row, exists, err := pools.Get(w, string(f.region), string(f.kind))
	if err != nil {
		return err
	}
	if !exists {
		row = PoolRow{Region: f.region, Type: f.kind, Created: f.at}
	}
	if err := f.fold(&row, fact); err != nil {
		return err
	}
	row.Reserved += f.reserved
	row.Bound += f.bound
	row.Free = row.Size - row.Reserved - row.Bound
	row.Revision = r.Revision
	return pools.Put(w, row)
}

// poolFold writes one event's leases and counts what becomes of them.
type poolFold struct {
	w               *Batch
	region          events.RegionID
	kind            events.PoolID
	at              Time
	reserved, bound int
}

func (f *poolFold) fold(row *PoolRow, fact events.PoolEvent) error {
	switch e := fact.(type) {
	case events.RangeAdded:
		row.Ranges++
		row.Size += sizeOf(e)
		return poolRanges.Put(f.w, RangeRow{f.region, f.kind, row.Ranges, e.Prefix, e.Values, e.Bind, e.PortOffset, f.at})
	case events.LeasesReserved:
		return f.reserve(e)
	case events.LeasesConfirmed:
		return nil
	case events.LeasesInherited:
		for _, id := range e.Leases {
			if err := f.pass(id, e.To.Instance); err != nil {
				return err
			}
		}
		return nil
	case events.LeasesBound:
		for _, l := range e.Bound {
			f.reserved--
			f.bound++
			if err := f.change(l.ID, func(l *LeaseRow) { l.Environment = e.Owner.Environment }); err != nil {
				return err
			}
		}
		for _, l := range e.Fresh {
			f.bound++
			if err := f.take(l, e.Owner); err != nil {
				return err
			}
		}
		return nil
	case events.LeasesReleased:
		return f.release(e)
	case events.LeaseGranted:
		f.reserved++
		return f.take(e.Lease, events.Owner{Account: e.Account})
	case events.LeaseRevoked:
		f.reserved--
		return leases.Delete(f.w, string(e.Lease))
	}
	return fmt.Errorf("pools do not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
}

func sizeOf(e events.RangeAdded) int {
	if p, err := netip.ParsePrefix(e.Prefix); err == nil {
		return 1 << (p.Addr().BitLen() - p.Bits())
	}
	return len(e.Values)
}

func (f *poolFold) take(l events.Lease, o events.Owner) error {
	return leases.Put(f.w, LeaseRow{ID: l.ID, Region: f.region, Type: f.kind, Account: o.Account, Value: l.Value,
		Resource: l.Resource, Chosen: l.Chosen, Instance: o.Instance, Environment: o.Environment, Since: f.at})
}

func (f *poolFold) change(id events.LeaseID, edit func(*LeaseRow)) error {
	return leases.Change(f.w, edit, string(id))
}

func (f *poolFold) reserve(e events.LeasesReserved) error {
	for _, l := range e.Leases {
		f.reserved++
		if err := f.take(l, e.Owner); err != nil {
			return err
		}
	}
	if len(e.Inherited) == 0 {
		return nil
	}
	h, _, err := poolHolders.Get(f.w, holderKey(f.region, f.kind, e.Owner.Instance)...)
	if err != nil {
		return err
	}
	h.Region, h.Type, h.Instance = f.region, f.kind, e.Owner.Instance
	for _, l := range e.Inherited {
		h.Inherits = append(h.Inherits, l.ID)
		if err := f.change(l.ID, func(l *LeaseRow) { l.Heirs = append(l.Heirs, e.Owner.Instance) }); err != nil {
			return err
		}
	}
	return poolHolders.Put(f.w, h)
}

// pass makes an heir the owner.
func (f *poolFold) pass(id events.LeaseID, to events.InstanceID) error {
	if err := f.change(id, func(l *LeaseRow) { l.Instance, l.Heirs = to, drop(l.Heirs, to) }); err != nil {
		return err
	}
	h, ok, err := poolHolders.Get(f.w, holderKey(f.region, f.kind, to)...)
	if err != nil || !ok {
		return err
	}
	if h.Inherits = drop(h.Inherits, id); len(h.Inherits) > 0 {
		return poolHolders.Put(f.w, h)
	}
	return poolHolders.Delete(f.w, holderKey(f.region, f.kind, to)...)
}

func (f *poolFold) release(e events.LeasesReleased) error {
	if e.Owner.Instance != "" {
		key := holderKey(f.region, f.kind, e.Owner.Instance)
		h, _, err := poolHolders.Get(f.w, key...)
		if err != nil {
			return err
		}
		for _, id := range h.Inherits {
			if err := f.change(id, func(l *LeaseRow) { l.Heirs = drop(l.Heirs, e.Owner.Instance) }); err != nil {
				return err
			}
		}
		if err := poolHolders.Delete(f.w, key...); err != nil {
			return err
		}
	}
	used := e.Owner.Environment != ""
	for _, id := range e.Freed {
		if used {
			f.bound--
		} else {
			f.reserved--
		}
		if err := leases.Delete(f.w, string(id)); err != nil {
			return err
		}
	}
	for _, id := range e.Kept {
		if used {
			f.bound--
			f.reserved++
		}
		if err := f.change(id, func(l *LeaseRow) {
			if used {
				l.Environment = ""
			} else {
				l.Instance = ""
			}
		}); err != nil {
			return err
		}
	}
	for _, p := range e.Passed {
		if err := f.pass(p.Lease, p.To); err != nil {
			return err
		}
	}
	return nil
}

func drop[T comparable](list []T, x T) []T {
	return slices.DeleteFunc(list, func(y T) bool { return y == x })
}

// Pool gives the stock of a type in a region; false if there is none.
func (Pools) Pool(r Reader, region events.RegionID, t events.PoolID) (PoolRow, bool, error) {
	return pools.Get(r, string(region), string(t))
}

// List gives pools by region and type, of one region or (if that is empty) of
// all, a page at a time.
func (Pools) List(r Reader, region events.RegionID, limit int, resume string) (Page[PoolRow], error) {
	var prefix Key
	if region != "" {
		prefix = Key{string(region)}
	}
	return pools.Scan(r, Query[PoolRow]{Prefix: prefix, Limit: limit, Resume: resume})
}

// Ranges gives what a pool consists of, in the order in which it was added.
func (Pools) Ranges(r Reader, region events.RegionID, t events.PoolID) ([]RangeRow, error) {
	return gather(poolRanges, r, Query[RangeRow]{Prefix: Key{string(region), string(t)}})
}

// Leases gives who has what of a pool, addresses in their order, a page at a time.
func (Pools) Leases(r Reader, region events.RegionID, t events.PoolID, limit int, resume string) (Page[LeaseRow], error) {
	return leases.Scan(r, Query[LeaseRow]{By: leaseValues, Prefix: Key{string(region), string(t)}, Limit: limit, Resume: resume})
}

// Holder gives who has a value; false if it is free or not in the pool.
func (Pools) Holder(r Reader, region events.RegionID, t events.PoolID, value string) (LeaseRow, bool, error) {
	page, err := leases.Scan(r, Query[LeaseRow]{By: leaseValues, Prefix: Key{string(region), string(t), placeOf(value)}, Limit: 1})
	if err != nil || len(page.Rows) == 0 {
		return LeaseRow{}, false, err
	}
	return page.Rows[0], true, nil
}

// OfInstance gives the leases that an instance owns, by id.
func (Pools) OfInstance(r Reader, id events.InstanceID) ([]LeaseRow, error) {
	return gather(leases, r, Query[LeaseRow]{By: leaseInstances, Prefix: Key{string(id)}})
}

// OfEnvironment gives the leases that an environment uses, by id.
func (Pools) OfEnvironment(r Reader, id events.EnvironmentID) ([]LeaseRow, error) {
	return gather(leases, r, Query[LeaseRow]{By: leaseEnvironments, Prefix: Key{string(id)}})
}

// OfAccount gives everything that an account has, by lease id, a page at a time.
func (Pools) OfAccount(r Reader, account events.AccountID, limit int, resume string) (Page[LeaseRow], error) {
	return leases.Scan(r, Query[LeaseRow]{By: leaseAccounts, Prefix: Key{string(account)}, Limit: limit, Resume: resume})
}

// Place says where a value is really bound: the address that stands for it on
// the host and what is added to ports there. It is the value itself and 0 unless
// its range was added with another place; false if the pool does not have it.
func (p Pools) Place(r Reader, region events.RegionID, t events.PoolID, value string) (address string, portOffset int, ok bool, err error) {
	ranges, err := p.Ranges(r, region, t)
	if err != nil {
		return "", 0, false, err
	}
	address, portOffset, ok = PlaceIn(ranges, value)
	return address, portOffset, ok, nil
}

// PlaceIn is Place in ranges that were read before.
func PlaceIn(ranges []RangeRow, value string) (address string, portOffset int, ok bool) {
	addr, addrErr := netip.ParseAddr(value)
	for _, a := range ranges {
		prefix, err := netip.ParsePrefix(a.Prefix)
		switch {
		case err != nil && slices.Contains(a.Values, value):
			return value, 0, true
		case err != nil || addrErr != nil || !prefix.Contains(addr):
			continue
		}
		bind, err := netip.ParsePrefix(a.Bind)
		if err != nil {
			return value, 0, true
		}
		return moved(addr, prefix, bind).String(), a.PortOffset, true
	}
	return "", 0, false
}

// moved gives the address that is as far into bind as addr is into prefix.
func moved(addr netip.Addr, prefix, bind netip.Prefix) netip.Addr {
	at, from, to := addr.As16(), prefix.Masked().Addr().As16(), bind.Masked().Addr().As16()
	carry := 0
	for i := len(to) - 1; i >= 0; i-- {
		n := int(to[i]) + int(at[i]) - int(from[i]) + carry
		carry = n >> 8
		to[i] = byte(n)
	}
	out := netip.AddrFrom16(to)
	if bind.Addr().Is4() {
		out = netip.AddrFrom4([4]byte(to[12:]))
	}
	return out
}
