package kernel

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// station is a network namespace with one interface: another host, or a machine.
type station struct {
	t  testing.TB
	ns netns.NsHandle
}

// newStation makes one that is reached by a link of that name, which is in `in`.
func newStation(t testing.TB, in netns.NsHandle, name, address, gateway string) *station {
	t.Helper()
	s := &station{t: t}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(onThread(func() (err error) { s.ns, err = netns.New(); return err }))
	t.Cleanup(func() { s.ns.Close() })
	outer, err := netlink.NewHandleAt(in)
	must(err)
	defer outer.Close()
	inner, err := netlink.NewHandleAt(s.ns)
	must(err)
	defer inner.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	must(outer.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.ns)}))
	link, err := outer.LinkByName(name)
	must(err)
	t.Cleanup(func() {
		if h, err := netlink.NewHandleAt(in); err == nil {
			_ = deleteLink(h, name)
			h.Close()
		}
	})
	must(outer.LinkSetUp(link))
	eth, err := inner.LinkByName("eth0")
	must(err)
	must(inner.LinkSetUp(eth))
	must(inner.AddrAdd(eth, &netlink.Addr{IPNet: netOf(netip.MustParsePrefix(address))}))
	must(inner.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: netip.MustParseAddr(gateway).AsSlice()}))
	return s
}

// sayWho listens, and tells everybody who they are.
func (s *station) sayWho(port int) {
	s.t.Helper()
	var l net.Listener
	if err := inside(s.ns, func() (err error) { l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port)); return err }); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
}

// seenAs connects, and gives the address that the other side sees.
func (s *station) seenAs(to string) (string, error) {
	var out []byte
	err := inside(s.ns, func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		defer cancel()
		c, err := new(net.Dialer).DialContext(ctx, "tcp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		out, err = io.ReadAll(c)
		return err
	})
	host, _, _ := strings.Cut(string(out), ":")
	return host, err
}

