// Package kernel makes a region's networks of the kernel's own: a network namespace for each environment, in it a bridge for
// each segment and a tap for each port, and an edge of routes and nftables. It needs root, and the program nft.
//
// A namespace for each environment, not for each region, is what isolates: environments may have the same subnets, their
// connections are tracked apart, and all that is theirs goes with the namespace. A pair of veth leads to the host; the host
// keeps one nft table for each environment.
//
// Networks outlive the process and its connections too; DHCP and DNS answer while a Substrate is open. For clients on other
// hosts, and for machines that reach them, the host must forward between its own interfaces and ours
// (net.ipv4.conf.<interface>.forwarding), which this package does not touch.
//
// The program nft and not a library: rules are a text that a person can read and try, and one transaction.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/services"
)

// Config is what a substrate needs.
type Config struct {
	Dir       string           // holds the highest epoch seen and what was asked for; its path tells regions of one host apart
	Pools     []networks.Pool  // where the public addresses of all known regions are bound; see SetPools
	Resolvers []netip.AddrPort // whom the edges ask for names of the world; nil: those of /etc/resolv.conf
	UDPIdle   time.Duration    // after which a flow of datagrams is forgotten; 0: a minute
	// Routed says that packets to public addresses without a bind reach this host though they are none of its own, because
	// who sends them has a route here. Otherwise such an address cannot be bound.
	Routed bool
	Log    *slog.Logger // nil: none
}

// Substrate makes networks of the kernel's. All methods are safe for concurrent use.
type Substrate struct {
	cfg       Config
	dir       string // absolute
	prefix    string // of namespaces and tables
	records   records
	epochFile string
	why       error // it cannot work here

	mu        sync.Mutex
	epoch     int
	closed    bool
	pools     []networks.Pool
	known     map[string]record // by id of place
	servings  map[string]*serving
	parked    map[networks.PortID]*parking
	resolvers func() []netip.AddrPort
}

var _ networks.Substrate = (*Substrate)(nil)

// New opens the networks of a directory. Where this host has no such networks, Capabilities says why.
func New(c Config) (*Substrate, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, err
	}
	if c.UDPIdle == 0 {
		c.UDPIdle = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Substrate{cfg: c, dir: dir, prefix: "tombolo-" + hash(8, dir) + "-", records: records{filepath.Join(dir, "networks")},
		epochFile: filepath.Join(dir, "epoch"), pools: slices.Clone(c.Pools), servings: map[string]*serving{}, parked: map[networks.PortID]*parking{},
		resolvers: func() []netip.AddrPort { return c.Resolvers }}
	if c.Resolvers == nil {
		s.resolvers = func() []netip.AddrPort { return services.HostResolvers("/etc/resolv.conf") }
	}
	if err := os.MkdirAll(s.records.dir, 0o700); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	if s.epoch, err = readEpoch(s.epochFile); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	if s.known, err = s.records.all(); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	if s.why = s.probe(); s.why != nil {
		return s, nil
	}
	for id, r := range s.known {
		// What the kernel still has is answered for again; what it has lost waits for Apply.
		if err := s.serve(s.placeOf(id), r.Network); err != nil {
			c.Log.Warn("a network of before is not whole", "environment", r.Network.Environment, "err", err)
		}
	}
	return s, nil
}

// probe tries what networks are made of, in a namespace that goes at once.
func (s *Substrate) probe() error {
	if os.Geteuid() != 0 {
		return errors.New("networks of the kernel need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return errors.New("the program nft is missing; on Debian: apt-get install nftables")
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("no network namespaces here: %w", err)
		}
		if err := newTap("probe"); err != nil {
			return fmt.Errorf("no taps here: %w", err)
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for _, l := range []netlink.Link{&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge"}},
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth"}, PeerName: "peer"}} {
			if err := h.LinkAdd(l); err != nil {
				return fmt.Errorf("this kernel has no %s: %w", l.Type(), err)
			}
		}
		sample := sample()
		if err := nft(context.Background(), edgeRules(sample, hostLink)+portRules(sample)+hostRules("host", "veth", sample, hostLink, nil)); err != nil {
			return fmt.Errorf("this kernel filters or translates less than is needed: %w", err)
		}
		return sysctl(s.settings()...)
	})
}

