package segment

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// machine is the other end of a port: it listens, as QEMU does.
type machine struct {
	t        testing.TB
	mac      MAC
	path     string
	listener *net.UnixListener
	conn     *net.UnixConn
	in       *bufio.Reader
	port     *Port
}

const patience = 30 * time.Second

var broadcast = MAC(0xffffffffffff)

func listen(t testing.TB, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// plug makes a port and a machine in it.
func plug(t testing.TB, s *Segment, mac MAC) *machine {
	t.Helper()
	m := &machine{t: t, mac: mac, path: filepath.Join(t.TempDir(), "nic")}
	m.listener = listen(t, m.path)
	m.port = s.NewPort(mac)
	t.Cleanup(m.port.Close)
	m.replug()
	return m
}

func (m *machine) replug() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m.port.Connect(m.path)
	m.port.Connect(m.path)
	if err := m.port.Wait(ctx); err != nil {
		m.t.Fatalf("plugging %s: %v", m.mac, err)
	}
	m.accept()
}

func (m *machine) accept() {
	m.t.Helper()
	conn, err := m.listener.AcceptUnix()
	if err != nil {
		m.t.Fatal(err)
	}
	m.conn, m.in = conn, bufio.NewReaderSize(conn, 1<<20)
	m.t.Cleanup(func() { conn.Close() })
}

// frame makes one of n bytes, headers included.
func frame(dst, src MAC, etherType uint16, n int, fill byte) []byte {
	f := make([]byte, n)
	put := func(b []byte, m MAC) {
		for i := range 6 {
			b[i] = byte(m >> (40 - 8*i))
		}
	}
	put(f, dst)
	put(f[6:], src)
	binary.BigEndian.PutUint16(f[12:], etherType)
	for i := 14; i < n; i++ {
		f[i] = fill + byte(i)
	}
	return f
}

func prefixed(frames ...[]byte) []byte {
	var out []byte
	for _, f := range frames {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(f))), f...)
	}
	return out
}

