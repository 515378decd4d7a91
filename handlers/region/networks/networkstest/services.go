package networkstest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

func serviceCases() []testCase {
	return []testCase{
		{name: "DHCP: the plan's addresses", run: dhcpReservation},
		{name: "DHCP: others", run: dhcpDynamic},
		{name: "DHCP: renew, decline, refuse", run: dhcpLife},
		{name: "names of machines", run: names},
		{name: "names of the world", run: namesForwarded},
		{name: "ARP and echo of the gateway", run: gateway},
	}
}

// dhcp sends a message from the machine, as one that has no address yet, and waits for the answer of that kind. It gives the
// address that the answer was sent to, too.
func (m *Machine) dhcp(ask *dhcpv4.DHCPv4, kinds ...dhcpv4.MessageType) (*dhcpv4.DHCPv4, netip.Addr) {
	m.t.Helper()
	answers := m.watch(func(f []byte) bool { return len(f) > 42 && f[12] == 8 && f[13] == 0 && f[23] == 17 && f[37] == 68 })
	m.send(dhcpFrame(m.mac, ask))
	if len(kinds) == 0 {
		return nil, netip.Addr{}
	}
	for {
		f := answers.next(m.t)
		ip := header.IPv4(f[14:])
		answer, err := dhcpv4.FromBytes(header.UDP(ip.Payload()).Payload())
		if err != nil {
			m.t.Fatal(err)
		}
		if answer.TransactionID != ask.TransactionID {
			continue
		}
		if !slices.Contains(kinds, answer.MessageType()) {
			m.t.Fatalf("%s, want %v", answer.Summary(), kinds)
		}
		return answer, netip.AddrFrom4(ip.DestinationAddress().As4())
	}
}

func dhcpFrame(mac net.HardwareAddr, ask *dhcpv4.DHCPv4) []byte {
	body := ask.ToBytes()
	f := make([]byte, 14+20+8+len(body))
	copy(f, broadcastMAC)
	copy(f[6:], mac)
	binary.BigEndian.PutUint16(f[12:], etherIPv4)
	from, to := header.IPv4Any, header.IPv4Broadcast
	ip := header.IPv4(f[14:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: 17, SrcAddr: from, DstAddr: to})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(ip.Payload())
	u.Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(len(u))})
	copy(u.Payload(), body)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, from, to, uint16(len(u)))
	u.SetChecksum(^checksum.Checksum(u, sum))
	return f
}

func (m *Machine) message(t dhcpv4.MessageType, options ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m.t.Helper()
	ask, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(m.mac), dhcpv4.WithMessageType(t)}, options...)...)
	if err != nil {
		m.t.Fatal(err)
	}
	return ask
}

func wants(a netip.Addr) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(a.AsSlice()))
}
func server(a net.IP) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(a)) }
func ipOf(b net.IP) netip.Addr        { a, _ := netip.AddrFromSlice(b.To4()); return a }

