// Package graph describes what an environment consists of: typed nodes joined
// by typed edges, the classed data that belongs to each node, and the
// region-bound resources among it. A Graph is plain data; Validate says whether
// it hangs together.
package graph

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/tombolo-vdc/tombolo/events"
)

// NodeType is the type of a node. The ones below are built in; resource
// services register others.
type NodeType string

// The built-in node types (snapshot description L30-36).
const (
	Network         NodeType = "network"
	Subnet          NodeType = "subnet"
	VPNGateway      NodeType = "vpn-gateway"
	InternetGateway NodeType = "internet-gateway"
	CustomerGateway NodeType = "customer-gateway"
	VApp            NodeType = "vapp"
	Machine         NodeType = "machine"
	Volume          NodeType = "volume"
	Datastore       NodeType = "datastore"
)

// EdgeType is the type of a link between two nodes (L22, L40).
type EdgeType string

// The edge types. Contains and depends-on are free of cycles.
const (
	Contains  EdgeType = "contains"
	Connects  EdgeType = "connects"
	DependsOn EdgeType = "depends-on" // From needs To to be there first
	Services  EdgeType = "services"
)

// Class is the class of an item of data (L26, L70).
type Class string

// The data classes, and with them the depths: template ⊂ production ⊂ configuration.
const (
	TemplateData      Class = "template"
	ProductionData    Class = "production"
	ConfigurationData Class = "configuration"
)

// Power is the declared power state of a machine or an environment.
type Power string

// The power states (template description [0002]).
const (
	Running    Power = "running"
	Suspended  Power = "suspended"
	Stopped    Power = "stopped"
	PoweredOff Power = "powered-off"
)

// Node is one resource of an environment.
type Node struct {
	ID         string            `json:"id"` // unique in the graph; a token
	Type       NodeType          `json:"type"`
	Name       string            `json:"name"`            // as people call it
	Power      Power             `json:"power,omitempty"` // machines only
	Properties map[string]string `json:"properties,omitempty"`
	Items      []Item            `json:"items,omitempty"`
	Resources  []Resource        `json:"resources,omitempty"`
}

// Item is one piece of a node's data.
type Item struct {
	Name   string        `json:"name"` // unique in the node
	Class  Class         `json:"class"`
	Kind   ItemKind      `json:"kind"`
	Size   int64         `json:"size"`             // bytes as the machine sees them
	Digest events.Digest `json:"digest,omitempty"` // of the disk's index, once it is saved
	Value  string        `json:"value,omitempty"`  // of a setting
	Base   string        `json:"base,omitempty"`   // a disk that is the changes over another item of the node
}

// ItemKind says how an item is stored.
type ItemKind string

// The item kinds.
const (
	Disk    ItemKind = "disk"    // a block device, stored as an index of chunks
	Setting ItemKind = "setting" // a small text, stored in the graph itself
	Memory  ItemKind = "memory"  // of a machine that stands suspended, stored as a disk is: see MemoryRAM
)

// The items of a suspended machine's memory; both are configuration data. The
// properties say on which hardware it was taken: memory goes on on the same only.
const (
	MemoryRAM     = "ram"
	MemoryDevices = "devices"

	PropertyMemoryAccelerator = "memory-accelerator"
	PropertyMemoryMachine     = "memory-machine"
	PropertyMemoryCPU         = "memory-cpu"
	PropertyMemoryEmulator    = "memory-emulator"
)

// ResourceType is a type of region-bound resource, the type of a pool.
type ResourceType string

// The region-bound resource types with built-in rules. Others must be declared
// by a pool, or the copy stops and asks.
const (
	PublicAddress ResourceType = "public-address"
	VPNEndpoint   ResourceType = "vpn-endpoint"
	Route         ResourceType = "environment-route" // a route to another environment, by its public address
)

// Resource is something of a node that is usable in one region only ([0023]).
type Resource struct {
	ID      string       `json:"id"` // unique in the graph, "<node>.<name>": how the user names it in --map
	Type    ResourceType `json:"type"`
	Value   string       `json:"value,omitempty"`    // what the source environment has; empty: automatic
	LeansOn string       `json:"leans_on,omitempty"` // the id of the resource whose value this one carries within its own
}

// Edge is a link between two nodes.
type Edge struct {
	Type EdgeType `json:"type"`
	From string   `json:"from"`
	To   string   `json:"to"`
}

// Graph is the resource graph of an environment or of a part of it.
type Graph struct {
	Nodes []Node `json:"nodes"`
	Edges []Edge `json:"edges"`
}

// Node gives the node with that id.
func (g Graph) Node(id string) (Node, bool) {
	for _, n := range g.Nodes {
		if n.ID == id {
			return n, true
		}
	}
	return Node{}, false
}

