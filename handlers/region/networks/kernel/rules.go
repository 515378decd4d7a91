package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// The names in an environment's namespace.
const (
	uplink    = "up"   // its end of the pair that leads to the host
	edgeTable = "edge" // of the family ip
	portTable = "port" // of the family bridge
)

// The names of counters.
const (
	countOpened    = "opened"
	countRefused   = "refused"
	countExhausted = "exhausted"
	countIn        = "in"
	countOut       = "out"
)

// edgeRules is the environment's edge in the language of nft: one transaction, which leaves counters and what conntrack
// knows as they are. link is the edge's address between itself and the host.
//
// A packet from the outside arrives with the public address as its destination. It is filtered after its destination has
// been translated, so rules see machines' inner addresses.
func edgeRules(n networks.Network, link netip.Addr) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("table ip %s {", edgeTable)
	for _, c := range []string{countOpened, countRefused, countExhausted, countIn, countOut} {
		line("counter %s { }", c)
	}
	line("chain translate { type nat hook prerouting priority dstnat; }")
	line("chain leave { type nat hook postrouting priority srcnat; }")
	line("chain input { type filter hook input priority filter; policy drop; }")
	line("chain forward { type filter hook forward priority filter; policy drop; }")
	line("chain allow { }\nchain refuse { }\n}")
	line("flush table ip %s\ntable ip %s {", edgeTable, edgeTable)
	translate(line, n)
	leave(line, n, link)
	input(line, n)
	forward(line, n)
	line("chain refuse {\ncounter name %s\nmeta l4proto tcp reject with tcp reset\nreject with icmp admin-prohibited\n}", countRefused)
	line("}")
	return b.String()
}

type printer func(format string, args ...any)

// translate sends what comes for public ports to machines, wherever it comes from.
func translate(line printer, n networks.Network) {
	line("chain translate {")
	for _, protocol := range []networks.Protocol{networks.TCP, networks.UDP} {
		var pairs []string
		for _, p := range n.Edge.Publics {
			for _, f := range p.Open {
				if f.Protocol != protocol {
					continue
				}
				to := f.Target
				if !to.IsValid() {
					to = p.Target
				}
				for port := int(f.Port); port <= int(f.LastPort()); port++ {
					pairs = append(pairs, fmt.Sprintf("%s . %d : %s . %d", p.Address, port, to, int(f.ToPort())+port-int(f.Port)))
				}
			}
		}
		if len(pairs) > 0 {
			line("dnat ip to ip daddr . %s dport map { %s }", protocol, strings.Join(pairs, ", "))
		}
	}
	line("}")
}

// leave gives connections to the outside their source.
func leave(line printer, n networks.Network, link netip.Addr) {
	line("chain leave {")
	ports := ""
	if r := n.Edge.SourcePorts; r != (networks.PortRange{}) {
		ports = fmt.Sprintf(":%d-%d", r.First, r.Last)
	}
	done := map[netip.Addr]bool{}
	for _, p := range n.Edge.Publics {
		if done[p.Target] {
			continue // the first public address of a machine is the one that it is seen with
		}
		done[p.Target] = true
		if ports != "" {
			line("oifname %q ip saddr %s meta l4proto { tcp, udp } snat to %s%s", uplink, p.Target, p.Address, ports)
		}
		line("oifname %q ip saddr %s snat to %s", uplink, p.Target, p.Address)
	}
	if ports != "" {
		line("oifname %q meta l4proto { tcp, udp } snat to %s%s", uplink, link, ports)
	}
	line("oifname %q snat to %s", uplink, link)
	for _, s := range routed(n) {
		bridge := bridgeName(s.ID)
		// A machine that reaches a neighbour by a public address must get its answers from there too.
		for _, p := range n.Edge.Publics {
			line("oifname %q ip saddr %s ct status dnat snat to %s", bridge, p.Target, p.Address)
		}
		line("oifname %q ip saddr %s ct status dnat snat to %s", bridge, s.Subnet, s.Gateway)
		// No machine can answer these: clients on the host itself, and machines without a public address.
		line("oifname %q ip saddr { 127.0.0.0/8, %s } snat to %s", bridge, linkNet, s.Gateway)
	}
	line("}")
}

// nobodys are addresses that no machine reaches: of hosts themselves, and such that lead nowhere.
func nobodys() string {
	return fmt.Sprintf("{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3, %s }", linkNet)
}

// input is what the edge answers itself.
func input(line printer, n networks.Network) {
	line("chain input {")
	line("iifname lo accept")
	line("ct state established,related accept")
	for _, s := range n.Segments {
		at, bridge := s.EdgeAddress(), bridgeName(s.ID)
		if !at.IsValid() {
			continue
		}
		reach := []string{at.String()}
		if s.Routed() {
			for _, other := range routed(n) {
				if other.ID != s.ID {
					reach = append(reach, other.Gateway.String())
				}
			}
		}
		line("iifname %q ip daddr { %s } icmp type echo-request accept", bridge, strings.Join(reach, ", "))
		if s.DHCP {
			line("iifname %q udp dport 67 drop", bridge) // a packet socket has heard it already
		}
		if s.DNS {
			line("iifname %q ip daddr %s meta l4proto { tcp, udp } th dport 53 accept", bridge, at)
		}
	}
	line("meta pkttype != unicast drop")
	line("goto refuse\n}")
}

