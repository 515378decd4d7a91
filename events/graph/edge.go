package graph

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
)

// EdgeID is the node of an environment's edge, an internet gateway. A graph
// without one has an edge all the same, where it has routed networks: one that
// has no rules.
const EdgeID = "edge"

// outside is how rules call everything beyond the edge.
const outside = "outside"

// MaxRules is how many rules an edge may have.
const MaxRules = 200

// The properties of nodes that networks and the edge are described by. They are
// there only where they differ from the default.
const (
	propertyIsolated    = "isolated"
	propertyGateway     = "gateway"
	propertyDHCP        = "dhcp"
	propertyMTU         = "mtu"
	propertyRule        = "rule-" // and three digits: its place
	propertySourcePorts = "source-ports"
)

const (
	dhcpOff = "off"
	isTrue  = "true"
)

// The actions of rules.
const (
	allow = "allow"
	deny  = "deny"
)

// EdgeSpec says what crosses the edge between an environment's networks, and
// between them and the outside. The first rule that matches decides. Where none
// does, routed networks reach each other and the outside, and from the outside
// comes only what interfaces open.
type EdgeSpec struct {
	Rules []events.EdgeRule `json:"rules,omitempty" maxItems:"200"`
	// SourcePorts are those that connections to the outside come from: "20000-29999".
	SourcePorts string `json:"source_ports,omitempty"`
}

// EdgeState is the edge as it is set: the rules, the port pool, and what each
// public address lets in.
type EdgeState struct {
	Rules       []events.EdgeRule    `json:"rules"`
	SourcePorts string               `json:"source_ports,omitempty"`
	Open        []events.EdgeOpening `json:"open"` // of every public address, in the order of the graph
}

// edgeNode is the node that an edge's settings are kept in.
func edgeNode(rules []events.EdgeRule, sourcePorts string) Node {
	n := Node{ID: EdgeID, Type: InternetGateway, Name: EdgeID, Properties: map[string]string{}}
	for i, r := range rules {
		text, err := json.Marshal(r)
		if err != nil {
			panic(err) // strings and lists of them
		}
		n.Properties[fmt.Sprintf("%s%03d", propertyRule, i)] = string(text)
	}
	if sourcePorts != "" {
		n.Properties[propertySourcePorts] = sourcePorts
	}
	return n
}

// rules reads an edge's rules in their order; a property that is none is a finding.
func (n Node) rules() ([]events.EdgeRule, []Finding) {
	var out []events.EdgeRule
	var wrong []Finding
	for _, name := range slices.Sorted(maps.Keys(n.Properties)) {
		if !strings.HasPrefix(name, propertyRule) {
			continue
		}
		var r events.EdgeRule
		if err := json.Unmarshal([]byte(n.Properties[name]), &r); err != nil {
			wrong = append(wrong, Finding{"bad-rule", "nodes/" + n.ID + "/" + name, fmt.Sprintf("this is no rule: %v", err)})
			continue
		}
		out = append(out, r)
	}
	return out, wrong
}

// Edge gives the edge's settings, for people to read and to change.
func (g Graph) Edge() EdgeState {
	out := EdgeState{Rules: []events.EdgeRule{}, Open: []events.EdgeOpening{}}
	if n, ok := g.Node(EdgeID); ok && n.Type == InternetGateway {
		if rules, _ := n.rules(); rules != nil {
			out.Rules = rules
		}
		out.SourcePorts = n.Properties[propertySourcePorts]
	}
	for _, n := range g.Nodes {
		for _, i := range n.interfaceIndexes() {
			if resource := publicOf(n.ID, i); n.hasPublic(i) {
				out.Open = append(out.Open, events.EdgeOpening{Resource: resource, Ports: opened(n.Properties[interfaceProperty(i, "open")])})
			}
		}
	}
	return out
}

// opened is the list of what an interface's property opens; never nil.
func opened(property string) []string { return append([]string{}, strings.Fields(property)...) }

