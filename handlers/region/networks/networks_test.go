package networks

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// sample is an environment with two routed segments and an isolated one.
func sample() Network {
	return Network{
		Environment: "shop", Owner: "order-1", Epoch: 3,
		Segments: []Segment{
			{ID: "front", Subnet: prefix("10.0.1.0/24"), Gateway: addr("10.0.1.1"), DHCP: true, DNS: true, Ports: []Port{
				{Machine: "web", Interface: 0, MAC: "02:00:00:00:00:01", Address: addr("10.0.1.10")},
				{Machine: "app", Interface: 0, MAC: "02:00:00:00:00:02", Address: addr("10.0.1.11")},
			}},
			{ID: "back", Subnet: prefix("10.0.2.0/24"), Gateway: addr("10.0.2.1"), MTU: 1400, Ports: []Port{
				{Machine: "app", Interface: 1, MAC: "02:00:00:00:00:02", Address: addr("10.0.2.11")},
				{Machine: "db", Interface: 0, MAC: "02:00:00:00:00:03"},
			}},
			{ID: "heartbeat", Subnet: prefix("10.0.3.0/30"), DHCP: true, Ports: []Port{{Machine: "db", Interface: 1, MAC: "02:00:00:00:00:04", Address: addr("10.0.3.2")}}},
			{ID: "raw", Ports: []Port{{Machine: "db", Interface: 2, MAC: "02:00:00:00:00:05"}}},
		},
		Edge: Edge{
			Publics: []Public{{Address: addr("203.0.113.5"), Bind: addr("127.10.0.5"), PortOffset: 20000, Target: addr("10.0.1.10"), Open: []Forward{
				{Protocol: TCP, Port: 80, To: 8080}, {Protocol: UDP, Port: 5000, Last: 5010, To: 6000, Target: addr("10.0.2.11")},
			}}},
			Rules:       []Rule{{Allow: false, Protocol: TCP, From: []netip.Prefix{prefix("10.0.1.0/24")}, To: []netip.Prefix{prefix("10.0.2.0/24")}, Ports: []PortRange{{22, 22}, {5000, 6000}}}},
			SourcePorts: PortRange{30000, 30100},
		},
	}
}

