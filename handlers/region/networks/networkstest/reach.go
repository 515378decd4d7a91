package networkstest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// silent says that nothing answers a connection within a moment, or that it is refused.
func silent(m *Machine, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience/20)
	defer cancel()
	c, err := m.dialTCP(ctx, to)
	if err != nil {
		return nil
	}
	c.Close()
	return fmt.Errorf("%s reached %s", m.id.Machine, to)
}

func hostIsHidden(w *world) {
	// A service of the host that listens at all addresses, as many do, and one on the loopback.
	all, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		w.t.Fatal(err)
	}
	accept(w.t, all, sayWho)
	own, err := net.Listen("tcp4", netip.AddrPortFrom(w.outside(1), 0).String())
	if err != nil {
		w.t.Fatal(err)
	}
	accept(w.t, own, sayWho)
	everywhere, one := all.Addr().(*net.TCPAddr).AddrPort().Port(), own.Addr().(*net.TCPAddr).AddrPort()
	w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 80}))
	web := w.guest(port("web", 0))
	targets := []netip.Addr{
		addr("127.0.0.1"), addr("10.0.1.1"), addr("10.0.2.1"), addr("0.0.0.0"), addr("169.254.169.254"), addr("255.255.255.255"),
		w.bound(5, 0).Addr(), w.public(5), w.public(6), at(outsideNet.Addr(), 3),
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			targets = append(targets, p.Addr())
		}
	}
	var tries sync.WaitGroup
	for _, a := range targets {
		for _, port := range []uint16{everywhere, everywhere - offset} { // a public port is another one on the host
			tries.Go(func() {
				if err := silent(web, netip.AddrPortFrom(a, port)); err != nil {
					w.t.Error(err)
				}
			})
		}
	}
	tries.Go(func() {
		if err := silent(web, one); err != nil {
			w.t.Error(err)
		}
	})
	tries.Wait()
	readAll(w.t, web.mustDialTCP(w.published(one))) // but by its public address it is for everybody
}

func environmentsMeet(w *world) {
	one := w.opened(networks.Forward{Protocol: networks.TCP, Port: 80})
	two := shop()
	two.Environment = "other"
	two.Edge.Publics = []networks.Public{{Address: w.public(6), Bind: w.bound(6, 0).Addr(), PortOffset: offset, Target: addr("10.0.1.10")}}
	w.apply(one)
	w.apply(two)
	web, other := w.guest(port("web", 0)), w.guest(networks.PortID{Environment: "other", Machine: "web"})
	plain := w.guest(networks.PortID{Environment: "other", Machine: "app"})
	accept(w.t, web.listenTCP(80), func(c net.Conn) { fmt.Fprint(c, client(w.t, c)) })
	to := netip.AddrPortFrom(w.public(5), 80)
	if got := readAll(w.t, other.mustDialTCP(to)); got != w.public(6).String() {
		w.t.Errorf("a machine of another environment is seen as %s, not as its public address %s", got, w.public(6))
	}
	if got := readAll(w.t, plain.mustDialTCP(to)); got != "10.0.1.1" {
		w.t.Errorf("a machine without a public address is seen as %s, not as the gateway", got)
	}
	if got := readAll(w.t, web.mustDialTCP(to)); got != w.public(5).String() {
		w.t.Errorf("a machine that visits itself is seen as %s", got)
	}
	for _, closed := range []netip.AddrPort{netip.AddrPortFrom(w.public(5), 81), netip.AddrPortFrom(w.public(6), 80), netip.MustParseAddrPort("10.0.2.10:80")} {
		if err := silent(other, closed); err != nil {
			w.t.Error(err)
		}
	}
}