// forward filters what crosses the edge.
func forward(line printer, n networks.Network) {
	line("chain forward {")
	line("iifname %q counter name %s", uplink, countIn)
	line("oifname %q counter name %s", uplink, countOut)
	line("ct state invalid goto refuse") // also what belonged to a connection that was cut
	line("ct state established,related accept")
	for _, s := range routed(n) {
		line("iifname %q ip saddr != %s goto refuse", bridgeName(s.ID), s.Subnet)
	}
	line("ip daddr %s goto refuse", nobodys())
	names := []string{fmt.Sprintf("%q", uplink)}
	for _, s := range routed(n) {
		names = append(names, fmt.Sprintf("%q", bridgeName(s.ID)))
	}
	among := "{ " + strings.Join(names, ", ") + " }"
	line("iifname != %s goto refuse", among)
	line("oifname != %s goto refuse", among)
	line("iifname %q ct status ! dnat goto refuse", uplink)
	for _, r := range n.Edge.Rules {
		verdict := "refuse"
		if r.Allow {
			verdict = "allow"
		}
		line("%sgoto %s", matches(r), verdict)
	}
	line("goto allow\n}")
	line("chain allow {")
	if r := n.Edge.SourcePorts; r != (networks.PortRange{}) {
		room := int(r.Last) - int(r.First) + 1
		var targets []netip.Addr
		for _, p := range n.Edge.Publics {
			if !slices.Contains(targets, p.Target) {
				targets = append(targets, p.Target)
			}
		}
		const full = "meta l4proto { tcp, udp } ct count over %d counter name %s goto refuse"
		for _, t := range targets {
			line("oifname %q ip saddr %s "+full, uplink, t, room, countExhausted)
		}
		others := ""
		if len(targets) > 0 {
			others = "ip saddr != { " + join(targets) + " } "
		}
		line("oifname %q %s"+full, uplink, others, room, countExhausted)
	}
	line("counter name %s accept\n}", countOpened)
}

// matches is a rule's condition, with a blank after it.
func matches(r networks.Rule) string {
	var out string
	if r.Protocol != "" {
		out += fmt.Sprintf("meta l4proto %s ", r.Protocol)
	}
	if len(r.From) > 0 {
		out += "ip saddr { " + join(disjoint(r.From)) + " } "
	}
	if len(r.To) > 0 {
		out += "ip daddr { " + join(disjoint(r.To)) + " } "
	}
	if len(r.Ports) > 0 {
		if r.Protocol == "" {
			out += "meta l4proto { tcp, udp } "
		}
		var ports []string
		for _, p := range merged(r.Ports) {
			ports = append(ports, fmt.Sprintf("%d-%d", p.First, p.Last))
		}
		out += "th dport { " + strings.Join(ports, ", ") + " } "
	}
	return out
}

// disjoint leaves out what another prefix covers: a set of nft has no overlaps.
func disjoint(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range ps {
		p = p.Masked()
		covered := slices.ContainsFunc(ps, func(o netip.Prefix) bool {
			return o.Bits() < p.Bits() && o.Contains(p.Addr())
		}) || slices.ContainsFunc(ps[:i], func(o netip.Prefix) bool { return o.Masked() == p })
		if !covered {
			out = append(out, p)
		}
	}
	return out
}

