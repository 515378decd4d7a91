package edge

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/segment"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestTracker(t *testing.T) {
	now := time.Unix(1000, 0)
	there := packet{tuple: tuple{protocolTCP, addrPort("10.0.1.1:1000"), addrPort("10.0.2.1:80")}}
	back := packet{tuple: there.reverse()}
	yes, no := func(tuple) bool { return true }, func(tuple) bool { return false }
	only := func(u tuple) func(tuple) bool { return func(asked tuple) bool { return asked == u } }

	tr := newTracker()
	check := func(step string, p packet, allow func(tuple) bool, ok, opened bool) {
		t.Helper()
		if gotOK, gotOpened := tr.pass(p, now, allow); gotOK != ok || gotOpened != opened {
			t.Errorf("%s: passed %v, opened %v; want %v, %v", step, gotOK, gotOpened, ok, opened)
		}
	}
	check("refused", there, no, false, false)
	check("opened", there, only(there.tuple), true, true)
	check("answered", back, no, true, false)
	check("goes on without being asked about", there, no, true, false)
	now = now.Add(idleOpen - time.Second)
	check("kept alive", there, no, true, false)
	now = now.Add(idleOpen + time.Second)
	check("forgotten", there, no, false, false)
	check("taken up in the middle", back, only(back.tuple), true, true)
	if tr.count(now) != 1 {
		t.Errorf("%d connections, want 1", tr.count(now))
	}
	end := back
	end.fin = true
	check("ends", end, no, true, false)
	now = now.Add(idleClosing + time.Second)
	check("ended", back, no, false, false)

	check("opened", there, yes, true, true)
	tr.cut(only(back.tuple))
	check("cut", there, no, false, false)
	check("the other way", back, yes, true, true)
	tr.cut(only(back.tuple))
	check("not cut: it was opened from there", there, no, true, false)

	// A connection that nobody answers is forgotten sooner.
	unanswered := packet{tuple: tuple{protocolTCP, addrPort("10.0.1.1:1001"), addrPort("10.0.2.1:80")}}
	check("opened", unanswered, yes, true, true)
	now = now.Add(idleOpening + time.Second)
	check("forgotten", unanswered, no, false, false)
}

func TestTrackerIsBounded(t *testing.T) {
	tr, now := newTracker(), time.Unix(1000, 0)
	yes := func(tuple) bool { return true }
	p := func(i int) packet {
		from := netip.AddrFrom4([4]byte{10, byte(i >> 24), byte(i >> 16), 1})
		return packet{tuple: tuple{protocolUDP, netip.AddrPortFrom(from, uint16(i)), addrPort("10.0.2.1:80")}}
	}
	for i := range maxTracked {
		if ok, _ := tr.pass(p(i), now, yes); !ok {
			t.Fatalf("connection %d is refused", i)
		}
	}
	if ok, _ := tr.pass(p(maxTracked), now, yes); ok {
		t.Error("more connections than the bound")
	}
	if ok, _ := tr.pass(p(0), now, yes); !ok {
		t.Error("a connection that is there is refused")
	}
	now = now.Add(idleOther + time.Second)
	if ok, _ := tr.pass(p(maxTracked), now, yes); !ok {
		t.Error("refused though all others are over")
	}
}

func TestFragments(t *testing.T) {
	ip := header.IPv4(make([]byte, 20+3000))
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), ID: 9, TTL: 64, Protocol: 17})
	for i := 20; i < len(ip); i++ {
		ip[i] = byte(i * 7)
	}
	join := func(parts []header.IPv4, mtu int) []byte {
		t.Helper()
		whole := make([]byte, 3000)
		for i, p := range parts {
			if len(p) > mtu || int(p.TotalLength()) != len(p) || p.ID() != 9 || p.More() != (i < len(parts)-1) {
				t.Errorf("part %d of %d: %d bytes, length %d, id %d, more %v", i, len(parts), len(p), p.TotalLength(), p.ID(), p.More())
			}
			copy(whole[p.FragmentOffset():], p.Payload())
		}
		return whole
	}
	parts := fragments(ip, 1000)
	if !bytes.Equal(join(parts, 1000), ip[20:]) {
		t.Error("the parts are not the whole")
	}
	var finer []header.IPv4
	for _, p := range parts {
		finer = append(finer, fragments(p, 100)...)
	}
	if !bytes.Equal(join(finer, 100), ip[20:]) {
		t.Error("the parts of parts are not the whole")
	}
	if one := fragments(ip, 3020); len(one) != 1 || !bytes.Equal(one[0].Payload(), ip[20:]) {
		t.Errorf("%d parts of what fits", len(one))
	}
}