// sample is a network that needs everything that rules are made of.
func sample() networks.Network {
	subnet, gateway, machine := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	return networks.Network{Environment: "sample",
		Segments: []networks.Segment{{ID: "s", Subnet: subnet, Gateway: gateway, DHCP: true, DNS: true,
			Ports: []networks.Port{{Machine: "m", MAC: "02:00:00:00:00:01", Address: machine}}}},
		Edge: networks.Edge{SourcePorts: networks.PortRange{First: 1024, Last: 2047},
			Publics: []networks.Public{{Address: netip.MustParseAddr("192.0.2.1"), Bind: netip.MustParseAddr("127.0.0.2"), Target: machine,
				Open: []networks.Forward{{Protocol: networks.TCP, Port: 80}, {Protocol: networks.UDP, Port: 80}}}},
			Rules: []networks.Rule{{Protocol: networks.ICMP}, {Allow: true, From: []netip.Prefix{subnet}, To: []netip.Prefix{subnet}, Ports: []networks.PortRange{{First: 1, Last: 2}}}},
		}}
}

// SetPools says where the public addresses of all known regions are bound; networks that are applied from now on know it.
func (s *Substrate) SetPools(_ context.Context, pools []networks.Pool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pools = slices.Clone(pools)
	return nil
}

// Capabilities are those of this host.
func (s *Substrate) Capabilities(context.Context) (networks.Capabilities, error) {
	c := networks.Capabilities{Name: "kernel"}
	if s.why != nil {
		c.Why = s.why.Error()
		return c, nil
	}
	c.Available, c.LoopbackBind, c.KeepsClient, c.Outlives, c.Offloads, c.Parks, c.Echo = true, true, true, true, true, true, true
	return c, nil
}

// admit refuses a caller that has lost the region, and remembers one that has it; s.mu is held.
func (s *Substrate) admit(epoch int) error {
	if s.closed {
		return errors.New("networks: the substrate is closed")
	}
	if s.why != nil {
		return networks.Wrap(networks.Unsupported, s.why, "this host has no networks of the kernel's")
	}
	if epoch < s.epoch {
		return networks.Errorf(networks.StaleEpoch, "epoch %d was seen, and %d asks", s.epoch, epoch)
	}
	if epoch > s.epoch {
		if err := replace(s.epochFile, fmt.Appendln(nil, epoch)); err != nil {
			return fmt.Errorf("networks: %w", err)
		}
		s.epoch = epoch
	}
	return nil
}

// Apply makes the network be as described.
func (s *Substrate) Apply(ctx context.Context, n networks.Network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admit(n.Epoch); err != nil {
		return err
	}
	if err := networks.Validate(n); err != nil {
		return err
	}
	at := s.place(n.Environment)
	before, existed := s.known[at.id]
	own, err := hostAddresses()
	if err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	if err := s.bindable(at, before.Network, n, own); err != nil {
		return err
	}
	next := record{Network: n, Link: before.Link}
	if next.Link == "" {
		link, err := freeLink(at.id)
		if err != nil {
			return err
		}
		next.Link = link.String()
	}
	if err := s.make(ctx, at, next); err != nil {
		// The host is put back, also where the caller has gone.
		ctx, back := context.WithoutCancel(ctx), error(nil)
		if existed {
			back = s.make(ctx, at, before)
		} else {
			back = s.unmake(ctx, at)
		}
		if back != nil {
			err = errors.Join(err, fmt.Errorf("and what was could not be put back: %w", back))
		}
		return err
	}
	return nil
}

// make writes down what is to be, and has it be.
func (s *Substrate) make(ctx context.Context, at place, r record) error {
	link, err := netip.ParseAddr(r.Link)
	if err != nil {
		return err
	}
	if err := s.records.write(at.id, r); err != nil {
		return err
	}
	s.known[at.id] = r
	own, err := hostAddresses()
	if err != nil {
		return err
	}
	behind := shadowed(r.Network, own)
	if err := s.wire(ctx, at, behind, link); err != nil {
		return err
	}
	return errors.Join(s.serve(at, r.Network), s.endParkings(r.Network.Environment), cut(at, behind))
}

// hostAddresses are the host's own; all of 127.0.0.0/8 are besides.
func hostAddresses() (map[netip.Addr]bool, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	own := map[netip.Addr]bool{}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own, nil
}

