package networks

import (
	"cmp"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// DefaultMTU is what a segment without one has.
const DefaultMTU = 1500

// The bounds of an MTU: RFC 791, and what fits into the longest frame of a machine.
const (
	minMTU = 68
	maxMTU = 65521
)

// MTUOr is the segment's MTU, or the default one.
func (s Segment) MTUOr() int { return cmp.Or(s.MTU, DefaultMTU) }

// Routed says whether the edge routes the segment.
func (s Segment) Routed() bool { return s.Gateway.IsValid() }

// EdgeAddress is where the edge is reached within the segment: the gateway; in an isolated segment that asks for DHCP or DNS
// the highest address of the subnet that no port has; else none.
func (s Segment) EdgeAddress() netip.Addr {
	if s.Gateway.IsValid() || !s.DHCP && !s.DNS || !s.Subnet.IsValid() {
		return s.Gateway
	}
	taken := map[netip.Addr]bool{}
	for _, p := range s.Ports {
		taken[p.Address] = true
	}
	a := Broadcast(s.Subnet).Prev()
	for taken[a] {
		a = a.Prev()
	}
	if a == s.Subnet.Masked().Addr() {
		return netip.Addr{}
	}
	return a
}

// Broadcast is the last address of an IPv4 subnet.
func Broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | uint32(1<<(32-p.Bits())-1)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// CanonicalMAC writes a MAC as Validate compares it: lower case, with colons. One that is none stays as it is.
func CanonicalMAC(mac string) string {
	if m, err := net.ParseMAC(mac); err == nil {
		return m.String()
	}
	return mac
}

// EdgeMAC is that of the edge where it has an address: the same in every environment and region, so that a machine that
// resumes elsewhere finds its gateway where it left it.
func EdgeMAC(a netip.Addr) string {
	b := a.As4()
	return net.HardwareAddr{0x0a, 0x7b, b[0], b[1], b[2], b[3]}.String()
}

var (
	loopback  = netip.MustParsePrefix("127.0.0.0/8")
	linkLocal = netip.MustParsePrefix("169.254.0.0/16")
	multicast = netip.MustParsePrefix("224.0.0.0/3") // and what is reserved above it
	thisHost  = netip.MustParsePrefix("0.0.0.0/8")
)

// Validate says whether a network can be made as described. Errors: network-invalid, address-conflict, duplicate-mac.
func Validate(n Network) error {
	if n.Environment == "" {
		return Errorf(NetworkInvalid, "a network without an environment")
	}
	segments, owners := map[string]bool{}, map[PortID]string{}
	var routed []Segment
	for _, s := range n.Segments {
		if s.ID == "" {
			return Errorf(NetworkInvalid, "a segment without an id")
		}
		if segments[s.ID] {
			return Errorf(NetworkInvalid, "two segments are called %s", s.ID)
		}
		segments[s.ID] = true
		if err := validateSegment(s); err != nil {
			return err
		}
		for _, p := range s.Ports {
			id := PortID{n.Environment, p.Machine, p.Interface}
			if other, ok := owners[id]; ok {
				return Errorf(NetworkInvalid, "%s is in segment %s and in segment %s", p.name(), other, s.ID)
			}
			owners[id] = s.ID
		}
		if s.Routed() {
			for _, other := range routed {
				if other.Subnet.Overlaps(s.Subnet) {
					return Errorf(NetworkInvalid, "segments %s and %s are both routed and overlap: %s and %s", other.ID, s.ID, other.Subnet, s.Subnet)
				}
			}
			routed = append(routed, s)
		}
	}
	return validateEdge(n.Edge, routed)
}

func (p Port) name() string { return "interface " + itoa(p.Interface) + " of " + p.Machine }

func validateSegment(s Segment) error {
	bad := func(format string, args ...any) error {
		return Errorf(NetworkInvalid, "segment "+s.ID+": "+format, args...)
	}
	if m := s.MTUOr(); m < minMTU || m > maxMTU {
		return bad("an MTU of %d; %d to %d are possible", m, minMTU, maxMTU)
	}
	if s.Subnet.IsValid() {
		if !s.Subnet.Addr().Is4() || s.Subnet.Bits() > 30 {
			return bad("the subnet %s is not an IPv4 one with room for two addresses", s.Subnet)
		}
		if s.Subnet != s.Subnet.Masked() {
			return bad("the subnet %s has bits beyond its mask; %s is meant", s.Subnet, s.Subnet.Masked())
		}
		for _, reserved := range []netip.Prefix{loopback, linkLocal, multicast, thisHost} {
			if s.Subnet.Overlaps(reserved) {
				return bad("the subnet %s is in %s, which no machine can use", s.Subnet, reserved)
			}
		}
	} else if s.Gateway.IsValid() || s.DHCP || s.DNS {
		return bad("a gateway, DHCP and DNS need a subnet")
	}
	if s.Gateway.IsValid() && !usable(s.Subnet, s.Gateway) {
		return bad("the gateway %s is no address for a host of %s", s.Gateway, s.Subnet)
	}
	byMAC, byAddress := map[string]Port{}, map[netip.Addr]Port{}
	for _, p := range s.Ports {
		if p.Machine == "" || p.Interface < 0 {
			return bad("a port needs a machine and an interface from 0: %q, %d", p.Machine, p.Interface)
		}
		mac, err := net.ParseMAC(p.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 == 1 || mac.String() == "00:00:00:00:00:00" {
			return bad("%s: %q is not the MAC of an interface", p.name(), p.MAC)
		}
		if other, ok := byMAC[mac.String()]; ok {
			return Errorf(DuplicateMAC, "segment %s: %s and %s have the MAC %s", s.ID, other.name(), p.name(), mac)
		}
		byMAC[mac.String()] = p
		if !p.Address.IsValid() {
			continue
		}
		if !s.Subnet.IsValid() || !usable(s.Subnet, p.Address) {
			return bad("%s: %s is no address for a host of the subnet", p.name(), p.Address)
		}
		if p.Address == s.Gateway {
			return Errorf(AddressConflict, "segment %s: %s and the gateway have the address %s", s.ID, p.name(), p.Address)
		}
		if other, ok := byAddress[p.Address]; ok {
			return Errorf(AddressConflict, "segment %s: %s and %s have the address %s", s.ID, other.name(), p.name(), p.Address)
		}
		byAddress[p.Address] = p
	}
	edge := s.EdgeAddress()
	if (s.DHCP || s.DNS) && !edge.IsValid() {
		return bad("no address of %s is left for DHCP and DNS", s.Subnet)
	}
	if edge.IsValid() {
		if p, ok := byMAC[EdgeMAC(edge)]; ok {
			return Errorf(DuplicateMAC, "segment %s: %s and the edge have the MAC %s", s.ID, p.name(), EdgeMAC(edge))
		}
	}
	return nil
}

// usable says whether a host of the subnet may have the address.
func usable(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) && a != p.Addr() && a != Broadcast(p)
}

func validateEdge(e Edge, routed []Segment) error {
	if p := e.SourcePorts; p != (PortRange{}) && (p.First == 0 || p.First > p.Last) {
		return Errorf(NetworkInvalid, "source ports %d to %d are no range", p.First, p.Last)
	}
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(routed, func(s Segment) bool { return usable(s.Subnet, a) && a != s.Gateway })
	}
	addresses := map[netip.Addr]bool{}
	type bound struct {
		protocol Protocol
		at       netip.AddrPort
	}
	binds := map[bound]netip.Addr{}
	for _, p := range e.Publics {
		bad := func(format string, args ...any) error {
			return Errorf(NetworkInvalid, "public address "+p.Address.String()+": "+format, args...)
		}
		if !p.Address.Is4() || p.Bind.IsValid() && !p.Bind.Is4() {
			return bad("it and what it is bound to (%v) must be IPv4 addresses", p.Bind)
		}
		if addresses[p.Address] {
			return bad("it is there twice")
		}
		addresses[p.Address] = true
		if !inside(p.Target) {
			return bad("its target %v is in no routed segment", p.Target)
		}
		for _, f := range p.Open {
			if f.Protocol != TCP && f.Protocol != UDP {
				return bad("%q cannot be forwarded; tcp and udp can", f.Protocol)
			}
			if f.Target.IsValid() && !inside(f.Target) {
				return bad("the target %s of port %d is in no routed segment", f.Target, f.Port)
			}
			last := f.LastPort()
			if f.Port == 0 || last < f.Port || int(f.ToPort())+int(last-f.Port) > 65535 {
				return bad("ports %d to %d towards %d and those after it are no range", f.Port, last, f.ToPort())
			}
			if int(f.Port)+p.PortOffset < 1 || int(last)+p.PortOffset > 65535 {
				return bad("ports %d to %d with an offset of %d are no ports", f.Port, last, p.PortOffset)
			}
			for port := int(f.Port); port <= int(last); port++ {
				at := bound{f.Protocol, p.Bound(uint16(port))}
				if other, ok := binds[at]; ok {
					return bad("%s port %d would be bound to %s, which is that of %s already", f.Protocol, port, at.at, other)
				}
				binds[at] = p.Address
			}
		}
	}
	for i, r := range e.Rules {
		if err := validateRule(r); err != nil {
			return Wrap(NetworkInvalid, err, "rule %d", i+1)
		}
	}
	return nil
}

