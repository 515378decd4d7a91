package segment

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The waits between two attempts to reach a machine.
const (
	backoffMin = 5 * time.Millisecond
	backoffMax = 500 * time.Millisecond
	// settled is how long a connection must last before the next one is tried at once.
	settled = time.Second
)

// Port is a place for a machine's interface.
type Port struct {
	station
	seg *Segment
	mac MAC
	now atomic.Pointer[link] // nil: nobody is connected

	mu      sync.Mutex
	unplug  context.CancelFunc // nil: not plugged in
	ended   chan struct{}      // closed when the port has let go of the machine
	changed chan struct{}      // closed at the next connection
}

// NewPort makes a port for the one machine that sends with this address.
func (s *Segment) NewPort(mac MAC) *Port {
	p := &Port{seg: s, mac: mac, changed: make(chan struct{})}
	p.station.receiver = p
	s.join(&p.station, mac)
	return p
}

// Counts are those since the port was made.
func (p *Port) Counts() *Counts { return &p.counts }

// MAC is the machine's address.
func (p *Port) MAC() MAC { return p.mac }

// Plugged says whether a machine is connected.
func (p *Port) Plugged() bool { return p.here() }

// Connect keeps a connection to the machine that listens on a unix socket, and makes it again whenever it breaks, until Unplug
// or Close. Once more changes nothing.
func (p *Port) Connect(socket string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unplug == nil {
		ctx, cancel := context.WithCancel(context.Background())
		p.unplug, p.ended = cancel, make(chan struct{})
		go p.keep(ctx, socket, p.ended)
	}
}

// Wait returns when a machine is connected. Error: the context's.
func (p *Port) Wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if p.here() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Unplug disconnects the machine, and returns when nothing more comes from it or goes to it.
func (p *Port) Unplug() {
	p.mu.Lock()
	cancel, ended := p.unplug, p.ended
	p.unplug = nil
	p.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	if ended != nil {
		<-ended
	}
}

// Close unplugs the port and takes it out of its segment.
func (p *Port) Close() {
	p.Unplug()
	p.seg.leave(&p.station, p.mac)
}

// keep holds a connection to the machine until the context ends.
func (p *Port) keep(ctx context.Context, socket string, ended chan struct{}) {
	defer close(ended)
	var dialer net.Dialer
	wait := time.NewTimer(0)
	defer wait.Stop()
	for backoff := backoffMin; ; backoff = min(2*backoff, backoffMax) {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		if conn, err := dialer.DialContext(ctx, "unix", socket); err == nil {
			since := time.Now()
			p.serve(ctx, conn.(*net.UnixConn))
			if time.Since(since) >= settled {
				backoff = backoffMin
			}
		}
		wait.Reset(backoff)
	}
}

func (p *Port) serve(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	l, err := newLink(conn, &p.counts)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	p.now.Store(l)
	p.mu.Lock()
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	if garbage := l.receive(func(buf []byte) (int, error) { return p.seg.input(&p.station, buf) }); garbage != nil {
		p.counts.Garbage.Add(1)
		p.counts.InDropped.Add(1)
	}
	p.now.Store(nil)
	l.close()
	p.seg.forget(&p.station)
}

func (p *Port) here() bool { return p.now.Load() != nil }

func (p *Port) deliver(run []byte, frames int) { p.send(run, frames, true) }
func (p *Port) backlog(run []byte, frames int) { p.send(run, frames, false) }

func (p *Port) send(run []byte, frames int, bounded bool) {
	if l := p.now.Load(); l != nil {
		l.send(run, frames, bounded)
		return
	}
	p.counts.OutDropped.Add(uint64(frames))
}
