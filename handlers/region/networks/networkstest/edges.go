package networkstest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

func edgeCases() []testCase {
	loopback := func(c networks.Capabilities) bool { return c.LoopbackBind }
	keeps := func(c networks.Capabilities) bool { return c.LoopbackBind && c.KeepsClient }
	return []testCase{
		{name: "TCP to the outside", needs: loopback, run: tcpOut},
		{name: "TCP from the outside", needs: loopback, run: tcpIn},
		{name: "a stream that is closed on one side still carries the other", needs: loopback, run: halfClose},
		{name: "a broken connection is broken on both sides", needs: loopback, run: resets},
		{name: "100 MB each way", needs: loopback, run: bulk},
		{name: "many connections", needs: loopback, run: many},
		{name: "UDP to the outside", needs: loopback, run: udpOut},
		{name: "UDP from the outside", needs: loopback, run: udpIn},
		{name: "idle datagrams are forgotten", needs: loopback, options: func(o *Options) { o.UDPIdle = 50 * time.Millisecond }, run: udpIdle},
		{name: "a pool of ports", needs: loopback, run: portPool},
		{name: "source ports run out", needs: loopback, run: sourcePorts},
		{name: "echo of the outside", needs: func(c networks.Capabilities) bool { return c.LoopbackBind && c.Echo }, run: echoOut},
		{name: "nothing of the host is reachable", needs: loopback, run: hostIsHidden},
		{name: "environments meet at public addresses only", needs: keeps, run: environmentsMeet},
		{name: "two routed segments", run: routed},
		{name: "an isolated segment", needs: loopback, run: isolated},
	}
}

// serveTCP listens outside, and hands each connection to serve.
func (w *world) serveTCP(serve func(net.Conn)) netip.AddrPort {
	w.t.Helper()
	l, err := net.Listen("tcp4", netip.AddrPortFrom(w.outside(1), 0).String())
	if err != nil {
		w.t.Fatal(err)
	}
	accept(w.t, l, serve)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// accept serves connections until the test ends.
func accept(t testing.TB, l net.Listener, serve func(net.Conn)) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
}

// sayWho writes who has connected, and closes.
func sayWho(c net.Conn) { fmt.Fprint(c, c.RemoteAddr()) }

// echoBack sends back what comes.
func echoBack(c net.Conn) { _, _ = io.Copy(c, c) }

// readAll reads until the end, which must come.
func readAll(t testing.TB, c net.Conn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// opened is shop with a public address for web, where some ports are open.
func (w *world) opened(forwards ...networks.Forward) networks.Network {
	n := shop()
	n.Edge.Publics = []networks.Public{{
		Address: w.public(5), Bind: w.bound(5, 0).Addr(), PortOffset: offset, Target: addr("10.0.1.10"), Open: forwards,
	}}
	return n
}

func tcpOut(w *world) {
	server := w.serveTCP(sayWho)
	w.apply(w.opened())
	web, app := w.guest(port("web", 0)), w.guest(port("app", 0))
	to := w.published(server)
	from := netip.MustParseAddrPort(readAll(w.t, web.mustDialTCP(to)))
	if from.Addr() != w.bound(5, 0).Addr() {
		w.t.Errorf("web comes from %s, not from where its public address is bound, %s", from, w.bound(5, 0).Addr())
	}
	if from = netip.MustParseAddrPort(readAll(w.t, app.mustDialTCP(to))); from.Addr() == w.bound(5, 0).Addr() {
		w.t.Errorf("app comes from the public address of another: %s", from)
	}
	// Where nobody listens the machine is told so at once.
	_, err := web.dialTCP(within(w.t), netip.AddrPortFrom(to.Addr(), 1))
	if err == nil || !strings.Contains(err.Error(), "refused") {
		w.t.Errorf("where nobody listens: %v", err)
	}
	if e := w.edge("shop"); e.Opened < 2 || e.InBytes == 0 {
		w.t.Errorf("%+v", e)
	}
}

func tcpIn(w *world) {
	w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 80, To: 8080},
		networks.Forward{Protocol: networks.TCP, Port: 81, To: 8081, Target: addr("10.0.2.10")}))
	web, db := w.guest(port("web", 0)), w.guest(port("db", 0))
	accept(w.t, web.listenTCP(8080), func(c net.Conn) { fmt.Fprint(c, "web ", client(w.t, c)) })
	accept(w.t, db.listenTCP(8081), func(c net.Conn) { fmt.Fprint(c, "db ", client(w.t, c)) })
	for port, want := range map[uint16]string{80: "web 10.0.1.1", 81: "db 10.0.2.1"} {
		c, err := net.Dial("tcp4", w.bound(5, port).String())
		if err != nil {
			w.t.Fatal(err)
		}
		defer c.Close()
		if got := readAll(w.t, c); got != want {
			w.t.Errorf("port %d: %q, want %q: a client on the loopback is seen as the gateway", port, got, want)
		}
	}
	// A machine that has nobody there: the connection is broken off, if it comes to be at all.
	web.boot(prefix("10.0.1.10/24"), addr("10.0.1.1"), 1500)
	c, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err == nil {
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		w.t.Errorf("where no machine listens: %v", err)
	}
}

