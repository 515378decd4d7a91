package networks

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Kind says what changes.
type Kind string

// The kinds of changes, in the order of a diff.
const (
	KindSegment Kind = "segment"
	KindPort    Kind = "port"
	KindPublic  Kind = "public"
	KindForward Kind = "forward"
	KindSource  Kind = "source-ports"
	KindRule    Kind = "rule"
)

var kinds = []Kind{KindSegment, KindPort, KindPublic, KindForward, KindSource, KindRule}

// Change is one difference between two networks.
type Change struct {
	Kind   Kind   `json:"kind"`
	Name   string `json:"name"`             // unique among those of its kind, but for rules: their place
	Before string `json:"before,omitempty"` // in one line; empty: added
	After  string `json:"after,omitempty"`  // empty: removed
}

// Reverse is the change back.
func (c Change) Reverse() Change { c.Before, c.After = c.After, c.Before; return c }

// String is one line for people.
func (c Change) String() string {
	what := string(c.Kind)
	if c.Name != "" {
		what += " " + c.Name
	}
	switch {
	case c.Before == "":
		return "+ " + what + ": " + c.After
	case c.After == "":
		return "- " + what + ": " + c.Before
	default:
		return "~ " + what + ": " + c.Before + " -> " + c.After
	}
}

// Diff says what makes after of before, in an order of its own: segments, ports, public addresses, forwards, source ports by
// name, then rules by place. Diff(b, a) is Diff(a, b) with every change reversed. What only says the same in other words, or
// in another order where order means nothing, is no difference.
func Diff(before, after Network) []Change {
	was, is := describe(before), describe(after)
	var out []Change
	for _, k := range kinds {
		if k == KindRule {
			continue
		}
		var names []string
		for name := range was[k] {
			names = append(names, name)
		}
		for name := range is[k] {
			if _, both := was[k][name]; !both {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			if b, a := was[k][name], is[k][name]; b != a {
				out = append(out, Change{k, name, b, a})
			}
		}
	}
	return append(out, diffRules(ruleTexts(before), ruleTexts(after))...)
}

// describe gives every thing but the rules, by kind and name, as one line.
func describe(n Network) map[Kind]map[string]string {
	out := map[Kind]map[string]string{}
	put := func(k Kind, name, text string) {
		if out[k] == nil {
			out[k] = map[string]string{}
		}
		out[k][name] = text
	}
	for _, s := range n.Segments {
		put(KindSegment, s.ID, s.text())
		for _, p := range s.Ports {
			put(KindPort, p.Machine+"/"+itoa(p.Interface), p.text(s.ID))
		}
	}
	for _, p := range n.Edge.Publics {
		put(KindPublic, p.Address.String(), p.text())
		for _, f := range p.Open {
			put(KindForward, fmt.Sprintf("%s %s/%d", p.Address, f.Protocol, f.Port), f.text(p))
		}
	}
	if r := n.Edge.SourcePorts; r != (PortRange{}) {
		put(KindSource, "", r.text())
	}
	return out
}

func (s Segment) text() string {
	out := []string{"frames only"}
	if s.Subnet.IsValid() {
		out = []string{s.Subnet.String()}
		if s.Routed() {
			out = append(out, "gateway "+s.Gateway.String())
		} else {
			out = append(out, "isolated")
		}
	}
	if s.DHCP {
		out = append(out, "dhcp")
	}
	if s.DNS {
		out = append(out, "dns")
	}
	return strings.Join(append(out, "mtu "+itoa(s.MTUOr())), ", ")
}

func (p Port) text(segment string) string {
	out := "in " + segment + ", " + CanonicalMAC(p.MAC)
	if p.Address.IsValid() {
		out += ", " + p.Address.String()
	}
	return out
}

func (p Public) text() string {
	out := "to " + p.Target.String()
	if p.Bind.IsValid() && p.Bind != p.Address {
		out += ", bound to " + p.Bind.String()
	}
	if p.PortOffset != 0 {
		out += fmt.Sprintf(", ports %+d", p.PortOffset)
	}
	return out
}

func (f Forward) text(p Public) string {
	target := p.Target
	if f.Target.IsValid() {
		target = f.Target
	}
	if f.LastPort() == f.Port {
		return fmt.Sprintf("to %s port %d", target, f.ToPort())
	}
	return fmt.Sprintf("to %d, to %s port %d and those after it", f.LastPort(), target, f.ToPort())
}

func (r PortRange) text() string {
	if r.First == r.Last {
		return itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func (r Rule) text() string {
	out := "refuse "
	if r.Allow {
		out = "allow "
	}
	out += cmp.Or(string(r.Protocol), "everything")
	prefixes := func(word string, ps []netip.Prefix) string {
		if len(ps) == 0 {
			return ""
		}
		return word + list(ps, netip.Prefix.String)
	}
	out += prefixes(" from ", r.From) + prefixes(" to ", r.To)
	if len(r.Ports) > 0 {
		out += " port " + list(r.Ports, PortRange.text)
	}
	return out
}

func ruleTexts(n Network) []string {
	var out []string
	for _, r := range n.Edge.Rules {
		out = append(out, r.text())
	}
	return out
}

// diffRules keeps a longest common part: order decides between rules, and one more at the top is one change, not many. Which
// part, where several are as long, must not depend on the direction; so it is always looked for in the same one.
func diffRules(before, after []string) []Change {
	if slices.Compare(before, after) > 0 {
		changes := diffRules(after, before)
		for i := range changes {
			changes[i] = changes[i].Reverse()
		}
		return changes
	}
	longest := make([][]int, len(before)+1) // of the parts from here on
	for i := range longest {
		longest[i] = make([]int, len(after)+1)
	}
	for i := len(before) - 1; i >= 0; i-- {
		for j := len(after) - 1; j >= 0; j-- {
			if longest[i][j] = max(longest[i+1][j], longest[i][j+1]); before[i] == after[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			}
		}
	}
	var out []Change
	for i, j := 0, 0; i < len(before) || j < len(after); {
		switch {
		case i < len(before) && j < len(after) && before[i] == after[j]:
			i, j = i+1, j+1
		case j == len(after) || i < len(before) && longest[i+1][j] >= longest[i][j+1]:
			out = append(out, Change{KindRule, itoa(i + 1), before[i], ""})
			i++
		default:
			out = append(out, Change{KindRule, itoa(j + 1), "", after[j]})
			j++
		}
	}
	return out
}

func itoa(n int) string { return strconv.Itoa(n) }
