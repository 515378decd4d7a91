package networkstest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

func ruleCases() []testCase {
	loopback := func(c networks.Capabilities) bool { return c.LoopbackBind }
	return []testCase{
		{name: "rules between segments", run: rulesBetween},
		{name: "rules to the outside and from there", needs: loopback, run: rulesOutside},
		{name: "rules for echoes", run: rulesEcho},
	}
}

func one(s string) []netip.Prefix { return []netip.Prefix{prefix(s)} }
func portsOf(first, last uint16) []networks.PortRange {
	return []networks.PortRange{{First: first, Last: last}}
}

// talk opens a connection over which each side answers the other.
type talk struct{ net.Conn }

func (c talk) works() error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprint(c, "ping"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 4))
	return err
}

// cut says whether the connection no longer carries anything. Packets that are not let through any more look like silence.
func (c talk) cut() error {
	_ = c.SetDeadline(time.Now().Add(patience / 20))
	if _, err := fmt.Fprint(c, "ping"); err != nil {
		return nil
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err == nil {
		return fmt.Errorf("the connection from %s to %s still carries something", c.LocalAddr(), c.RemoteAddr())
	}
	return nil
}

func rulesBetween(w *world) {
	n := shop()
	n.Edge.Rules = []networks.Rule{
		{Allow: true, Protocol: networks.TCP, From: one("10.0.1.10/32"), To: one("10.0.2.0/24"), Ports: portsOf(5000, 5001)},
		{Allow: false, From: one("10.0.1.0/24"), To: one("10.0.2.0/24")},
	}
	w.apply(n)
	web, app, db := w.guest(port("web", 0)), w.guest(port("app", 0)), w.guest(port("db", 0))
	for _, p := range []uint16{5000, 5001, 5002} {
		accept(w.t, db.listenTCP(p), echoBack)
	}
	accept(w.t, web.listenTCP(80), echoBack)
	to := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(addr("10.0.2.10"), p) }
	first, second := talk{web.mustDialTCP(to(5000))}, talk{web.mustDialTCP(to(5001))}
	back := talk{db.mustDialTCP(netip.MustParseAddrPort("10.0.1.10:80"))} // and its answers pass, though no rule names them
	for _, c := range []talk{first, second, back} {
		if err := c.works(); err != nil {
			w.t.Error(err)
		}
	}
	before := w.edge("shop").Refused
	if err := silent(web, to(5002)); err != nil {
		w.t.Error(err)
	}
	if err := silent(app, to(5000)); err != nil {
		w.t.Error(err)
	}
	if after := w.edge("shop").Refused; after < before+2 {
		w.t.Errorf("%d connections were refused, want 2", after-before)
	}
	// Rules that change apply to new connections, and to those that they no longer let through.
	n.Edge.Rules[0].Ports = portsOf(5001, 5002)
	w.apply(n)
	if err := first.cut(); err != nil {
		w.t.Error(err)
	}
	for _, c := range []talk{second, back} {
		if err := c.works(); err != nil {
			w.t.Errorf("a connection that is still allowed: %v", err)
		}
	}
	if err := (talk{web.mustDialTCP(to(5002))}).works(); err != nil {
		w.t.Error(err)
	}
	if err := silent(web, to(5000)); err != nil {
		w.t.Error(err)
	}
}

func rulesOutside(w *world) {
	server := w.serveTCP(echoBack)
	n := w.opened(networks.Forward{Protocol: networks.TCP, Port: 80, To: 8080}, networks.Forward{Protocol: networks.UDP, Port: 53})
	w.apply(n)
	web := w.guest(port("web", 0))
	accept(w.t, web.listenTCP(8080), echoBack)
	out := talk{web.mustDialTCP(w.published(server))}
	c, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	in := talk{c}
	defer in.Close()
	for _, c := range []talk{out, in} {
		if err := c.works(); err != nil {
			w.t.Fatal(err)
		}
	}
	// Behind a public address rules see the machine's inner address and port, and the client's outer one.
	n.Edge.Rules = []networks.Rule{{Allow: false, Protocol: networks.TCP, From: one("127.0.0.0/8"), To: one("10.0.1.10/32"), Ports: portsOf(8080, 8080)}}
	w.apply(n)
	if err := in.cut(); err != nil {
		w.t.Error(err)
	}
	if err := out.works(); err != nil {
		w.t.Errorf("a connection that is still allowed: %v", err)
	}
	refused, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err == nil {
		defer refused.Close()
		if err := (talk{refused}).cut(); err != nil {
			w.t.Error(err)
		}
	}
	n.Edge.Rules = []networks.Rule{
		{Allow: true, To: one(outsideNet.String()), Ports: portsOf(1, 2)},
		{Allow: false, Protocol: networks.TCP, From: one("10.0.1.0/24")},
	}
	w.apply(n)
	if err := out.cut(); err != nil {
		w.t.Error(err)
	}
	if err := silent(web, w.published(server)); err != nil {
		w.t.Error(err)
	}
	if got := ask(w.t, web.dialUDP(w.published(w.serveUDP())), "still"); got == "" {
		w.t.Error("datagrams do not pass")
	}
	again, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer again.Close()
	if err := (talk{again}).works(); err != nil {
		w.t.Errorf("from the outside, which is allowed again: %v", err)
	}
}

func rulesEcho(w *world) {
	n := shop()
	w.apply(n)
	web, db := w.guest(port("web", 0)), w.guest(port("db", 0))
	if err := web.echo(within(w.t), addr("10.0.2.10"), 56); err != nil {
		w.t.Fatal(err)
	}
	n.Edge.Rules = []networks.Rule{{Allow: false, Protocol: networks.ICMP, From: one("10.0.1.0/24")}}
	w.apply(n)
	ctx, cancel := context.WithTimeout(w.t.Context(), patience/20)
	defer cancel()
	if err := web.echo(ctx, addr("10.0.2.10"), 56); err == nil {
		w.t.Error("an echo that is refused is answered")
	}
	if err := db.echo(within(w.t), addr("10.0.1.10"), 56); err != nil {
		w.t.Errorf("an echo the other way: %v", err)
	}
}
