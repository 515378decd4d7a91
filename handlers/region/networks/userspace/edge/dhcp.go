package edge

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/segment"
)

const (
	leaseTime    = time.Hour
	offerTime    = time.Minute
	declinedTime = 10 * time.Minute
	maxLeases    = 4096 // beyond those of the plan
)

// dhcp leases addresses (RFC 2131): to the plan's ports their own, to others any that is free. It reads and writes frames
// itself, for it answers machines that have no address yet.
type dhcp struct {
	nic *nic

	mu       sync.Mutex
	leases   map[segment.MAC]lease // beyond the plan
	holder   map[netip.Addr]segment.MAC
	declined map[netip.Addr]time.Time // somebody else has it; until
}

type lease struct {
	addr    netip.Addr
	expires time.Time
}

func newDHCP(n *nic) *dhcp {
	return &dhcp{nic: n, leases: map[segment.MAC]lease{}, holder: map[netip.Addr]segment.MAC{}, declined: map[netip.Addr]time.Time{}}
}

// input answers a message.
func (d *dhcp) input(p *inbound) {
	if len(p.payload) < header.UDPMinimumSize {
		return
	}
	length := int(header.UDP(p.payload).Length())
	if length < header.UDPMinimumSize || length > len(p.payload) {
		return
	}
	ask, err := dhcpv4.FromBytes(p.payload[header.UDPMinimumSize:length])
	if err != nil || ask.OpCode != dhcpv4.OpcodeBootRequest || len(ask.ClientHWAddr) != 6 {
		return
	}
	mac := segment.ParseMAC(ask.ClientHWAddr)
	if mac != segment.ParseMAC(p.frame[6:]) { // nobody asks in another's name; there are no relays
		return
	}
	answer := d.answer(ask, mac, time.Now())
	if answer == nil {
		return
	}
	to, hw := limitedBroadcast, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	switch { // RFC 2131, 4.1
	case answer.MessageType() == dhcpv4.MessageTypeNak:
	case !p.from.IsUnspecified() && addrOf(ask.ClientIPAddr) == p.from:
		to, hw = p.from, net.HardwareAddr(p.frame[6:12])
	case !ask.IsBroadcast():
		to, hw = addrOf(answer.YourIPAddr), ask.ClientHWAddr
	}
	d.nic.datagram(hw, netip.AddrPortFrom(d.nic.addr, portDHCPServer), netip.AddrPortFrom(to, portDHCPClient), answer.ToBytes())
}

// datagram sends one that was made without the stack.
func (n *nic) datagram(mac []byte, from, to netip.AddrPort, payload []byte) {
	d := header.UDP(make([]byte, header.UDPMinimumSize+len(payload)))
	d.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: to.Port(), Length: uint16(len(d))})
	copy(d[header.UDPMinimumSize:], payload)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, tcpipAddr(from.Addr()), tcpipAddr(to.Addr()), uint16(len(d)))
	d.SetChecksum(^checksum.Checksum(d, sum))
	n.packet(mac, from.Addr(), to.Addr(), protocolUDP, d)
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}

// answer decides on a message; nil: none is given.
func (d *dhcp) answer(ask *dhcpv4.DHCPv4, mac segment.MAC, now time.Time) *dhcpv4.DHCPv4 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if server := addrOf(ask.ServerIdentifier()); server.IsValid() && server != d.nic.addr {
		if ask.MessageType() == dhcpv4.MessageTypeRequest {
			d.forget(mac) // it has taken another server's offer
		}
		return nil
	}
	wants := addrOf(ask.RequestedIPAddress())
	has := addrOf(ask.ClientIPAddr)
	switch ask.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if a := d.choose(mac, wants, now); a.IsValid() {
			d.keep(mac, a, now.Add(offerTime))
			return d.reply(ask, dhcpv4.MessageTypeOffer, mac, a)
		}
	case dhcpv4.MessageTypeRequest:
		if !wants.IsValid() || wants.IsUnspecified() {
			wants = has
		}
		// Also one that an earlier edge has leased: nobody else has it.
		if a := d.choose(mac, wants, now); a.IsValid() && a == wants {
			d.keep(mac, a, now.Add(leaseTime))
			return d.reply(ask, dhcpv4.MessageTypeAck, mac, a)
		}
		return d.reply(ask, dhcpv4.MessageTypeNak, mac, netip.Addr{})
	case dhcpv4.MessageTypeDecline:
		if l, ok := d.leases[mac]; ok && l.addr == wants && len(d.declined) < maxLeases {
			d.forget(mac)
			d.declined[wants] = now.Add(declinedTime)
		}
	case dhcpv4.MessageTypeRelease:
		if l, ok := d.leases[mac]; ok && l.addr == has {
			d.forget(mac)
		}
	case dhcpv4.MessageTypeInform:
		return d.reply(ask, dhcpv4.MessageTypeAck, mac, netip.Addr{})
	}
	return nil
}