// shadowed is the network as its edge sees it: the host keeps what comes to an address of its own, so a public address that
// is one has another behind it, which stands for it between host and edge.
func shadowed(n networks.Network, own map[netip.Addr]bool) networks.Network {
	n.Edge.Publics = slices.Clone(n.Edge.Publics)
	for i, p := range n.Edge.Publics {
		if p.Bound(0).Addr() == p.Address && (own[p.Address] || p.Address.IsLoopback()) {
			number := hashNumber(p.Address.String())
			base := shadowNet.Addr().As4()
			n.Edge.Publics[i].Bind = p.Address
			n.Edge.Publics[i].Address = netip.AddrFrom4([4]byte{base[0], base[1], byte(number >> 8), byte(number)})
		}
	}
	return n
}

// unmake takes everything away, and forgets it last.
func (s *Substrate) unmake(ctx context.Context, at place) error {
	s.silence(at.id)
	if err := s.unwire(ctx, at); err != nil {
		return err
	}
	gone := s.known[at.id].Network.Environment
	delete(s.known, at.id)
	return errors.Join(s.endParkings(gone), s.records.forget(at.id))
}

// Remove takes away everything of an environment.
func (s *Substrate) Remove(ctx context.Context, epoch int, environment string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admit(epoch); err != nil {
		return err
	}
	return s.unmake(ctx, s.place(environment))
}

// bindable says whether the public ports that are new can be bound on the host; s.mu is held.
func (s *Substrate) bindable(at place, before, n networks.Network, own map[netip.Addr]bool) error {
	for _, p := range n.Edge.Publics {
		if bind := p.Bound(0).Addr(); !bind.IsLoopback() && !own[bind] && (!s.cfg.Routed || bind != p.Address) {
			return networks.Errorf(networks.BindFailed, "%s, where %s would be bound, is no address of this host", bind, p.Address)
		}
	}
	type bound struct {
		protocol networks.Protocol
		at       netip.AddrPort
	}
	had := map[bound]bool{}
	each := func(n networks.Network, do func(p networks.Public, b bound) error) error {
		for _, p := range n.Edge.Publics {
			for _, f := range p.Open {
				for port := int(f.Port); port <= int(f.LastPort()); port++ {
					if err := do(p, bound{f.Protocol, p.Bound(uint16(port))}); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
	note := func(_ networks.Public, b bound) error { had[b] = true; return nil }
	if err := each(before, note); err != nil {
		return err
	}
	others := map[bound]string{}
	for id, other := range s.known {
		if id != at.id {
			_ = each(other.Network, func(_ networks.Public, b bound) error { others[b] = other.Network.Environment; return nil })
		}
	}
	return each(n, func(p networks.Public, b bound) error {
		if e, taken := others[b]; taken {
			return networks.Errorf(networks.BindFailed, "%s port %s is that of environment %s", b.protocol, b.at, e)
		}
		if had[b] || !b.at.Addr().IsLoopback() && !own[b.at.Addr()] {
			return nil // an address that is routed to us is nobody else's; setRoutes makes sure
		}
		return try(b.protocol, b.at)
	})
}

// try binds a port of the host for a moment.
func try(protocol networks.Protocol, at netip.AddrPort) error {
	var err error
	if protocol == networks.TCP {
		var l net.Listener
		if l, err = net.Listen("tcp4", at.String()); err == nil {
			err = l.Close()
		}
	} else {
		var c net.PacketConn
		if c, err = net.ListenPacket("udp4", at.String()); err == nil {
			err = c.Close()
		}
	}
	if err != nil {
		return networks.Wrap(networks.BindFailed, err, "%s port %s", protocol, at)
	}
	return nil
}

// freeLink finds an address between host and edge that no environment of this host has.
func freeLink(id string) (netip.Addr, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, err
	}
	taken := map[netip.Addr]bool{hostLink: true}
	for _, r := range routes {
		taken[prefixOf(r.Dst).Addr()] = true
	}
	base := linkNet.Addr().As4()
	for i := range 1 << 16 {
		n := uint16(hashNumber(id) + i)
		a := netip.AddrFrom4([4]byte{base[0], base[1], byte(n >> 8), byte(n)})
		if n != 0 && !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("networks: all addresses of %s are taken", linkNet)
}

func hashNumber(id string) int {
	n := 0
	for _, c := range hash(4, id) {
		n = n<<4 | strings.IndexRune("0123456789abcdef", c)
	}
	return n
}

// Close leaves the networks as they are, without DHCP and DNS until they are opened again. What is parked is lost.
func (s *Substrate) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id := range s.servings {
		s.silence(id)
	}
	var err error
	for id := range s.parked {
		err = errors.Join(err, s.endParking(id))
	}
	return err
}