func TestValidate(t *testing.T) {
	if err := Validate(sample()); err != nil {
		t.Fatal(err)
	}
	front := func(n *Network) *Segment { return &n.Segments[0] }
	for name, c := range map[string]struct {
		spoil func(n *Network)
		code  Code
		says  []string
	}{
		"no environment":      {func(n *Network) { n.Environment = "" }, NetworkInvalid, nil},
		"no segment id":       {func(n *Network) { front(n).ID = "" }, NetworkInvalid, nil},
		"segment twice":       {func(n *Network) { n.Segments[1].ID = "front" }, NetworkInvalid, []string{"front"}},
		"mtu":                 {func(n *Network) { front(n).MTU = 67 }, NetworkInvalid, []string{"front", "67"}},
		"mtu too large":       {func(n *Network) { front(n).MTU = 65522 }, NetworkInvalid, []string{"65522"}},
		"IPv6 subnet":         {func(n *Network) { front(n).Subnet = prefix("fd00::/64") }, NetworkInvalid, []string{"fd00::/64"}},
		"host bits":           {func(n *Network) { front(n).Subnet = prefix("10.0.1.7/24") }, NetworkInvalid, []string{"10.0.1.7/24", "10.0.1.0/24"}},
		"no room":             {func(n *Network) { front(n).Subnet = prefix("10.0.1.0/31") }, NetworkInvalid, nil},
		"loopback subnet":     {func(n *Network) { n.Segments[2].Subnet = prefix("127.0.3.0/30") }, NetworkInvalid, []string{"127.0.0.0/8"}},
		"link-local subnet":   {func(n *Network) { n.Segments[2].Subnet = prefix("169.254.0.0/30") }, NetworkInvalid, nil},
		"gateway elsewhere":   {func(n *Network) { front(n).Gateway = addr("10.0.9.1") }, NetworkInvalid, []string{"10.0.9.1"}},
		"gateway is network":  {func(n *Network) { front(n).Gateway = addr("10.0.1.0") }, NetworkInvalid, nil},
		"gateway broadcasts":  {func(n *Network) { front(n).Gateway = addr("10.0.1.255") }, NetworkInvalid, nil},
		"DHCP without subnet": {func(n *Network) { n.Segments[3].DHCP = true }, NetworkInvalid, []string{"raw"}},
		"overlap":             {func(n *Network) { n.Segments[1].Subnet = prefix("10.0.0.0/16") }, NetworkInvalid, []string{"front", "back", "10.0.0.0/16"}},
		"no address left": {func(n *Network) {
			n.Segments[2].Ports = append(n.Segments[2].Ports, Port{Machine: "x", MAC: "02:00:00:00:00:14", Address: addr("10.0.3.1")})
		}, NetworkInvalid, []string{"heartbeat"}},
		"port twice":         {func(n *Network) { n.Segments[1].Ports[0].Interface = 0 }, NetworkInvalid, []string{"app", "front", "back"}},
		"no machine":         {func(n *Network) { front(n).Ports[0].Machine = "" }, NetworkInvalid, nil},
		"interface":          {func(n *Network) { front(n).Ports[0].Interface = -1 }, NetworkInvalid, nil},
		"no MAC":             {func(n *Network) { front(n).Ports[0].MAC = "02:00" }, NetworkInvalid, []string{"web", "02:00"}},
		"group MAC":          {func(n *Network) { front(n).Ports[0].MAC = "03:00:00:00:00:01" }, NetworkInvalid, nil},
		"zero MAC":           {func(n *Network) { front(n).Ports[0].MAC = "00:00:00:00:00:00" }, NetworkInvalid, nil},
		"MAC twice":          {func(n *Network) { front(n).Ports[1].MAC = "02-00-00-00-00-01" }, DuplicateMAC, []string{"web", "app", "front", "02:00:00:00:00:01"}},
		"MAC of the edge":    {func(n *Network) { front(n).Ports[1].MAC = "0a:7b:0a:00:01:01" }, DuplicateMAC, []string{"app", "edge"}},
		"address twice":      {func(n *Network) { front(n).Ports[1].Address = addr("10.0.1.10") }, AddressConflict, []string{"web", "app", "10.0.1.10"}},
		"gateway's address":  {func(n *Network) { front(n).Ports[1].Address = addr("10.0.1.1") }, AddressConflict, []string{"app", "gateway", "10.0.1.1"}},
		"address elsewhere":  {func(n *Network) { front(n).Ports[1].Address = addr("10.0.2.77") }, NetworkInvalid, []string{"app", "10.0.2.77"}},
		"address broadcasts": {func(n *Network) { front(n).Ports[1].Address = addr("10.0.1.255") }, NetworkInvalid, nil},
		"address in raw":     {func(n *Network) { n.Segments[3].Ports[0].Address = addr("10.0.4.1") }, NetworkInvalid, nil},
		"public IPv6":        {func(n *Network) { n.Edge.Publics[0].Address = addr("2001:db8::1") }, NetworkInvalid, nil},
		"bind IPv6":          {func(n *Network) { n.Edge.Publics[0].Bind = addr("::1") }, NetworkInvalid, []string{"::1"}},
		"public twice":       {func(n *Network) { n.Edge.Publics = append(n.Edge.Publics, n.Edge.Publics[0]) }, NetworkInvalid, []string{"203.0.113.5"}},
		"target elsewhere":   {func(n *Network) { n.Edge.Publics[0].Target = addr("10.0.3.2") }, NetworkInvalid, []string{"10.0.3.2"}},
		"target is gateway":  {func(n *Network) { n.Edge.Publics[0].Target = addr("10.0.1.1") }, NetworkInvalid, nil},
		"forward's target":   {func(n *Network) { n.Edge.Publics[0].Open[0].Target = addr("192.0.2.1") }, NetworkInvalid, []string{"192.0.2.1", "80"}},
		"forward ICMP":       {func(n *Network) { n.Edge.Publics[0].Open[0].Protocol = ICMP }, NetworkInvalid, []string{"icmp"}},
		"forward port 0":     {func(n *Network) { n.Edge.Publics[0].Open[0].Port = 0 }, NetworkInvalid, nil},
		"forward backwards":  {func(n *Network) { n.Edge.Publics[0].Open[1].Last = 4999 }, NetworkInvalid, nil},
		"forward beyond":     {func(n *Network) { n.Edge.Publics[0].Open[1].To = 65530 }, NetworkInvalid, nil},
		"offset":             {func(n *Network) { n.Edge.Publics[0].PortOffset = 65500 }, NetworkInvalid, []string{"65500"}},
		"offset below":       {func(n *Network) { n.Edge.Publics[0].PortOffset = -80 }, NetworkInvalid, nil},
		"bound twice": {func(n *Network) {
			n.Edge.Publics = append(n.Edge.Publics, Public{Address: addr("203.0.113.6"), Bind: addr("127.10.0.5"), PortOffset: 20001, Target: addr("10.0.1.11"), Open: []Forward{{Protocol: TCP, Port: 79}}})
		}, NetworkInvalid, []string{"203.0.113.5", "203.0.113.6", "127.10.0.5:20080"}},
		"source ports":  {func(n *Network) { n.Edge.SourcePorts = PortRange{5, 4} }, NetworkInvalid, nil},
		"rule protocol": {func(n *Network) { n.Edge.Rules[0].Protocol = "sctp" }, NetworkInvalid, []string{"rule 1", "sctp"}},
		"rule ICMP":     {func(n *Network) { n.Edge.Rules[0].Protocol = ICMP }, NetworkInvalid, []string{"rule 1"}},
		"rule ports":    {func(n *Network) { n.Edge.Rules[0].Ports[1].Last = 1 }, NetworkInvalid, nil},
		"rule prefix":   {func(n *Network) { n.Edge.Rules[0].To = []netip.Prefix{{}} }, NetworkInvalid, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := sample()
			c.spoil(&n)
			err := Validate(n)
			if CodeOf(err) != c.code {
				t.Fatalf("%v, want %s", err, c.code)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not name %s", err, s)
				}
			}
		})
	}
}

