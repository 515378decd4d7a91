package edge

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/segment"
)

// nic is the edge's interface to one segment.
type nic struct {
	edge    *Edge
	id      tcpip.NICID
	segment networks.Segment // but for its ports, which may change
	addr    netip.Addr
	last    netip.Addr // the subnet's broadcast address
	mac     net.HardwareAddr
	wire    *segment.Segment
	link    *link
	local   *segment.Local
	plan    atomic.Pointer[plan]
	dhcp    *dhcp       // nil: none
	dns     *nameServer // nil: none
}

// plan is who has which address, as the network says.
type plan struct {
	macs  map[netip.Addr]segment.MAC
	ports map[segment.MAC]networks.Port
}

func newNIC(e *Edge, id tcpip.NICID, s networks.Segment, wire *segment.Segment) *nic {
	a := s.EdgeAddress()
	mac, _ := net.ParseMAC(networks.EdgeMAC(a)) // it writes one
	n := &nic{edge: e, id: id, segment: s, addr: a, last: networks.Broadcast(s.Subnet), mac: mac, wire: wire}
	n.local = wire.NewLocal(segment.ParseMAC(mac))
	n.link = &link{addr: tcpip.LinkAddress(mac), mtu: uint32(s.MTUOr()), send: n.local.Send}
	if s.DHCP {
		n.dhcp = newDHCP(n)
	}
	n.update(s)
	return n
}

// fits says whether the interface can stay for a segment of this description.
func (n *nic) fits(s networks.Segment, wire *segment.Segment) bool {
	o := n.segment
	return n.wire == wire && o.Subnet == s.Subnet && o.Gateway == s.Gateway && o.DHCP == s.DHCP && o.DNS == s.DNS &&
		o.MTUOr() == s.MTUOr() && n.addr == s.EdgeAddress()
}

// update takes the ports of a segment that it fits.
func (n *nic) update(s networks.Segment) {
	p := &plan{macs: map[netip.Addr]segment.MAC{}, ports: map[segment.MAC]networks.Port{}}
	for _, port := range s.Ports {
		raw, err := net.ParseMAC(port.MAC)
		if err != nil {
			continue // Validate let none through
		}
		mac := segment.ParseMAC(raw)
		p.ports[mac] = port
		if port.Address.IsValid() {
			p.macs[port.Address] = mac
		}
	}
	n.plan.Store(p)
}

func tcpipAddr(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

func (n *nic) full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: n.id, Addr: tcpipAddr(a.Addr()), Port: a.Port()}
}

// start joins stack and segment.
func (n *nic) start() error {
	s := n.edge.stack
	fail := func(what string, err tcpip.Error) error {
		return fmt.Errorf("segment %s: %s: %s", n.segment.ID, what, err)
	}
	if err := s.CreateNIC(n.id, n.link); err != nil {
		return fail("interface", err)
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
		Address: tcpipAddr(n.addr), PrefixLen: n.segment.Subnet.Bits(),
	}}
	if err := s.AddProtocolAddress(n.id, address, stack.AddressProperties{}); err != nil {
		return fail("address", err)
	}
	// What is not for the edge reaches the stack only by way of input, which decides what that is. ARP for other addresses does not.
	if err := s.SetPromiscuousMode(n.id, true); err != nil {
		return fail("promiscuous mode", err)
	}
	if err := s.SetSpoofing(n.id, true); err != nil {
		return fail("spoofing", err)
	}
	s.AddRoute(tcpip.Route{Destination: address.AddressWithPrefix.Subnet(), NIC: n.id})
	if n.segment.DNS {
		dns, err := newNameServer(n)
		if err != nil {
			return err
		}
		n.dns = dns
	}
	n.local.Join(n.input)
	return nil
}

func (n *nic) close() {
	n.local.Close()
	if n.dns != nil {
		n.dns.close()
	}
	n.link.Close()
	n.edge.stack.RemoveRoutes(func(r tcpip.Route) bool { return r.NIC == n.id })
	n.edge.stack.RemoveNIC(n.id)
}

const (
	protocolICMP = uint8(header.ICMPv4ProtocolNumber)
	protocolTCP  = uint8(header.TCPProtocolNumber)
	protocolUDP  = uint8(header.UDPProtocolNumber)
)

// The ports of services.
const (
	portDNS        = 53
	portDHCPServer = 67
	portDHCPClient = 68
)

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// inbound is a packet of IPv4 as it came from a machine.
type inbound struct {
	frame    []byte
	ip       header.IPv4 // to its end
	from, to netip.Addr
	protocol uint8
	payload  []byte // of the first fragment or the only one; else nil
}

func (p *inbound) fragmented() bool { return p.ip.More() || p.ip.FragmentOffset() > 0 }