// merged joins ranges that overlap or touch.
func merged(in []networks.PortRange) []networks.PortRange {
	sorted := slices.SortedFunc(slices.Values(in), func(a, b networks.PortRange) int { return cmp.Compare(a.First, b.First) })
	var out []networks.PortRange
	for _, r := range sorted {
		if last := len(out) - 1; last >= 0 && int(r.First) <= int(out[last].Last)+1 {
			out[last].Last = max(out[last].Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

func join[T fmt.Stringer](all []T) string {
	var out []string
	for _, v := range all {
		out = append(out, v.String())
	}
	return strings.Join(out, ", ")
}

func routed(n networks.Network) []networks.Segment {
	return slices.DeleteFunc(slices.Clone(n.Segments), func(s networks.Segment) bool { return !s.Routed() })
}

// portRules drop what a machine sends in the name of another or of the edge, and count it. A MAC that nobody has is a
// machine within the machine.
func portRules(n networks.Network) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("table bridge %s {", portTable)
	for _, s := range n.Segments {
		for _, p := range s.Ports {
			line("counter %s { }", tapName(p))
		}
	}
	line("chain enter { type filter hook prerouting priority filter; }\n}")
	line("flush table bridge %s\ntable bridge %s {\nchain enter {", portTable, portTable)
	for _, s := range n.Segments {
		var all []string
		if edge := s.EdgeAddress(); edge.IsValid() {
			all = append(all, networks.EdgeMAC(edge))
		}
		for _, p := range s.Ports {
			all = append(all, networks.CanonicalMAC(p.MAC))
		}
		for _, p := range s.Ports {
			mac := networks.CanonicalMAC(p.MAC)
			others := slices.DeleteFunc(slices.Clone(all), func(o string) bool { return o == mac })
			if len(others) > 0 {
				line("iifname %[1]q ether saddr { %[2]s } counter name %[1]s drop", tapName(p), strings.Join(others, ", "))
			}
		}
	}
	line("}\n}")
	return b.String()
}

// hostRules is what the host does for an environment behind veth: it hands what is bound to the public ports over, and
// takes care of the sources of what comes from there.
func hostRules(table, veth string, n networks.Network, link netip.Addr, pools []networks.Pool) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("table ip %s {", table)
	line("comment \"%s\"", comment(n.Environment))
	line("chain bound { }")
	line("chain before { type filter hook prerouting priority mangle; }")
	line("chain enter { type nat hook prerouting priority dstnat; }")
	line("chain input { type filter hook input priority filter; }")
	line("chain forward { type filter hook forward priority filter; }")
	line("chain send { type nat hook output priority -100; }")
	line("chain receive { type nat hook input priority 100; }")
	line("chain leave { type nat hook postrouting priority srcnat; }\n}")
	line("flush table ip %s\ntable ip %s {", table, table)
	sources := []string{link.String()}
	for _, p := range n.Edge.Publics {
		sources = append(sources, p.Address.String())
	}
	// The pair carries packets from and to loopback addresses of the host, which nobody else may send.
	line("chain before {")
	line("iifname %q ip saddr != { %s } drop", veth, strings.Join(sources, ", "))
	line("iifname %q ct direction original ip daddr %s drop\n}", veth, nobodys())
	line("chain bound {")
	for _, protocol := range []networks.Protocol{networks.TCP, networks.UDP} {
		if pairs := boundPairs(n, protocol); len(pairs) > 0 {
			line("dnat ip to ip daddr . %s dport map { %s }", protocol, strings.Join(pairs, ", "))
		}
	}
	line("}")
	line("chain enter {\njump bound")
	var maps []string
	for _, p := range pools {
		if p.Bind.IsValid() && p.PortOffset == 0 && p.Bind.Bits() == p.Public.Bits() {
			maps = append(maps, fmt.Sprintf("%s : %s", p.Public.Masked(), p.Bind.Masked()))
		}
	}
	if len(maps) > 0 {
		// Public addresses that no environment in this kernel has are bound by somebody in user space.
		line("iifname %q fib daddr oifname != %q dnat ip prefix to ip daddr map { %s }", veth, vethPrefix+"*", strings.Join(maps, ", "))
	}
	// The host itself is not to be reached, but what it has bound to a public address by name.
	line("}\nchain input {")
	line("iifname != %q return", veth)
	line("ct state established,related accept")
	line("ct status dnat socket wildcard 0 accept")
	line("ct status dnat icmp type echo-request accept")
	line("meta l4proto tcp reject with tcp reset\nreject with icmp admin-prohibited")
	line("}\nchain forward {")
	if len(pools) > 0 {
		var publics []netip.Prefix
		for _, p := range pools {
			publics = append(publics, p.Public)
		}
		// A public address that nobody has is nobody's, and no matter of the host's own routes.
		line("iifname %q oifname != %q ip daddr { %s } reject with icmp admin-prohibited", veth, vethPrefix+"*", join(disjoint(publics)))
	}
	line("}\nchain send {\njump bound\n}")
	line("chain receive {")
	for _, p := range n.Edge.Publics {
		if p.Bind.IsValid() && p.Bind != p.Address {
			line("iifname %q ip saddr %s snat to %s", veth, p.Address, p.Bind)
		}
	}
	line("}\nchain leave {")
	line("iifname != %q return", veth)
	line("oifname %q return", vethPrefix+"*")
	for _, p := range n.Edge.Publics {
		switch {
		case !p.Bind.IsValid() || p.Bind == p.Address:
			line("ip saddr %s return", p.Address)
		case !p.Bind.IsLoopback():
			line("ip saddr %s snat to %s", p.Address, p.Bind)
		}
	}
	line("masquerade\n}\n}")
	return b.String()
}

// boundPairs are the public ports that are bound as others.
func boundPairs(n networks.Network, protocol networks.Protocol) (pairs []string) {
	for _, p := range n.Edge.Publics {
		for _, f := range p.Open {
			if f.Protocol != protocol {
				continue
			}
			for port := int(f.Port); port <= int(f.LastPort()); port++ {
				at := p.Bound(uint16(port))
				if at != netip.AddrPortFrom(p.Address, uint16(port)) {
					pairs = append(pairs, fmt.Sprintf("%s . %d : %s . %d", at.Addr(), at.Port(), p.Address, port))
				}
			}
		}
	}
	return pairs
}

// comment is a text that nft takes: at most 127 bytes without quotes.
func comment(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return s[:min(len(s), 120)]
}