// DiskRef names one disk of a graph, or another item that is stored as one.
type DiskRef struct {
	Node string
	Item
}

// Name is "<node>/<item>", as uploads and exports call the disk.
func (d DiskRef) Name() string { return d.Node + "/" + d.Item.Name }

// Disks lists all disks, in the order of the graph.
func (g Graph) Disks() []DiskRef { return g.items(Disk) }

// Stored lists all that is kept as an index of chunks, disks and memory, in the
// order of the graph: what is copied, verified and kept with it.
func (g Graph) Stored() []DiskRef { return g.items(Disk, Memory) }

func (g Graph) items(kinds ...ItemKind) []DiskRef {
	var out []DiskRef
	for _, n := range g.Nodes {
		for _, it := range n.Items {
			if slices.Contains(kinds, it.Kind) {
				out = append(out, DiskRef{n.ID, it})
			}
		}
	}
	return out
}

// Resources lists all region-bound resources, in the order of the graph.
func (g Graph) Resources() []Resource {
	var out []Resource
	for _, n := range g.Nodes {
		out = append(out, n.Resources...)
	}
	return out
}

// What a machine has whose specification does not say.
const (
	DefaultCPUs      = 1
	DefaultMemoryMiB = 256
)

// Limits of a machine. What a region's hosts can really run is less.
const (
	MaxCPUs      = 4096
	MaxMemoryMiB = 64 << 20 // 64 TiB
)

// CPUs is how many processors the machine has.
func (n Node) CPUs() int {
	if cpus, err := strconv.Atoi(n.Properties["cpus"]); err == nil && cpus > 0 {
		return cpus
	}
	return DefaultCPUs
}

// MemoryBytes is how much memory the machine has.
func (n Node) MemoryBytes() int64 {
	if mib, err := strconv.ParseInt(n.Properties["memory-mib"], 10, 64); err == nil && mib > 0 && mib <= MaxMemoryMiB {
		return mib << 20
	}
	return DefaultMemoryMiB << 20
}

// Starts says which machines of a saved graph go on from where they were once it
// is instantiated, and which that are to run start from power-on, because their
// memory was not saved. The others stay as they are.
func (g Graph) Starts() (resume, boot []string) {
	for _, n := range g.Nodes {
		remembers := slices.ContainsFunc(n.Items, func(it Item) bool { return it.Kind == Memory })
		switch {
		case n.Type != Machine || n.Power != Running:
		case remembers:
			resume = append(resume, n.ID)
		default:
			boot = append(boot, n.ID)
		}
	}
	return resume, boot
}

// Machines lists the machines that a vApp has, those of vApps within it too, in
// the order of the graph.
func (g Graph) Machines(vapp string) []string {
	inside := map[string]bool{vapp: true}
	for range g.Nodes { // each round goes one vApp deeper
		before := len(inside)
		for _, e := range g.Edges {
			if e.Type == Contains && inside[e.From] {
				inside[e.To] = true
			}
		}
		if len(inside) == before {
			break
		}
	}
	var out []string
	for _, n := range g.Nodes {
		if n.Type == Machine && inside[n.ID] {
			out = append(out, n.ID)
		}
	}
	return out
}

// Count is how many nodes there are of a type.
func (g Graph) Count(t NodeType) int {
	count := 0
	for _, n := range g.Nodes {
		if n.Type == t {
			count++
		}
	}
	return count
}

// WithoutMemory gives the graph without the memory of suspended machines, for
// where it cannot go: those are powered off then, as after a loss of power. The
// findings name them.
func (g Graph) WithoutMemory() (Graph, []Finding) {
	out := Graph{Nodes: slices.Clone(g.Nodes), Edges: g.Edges}
	var lost []Finding
	for i, n := range out.Nodes {
		if !slices.ContainsFunc(n.Items, func(it Item) bool { return it.Kind == Memory }) {
			continue
		}
		n.Items = slices.DeleteFunc(slices.Clone(n.Items), func(it Item) bool { return it.Kind == Memory })
		n.Properties = maps.Clone(n.Properties)
		for _, name := range []string{PropertyMemoryAccelerator, PropertyMemoryMachine, PropertyMemoryCPU, PropertyMemoryEmulator} {
			delete(n.Properties, name)
		}
		if n.Power == Suspended {
			n.Power = PoweredOff
		}
		out.Nodes[i] = n
		lost = append(lost, Finding{"memory-left-out", "nodes/" + n.ID, fmt.Sprintf("the memory of %s is left out: it boots when it is started", n.ID)})
	}
	return out, lost
}
