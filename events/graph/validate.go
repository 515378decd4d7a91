package graph

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
)

// Finding is one thing that is wrong with a graph.
type Finding struct {
	Code string `json:"code"` // stable
	Path string `json:"path"` // "nodes/web/items/root"
	Text string `json:"text"`
}

// Limits of a graph: above them it is refused rather than half handled.
const (
	MaxNodes    = 5000
	MaxDiskSize = 64 << 40 // bytes
)

// Validate lists everything that is wrong, not only the first thing; nothing
// means that the graph hangs together and its networks can be made.
func (g Graph) Validate() []Finding {
	out := g.Structure()
	if len(g.Nodes) > MaxNodes {
		return out
	}
	_, wrong := g.Networking()
	out = append(append(out, wrong...), g.hardware()...)
	slices.SortStableFunc(out, func(a, b Finding) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// hardware finds machines that no host could have.
func (g Graph) hardware() []Finding {
	var out []Finding
	for _, n := range g.Nodes {
		for _, has := range []struct {
			property string
			most     int64
		}{{"cpus", MaxCPUs}, {"memory-mib", MaxMemoryMiB}} {
			text, said := n.Properties[has.property]
			if v, err := strconv.ParseInt(text, 10, 64); n.Type == Machine && said && (err != nil || v < 1 || v > has.most) {
				out = append(out, Finding{"bad-hardware", "nodes/" + n.ID, fmt.Sprintf("%s is %q: a whole number from 1 to %d is meant", has.property, text, has.most)})
			}
		}
	}
	return out
}

// Structure lists what does not hang together: names, items, resources, edges.
// It is the part of Validate that holds for graphs of any time and origin.
func (g Graph) Structure() []Finding {
	v := validation{graph: g, nodes: map[string]Node{}, resources: map[string]Resource{}}
	if len(g.Nodes) == 0 {
		v.add("graph-empty", "nodes", "an environment has at least one node")
	}
	if len(g.Nodes) > MaxNodes {
		v.add("graph-too-large", "nodes", "%d nodes, at most %d are allowed", len(g.Nodes), MaxNodes)
		return v.findings
	}
	for _, n := range g.Nodes {
		v.node(n)
	}
	for i, e := range g.Edges {
		v.edge(i, e)
	}
	for id, r := range v.resources {
		if r.LeansOn == "" {
			continue
		}
		on, ok := v.resources[r.LeansOn]
		switch {
		case !ok:
			v.add("unknown-resource", "resources/"+id, "leans on %q, which is not in the graph", r.LeansOn)
		case on.LeansOn != "":
			v.add("leaning-chain", "resources/"+id, "leans on %q, which itself leans on %q; name %[2]q directly", r.LeansOn, on.LeansOn)
		}
	}
	if circle := g.circle(); circle != nil {
		v.add("graph-cycle", "edges", "each needs the next to be there first: %s", strings.Join(circle, " → "))
	}
	slices.SortStableFunc(v.findings, func(a, b Finding) int { return strings.Compare(a.Path, b.Path) })
	return v.findings
}

type validation struct {
	graph     Graph
	nodes     map[string]Node
	resources map[string]Resource
	findings  []Finding
}

func (v *validation) add(code, path, format string, args ...any) {
	v.findings = append(v.findings, Finding{code, path, fmt.Sprintf(format, args...)})
}

func (v *validation) node(n Node) {
	path := "nodes/" + n.ID
	if !events.IsToken(n.ID) {
		v.add("bad-name", path, "%q is not a node id: use a-z, 0-9 and -, at most 63", n.ID)
		return
	}
	if _, twice := v.nodes[n.ID]; twice {
		v.add("duplicate-name", path, "two nodes are called %q", n.ID)
		return
	}
	v.nodes[n.ID] = n
	if !events.IsToken(string(n.Type)) {
		v.add("bad-type", path, "%q is not a node type", n.Type)
	}
	switch {
	case n.Type != Machine && n.Power != "":
		v.add("bad-power", path, "only machines have a power state")
	case n.Type == Machine && !slices.Contains([]Power{Running, Suspended, Stopped, PoweredOff}, n.Power):
		v.add("bad-power", path, "%q is not a power state: running, suspended, stopped or powered-off", n.Power)
	}
	items := map[string]Item{}
	for _, it := range n.Items {
		if _, twice := items[it.Name]; twice {
			v.add("duplicate-name", path+"/items/"+it.Name, "two items are called %q", it.Name)
		}
		items[it.Name] = it
	}
	for _, it := range n.Items {
		v.item(n.ID, path+"/items/"+it.Name, it, items)
	}
	for _, r := range n.Resources {
		rpath := path + "/resources/" + r.ID
		if name, ok := strings.CutPrefix(r.ID, n.ID+"."); !ok || !events.IsToken(name) {
			v.add("bad-name", rpath, "%q is not a resource id: use %q and a name of a-z, 0-9 and -", r.ID, n.ID+".")
		}
		if !events.IsToken(string(r.Type)) {
			v.add("bad-type", rpath, "%q is not a resource type", r.Type)
		}
		if _, twice := v.resources[r.ID]; twice {
			v.add("duplicate-name", rpath, "two resources are called %q", r.ID)
		}
		v.resources[r.ID] = r
	}
}

func (v *validation) item(node, path string, it Item, all map[string]Item) {
	if !events.IsToken(it.Name) {
		v.add("bad-name", path, "%q is not an item name: use a-z, 0-9 and -, at most 63", it.Name)
	}
	if !slices.Contains([]Class{TemplateData, ProductionData, ConfigurationData}, it.Class) {
		v.add("unclassified-item", path, "%q is not a data class: template, production or configuration", it.Class)
	}
	switch it.Kind {
	case Disk:
		if it.Size <= 0 || it.Size > MaxDiskSize || it.Size%512 != 0 {
			v.add("bad-size", path, "a disk has a size from 512 to %d bytes, a multiple of 512; this one says %d", int64(MaxDiskSize), it.Size)
		}
		if it.Digest != "" && !it.Digest.Valid() {
			v.add("bad-digest", path, "%q is not a digest", it.Digest)
		}
	case Setting:
	case Memory:
		if v.nodes[node].Type != Machine || it.Class != ConfigurationData || it.Name != MemoryRAM && it.Name != MemoryDevices {
			v.add("bad-memory", path, "memory is configuration data of a machine, called %s or %s", MemoryRAM, MemoryDevices)
		}
		if it.Size <= 0 || it.Size > MaxDiskSize {
			v.add("bad-size", path, "memory has a size from 1 to %d bytes; this one says %d", int64(MaxDiskSize), it.Size)
		}
		if it.Digest != "" && !it.Digest.Valid() {
			v.add("bad-digest", path, "%q is not a digest", it.Digest)
		}
	default:
		v.add("bad-type", path, "%q is not a kind of item: disk, setting or memory", it.Kind)
	}
	if it.Base != "" {
		if base, ok := all[it.Base]; !ok || base.Kind != Disk || base.Base != "" || it.Kind != Disk {
			v.add("unknown-base", path, "base %q is not a disk of this node that stands by itself", it.Base)
		}
	}
}

func (v *validation) edge(i int, e Edge) {
	path := fmt.Sprintf("edges/%d", i)
	if !slices.Contains([]EdgeType{Contains, Connects, DependsOn, Services}, e.Type) {
		v.add("bad-type", path, "%q is not a kind of edge: contains, connects, depends-on or services", e.Type)
	}
	for _, end := range []string{e.From, e.To} {
		if _, ok := v.nodes[end]; !ok {
			v.add("unknown-node", path, "%s from %q to %q: there is no node %q", e.Type, e.From, e.To, end)
		}
	}
}

// Order lists the node ids so that whatever a node depends on comes before it,
// and a container before what it contains; ties keep the order of the graph.
// The graph must be valid.
func (g Graph) Order() []string {
	order, _ := g.walk()
	return order
}

// circle gives one circle of nodes that wait for each other, or nil.
func (g Graph) circle() []string {
	_, circle := g.walk()
	return circle
}

// walk goes depth first along "needs": depends-on edges, and from what is
// contained to its container.
func (g Graph) walk() (order, circle []string) {
	needs := map[string][]string{}
	for _, e := range g.Edges {
		switch e.Type {
		case DependsOn:
			needs[e.From] = append(needs[e.From], e.To)
		case Contains:
			needs[e.To] = append(needs[e.To], e.From)
		}
	}
	const open, done = 1, 2
	state := map[string]int{}
	var path []string
	var visit func(id string)
	visit = func(id string) {
		state[id] = open
		path = append(path, id)
		for _, n := range needs[id] {
			if state[n] == open && circle == nil {
				circle = append(slices.Clone(path[slices.Index(path, n):]), n)
			}
			if state[n] == 0 {
				visit(n)
			}
		}
		path = path[:len(path)-1]
		state[id] = done
		order = append(order, id)
	}
	for _, n := range g.Nodes {
		if state[n.ID] == 0 {
			visit(n.ID)
		}
	}
	return order, circle
}