// WithEdge gives the graph with other settings of its edge: the rules, the port
// pool and the openings take the place of all that were there, and a public
// address that is not named lets nothing in. The receiver stays as it was. What
// is wrong with the result is found by its Validate.
func (g Graph) WithEdge(set events.EdgeSet) Graph {
	out := Graph{Nodes: slices.Clone(g.Nodes), Edges: slices.Clone(g.Edges)}
	opens := map[string][]string{}
	for _, o := range set.Open {
		opens[o.Resource] = append(opens[o.Resource], o.Ports...)
	}
	for i, n := range out.Nodes {
		for _, k := range n.interfaceIndexes() {
			if !n.hasPublic(k) {
				continue
			}
			name, text := interfaceProperty(k, "open"), strings.Join(opens[publicOf(n.ID, k)], " ")
			if n.Properties[name] == text {
				continue
			}
			n.Properties = maps.Clone(n.Properties)
			if n.Properties[name] = text; text == "" {
				delete(n.Properties, name)
			}
		}
		out.Nodes[i] = n
	}
	at := slices.IndexFunc(out.Nodes, func(n Node) bool { return n.ID == EdgeID })
	switch {
	case at >= 0 && out.Nodes[at].Type != InternetGateway:
		return out // something else has the name: CheckEdge says so
	case at >= 0:
		kept := maps.Clone(out.Nodes[at].Properties)
		maps.DeleteFunc(kept, func(name, _ string) bool {
			return name == propertySourcePorts || strings.HasPrefix(name, propertyRule)
		})
		edge := edgeNode(set.Rules, set.SourcePorts)
		if kept == nil {
			kept = map[string]string{}
		}
		maps.Copy(kept, edge.Properties)
		out.Nodes[at].Properties = kept
	case len(set.Rules) > 0 || set.SourcePorts != "":
		out.Nodes = append(out.Nodes, edgeNode(set.Rules, set.SourcePorts))
		out.Edges = append(out.Edges, g.edgeLinks()...)
	}
	return out
}

// edgeLinks join the edge to the networks that it routes.
func (g Graph) edgeLinks() []Edge {
	var out []Edge
	for _, n := range g.Nodes {
		if n.Type == Network && n.Properties[propertyIsolated] != isTrue && len(g.ends(Contains, n.ID, Subnet)) > 0 {
			out = append(out, Edge{Connects, EdgeID, n.ID})
		}
	}
	return out
}

// CheckEdge lists what is wrong with settings that are to become the graph's
// edge, beside what the graph itself has wrong.
func (g Graph) CheckEdge(set events.EdgeSet) []Finding {
	var out []Finding
	if n, ok := g.Node(EdgeID); ok && n.Type != InternetGateway {
		out = append(out, Finding{"edge-name-taken", "nodes/" + EdgeID, fmt.Sprintf("the edge's settings are kept in a node called %q, and here that is a %s", EdgeID, n.Type)})
	}
	known := map[string]bool{}
	for _, o := range g.Edge().Open {
		known[o.Resource] = true
	}
	for i, o := range set.Open {
		if !known[o.Resource] {
			out = append(out, Finding{"unknown-resource", fmt.Sprintf("open/%d", i), fmt.Sprintf("there is no public address %q", o.Resource)})
		}
	}
	before := g.Validate()
	for _, f := range g.WithEdge(set).Validate() {
		if !slices.Contains(before, f) {
			out = append(out, f)
		}
	}
	return out
}

// EdgeChange is one line of the difference between two edges.
type EdgeChange struct {
	Change string `json:"change"` // "+" or "-"
	What   string `json:"what"`   // "rule 3", "open web.public", "source ports"
	Text   string `json:"text"`
}

// DiffEdges says what makes the second edge of the first, in the order in which
// people read them: rules, openings, source ports. Equal ones differ in nothing.
func DiffEdges(old, new EdgeState) []EdgeChange {
	var out []EdgeChange
	was, is := ruleTexts(old.Rules), ruleTexts(new.Rules)
	keptOld, keptNew := common(was, is)
	for i, text := range was {
		if !keptOld[i] {
			out = append(out, EdgeChange{"-", fmt.Sprintf("rule %d", i+1), text})
		}
	}
	for i, text := range is {
		if !keptNew[i] {
			out = append(out, EdgeChange{"+", fmt.Sprintf("rule %d", i+1), text})
		}
	}
	opens := func(e EdgeState) map[string]bool {
		all := map[string]bool{}
		for _, o := range e.Open {
			for _, p := range o.Ports {
				all[o.Resource+" "+p] = true
			}
		}
		return all
	}
	before, after := opens(old), opens(new)
	line := func(change, open string) {
		resource, port, _ := strings.Cut(open, " ")
		out = append(out, EdgeChange{change, "open " + resource, port})
	}
	for _, open := range slices.Sorted(maps.Keys(before)) {
		if !after[open] {
			line("-", open)
		}
	}
	for _, open := range slices.Sorted(maps.Keys(after)) {
		if !before[open] {
			line("+", open)
		}
	}
	if old.SourcePorts != new.SourcePorts {
		for _, side := range [][2]string{{"-", old.SourcePorts}, {"+", new.SourcePorts}} {
			if side[1] != "" {
				out = append(out, EdgeChange{side[0], "source ports", side[1]})
			}
		}
	}
	return out
}