func validateRule(r Rule) error {
	if !slices.Contains([]Protocol{"", TCP, UDP, ICMP}, r.Protocol) {
		return Errorf(NetworkInvalid, "there is no protocol %q; tcp, udp and icmp are", r.Protocol)
	}
	if r.Protocol == ICMP && len(r.Ports) > 0 {
		return Errorf(NetworkInvalid, "icmp has no ports")
	}
	for _, p := range r.Ports {
		if p.First > p.Last {
			return Errorf(NetworkInvalid, "ports %d to %d are no range", p.First, p.Last)
		}
	}
	for _, p := range slices.Concat(r.From, r.To) {
		if !p.IsValid() || !p.Addr().Is4() {
			return Errorf(NetworkInvalid, "%v is no IPv4 prefix", p)
		}
	}
	return nil
}

// Bound is where a public port is really bound.
func (p Public) Bound(port uint16) netip.AddrPort {
	bind := p.Bind
	if !bind.IsValid() {
		bind = p.Address
	}
	return netip.AddrPortFrom(bind, uint16(int(port)+p.PortOffset))
}

// LastPort is the last of the public ports.
func (f Forward) LastPort() uint16 { return cmp.Or(f.Last, f.Port) }

// ToPort is the machine's port that the first public port leads to.
func (f Forward) ToPort() uint16 { return cmp.Or(f.To, f.Port) }

