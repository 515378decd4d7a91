package networkstest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// patience is how long a test waits for what must come; machines that run tests are slow at times.
const patience = 30 * time.Second

// wire is what a machine's interface sends and receives frames over.
type wire interface {
	io.Closer
	// send writes whole frames.
	send(frames ...[]byte) error
	// receive waits for one. Error: it is broken.
	receive() ([]byte, error)
}

// Machine is a machine's interface with everything behind it: what QEMU and a guest would be.
type Machine struct {
	t    testing.TB
	id   networks.PortID
	mac  net.HardwareAddr
	at   networks.Attachment
	door *net.UnixListener // nil: a tap

	mu       sync.Mutex
	wire     wire
	watchers map[*watcher]bool
	deaf     bool // it reads nothing: it stands still
	pump     chan struct{}
	host     *host // its own IP stack; nil: frames only
}

// watcher gets the frames that match, in order.
type watcher struct {
	match  func(frame []byte) bool
	frames chan []byte
}

// socketWire speaks as QEMU's stream netdev does.
type socketWire struct {
	conn *net.UnixConn
	mu   sync.Mutex
	in   []byte
	got  int
}

func (w *socketWire) Close() error { return w.conn.Close() }

func (w *socketWire) send(frames ...[]byte) error {
	var out []byte
	for _, f := range frames {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(f))), f...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.conn.Write(out)
	return err
}

func (w *socketWire) receive() ([]byte, error) {
	if w.in == nil {
		w.in = make([]byte, 0, 1<<18)
	}
	for {
		if have := w.in[w.got:]; len(have) >= 4 {
			if n := 4 + int(binary.BigEndian.Uint32(have)); len(have) >= n {
				w.got += n
				return bytes.Clone(have[4:n]), nil
			}
		}
		w.in = append(w.in[:0], w.in[w.got:]...)
		w.got = 0
		n, err := w.conn.Read(w.in[len(w.in):cap(w.in)])
		if err != nil {
			return nil, err
		}
		w.in = w.in[:len(w.in)+n]
	}
}

// machine makes the machine of a port and plugs it in.
func (w *world) machine(p networks.PortID) *Machine {
	w.t.Helper()
	n, err := w.sub.Network(w.t.Context(), p.Environment)
	if err != nil {
		w.t.Fatal(err)
	}
	m := &Machine{t: w.t, id: p, watchers: map[*watcher]bool{}}
	for _, s := range n.Segments {
		for _, port := range s.Ports {
			if port.Machine == p.Machine && port.Interface == p.Interface {
				if m.mac, err = net.ParseMAC(port.MAC); err != nil {
					w.t.Fatal(err)
				}
			}
		}
	}
	if m.at, err = w.sub.Attachment(w.t.Context(), w.epoch, p); err != nil {
		w.t.Fatal(err)
	}
	m.listen()
	w.t.Cleanup(m.close)
	w.plug(m)
	return m
}

