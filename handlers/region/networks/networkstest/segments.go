package networkstest

import (
	"encoding/binary"
	"net"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

func segmentCases() []testCase {
	parks := func(c networks.Capabilities) bool { return c.Parks }
	return []testCase{
		{name: "frames arrive as they were sent", run: framesArrive},
		{name: "no frame reaches another segment or environment", run: framesStay},
		{name: "nobody sends with another's address", run: noSpoofing},
		{name: "a machine that stands still costs the others nothing", run: slowMachine},
		{name: "a machine that went and came is plugged in again", run: machineComesBack},
		{name: "a substrate that went and came plugs in again", run: substrateComesBack},
		{name: "unplug", run: unplugged},
		{name: "parked frames arrive in order", needs: parks, run: parked},
		{name: "counters", run: counters},
	}
}

// introduce lets the segment learn where machines are.
func introduce(machines ...*Machine) {
	for i, m := range machines {
		hello := frame(broadcastMAC, m.mac, etherTest, 60, uint32(0xfeed0000+i))
		var watchers []*watcher
		for _, o := range machines {
			if o != m {
				watchers = append(watchers, o.watch(ofType(etherTest)))
			}
		}
		m.send(hello)
		for _, w := range watchers {
			for binary.BigEndian.Uint32(w.next(m.t)[14:]) != uint32(0xfeed0000+i) {
			}
		}
	}
}

// frames only: one segment without any addresses.
func wires(machines ...string) networks.Network {
	n := networks.Network{Environment: "shop", Owner: "order-1", Epoch: 1, Segments: []networks.Segment{{ID: "wire"}}}
	for i, m := range machines {
		n.Segments[0].Ports = append(n.Segments[0].Ports, networks.Port{Machine: m, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}.String()})
	}
	return n
}

func framesArrive(w *world) {
	w.apply(wires("a", "b", "c"))
	a, b, c := w.machine(port("a", 0)), w.machine(port("b", 0)), w.machine(port("c", 0))
	introduce(a, b, c)
	const marker = 0x88b6 // the second one for experiments
	atB, atC := b.watch(func(f []byte) bool { return f[13] != 0xb5 }), c.watch(func(f []byte) bool { return f[13] != 0xb5 })

	unicast := [][]byte{
		frame(b.mac, a.mac, 0x1234, 60, 1),
		frame(b.mac, a.mac, etherIPv4, 1514, 2),
		frame(b.mac, a.mac, 0x8100, 1518, 3), // with a VLAN tag
	}
	a.send(unicast...)
	atB.expect(w.t, unicast...)
	for i, group := range []net.HardwareAddr{broadcastMAC, {0x33, 0x33, 0xff, 0, 0, 1}, {0x01, 0, 0x5e, 0, 0, 0xfb}} {
		// A neighbour solicitation goes to the second.
		f := frame(group, a.mac, etherIPv6, 86, uint32(i))
		a.send(f)
		atB.expect(w.t, f)
		atC.expect(w.t, f)
	}
	unknown := frame(net.HardwareAddr{2, 0, 0, 0, 0, 0xee}, a.mac, marker, 60, 9)
	a.send(unknown)
	atB.expect(w.t, unknown)
	atC.expect(w.t, unknown) // and none of what went to b
}

func framesStay(w *world) {
	n := shop()
	n.Segments[1].Ports = append(n.Segments[1].Ports, networks.Port{Machine: "extra", MAC: "02:00:00:00:02:02"})
	w.apply(n)
	other := shop()
	other.Environment = "other"
	w.apply(other)
	web, app := w.machine(port("web", 0)), w.machine(port("app", 0))
	db, cellar := w.machine(port("db", 0)), w.machine(port("web", 1))
	twin := w.machine(networks.PortID{Environment: "other", Machine: "app"}) // the same MAC as app
	introduce(web, app)
	var elsewhere []*watcher
	for _, m := range []*Machine{db, cellar, twin} {
		elsewhere = append(elsewhere, m.watch(ofType(0x88b6)))
	}
	atApp := app.watch(ofType(0x88b6))
	all := [][]byte{frame(broadcastMAC, web.mac, 0x88b6, 60, 1), frame(app.mac, web.mac, 0x88b6, 60, 2), frame(db.mac, web.mac, 0x88b6, 60, 3)}
	web.send(all...)
	atApp.expect(w.t, all[0], all[1])
	// What each of the others sees next is what it is sent in its own segment.
	for i, p := range []networks.PortID{port("extra", 0), port("db", 1), {Environment: "other", Machine: "web"}} {
		neighbour := w.machine(p)
		f := frame(broadcastMAC, neighbour.mac, 0x88b6, 60, 100)
		neighbour.send(f)
		elsewhere[i].expect(w.t, f)
	}
	for _, e := range elsewhere {
		e.nothing(w.t)
	}
}