// ports of TCP and UDP; the identifier of ICMP echo in both. ok: they are there.
func (p *inbound) ports() (from, to uint16, ok bool) {
	switch {
	case p.protocol == protocolTCP && len(p.payload) >= header.TCPMinimumSize,
		p.protocol == protocolUDP && len(p.payload) >= header.UDPMinimumSize:
		return binary.BigEndian.Uint16(p.payload), binary.BigEndian.Uint16(p.payload[2:]), true
	case p.protocol == protocolICMP && len(p.payload) >= header.ICMPv4MinimumSize:
		id := header.ICMPv4(p.payload).Ident()
		return id, id, true
	}
	return 0, 0, false
}

func (p *inbound) icmp(types ...header.ICMPv4Type) bool {
	if p.protocol != protocolICMP || len(p.payload) < header.ICMPv4MinimumSize {
		return false
	}
	for _, t := range types {
		if header.ICMPv4(p.payload).Type() == t {
			return true
		}
	}
	return false
}

// input takes a frame of the segment. Nothing reaches the stack but by here.
func (n *nic) input(frame []byte) {
	if n.edge.ctx.Err() != nil {
		return
	}
	switch header.Ethernet(frame).Type() {
	case header.ARPProtocolNumber:
		n.inputARP(frame)
	case header.IPv4ProtocolNumber:
		if p, ok := n.parse(frame); ok {
			n.inputIPv4(p)
		}
	}
}

func (n *nic) inputARP(frame []byte) {
	a := header.ARP(frame[header.EthernetMinimumSize:])
	if !a.IsValid() {
		return
	}
	sender := netip.AddrFrom4([4]byte(a.ProtocolAddressSender()))
	mac := segment.ParseMAC(a.HardwareAddressSender())
	if owner, ok := n.plan.Load().macs[sender]; ok && owner != mac || mac != segment.ParseMAC(frame[6:]) || sender == n.addr {
		return // somebody claims an address that is another's
	}
	target := netip.AddrFrom4([4]byte(a.ProtocolAddressTarget()))
	switch {
	case a.Op() == header.ARPRequest && target == n.addr, a.Op() == header.ARPReply:
		n.link.inject(arp.ProtocolNumber, a)
	}
}

// parse takes a packet whose header is sound and whose sender may use its address.
func (n *nic) parse(frame []byte) (*inbound, bool) {
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	if !ip.IsValid(len(ip)) || !ip.IsChecksumValid() {
		return nil, false
	}
	p := &inbound{
		frame: frame, ip: ip[:ip.TotalLength()], protocol: ip.Protocol(),
		from: netip.AddrFrom4(ip.SourceAddress().As4()), to: netip.AddrFrom4(ip.DestinationAddress().As4()),
	}
	if ip.FragmentOffset() == 0 {
		p.payload = p.ip[ip.HeaderLength():]
	}
	if p.from.IsUnspecified() {
		return p, n.forDHCP(p)
	}
	if !n.segment.Subnet.Contains(p.from) || p.from == n.addr || p.from == n.last || p.from == n.segment.Subnet.Addr() {
		return nil, false
	}
	owner, planned := n.plan.Load().macs[p.from]
	return p, !planned || owner == segment.ParseMAC(frame[6:])
}

func (n *nic) forDHCP(p *inbound) bool {
	_, to, ok := p.ports()
	return ok && p.protocol == protocolUDP && to == portDHCPServer && !p.fragmented() &&
		(p.to == limitedBroadcast || p.to == n.last || p.to == n.addr)
}

func (n *nic) inputIPv4(p *inbound) {
	v := n.edge.now.Load()
	switch other := v.inner(p.to); {
	case n.forDHCP(p):
		if n.dhcp != nil {
			n.dhcp.input(p)
		}
	case p.to == n.addr:
		if n.segment.Routed() || n.forService(p) {
			n.link.inject(ipv4.ProtocolNumber, p.ip)
		}
	case n.segment.Subnet.Contains(p.to), p.to.IsMulticast(), p.to == limitedBroadcast:
	case !n.segment.Routed(), other == nil && v.owns(p.to):
		n.edge.counts.Refused.Add(1)
	case other != nil && p.to == other.addr && p.icmp(header.ICMPv4Echo):
		n.answer(p) // the stack answers for the address of this interface only
	case other != nil:
		n.route(v, p, other)
	default:
		n.outside(v, p)
	}
}

// forService says whether a packet is for what the edge serves in an isolated segment.
func (n *nic) forService(p *inbound) bool {
	_, to, ok := p.ports()
	return ok && (n.segment.DNS && to == portDNS && (p.protocol == protocolUDP || p.protocol == protocolTCP) || p.icmp(header.ICMPv4Echo))
}

// outside takes what leaves the environment. The stack ends TCP and UDP; echoes are sent anew from the host.
func (n *nic) outside(v *view, p *inbound) {
	switch {
	case p.protocol == protocolTCP, p.protocol == protocolUDP,
		p.icmp(header.ICMPv4DstUnreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem):
		n.link.inject(ipv4.ProtocolNumber, p.ip)
	case p.icmp(header.ICMPv4Echo) && !p.fragmented():
		n.edge.ping(v, n, p)
	default:
		n.edge.counts.Refused.Add(1)
	}
}
