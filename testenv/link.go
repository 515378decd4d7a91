package testenv

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Link is a TCP connection's way between two places, with an address of its own:
// it forwards, counts what it forwards, and can be cut, made slow, or swallow
// everything without a word. Nothing behind it knows that it is there.
type Link struct {
	listener net.Listener

	mu      sync.Mutex
	target  string
	state   linkState
	changed chan struct{} // closed when the state changes
	conns   map[net.Conn]struct{}
	rate    int64 // bytes a second in each direction and connection; 0: as fast as it goes
	down    int64 // bytes from the target to those who dial
	up      int64
	marks   []mark
	refused int64 // connections that found the link cut
	tried   []mark
	dials   int64
	dialled []mark
	running sync.WaitGroup
}

type linkState int

const (
	linkOpen linkState = iota
	linkCut
	linkBlack
)

// mark is a number of bytes that somebody waits for.
type mark struct {
	at      int64
	reached chan struct{}
}

// newLink makes a link to a target, which may be set later; it ends with the test.
func newLink(t testing.TB, cleanup func(func()), target string) *Link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{listener: listener, target: target, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	l.running.Go(l.accept)
	cleanup(func() {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		l.set(linkCut)
		l.running.Wait()
	})
	return l
}

// Address is where to dial.
func (l *Link) Address() string { return l.listener.Addr().String() }

// To sets the target, for connections that are made from now on.
func (l *Link) To(target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = target
}

// Cut breaks every connection, and those that are tried until Heal.
func (l *Link) Cut() { l.set(linkCut) }

// Black stops forwarding and tells nobody: connections stay, and new ones are
// taken, but no byte comes through until Heal.
func (l *Link) Black() { l.set(linkBlack) }

// Heal lets everything through again.
func (l *Link) Heal() { l.set(linkOpen) }

// Slow lets at most so many bytes a second through, in each direction of each
// connection; 0 is without limit.
func (l *Link) Slow(bytesPerSecond int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = bytesPerSecond
}

// Down and Up are the bytes forwarded from the target, and to it.
func (l *Link) Down() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down
}

// Passed is closed once so many bytes more have come from the target.
func (l *Link) Passed(bytes int64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := mark{l.down + bytes, make(chan struct{})}
	l.marks = append(l.marks, m)
	return m.reached
}

// Refused is closed once so many more connections have been tried in vain.
func (l *Link) Refused(connections int64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := mark{l.refused + connections, make(chan struct{})}
	l.tried = append(l.tried, m)
	return m.reached
}

// Dialled is closed once so many more connections have been made.
func (l *Link) Dialled(connections int64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := mark{l.dials + connections, make(chan struct{})}
	l.dialled = append(l.dialled, m)
	return m.reached
}

func (l *Link) set(s linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
	close(l.changed)
	l.changed = make(chan struct{})
	if s == linkCut {
		for c := range l.conns {
			// No FIN: a cut says nothing that could be taken for an end.
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			_ = c.Close()
		}
		clear(l.conns)
	}
}

func (l *Link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { l.serve(near) })
	}
}

// hold remembers a connection; a cut link has none.
func (l *Link) hold(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == linkCut {
		l.refused++
		l.tried = reached(l.tried, l.refused)
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *Link) drop(c net.Conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	_ = c.Close()
}

func (l *Link) serve(near net.Conn) {
	defer l.drop(near)
	if !l.hold(near) || !l.open() {
		return
	}
	l.mu.Lock()
	target := l.target
	l.dials++
	l.dialled = reached(l.dialled, l.dials)
	l.mu.Unlock()
	far, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer l.drop(far)
	if !l.hold(far) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { l.pump(near, far, &l.down) })
	both.Go(func() { l.pump(far, near, &l.up) })
	both.Wait()
}

// open waits until the link forwards; false: it was cut.
func (l *Link) open() bool {
	for {
		l.mu.Lock()
		state, changed := l.state, l.changed
		l.mu.Unlock()
		if state != linkBlack {
			return state == linkOpen
		}
		<-changed
	}
}

// pump forwards one direction; where it ends, the other is told.
func (l *Link) pump(to, from net.Conn, count *int64) {
	defer func() {
		if tcp, ok := to.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !l.open() {
				return
			}
			l.pace(n)
			if _, werr := to.Write(buf[:n]); werr != nil {
				_ = from.Close()
				return
			}
			l.counted(count, int64(n))
		}
		if err != nil {
			return
		}
	}
}

func (l *Link) counted(count *int64, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*count += n
	l.marks = reached(l.marks, l.down)
}

// reached tells those whose number has come, and gives the others.
func reached(marks []mark, n int64) []mark {
	return slices.DeleteFunc(marks, func(m mark) bool {
		if n < m.at {
			return false
		}
		close(m.reached)
		return true
	})
}

// pace takes the time that n bytes take on a slow link.
func (l *Link) pace(n int) {
	l.mu.Lock()
	rate, changed := l.rate, l.changed
	l.mu.Unlock()
	if rate <= 0 {
		return
	}
	timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(rate))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	}
}

// await waits for a channel, or fails the test when the context ends.
func await(t testing.TB, ctx context.Context, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatalf("%s: %v", what, ctx.Err())
	}
}
