package networkstest

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

func changeCases() []testCase {
	loopback := func(c networks.Capabilities) bool { return c.LoopbackBind }
	return []testCase{
		{name: "what is invalid changes nothing", run: invalid},
		{name: "an address that is taken changes nothing", needs: loopback, run: bindTaken},
		{name: "applying keeps open connections", needs: loopback, run: connectionsLive},
		{name: "applied and reversed is as before", needs: loopback, run: reversed},
		{name: "removed leaves nothing", needs: loopback, run: removed},
		{name: "an older epoch is refused", run: stale},
		{name: "a network is as it was applied", run: asApplied},
	}
}

func invalid(w *world) {
	w.apply(shop())
	for code, spoil := range map[networks.Code]func(*networks.Network){
		networks.NetworkInvalid:  func(n *networks.Network) { n.Segments[0].Gateway = addr("192.0.2.1") },
		networks.AddressConflict: func(n *networks.Network) { n.Segments[0].Ports[1].Address = n.Segments[0].Ports[0].Address },
		networks.DuplicateMAC:    func(n *networks.Network) { n.Segments[0].Ports[1].MAC = n.Segments[0].Ports[0].MAC },
	} {
		n := shop()
		n.Segments[1].Ports = nil // would be a change
		spoil(&n)
		w.refused(n, code)
		n.Environment = "new"
		w.refused(n, code)
	}
}