func noSpoofing(w *world) {
	w.apply(wires("a", "b", "c"))
	a, b, c := w.machine(port("a", 0)), w.machine(port("b", 0)), w.machine(port("c", 0))
	introduce(a, b, c)
	atB, atC := b.watch(ofType(etherIPv4)), c.watch(ofType(etherIPv4))
	good := frame(b.mac, a.mac, etherIPv4, 60, 2)
	a.send(frame(b.mac, c.mac, etherIPv4, 60, 1), good)
	atB.expect(w.t, good)
	toC := frame(c.mac, b.mac, etherIPv4, 60, 3)
	b.send(toC)
	atC.expect(w.t, toC) // where it was
}

func slowMachine(w *world) {
	w.apply(wires("a", "b", "slow"))
	a, b, slow := w.machine(port("a", 0)), w.machine(port("b", 0)), w.machine(port("slow", 0))
	introduce(a, b, slow)
	slow.hangUp()
	slow.deaf = true
	if slow.door != nil {
		slow.accept()
	} else {
		slow.join()
	}
	const rounds = 20000 // of 1000 bytes: more than any queue
	var want [][]byte
	atB := b.watch(ofType(etherIPv4))
	for i := range rounds / 100 {
		want = append(want, frame(b.mac, a.mac, etherIPv4, 60, uint32(2*i)), frame(broadcastMAC, a.mac, etherIPv4, 60, uint32(2*i+1)))
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range rounds {
			a.send(frame(slow.mac, a.mac, etherIPv6, 1000, uint32(i)))
			if i%100 == 0 {
				a.send(want[i/50 : i/50+2]...)
			}
		}
	}()
	atB.expect(w.t, want...)
	<-sent
	if c := w.counters(slow.id); c.OutDropped == 0 {
		w.t.Error("nothing was dropped for a machine that never reads")
	}
	if c := w.counters(b.id); c.OutDropped != 0 {
		w.t.Errorf("%d frames were dropped for a machine that reads", c.OutDropped)
	}
}

