package edge

import (
	"bytes"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// route passes a packet on to another segment, if the rules let its connection through.
func (n *nic) route(v *view, p *inbound, to *nic) {
	if p.to == to.last || p.to == to.segment.Subnet.Addr() {
		return
	}
	if p.ip.FragmentOffset() > 0 {
		if n.edge.tracker.passFragment(p.fragment(), time.Now()) {
			n.forward(p, to)
		}
		return
	}
	if p.icmp(header.ICMPv4DstUnreachable, header.ICMPv4TimeExceeded, header.ICMPv4ParamProblem) {
		if about, ok := about(p.payload[header.ICMPv4MinimumSize:]); ok && about.from.Addr() == p.to && n.edge.tracker.knows(about) {
			n.forward(p, to)
		}
		return
	}
	from, port, _ := p.ports()
	q := packet{tuple: tuple{p.protocol, netip.AddrPortFrom(p.from, from), netip.AddrPortFrom(p.to, port)}}
	opening := true
	if p.protocol == protocolTCP && len(p.payload) >= header.TCPMinimumSize {
		flags := header.TCP(p.payload).Flags()
		q.fin, q.rst = flags.Contains(header.TCPFlagFin), flags.Contains(header.TCPFlagRst)
		opening = flags&(header.TCPFlagSyn|header.TCPFlagAck) == header.TCPFlagSyn
	}
	if p.ip.More() {
		f := p.fragment()
		q.first = &f
	}
	ok, opened := n.edge.tracker.pass(q, time.Now(), v.routes)
	switch {
	case !ok:
		n.edge.counts.Refused.Add(1)
		// The stack tells the machine, for it sees neither a listener nor a reason to forward. A packet from the middle of a
		// connection is not answered: the other side may still be let through.
		if (p.protocol == protocolTCP || p.protocol == protocolUDP) && opening {
			n.link.inject(ipv4.ProtocolNumber, p.ip)
		}
	case p.to == to.addr:
		n.link.inject(ipv4.ProtocolNumber, p.ip)
	default:
		if opened {
			n.edge.counts.Opened.Add(1)
		}
		n.forward(p, to)
	}
}

func (p *inbound) fragment() fragment { return fragment{p.protocol, p.ip.ID(), p.from, p.to} }

// about reads the connection that an ICMP error is about, in the direction of the packet that caused it (RFC 792).
func about(b []byte) (tuple, bool) {
	ip := header.IPv4(b)
	if len(b) < header.IPv4MinimumSize || ip.HeaderLength() < header.IPv4MinimumSize || len(b) < int(ip.HeaderLength())+8 {
		return tuple{}, false
	}
	p := inbound{protocol: ip.Protocol(), payload: append(bytes.Clone(b[ip.HeaderLength():][:8]), make([]byte, header.TCPMinimumSize)...)}
	from, to, _ := p.ports()
	return tuple{p.protocol,
		netip.AddrPortFrom(netip.AddrFrom4(ip.SourceAddress().As4()), from),
		netip.AddrPortFrom(netip.AddrFrom4(ip.DestinationAddress().As4()), to)}, true
}

// forward sends a packet into another segment as a router does (RFC 1812, 5.2 and 5.3).
func (n *nic) forward(p *inbound, to *nic) {
	if p.ip.TTL() <= 1 {
		n.complain(p, header.ICMPv4TimeExceeded, header.ICMPv4TTLExceeded, 0)
		return
	}
	mtu := to.segment.MTUOr()
	if len(p.ip) > mtu && p.ip.Flags()&header.IPv4FlagDontFragment != 0 {
		n.complain(p, header.ICMPv4DstUnreachable, header.ICMPv4FragmentationNeeded, uint16(mtu))
		return
	}
	s := n.edge.stack
	r, err := s.FindRoute(to.id, tcpipAddr(to.addr), tcpipAddr(p.to), ipv4.ProtocolNumber, false)
	if err != nil {
		return // the segment has just gone
	}
	defer r.Release()
	for _, part := range fragments(p.ip, mtu) {
		part.SetTTL(p.ip.TTL() - 1) // the stack writes the checksum
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
			ReserveHeaderBytes: int(r.MaxHeaderLength()), Payload: buffer.MakeWithData(part), IsForwardedPacket: true,
		})
		_ = r.WriteHeaderIncludedPacket(pkt) // a packet that is lost is lost
		pkt.DecRef()
	}
}

// fragments copies a packet in parts that fit (RFC 791, 3.2); it may be a fragment itself. Options are in every part: none
// that is in use today may not be.
func fragments(ip header.IPv4, mtu int) []header.IPv4 {
	head := int(ip.HeaderLength())
	step := len(ip) - head
	if len(ip) > mtu {
		step = (mtu - head) &^ 7
	}
	var out []header.IPv4
	for at := head; at < len(ip) || len(out) == 0; at += step {
		end := min(at+step, len(ip))
		part := header.IPv4(append(bytes.Clone(ip[:head]), ip[at:end]...))
		flags := ip.Flags()
		if end < len(ip) {
			flags |= header.IPv4FlagMoreFragments
		}
		part.SetFlagsFragmentOffset(flags, ip.FragmentOffset()+uint16(at-head))
		part.SetTotalLength(uint16(len(part)))
		out = append(out, part)
	}
	return out
}

// complain tells a packet's sender by ICMP why it goes no further.
func (n *nic) complain(p *inbound, t header.ICMPv4Type, code header.ICMPv4Code, mtu uint16) {
	if p.protocol == protocolICMP && !p.icmp(header.ICMPv4Echo) {
		return
	}
	quote := p.ip[:min(len(p.ip), 548)] // RFC 1812, 4.3.2.3
	message := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+len(quote)))
	message.SetType(t)
	message.SetCode(code)
	message.SetMTU(mtu)
	copy(message[header.ICMPv4MinimumSize:], quote)
	message.SetChecksum(^checksum.Checksum(message, 0))
	n.packet(p.frame[6:12], n.addr, p.from, protocolICMP, message)
}

// answer answers an echo.
func (n *nic) answer(p *inbound) {
	echo := header.ICMPv4(bytes.Clone(p.payload))
	echo.SetType(header.ICMPv4EchoReply)
	echo.SetChecksum(0)
	echo.SetChecksum(^checksum.Checksum(echo, 0))
	n.packet(p.frame[6:12], p.to, p.from, protocolICMP, echo)
}

// packet sends one that was made without the stack to where a frame came from.
func (n *nic) packet(mac []byte, from, to netip.Addr, protocol uint8, payload []byte) {
	const heads = header.EthernetMinimumSize + header.IPv4MinimumSize
	f := make([]byte, heads+len(payload))
	copy(f, mac)
	copy(f[6:], n.mac)
	f[12], f[13] = 0x08, 0x00
	ip := header.IPv4(f[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(ip)), TTL: 64, Protocol: protocol, SrcAddr: tcpipAddr(from), DstAddr: tcpipAddr(to),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	copy(f[heads:], payload)
	n.link.frame(f)
}
