package kernel

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

var update = flag.Bool("update", false, "rewrite testdata; only if you understand why it changed")

// TestRules shows all rules of one network, as a person would read them.
func TestRules(t *testing.T) {
	one := sample()
	one.Segments = append(one.Segments, networks.Segment{ID: "isolated", Subnet: netip.MustParsePrefix("10.0.1.0/24"), DHCP: true,
		Ports: []networks.Port{{Machine: "m", Interface: 1, MAC: "02:00:00:00:00:02"}}})
	one.Edge.Publics[0].PortOffset = 20000
	one.Edge.Publics[0].Open = append(one.Edge.Publics[0].Open, networks.Forward{Protocol: networks.TCP, Port: 9000, Last: 9002, To: 7000})
	one.Edge.Rules = append(one.Edge.Rules, networks.Rule{Protocol: networks.TCP,
		From:  []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.7/32")},
		Ports: []networks.PortRange{{First: 5, Last: 9}, {First: 7, Last: 12}, {First: 13, Last: 13}}})
	link := netip.MustParseAddr("100.127.3.4")
	pools := []networks.Pool{
		{Public: netip.MustParsePrefix("198.51.100.0/28"), Bind: netip.MustParsePrefix("127.11.0.0/28")},
		{Public: netip.MustParsePrefix("192.0.2.0/28"), Bind: netip.MustParsePrefix("127.0.0.0/28"), PortOffset: 20000},
	}
	got := "# in the environment's namespace\n" + edgeRules(one, link) + portRules(one) +
		"\n# on the host\n" + hostRules("tombolo_region_environment", "tmb0123456789", one, link, pools)
	golden := filepath.Join("testdata", "rules.nft")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the rules are not those of %s:\n%s", golden, got)
	}
}

func TestShadowed(t *testing.T) {
	own := netip.MustParseAddr("192.0.2.9")
	n := sample()
	n.Edge.Publics = []networks.Public{{Address: own}, {Address: netip.MustParseAddr("203.0.113.1")}, {Address: own, Bind: netip.MustParseAddr("127.0.0.9")}}
	got := shadowed(n, map[netip.Addr]bool{own: true}).Edge.Publics
	if !shadowNet.Contains(got[0].Address) || got[0].Bind != own {
		t.Errorf("an address of the host's own: %+v", got[0])
	}
	if got[1].Address != n.Edge.Publics[1].Address || got[2].Address != own {
		t.Errorf("others: %+v", got[1:])
	}
	if n.Edge.Publics[0].Address != own {
		t.Error("the network that was given has changed")
	}
}