func (m *machine) send(frames ...[]byte) {
	m.t.Helper()
	if _, err := m.conn.Write(prefixed(frames...)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) next() []byte {
	m.t.Helper()
	_ = m.conn.SetReadDeadline(time.Now().Add(patience))
	var head [prefix]byte
	if _, err := io.ReadFull(m.in, head[:]); err != nil {
		m.t.Fatalf("%s waits for a frame: %v", m.mac, err)
	}
	f := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(m.in, f); err != nil {
		m.t.Fatal(err)
	}
	return f
}

func (m *machine) expect(want ...[]byte) {
	m.t.Helper()
	for i, w := range want {
		if got := m.next(); !bytes.Equal(got, w) {
			m.t.Fatalf("%s: frame %d is\n%x, want\n%x", m.mac, i, got, w)
		}
	}
}

const (
	macA, macB, macC = MAC(0x020000000001), MAC(0x020000000002), MAC(0x020000000003)
	ethIPv4, ethIPv6 = 0x0800, 0x86dd
)

// introduce lets the segment learn where everybody is.
func introduce(machines ...*machine) {
	for _, m := range machines {
		hello := frame(broadcast, m.mac, 0x88b5, 60, 0)
		m.send(hello)
		for _, o := range machines {
			if o != m {
				o.expect(hello)
			}
		}
	}
}

func TestFramesArriveAsTheyWereSent(t *testing.T) {
	s := New(1500)
	a, b, c := plug(t, s, macA), plug(t, s, macB), plug(t, s, macC)
	introduce(a, b, c)

	vlan := frame(macB, macA, 0x8100, 1518, 3)
	qinq := frame(macB, macA, 0x88a8, 1522, 4)
	unicast := [][]byte{frame(macB, macA, ethIPv4, 1514, 1), frame(macB, macA, 0x1234, 60, 2), vlan, qinq, frame(macB, macA, ethIPv6, 14, 5)}
	a.send(unicast...)
	b.expect(unicast...)
	for _, group := range []MAC{broadcast, 0x3333ff000001, 0x01005e0000fb} {
		f := frame(group, macA, ethIPv6, 86, 7)
		a.send(f)
		b.expect(f)
		c.expect(f) // and nothing of what went to b
	}
	unknown := frame(0x0200000000ee, macC, 0x0806, 60, 9)
	c.send(unknown)
	a.expect(unknown)
	b.expect(unknown)
}

func TestInterleavedDestinationsKeepTheirOrder(t *testing.T) {
	s := New(1500)
	a, b, c := plug(t, s, macA), plug(t, s, macB), plug(t, s, macC)
	introduce(a, b, c)
	var toB, toC, all [][]byte
	for i := range 300 {
		f := frame(macB, macA, ethIPv4, 60+i, byte(i))
		if i%3 == 0 {
			f = frame(macC, macA, ethIPv4, 60+i, byte(i))
			toC = append(toC, f)
		} else {
			toB = append(toB, f)
		}
		all = append(all, f)
	}
	go a.send(all...)
	b.expect(toB...)
	c.expect(toC...)
}

func TestNobodySendsWithAnothersAddress(t *testing.T) {
	s := New(1500)
	a, b, c := plug(t, s, macA), plug(t, s, macB), plug(t, s, macC)
	introduce(a, b, c)
	a.send(frame(macB, macC, ethIPv4, 60, 1), frame(macB, 0x010000000001, ethIPv4, 60, 1))
	good := frame(macB, macA, ethIPv4, 60, 2)
	a.send(good)
	b.expect(good)
	toC := frame(macC, macB, ethIPv4, 60, 3) // c is still where it was
	b.send(toC)
	c.expect(toC)
	if n := a.port.Counts().InDropped.Load(); n != 2 {
		t.Errorf("%d frames dropped, want 2", n)
	}
}

func TestAddressesBeyondThePlanAreLearnedAndAge(t *testing.T) {
	s := New(1500)
	var now atomic.Int64
	s.clock = func() time.Duration { return time.Duration(now.Load()) }
	a, b, c := plug(t, s, macA), plug(t, s, macB), plug(t, s, macC)
	introduce(a, b, c)
	nested := MAC(0x020000000077)
	hello := frame(macB, nested, ethIPv4, 60, 0)
	a.send(hello)
	b.expect(hello)

	toNested := frame(nested, macB, ethIPv4, 60, 1)
	b.send(toNested)
	a.expect(toNested)
	mark := frame(macC, macB, ethIPv4, 60, 2)
	b.send(mark)
	c.expect(mark) // not toNested

	now.Store(int64(aging))
	b.send(toNested)
	a.expect(toNested)
	c.expect(toNested)
}

func TestAMachineCannotFillTheTable(t *testing.T) {
	s := New(1500)
	a, b := plug(t, s, macA), plug(t, s, macB)
	introduce(a, b)
	for i := range 3 * learnedMax {
		f := frame(macB, MAC(0x060000000000+i), ethIPv4, 60, 0)
		a.send(f)
		b.expect(f)
	}
	s.mu.RLock()
	size := len(s.table)
	s.mu.RUnlock()
	if size > learnedMax+2 {
		t.Errorf("%d addresses learned, want at most %d", size, learnedMax+2)
	}
}

func TestFramesThatAreTooLongAreDropped(t *testing.T) {
	s := New(1500)
	a, b := plug(t, s, macA), plug(t, s, macB)
	introduce(a, b)
	good := frame(macB, macA, ethIPv4, 60, 2)
	a.send(frame(macB, macA, ethIPv4, 1500+overhead+1, 1), good)
	b.expect(good)
	if n := a.port.Counts().InDropped.Load(); n != 1 {
		t.Errorf("%d frames dropped, want 1", n)
	}
}

func TestGarbageClosesTheConnection(t *testing.T) {
	for _, length := range []uint32{0, 13, maxLength + 1, 1 << 31} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			s := New(1500)
			a, b := plug(t, s, macA), plug(t, s, macB)
			introduce(a, b)
			good := frame(macB, macA, ethIPv4, 60, 2)
			if _, err := a.conn.Write(append(prefixed(good), binary.BigEndian.AppendUint32(nil, length)...)); err != nil {
				t.Fatal(err)
			}
			b.expect(good)
			_ = a.conn.SetReadDeadline(time.Now().Add(patience))
			if _, err := a.in.ReadByte(); err == nil {
				t.Fatal("the connection still carries something")
			}
			a.accept() // it still listens, and is dialled again
			introduce(a, b)
			if n := a.port.Counts().Garbage.Load(); n != 1 {
				t.Errorf("%d connections closed for garbage, want 1", n)
			}
		})
	}
}

