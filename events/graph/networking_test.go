package graph_test

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
)

// shop is a web machine before a database, in a vApp, with a network of their own.
func shop() graph.Spec {
	return graph.Spec{
		Name:     "Shop",
		Networks: []graph.NetworkSpec{{Name: "front", Subnet: "10.0.0.0/24"}, {Name: "back", Subnet: "10.0.1.0/24", Isolated: true}, {Name: "wire"}},
		Machines: []graph.MachineSpec{
			{Name: "web", Interfaces: []graph.InterfaceSpec{{Network: "front", PublicAddress: "auto", Open: []string{"tcp/80:8080", "udp/2000-2010"}}, {Network: "back", Address: "10.0.1.2"}}},
			{Name: "db", Interfaces: []graph.InterfaceSpec{{Network: "back"}, {Network: "wire", MAC: "02:00:00:00:00:01"}, {Network: "front", Address: "10.0.0.2"}}},
		},
		VApps: []graph.VAppSpec{{Name: "tier", Machines: []string{"web", "db"}}},
		Edge:  &graph.EdgeSpec{SourcePorts: "20000-29999", Rules: []events.EdgeRule{{Action: "deny", Protocol: "tcp", From: []string{"outside"}, To: []string{"tier"}, Ports: []string{"22", "80-90"}}}},
	}
}

func TestNetworkingLeavesNothingToChoose(t *testing.T) {
	n, wrong := shop().Graph().Networking()
	if len(wrong) > 0 {
		t.Fatal(wrong)
	}
	front, back, wire := n.Segments[0], n.Segments[1], n.Segments[2]
	if front.Gateway != netip.MustParseAddr("10.0.0.1") || !front.DHCP || front.Isolated || !back.Isolated || wire.DHCP || wire.Subnet.IsValid() {
		t.Errorf("%+v", n.Segments)
	}
	var got []string
	for _, f := range append(n.Of("web"), n.Of("db")...) {
		address := "-"
		if f.Address.IsValid() {
			address = f.Address.String()
		}
		if !strings.HasPrefix(f.MAC, "52:54:00:") && f.MAC != "02:00:00:00:00:01" {
			t.Errorf("%+v", f)
		}
		got = append(got, f.Machine+" "+f.Network+" "+address)
	}
	// db has the address after the gateway's by name, so web gets the next; .2 of back is web's by name, so db gets .3.
	if want := []string{"web front 10.0.0.3", "web back 10.0.1.2", "db back 10.0.1.3", "db wire -", "db front 10.0.0.2"}; !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	want := []graph.Public{{Resource: "web.public", Machine: "web", Target: netip.MustParseAddr("10.0.0.3"),
		Open: []graph.Opening{{Protocol: "tcp", Port: 80, Last: 80, To: 8080}, {Protocol: "udp", Port: 2000, Last: 2010, To: 2000}}}}
	if !reflect.DeepEqual(n.Publics, want) {
		t.Errorf("%+v", n.Publics)
	}
	again, _ := shop().Graph().Networking()
	if !reflect.DeepEqual(n, again) {
		t.Error("the same graph means another network")
	}
}

func TestRulesAreResolvedToAddresses(t *testing.T) {
	n, _ := shop().Graph().Networking()
	if len(n.Rules) != 1 || n.SourcePorts != (graph.PortRange{First: 20000, Last: 29999}) {
		t.Fatalf("%+v", n)
	}
	r := n.Rules[0]
	within := func(all []netip.Prefix, address string) bool {
		return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(address)) })
	}
	for address, is := range map[string]bool{"0.0.0.0": true, "9.255.255.255": true, "10.0.0.0": false, "10.0.0.77": false, "10.0.0.255": false,
		"10.0.1.0": true, "127.0.0.1": true, "203.0.113.9": true, "255.255.255.255": true} {
		if within(r.From, address) != is {
			t.Errorf("outside has %s: %v", address, !is)
		}
	}
	for i, p := range r.From {
		for _, q := range r.From[i+1:] {
			if p.Overlaps(q) {
				t.Errorf("%s and %s overlap", p, q)
			}
		}
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("10.0.0.3/32")}; !slices.Equal(r.To, want) || r.Allow {
		t.Errorf("%+v, want %v: the isolated addresses do not cross the edge", r, want)
	}
	if want := []graph.PortRange{{First: 22, Last: 22}, {First: 80, Last: 90}}; !slices.Equal(r.Ports, want) {
		t.Errorf("%v", r.Ports)
	}
}

