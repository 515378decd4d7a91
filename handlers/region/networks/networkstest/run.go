// Package networkstest says, for every substrate alike, what the port to networks promises: Run tries it with machines that
// speak real protocols over frames, and with clients and servers on the host.
package networkstest

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// Options are what a substrate of the suite must be made with.
type Options struct {
	Dir       string           // its own; short
	Resolvers []netip.AddrPort // whom it asks for names of the world
	Pools     []networks.Pool  // of all regions
	UDPIdle   time.Duration    // after which a flow of datagrams is forgotten; 0: as it likes
}

// Harness makes the substrates that are tried.
type Harness struct {
	// Open makes a substrate, or the one of the same folder again after Close.
	Open func(o Options) (networks.Substrate, error)
	// Alone: public addresses are the whole host's, so that one case runs at a time.
	Alone bool
}

// Run tries everything that the substrate says it can do.
func Run(t *testing.T, make func(t *testing.T) Harness) {
	for i, c := range cases() {
		t.Run(c.name, func(t *testing.T) {
			h := make(t)
			if !h.Alone {
				t.Parallel()
			}
			w := newWorld(t, h, i)
			if c.options != nil {
				c.options(&w.options)
			}
			w.start()
			if c.needs != nil && !c.needs(w.can) {
				t.Logf("%s cannot do this, and says so", w.can.Name)
				return
			}
			c.run(w)
		})
	}
}

type testCase struct {
	name    string
	needs   func(networks.Capabilities) bool // nil: nothing in particular
	options func(*Options)                   // nil: the usual ones
	run     func(w *world)
}

func cases() []testCase {
	return slices.Concat(segmentCases(), serviceCases(), edgeCases(), ruleCases(), changeCases())
}

// world is one substrate, with names and addresses of its own.
type world struct {
	t       testing.TB
	harness Harness
	options Options
	sub     networks.Substrate
	can     networks.Capabilities
	epoch   int
	bind    netip.Prefix // a part of 127.0.0.0/8 that no other test uses
}

// The public addresses of tests: those of the region, and those of another region where the servers of the outside are.
var (
	publicNet  = netip.MustParsePrefix("203.0.113.0/25")
	outsideNet = netip.MustParsePrefix("198.51.100.0/25")
)

// resolverPort is where the host's resolver listens, in the tests that have one.
const resolverPort = 20053

// offset is what is added to public ports, so that none needs a privilege.
const offset = 20000

// newWorld makes the n-th of this process.
func newWorld(t testing.TB, h Harness, n int) *world {
	w := &world{t: t, harness: h, epoch: 1}
	w.bind = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, byte(64 + os.Getpid()%128), byte(n), 0}), 24)
	dir, err := os.MkdirTemp("", "net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.options = Options{Dir: dir, Resolvers: []netip.AddrPort{netip.AddrPortFrom(w.outside(53), resolverPort)}, Pools: []networks.Pool{
		{Public: publicNet, Bind: netip.PrefixFrom(w.bind.Addr(), 25), PortOffset: offset},
		{Public: outsideNet, Bind: netip.PrefixFrom(w.outside(0), 25)},
	}}
	return w
}

// public is the n-th public address of the region, and bound where that is on the host.
func (w *world) public(n byte) netip.Addr { return at(publicNet.Addr(), n) }
func (w *world) bound(n byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(at(w.bind.Addr(), n), port+offset)
}

// outside is the n-th address of the other region on the host, and published how machines reach it.
func (w *world) outside(n byte) netip.Addr { return at(w.bind.Addr(), 128+n) }
func (w *world) published(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(at(outsideNet.Addr(), a.Addr().As4()[3]-128), a.Port())
}

func at(a netip.Addr, last byte) netip.Addr {
	b := a.As4()
	b[3] = last
	return netip.AddrFrom4(b)
}

// start makes the substrate, and again after restart has closed it.
func (w *world) start() {
	w.t.Helper()
	sub, err := w.harness.Open(w.options)
	if err != nil {
		w.t.Fatal(err)
	}
	w.sub = sub
	w.t.Cleanup(func() {
		if err := sub.Close(); err != nil {
			w.t.Error(err)
		}
	})
	if w.can, err = sub.Capabilities(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if !w.can.Available {
		w.t.Fatalf("%s is not available: %s", w.can.Name, w.can.Why)
	}
}

// restart is what happens to the substrate when its process ends and comes again.
func (w *world) restart() {
	w.t.Helper()
	if err := w.sub.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

// apply makes a network, or fails.
func (w *world) apply(n networks.Network) {
	w.t.Helper()
	n.Epoch = w.epoch
	if err := w.sub.Apply(w.t.Context(), n); err != nil {
		w.t.Fatal(err)
	}
}

// refused makes sure that a network is refused, and that nothing has changed.
func (w *world) refused(n networks.Network, code networks.Code) error {
	w.t.Helper()
	before, err := w.sub.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if err = w.sub.Apply(w.t.Context(), n); networks.CodeOf(err) != code {
		w.t.Fatalf("%v, want %s", err, code)
	}
	after, listed := w.sub.List(w.t.Context())
	if listed != nil {
		w.t.Fatal(listed)
	}
	if len(before) != len(after) {
		w.t.Fatalf("%d networks before, %d after", len(before), len(after))
	}
	for i := range before {
		if d := networks.Diff(before[i], after[i]); len(d) > 0 || before[i].Epoch != after[i].Epoch {
			w.t.Errorf("a refused network changed %v", d)
		}
	}
	return err
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// shop is an environment: web and app in a routed segment, db in another one, and web and db in one that is isolated.
func shop() networks.Network {
	return networks.Network{
		Environment: "shop", Owner: "order-1", Epoch: 1,
		Segments: []networks.Segment{
			{ID: "front", Subnet: prefix("10.0.1.0/24"), Gateway: addr("10.0.1.1"), DHCP: true, DNS: true, Ports: []networks.Port{
				{Machine: "web", MAC: "02:00:00:00:01:01", Address: addr("10.0.1.10")},
				{Machine: "app", MAC: "02:00:00:00:01:02", Address: addr("10.0.1.11")},
				{Machine: "any", MAC: "02:00:00:00:01:03"},
			}},
			{ID: "back", Subnet: prefix("10.0.2.0/24"), Gateway: addr("10.0.2.1"), DHCP: true, DNS: true, Ports: []networks.Port{
				{Machine: "db", MAC: "02:00:00:00:02:01", Address: addr("10.0.2.10")},
			}},
			{ID: "cellar", Subnet: prefix("10.0.3.0/24"), DHCP: true, DNS: true, Ports: []networks.Port{
				{Machine: "web", Interface: 1, MAC: "02:00:00:00:03:01", Address: addr("10.0.3.10")},
				{Machine: "db", Interface: 1, MAC: "02:00:00:00:03:02", Address: addr("10.0.3.11")},
			}},
		},
	}
}

// port names one of shop's.
func port(machine string, n int) networks.PortID {
	return networks.PortID{Environment: "shop", Machine: machine, Interface: n}
}

// guest plugs a machine of a network in, and gives it the address of the plan by hand.
func (w *world) guest(p networks.PortID) *Machine {
	w.t.Helper()
	m := w.machine(p)
	n, err := w.sub.Network(w.t.Context(), p.Environment)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range n.Segments {
		for _, port := range s.Ports {
			if port.Machine == p.Machine && port.Interface == p.Interface {
				m.boot(netip.PrefixFrom(port.Address, s.Subnet.Bits()), s.Gateway, s.MTUOr())
			}
		}
	}
	return m
}