func TestEdgeAddress(t *testing.T) {
	s := sample().Segments
	if a := s[0].EdgeAddress(); a != addr("10.0.1.1") {
		t.Errorf("a routed segment's edge is at %s, not at its gateway", a)
	}
	if a := s[2].EdgeAddress(); a != addr("10.0.3.1") { // .2 is a port's
		t.Errorf("an isolated segment's edge is at %s", a)
	}
	if a := s[3].EdgeAddress(); a.IsValid() {
		t.Errorf("a segment without a subnet has the edge at %s", a)
	}
	s[2].DHCP = false
	if a := s[2].EdgeAddress(); a.IsValid() {
		t.Errorf("an isolated segment without services has the edge at %s", a)
	}
}

func TestDiff(t *testing.T) {
	none := Network{Environment: "shop"}
	want := `+ segment back: 10.0.2.0/24, gateway 10.0.2.1, mtu 1400
+ segment front: 10.0.1.0/24, gateway 10.0.1.1, dhcp, dns, mtu 1500
+ segment heartbeat: 10.0.3.0/30, isolated, dhcp, mtu 1500
+ segment raw: frames only, mtu 1500
+ port app/0: in front, 02:00:00:00:00:02, 10.0.1.11
+ port app/1: in back, 02:00:00:00:00:02, 10.0.2.11
+ port db/0: in back, 02:00:00:00:00:03
+ port db/1: in heartbeat, 02:00:00:00:00:04, 10.0.3.2
+ port db/2: in raw, 02:00:00:00:00:05
+ port web/0: in front, 02:00:00:00:00:01, 10.0.1.10
+ public 203.0.113.5: to 10.0.1.10, bound to 127.10.0.5, ports +20000
+ forward 203.0.113.5 tcp/80: to 10.0.1.10 port 8080
+ forward 203.0.113.5 udp/5000: to 5010, to 10.0.2.11 port 6000 and those after it
+ source-ports: 30000-30100
+ rule 1: refuse tcp from 10.0.1.0/24 to 10.0.2.0/24 port 22,5000-6000
`
	if got := lines(Diff(none, sample())); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	same := sample()
	slices.Reverse(same.Segments)
	same.Segments[3].MTU, same.Segments[3].Ports[0].MAC = 1500, "02-00-00-00-00-01"
	same.Edge.Publics[0].Open[1].Port, same.Owner, same.Epoch = 5000, "another", 9
	if d := Diff(sample(), same); len(d) != 0 {
		t.Errorf("the same in other words differs:\n%s", lines(d))
	}
	other := sample()
	other.Segments[0].DHCP = false
	other.Segments[0].Ports[1].Address = addr("10.0.1.12")
	other.Edge.Rules = append([]Rule{{Allow: true, Protocol: ICMP}}, other.Edge.Rules...)
	other.Edge.Publics[0].Open = other.Edge.Publics[0].Open[:1]
	want = `~ segment front: 10.0.1.0/24, gateway 10.0.1.1, dhcp, dns, mtu 1500 -> 10.0.1.0/24, gateway 10.0.1.1, dns, mtu 1500
~ port app/0: in front, 02:00:00:00:00:02, 10.0.1.11 -> in front, 02:00:00:00:00:02, 10.0.1.12
- forward 203.0.113.5 udp/5000: to 5010, to 10.0.2.11 port 6000 and those after it
+ rule 1: allow icmp
`
	if got := lines(Diff(sample(), other)); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func lines(changes []Change) string {
	var out strings.Builder
	for _, c := range changes {
		out.WriteString(c.String() + "\n")
	}
	return out.String()
}

func TestDiffReversed(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	some := func() Network {
		n := sample()
		n.Segments = n.Segments[random.IntN(3):]
		n.Segments[0].Ports = n.Segments[0].Ports[random.IntN(len(n.Segments[0].Ports)):]
		n.Edge.Rules = nil
		for range random.IntN(8) {
			n.Edge.Rules = append(n.Edge.Rules, Rule{Allow: random.IntN(2) == 0, Protocol: []Protocol{TCP, UDP, ICMP}[random.IntN(3)]})
		}
		n.Edge.SourcePorts.Last += uint16(random.IntN(2))
		return n
	}
	for range 2000 {
		a, b := some(), some()
		there, back := Diff(a, b), Diff(b, a)
		for i := range there {
			there[i] = there[i].Reverse()
		}
		if !slices.Equal(there, back) {
			t.Fatalf("there\n%sand back\n%s", lines(there), lines(back))
		}
	}
}

func TestDecide(t *testing.T) {
	rules := []Rule{
		{Allow: true, Protocol: TCP, To: []netip.Prefix{prefix("10.0.2.0/24")}, Ports: []PortRange{{80, 81}, {443, 443}}},
		{Allow: false, From: []netip.Prefix{prefix("10.0.1.0/24")}, To: []netip.Prefix{prefix("10.0.2.0/24"), prefix("10.0.3.0/24")}},
		{Allow: false, Ports: []PortRange{{25, 25}}},
	}
	for _, c := range []struct {
		protocol Protocol
		from, to string
		want     bool
	}{
		{TCP, "10.0.1.5", "10.0.2.5:80", true},
		{TCP, "10.0.1.5", "10.0.2.5:81", true},
		{TCP, "10.0.1.5", "10.0.2.5:443", true},
		{TCP, "10.0.1.5", "10.0.2.5:82", false},
		{UDP, "10.0.1.5", "10.0.2.5:80", false},
		{ICMP, "10.0.1.5", "10.0.3.5:0", false},
		{ICMP, "10.0.9.5", "10.0.3.5:25", true}, // it has no ports
		{UDP, "10.0.9.5", "10.0.3.5:25", false},
		{UDP, "10.0.9.5", "10.0.3.5:26", true},
	} {
		if got := Decide(rules, c.protocol, addr(c.from), netip.MustParseAddrPort(c.to), true); got != c.want {
			t.Errorf("%s from %s to %s: %v", c.protocol, c.from, c.to, got)
		}
	}
	if Decide(nil, TCP, addr("10.0.1.5"), netip.MustParseAddrPort("10.0.2.5:80"), false) {
		t.Error("no rule, and not what the caller says")
	}
}

func TestPool(t *testing.T) {
	p := Pool{Public: prefix("203.0.113.0/28"), Bind: prefix("127.10.0.16/28"), PortOffset: 20000}
	if a, ok := p.Bound(addr("203.0.113.5")); !ok || a != addr("127.10.0.21") {
		t.Errorf("bound at %s, %v", a, ok)
	}
	if a, ok := p.Published(addr("127.10.0.21")); !ok || a != addr("203.0.113.5") {
		t.Errorf("published as %s, %v", a, ok)
	}
	if _, ok := p.Bound(addr("203.0.113.16")); ok {
		t.Error("an address outside of the pool is bound")
	}
	small := Pool{Public: prefix("203.0.113.0/28"), Bind: prefix("127.10.0.0/30")}
	if a, ok := small.Bound(addr("203.0.113.5")); ok {
		t.Errorf("bound at %s, outside of what the pool is bound to", a)
	}
	same := Pool{Public: prefix("203.0.113.0/28")}
	if a, ok := same.Bound(addr("203.0.113.5")); !ok || a != addr("203.0.113.5") {
		t.Errorf("bound at %s, %v", a, ok)
	}
}