func TestValidateFindsWhatIsWrongWithNetworks(t *testing.T) {
	first := func(s *graph.Spec) *graph.InterfaceSpec { return &s.Machines[0].Interfaces[0] }
	rule := func(r events.EdgeRule) func(*graph.Spec) {
		return func(s *graph.Spec) { s.Edge.Rules = append(s.Edge.Rules, r) }
	}
	for _, c := range []struct {
		code   string
		change func(s *graph.Spec)
	}{
		{"address-outside-subnet", func(s *graph.Spec) { first(s).Address = "10.9.0.1" }},
		{"address-outside-subnet", func(s *graph.Spec) { first(s).Address = "10.0.0.255" }},
		{"address-outside-subnet", func(s *graph.Spec) { first(s).Address = "10.0.0.0" }},
		{"address-outside-subnet", func(s *graph.Spec) { first(s).Address = "fd00::1" }},
		{"bad-address", func(s *graph.Spec) { first(s).Address = "here" }},
		{"address-conflict", func(s *graph.Spec) { first(s).Address = "10.0.0.2" }},
		{"address-conflict", func(s *graph.Spec) { first(s).Address = "10.0.0.1" }},
		{"duplicate-mac", func(s *graph.Spec) {
			first(s).MAC, s.Machines[1].Interfaces[2].MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0A"
		}},
		{"bad-mac", func(s *graph.Spec) { first(s).MAC = "03:00:00:00:00:01" }},
		{"bad-mac", func(s *graph.Spec) { first(s).MAC = "00:00:00:00:00:00" }},
		{"bad-mac", func(s *graph.Spec) { first(s).MAC = "02:00:00:00:00:00:00:01" }},
		{"bad-mac", func(s *graph.Spec) { first(s).MAC = "none" }},
		{"subnet-invalid", func(s *graph.Spec) { s.Networks[1].Subnet = "10.0.1.0/31" }},
		{"subnet-invalid", func(s *graph.Spec) { s.Networks[1].Subnet = "10.0.1" }},
		{"subnet-invalid", func(s *graph.Spec) { s.Networks[1].Subnet = "127.0.0.0/24" }},
		{"subnet-ipv6", func(s *graph.Spec) { s.Networks[1].Subnet = "fd00::/64" }},
		{"subnets-overlap", func(s *graph.Spec) {
			s.Networks = append(s.Networks, graph.NetworkSpec{Name: "third", Subnet: "10.0.0.128/25"})
		}},
		{"gateway-outside-subnet", func(s *graph.Spec) { s.Networks[0].Gateway = "10.0.2.1" }},
		{"gateway-without-subnet", func(s *graph.Spec) { s.Networks[2].Gateway = "10.0.2.1" }},
		{"bad-mtu", func(s *graph.Spec) { s.Networks[0].MTU = 100 }},
		{"bad-network", func(s *graph.Spec) { s.Networks[0].DHCP = "perhaps" }},
		{"open-without-public-address", func(s *graph.Spec) { s.Machines[1].Interfaces[2].Open = []string{"tcp/80"} }},
		{"public-address-unreachable", func(s *graph.Spec) { s.Machines[1].Interfaces[0].PublicAddress = "auto" }},
		{"public-address-unreachable", func(s *graph.Spec) { s.Machines[1].Interfaces[1].PublicAddress = "auto" }},
		{"bad-open", func(s *graph.Spec) { first(s).Open = []string{"80"} }},
		{"bad-open", func(s *graph.Spec) { first(s).Open = []string{"tcp/0"} }},
		{"bad-open", func(s *graph.Spec) { first(s).Open = []string{"tcp/70000"} }},
		{"bad-open", func(s *graph.Spec) { first(s).Open = []string{"tcp/10-20:65530"} }},
		{"open-conflict", func(s *graph.Spec) { first(s).Open = []string{"tcp/80", "tcp/70-90"} }},
		{"too-many-ports", func(s *graph.Spec) { first(s).Open = []string{"tcp/1-65535"} }},
		{"unknown-name", rule(events.EdgeRule{Action: "allow", To: []string{"mail"}})},
		{"rule-without-address", rule(events.EdgeRule{Action: "allow", To: []string{"back"}})},
		{"bad-rule", rule(events.EdgeRule{Action: "perhaps"})},
		{"bad-rule", rule(events.EdgeRule{Action: "allow", Protocol: "esp"})},
		{"bad-rule", rule(events.EdgeRule{Action: "allow", Ports: []string{"22"}})},
		{"bad-rule", rule(events.EdgeRule{Action: "allow", Protocol: "tcp", Ports: []string{"22-20"}})},
		{"bad-rule", rule(events.EdgeRule{Action: "allow", From: []string{"fd00::/8"}})},
		{"bad-source-ports", func(s *graph.Spec) { s.Edge.SourcePorts = "all" }},
		{"too-many-rules", func(s *graph.Spec) { s.Edge.Rules = make([]events.EdgeRule, graph.MaxRules+1) }},
		{"reserved-name", func(s *graph.Spec) { s.Machines = append(s.Machines, graph.MachineSpec{Name: "outside"}) }},
		{"duplicate-name", func(s *graph.Spec) { s.Machines = append(s.Machines, graph.MachineSpec{Name: graph.EdgeID}) }},
		{"unknown-network", func(s *graph.Spec) { s.Machines[1].Interfaces[0].Network = "web" }},
		{"subnet-full", func(s *graph.Spec) {
			s.Networks[1].Subnet, s.Networks[1].Gateway, s.Machines[0].Interfaces[1].Address = "10.0.1.0/30", "10.0.1.2", "10.0.1.1"
		}},
		{"bad-hardware", func(s *graph.Spec) { s.Machines[0].MemoryMiB = graph.MaxMemoryMiB + 1 }},
	} {
		s := shop()
		c.change(&s)
		var codes []string
		for _, f := range s.Graph().Validate() {
			codes = append(codes, f.Code)
			if f.Text == "" || f.Path == "" {
				t.Errorf("%+v", f)
			}
		}
		if !slices.Equal(codes, []string{c.code}) {
			t.Errorf("%s: found %v", c.code, codes)
		}
	}
}