func ruleTexts(rules []events.EdgeRule) []string {
	var out []string
	for _, r := range rules {
		out = append(out, RuleText(r))
	}
	return out
}

// RuleText is a rule in one line, as people say it.
func RuleText(r events.EdgeRule) string {
	text := r.Action
	if r.Protocol != "" {
		text += " " + r.Protocol
	}
	if len(r.From) > 0 {
		text += " from " + strings.Join(r.From, ", ")
	}
	if len(r.To) > 0 {
		text += " to " + strings.Join(r.To, ", ")
	}
	if len(r.Ports) > 0 {
		text += " ports " + strings.Join(r.Ports, ", ")
	}
	return text
}

// common marks a longest common subsequence in both lists: rules that stay, in
// an order that stays.
func common(a, b []string) (inA, inB []bool) {
	longest := make([][]int, len(a)+1)
	for i := range longest {
		longest[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				longest[i][j] = longest[i+1][j+1] + 1
			} else {
				longest[i][j] = max(longest[i+1][j], longest[i][j+1])
			}
		}
	}
	inA, inB = make([]bool, len(a)), make([]bool, len(b))
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i] == b[j]:
			inA[i], inB[j] = true, true
			i, j = i+1, j+1
		case longest[i+1][j] >= longest[i][j+1]:
			i++
		default:
			j++
		}
	}
	return inA, inB
}

// Opening is what lets connections in from the outside: public ports Port to
// Last reach the machine's ports To and those after it.
type Opening struct {
	Protocol string `json:"protocol"` // tcp or udp
	Port     uint16 `json:"port"`
	Last     uint16 `json:"last"` // the same as Port where it is one
	To       uint16 `json:"to"`
}

// MachineLast is the last of the machine's ports.
func (o Opening) MachineLast() uint16 { return o.To + (o.Last - o.Port) }

// ParseOpening reads "tcp/80", "tcp/8080:80", "udp/53", "tcp/2000-2010" or
// "tcp/2000-2010:3000".
func ParseOpening(text string) (Opening, error) {
	bad := func(why string) (Opening, error) {
		return Opening{}, fmt.Errorf("%q opens nothing: %s; tcp/80 is meant, or tcp/8080:80, udp/53, tcp/2000-2010", text, why)
	}
	protocol, rest, ok := strings.Cut(text, "/")
	if !ok || protocol != "tcp" && protocol != "udp" {
		return bad("it begins with neither tcp/ nor udp/")
	}
	public, machine, moved := strings.Cut(rest, ":")
	r, err := ParsePorts(public)
	if err != nil {
		return bad(err.Error())
	}
	o := Opening{Protocol: protocol, Port: r.First, Last: r.Last, To: r.First}
	if moved {
		to, err := ParsePorts(machine)
		if err != nil {
			return bad(err.Error())
		}
		if to.First != to.Last && to.Last-to.First != r.Last-r.First {
			return bad("the two ranges are not of one length")
		}
		o.To = to.First
	}
	if int(o.To)+int(o.Last)-int(o.Port) > 65535 {
		return bad("the machine's ports end above 65535")
	}
	return o, nil
}

// PortRange is ports from First to Last.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// ParsePorts reads "22" or "8000-8100".
func ParsePorts(text string) (PortRange, error) {
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || b < a {
		return PortRange{}, fmt.Errorf("%q is not a port from 1 to 65535, nor a range of them", text)
	}
	return PortRange{uint16(a), uint16(b)}, nil
}
