package networkstest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// serveUDP answers each datagram outside with who has sent it and what.
func (w *world) serveUDP() netip.AddrPort {
	w.t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.outside(2), 0)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s said %s", from, buf[:n]), from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// ask sends a datagram until one is answered: a network may lose some, though these do not lose many.
func ask(t testing.TB, c net.Conn, say string) string {
	t.Helper()
	buf := make([]byte, 1<<16)
	for range 20 {
		if _, err := io.WriteString(c, say); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(patience / 20))
		if n, err := c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	t.Fatal("no datagram is answered")
	return ""
}

func udpOut(w *world) {
	server := w.serveUDP()
	w.apply(w.opened())
	web := w.guest(port("web", 0))
	c := web.dialUDP(w.published(server))
	for _, say := range []string{"hello", "again", strings.Repeat("long ", 8000)} {
		from, said, _ := strings.Cut(ask(w.t, c, say), " said ")
		if said != say || netip.MustParseAddrPort(from).Addr() != w.bound(5, 0).Addr() {
			w.t.Errorf("%d bytes from %s, want %d from %s", len(said), from, len(say), w.bound(5, 0).Addr())
		}
	}
}

func udpIn(w *world) {
	w.apply(w.opened(networks.Forward{Protocol: networks.UDP, Port: 53, To: 5353}))
	web := w.guest(port("web", 0))
	inside := web.listenUDP(5353)
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := inside.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = inside.WriteTo(fmt.Appendf(nil, "%s said %s", from.(*net.UDPAddr).IP, buf[:n]), from)
		}
	}()
	for i := range 3 {
		c, err := net.Dial("udp4", w.bound(5, 53).String())
		if err != nil {
			w.t.Fatal(err)
		}
		defer c.Close()
		say := strings.Repeat(fmt.Sprint(i), 2000) // in two fragments
		if got, want := ask(w.t, c, say), "10.0.1.1 said "+say; got != want {
			w.t.Errorf("%d bytes: %.40s…, want %.40s…", len(got), got, want)
		}
	}
}

func udpIdle(w *world) {
	server := w.serveUDP()
	w.apply(w.opened(networks.Forward{Protocol: networks.UDP, Port: 53}))
	web := w.guest(port("web", 0))
	out := web.dialUDP(w.published(server))
	ask(w.t, out, "hello")
	in, err := net.Dial("udp4", w.bound(5, 53).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer in.Close()
	fmt.Fprint(in, "nobody answers")
	w.eventually("flows of datagrams are forgotten", func() bool { return w.edge("shop").Connections == 0 && w.edge("shop").Opened >= 2 })
	ask(w.t, out, "and again")
}
