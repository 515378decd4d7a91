package graph

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Networking is all that a graph says of networks, with nothing left to choose:
// every interface has its MAC and, on a network with a subnet, its address. It
// follows from the graph alone, so clones and instances in other regions have
// the same, and only the public addresses' values differ.
type Networking struct {
	Segments    []Segment
	Publics     []Public
	Rules       []Rule    // the first that matches decides
	SourcePorts PortRange // zero: any
}

// Segment is one layer-2 network.
type Segment struct {
	ID         string       // of the network's node
	Subnet     netip.Prefix // IPv4, masked; none: frames only
	Gateway    netip.Addr   // the edge's own address within the subnet; also of an isolated segment, where it is only the DHCP server's. None without a subnet.
	Isolated   bool         // nothing is routed in or out
	DHCP       bool
	MTU        int // bytes; 0: the substrate's default
	Interfaces []Interface
}

// Interface is where a machine is joined to a network.
type Interface struct {
	Machine string     `json:"machine"`
	Index   int        `json:"index"`   // of the machine's interfaces, from 0
	Network string     `json:"network"` // node id
	MAC     string     `json:"mac"`     // "52:54:00:…", lower case
	Address netip.Addr `json:"address,omitzero"`
}

// Public is a public address of an interface.
type Public struct {
	Resource  string // as maps call it
	Machine   string
	Interface int
	Target    netip.Addr // of the interface
	Open      []Opening
}

// Rule is an edge's rule with its names resolved to addresses.
type Rule struct {
	Allow    bool
	Protocol string         // tcp, udp, icmp; empty: all
	From     []netip.Prefix // inner addresses of machines, outer ones of the outside; empty: everywhere
	To       []netip.Prefix
	Ports    []PortRange // empty: all
}

// Of lists a machine's interfaces by their index. One that is joined to no
// network is not among them.
func (n Networking) Of(machine string) []Interface {
	var out []Interface
	for _, s := range n.Segments {
		for _, f := range s.Interfaces {
			if f.Machine == machine {
				out = append(out, f)
			}
		}
	}
	slices.SortFunc(out, func(a, b Interface) int { return cmp.Compare(a.Index, b.Index) })
	return out
}

func interfaceProperty(i int, what string) string { return fmt.Sprintf("interface-%d-%s", i, what) }

