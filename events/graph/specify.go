package graph

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Specify gives the specification that means the graph, as far as one has words
// for it; the findings name what it has none for. Values that are bound to a
// region are left to whichever region makes an environment of it.
func (g Graph) Specify(name string) (Spec, []Finding) {
	s := Spec{Name: name, Machines: []MachineSpec{}}
	for _, n := range g.Nodes {
		switch n.Type {
		case Network:
			s.Networks = append(s.Networks, g.networkSpec(n))
		case Machine:
			s.Machines = append(s.Machines, g.machineSpec(n))
			s.Routes = append(s.Routes, routeSpecs(n)...)
		case Datastore:
			s.Stores = append(s.Stores, DatastoreSpec{Name: n.ID, Disks: diskSpecs(n)})
		case VPNGateway:
			s.Gateways = append(s.Gateways, g.gatewaySpec(n))
		case VApp:
			s.VApps = append(s.VApps, VAppSpec{Name: n.ID, Machines: g.ends(Contains, n.ID, Machine)})
		case InternetGateway:
			if n.ID == EdgeID {
				rules, _ := n.rules() // what is no rule is found to be lost
				s.Edge = &EdgeSpec{Rules: rules, SourcePorts: n.Properties[propertySourcePorts]}
			}
		}
	}
	return s, g.lostIn(s.Graph())
}

// ends lists the nodes of a type that edges of a type lead to from a node.
func (g Graph) ends(t EdgeType, from string, of ...NodeType) []string {
	var out []string
	for _, e := range g.Edges {
		if n, ok := g.Node(e.To); ok && e.Type == t && e.From == from && slices.Contains(of, n.Type) {
			out = append(out, e.To)
		}
	}
	return out
}

func (g Graph) networkSpec(n Node) NetworkSpec {
	out := NetworkSpec{Name: n.ID, Isolated: n.Properties[propertyIsolated] == isTrue, Gateway: n.Properties[propertyGateway], DHCP: n.Properties[propertyDHCP]}
	out.MTU, _ = strconv.Atoi(n.Properties[propertyMTU]) // what is no number is found to be lost
	for _, id := range g.ends(Contains, n.ID, Subnet) {
		subnet, _ := g.Node(id)
		out.Subnet = subnet.Properties["cidr"]
	}
	return out
}

func (g Graph) machineSpec(n Node) MachineSpec {
	out := MachineSpec{Name: n.ID, Power: n.Power, Disks: diskSpecs(n), DependsOn: g.ends(DependsOn, n.ID, Machine, Datastore)}
	out.CPUs, _ = strconv.Atoi(n.Properties["cpus"]) // what is no number is found to be lost
	out.MemoryMiB, _ = strconv.Atoi(n.Properties["memory-mib"])
	for i := 0; ; i++ {
		network, ok := n.Properties[interfaceProperty(i, "network")]
		if !ok {
			return out
		}
		f := InterfaceSpec{Network: network, Address: n.Properties[interfaceProperty(i, "address")], MAC: n.Properties[interfaceProperty(i, "mac")],
			Open: strings.Fields(n.Properties[interfaceProperty(i, "open")])}
		if len(f.Open) == 0 {
			f.Open = nil
		}
		if n.has(publicOf(n.ID, i)) {
			f.PublicAddress = auto
		}
		out.Interfaces = append(out.Interfaces, f)
	}
}

func (n Node) has(resource string) bool {
	return slices.ContainsFunc(n.Resources, func(r Resource) bool { return r.ID == resource })
}

func diskSpecs(n Node) []DiskSpec {
	var out []DiskSpec
	for _, it := range n.Items {
		if it.Kind == Disk {
			out = append(out, DiskSpec{Name: it.Name, Size: it.Size, Class: it.Class})
		}
	}
	return out
}

func routeSpecs(n Node) []RouteSpec {
	var out []RouteSpec
	for _, r := range n.Resources {
		if name, ok := strings.CutPrefix(r.ID, n.ID+"."); ok && r.Type == Route {
			out = append(out, RouteSpec{Name: name, From: n.ID, Target: n.Properties["route-"+name+"-target"]})
		}
	}
	return out
}

func (g Graph) gatewaySpec(n Node) GatewaySpec {
	out := GatewaySpec{Name: n.ID, Peer: n.Properties["peer"]}
	if on := g.ends(Connects, n.ID, Network); len(on) > 0 {
		out.Network = on[0]
	}
	for _, r := range n.Resources {
		switch r.ID {
		case n.ID + ".endpoint":
			out.Endpoint = auto
		case n.ID + ".local":
			out.Address, _, _ = strings.Cut(r.LeansOn, ".")
		}
	}
	return out
}

// lostIn names the nodes and edges that the other graph has not, or differently:
// where disks are stored and what a region has bound does not count.
func (g Graph) lostIn(other Graph) []Finding {
	var out []Finding
	for _, n := range g.Nodes {
		o, ok := other.Node(n.ID)
		switch {
		case !ok:
			out = append(out, Finding{"not-in-specification", "nodes/" + n.ID, "a specification has no words for this node"})
		case !n.means(o):
			out = append(out, Finding{"not-in-specification", "nodes/" + n.ID, "a specification has no words for some of its properties, items or resources"})
		}
	}
	for i, e := range g.Edges {
		if !slices.Contains(other.Edges, e) {
			out = append(out, Finding{"not-in-specification", fmt.Sprintf("edges/%d", i), fmt.Sprintf("a specification does not say that %s %s %s", e.From, e.Type, e.To)})
		}
	}
	return out
}

func (n Node) means(o Node) bool {
	item := func(a, b Item) bool { a.Digest, b.Digest = "", ""; return a == b }
	resource := func(a, b Resource) bool { a.Value, b.Value = "", ""; return a == b }
	return n.Type == o.Type && n.Name == o.Name && n.Power == o.Power && maps.Equal(n.Properties, o.Properties) &&
		slices.EqualFunc(n.Items, o.Items, item) && slices.EqualFunc(n.Resources, o.Resources, resource)
}