// choose gives the address that a machine may have: that of the plan, else the one it has, else the one it wants, else one
// that is free.
func (d *dhcp) choose(mac segment.MAC, wants netip.Addr, now time.Time) netip.Addr {
	if p := d.nic.plan.Load().ports[mac]; p.Address.IsValid() {
		return p.Address
	}
	if l, ok := d.leases[mac]; ok && d.free(l.addr, mac, now) {
		return l.addr
	}
	if d.free(wants, mac, now) {
		return wants
	}
	if len(d.leases) >= maxLeases {
		return netip.Addr{}
	}
	for a := d.nic.segment.Subnet.Addr().Next(); a != d.nic.last; a = a.Next() {
		if d.free(a, mac, now) {
			return a
		}
	}
	return netip.Addr{}
}

func (d *dhcp) free(a netip.Addr, mac segment.MAC, now time.Time) bool {
	s := d.nic.segment.Subnet
	if !a.IsValid() || !s.Contains(a) || a == s.Addr() || a == d.nic.last || a == d.nic.addr || now.Before(d.declined[a]) {
		return false
	}
	if _, planned := d.nic.plan.Load().macs[a]; planned {
		return false
	}
	holder, held := d.holder[a]
	return !held || holder == mac || !now.Before(d.leases[holder].expires)
}

func (d *dhcp) keep(mac segment.MAC, a netip.Addr, until time.Time) {
	if d.nic.plan.Load().ports[mac].Address.IsValid() {
		return
	}
	if old, held := d.holder[a]; held && old != mac {
		d.forget(old) // its lease has expired
	}
	if l, ok := d.leases[mac]; ok {
		delete(d.holder, l.addr)
		if l.addr == a && l.expires.After(until) {
			until = l.expires
		}
	}
	d.leases[mac], d.holder[a] = lease{a, until}, mac
}

func (d *dhcp) forget(mac segment.MAC) {
	if l, ok := d.leases[mac]; ok {
		delete(d.holder, l.addr)
		delete(d.leases, mac)
	}
}

// address is what a port without one in the plan has leased.
func (d *dhcp) address(mac segment.MAC) netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.leases[mac].addr
}

// who gives whose an address is, beyond the plan.
func (d *dhcp) who(a netip.Addr) (segment.MAC, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mac, ok := d.holder[a]
	return mac, ok
}

func (d *dhcp) reply(ask *dhcpv4.DHCPv4, t dhcpv4.MessageType, mac segment.MAC, a netip.Addr) *dhcpv4.DHCPv4 {
	s := d.nic.segment
	options := []dhcpv4.Modifier{
		dhcpv4.WithReply(ask), dhcpv4.WithMessageType(t), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(d.nic.addr.AsSlice())),
	}
	if t != dhcpv4.MessageTypeNak {
		options = append(options,
			dhcpv4.WithNetmask(net.CIDRMask(s.Subnet.Bits(), 32)),
			dhcpv4.WithOption(dhcpv4.OptBroadcastAddress(d.nic.last.AsSlice())),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(s.MTUOr()))),
			dhcpv4.WithOption(dhcpv4.OptDomainName(d.nic.edge.domain())),
		)
		if a.IsValid() {
			options = append(options, dhcpv4.WithYourIP(a.AsSlice()), dhcpv4.WithLeaseTime(uint32(leaseTime/time.Second)))
		}
		if s.Routed() {
			options = append(options, dhcpv4.WithRouter(s.Gateway.AsSlice()))
		}
		if s.DNS {
			options = append(options, dhcpv4.WithDNS(d.nic.addr.AsSlice()))
		}
		if p, ok := d.nic.plan.Load().ports[mac]; ok {
			options = append(options, dhcpv4.WithOption(dhcpv4.OptHostName(p.Machine)))
		}
	}
	r, err := dhcpv4.New(options...)
	if err != nil {
		return nil
	}
	if t == dhcpv4.MessageTypeNak {
		r.SetBroadcast()
	} else if ask.MessageType() == dhcpv4.MessageTypeRequest || ask.MessageType() == dhcpv4.MessageTypeInform {
		r.ClientIPAddr = ask.ClientIPAddr
	}
	return r
}