// What is wrong is all said, and what is right is planned all the same.
func TestFindingsDoNotHideEachOther(t *testing.T) {
	s := shop()
	s.Networks[0].MTU, s.Machines[0].Interfaces[1].MAC, s.Edge.SourcePorts = 1, "x", "y"
	n, wrong := s.Graph().Networking()
	if len(wrong) != 3 || len(n.Segments) != 3 || len(n.Of("web")) != 2 || len(n.Rules) != 1 {
		t.Errorf("%v\n%+v", wrong, n)
	}
}

// A graph of which nothing new is said is, byte for byte, what it was.
func TestGraphsOfBeforeKeepTheirDigests(t *testing.T) {
	s := graph.Spec{Name: "old", Networks: []graph.NetworkSpec{{Name: "lan", Subnet: "10.0.0.0/24"}},
		Machines: []graph.MachineSpec{{Name: "web", Interfaces: []graph.InterfaceSpec{{Network: "lan", Address: "10.0.0.9", PublicAddress: "auto"}}}}}
	b, err := json.Marshal(s.Graph())
	const want = `{"nodes":[{"id":"lan","type":"network","name":"lan"},{"id":"lan-subnet","type":"subnet","name":"10.0.0.0/24","properties":{"cidr":"10.0.0.0/24"}},` +
		`{"id":"web","type":"machine","name":"web","power":"running","properties":{"interface-0-address":"10.0.0.9","interface-0-network":"lan"},` +
		`"resources":[{"id":"web.public","type":"public-address"}]}],"edges":[{"type":"contains","from":"lan","to":"lan-subnet"},{"type":"connects","from":"web","to":"lan"}]}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
}

func TestDerivedMACsAreNobodyElses(t *testing.T) {
	n, _ := shop().Graph().Networking()
	s := shop()
	s.Machines[1].Interfaces[1].MAC = n.Of("web")[0].MAC // db takes by name what web would have
	after, wrong := s.Graph().Networking()
	if len(wrong) > 0 || after.Of("web")[0].MAC == n.Of("web")[0].MAC || after.Of("web")[1].MAC != n.Of("web")[1].MAC {
		t.Errorf("%v: %+v", wrong, after.Of("web"))
	}
}

func TestMachinesThatAreOnlyConnected(t *testing.T) {
	g := graph.Graph{Nodes: []graph.Node{{ID: "lan", Type: graph.Network, Name: "lan"}, {ID: "vm", Type: graph.Machine, Name: "vm", Power: graph.Running}},
		Edges: []graph.Edge{{Type: graph.Connects, From: "vm", To: "lan"}}}
	n, wrong := g.Networking()
	if len(wrong) > 0 || len(n.Of("vm")) != 1 || n.Of("vm")[0].Network != "lan" {
		t.Errorf("%v %+v", wrong, n)
	}
}