// listen waits for the network to come, where it comes by a socket.
func (m *Machine) listen() {
	m.t.Helper()
	if m.at.Socket == "" {
		return
	}
	if err := os.Remove(m.at.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	var err error
	if m.door, err = net.ListenUnix("unix", &net.UnixAddr{Name: m.at.Socket, Net: "unix"}); err != nil {
		m.t.Fatal(err)
	}
	m.door.SetUnlinkOnClose(false) // a network that is there again finds the machine of now, not the name of one that went
}

// plug plugs a machine into its port.
func (w *world) plug(m *Machine) {
	w.t.Helper()
	done := make(chan error, 1)
	go func() { done <- w.sub.Plug(w.t.Context(), w.epoch, m.id) }()
	if m.at.Socket == "" {
		m.join()
	} else {
		m.accept()
	}
	if err := <-done; err != nil {
		w.t.Fatalf("plugging in %s: %v", m.id.Machine, err)
	}
}

// accept takes the network's connection.
func (m *Machine) accept() {
	m.t.Helper()
	_ = m.door.SetDeadline(time.Now().Add(patience))
	conn, err := m.door.AcceptUnix()
	if err != nil {
		m.t.Fatalf("%s waits for the network: %v", m.id.Machine, err)
	}
	m.run(&socketWire{conn: conn})
}

// join opens the tap.
func (m *Machine) join() {
	m.t.Helper()
	w, err := openTap(m.at)
	if err != nil {
		m.t.Fatal(err)
	}
	m.run(w)
}

// run reads frames until the wire breaks.
func (m *Machine) run(w wire) {
	m.mu.Lock()
	m.wire, m.pump = w, make(chan struct{})
	ended := m.pump
	deaf := m.deaf
	m.mu.Unlock()
	go func() {
		defer close(ended)
		for !deaf {
			f, err := w.receive()
			if err != nil {
				return
			}
			m.mu.Lock()
			for watch := range m.watchers {
				if watch.match(f) {
					select {
					case watch.frames <- f:
					default: // more than any test waits for
					}
				}
			}
			h := m.host
			m.mu.Unlock()
			if h != nil {
				h.input(f)
			}
		}
	}()
}

// hangUp breaks the connection to the network, as a machine that is killed does, and waits until its reader has gone.
func (m *Machine) hangUp() {
	m.mu.Lock()
	w, ended := m.wire, m.pump
	m.mu.Unlock()
	if w != nil {
		w.Close()
		<-ended
	}
}

func (m *Machine) close() {
	if m.door != nil {
		m.door.Close()
	}
	m.hangUp()
	m.mu.Lock()
	h := m.host
	m.mu.Unlock()
	if h != nil {
		h.close()
	}
}

// send sends frames as they are.
func (m *Machine) send(frames ...[]byte) {
	m.t.Helper()
	m.mu.Lock()
	w := m.wire
	m.mu.Unlock()
	if err := w.send(frames...); err != nil {
		m.t.Fatalf("%s sends: %v", m.id.Machine, err)
	}
}

// watch collects frames that match from now on.
func (m *Machine) watch(match func([]byte) bool) *watcher {
	w := &watcher{match: match, frames: make(chan []byte, 8192)}
	m.mu.Lock()
	m.watchers[w] = true
	m.mu.Unlock()
	m.t.Cleanup(func() {
		m.mu.Lock()
		delete(m.watchers, w)
		m.mu.Unlock()
	})
	return w
}

// next waits for a frame.
func (w *watcher) next(t testing.TB) []byte {
	t.Helper()
	select {
	case f := <-w.frames:
		return f
	case <-time.After(patience):
		t.Fatal("a frame did not come")
		return nil
	}
}

// expect waits for exactly these frames.
func (w *watcher) expect(t testing.TB, want ...[]byte) {
	t.Helper()
	for i, f := range want {
		if got := w.next(t); !bytes.Equal(got, f) {
			t.Fatalf("frame %d is\n%x, want\n%x", i, got, f)
		}
	}
}

// nothing says that none has come.
func (w *watcher) nothing(t testing.TB) {
	t.Helper()
	select {
	case f := <-w.frames:
		t.Fatalf("a frame that should not have come: %x", f)
	default:
	}
}

// within gives a context for what must not take long.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// The kinds of frames that tests make.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
	etherTest = 0x88b5 // for experiments (IEEE 802)
)

var broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// frame makes one of size bytes, whose payload begins with a number.
func frame(dst, src net.HardwareAddr, etherType uint16, size int, number uint32) []byte {
	f := make([]byte, size)
	copy(f, dst)
	copy(f[6:], src)
	binary.BigEndian.PutUint16(f[12:], etherType)
	if size >= 18 {
		binary.BigEndian.PutUint32(f[14:], number)
	}
	for i := 18; i < size; i++ {
		f[i] = byte(number) + byte(i)
	}
	return f
}

func ofType(etherType uint16) func([]byte) bool {
	return func(f []byte) bool { return len(f) >= 14 && binary.BigEndian.Uint16(f[12:]) == etherType }
}
