package services

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

const (
	leaseTime   = time.Hour
	offerTime   = time.Minute
	declineTime = 10 * time.Minute
	maxLeases   = 4096 // of a segment, beyond the plan's addresses
)

// leases are addresses that the plan has given to nobody.
type leases struct {
	by       map[string]lease // MAC
	declined map[netip.Addr]time.Time
}

type lease struct {
	addr  netip.Addr
	until time.Time
}

func (l *leases) of(mac string) netip.Addr {
	if l == nil {
		return netip.Addr{}
	}
	return l.by[mac].addr
}

// Lease answers a message that a machine has sent from its MAC in a segment (RFC 2131); nil: it gets no answer.
func (d *Directory) Lease(segment string, from net.HardwareAddr, ask *dhcpv4.DHCPv4, now time.Time) *dhcpv4.DHCPv4 {
	if ask.OpCode != dhcpv4.OpcodeBootRequest || ask.ClientHWAddr.String() != from.String() {
		return nil // nobody asks in another's name, and there are no relays
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.segment(segment)
	if !ok || !s.DHCP {
		return nil
	}
	l := d.leases[segment]
	if l == nil {
		l = &leases{by: map[string]lease{}, declined: map[netip.Addr]time.Time{}}
		d.leases[segment] = l
	}
	edge, mac := s.EdgeAddress(), from.String()
	if server := addressOf(ask.ServerIdentifier()); server.IsValid() && server != edge {
		if ask.MessageType() == dhcpv4.MessageTypeRequest {
			delete(l.by, mac) // another server's offer was taken
		}
		return nil
	}
	wants, has := addressOf(ask.RequestedIPAddress()), addressOf(ask.ClientIPAddr)
	switch ask.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if a := l.choose(s, from, wants, now); a.IsValid() {
			l.keep(s, from, a, now.Add(offerTime))
			return d.reply(s, ask, dhcpv4.MessageTypeOffer, from, a)
		}
	case dhcpv4.MessageTypeRequest:
		if !wants.IsValid() || wants.IsUnspecified() {
			wants = has // renewing, 4.3.2
		}
		if a := l.choose(s, from, wants, now); a.IsValid() && a == wants {
			l.keep(s, from, a, now.Add(leaseTime))
			return d.reply(s, ask, dhcpv4.MessageTypeAck, from, a)
		}
		return d.reply(s, ask, dhcpv4.MessageTypeNak, from, netip.Addr{})
	case dhcpv4.MessageTypeDecline:
		if l.by[mac].addr == wants && wants.IsValid() && len(l.declined) < maxLeases {
			delete(l.by, mac)
			l.declined[wants] = now.Add(declineTime)
		}
	case dhcpv4.MessageTypeRelease:
		if l.by[mac].addr == has {
			delete(l.by, mac)
		}
	case dhcpv4.MessageTypeInform:
		return d.reply(s, ask, dhcpv4.MessageTypeAck, from, netip.Addr{})
	}
	return nil
}

// choose gives the address that a machine may have: the plan's, else the one that it has, else the one that it wants, else
// one that is free.
func (l *leases) choose(s networks.Segment, mac net.HardwareAddr, wants netip.Addr, now time.Time) netip.Addr {
	if p, ok := portOf(s, mac); ok && p.Address.IsValid() {
		return p.Address
	}
	taken := map[netip.Addr]bool{s.EdgeAddress(): true}
	for _, p := range s.Ports {
		taken[p.Address] = true
	}
	for holder, one := range l.by {
		if holder != mac.String() && now.Before(one.until) {
			taken[one.addr] = true
		}
	}
	free := func(a netip.Addr) bool {
		return s.Subnet.Contains(a) && a != s.Subnet.Addr() && a != networks.Broadcast(s.Subnet) && !taken[a] && !now.Before(l.declined[a])
	}
	for _, a := range []netip.Addr{l.by[mac.String()].addr, wants} {
		if a.IsValid() && free(a) {
			return a
		}
	}
	if len(l.by) >= maxLeases {
		return netip.Addr{}
	}
	for a := s.Subnet.Addr().Next(); s.Subnet.Contains(a); a = a.Next() {
		if free(a) {
			return a
		}
	}
	return netip.Addr{}
}

func (l *leases) keep(s networks.Segment, mac net.HardwareAddr, a netip.Addr, until time.Time) {
	if p, ok := portOf(s, mac); ok && p.Address.IsValid() {
		return
	}
	for holder, one := range l.by {
		if one.addr == a && holder != mac.String() {
			delete(l.by, holder) // its lease has run out
		}
	}
	if old := l.by[mac.String()]; old.addr == a && old.until.After(until) {
		until = old.until
	}
	l.by[mac.String()] = lease{a, until}
}

func (d *Directory) reply(s networks.Segment, ask *dhcpv4.DHCPv4, t dhcpv4.MessageType, mac net.HardwareAddr, a netip.Addr) *dhcpv4.DHCPv4 {
	edge := s.EdgeAddress()
	options := []dhcpv4.Modifier{
		dhcpv4.WithReply(ask), dhcpv4.WithMessageType(t), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(edge.AsSlice())),
		dhcpv4.WithServerIP(edge.AsSlice()),
	}
	if t != dhcpv4.MessageTypeNak {
		options = append(options,
			dhcpv4.WithNetmask(net.CIDRMask(s.Subnet.Bits(), 32)),
			dhcpv4.WithOption(dhcpv4.OptBroadcastAddress(networks.Broadcast(s.Subnet).AsSlice())),
			dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(s.MTUOr()))),
			dhcpv4.WithOption(dhcpv4.OptDomainName(d.domain())),
		)
		if a.IsValid() {
			options = append(options, dhcpv4.WithYourIP(a.AsSlice()), dhcpv4.WithLeaseTime(uint32(leaseTime/time.Second)))
		}
		if s.Routed() {
			options = append(options, dhcpv4.WithRouter(s.Gateway.AsSlice()))
		}
		if s.DNS {
			options = append(options, dhcpv4.WithDNS(edge.AsSlice()))
		}
		if p, ok := portOf(s, mac); ok {
			options = append(options, dhcpv4.WithOption(dhcpv4.OptHostName(p.Machine)))
		}
		if slices.Contains([]dhcpv4.MessageType{dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform}, ask.MessageType()) {
			options = append(options, dhcpv4.WithClientIP(ask.ClientIPAddr))
		}
	}
	r, err := dhcpv4.New(options...)
	if err != nil {
		return nil // no random number for an id, which an answer does not need; the machine asks again
	}
	if t == dhcpv4.MessageTypeNak {
		r.SetBroadcast()
	}
	return r
}

// Destination is where an answer goes to (RFC 2131, 4.1), when the question came from an address.
func Destination(ask, answer *dhcpv4.DHCPv4, from netip.Addr) (netip.Addr, net.HardwareAddr) {
	has := addressOf(ask.ClientIPAddr)
	switch {
	case answer.MessageType() == dhcpv4.MessageTypeNak:
	case has.IsValid() && !has.IsUnspecified() && has == from:
		return has, ask.ClientHWAddr
	case !ask.IsBroadcast() && !answer.YourIPAddr.IsUnspecified():
		return addressOf(answer.YourIPAddr), ask.ClientHWAddr
	}
	return netip.AddrFrom4([4]byte{255, 255, 255, 255}), net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
}

func addressOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip.To4())
	return a
}
