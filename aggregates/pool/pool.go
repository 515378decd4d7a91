// Package pool decides who gets which value of a region's stock of one type of
// region-bound resource ([0023]): public addresses, VPN endpoints, ports.
//
// It guards: no value has two leases; free + reserved + bound = size; a value
// that a running environment uses is never given away; an account never learns
// who of another account holds a value.
//
// An instance reserves; an environment binds its instance's lease where that is
// free and a fresh one otherwise. Every address of a prefix belongs to the pool,
// the first and the last too: a public address is routed by itself, not part of
// a subnet with a network and a broadcast address.
package pool

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// State is one pool. It is a value: Fold shares with the older state what is
// equal, changes nothing of it, and costs O(log n) per lease, so older states
// may be kept and read while newer ones are made.
type State struct {
	spans    []span      // prefixes by address, then lists of values by age
	leases   table[Held] // by lease id
	byValue  table[events.LeaseID]
	holders  table[holding] // by key(owner)
	size     int
	reserved int
	bound    int
}

// Held is a lease with those who have it: an instance that owns it, an
// environment that uses it, or both; neither for one that was granted.
type Held struct {
	events.Lease
	Account     events.AccountID
	Instance    events.InstanceID
	Environment events.EnvironmentID
	Heirs       []events.InstanceID // instances that own it after this one, oldest claim first
}

// holding is what one owner has.
type holding struct {
	account  events.AccountID
	until    time.Time // zero once confirmed
	leases   []events.LeaseID
	inherits []events.LeaseID // owned by another instance as yet
}

// Size is how many values the pool has.
func (s State) Size() int { return s.size }

// Free is how many values nobody holds.
func (s State) Free() int {
	free := 0
	for _, r := range s.spans {
		free += r.size() - r.taken
	}
	return free
}

// Reserved is how many values are held but not in use by an environment.
func (s State) Reserved() int { return s.reserved }

// Bound is how many values environments use.
func (s State) Bound() int { return s.bound }

// Bounds says what the pool consists of, for people.
func (s State) Bounds() string {
	var parts []string
	for _, r := range s.spans {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ", ")
}

// Holder gives the lease of a value.
func (s State) Holder(value string) (Held, bool) {
	id, ok := s.byValue.get(canonical(value))
	if !ok {
		return Held{}, false
	}
	return s.leases.get(string(id))
}

// Leases gives what the owner has and then what it is to inherit.
func (s State) Leases(o events.Owner) []Held {
	h, _ := s.holders.get(key(o))
	var out []Held
	for _, id := range slices.Concat(h.leases, h.inherits) {
		l, _ := s.leases.get(string(id))
		out = append(out, l)
	}
	return out
}

// Place says where a value is really bound: the address that stands for it on
// the host and what is added to ports there. It is the value itself and 0
// unless the range was added with another place.
func (s State) Place(value string) (address string, portOffset int) {
	value = canonical(value)
	if r, i, ok := s.find(value); ok && s.spans[r].bind.IsValid() {
		return plus(s.spans[r].bind.Addr(), i).String(), s.spans[r].offset
	}
	return value, 0
}

// find gives the span and the position of a value.
func (s State) find(value string) (spanIndex, position int, ok bool) {
	for r := range s.spans {
		if i, ok := s.spans[r].position(value); ok {
			return r, i, true
		}
	}
	return 0, 0, false
}

// key is how holders are told apart.
func key(o events.Owner) string {
	if o.Environment != "" {
		return "environment " + string(o.Environment)
	}
	return "instance " + string(o.Instance)
}

func instance(id events.InstanceID) string { return key(events.Owner{Instance: id}) }