// counters gives those of a port.
func (w *world) counters(p networks.PortID) networks.Counters {
	w.t.Helper()
	all, _, err := w.sub.Counters(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range all {
		if c.PortID == p {
			return c
		}
	}
	w.t.Fatalf("no counters of %v", p)
	return networks.Counters{}
}

// edge gives the counters of an environment's edge.
func (w *world) edge(environment string) networks.EdgeCounters {
	w.t.Helper()
	_, all, err := w.sub.Counters(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range all {
		if c.Environment == environment {
			return c
		}
	}
	w.t.Fatalf("no counters of the edge of %s", environment)
	return networks.EdgeCounters{}
}

func machineComesBack(w *world) {
	w.apply(wires("a", "b"))
	a, b := w.machine(port("a", 0)), w.machine(port("b", 0))
	introduce(a, b)
	b.hangUp()
	if b.door != nil {
		b.door.Close()
		b.listen()
		b.accept() // without another word to the substrate
	} else {
		b.join()
	}
	introduce(b, a)
}

func substrateComesBack(w *world) {
	w.apply(shop())
	web, app := w.guest(port("web", 0)), w.guest(port("app", 0))
	introduce(web, app)
	w.restart()
	w.apply(shop())
	for _, m := range []*Machine{web, app} {
		m.hangUp()
		w.plug(m)
	}
	introduce(web, app)
	if err := web.echo(within(w.t), addr("10.0.1.1"), 56); err != nil {
		w.t.Errorf("the gateway: %v", err)
	}
}

func unplugged(w *world) {
	w.apply(wires("a", "b"))
	a, b := w.machine(port("a", 0)), w.machine(port("b", 0))
	introduce(a, b)
	for range 2 {
		if err := w.sub.Unplug(w.t.Context(), w.epoch, b.id); err != nil {
			w.t.Fatal(err)
		}
	}
	if c := w.counters(b.id); c.Plugged {
		w.t.Error("it says that b is plugged in")
	}
	if c := w.counters(a.id); !c.Plugged {
		w.t.Error("it says that a is not plugged in")
	}
	b.hangUp()
	w.plug(b)
	introduce(b, a)
	nobody := networks.PortID{Environment: "shop", Machine: "nobody"}
	if err := w.sub.Plug(w.t.Context(), w.epoch, nobody); networks.CodeOf(err) != networks.NetworkUnknown {
		w.t.Errorf("plugging nobody in: %v", err)
	}
	if _, err := w.sub.Attachment(w.t.Context(), w.epoch, nobody); networks.CodeOf(err) != networks.NetworkUnknown {
		w.t.Errorf("nobody's attachment: %v", err)
	}
	if _, err := w.sub.Network(w.t.Context(), "nowhere"); networks.CodeOf(err) != networks.NetworkUnknown {
		w.t.Errorf("the network of nowhere: %v", err)
	}
}

func parked(w *world) {
	w.apply(wires("a", "b", "c"))
	a, b, c := w.machine(port("a", 0)), w.machine(port("b", 0)), w.machine(port("c", 0))
	introduce(a, b, c)
	if err := w.sub.Park(w.t.Context(), w.epoch, b.id); err != nil {
		w.t.Fatal(err)
	}
	b.hangUp()
	if err := w.sub.Unplug(w.t.Context(), w.epoch, b.id); err != nil {
		w.t.Fatal(err)
	}
	const more = 100
	numbered := func(i int) []byte { return frame(b.mac, a.mac, etherIPv4, 64, uint32(i)) }
	atC := c.watch(ofType(etherTest))
	for i := range networks.ParkedFrames + more {
		a.send(numbered(i))
	}
	mark := frame(c.mac, a.mac, etherTest, 60, 1)
	a.send(mark)
	atC.expect(w.t, mark)
	if n := w.counters(b.id).Parked; n != networks.ParkedFrames {
		w.t.Errorf("%d frames wait, want %d", n, networks.ParkedFrames)
	}
	atB := b.watch(ofType(etherIPv4))
	w.plug(b)
	if err := w.sub.Release(w.t.Context(), w.epoch, b.id); err != nil {
		w.t.Fatal(err)
	}
	a.send(numbered(networks.ParkedFrames + more)) // comes last
	for i := more; i <= networks.ParkedFrames+more; i++ {
		atB.expect(w.t, numbered(i))
	}
	if n := w.counters(b.id).Parked; n != 0 {
		w.t.Errorf("%d frames still wait", n)
	}
}

func counters(w *world) {
	w.apply(wires("a", "b"))
	a, b := w.machine(port("a", 0)), w.machine(port("b", 0))
	introduce(a, b)
	before, atB := w.counters(a.id), b.watch(ofType(etherIPv4))
	beforeB := w.counters(b.id)
	f := frame(b.mac, a.mac, etherIPv4, 500, 1)
	for range 10 {
		a.send(f)
		atB.expect(w.t, f)
	}
	a.send(frame(b.mac, b.mac, etherIPv4, 60, 1)) // not its own
	a.send(f)
	atB.expect(w.t, f)
	c, cB := w.counters(a.id), w.counters(b.id)
	if c.Segment != "wire" || !c.Plugged {
		w.t.Errorf("%+v", c)
	}
	if n := cB.OutFrames - beforeB.OutFrames; n != 11 || cB.OutBytes-beforeB.OutBytes != 11*500 {
		w.t.Errorf("%d frames of %d bytes to b, want 11 of 5500", n, cB.OutBytes-beforeB.OutBytes)
	}
	if in := c.InFrames - before.InFrames; in < 11 || c.InBytes-before.InBytes < 11*500 {
		w.t.Errorf("%d frames from a, want 11 at least", in)
	}
	if c.InDropped-before.InDropped != 1 {
		w.t.Errorf("%d frames of a dropped, want 1", c.InDropped-before.InDropped)
	}
}