// TestOutside has a client on another host: it reaches machines where their public addresses are bound, is seen as itself,
// and sees machines as what they are bound to.
func TestOutside(t *testing.T) {
	needRoot(t)
	host, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	client := newStation(t, host, "outside0", "198.18.77.2/30", "198.18.77.1")
	link, err := netlink.LinkByName("outside0")
	if err != nil {
		t.Fatal(err)
	}
	// What the host's owner sets up: an address, and forwarding.
	if err := setAddresses(&netlink.Handle{}, link, []netip.Prefix{netip.MustParsePrefix("198.18.77.1/30")}); err != nil {
		t.Fatal(err)
	}
	if err := sysctl("ipv4/conf/outside0/forwarding 1"); err != nil {
		t.Fatal(err)
	}
	n := networks.Network{Environment: "outside", Owner: "test", Epoch: 1, Segments: []networks.Segment{
		{ID: "front", Subnet: netip.MustParsePrefix("10.66.0.0/24"), Gateway: netip.MustParseAddr("10.66.0.1")}}}
	own, web, app := netip.MustParseAddr("198.18.77.1"), netip.MustParseAddr("10.66.0.10"), netip.MustParseAddr("10.66.0.11")
	open := func(ports ...uint16) (out []networks.Forward) {
		for _, p := range ports {
			out = append(out, networks.Forward{Protocol: networks.TCP, Port: p, To: 80})
		}
		return out
	}
	n.Edge.Publics = []networks.Public{
		{Address: netip.MustParseAddr("203.0.113.210"), Bind: own, PortOffset: 1000, Target: web, Open: open(80)},
		{Address: netip.MustParseAddr("203.0.113.211"), Target: app, Open: open(80)},
		{Address: own, Target: web, Open: open(81)},
	}
	s, err := New(Config{Dir: t.TempDir(), Routed: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	t.Cleanup(func() { _ = s.unmake(context.Background(), s.place("outside")) })
	if err := s.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	edge, err := openNamespace(s.place("outside").path())
	if err != nil {
		t.Fatal(err)
	}
	defer edge.Close()
	inner, err := netlink.NewHandleAt(edge, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	bridge, err := inner.LinkByName(bridgeName("front"))
	if err != nil {
		t.Fatal(err)
	}
	machines := map[string]*station{}
	for name, address := range map[string]netip.Addr{"web": web, "app": app} {
		m := newStation(t, edge, name, netip.PrefixFrom(address, 24).String(), "10.66.0.1")
		port, err := inner.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := inner.LinkSetMaster(port, bridge); err != nil {
			t.Fatal(err)
		}
		m.sayWho(80)
		machines[name] = m
	}
	client.sayWho(7000)
	for to, want := range map[string]string{
		"198.18.77.1:1080": "198.18.77.2", // bound elsewhere, with an offset
		"203.0.113.211:80": "198.18.77.2", // routed to this host
		"198.18.77.1:81":   "198.18.77.2", // bound as itself, an address of the host
	} {
		if got, err := client.seenAs(to); err != nil || got != want {
			t.Errorf("the client at %s is seen as %q, want %s: %v", to, got, want, err)
		}
	}
	for name, want := range map[string]string{"web": "198.18.77.1", "app": "203.0.113.211"} {
		if got, err := machines[name].seenAs("198.18.77.2:7000"); err != nil || got != want {
			t.Errorf("%s is seen as %q, want %s: %v", name, got, want, err)
		}
	}
	for _, closed := range []string{"198.18.77.1:80", "198.18.77.1:1081", "203.0.113.211:81"} {
		if got, err := client.seenAs(closed); err == nil {
			t.Errorf("%s is open: %s", closed, got)
		}
	}
	// Without Routed an address that is not the host's cannot be bound, and nothing changes.
	s.cfg.Routed = false
	fewer := n
	fewer.Segments = nil
	fewer.Edge.Publics = nil
	before, err := s.Network(t.Context(), "outside")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), n); networks.CodeOf(err) != networks.BindFailed {
		t.Errorf("an address that is not the host's: %v", err)
	}
	after, err := s.Network(t.Context(), "outside")
	if d := networks.Diff(before, after); err != nil || len(d) > 0 {
		t.Errorf("a refused network changed %v, %v", d, err)
	}
	if err := s.Apply(t.Context(), fewer); err != nil {
		t.Fatal(err)
	}
	if got, err := client.seenAs("198.18.77.1:1080"); err == nil {
		t.Errorf("after all was taken away the client is still seen, as %s", got)
	}
}

// BenchmarkStream sends from one station to another within a segment, and to the host through the edge.
func BenchmarkStream(b *testing.B) {
	needRoot(b)
	n := sample()
	n.Environment, n.Epoch, n.Edge, n.Segments[0].Ports = "bench", 1, networks.Edge{}, nil
	s, err := New(Config{Dir: b.TempDir(), Pools: []networks.Pool{{Public: netip.MustParsePrefix("198.51.100.0/28"), Bind: netip.MustParsePrefix("127.97.0.0/28")}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.unmake(context.Background(), s.place("bench")); s.Close() })
	if err := s.Apply(b.Context(), n); err != nil {
		b.Fatal(err)
	}
	edge, err := openNamespace(s.place("bench").path())
	if err != nil {
		b.Fatal(err)
	}
	defer edge.Close()
	inner, err := netlink.NewHandleAt(edge, unix.NETLINK_ROUTE)
	if err != nil {
		b.Fatal(err)
	}
	defer inner.Close()
	bridge, err := inner.LinkByName(bridgeName("s"))
	if err != nil {
		b.Fatal(err)
	}
	machine := func(name, address string) *station {
		m := newStation(b, edge, name, address, "10.0.0.1")
		port, err := inner.LinkByName(name)
		if err == nil {
			err = inner.LinkSetMaster(port, bridge)
		}
		if err != nil {
			b.Fatal(err)
		}
		return m
	}
	from, to := machine("from", "10.0.0.2/24"), machine("to", "10.0.0.3/24")
	host, err := netns.Get()
	if err != nil {
		b.Fatal(err)
	}
	defer host.Close()
	for name, at := range map[string]struct {
		in              netns.NsHandle
		listen, connect string
	}{"segment": {to.ns, "10.0.0.3:9000", "10.0.0.3:9000"}, "edge": {host, "127.97.0.1:9000", "198.51.100.1:9000"}} {
		b.Run(name, func(b *testing.B) {
			var l net.Listener
			if err := inside(at.in, func() (err error) { l, err = net.Listen("tcp4", at.listen); return err }); err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			ended := make(chan error, 1)
			go func() {
				c, err := l.Accept()
				if err == nil {
					_, err = io.Copy(io.Discard, c)
				}
				ended <- err
			}()
			var c net.Conn
			if err := inside(from.ns, func() (err error) { c, err = net.Dial("tcp4", at.connect); return err }); err != nil {
				b.Fatal(err)
			}
			block := make([]byte, 1<<20)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if _, err := c.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			c.Close()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
		})
	}
}