// interfaceIndexes lists the machine's interfaces that have any property.
func (n Node) interfaceIndexes() []int {
	if n.Type != Machine {
		return nil
	}
	var out []int
	for name := range n.Properties {
		rest, ok := strings.CutPrefix(name, "interface-")
		number, _, more := strings.Cut(rest, "-")
		if i, err := strconv.Atoi(number); ok && more && err == nil && i >= 0 && strconv.Itoa(i) == number {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// hasPublic says whether an interface has a public address.
func (n Node) hasPublic(i int) bool {
	return slices.ContainsFunc(n.Resources, func(r Resource) bool { return r.Type == PublicAddress && r.ID == publicOf(n.ID, i) })
}

// Networking says what the graph's networks are, and all that is wrong with
// them. What is wrong is left out of the answer, so that a graph of another time
// still has the rest.
func (g Graph) Networking() (Networking, []Finding) {
	n := networking{graph: g, segment: map[string]*Segment{}, nodes: map[string]Node{}, inside: map[string][]string{}, joined: map[string][]string{}}
	for _, node := range g.Nodes {
		n.nodes[node.ID] = node
	}
	for _, e := range g.Edges {
		switch e.Type {
		case Contains:
			n.inside[e.From] = append(n.inside[e.From], e.To)
		case Connects:
			n.joined[e.From] = append(n.joined[e.From], e.To)
		}
	}
	for _, node := range g.Nodes {
		if node.Type == Network {
			n.network(node)
		}
	}
	n.overlaps()
	for _, node := range g.Nodes {
		if node.Type == Machine {
			n.machine(node)
		}
	}
	n.number()
	n.publics()
	n.edge()
	out := Networking{Publics: n.public, Rules: n.rules, SourcePorts: n.sourcePorts}
	for _, s := range n.order {
		out.Segments = append(out.Segments, *s)
	}
	return out, n.findings
}

type networking struct {
	graph       Graph
	nodes       map[string]Node
	inside      map[string][]string // container → what it holds
	joined      map[string][]string // from → to, of connects edges
	segment     map[string]*Segment
	order       []*Segment
	public      []Public
	rules       []Rule
	sourcePorts PortRange
	findings    []Finding
}

func (n *networking) add(code, path, format string, args ...any) {
	n.findings = append(n.findings, Finding{code, path, fmt.Sprintf(format, args...)})
}

// Limits of a network's MTU, in bytes: the least that IPv4 hosts take (RFC 791,
// 3.1), and what machines' drivers take.
const (
	minMTU = 576
	maxMTU = 9000
)

func (n *networking) network(node Node) {
	path := "nodes/" + node.ID
	s := &Segment{ID: node.ID, DHCP: true}
	n.segment[node.ID] = s
	n.order = append(n.order, s)
	switch v := node.Properties[propertyIsolated]; v {
	case "", isTrue:
		s.Isolated = v == isTrue
	default:
		n.add("bad-network", path, "isolated is %q: true is meant, or nothing", v)
	}
	switch v := node.Properties[propertyDHCP]; v {
	case "", dhcpOff:
		s.DHCP = v == ""
	default:
		n.add("bad-network", path, "dhcp is %q: on or off", v)
	}
	if v := node.Properties[propertyMTU]; v != "" {
		mtu, err := strconv.Atoi(v)
		if err != nil || mtu < minMTU || mtu > maxMTU {
			n.add("bad-mtu", path, "the mtu %q is not a number from %d to %d", v, minMTU, maxMTU)
		} else {
			s.MTU = mtu
		}
	}
	var subnets []Node
	for _, id := range n.inside[node.ID] {
		if sub, ok := n.nodes[id]; ok && sub.Type == Subnet {
			subnets = append(subnets, sub)
		}
	}
	switch {
	case len(subnets) == 0:
		s.DHCP = false
		if node.Properties[propertyGateway] != "" {
			n.add("gateway-without-subnet", path, "a gateway is named, and the network has no subnet that it could be in")
		}
		return
	case len(subnets) > 1:
		n.add("too-many-subnets", path, "%d subnets, and a network has one", len(subnets))
	}
	n.subnet(s, subnets[0], node)
}

// subnet gives the segment its subnet and gateway.
func (n *networking) subnet(s *Segment, sub, node Node) {
	cidr := sub.Properties["cidr"]
	path := "nodes/" + sub.ID
	p, err := netip.ParsePrefix(cidr)
	switch {
	case err != nil:
		n.add("subnet-invalid", path, "%q is not a subnet: 10.10.0.0/24 is meant, for instance", cidr)
	case p.Addr().Is6():
		n.add("subnet-ipv6", path, "%s is IPv6: subnets are IPv4 for now; IPv6 passes within a network as it is", cidr)
	case p.Bits() > 30:
		n.add("subnet-invalid", path, "%s has no room for a gateway and a machine: at most /30", cidr)
	case p.Bits() < 8 || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified():
		n.add("subnet-invalid", path, "%s is not of addresses that machines can have: one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16 is meant", cidr)
	default:
		s.Subnet = p.Masked()
	}
	if !s.Subnet.IsValid() {
		s.DHCP = false
		return
	}
	s.Gateway = s.Subnet.Addr().Next()
	if v := node.Properties[propertyGateway]; v != "" {
		if a, err := netip.ParseAddr(v); err != nil || !isHost(s.Subnet, a) {
			n.add("gateway-outside-subnet", "nodes/"+node.ID, "the gateway %q is not an address of a machine in %s", v, s.Subnet)
		} else {
			s.Gateway = a
		}
	}
}

// isHost says whether the address can be a machine's: neither the network's own nor the broadcast address.
func isHost(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) && a != p.Masked().Addr() && a != lastOf(p)
}

// lastOf is the last address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// overlaps finds routed subnets that one edge cannot tell apart.
func (n *networking) overlaps() {
	var routed []*Segment
	for _, s := range n.order {
		if s.Subnet.IsValid() && !s.Isolated {
			routed = append(routed, s)
		}
	}
	slices.SortStableFunc(routed, func(a, b *Segment) int { return a.Subnet.Addr().Compare(b.Subnet.Addr()) })
	for i := 1; i < len(routed); i++ {
		widest := routed[i-1] // sorted by where they begin, so only the one that reaches furthest can overlap
		for _, s := range routed[:i-1] {
			if lastOf(s.Subnet).Compare(lastOf(widest.Subnet)) > 0 {
				widest = s
			}
		}
		if s := routed[i]; s.Subnet.Overlaps(widest.Subnet) {
			n.add("subnets-overlap", "nodes/"+s.ID, "%s overlaps with %s of %s, and both are routed: give one other addresses, or isolate it", s.Subnet, widest.Subnet, widest.ID)
		}
	}
}

// machine joins a machine's interfaces to their networks, with what it names itself.
func (n *networking) machine(node Node) {
	named := map[string]bool{}
	next := 0
	for _, i := range node.interfaceIndexes() {
		next = i + 1
		network := node.Properties[interfaceProperty(i, "network")]
		path := fmt.Sprintf("nodes/%s/interfaces/%d", node.ID, i)
		s := n.segment[network]
		if network != "" && s == nil && !slices.Contains(n.joined[node.ID], network) {
			n.add("unknown-network", path, "there is no network %q", network)
		} else if at, ok := n.nodes[network]; ok && s == nil {
			n.add("unknown-network", path, "%q is a %s and no network", network, at.Type)
		}
		f := Interface{Machine: node.ID, Index: i, Network: network}
		f.MAC = n.mac(path, node.Properties[interfaceProperty(i, "mac")])
		if s == nil {
			continue
		}
		named[network] = true
		f.Address = n.address(path, s, node.Properties[interfaceProperty(i, "address")])
		n.join(path, s, f)
	}
	for _, network := range n.joined[node.ID] { // a graph may say no more than that they are joined
		if s := n.segment[network]; s != nil && !named[network] {
			named[network] = true
			n.join("nodes/"+node.ID, s, Interface{Machine: node.ID, Index: next, Network: network})
			next++
		}
	}
}

func (n *networking) mac(path, text string) string {
	if text == "" {
		return ""
	}
	a, err := net.ParseMAC(text)
	switch {
	case err != nil || len(a) != 6:
		n.add("bad-mac", path, "%q is not a MAC: 52:54:00:12:34:56 is meant, for instance", text)
	case a[0]&1 != 0:
		n.add("bad-mac", path, "%s is a multicast address: the first number of a machine's is even", a)
	case [6]byte(a) == [6]byte{}:
		n.add("bad-mac", path, "%s is nobody's address", a)
	default:
		return a.String()
	}
	return ""
}

func (n *networking) address(path string, s *Segment, text string) netip.Addr {
	if text == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		n.add("bad-address", path, "%q is not an address", text)
	case s.Subnet.IsValid() && !s.Subnet.Contains(a):
		n.add("address-outside-subnet", path, "%s is outside of %s, the subnet of %s", a, s.Subnet, s.ID)
	case s.Subnet.IsValid() && !isHost(s.Subnet, a):
		n.add("address-outside-subnet", path, "%s is the subnet's own or its broadcast address: no machine of %s can have it", a, s.ID)
	default:
		return a
	}
	return netip.Addr{}
}

func (n *networking) join(path string, s *Segment, f Interface) {
	for _, other := range s.Interfaces {
		if f.MAC != "" && f.MAC == other.MAC {
			n.add("duplicate-mac", path, "%s has %s already, interface %d of %s", s.ID, f.MAC, other.Index, other.Machine)
			f.MAC = ""
		}
		if f.Address.IsValid() && f.Address == other.Address {
			n.add("address-conflict", path, "%s has %s already, interface %d of %s", s.ID, f.Address, other.Index, other.Machine)
			f.Address = netip.Addr{}
		}
	}
	if f.Address.IsValid() && f.Address == s.Gateway {
		n.add("address-conflict", path, "%s is the gateway of %s: name another gateway, or another address", f.Address, s.ID)
		f.Address = netip.Addr{}
	}
	s.Interfaces = append(s.Interfaces, f)
}

// number gives what no machine named: a MAC that derives from machine and index,
// and the lowest address that is free.
func (n *networking) number() {
	macs := map[string]bool{}
	for _, s := range n.order {
		for _, f := range s.Interfaces {
			macs[f.MAC] = true
		}
	}
	for _, s := range n.order {
		taken := map[netip.Addr]bool{s.Gateway: true}
		for _, f := range s.Interfaces {
			taken[f.Address] = true
		}
		next := s.Subnet.Addr()
		for i := range s.Interfaces {
			f := &s.Interfaces[i]
			if f.MAC == "" {
				f.MAC = derivedMAC(f.Machine, f.Index, macs)
				macs[f.MAC] = true
			}
			if f.Address.IsValid() || !s.Subnet.IsValid() {
				continue
			}
			for next = next.Next(); taken[next]; next = next.Next() {
			}
			if !isHost(s.Subnet, next) {
				n.add("subnet-full", "nodes/"+s.ID, "%s has no address left for interface %d of %s", s.Subnet, f.Index, f.Machine)
				break
			}
			f.Address = next
		}
	}
}

// derivedMAC is in the range that QEMU's machines have, locally administered.
func derivedMAC(machine string, index int, taken map[string]bool) string {
	for attempt := 0; ; attempt++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%d\n%d", machine, index, attempt))
		mac := net.HardwareAddr{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}.String()
		if !taken[mac] {
			return mac
		}
	}
}

