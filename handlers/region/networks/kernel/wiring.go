package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// Between the host and its edges there are addresses that nobody else sees, of the block that RFC 6598 sets aside for such.
var (
	linkNet  = netip.MustParsePrefix("100.127.0.0/16")
	hostLink = netip.MustParseAddr("100.127.0.1") // the host's, the same towards all
	// What stands for public addresses that are the host's own.
	shadowNet = netip.MustParsePrefix("100.126.0.0/16")
)

const (
	vethPrefix   = "tmb" // of the host's end of a pair
	bridgePrefix = "b"
	tapPrefix    = "t"
	// parkingPrefix is that of a tap which goes with the process that parks.
	parkingPrefix = "k"
)

// hash is n hexadecimal digits for a text.
func hash(n int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])[:n]
}

func bridgeName(segment string) string   { return bridgePrefix + hash(12, segment) }
func tapName(p networks.Port) string     { return tapOf(p.Machine, p.Interface) }
func tapOf(machine string, n int) string { return tapPrefix + hash(12, machine, fmt.Sprint(n)) }

// place is where an environment is on the host.
type place struct{ id, namespace, veth, table string }

func (s *Substrate) place(environment string) place { return s.placeOf(hash(10, s.dir, environment)) }

func (s *Substrate) placeOf(id string) place {
	return place{id: id, namespace: s.prefix + id, veth: vethPrefix + id, table: strings.ReplaceAll(s.prefix, "-", "_") + id}
}

// path is the namespace's.
func (p place) path() string { return filepath.Join(namespaces, p.namespace) }

// wire makes namespace, links, addresses and rules as the network wants them, whatever is there already.
func (s *Substrate) wire(ctx context.Context, at place, n networks.Network, link netip.Addr) error {
	ns, err := ensureNamespace(at.namespace)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", at.namespace, err)
	}
	defer ns.Close()
	inner, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inner.Close()
	if err := inside(ns, func() error { return sysctl(s.settings()...) }); err != nil {
		return err
	}
	if err := s.uplink(at, ns, inner, n, link); err != nil {
		return err
	}
	// Rules before ports: no frame is carried that they would not have let through.
	if err := inside(ns, func() error { return nft(ctx, edgeRules(n, link)+portRules(n)) }); err != nil {
		return err
	}
	if err := onThread(func() error { return nft(ctx, hostRules(at.table, at.veth, n, link, s.pools)) }); err != nil {
		return err
	}
	for _, segment := range n.Segments {
		if err := bridge(inner, ns, segment); err != nil {
			return fmt.Errorf("segment %s: %w", segment.ID, err)
		}
	}
	return unwanted(inner, n)
}

// settings are those of a namespace: it routes, answers for its own addresses only where they are, and takes nothing for a
// connection that it has not seen begin. Bridges carry frames unfiltered and without addresses of their own making.
func (s *Substrate) settings() []string {
	return []string{
		"ipv4/ip_forward 1",
		"ipv4/conf/all/route_localnet 1", // for clients on the host's loopback; rules see to it that nobody else uses it
		"ipv4/conf/all/arp_ignore 1", "ipv4/conf/all/arp_announce 2",
		"ipv4/conf/all/rp_filter 0", "ipv4/conf/default/rp_filter 0",
		"ipv4/conf/all/send_redirects 0", "ipv4/conf/default/send_redirects 0",
		"ipv6/conf/all/disable_ipv6 1", "ipv6/conf/default/disable_ipv6 1",
		"netfilter/nf_conntrack_tcp_loose 0", "netfilter/nf_conntrack_tcp_timeout_time_wait 2",
		fmt.Sprintf("netfilter/nf_conntrack_udp_timeout %d", max(1, int(s.cfg.UDPIdle.Seconds()))),
		fmt.Sprintf("netfilter/nf_conntrack_udp_timeout_stream %d", max(1, int(s.cfg.UDPIdle.Seconds()))),
		"bridge/bridge-nf-call-iptables 0", "bridge/bridge-nf-call-ip6tables 0", "bridge/bridge-nf-call-arptables 0",
	}
}

// uplink makes the pair between host and namespace, with the addresses and routes that belong to it. The namespace's own
// loopback stays down: loopback addresses there are the host's.
func (s *Substrate) uplink(at place, ns netns.NsHandle, inner *netlink.Handle, n networks.Network, link netip.Addr) error {
	host, err := netlink.LinkByName(at.veth)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		// The namespace may have another end, of a host's end that was taken away by hand.
		if err := deleteLink(inner, uplink); err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = at.veth
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(ns)}); err != nil {
			return fmt.Errorf("veth %s: %w", at.veth, err)
		}
		host, err = netlink.LinkByName(at.veth)
	}
	if err != nil {
		return err
	}
	up, err := inner.LinkByName(uplink)
	if err != nil {
		return err
	}
	conf := "ipv4/conf/" + at.veth + "/"
	addresses := []netip.Prefix{netip.PrefixFrom(link, 32)}
	for _, p := range n.Edge.Publics {
		addresses = append(addresses, netip.PrefixFrom(p.Address, 32))
	}
	if err := errors.Join(
		netlink.LinkSetAlias(host, alias(n.Environment)), inner.LinkSetAlias(up, alias(n.Environment)),
		sysctl(conf+"forwarding 1", conf+"route_localnet 1", conf+"rp_filter 0", conf+"arp_announce 2", "ipv6/conf/"+at.veth+"/disable_ipv6 1"),
		setAddresses(&netlink.Handle{}, host, []netip.Prefix{netip.PrefixFrom(hostLink, 32)}),
		setAddresses(inner, up, addresses),
		netlink.LinkSetUp(host), inner.LinkSetUp(up),
	); err != nil {
		return err
	}
	if err := setRoutes(host, addresses); err != nil {
		return err
	}
	return inner.RouteReplace(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: hostLink.AsSlice(), Flags: int(netlink.FLAG_ONLINK)})
}

