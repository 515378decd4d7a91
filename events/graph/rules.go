package graph

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// edge reads the rules and resolves what they name.
func (n *networking) edge() {
	node, ok := n.nodes[EdgeID]
	if !ok || node.Type != InternetGateway {
		return
	}
	path := "nodes/" + EdgeID
	if v := node.Properties[propertySourcePorts]; v != "" {
		r, err := ParsePorts(v)
		if err != nil {
			n.add("bad-source-ports", path, "%v", err)
		}
		n.sourcePorts = r
	}
	rules, wrong := node.rules()
	n.findings = append(n.findings, wrong...)
	if len(rules) > MaxRules {
		n.add("too-many-rules", path, "%d rules, at most %d are allowed", len(rules), MaxRules)
		return
	}
	names := n.names()
	for i, r := range rules {
		path := fmt.Sprintf("%s/rules/%d", path, i+1)
		before := len(n.findings)
		rule := Rule{Allow: r.Action == allow, Protocol: r.Protocol}
		if r.Action != allow && r.Action != deny {
			n.add("bad-rule", path, "the action %q is neither allow nor deny", r.Action)
		}
		if !slices.Contains([]string{"", "tcp", "udp", "icmp"}, r.Protocol) {
			n.add("bad-rule", path, "the protocol %q is none of tcp, udp and icmp", r.Protocol)
		}
		if len(r.Ports) > 0 && r.Protocol != "tcp" && r.Protocol != "udp" {
			n.add("bad-rule", path, "ports are of tcp or udp: say which")
		}
		for _, text := range r.Ports {
			ports, err := ParsePorts(text)
			if err != nil {
				n.add("bad-rule", path, "%v", err)
			}
			rule.Ports = append(rule.Ports, ports)
		}
		rule.From = n.resolve(path, r.From, names)
		rule.To = n.resolve(path, r.To, names)
		if len(n.findings) == before {
			n.rules = append(n.rules, rule)
		}
	}
}

// names gives the addresses of all that a rule may name.
func (n *networking) names() map[string][]netip.Prefix {
	out := map[string][]netip.Prefix{outside: {netip.PrefixFrom(netip.IPv4Unspecified(), 0)}}
	for _, s := range n.order {
		if !s.Subnet.IsValid() || s.Isolated {
			continue
		}
		out[s.ID] = []netip.Prefix{s.Subnet}
		out[outside] = without(out[outside], s.Subnet)
		for _, f := range s.Interfaces {
			if f.Address.IsValid() {
				out[f.Machine] = append(out[f.Machine], netip.PrefixFrom(f.Address, 32))
			}
		}
	}
	for _, v := range n.graph.Nodes {
		if v.Type == VApp {
			out[v.ID] = n.within(v.ID, out, map[string]bool{})
		}
	}
	return out
}

// within gives the addresses of a vApp's machines, of those in vApps within it too.
func (n *networking) within(vapp string, known map[string][]netip.Prefix, seen map[string]bool) []netip.Prefix {
	var out []netip.Prefix
	for _, id := range n.inside[vapp] {
		if seen[id] {
			continue
		}
		seen[id] = true
		switch n.nodes[id].Type {
		case Machine:
			out = append(out, known[id]...)
		case VApp:
			out = append(out, n.within(id, known, seen)...)
		}
	}
	return out
}

// without takes a prefix out of others.
func without(from []netip.Prefix, p netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range from {
		switch {
		case !f.Overlaps(p):
			out = append(out, f)
		case f.Bits() < p.Bits():
			for bits := f.Bits() + 1; bits <= p.Bits(); bits++ {
				half := netip.PrefixFrom(p.Addr(), bits).Masked()
				out = append(out, sibling(half))
			}
		}
	}
	return out
}

// sibling is the other half of the prefix that is one bit shorter.
func sibling(p netip.Prefix) netip.Prefix {
	b := p.Addr().As4()
	b[(p.Bits()-1)/8] ^= 1 << (7 - (p.Bits()-1)%8)
	return netip.PrefixFrom(netip.AddrFrom4(b), p.Bits())
}

func (n *networking) resolve(path string, texts []string, names map[string][]netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
			text += "/32"
		}
		node, isNode := n.nodes[text]
		switch p, err := netip.ParsePrefix(text); {
		case err == nil && p.Addr().Is4():
			out = append(out, p.Masked())
		case err == nil || strings.Contains(text, ":"):
			n.add("bad-rule", path, "%q is IPv6: rules are about IPv4 for now", text)
		case text == outside && isNode:
			n.add("reserved-name", path, "outside means everything beyond the edge, and there is a node of that name: give it another one")
		case text == outside, len(names[text]) > 0:
			out = append(out, names[text]...)
		case isNode && slices.Contains([]NodeType{Network, Machine, VApp}, node.Type):
			n.add("rule-without-address", path, "%q has no address on a routed network: nothing of it crosses the edge", text)
		default:
			n.add("unknown-name", path, "there is no network, machine or vApp %q, and it is no CIDR: those there are: %s", text, strings.Join(n.ruleNames(names), ", "))
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(out)
}

// ruleNames are the first of those that a rule could name.
func (n *networking) ruleNames(names map[string][]netip.Prefix) []string {
	all := slices.Sorted(maps.Keys(names))
	if len(all) > 20 {
		all = append(all[:20], "…")
	}
	return all
}
