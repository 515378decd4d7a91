package graph

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Spec is an environment as people write it down (env create -f FILE). Graph
// turns it into nodes and edges.
type Spec struct {
	Name     string          `json:"name"` // as people call it
	Networks []NetworkSpec   `json:"networks,omitempty"`
	Machines []MachineSpec   `json:"machines"`
	Gateways []GatewaySpec   `json:"vpn_gateways,omitempty"`
	Routes   []RouteSpec     `json:"routes,omitempty"` // to other environments
	VApps    []VAppSpec      `json:"vapps,omitempty"`
	Stores   []DatastoreSpec `json:"datastores,omitempty"`
	Edge     *EdgeSpec       `json:"edge,omitempty"` // what crosses it, beyond what is so without rules
}

// NetworkSpec is a layer-2 network with one subnet.
type NetworkSpec struct {
	Name     string `json:"name"`
	Subnet   string `json:"subnet,omitempty"`                           // CIDR, "10.10.0.0/24"
	Isolated bool   `json:"isolated,omitempty"`                         // nothing is routed in or out
	Gateway  string `json:"gateway,omitempty"`                          // the subnet's first address unless said otherwise
	DHCP     string `json:"dhcp,omitempty" enum:"on,off"`               // on, where there is a subnet, unless said otherwise
	MTU      int    `json:"mtu,omitempty" minimum:"576" maximum:"9000"` // bytes; the region's unless said otherwise
}

// MachineSpec is a virtual machine.
type MachineSpec struct {
	Name       string          `json:"name"`
	Power      Power           `json:"power,omitempty"`                                     // running unless said otherwise
	CPUs       int             `json:"cpus,omitempty" minimum:"0" maximum:"4096"`           // 0: not said
	MemoryMiB  int             `json:"memory_mib,omitempty" minimum:"0" maximum:"67108864"` // 0: not said; at most 64 TiB
	Disks      []DiskSpec      `json:"disks,omitempty"`
	Interfaces []InterfaceSpec `json:"interfaces,omitempty"`
	DependsOn  []string        `json:"depends_on,omitempty"` // machines or datastores that come first
}

// DiskSpec is a disk whose content is in a file beside the specification.
type DiskSpec struct {
	Name string `json:"name"`
	File string `json:"file,omitempty"`  // relative to the specification; used by the client, not kept
	Size int64  `json:"bytes,omitempty"` // set by the client from the file
	// Format of the file, recognized by its first bytes unless it is said; used by the client, not kept.
	Format string `json:"format,omitempty" enum:"raw,qcow2,vmdk"`
	// Class says what the disk's content is; production unless said otherwise.
	Class Class `json:"class,omitempty"`
}

// InterfaceSpec joins a machine to a network.
type InterfaceSpec struct {
	Network       string `json:"network"`
	Address       string `json:"address,omitempty"`        // inside the network
	PublicAddress string `json:"public_address,omitempty"` // "auto", or one of the region's pool
	MAC           string `json:"mac,omitempty"`            // derived from the machine's name unless said otherwise
	// Open is what is let in from the outside on the public address, none unless said otherwise: "tcp/80",
	// "tcp/8080:80" (the machine's port behind the colon), "udp/53", "tcp/2000-2010".
	Open []string `json:"open,omitempty"`
}

// GatewaySpec is a VPN gateway of a network.
type GatewaySpec struct {
	Name     string `json:"name"`
	Network  string `json:"network"`
	Endpoint string `json:"endpoint,omitempty"`   // "auto", or one of the region's pool of VPN endpoints
	Address  string `json:"address_of,omitempty"` // the machine whose public address the tunnel starts from
	Peer     string `json:"peer,omitempty"`       // the other side, bound to no region
}

// RouteSpec is a route to a machine of another environment, by that one's
// public address, from a machine here by its own.
type RouteSpec struct {
	Name   string `json:"name"`
	From   string `json:"from"` // a machine here, whose public address the route leans on
	Target string `json:"target"`
}

// VAppSpec groups machines that start, stop and are secured together.
type VAppSpec struct {
	Name     string   `json:"name"`
	Machines []string `json:"machines"`
}

// DatastoreSpec is a data store with its disk.
type DatastoreSpec struct {
	Name  string     `json:"name"`
	Disks []DiskSpec `json:"disks,omitempty"`
}

// auto is how people ask for any value of a pool.
const auto = "auto"

