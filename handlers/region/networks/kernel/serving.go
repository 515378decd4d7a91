package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/services"
)

// serving is what answers DHCP and DNS in one environment, on sockets of its namespace.
type serving struct {
	directory *services.Directory
	segments  map[string]*segmentServing
}

// segmentServing is that of one segment. It is begun anew when what it stands on has changed.
type segmentServing struct {
	on     standing
	closed context.CancelFunc
	ended  sync.WaitGroup
}

// standing is what sockets are made for: a bridge that was made again is another one.
type standing struct {
	address   netip.Addr
	bridge    int
	dhcp, dns bool
}

// serve makes what answers be as the network wants it; s.mu is held.
func (s *Substrate) serve(at place, n networks.Network) error {
	v := s.servings[at.id]
	if v == nil {
		v = &serving{services.New(s.resolvers), map[string]*segmentServing{}}
		s.servings[at.id] = v
	}
	v.directory.Set(n)
	return at.enter(func(ns netns.NsHandle, h *netlink.Handle) error {
		wanted := map[string]bool{}
		for _, segment := range n.Segments {
			if !segment.DHCP && !segment.DNS {
				continue
			}
			wanted[segment.ID] = true
			link, err := h.LinkByName(bridgeName(segment.ID))
			if err != nil {
				return err
			}
			on := standing{segment.EdgeAddress(), link.Attrs().Index, segment.DHCP, segment.DNS}
			if old := v.segments[segment.ID]; old != nil {
				if old.on == on {
					continue
				}
				old.close()
				delete(v.segments, segment.ID)
			}
			one, err := v.begin(ns, segment.ID, on)
			if err != nil {
				return fmt.Errorf("DHCP and DNS of segment %s: %w", segment.ID, err)
			}
			v.segments[segment.ID] = one
		}
		for id, old := range v.segments {
			if !wanted[id] {
				old.close()
				delete(v.segments, id)
			}
		}
		return nil
	})
}

// silence ends what answers in an environment; s.mu is held.
func (s *Substrate) silence(id string) {
	if v := s.servings[id]; v != nil {
		for _, one := range v.segments {
			one.close()
		}
		delete(s.servings, id)
	}
}

func (s *segmentServing) close() {
	s.closed()
	s.ended.Wait()
}

// begin opens the sockets of a segment, all or none, and answers on them.
func (v *serving) begin(ns netns.NsHandle, segment string, on standing) (*segmentServing, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &segmentServing{on: on, closed: cancel}
	var ask *os.File
	var packets net.PacketConn
	var streams net.Listener
	err := inside(ns, func() (err error) {
		if on.dhcp {
			if ask, err = dhcpSocket(on.bridge); err != nil {
				return err
			}
		}
		if on.dns {
			at, c := netip.AddrPortFrom(on.address, 53).String(), net.ListenConfig{Control: bindTo(bridgeName(segment))}
			if packets, err = c.ListenPacket(ctx, "udp4", at); err != nil {
				return err
			}
			streams, err = c.Listen(ctx, "tcp4", at)
		}
		return err
	})
	if err != nil {
		cancel()
		if ask != nil {
			err = errors.Join(err, ask.Close())
		}
		if packets != nil {
			err = errors.Join(err, packets.Close())
		}
		return nil, err
	}
	if on.dhcp {
		context.AfterFunc(ctx, func() { ask.Close() })
		s.ended.Go(func() { v.dhcp(ask, segment, on) })
	}
	if on.dns {
		names := v.directory.Names(ctx, segment)
		for _, server := range []*dns.Server{{PacketConn: packets, Handler: names}, {Listener: streams, Handler: names}} {
			started := make(chan struct{})
			server.NotifyStartedFunc = func() { close(started) }
			s.ended.Go(func() { _ = server.ActivateAndServe() }) // ends with its socket
			<-started
			context.AfterFunc(ctx, func() { _ = server.Shutdown() })
		}
	}
	return s, nil
}

// bindTo lets a socket hear and speak on one link only: segments that are not routed may have the same addresses.
func bindTo(link string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.BindToDevice(int(fd), link) })
		return errors.Join(err, failed)
	}
}

const (
	portDHCPServer = 67
	portDHCPClient = 68
)

// dhcpSocket hears what is said to DHCP servers on a link, with the MAC of who says it, and speaks to machines that have no
// address yet: a packet socket.
func dhcpSocket(link int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// IPv4's UDP to port 67, not a later fragment; the offsets are from the beginning of IPv4's header.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_UDP, Jf: 6},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 6},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 0x1fff, Jt: 4},
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: portDHCPServer, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: link}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "dhcp"), nil
}

func networkOrder(n uint16) uint16 { return n<<8 | n>>8 }

// dhcp answers until the socket is closed.
func (v *serving) dhcp(socket *os.File, segment string, on standing) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return // closed already
	}
	buf := make([]byte, 1<<16)
	for {
		var n int
		var sender unix.Sockaddr
		var failed error
		if err := raw.Read(func(fd uintptr) bool {
			n, sender, failed = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(failed, unix.EAGAIN)
		}); err != nil {
			return
		}
		link, ok := sender.(*unix.SockaddrLinklayer)
		if failed != nil || !ok || link.Halen != 6 || link.Pkttype == unix.PACKET_OUTGOING {
			continue // a link that is down for a moment says so once
		}
		ip := header.IPv4(buf[:n])
		if !ip.IsValid(n) || len(ip.Payload()) < header.UDPMinimumSize {
			continue
		}
		ask, err := dhcpv4.FromBytes(ip.Payload()[header.UDPMinimumSize:])
		if err != nil {
			continue
		}
		answer := v.directory.Lease(segment, net.HardwareAddr(link.Addr[:6]), ask, time.Now())
		if answer == nil {
			continue
		}
		to, mac := services.Destination(ask, answer, netip.AddrFrom4(ip.SourceAddress().As4()))
		target := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: on.bridge, Halen: 6}
		copy(target.Addr[:], mac)
		packet := datagram(on.address, to, answer.ToBytes())
		_ = raw.Write(func(fd uintptr) bool {
			return !errors.Is(unix.Sendto(int(fd), packet, 0, target), unix.EAGAIN)
		}) // an answer that is lost is asked for again
	}
}

// datagram is one from the server to a client.
func datagram(from, to netip.Addr, payload []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize+len(payload))
	src, dst := tcpip.AddrFrom4(from.As4()), tcpip.AddrFrom4(to.As4())
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: unix.IPPROTO_UDP, SrcAddr: src, DstAddr: dst})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(ip.Payload())
	u.Encode(&header.UDPFields{SrcPort: portDHCPServer, DstPort: portDHCPClient, Length: uint16(len(u))})
	copy(u.Payload(), payload)
	u.SetChecksum(^checksum.Checksum(u, header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, dst, uint16(len(u)))))
	return b
}