// alias is what a link is tagged with; the kernel keeps 255 bytes.
func alias(environment string) string {
	s := "tombolo environment " + environment
	return s[:min(len(s), 255)]
}

// bridge makes a segment with its ports.
func bridge(h *netlink.Handle, ns netns.NsHandle, s networks.Segment) error {
	name := bridgeName(s.ID)
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		off := false // a segment carries every multicast to all
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
			return err
		}
		link, err = h.LinkByName(name)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(h.LinkSetAlias(link, "segment "+s.ID), h.LinkSetMTU(link, s.MTUOr())); err != nil {
		return err
	}
	var addresses []netip.Prefix
	if edge := s.EdgeAddress(); edge.IsValid() {
		addresses = append(addresses, netip.PrefixFrom(edge, s.Subnet.Bits()))
		mac, err := net.ParseMAC(networks.EdgeMAC(edge))
		if err != nil {
			return err
		}
		if err := h.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
	}
	if err := errors.Join(setAddresses(h, link, addresses), h.LinkSetUp(link)); err != nil {
		return err
	}
	for _, p := range s.Ports {
		if err := tap(h, ns, link, s, p); err != nil {
			return fmt.Errorf("interface %d of %s: %w", p.Interface, p.Machine, err)
		}
	}
	return nil
}

// tap makes a port. It is down until a machine is plugged in.
func tap(h *netlink.Handle, ns netns.NsHandle, bridge netlink.Link, s networks.Segment, p networks.Port) error {
	name := tapName(p)
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := inside(ns, func() error { return newTap(name) }); err != nil {
			return err
		}
		link, err = h.LinkByName(name)
	}
	if err != nil {
		return err
	}
	// A machine that was parked for gets all that waits at once.
	if err := errors.Join(h.LinkSetTxQLen(link, networks.ParkedFrames+1024), h.LinkSetAlias(link, fmt.Sprintf("port %s/%d", p.Machine, p.Interface)), h.LinkSetMTU(link, s.MTUOr())); err != nil {
		return err
	}
	if link.Attrs().MasterIndex == bridge.Attrs().Index {
		return nil
	}
	return h.LinkSetMaster(link, bridge)
}

// unwanted takes away segments and ports that the network does not have.
func unwanted(h *netlink.Handle, n networks.Network) error {
	wanted := map[string]bool{}
	for _, s := range n.Segments {
		wanted[bridgeName(s.ID)] = true
		for _, p := range s.Ports {
			wanted[tapName(p)] = true
		}
	}
	links, err := list(h)
	if err != nil {
		return err
	}
	for _, l := range links {
		if name := l.Attrs().Name; ours(l) && !wanted[name] {
			if err := deleteLink(h, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// ours says whether a link in a namespace is a segment or a port.
func ours(l netlink.Link) bool {
	name := l.Attrs().Name
	return len(name) == 13 && (strings.HasPrefix(name, bridgePrefix) || strings.HasPrefix(name, tapPrefix))
}

// list gives all links; a list that changed while it was read is read again.
func list(h *netlink.Handle) ([]netlink.Link, error) {
	for range 10 {
		links, err := h.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return links, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// setAddresses gives a link these IPv4 addresses and no others.
func setAddresses(h *netlink.Handle, link netlink.Link, want []netip.Prefix) error {
	have, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range have {
		if p := prefixOf(a.IPNet); !slices.Contains(want, p) {
			if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
				return err
			}
		}
	}
	for _, p := range want {
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: netOf(p)}); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return nil
}

// setRoutes leads these addresses, and no others, to a link of the host. One that leads elsewhere is somebody else's.
func setRoutes(link netlink.Link, want []netip.Prefix) error {
	filter := &netlink.Route{LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_MAIN}
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	there := map[netip.Prefix]bool{}
	for _, r := range have {
		if p := prefixOf(r.Dst); slices.Contains(want, p) {
			there[p] = true
		} else if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	for _, p := range want {
		if there[p] {
			continue
		}
		err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netOf(p), Scope: netlink.SCOPE_LINK})
		if errors.Is(err, syscall.EEXIST) {
			return networks.Errorf(networks.BindFailed, "the host has a route to %s that leads elsewhere", p.Addr())
		}
		if err != nil {
			return fmt.Errorf("route to %s: %w", p, err)
		}
	}
	return nil
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP.To4())
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits)
}

// unwire takes everything of a place away, whatever of it is there.
func (s *Substrate) unwire(ctx context.Context, at place) error {
	// Also where the table is not there: `delete` alone would fail then.
	if err := onThread(func() error {
		return nft(ctx, fmt.Sprintf("table ip %[1]s { }\ndelete table ip %[1]s\n", at.table))
	}); err != nil {
		return err
	}
	if err := deleteLink(&netlink.Handle{}, at.veth); err != nil {
		return err
	}
	ns, err := openNamespace(at.path())
	if err == nil {
		defer ns.Close()
		// A process that has a tap open would keep the namespace with all that is in it.
		h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		if err := unwanted(h, networks.Network{}); err != nil {
			return err
		}
	}
	return deleteNamespace(at.namespace)
}