// Graph gives the nodes and edges that the specification means. What does not
// hang together is found by Graph.Validate.
func (s Spec) Graph() Graph {
	var g Graph
	edge := func(t EdgeType, from, to string) { g.Edges = append(g.Edges, Edge{t, from, to}) }
	for _, n := range s.Networks {
		g.Nodes = append(g.Nodes, Node{ID: n.Name, Type: Network, Name: n.Name, Properties: n.properties()})
		if n.Subnet != "" {
			id := n.Name + "-subnet"
			g.Nodes = append(g.Nodes, Node{ID: id, Type: Subnet, Name: n.Subnet, Properties: map[string]string{"cidr": n.Subnet}})
			edge(Contains, n.Name, id)
		}
	}
	for _, d := range s.Stores {
		g.Nodes = append(g.Nodes, Node{ID: d.Name, Type: Datastore, Name: d.Name, Items: diskItems(d.Disks)})
	}
	for _, m := range s.Machines {
		n := Node{ID: m.Name, Type: Machine, Name: m.Name, Power: cmp.Or(m.Power, Running), Items: diskItems(m.Disks), Properties: map[string]string{}}
		if m.CPUs > 0 {
			n.Properties["cpus"] = fmt.Sprint(m.CPUs)
		}
		if m.MemoryMiB > 0 {
			n.Properties["memory-mib"] = fmt.Sprint(m.MemoryMiB)
		}
		for i, f := range m.Interfaces {
			edge(Connects, m.Name, f.Network)
			for what, value := range map[string]string{"network": f.Network, "address": f.Address, "mac": f.MAC, "open": strings.Join(f.Open, " ")} {
				if value != "" || what == "network" {
					n.Properties[interfaceProperty(i, what)] = value
				}
			}
			if f.PublicAddress != "" {
				n.Resources = append(n.Resources, Resource{ID: publicOf(m.Name, i), Type: PublicAddress, Value: unlessAuto(f.PublicAddress)})
			}
		}
		for _, on := range m.DependsOn {
			edge(DependsOn, m.Name, on)
		}
		g.Nodes = append(g.Nodes, n)
	}
	for _, v := range s.Gateways {
		n := Node{ID: v.Name, Type: VPNGateway, Name: v.Name, Properties: map[string]string{}}
		if v.Peer != "" {
			n.Properties["peer"] = v.Peer
		}
		if v.Endpoint != "" {
			n.Resources = append(n.Resources, Resource{ID: v.Name + ".endpoint", Type: VPNEndpoint, Value: unlessAuto(v.Endpoint)})
		}
		if v.Address != "" {
			n.Resources = append(n.Resources, Resource{ID: v.Name + ".local", Type: VPNEndpoint, LeansOn: s.publicAddressOf(v.Address)})
			edge(DependsOn, v.Name, v.Address)
		}
		edge(Connects, v.Name, v.Network)
		g.Nodes = append(g.Nodes, n)
	}
	for _, r := range s.Routes {
		i := slices.IndexFunc(g.Nodes, func(n Node) bool { return n.ID == r.From })
		if i < 0 {
			g.Edges = append(g.Edges, Edge{Connects, r.From, r.Name}) // found by Validate
			continue
		}
		g.Nodes[i].Resources = append(g.Nodes[i].Resources, Resource{ID: r.From + "." + r.Name, Type: Route, LeansOn: s.publicAddressOf(r.From)})
		g.Nodes[i].Properties["route-"+r.Name+"-target"] = r.Target
	}
	for _, v := range s.VApps {
		g.Nodes = append(g.Nodes, Node{ID: v.Name, Type: VApp, Name: v.Name})
		for _, m := range v.Machines {
			edge(Contains, v.Name, m)
		}
	}
	if s.Edge != nil {
		g.Nodes = append(g.Nodes, edgeNode(s.Edge.Rules, s.Edge.SourcePorts))
		g.Edges = append(g.Edges, g.edgeLinks()...)
	}
	return g
}

// properties are what differs from the default, so that a network of which
// nothing is said is what it was before there was anything to say.
func (n NetworkSpec) properties() map[string]string {
	out := map[string]string{}
	if n.Isolated {
		out[propertyIsolated] = isTrue
	}
	if n.Gateway != "" {
		out[propertyGateway] = n.Gateway
	}
	if n.DHCP != "" && n.DHCP != "on" {
		out[propertyDHCP] = n.DHCP
	}
	if n.MTU != 0 {
		out[propertyMTU] = strconv.Itoa(n.MTU)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func diskItems(disks []DiskSpec) []Item {
	var out []Item
	for _, d := range disks {
		out = append(out, Item{Name: d.Name, Class: cmp.Or(d.Class, ProductionData), Kind: Disk, Size: d.Size})
	}
	return out
}

// publicOf names the public address of a machine's interface: "web.public" for
// the first, "web.public-1" for the second.
func publicOf(machine string, i int) string {
	if i == 0 {
		return machine + ".public"
	}
	return fmt.Sprintf("%s.public-%d", machine, i)
}

func (s Spec) publicAddressOf(machine string) string {
	for _, m := range s.Machines {
		for i, f := range m.Interfaces {
			if m.Name == machine && f.PublicAddress != "" {
				return publicOf(machine, i)
			}
		}
	}
	return publicOf(machine, 0)
}

func unlessAuto(v string) string {
	if strings.EqualFold(v, auto) {
		return ""
	}
	return v
}