func halfClose(w *world) {
	server := w.serveTCP(func(c net.Conn) { // answers only when all has been said
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes", len(b))
	})
	w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 80}))
	web := w.guest(port("web", 0))
	c := web.mustDialTCP(w.published(server))
	say := bytes.Repeat([]byte("x"), 300000)
	if _, err := c.Write(say); err != nil {
		w.t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		w.t.Fatal(err)
	}
	if got := readAll(w.t, c); got != "300000 bytes" {
		w.t.Errorf("to the outside: %q", got)
	}
	accept(w.t, web.listenTCP(80), func(c net.Conn) {
		b, _ := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes", len(b))
	})
	in, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.Write(say); err != nil {
		w.t.Fatal(err)
	}
	if err := in.(*net.TCPConn).CloseWrite(); err != nil {
		w.t.Fatal(err)
	}
	if got := readAll(w.t, in); got != "300000 bytes" {
		w.t.Errorf("from the outside: %q", got)
	}
}

func resets(w *world) {
	type read struct{ err error }
	ends := make(chan read, 1)
	server := w.serveTCP(func(c net.Conn) {
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil {
			ends <- read{err}
			return
		}
		if string(b) == "break" {
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		}
		_, err := c.Read(b)
		ends <- read{err}
	})
	w.apply(shop())
	web := w.guest(port("web", 0))
	c := web.mustDialTCP(w.published(server))
	if _, err := c.Write([]byte("break")); err != nil {
		w.t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		w.t.Errorf("the outside breaks off: %v", err)
	}
	c = web.mustDialTCP(w.published(server))
	if _, err := c.Write([]byte("hello")); err != nil {
		w.t.Fatal(err)
	}
	web.abort(c)
	select {
	case r := <-ends:
		if !errors.Is(r.err, syscall.ECONNRESET) {
			w.t.Errorf("the machine breaks off: %v", r.err)
		}
	case <-time.After(patience):
		w.t.Error("the machine breaks off, and nobody hears")
	}
}

func bulk(w *world) {
	const size = 100 << 20
	// The sum of what has come is said back; so nothing is lost, doubled or turned around.
	summing := func(c net.Conn) {
		h := sha256.New()
		n, _ := io.Copy(h, c)
		fmt.Fprintf(c, "%d %x", n, h.Sum(nil))
	}
	server := w.serveTCP(summing)
	w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 80}))
	web := w.guest(port("web", 0))
	accept(w.t, web.listenTCP(80), summing)
	send := func(c interface {
		net.Conn
		CloseWrite() error
	}) {
		w.t.Helper()
		h, random := sha256.New(), rand.NewChaCha8([32]byte{1})
		start := time.Now()
		if _, err := io.CopyN(io.MultiWriter(c, h), random, size); err != nil {
			w.t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			w.t.Fatal(err)
		}
		if got, want := readAll(w.t, c), fmt.Sprintf("%d %x", size, h.Sum(nil)); got != want {
			w.t.Errorf("%s came, not %s", got, want)
		}
		w.t.Logf("%.2f Gbit/s", size*8/float64(time.Since(start).Nanoseconds()))
	}
	send(web.mustDialTCP(w.published(server)))
	in, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer in.Close()
	send(in.(*net.TCPConn))
}

