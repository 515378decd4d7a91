package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// plugPatience is how long Plug waits for a machine that is said to be there.
const plugPatience = 10 * time.Second

// List gives the networks that the host shows: what was asked for, as far as the kernel has it, and what the kernel has that
// nobody remembers.
func (s *Substrate) List(context.Context) ([]networks.Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return nil, nil
	}
	ids := slices.Collect(maps.Keys(s.known))
	names, err := filepath.Glob(filepath.Join(namespaces, s.prefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if id := strings.TrimPrefix(filepath.Base(name), s.prefix); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	out := []networks.Network{}
	for _, id := range ids {
		n, err := s.shown(id)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b networks.Network) int { return strings.Compare(a.Environment, b.Environment) })
	return out, nil
}

// Network gives one. Error: network-unknown.
func (s *Substrate) Network(ctx context.Context, environment string) (networks.Network, error) {
	all, err := s.List(ctx)
	if err != nil {
		return networks.Network{}, err
	}
	for _, n := range all {
		if n.Environment == environment {
			return n, nil
		}
	}
	return networks.Network{}, networks.Errorf(networks.NetworkUnknown, "environment %s has no network here", environment)
}

// shown is a network without the segments and ports that the kernel does not have; s.mu is held.
func (s *Substrate) shown(id string) (networks.Network, error) {
	n := s.known[id].Network
	n.Segments, n.Edge.Publics, n.Edge.Rules = slices.Clone(n.Segments), slices.Clone(n.Edge.Publics), slices.Clone(n.Edge.Rules)
	links := map[string]netlink.Link{}
	err := s.placeOf(id).enter(func(_ netns.NsHandle, h *netlink.Handle) error {
		all, err := list(h)
		for _, l := range all {
			links[l.Attrs().Name] = l
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		n.Edge = networks.Edge{} // the host was started anew, or the work was cut off
	} else if err != nil {
		return networks.Network{}, err
	}
	if up := links[uplink]; n.Environment == "" && up != nil {
		n.Environment = strings.TrimPrefix(up.Attrs().Alias, alias(""))
	}
	n.Segments = slices.DeleteFunc(n.Segments, func(s networks.Segment) bool { return links[bridgeName(s.ID)] == nil })
	for i := range n.Segments {
		n.Segments[i].Ports = slices.DeleteFunc(slices.Clone(n.Segments[i].Ports), func(p networks.Port) bool { return links[tapName(p)] == nil })
	}
	return n, nil
}

// enter gives access to the namespace of a place. Error: fs.ErrNotExist.
func (p place) enter(do func(netns.NsHandle, *netlink.Handle) error) error {
	ns, err := openNamespace(p.path())
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	return do(ns, h)
}

// Counters gives those that the kernel keeps of all ports and edges, in order.
func (s *Substrate) Counters(ctx context.Context) ([]networks.Counters, []networks.EdgeCounters, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ports, edges := []networks.Counters{}, []networks.EdgeCounters{}
	known := slices.SortedFunc(maps.Values(s.known), func(a, b record) int { return strings.Compare(a.Network.Environment, b.Network.Environment) })
	for _, r := range known {
		err := s.place(r.Network.Environment).enter(func(ns netns.NsHandle, h *netlink.Handle) error {
			var named map[string]counter
			var connections int
			if err := inside(ns, func() (err error) {
				if named, err = readCounters(ctx); err != nil {
					return err
				}
				return nil
			}); err != nil {
				return err
			}
			flows, err := h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
			if err != nil {
				return err
			}
			for _, f := range flows {
				if !over(f) {
					connections++
				}
			}
			edges = append(edges, networks.EdgeCounters{
				Environment: r.Network.Environment, Connections: uint64(connections),
				Opened: named[countOpened].Packets, Refused: named[countRefused].Packets, PortsExhausted: named[countExhausted].Packets,
				InBytes: named[countIn].Bytes, OutBytes: named[countOut].Bytes,
			})
			for _, segment := range r.Network.Segments {
				for _, p := range segment.Ports {
					link, err := h.LinkByName(tapName(p))
					if errors.As(err, &netlink.LinkNotFoundError{}) {
						continue
					}
					if err != nil {
						return err
					}
					id := networks.PortID{Environment: r.Network.Environment, Machine: p.Machine, Interface: p.Interface}
					waiting := 0
					if parked := s.parked[id]; parked != nil {
						waiting = parked.count()
					}
					a, spoofed := link.Attrs(), named[tapName(p)].Packets
					// What the host receives from a tap is what its machine sent.
					ports = append(ports, networks.Counters{
						PortID: id, Segment: segment.ID, Parked: uint64(waiting), Plugged: a.OperState == netlink.OperUp,
						InFrames: a.Statistics.RxPackets - spoofed, InBytes: a.Statistics.RxBytes - named[tapName(p)].Bytes,
						OutFrames: a.Statistics.TxPackets, OutBytes: a.Statistics.TxBytes,
						InDropped: a.Statistics.RxDropped + spoofed, OutDropped: a.Statistics.TxDropped,
					})
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	slices.SortFunc(ports, func(a, b networks.Counters) int {
		return strings.Compare(fmt.Sprintf("%s\x00%s\x00%09d", a.Environment, a.Machine, a.Interface), fmt.Sprintf("%s\x00%s\x00%09d", b.Environment, b.Machine, b.Interface))
	})
	return ports, edges, nil
}

// counter is one of nft's.
type counter struct {
	Name    string `json:"name"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// readCounters gives the named ones of the namespace that the thread is in.
func readCounters(ctx context.Context) (map[string]counter, error) {
	out, err := exec.CommandContext(ctx, "nft", "-j", "list", "counters").Output()
	if err != nil {
		return nil, fmt.Errorf("nft: %w", err)
	}
	var listed struct {
		Objects []struct {
			Counter *counter `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(out, &listed); err != nil {
		return nil, fmt.Errorf("nft: %w", err)
	}
	all := map[string]counter{}
	for _, o := range listed.Objects {
		if o.Counter != nil {
			all[o.Counter.Name] = *o.Counter
		}
	}
	return all, nil
}

// over says that a connection has been closed, and is only remembered for stray packets of it.
func over(f *netlink.ConntrackFlow) bool {
	const timeWait, closed = 7, 8 // of nf_conntrack_tcp.h
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && (tcp.State == timeWait || tcp.State == closed)
}

// cut ends the connections that the network does not allow any more: what they send from now on is refused.
func cut(at place, n networks.Network) error {
	return at.enter(func(_ netns.NsHandle, h *netlink.Handle) error {
		_, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, refused{n})
		return err
	})
}

// refused matches the connections that a network does not allow.
type refused struct{ network networks.Network }

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (r refused) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	n := r.network
	protocol := map[uint8]networks.Protocol{unix.IPPROTO_TCP: networks.TCP, unix.IPPROTO_UDP: networks.UDP, unix.IPPROTO_ICMP: networks.ICMP}[f.Forward.Protocol]
	from, asked := addressOf(f.Forward.SrcIP), netip.AddrPortFrom(addressOf(f.Forward.DstIP), f.Forward.DstPort)
	to, seen := netip.AddrPortFrom(addressOf(f.Reverse.SrcIP), f.Reverse.SrcPort), addressOf(f.Reverse.DstIP)
	if protocol == networks.ICMP {
		to, asked = netip.AddrPortFrom(to.Addr(), 0), netip.AddrPortFrom(asked.Addr(), 0)
	}
	var inside, toEdge, toInside bool
	for _, s := range n.Segments {
		toEdge = toEdge || s.EdgeAddress() == to.Addr()
		if s.Routed() {
			inside = inside || s.Subnet.Contains(from)
			toInside = toInside || s.Subnet.Contains(to.Addr())
		}
	}
	if toEdge {
		return false // asked of the edge itself
	}
	if asked != to && !opens(n, protocol, asked, to) || asked == to && !inside {
		return true
	}
	if inside && !toInside {
		// Machines are seen with the public address that they have now.
		for _, p := range n.Edge.Publics {
			if p.Target == from {
				if seen != p.Address {
					return true
				}
				break
			}
		}
		public := slices.ContainsFunc(n.Edge.Publics, func(p networks.Public) bool { return p.Address == seen && p.Target == from })
		if !public && !linkNet.Contains(seen) {
			return true
		}
	}
	return !networks.Decide(n.Edge.Rules, protocol, from, to, true)
}

// opens says whether a public port leads to a machine's.
func opens(n networks.Network, protocol networks.Protocol, asked, to netip.AddrPort) bool {
	for _, p := range n.Edge.Publics {
		for _, f := range p.Open {
			target := f.Target
			if !target.IsValid() {
				target = p.Target
			}
			if p.Address == asked.Addr() && f.Protocol == protocol && f.Port <= asked.Port() && asked.Port() <= f.LastPort() &&
				to == netip.AddrPortFrom(target, f.ToPort()+asked.Port()-f.Port) {
				return true
			}
		}
	}
	return false
}

func addressOf(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// port finds one; s.mu is held.
func (s *Substrate) port(epoch int, id networks.PortID) (place, string, error) {
	if err := s.admit(epoch); err != nil {
		return place{}, "", err
	}
	if p := s.planned(id); p.MAC != "" {
		return s.place(id.Environment), tapName(p), nil
	}
	return place{}, "", networks.Errorf(networks.NetworkUnknown, "interface %d of %s in environment %s has no port here", id.Interface, id.Machine, id.Environment)
}

// Attachment gives the port's tap. Error: network-unknown.
func (s *Substrate) Attachment(_ context.Context, epoch int, id networks.PortID) (networks.Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, name, err := s.port(epoch, id)
	if err != nil {
		return networks.Attachment{}, err
	}
	return networks.Attachment{Tap: name, Namespace: at.path()}, nil
}

// Plug connects the port to the machine that has its tap open, and waits until the segment carries its frames. Errors:
// network-unknown, plug-failed.
func (s *Substrate) Plug(ctx context.Context, epoch int, id networks.PortID) error {
	if err := s.set(epoch, id, (*netlink.Handle).LinkSetUp); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, plugPatience)
	defer cancel()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		up := false
		err := s.set(epoch, id, func(h *netlink.Handle, l netlink.Link) error {
			bridge, err := h.LinkByIndex(l.Attrs().MasterIndex)
			// The segment's own interface comes up with its first port; until then the edge says nothing.
			up = err == nil && l.Attrs().OperState == netlink.OperUp && bridge.Attrs().OperState == netlink.OperUp
			return err
		})
		if up || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return networks.Wrap(networks.PlugFailed, ctx.Err(), "nobody has the tap of interface %d of %s open", id.Interface, id.Machine)
		case <-again.C:
		}
	}
}

// Unplug disconnects it. Error: network-unknown.
func (s *Substrate) Unplug(_ context.Context, epoch int, id networks.PortID) error {
	return s.set(epoch, id, (*netlink.Handle).LinkSetDown)
}

func (s *Substrate) set(epoch int, id networks.PortID, do func(*netlink.Handle, netlink.Link) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, name, err := s.port(epoch, id)
	if err != nil {
		return err
	}
	return at.enter(func(_ netns.NsHandle, h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		return do(h, link)
	})
}