// lease takes an address as a guest does, and gives the acknowledgement.
func (m *Machine) lease() *dhcpv4.DHCPv4 {
	m.t.Helper()
	offer, _ := m.dhcp(m.message(dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer)
	ack, _ := m.dhcp(m.message(dhcpv4.MessageTypeRequest, wants(ipOf(offer.YourIPAddr)), server(offer.ServerIdentifier())), dhcpv4.MessageTypeAck)
	if !ack.YourIPAddr.Equal(offer.YourIPAddr) {
		m.t.Fatalf("offered %s, then leased %s", offer.YourIPAddr, ack.YourIPAddr)
	}
	return ack
}

func dhcpReservation(w *world) {
	n := shop()
	n.Segments[0].MTU = 1400
	w.apply(n)
	ack := w.machine(port("web", 0)).lease()
	if a := ipOf(ack.YourIPAddr); a != addr("10.0.1.10") {
		w.t.Errorf("leased %s", a)
	}
	if m := ack.SubnetMask(); net.IP(m).String() != "255.255.255.0" {
		w.t.Errorf("mask %s", m)
	}
	if r := ack.Router(); len(r) != 1 || ipOf(r[0]) != addr("10.0.1.1") {
		w.t.Errorf("router %v", r)
	}
	if d := ack.DNS(); len(d) != 1 || ipOf(d[0]) != addr("10.0.1.1") {
		w.t.Errorf("DNS %v", d)
	}
	if mtu := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(mtu) != 2 || binary.BigEndian.Uint16(mtu) != 1400 {
		w.t.Errorf("MTU %v", mtu)
	}
	if ack.HostName() != "web" || ack.DomainName() != "shop.internal" {
		w.t.Errorf("host %q, domain %q", ack.HostName(), ack.DomainName())
	}
	if d := ack.IPAddressLeaseTime(0); d < time.Minute {
		w.t.Errorf("leased for %s", d)
	}
	// In an isolated segment there is no way out, and no router is told.
	ack = w.machine(port("web", 1)).lease()
	if a := ipOf(ack.YourIPAddr); a != addr("10.0.3.10") || len(ack.Router()) != 0 {
		w.t.Errorf("leased %s with routers %v", a, ack.Router())
	}
	if d := ack.DNS(); len(d) != 1 || ipOf(d[0]) != n.Segments[2].EdgeAddress() {
		w.t.Errorf("DNS %v", d)
	}
}

func dhcpDynamic(w *world) {
	w.apply(shop())
	m := w.machine(port("any", 0))
	first := ipOf(m.lease().YourIPAddr)
	if !prefix("10.0.1.0/24").Contains(first) || slices.Contains([]string{"10.0.1.0", "10.0.1.1", "10.0.1.10", "10.0.1.11", "10.0.1.255"}, first.String()) {
		w.t.Fatalf("leased %s", first)
	}
	if again := ipOf(m.lease().YourIPAddr); again != first {
		w.t.Errorf("leased %s, then %s", first, again)
	}
	// A machine within the machine, with a MAC that nobody planned.
	m.mac = net.HardwareAddr{6, 0, 0, 0, 0, 9}
	nested := ipOf(m.lease().YourIPAddr)
	if nested == first || !prefix("10.0.1.0/24").Contains(nested) {
		w.t.Errorf("leased %s to another, and %s", first, nested)
	}
}

func dhcpLife(w *world) {
	w.apply(shop())
	web, m := w.machine(port("web", 0)), w.machine(port("any", 0))
	ack := web.lease()
	renewed, _ := web.dhcp(web.message(dhcpv4.MessageTypeRequest, dhcpv4.WithClientIP(ack.YourIPAddr)), dhcpv4.MessageTypeAck)
	if !renewed.YourIPAddr.Equal(ack.YourIPAddr) {
		w.t.Errorf("renewed as %s", renewed.YourIPAddr)
	}
	_, to := web.dhcp(web.message(dhcpv4.MessageTypeRequest, wants(addr("10.0.1.77"))), dhcpv4.MessageTypeNak) // another network's, after a move
	if to != addr("255.255.255.255") {
		w.t.Errorf("the refusal went to %s, which the machine may not have", to)
	}
	// Init-reboot with the address that it has.
	web.dhcp(web.message(dhcpv4.MessageTypeRequest, wants(addr("10.0.1.10"))), dhcpv4.MessageTypeAck)

	first := m.lease()
	m.dhcp(m.message(dhcpv4.MessageTypeDecline, wants(ipOf(first.YourIPAddr)), server(first.ServerIdentifier())))
	second := m.lease()
	if second.YourIPAddr.Equal(first.YourIPAddr) {
		w.t.Errorf("leased %s again, which somebody else has", first.YourIPAddr)
	}
	m.dhcp(m.message(dhcpv4.MessageTypeRelease, dhcpv4.WithClientIP(second.YourIPAddr), server(second.ServerIdentifier())))
	inform, _ := m.dhcp(m.message(dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(net.IPv4(10, 0, 1, 200))), dhcpv4.MessageTypeAck)
	if !inform.YourIPAddr.IsUnspecified() || len(inform.DNS()) != 1 {
		w.t.Errorf("an answer to inform: %s", inform.Summary())
	}
	// Nobody asks for another's lease.
	forged := web.message(dhcpv4.MessageTypeDiscover)
	forged.ClientHWAddr = m.mac
	web.dhcp(forged)
	offer, _ := web.dhcp(web.message(dhcpv4.MessageTypeDiscover), dhcpv4.MessageTypeOffer) // and nothing before it
	if ipOf(offer.YourIPAddr) != addr("10.0.1.10") {
		w.t.Errorf("offered %s", offer.YourIPAddr)
	}
}

// resolve asks the edge of a machine's segment.
func (m *Machine) resolve(server netip.Addr, network, name string, kind uint16) *dns.Msg {
	m.t.Helper()
	to := netip.AddrPortFrom(server, 53)
	var conn net.Conn = nil
	if network == "tcp" {
		conn = m.mustDialTCP(to)
	} else {
		conn = m.dialUDP(to)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	c := &dns.Conn{Conn: streamOrPackets(conn, network), UDPSize: dns.MaxMsgSize}
	ask := new(dns.Msg).SetQuestion(name, kind)
	if err := c.WriteMsg(ask); err != nil {
		m.t.Fatal(err)
	}
	answer, err := c.ReadMsg()
	if err != nil {
		m.t.Fatalf("%s asks %s for %s: %v", m.id.Machine, server, name, err)
	}
	return answer
}

// packetConn lets the DNS library see that a connection carries datagrams: it asks for a net.PacketConn.
type packetConn struct {
	net.Conn
	net.PacketConn
}

func (c packetConn) Close() error                       { return c.Conn.Close() }
func (c packetConn) LocalAddr() net.Addr                { return c.Conn.LocalAddr() }
func (c packetConn) SetDeadline(t time.Time) error      { return c.Conn.SetDeadline(t) }
func (c packetConn) SetReadDeadline(t time.Time) error  { return c.Conn.SetReadDeadline(t) }
func (c packetConn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(t) }

func streamOrPackets(c net.Conn, network string) net.Conn {
	if packets, ok := c.(net.PacketConn); ok && network == "udp" {
		return packetConn{c, packets}
	}
	return c
}

func names(w *world) {
	w.apply(shop())
	web, anybody, db := w.guest(port("web", 0)), w.machine(port("any", 0)), w.guest(port("db", 0))
	leased := ipOf(anybody.lease().YourIPAddr)
	front, back := addr("10.0.1.1"), addr("10.0.2.1")
	for _, c := range []struct {
		m          *Machine
		server     netip.Addr
		name       string
		kind       uint16
		code       int
		want, over string
	}{
		{web, front, "app.", dns.TypeA, dns.RcodeSuccess, "10.0.1.11", "udp"},
		{web, front, "app.shop.internal.", dns.TypeA, dns.RcodeSuccess, "10.0.1.11", "tcp"},
		{web, front, "APP.Shop.internal.", dns.TypeA, dns.RcodeSuccess, "10.0.1.11", "udp"},
		{web, front, "db.shop.internal.", dns.TypeA, dns.RcodeSuccess, "10.0.2.10", "udp"},
		{web, front, "any.shop.internal.", dns.TypeA, dns.RcodeSuccess, leased.String(), "udp"},
		{web, front, "app.shop.internal.", dns.TypeAAAA, dns.RcodeSuccess, "", "udp"},
		{web, front, "nobody.shop.internal.", dns.TypeA, dns.RcodeNameError, "", "udp"},
		{web, front, "nobody.", dns.TypeA, dns.RcodeNameError, "", "udp"},
		{web, front, "10.2.0.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, "db.shop.internal.", "udp"},
		{web, front, "99.2.0.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, "", "udp"},
		{db, back, "web.shop.internal.", dns.TypeA, dns.RcodeSuccess, "10.0.1.10", "udp"},
	} {
		answer := c.m.resolve(c.server, c.over, c.name, c.kind)
		var got []string
		for _, r := range answer.Answer {
			got = append(got, strings.TrimPrefix(r.String(), r.Header().String()))
		}
		if answer.Rcode != c.code || strings.Join(got, " ") != c.want {
			w.t.Errorf("%s %s: %s %v, want %s %s", c.name, dns.TypeToString[c.kind], dns.RcodeToString[answer.Rcode], got, dns.RcodeToString[c.code], c.want)
		}
	}
	// In the isolated segment its own machines have names, others have not.
	cellar := w.guest(port("web", 1))
	inside := w.network("shop").Segments[2].EdgeAddress()
	if a := cellar.resolve(inside, "udp", "db.", dns.TypeA); len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != "10.0.3.11" {
		w.t.Errorf("db within the isolated segment: %v", a.Answer)
	}
	if a := cellar.resolve(inside, "udp", "app.", dns.TypeA); a.Rcode != dns.RcodeNameError {
		w.t.Errorf("app within the isolated segment: %v", a.Answer)
	}
}

func (w *world) network(environment string) networks.Network {
	w.t.Helper()
	n, err := w.sub.Network(w.t.Context(), environment)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func namesForwarded(w *world) {
	w.apply(shop())
	web := w.guest(port("web", 0))
	if a := web.resolve(addr("10.0.1.1"), "udp", "example.com.", dns.TypeA); a.Rcode != dns.RcodeServerFailure {
		w.t.Errorf("without a resolver: %s", dns.RcodeToString[a.Rcode])
	}
	// A resolver with more to say than fits into a datagram.
	answer := dns.HandlerFunc(func(out dns.ResponseWriter, ask *dns.Msg) {
		reply := new(dns.Msg).SetReply(ask)
		count := 1
		if ask.Question[0].Name == "large.example.com." {
			count = 100
		}
		for i := range count {
			head := dns.RR_Header{Name: ask.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}
			reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: net.IPv4(192, 0, 2, byte(i))})
		}
		if _, udp := out.RemoteAddr().(*net.UDPAddr); udp {
			reply.Truncate(dns.MinMsgSize)
		}
		_ = out.WriteMsg(reply)
	})
	for _, network := range []string{"udp", "tcp"} {
		started := make(chan struct{})
		s := &dns.Server{Addr: w.options.Resolvers[0].String(), Net: network, Handler: answer, NotifyStartedFunc: func() { close(started) }}
		ended := make(chan error, 1)
		go func() { ended <- s.ListenAndServe() }()
		select {
		case <-started:
		case err := <-ended:
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = s.Shutdown() })
	}
	if a := web.resolve(addr("10.0.1.1"), "udp", "example.com.", dns.TypeA); len(a.Answer) != 1 || a.Answer[0].(*dns.A).A.String() != "192.0.2.0" {
		w.t.Errorf("example.com: %v", a)
	}
	if a := web.resolve(addr("10.0.1.1"), "udp", "large.example.com.", dns.TypeA); !a.Truncated {
		w.t.Errorf("a long answer is not said to be truncated: %v", a.MsgHdr)
	}
	if a := web.resolve(addr("10.0.1.1"), "tcp", "large.example.com.", dns.TypeA); len(a.Answer) != 100 {
		w.t.Errorf("%d answers over TCP, want 100", len(a.Answer))
	}
}

// arp asks who has an address.
func (m *Machine) arp(own, target netip.Addr) []byte {
	f := make([]byte, 42)
	copy(f, broadcastMAC)
	copy(f[6:], m.mac)
	binary.BigEndian.PutUint16(f[12:], etherARP)
	a := header.ARP(f[14:])
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPRequest)
	copy(a.HardwareAddressSender(), m.mac)
	copy(a.ProtocolAddressSender(), own.AsSlice())
	copy(a.ProtocolAddressTarget(), target.AsSlice())
	return f
}

func gateway(w *world) {
	w.apply(shop())
	web := w.machine(port("web", 0))
	own := addr("10.0.1.10")
	replies := web.watch(func(f []byte) bool { return ofType(etherARP)(f) && header.ARP(f[14:]).Op() == header.ARPReply })
	for _, nobody := range []string{"10.0.1.77", "10.0.1.11", "10.0.2.1", "192.0.2.1"} {
		web.send(web.arp(own, addr(nobody)))
	}
	web.send(web.arp(own, addr("10.0.1.1")))
	reply := header.ARP(replies.next(w.t)[14:]) // and none before it
	if a := netip.AddrFrom4([4]byte(reply.ProtocolAddressSender())); a != addr("10.0.1.1") {
		w.t.Errorf("somebody answers for %s", a)
	}
	if mac := net.HardwareAddr(reply.HardwareAddressSender()); mac.String() != networks.EdgeMAC(addr("10.0.1.1")) {
		w.t.Errorf("the gateway is at %s, want %s: it would be elsewhere after a move", mac, networks.EdgeMAC(addr("10.0.1.1")))
	}
	web.boot(prefix("10.0.1.10/24"), addr("10.0.1.1"), 1500)
	for _, a := range []string{"10.0.1.1", "10.0.2.1"} {
		if err := web.echo(within(w.t), addr(a), 1000); err != nil {
			w.t.Errorf("echo of %s: %v", a, err)
		}
	}
	cellar := w.guest(port("web", 1))
	if err := cellar.echo(within(w.t), w.network("shop").Segments[2].EdgeAddress(), 56); err != nil {
		w.t.Errorf("echo of the edge in an isolated segment: %v", err)
	}
}