func many(w *world) {
	const connections = 500
	w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 80}))
	server := w.serveTCP(echoBack)
	web := w.guest(port("web", 0))
	accept(w.t, web.listenTCP(80), echoBack)
	var all sync.WaitGroup
	hold, held := make(chan struct{}), make(chan struct{}, 2*connections)
	talk := func(n int, dial func() (net.Conn, error)) {
		c, err := dial()
		if err != nil {
			w.t.Errorf("connection %d: %v", n, err)
			held <- struct{}{}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * patience))
		say := fmt.Sprintf("number %d", n)
		got := make([]byte, len(say))
		for round := range 2 {
			fmt.Fprint(c, say)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != say {
				w.t.Errorf("connection %d: %q, %v", n, got, err)
			}
			if round == 0 {
				held <- struct{}{}
				<-hold
			}
		}
	}
	for i := range connections {
		all.Go(func() {
			talk(i, func() (net.Conn, error) { return web.dialTCP(within(w.t), w.published(server)) })
		})
		all.Go(func() { talk(i, func() (net.Conn, error) { return net.Dial("tcp4", w.bound(5, 80).String()) }) })
	}
	for range 2 * connections {
		<-held
	}
	if n := w.edge("shop").Connections; n < 2*connections {
		w.t.Errorf("%d connections, want %d", n, 2*connections)
	}
	close(hold)
	all.Wait()
	w.eventually("connections are over", func() bool { return w.edge("shop").Connections == 0 })
}

// eventually waits for something that the substrate does on its own, and can only be asked for.
func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	ctx := within(w.t)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("waited in vain: %s", what)
		}
	}
}

func portPool(w *world) {
	w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 9000, Last: 9004, To: 7000}))
	web := w.guest(port("web", 0))
	for i := range uint16(5) {
		accept(w.t, web.listenTCP(7000+i), func(c net.Conn) { fmt.Fprint(c, 7000+i) })
		c, err := net.Dial("tcp4", w.bound(5, 9000+i).String())
		if err != nil {
			w.t.Fatal(err)
		}
		defer c.Close()
		if got, want := readAll(w.t, c), fmt.Sprint(7000+i); got != want {
			w.t.Errorf("port %d leads to %s, want %s", 9000+i, got, want)
		}
	}
	if c, err := net.Dial("tcp4", w.bound(5, 9005).String()); err == nil {
		c.Close()
		w.t.Error("a port beyond the pool is open")
	}
}

func sourcePorts(w *world) {
	server := w.serveTCP(func(c net.Conn) {
		fmt.Fprintln(c, c.RemoteAddr())
		_, _ = io.Copy(io.Discard, c)
	})
	const first, count = 31000, 3
	n := w.opened()
	n.Edge.SourcePorts = networks.PortRange{First: first, Last: first + count - 1}
	w.apply(n)
	web, app := w.guest(port("web", 0)), w.guest(port("app", 0))
	to := w.published(server)
	seen := map[uint16]bool{}
	line := func(c net.Conn) string {
		w.t.Helper()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err != nil {
			w.t.Fatal(err)
		}
		return strings.TrimSpace(string(buf[:n]))
	}
	var held []net.Conn
	for range count {
		c := web.mustDialTCP(to)
		from := netip.MustParseAddrPort(line(c))
		if from.Port() < first || from.Port() >= first+count || seen[from.Port()] || from.Addr() != w.bound(5, 0).Addr() {
			w.t.Errorf("a connection comes from %s", from)
		}
		seen[from.Port()] = true
		held = append(held, c)
	}
	if _, err := web.dialTCP(within(w.t), to); err == nil {
		w.t.Error("one more connection than ports")
	}
	if e := w.edge("shop"); e.PortsExhausted != 1 {
		w.t.Errorf("ports were exhausted %d times, want 1", e.PortsExhausted)
	}
	line(app.mustDialTCP(to)) // the edge's own ports are others
	held[0].Close()
	w.eventually("a port is given back", func() bool {
		c, err := web.dialTCP(within(w.t), to)
		if err == nil {
			w.t.Cleanup(func() { c.Close() })
		}
		return err == nil
	})
}

func echoOut(w *world) {
	w.apply(shop())
	web := w.guest(port("web", 0))
	if err := web.echo(within(w.t), w.published(netip.AddrPortFrom(w.outside(1), 0)).Addr(), 1000); err != nil {
		w.t.Error(err)
	}
}