func routed(w *world) {
	n := shop()
	n.Segments[1].MTU = 1000
	w.apply(n)
	web, db := w.guest(port("web", 0)), w.guest(port("db", 0))
	accept(w.t, db.listenTCP(5432), func(c net.Conn) {
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%s said %d bytes", client(w.t, c), len(b))
	})
	c := web.mustDialTCP(netip.MustParseAddrPort("10.0.2.10:5432"))
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		w.t.Fatal(err)
	}
	_ = c.CloseWrite()
	if got := readAll(w.t, c); got != fmt.Sprintf("10.0.1.10 said %d bytes", 1<<20) {
		w.t.Error(got)
	}
	if err := web.echo(within(w.t), addr("10.0.2.10"), 900); err != nil {
		w.t.Errorf("echo: %v", err)
	}
	listens := db.listenUDP(53)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := listens.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = listens.WriteTo(buf[:n], from)
		}
	}()
	say := strings.Repeat("datagram ", 100)
	if got := ask(w.t, web.dialUDP(netip.MustParseAddrPort("10.0.2.10:53")), say); got != say {
		w.t.Errorf("%d bytes came back of %d", len(got), len(say))
	}
	// What is too long for the narrower segment goes on in fragments, also where it comes in fragments; unless it may not.
	large := echoFrame(web.mac, "10.0.1.10", "10.0.2.10", 1400, 64, 0)
	answers := web.watch(icmpOf(header.ICMPv4EchoReply))
	web.send(large)
	answers.next(w.t)
	first, rest := bytes.Clone(large[:14+20+1208]), append(bytes.Clone(large[:14+20]), large[14+20+1208:]...)
	for i, f := range [][]byte{first, rest} {
		ip := header.IPv4(f[14:])
		ip.SetID(77)
		ip.SetTotalLength(uint16(len(ip)))
		ip.SetFlagsFragmentOffset([]uint8{header.IPv4FlagMoreFragments, 0}[i], uint16(i*1208))
		ip.SetChecksum(0)
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	web.send(first, rest)
	answers.next(w.t)
	told := web.watch(icmpOf(header.ICMPv4DstUnreachable))
	web.send(echoFrame(web.mac, "10.0.1.10", "10.0.2.10", 1400, 64, header.IPv4FlagDontFragment))
	if about := header.ICMPv4(told.next(w.t)[34:]); about.Code() != header.ICMPv4FragmentationNeeded || about.MTU() != 1000 {
		w.t.Errorf("told of a too long packet by code %d and an MTU of %d", about.Code(), about.MTU())
	}
	// A packet at the end of its life is not passed on, and its sender told.
	complaints := web.watch(icmpOf(header.ICMPv4TimeExceeded))
	web.send(echoFrame(web.mac, "10.0.1.10", "10.0.2.10", 56, 1, 0))
	complaints.next(w.t)
}

// icmpOf matches ICMP of one type, of the first fragment.
func icmpOf(t header.ICMPv4Type) func([]byte) bool {
	return func(f []byte) bool {
		return ofType(etherIPv4)(f) && len(f) > 42 && f[23] == 1 && header.IPv4(f[14:]).FragmentOffset() == 0 && f[34] == byte(t)
	}
}

// echoFrame is an echo to another segment, as a guest's own stack would not write it.
func echoFrame(mac net.HardwareAddr, from, to string, size int, ttl, flags uint8) []byte {
	gateway := addr(from).As4()
	gateway[3] = 1
	edge, err := net.ParseMAC(networks.EdgeMAC(netip.AddrFrom4(gateway)))
	if err != nil {
		panic(err) // EdgeMAC writes MACs
	}
	f := frame(edge, mac, etherIPv4, 14+20+8+size, 0)
	ip := header.IPv4(f[14:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(ip)), ID: 7, TTL: ttl, Protocol: 1, Flags: flags, SrcAddr: tcpipAddr(from), DstAddr: tcpipAddr(to),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	echo := header.ICMPv4(ip.Payload())
	echo.SetType(header.ICMPv4Echo)
	echo.SetCode(0)
	echo.SetChecksum(0)
	echo.SetChecksum(^checksum.Checksum(echo, 0))
	return f
}

func isolated(w *world) {
	server := w.serveTCP(sayWho)
	w.apply(shop())
	web, db, front := w.guest(port("web", 1)), w.guest(port("db", 1)), w.guest(port("app", 0))
	accept(w.t, db.listenTCP(80), sayWho)
	readAll(w.t, web.mustDialTCP(netip.MustParseAddrPort("10.0.3.11:80"))) // within
	if err := silent(front, netip.MustParseAddrPort("10.0.3.11:80")); err != nil {
		w.t.Error(err)
	}
	// Also when a machine takes the edge for its gateway.
	web.boot(prefix("10.0.3.10/24"), w.network("shop").Segments[2].EdgeAddress(), 1500)
	for _, to := range []netip.AddrPort{w.published(server), netip.MustParseAddrPort("10.0.1.11:80")} {
		if err := silent(web, to); err != nil {
			w.t.Error(err)
		}
	}
}