func TestListens(t *testing.T) {
	exact, err := net.Listen("tcp4", "127.93.1.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer exact.Close()
	all, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	packets, err := net.ListenPacket("udp4", "127.93.1.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	at := exact.Addr().(*net.TCPAddr).AddrPort()
	wild := netip.AddrPortFrom(at.Addr(), all.Addr().(*net.TCPAddr).AddrPort().Port())
	udp := packets.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, c := range []struct {
		p    networks.Protocol
		at   netip.AddrPort
		want bool
	}{
		{networks.TCP, at, true}, {networks.UDP, at, false}, {networks.TCP, wild, false},
		{networks.UDP, udp, true}, {networks.TCP, udp, false},
	} {
		if got := listens(c.p, c.at); got != c.want {
			t.Errorf("%s %s: %v", c.p, c.at, got)
		}
	}
}

func TestHostResolvers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if got := HostResolvers(file); got != nil {
		t.Errorf("without a file: %v", got)
	}
	if err := os.WriteFile(file, []byte("search example.com\nnameserver 127.0.0.53\nnameserver 2001:db8::1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := HostResolvers(file); len(got) != 2 || got[0] != addrPort("127.0.0.53:53") || got[1] != addrPort("[2001:db8::1]:53") {
		t.Error(got)
	}
}

func testEdge(t *testing.T, s networks.Segment) (*Edge, *nic) {
	t.Helper()
	e, err := New("test", Config{Directory: NewDirectory(), Resolvers: func() []netip.AddrPort { return nil }, UDPIdle: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	c, err := e.Prepare(t.Context(), networks.Network{Environment: "test", Segments: []networks.Segment{s}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Commit(map[string]*segment.Segment{s.ID: segment.New(s.MTUOr())}); err != nil {
		t.Fatal(err)
	}
	return e, e.now.Load().nics[0]
}

func small() networks.Segment {
	return networks.Segment{ID: "small", Subnet: netip.MustParsePrefix("10.0.0.0/29"), Gateway: netip.MustParseAddr("10.0.0.1"), DHCP: true, DNS: true, Ports: []networks.Port{
		{Machine: "web", MAC: "02:00:00:00:00:01", Address: netip.MustParseAddr("10.0.0.3")},
	}}
}

// TestLeases: 10.0.0.0/29 has six hosts; .1 is the gateway's and .3 web's, so four are left.
func TestLeases(t *testing.T) {
	_, n := testEdge(t, small())
	now := time.Unix(1000, 0)
	say := func(kind dhcpv4.MessageType, mac byte, options ...dhcpv4.Modifier) string {
		t.Helper()
		hw := net.HardwareAddr{2, 0, 0, 0, 0, mac}
		ask, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(hw), dhcpv4.WithMessageType(kind)}, options...)...)
		if err != nil {
			t.Fatal(err)
		}
		answer := n.dhcp.answer(ask, segment.ParseMAC(hw), now)
		if answer == nil {
			return ""
		}
		return answer.MessageType().String() + " " + answer.YourIPAddr.String()
	}
	wants := func(last byte) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 0, 0, last)))
	}
	from := func(last byte) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, last)))
	}
	has := func(last byte) dhcpv4.Modifier { return dhcpv4.WithClientIP(net.IPv4(10, 0, 0, last)) }
	const discover, request, decline, release = dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease
	for i, c := range []struct {
		say, want string
	}{
		{say(discover, 1), "OFFER 10.0.0.3"},
		{say(request, 1, wants(3), from(1)), "ACK 10.0.0.3"},
		{say(request, 1, wants(4), from(1)), "NAK 0.0.0.0"},
		{say(decline, 1, wants(3), from(1)), ""},
		{say(discover, 1), "OFFER 10.0.0.3"}, // it has no other
		{say(discover, 10), "OFFER 10.0.0.2"},
		{say(discover, 11), "OFFER 10.0.0.4"}, // .2 is offered
		{say(request, 10, wants(2), from(1)), "ACK 10.0.0.2"},
		{say(request, 11, wants(4), from(6)), ""}, // another server's
		{say(discover, 12), "OFFER 10.0.0.4"},
		{say(request, 12, wants(4), from(1)), "ACK 10.0.0.4"},
		{say(request, 13, has(6)), "ACK 10.0.0.6"}, // leased by an earlier edge
		{say(request, 14, has(6)), "NAK 0.0.0.0"},
		{say(request, 14, wants(3)), "NAK 0.0.0.0"},
		{say(request, 14, wants(77)), "NAK 0.0.0.0"},
		{say(discover, 14), "OFFER 10.0.0.5"},
		{say(request, 14, wants(5), from(1)), "ACK 10.0.0.5"},
		{say(discover, 15), ""}, // none is left
		{say(release, 14, has(5), from(1)), ""},
		{say(discover, 15), "OFFER 10.0.0.5"},
		{say(decline, 10, wants(2), from(1)), ""},
		{say(discover, 10), ""}, // .2 is somebody else's for a while, .5 is offered
	} {
		if c.say != c.want {
			t.Errorf("step %d: %q, want %q", i, c.say, c.want)
		}
	}
	now = now.Add(declinedTime)
	if got := say(discover, 10); got != "OFFER 10.0.0.5" && got != "OFFER 10.0.0.2" {
		t.Errorf("after the decline is forgotten: %q", got)
	}
	now = now.Add(leaseTime)
	if got := say(discover, 16, wants(6)); got != "OFFER 10.0.0.6" {
		t.Errorf("after the leases have expired: %q", got)
	}
}