func TestASlowMachineCostsTheOthersNothing(t *testing.T) {
	s := New(1500)
	a, b, slow := plug(t, s, macA), plug(t, s, macB), plug(t, s, macC)
	introduce(a, b, slow)
	// The slow one never reads, and is sent far more than any queue holds; now and then something goes to all.
	const rounds, every = 8 * QueueFrames, 50
	toAll := func(i int) []byte { return frame(broadcast, macA, ethIPv4, 500, byte(i/every)) }
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range rounds {
			a.send(frame(macC, macA, ethIPv4, 1000, byte(i)))
			if i%every == 0 {
				a.send(toAll(i))
			}
		}
	}()
	for i := 0; i < rounds; i += every {
		b.expect(toAll(i))
	}
	<-sent
	counts := slow.port.Counts()
	if counts.OutDropped.Load() == 0 {
		t.Error("nothing was dropped for a machine that never reads")
	}
	if b.port.Counts().OutDropped.Load() != 0 {
		t.Errorf("%d frames were dropped for a machine that reads", b.port.Counts().OutDropped.Load())
	}
	// What was kept for it is whole frames, in order.
	for range QueueFrames / 4 {
		if f := slow.next(); len(f) != 500 && len(f) != 1000 {
			t.Fatalf("a frame of %d bytes", len(f))
		}
	}
}

func TestAMachineThatComesBackIsConnectedAgain(t *testing.T) {
	s := New(1500)
	a, b := plug(t, s, macA), plug(t, s, macB)
	introduce(a, b)
	b.conn.Close()
	b.accept()
	introduce(b, a)

	b.listener.Close() // the socket goes too, and comes later
	b.conn.Close()
	f := frame(macB, macA, ethIPv4, 60, 1)
	for b.port.Plugged() {
		a.send(f)
	}
	b.listener = listen(t, b.path)
	b.accept()
	introduce(b, a)
}

func TestUnplugAndPlug(t *testing.T) {
	s := New(1500)
	a, b := plug(t, s, macA), plug(t, s, macB)
	introduce(a, b)
	b.port.Unplug()
	b.port.Unplug()
	if b.port.Plugged() {
		t.Error("plugged in after Unplug")
	}
	if _, err := io.Copy(io.Discard, b.in); err != nil {
		t.Error(err)
	}
	b.replug()
	introduce(b, a)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	lonely := s.NewPort(0x020000000009)
	defer lonely.Close()
	lonely.Connect(filepath.Join(t.TempDir(), "nobody"))
	if err := lonely.Wait(gone); err == nil {
		t.Error("plugged in where nobody listens")
	}
}

func TestParkedFramesArriveInOrder(t *testing.T) {
	s := New(1500)
	a, b, c := plug(t, s, macA), plug(t, s, macB), plug(t, s, macC)
	introduce(a, b, c)
	s.Park(macB)
	s.Park(macB)
	b.port.Unplug()
	const n = ParkedFrames + 100
	var frames [][]byte
	for i := range n + 1000 {
		f := frame(macB, macA, ethIPv4, 64, 0)
		binary.BigEndian.PutUint32(f[14:], uint32(i))
		frames = append(frames, f)
	}
	mark := frame(macC, macA, ethIPv4, 60, 1)
	a.send(append(frames[:n:n], mark)...)
	c.expect(mark)
	if w := s.Parked(macB); w != ParkedFrames {
		t.Errorf("%d frames wait, want %d", w, ParkedFrames)
	}
	b.replug()
	released := make(chan struct{})
	go func() {
		s.Release(macB)
		s.Release(macB)
		close(released)
	}()
	go a.send(frames[n:]...) // while they are released
	b.expect(frames[n-ParkedFrames:]...)
	<-released
	if w := s.Parked(macB); w != 0 {
		t.Errorf("%d frames still wait", w)
	}
}

func TestALocalStation(t *testing.T) {
	s := New(1500)
	a, b := plug(t, s, macA), plug(t, s, macB)
	got := make(chan []byte, 10)
	edge := s.NewLocal(macC)
	edge.Join(func(f []byte) { got <- bytes.Clone(f) })
	hello := frame(broadcast, macA, 0x0806, 60, 1)
	a.send(hello)
	b.expect(hello)
	if f := <-got; !bytes.Equal(f, hello) {
		t.Fatalf("the edge got %x", f)
	}
	answers := [][]byte{frame(macA, macC, 0x0806, 60, 2), frame(macA, macC, ethIPv4, 1514, 3)}
	edge.Send(prefixed(answers...))
	a.expect(answers...)
	a.send(frame(0x0200000000ee, macA, ethIPv4, 60, 4), frame(macC, macB, ethIPv4, 60, 4), frame(macC, macA, ethIPv4, 60, 5))
	if f := <-got; f[14] != 5+14 {
		t.Errorf("the edge got a frame for another: %x", f)
	}
	edge.Close()
	b.send(frame(broadcast, macB, ethIPv4, 60, 6))
	a.expect(frame(broadcast, macB, ethIPv4, 60, 6))
	if len(got) != 0 {
		t.Error("it got a frame after Close")
	}
}