// Fold gives the state after e. It follows what the event says and decides
// nothing anew, so that a rule that changes never changes what has been.
func (s State) Fold(e events.PoolEvent) State {
	switch e := e.(type) {
	case events.RangeAdded:
		s.add(e)
	case events.LeasesReserved:
		h, known := s.holders.get(key(e.Owner))
		if !known || !h.until.IsZero() {
			h.until = e.Until
		}
		h.account = e.Owner.Account
		h.leases, h.inherits = slices.Clip(h.leases), slices.Clip(h.inherits) // an append must not reach the older state
		for _, l := range e.Leases {
			s.take(Held{Lease: l, Account: e.Owner.Account, Instance: e.Owner.Instance})
			h.leases = append(h.leases, l.ID)
		}
		for _, l := range e.Inherited {
			s.change(l.ID, func(l *Held) { l.Heirs = append(slices.Clip(l.Heirs), e.Owner.Instance) })
			h.inherits = append(h.inherits, l.ID)
		}
		s.holders = s.holders.with(key(e.Owner), h)
	case events.LeasesConfirmed:
		h, _ := s.holders.get(key(e.Owner))
		h.until = time.Time{}
		s.holders = s.holders.with(key(e.Owner), h)
	case events.LeasesInherited:
		for _, id := range e.Leases {
			s.pass(id, e.From.Instance, e.To.Instance)
		}
	case events.LeasesBound:
		h, _ := s.holders.get(key(e.Owner))
		h.account = e.Owner.Account
		h.leases = slices.Clip(h.leases)
		for _, l := range e.Bound {
			s.change(l.ID, func(l *Held) { l.Environment = e.Owner.Environment })
			s.reserved--
			s.bound++
			h.leases = append(h.leases, l.ID)
		}
		for _, l := range e.Fresh {
			s.take(Held{Lease: l, Account: e.Owner.Account, Environment: e.Owner.Environment})
			h.leases = append(h.leases, l.ID)
		}
		s.holders = s.holders.with(key(e.Owner), h)
	case events.LeasesReleased:
		s.release(e)
	case events.LeaseGranted:
		s.take(Held{Lease: e.Lease, Account: e.Account})
	case events.LeaseRevoked:
		s.drop(e.Lease)
	}
	return s
}

// The methods below change s, which is Fold's own copy, and replace what it
// shares with the older state rather than write to it.

func (s *State) add(e events.RangeAdded) {
	added := spanOfAdded(e)
	s.spans = append(slices.Clip(s.spans), added)
	s.size += added.size()
	slices.SortStableFunc(s.spans, func(a, b span) int {
		switch {
		case a.prefix.IsValid() && b.prefix.IsValid():
			return a.prefix.Addr().Compare(b.prefix.Addr())
		case a.prefix.IsValid():
			return -1
		case b.prefix.IsValid():
			return 1
		default:
			return 0 // lists stay in the order in which they came
		}
	})
}

func (s *State) take(l Held) {
	s.leases = s.leases.with(string(l.ID), l)
	s.byValue = s.byValue.with(l.Value, l.ID)
	s.mark(l.Value, true)
	if l.Environment != "" {
		s.bound++
	} else {
		s.reserved++
	}
}

// drop gives up a lease that no environment uses any more.
func (s *State) drop(id events.LeaseID) {
	l, _ := s.leases.get(string(id))
	s.leases = s.leases.without(string(id))
	s.byValue = s.byValue.without(l.Value)
	s.mark(l.Value, false)
	s.reserved--
}

func (s *State) mark(value string, taken bool) {
	if r, i, ok := s.find(value); ok {
		s.spans = slices.Clone(s.spans)
		s.spans[r] = s.spans[r].set(i, taken)
	}
}

func (s *State) change(id events.LeaseID, f func(*Held)) {
	l, _ := s.leases.get(string(id))
	f(&l)
	s.leases = s.leases.with(string(id), l)
}

// pass makes an heir the owner.
func (s *State) pass(id events.LeaseID, from, to events.InstanceID) {
	s.change(id, func(l *Held) { l.Instance, l.Heirs = to, without(l.Heirs, to) })
	old, _ := s.holders.get(instance(from))
	old.leases = without(old.leases, id)
	s.holders = s.holders.with(instance(from), old)
	h, _ := s.holders.get(instance(to))
	h.leases, h.inherits = append(slices.Clip(h.leases), id), without(h.inherits, id)
	s.holders = s.holders.with(instance(to), h)
}

func (s *State) release(e events.LeasesReleased) {
	h, _ := s.holders.get(key(e.Owner))
	for _, id := range h.inherits {
		s.change(id, func(l *Held) { l.Heirs = without(l.Heirs, e.Owner.Instance) })
	}
	unbind := func(id events.LeaseID) {
		s.change(id, func(l *Held) { l.Environment = "" })
		s.bound--
		s.reserved++
	}
	for _, id := range e.Freed {
		if e.Owner.Environment != "" {
			unbind(id)
		}
		s.drop(id)
	}
	for _, id := range e.Kept {
		if e.Owner.Environment != "" {
			unbind(id)
		} else {
			s.change(id, func(l *Held) { l.Instance = "" })
		}
	}
	for _, p := range e.Passed {
		s.pass(p.Lease, e.Owner.Instance, p.To)
	}
	s.holders = s.holders.without(key(e.Owner))
}

// without gives a new slice: the old one belongs to older states.
func without[T comparable](list []T, x T) []T {
	var out []T
	for _, y := range list {
		if y != x {
			out = append(out, y)
		}
	}
	return out
}

// numbers says how full the pool is, for people.
func (s State) numbers() string {
	return fmt.Sprintf("%d of %d free, %d reserved, %d bound; it consists of %s", s.Free(), s.size, s.reserved, s.bound, s.Bounds())
}
