// Package graph describes what an environment consists of: typed nodes joined
// by typed edges, the classed data that belongs to each node, and the
// region-bound resources among it. A Graph is plain data; Validate says whether
// it hangs together.
package graph

import "github.com/tombolo-vdc/tombolo/events"

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

// DiskRef names one disk of a graph.
type DiskRef struct {
	Node string
	Item
}

// Name is "<node>/<item>", as uploads and exports call the disk.
func (d DiskRef) Name() string { return d.Node + "/" + d.Item.Name }

// Disks lists all disks, in the order of the graph.
func (g Graph) Disks() []DiskRef {
	var out []DiskRef
	for _, n := range g.Nodes {
		for _, it := range n.Items {
			if it.Kind == Disk {
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