// Decide applies rules to a new connection: the first that matches, else the default that the caller names.
func Decide(rules []Rule, protocol Protocol, from netip.Addr, to netip.AddrPort, otherwise bool) bool {
	for _, r := range rules {
		if r.matches(protocol, from, to) {
			return r.Allow
		}
	}
	return otherwise
}

func (r Rule) matches(protocol Protocol, from netip.Addr, to netip.AddrPort) bool {
	within := func(ps []netip.Prefix, a netip.Addr) bool {
		return len(ps) == 0 || slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return (r.Protocol == "" || r.Protocol == protocol) && within(r.From, from) && within(r.To, to.Addr()) &&
		(len(r.Ports) == 0 || (protocol == TCP || protocol == UDP) && slices.ContainsFunc(r.Ports, func(p PortRange) bool {
			return p.First <= to.Port() && to.Port() <= p.Last
		}))
}

// Pool says where a region really binds public addresses: the n-th of Public at the n-th of Bind, port p at p+PortOffset.
type Pool struct {
	Public     netip.Prefix `json:"public"`
	Bind       netip.Prefix `json:"bind,omitzero"` // none: as themselves
	PortOffset int          `json:"port_offset,omitempty"`
}

// Bound is where a public address of the pool is bound.
func (p Pool) Bound(public netip.Addr) (netip.Addr, bool) { return translate(p.Public, p.Bind, public) }

// Published is the public address that is bound there.
func (p Pool) Published(bind netip.Addr) (netip.Addr, bool) {
	if !p.Bind.IsValid() {
		return translate(p.Public, netip.Prefix{}, bind)
	}
	return translate(p.Bind, p.Public, bind)
}

func translate(from, to netip.Prefix, a netip.Addr) (netip.Addr, bool) {
	if !from.IsValid() || !from.Contains(a) || !a.Is4() {
		return netip.Addr{}, false
	}
	if !to.IsValid() {
		return a, true
	}
	first, at, base := from.Masked().Addr().As4(), a.As4(), to.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(base[:]) + binary.BigEndian.Uint32(at[:]) - binary.BigEndian.Uint32(first[:])
	out := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	return out, to.Contains(out)
}

func list[T any](all []T, text func(T) string) string {
	var out []string
	for _, v := range all {
		out = append(out, text(v))
	}
	return strings.Join(out, ",")
}