// MaxOpenPorts is how many ports one public address may let in: each is bound
// by itself where the region has no privilege.
const MaxOpenPorts = 1000

// publics finds the machines' public addresses and what they open.
func (n *networking) publics() {
	at := map[string]Interface{}
	for _, s := range n.order {
		for _, f := range s.Interfaces {
			at[publicOf(f.Machine, f.Index)] = f
		}
	}
	for _, node := range n.graph.Nodes {
		for _, i := range node.interfaceIndexes() {
			path := fmt.Sprintf("nodes/%s/interfaces/%d", node.ID, i)
			opens := strings.Fields(node.Properties[interfaceProperty(i, "open")])
			if len(opens) > 0 && !node.hasPublic(i) {
				n.add("open-without-public-address", path, "ports are opened, and the interface has no public_address that they would be opened on")
			}
		}
		if node.Type != Machine {
			continue
		}
		for _, r := range node.Resources {
			f, ok := at[r.ID]
			if r.Type != PublicAddress || !ok {
				continue // of something that is joined to no network: nothing could reach it
			}
			path := fmt.Sprintf("nodes/%s/interfaces/%d", node.ID, f.Index)
			s := n.segment[f.Network]
			switch {
			case s.Isolated:
				n.add("public-address-unreachable", path, "%s is isolated: nothing comes in from the outside, and so no public address leads there", s.ID)
				continue
			case !s.Subnet.IsValid():
				n.add("public-address-unreachable", path, "%s has no subnet: a public address leads to an address in it", s.ID)
				continue
			case !f.Address.IsValid():
				continue // said already
			}
			n.public = append(n.public, Public{Resource: r.ID, Machine: f.Machine, Interface: f.Index, Target: f.Address,
				Open: n.openings(path, strings.Fields(node.Properties[interfaceProperty(f.Index, "open")]))})
		}
	}
}

func (n *networking) openings(path string, texts []string) []Opening {
	var out []Opening
	ports := 0
	for _, text := range texts {
		o, err := ParseOpening(text)
		if err != nil {
			n.add("bad-open", path, "%v", err)
			continue
		}
		clash := slices.IndexFunc(out, func(p Opening) bool { return p.Protocol == o.Protocol && o.Port <= p.Last && p.Port <= o.Last })
		if clash >= 0 {
			n.add("open-conflict", path, "%s opens a port of %s that another one opens already: %d-%d", text, o.Protocol, out[clash].Port, out[clash].Last)
			continue
		}
		ports += int(o.Last-o.Port) + 1
		out = append(out, o)
	}
	if ports > MaxOpenPorts {
		n.add("too-many-ports", path, "%d ports are opened on one public address, at most %d are allowed", ports, MaxOpenPorts)
		return nil
	}
	return out
}
