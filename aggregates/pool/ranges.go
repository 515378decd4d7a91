package pool

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

const (
	// MaxRange is the most addresses that one range may have: an IPv4 /12.
	MaxRange = 1 << 20
	// maxOffset leaves room for the well-known ports above it.
	maxOffset = 1<<16 - 1<<10
	maxValue  = 253 // bytes, the longest host name
)

// AddRange gives a pool more to give: a prefix of addresses, or values one by
// one. The first range makes the pool.
type AddRange struct {
	Region     events.RegionID `json:"region"`
	Type       events.PoolID   `json:"type"`
	Prefix     string          `json:"prefix,omitempty"`
	Values     []string        `json:"values,omitempty"`
	Bind       string          `json:"bind,omitempty"` // where the prefix is really bound: as large, or "auto": see LoopbackOf
	PortOffset int             `json:"port_offset,omitempty"`
}

// Aggregate is the region's pool of that type, whoever asks.
func (c AddRange) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region, c.Type) }

// Of names the pool of a type in a region.
func Of(region events.RegionID, t events.PoolID) events.Aggregate {
	return events.Aggregate{Account: events.None, Region: region, Kind: events.KindPool, ID: string(t)}
}

// Decide refuses what is not a range (range-invalid), is too large
// (range-too-large), cannot be bound there (bind-invalid, bind-overlaps) or is
// in the pool in part or in another way (range-overlaps).
func (c AddRange) Decide(s State, _ aggregates.Facts) (events.PoolEvent, error) {
	if (c.Prefix == "") == (len(c.Values) == 0) {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "range-invalid", "a range is either a prefix or a list of values")
	}
	if c.Prefix == "" {
		return c.decideValues(s)
	}
	prefix, err := parsePrefix(c.Prefix)
	if err != nil {
		return nil, err
	}
	if c.Bind == Auto {
		at, err := LoopbackOf(prefix)
		if err != nil {
			return nil, err
		}
		c.Bind, c.PortOffset = at.String(), cmp.Or(c.PortOffset, LoopbackOffset)
	}
	e := events.RangeAdded{Prefix: prefix.String(), PortOffset: c.PortOffset}
	if c.PortOffset < 0 || c.PortOffset > maxOffset || c.PortOffset > 0 && c.Bind == "" {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bind-invalid", "the port offset %d is not between 0 and %d, or there is no prefix to bind to", c.PortOffset, maxOffset)
	}
	var bind netip.Prefix
	if c.Bind != "" {
		if bind, err = parsePrefix(c.Bind); err != nil {
			return nil, err
		}
		if spanOf(bind, netip.Prefix{}, 0).size() != spanOf(prefix, netip.Prefix{}, 0).size() {
			return nil, aggregates.RefuseAs(aggregates.Invalid, "bind-invalid", "%s cannot be bound at %s: they differ in size", prefix, bind)
		}
		e.Bind = bind.String()
	}
	for _, r := range s.spans {
		switch {
		case r.prefix == prefix && r.bind == bind && r.offset == c.PortOffset:
			return nil, aggregates.Already("the pool has %s", prefix)
		case r.prefix.IsValid() && r.prefix.Overlaps(prefix):
			return nil, aggregates.Refuse("range-overlaps", "%s overlaps %s, which the pool has", prefix, r.prefix)
		case r.bind.IsValid() && bind.IsValid() && r.bind.Overlaps(bind) && r.offset == c.PortOffset:
			return nil, aggregates.Refuse("bind-overlaps", "%s overlaps %s, where %s is bound", bind, r.bind, r.prefix)
		}
		for _, v := range r.values {
			if _, in := spanOf(prefix, netip.Prefix{}, 0).position(v); in {
				return nil, aggregates.Refuse("range-overlaps", "%s contains %s, which the pool has", prefix, v)
			}
		}
	}
	return e, nil
}

// Auto, as where a prefix is bound, leaves it to LoopbackOf.
const Auto = "auto"

// LoopbackOffset is what is added to ports where a prefix is bound
// automatically, so that no privilege is needed for port 80.
const LoopbackOffset = 8000

// LoopbackOf gives the part of 127.0.0.0/8 that stands for a prefix on a host
// where nobody has privileges: 203.0.113.0/28 is bound at 127.0.113.0/28. It
// follows from the prefix alone, differs for prefixes that differ in their last
// three numbers, and leaves 127.0.0.0/24 to others.
func LoopbackOf(prefix netip.Prefix) (netip.Prefix, error) {
	if !prefix.Addr().Is4() {
		return prefix, aggregates.RefuseAs(aggregates.Invalid, "bind-invalid", "%s has no automatic place: only IPv4 has enough loopback addresses", prefix).
			WithNext("say where it is bound")
	}
	b := prefix.Masked().Addr().As4()
	b[0] = 127
	at := netip.PrefixFrom(netip.AddrFrom4(b), prefix.Bits())
	if at.Overlaps(netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 24)) {
		b[1] = 240
		at = netip.PrefixFrom(netip.AddrFrom4(b), prefix.Bits())
	}
	return at, nil
}

func (c AddRange) decideValues(s State) (events.PoolEvent, error) {
	if c.Bind != "" || c.PortOffset != 0 {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bind-invalid", "only a prefix can be bound elsewhere")
	}
	seen, present, bytes := map[string]bool{}, "", 0
	values := make([]string, len(c.Values))
	for i, v := range c.Values {
		v = canonical(v)
		if !isValue(v) {
			return nil, aggregates.RefuseAs(aggregates.Invalid, "range-invalid", "%q is not a value: 1-%d printable characters without spaces, quotes, backslashes, < > or &", v, maxValue)
		}
		if seen[v] {
			return nil, aggregates.RefuseAs(aggregates.Invalid, "range-invalid", "%s is listed twice", v)
		}
		if _, _, in := s.find(v); in && present == "" {
			present = v
		}
		seen[v], values[i] = true, v
		bytes += len(v) + len(`"",`)
	}
	if bytes > events.MaxPayload-1024 {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "range-too-large", "%d values do not fit one event: add them in parts", len(values))
	}
	if present == "" {
		return events.RangeAdded{Values: values}, nil
	}
	if slices.ContainsFunc(s.spans, func(r span) bool { return slices.Equal(r.values, values) }) {
		return nil, aggregates.Already("the pool has these values")
	}
	return nil, aggregates.Refuse("range-overlaps", "the pool has %s", present)
}

// parsePrefix reads a prefix and sets its host bits to zero.
func parsePrefix(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return p, aggregates.RefuseAs(aggregates.Invalid, "range-invalid", "%q is not a prefix", text).
			WithNext("write it as 203.0.113.0/28 or 2001:db8::/120")
	}
	if p.Addr().BitLen()-p.Bits() > 20 {
		return p, aggregates.RefuseAs(aggregates.Invalid, "range-too-large", "%s has more than the %d addresses that one range may have", text, MaxRange)
	}
	return p.Masked(), nil
}

// spanOfAdded reads a range as the event has it, which Decide made.
func spanOfAdded(e events.RangeAdded) span {
	if e.Prefix == "" {
		return spanOfValues(e.Values)
	}
	prefix, _ := netip.ParsePrefix(e.Prefix)
	bind, _ := netip.ParsePrefix(e.Bind)
	return spanOf(prefix, bind, e.PortOffset)
}

// isValue holds values to what JSON writes as it is, so that the size of an
// event can be foretold.
func isValue(v string) bool {
	if v == "" || len(v) > maxValue {
		return false
	}
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case c <= ' ' || c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}