// FuzzInput: whatever a machine sends, the edge stands.
func FuzzInput(f *testing.F) {
	heads := func(etherType ...byte) []byte {
		return append([]byte("\x0a\x7b\x0a\x00\x00\x01\x02\x00\x00\x00\x00\x01"), etherType...)
	}
	arp := append(heads(8, 6), "\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x01\x0a\x00\x00\x03\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x01"...)
	f.Add(arp)
	for _, protocol := range []uint8{protocolICMP, protocolTCP, protocolUDP, 47} {
		for _, to := range []string{"10.0.0.1", "10.0.1.7", "192.0.2.1", "255.255.255.255"} {
			ip := header.IPv4(make([]byte, 20+60))
			ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: protocol,
				SrcAddr: tcpipAddr(netip.MustParseAddr("10.0.0.3")), DstAddr: tcpipAddr(netip.MustParseAddr(to))})
			ip.SetChecksum(^ip.CalculateChecksum())
			copy(ip[20:], "\x00\x44\x00\x43\x00\x3c\x00\x00\x01\x01\x06\x00")
			f.Add(append(heads(8, 0), ip...))
		}
	}
	e, err := New("test", Config{Directory: NewDirectory(), Resolvers: func() []netip.AddrPort { return nil }, UDPIdle: time.Second})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(e.Close)
	other := networks.Segment{ID: "other", Subnet: netip.MustParsePrefix("10.0.1.0/24"), Gateway: netip.MustParseAddr("10.0.1.1")}
	wires := map[string]*segment.Segment{"small": segment.New(1500), "other": segment.New(600)}
	other.MTU = 600
	c, err := e.Prepare(f.Context(), networks.Network{Environment: "test", Segments: []networks.Segment{small(), other}})
	if err != nil {
		f.Fatal(err)
	}
	if err := c.Commit(wires); err != nil {
		f.Fatal(err)
	}
	n := e.now.Load().nics[0]
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < header.EthernetMinimumSize {
			return // the segment lets none in
		}
		if ip := header.IPv4(frame[header.EthernetMinimumSize:]); len(ip) >= header.IPv4MinimumSize && header.Ethernet(frame).Type() == header.IPv4ProtocolNumber {
			if len(ip) > header.IPv4MinimumSize && int(ip.HeaderLength()) <= len(ip) && ip.HeaderLength() >= header.IPv4MinimumSize {
				ip.SetChecksum(0) // or nearly nothing would come further
				ip.SetChecksum(^ip.CalculateChecksum())
			}
			if dst := netip.AddrFrom4(ip.DestinationAddress().As4()); !e.now.Load().owns(dst) && !dst.IsLoopback() && dst != limitedBroadcast {
				return // no test talks to the world
			}
		}
		n.input(bytes.Clone(frame))
	})
}