func bindTaken(w *world) {
	n := w.opened(networks.Forward{Protocol: networks.TCP, Port: 80})
	w.apply(n)
	web := w.guest(port("web", 0))
	accept(w.t, web.listenTCP(80), sayWho)
	taken, err := net.Listen("tcp4", w.bound(5, 83).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer taken.Close()
	more := w.opened(networks.Forward{Protocol: networks.TCP, Port: 81}, networks.Forward{Protocol: networks.UDP, Port: 82}, networks.Forward{Protocol: networks.TCP, Port: 83})
	more.Segments = more.Segments[:1]
	w.refused(more, networks.BindFailed)
	c, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	readAll(w.t, c)
	w.free(81, 82)

	elsewhere := w.opened(networks.Forward{Protocol: networks.TCP, Port: 80})
	elsewhere.Edge.Publics[0].Bind = netip.Addr{} // an address that this host does not have
	w.refused(elsewhere, networks.BindFailed)
	other := w.opened(networks.Forward{Protocol: networks.TCP, Port: 80}) // another environment's
	other.Environment = "other"
	w.refused(other, networks.BindFailed)
}

// free makes sure that nobody listens at public ports.
func (w *world) free(ports ...uint16) {
	w.t.Helper()
	for _, p := range ports {
		l, err := net.Listen("tcp4", w.bound(5, p).String())
		if err != nil {
			w.t.Errorf("something is left: %v", err)
			continue
		}
		l.Close()
		u, err := net.ListenPacket("udp4", w.bound(5, p).String())
		if err != nil {
			w.t.Errorf("something is left: %v", err)
			continue
		}
		u.Close()
	}
}

func connectionsLive(w *world) {
	server := w.serveTCP(echoBack)
	forward := networks.Forward{Protocol: networks.TCP, Port: 80}
	n := w.opened(forward)
	w.apply(n)
	web, app, db := w.guest(port("web", 0)), w.guest(port("app", 0)), w.guest(port("db", 0))
	accept(w.t, web.listenTCP(80), echoBack)
	accept(w.t, db.listenTCP(80), echoBack)
	accept(w.t, app.listenTCP(80), echoBack)
	in, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer in.Close()
	open := map[string]talk{
		"out":         {web.mustDialTCP(w.published(server))},
		"in":          {in},
		"between":     {web.mustDialTCP(netip.MustParseAddrPort("10.0.2.10:80"))},
		"in the same": {web.mustDialTCP(netip.MustParseAddrPort("10.0.1.11:80"))},
	}
	all := func(after string) {
		w.t.Helper()
		for name, c := range open {
			if err := c.works(); err != nil {
				w.t.Errorf("%s, after %s: %v", name, after, err)
			}
		}
	}
	all("nothing")
	n.Edge.Rules = []networks.Rule{{Allow: false, Protocol: networks.UDP}}
	w.apply(n)
	all("a rule")
	n.Segments[0].Ports = append(n.Segments[0].Ports, networks.Port{Machine: "new", MAC: "02:00:00:00:01:09", Address: addr("10.0.1.12")})
	w.apply(n)
	all("a port")
	n.Edge.Publics[0].Open = append(n.Edge.Publics[0].Open, networks.Forward{Protocol: networks.TCP, Port: 81})
	n.Edge.Publics = append(n.Edge.Publics, networks.Public{Address: w.public(7), Bind: w.bound(7, 0).Addr(), PortOffset: offset, Target: addr("10.0.1.12"), Open: []networks.Forward{forward}})
	w.apply(n)
	all("a public address")
	n.Segments = append(n.Segments, networks.Segment{ID: "more", Subnet: prefix("10.0.9.0/24"), Gateway: addr("10.0.9.1")})
	w.apply(n)
	all("a segment")
	n.Segments = slices.Delete(n.Segments, 2, 3) // the isolated one
	w.apply(n)
	all("a segment less")
	// What goes, goes with its connections.
	n.Edge.Publics[0].Open = nil
	w.apply(n)
	if err := open["in"].cut(); err != nil {
		w.t.Error(err)
	}
	delete(open, "in")
	all("a port closed")
	w.free(80, 81)
}

func reversed(w *world) {
	before := w.opened(networks.Forward{Protocol: networks.TCP, Port: 80})
	after := w.opened(networks.Forward{Protocol: networks.UDP, Port: 90}, networks.Forward{Protocol: networks.TCP, Port: 91, Last: 95})
	after.Segments = after.Segments[:1]
	after.Segments[0].Ports = after.Segments[0].Ports[:1]
	after.Edge.Rules = []networks.Rule{{Allow: false, Protocol: networks.ICMP}}
	w.apply(before)
	w.apply(after)
	if d := networks.Diff(w.network("shop"), after); len(d) != 0 {
		w.t.Errorf("it is not as applied: %v", d)
	}
	w.free(80)
	w.apply(before)
	if d := networks.Diff(w.network("shop"), before); len(d) != 0 {
		w.t.Errorf("it is not as before: %v", d)
	}
	w.free(90, 91, 95)
	web, db := w.guest(port("web", 0)), w.guest(port("db", 0))
	if err := web.echo(within(w.t), db.host.addr, 56); err != nil {
		w.t.Errorf("between segments that went and came: %v", err)
	}
}

func removed(w *world) {
	server := w.serveTCP(echoBack)
	w.apply(w.opened(networks.Forward{Protocol: networks.TCP, Port: 80, Last: 89}, networks.Forward{Protocol: networks.UDP, Port: 80}))
	other := shop()
	other.Environment = "other"
	w.apply(other)
	web := w.guest(port("web", 0))
	accept(w.t, web.listenTCP(80), echoBack)
	out := talk{web.mustDialTCP(w.published(server))}
	in, err := net.Dial("tcp4", w.bound(5, 80).String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer in.Close()
	for _, c := range []talk{out, {in}} {
		if err := c.works(); err != nil {
			w.t.Fatal(err)
		}
	}
	for range 2 {
		if err := w.sub.Remove(w.t.Context(), w.epoch, "shop"); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := (talk{in}).cut(); err != nil {
		w.t.Error(err)
	}
	w.free(80, 81, 89)
	if at := web.at.Socket; at != "" {
		left, err := os.ReadDir(filepath.Dir(at))
		if err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
		for _, e := range left {
			w.t.Errorf("%s is left", e.Name())
		}
	}
	all, err := w.sub.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if len(all) != 1 || all[0].Environment != "other" {
		w.t.Errorf("%d networks are left", len(all))
	}
	ports, edges, err := w.sub.Counters(w.t.Context())
	if err != nil || len(ports) != 6 || len(edges) != 1 {
		w.t.Errorf("counters of %d ports and %d edges are left, %v", len(ports), len(edges), err)
	}
	if _, err := w.sub.Network(w.t.Context(), "shop"); networks.CodeOf(err) != networks.NetworkUnknown {
		w.t.Errorf("the network that was removed: %v", err)
	}
}

func stale(w *world) {
	w.apply(shop())
	w.epoch = 5
	w.apply(shop())
	id := port("web", 0)
	try := map[string]func(ctx context.Context, epoch int) error{
		"apply": func(ctx context.Context, epoch int) error {
			n := shop()
			n.Epoch = epoch
			return w.sub.Apply(ctx, n)
		},
		"remove":  func(ctx context.Context, epoch int) error { return w.sub.Remove(ctx, epoch, "shop") },
		"plug":    func(ctx context.Context, epoch int) error { return w.sub.Plug(ctx, epoch, id) },
		"unplug":  func(ctx context.Context, epoch int) error { return w.sub.Unplug(ctx, epoch, id) },
		"park":    func(ctx context.Context, epoch int) error { return w.sub.Park(ctx, epoch, id) },
		"release": func(ctx context.Context, epoch int) error { return w.sub.Release(ctx, epoch, id) },
		"attachment": func(ctx context.Context, epoch int) error {
			_, err := w.sub.Attachment(ctx, epoch, id)
			return err
		},
	}
	for range 2 {
		for name, do := range try {
			if err := do(w.t.Context(), 4); networks.CodeOf(err) != networks.StaleEpoch {
				w.t.Errorf("%s with an older epoch: %v", name, err)
			}
		}
		w.restart() // it remembers
	}
	w.apply(shop())
}

func asApplied(w *world) {
	n := shop()
	n.Epoch = 3
	w.apply(shop())
	w.epoch = 3
	w.apply(n)
	got := w.network("shop")
	if d := networks.Diff(got, n); len(d) > 0 || got.Owner != n.Owner || got.Epoch != 3 {
		w.t.Errorf("owner %s, epoch %d: %v", got.Owner, got.Epoch, d)
	}
	got.Segments[0].Ports[0].MAC = "02:ff:ff:ff:ff:ff" // belongs to the reader
	if d := networks.Diff(w.network("shop"), n); len(d) > 0 {
		w.t.Errorf("what a reader was given changes the network: %v", d)
	}
}
