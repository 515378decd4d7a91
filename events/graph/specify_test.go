package graph_test

import (
	"reflect"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
)

// everything uses every word that a specification has.
func everything() graph.Spec {
	return graph.Spec{
		Name:     "Everything",
		Networks: []graph.NetworkSpec{{Name: "front"}, {Name: "back", Subnet: "10.0.0.0/24", Gateway: "10.0.0.254", MTU: 1400}, {Name: "quiet", Subnet: "10.0.1.0/24", Isolated: true, DHCP: "off"}},
		Machines: []graph.MachineSpec{
			{Name: "web", Power: graph.Running, CPUs: 2, MemoryMiB: 512, DependsOn: []string{"db", "store"},
				Disks:      []graph.DiskSpec{{Name: "root", Size: 4096, Class: graph.TemplateData}, {Name: "data", Size: 8192, Class: graph.ProductionData}},
				Interfaces: []graph.InterfaceSpec{{Network: "front", PublicAddress: "auto"}, {Network: "back", Address: "10.0.0.2", PublicAddress: "auto", MAC: "52:54:00:aa:bb:cc", Open: []string{"tcp/80", "udp/53"}}}},
			{Name: "db", Power: graph.PoweredOff},
		},
		Gateways: []graph.GatewaySpec{{Name: "vpn", Network: "back", Endpoint: "auto", Address: "web", Peer: "192.0.2.1"}},
		Routes:   []graph.RouteSpec{{Name: "partner", From: "web", Target: "192.0.2.9"}},
		VApps:    []graph.VAppSpec{{Name: "tier", Machines: []string{"web", "db"}}},
		Edge: &graph.EdgeSpec{SourcePorts: "20000-29999", Rules: []events.EdgeRule{
			{Action: "allow", Protocol: "tcp", From: []string{"outside"}, To: []string{"tier"}, Ports: []string{"22", "8000-8100"}}, {Action: "deny"}}},
		Stores: []graph.DatastoreSpec{{Name: "store", Disks: []graph.DiskSpec{{Name: "files", Size: 512, Class: graph.ConfigurationData}}}},
	}
}

func TestSpecifyGivesBackWhatWasSpecified(t *testing.T) {
	want := everything()
	g := want.Graph()
	for i := range g.Nodes { // as after a save in a region
		for k := range g.Nodes[i].Resources {
			g.Nodes[i].Resources[k].Value = "198.51.100.7"
		}
		for k := range g.Nodes[i].Items {
			g.Nodes[i].Items[k].Digest = "sha256:5380613c05d62fd5ecf9a24d71b26125177cd143b9f51fbb7ae8b85e405becb2"
		}
	}
	got, lost := g.Specify("Everything")
	if len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestSpecifyNamesWhatItHasNoWordsFor(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*graph.Graph)
		path   string
	}{
		{"a node of another type", func(g *graph.Graph) {
			g.Nodes = append(g.Nodes, graph.Node{ID: "mail", Type: "mail-server", Name: "mail"})
		}, "nodes/mail"},
		{"a display name", func(g *graph.Graph) { g.Nodes[0].Name = "Front network" }, "nodes/front"},
		{"a property", func(g *graph.Graph) { g.Nodes[0].Properties = map[string]string{"vlan": "12"} }, "nodes/front"},
		{"memory that is no number", func(g *graph.Graph) {
			for i := range g.Nodes {
				if g.Nodes[i].ID == "web" {
					g.Nodes[i].Properties["memory-mib"] = "much"
				}
			}
		}, "nodes/web"},
		{"a setting", func(g *graph.Graph) {
			for i := range g.Nodes {
				if g.Nodes[i].ID == "db" {
					g.Nodes[i].Items = []graph.Item{{Name: "motto", Class: graph.ConfigurationData, Kind: graph.Setting, Value: "x"}}
				}
			}
		}, "nodes/db"},
		{"an edge", func(g *graph.Graph) {
			g.Edges = append([]graph.Edge{{Type: graph.Services, From: "db", To: "web"}}, g.Edges...)
		}, "edges/0"},
	} {
		g := everything().Graph()
		c.change(&g)
		_, lost := g.Specify("Everything")
		if len(lost) != 1 || lost[0].Path != c.path || lost[0].Code != "not-in-specification" {
			t.Errorf("%s: %v, want one finding at %s", c.name, lost, c.path)
		}
	}
}
