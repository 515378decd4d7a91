package graph_test

import (
	"reflect"
	"slices"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
)

func TestWithEdgeReplacesAllThatWasSet(t *testing.T) {
	g := shop().Graph()
	before := g.Edge()
	set := events.EdgeSet{Rules: []events.EdgeRule{{Action: "deny", From: []string{"web"}}, {Action: "allow"}}, Open: []events.EdgeOpening{{Resource: "web.public", Ports: []string{"tcp/443"}}}}
	after := g.WithEdge(set)
	if got := after.Edge(); !reflect.DeepEqual(got, graph.EdgeState{Rules: set.Rules, Open: set.Open}) {
		t.Errorf("%+v", got)
	}
	if !reflect.DeepEqual(g, shop().Graph()) {
		t.Error("the graph that it was made from has changed")
	}
	if wrong := after.Validate(); len(wrong) > 0 {
		t.Error(wrong)
	}
	back := after.WithEdge(events.EdgeSet{Rules: before.Rules, SourcePorts: before.SourcePorts, Open: before.Open})
	if !reflect.DeepEqual(back, g) {
		t.Errorf("there and back again is %+v", back)
	}
	if none := g.WithEdge(events.EdgeSet{}).Edge(); len(none.Rules) > 0 || none.SourcePorts != "" || !reflect.DeepEqual(none.Open, []events.EdgeOpening{{Resource: "web.public", Ports: []string{}}}) {
		t.Errorf("%+v", none)
	}
}

func TestWithEdgeMakesTheEdgesNode(t *testing.T) {
	s := shop()
	edge := s.Edge
	s.Edge = nil
	bare := s.Graph()
	if !reflect.DeepEqual(bare.WithEdge(events.EdgeSet{Open: bare.Edge().Open}), bare) {
		t.Error("an edge of which nothing is said has become a node")
	}
	if got := bare.WithEdge(events.EdgeSet{Rules: edge.Rules, SourcePorts: edge.SourcePorts, Open: bare.Edge().Open}); !reflect.DeepEqual(got, shop().Graph()) {
		t.Errorf("%+v", got)
	}
}

func TestCheckEdge(t *testing.T) {
	open := shop().Graph().Edge().Open
	codes := func(g graph.Graph, set events.EdgeSet) []string {
		out := []string{}
		for _, f := range g.CheckEdge(set) {
			out = append(out, f.Code)
		}
		return out
	}
	for _, c := range []struct {
		set  events.EdgeSet
		want []string
	}{
		{events.EdgeSet{Open: open}, []string{}},
		{events.EdgeSet{Open: []events.EdgeOpening{{Resource: "db.public", Ports: []string{"tcp/80"}}}}, []string{"unknown-resource"}},
		{events.EdgeSet{Open: []events.EdgeOpening{{Resource: "web.public", Ports: []string{"tcp/80", "tcp/80:90"}}}}, []string{"open-conflict"}},
		{events.EdgeSet{Rules: []events.EdgeRule{{Action: "allow", To: []string{"nobody"}}}}, []string{"unknown-name"}},
	} {
		if got := codes(shop().Graph(), c.set); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.set, got, c.want)
		}
	}
	s := shop()
	s.Edge, s.Machines = nil, append(s.Machines, graph.MachineSpec{Name: graph.EdgeID})
	if got := codes(s.Graph(), events.EdgeSet{Rules: []events.EdgeRule{{Action: "deny"}}}); !slices.Equal(got, []string{"edge-name-taken"}) {
		t.Error(got)
	}
}

func TestDiffEdges(t *testing.T) {
	a, b, c := events.EdgeRule{Action: "allow", Protocol: "tcp", To: []string{"web"}, Ports: []string{"22"}}, events.EdgeRule{Action: "deny"}, events.EdgeRule{Action: "allow", From: []string{"db"}}
	old := graph.EdgeState{Rules: []events.EdgeRule{a, b}, SourcePorts: "1-2", Open: []events.EdgeOpening{{Resource: "web.public", Ports: []string{"tcp/80", "tcp/81"}}}}
	next := graph.EdgeState{Rules: []events.EdgeRule{c, a}, Open: []events.EdgeOpening{{Resource: "web.public", Ports: []string{"tcp/80"}}, {Resource: "db.public", Ports: []string{"udp/53"}}}}
	want := []graph.EdgeChange{{Change: "-", What: "rule 2", Text: "deny"}, {Change: "+", What: "rule 1", Text: "allow from db"}, {Change: "-", What: "open web.public", Text: "tcp/81"},
		{Change: "+", What: "open db.public", Text: "udp/53"}, {Change: "-", What: "source ports", Text: "1-2"}}
	if got := graph.DiffEdges(old, next); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := graph.DiffEdges(old, old); got != nil {
		t.Errorf("%+v", got)
	}
	if got := graph.RuleText(a); got != "allow tcp to web ports 22" {
		t.Error(got)
	}
}

func TestMemoryOfSuspendedMachines(t *testing.T) {
	digest := events.DigestOf([]byte("x"))
	g := graph.Graph{Nodes: []graph.Node{{ID: "vm", Type: graph.Machine, Name: "vm", Power: graph.Suspended,
		Properties: map[string]string{"memory-mib": "64", graph.PropertyMemoryAccelerator: "tcg", graph.PropertyMemoryMachine: "pc-q35-7.2", graph.PropertyMemoryCPU: "qemu64", graph.PropertyMemoryEmulator: "7.2"},
		Items: []graph.Item{{Name: "root", Class: graph.ProductionData, Kind: graph.Disk, Size: 512},
			{Name: graph.MemoryRAM, Class: graph.ConfigurationData, Kind: graph.Memory, Size: 64 << 20, Digest: digest},
			{Name: graph.MemoryDevices, Class: graph.ConfigurationData, Kind: graph.Memory, Size: 777, Digest: digest}}}}}
	if wrong := g.Validate(); len(wrong) > 0 {
		t.Fatal(wrong)
	}
	if len(g.Disks()) != 1 || len(g.Stored()) != 3 || (graph.Manifest{Graph: g}).Bytes() != 512+64<<20+777 {
		t.Errorf("%v %v", g.Disks(), g.Stored())
	}
	bare, lost := g.WithoutMemory()
	want := graph.Node{ID: "vm", Type: graph.Machine, Name: "vm", Power: graph.PoweredOff, Properties: map[string]string{"memory-mib": "64"}, Items: g.Nodes[0].Items[:1]}
	if len(lost) != 1 || !reflect.DeepEqual(bare.Nodes[0], want) || len(g.Stored()) != 3 {
		t.Errorf("%v %+v", lost, bare)
	}
	g.Nodes[0].Items[1].Class, g.Nodes[0].Items[2].Size = graph.ProductionData, 0
	if wrong := g.Validate(); len(wrong) != 2 || wrong[0].Code != "bad-size" || wrong[1].Code != "bad-memory" {
		t.Error(wrong)
	}
}

func TestMachinesOfAVApp(t *testing.T) {
	s := shop()
	s.VApps = append(s.VApps, graph.VAppSpec{Name: "all", Machines: []string{"tier"}})
	if got := s.Graph().Machines("all"); !slices.Equal(got, []string{"web", "db"}) {
		t.Error(got)
	}
	if got := s.Graph().Machines("nobody"); got != nil {
		t.Error(got)
	}
}
