package edge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// idle ends a flow of datagrams when nothing has moved for a while.
type idle struct {
	after time.Duration
	moved atomic.Int64
	timer *time.Timer
}

func newIdle(after time.Duration, end func()) *idle {
	i := &idle{after: after}
	i.touch()
	i.timer = time.AfterFunc(after, func() {
		if rest := after - time.Since(time.Unix(0, i.moved.Load())); rest > 0 {
			i.timer.Reset(rest)
			return
		}
		end()
	})
	return i
}

func (i *idle) touch() { i.moved.Store(time.Now().UnixNano()) }

// udpFromInside begins a flow of datagrams of a machine. False: nobody is there, and the stack says so by ICMP.
func (e *Edge) udpFromInside(r *udp.ForwarderRequest) bool {
	from, to := ends(r.ID())
	f, at, ok := e.outgoing(networks.UDP, from, to)
	if !ok {
		return false
	}
	conn, give, err := e.dial(f, at)
	if err != nil {
		if errors.Is(err, errNoPort) {
			e.counts.Refused.Add(1)
		}
		e.done(f)
		return false
	}
	in := inside{queue: new(waiter.Queue)}
	var failed tcpip.Error
	if in.ep, failed = r.CreateEndpoint(in.queue); failed != nil {
		conn.Close()
		give()
		e.done(f)
		return true // another packet of it was faster
	}
	go func() {
		defer e.done(f)
		defer give()
		e.exchange(f, in, conn.(*net.UDPConn))
	}()
	return true
}

// exchange carries datagrams both ways until nothing has moved for a while.
func (e *Edge) exchange(f *flow, in inside, conn *net.UDPConn) {
	defer in.ep.Close()
	defer conn.Close()
	out, err := newOutside(conn)
	if err != nil {
		return
	}
	moved := newIdle(e.cfg.UDPIdle, f.cut)
	defer moved.timer.Stop()
	stop := context.AfterFunc(f.ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		for f.ctx.Err() == nil {
			n, err := out.read(func(b []byte) error {
				moved.touch()
				return in.write(f.ctx, b)
			})
			e.counts.InBytes.Add(uint64(n))
			if err != nil && n == 0 && !errors.Is(err, syscall.ECONNREFUSED) {
				return
			}
		}
	})
	e.fromMachine(f, in, moved, func(b []byte) { _, _ = conn.Write(b) }) // a datagram that is lost is lost
	f.cut()
	both.Wait()
}

// fromMachine hands a flow's datagrams on until it ends.
func (e *Edge) fromMachine(f *flow, in inside, moved *idle, send func([]byte)) {
	for f.ctx.Err() == nil {
		end, _ := in.read(f.ctx, func(b []byte) error {
			moved.touch()
			e.counts.OutBytes.Add(uint64(len(b)))
			send(b)
			return nil
		})
		if end {
			return
		}
	}
}

// visitor is a flow of datagrams that came in.
type visitor struct {
	in    inside
	flow  *flow
	moved *idle
}

// udpFromOutside reads a public port's datagrams, and keeps a flow for each client.
func (e *Edge) udpFromOutside(l *listener) {
	conn := l.packets
	var (
		mu       sync.Mutex
		visitors = map[netip.AddrPort]*visitor{}
	)
	buf := make([]byte, 64<<10)
	for {
		n, client, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if l.closed.Load() || e.ctx.Err() != nil {
				return
			}
			continue // an ICMP error about what was sent before
		}
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		mu.Lock()
		v := visitors[client]
		mu.Unlock()
		if v == nil {
			if v = e.visit(l, client); v == nil {
				continue
			}
			mu.Lock()
			visitors[client] = v
			mu.Unlock()
			go func() {
				defer e.done(v.flow)
				defer v.in.ep.Close()
				defer v.moved.timer.Stop()
				e.fromMachine(v.flow, v.in, v.moved, func(b []byte) { _, _ = conn.WriteToUDPAddrPort(b, client) })
				mu.Lock()
				delete(visitors, client)
				mu.Unlock()
			}()
		}
		v.moved.touch()
		e.counts.InBytes.Add(uint64(n))
		_ = v.in.write(v.flow.ctx, buf[:n])
	}
}

// visit opens a flow of datagrams from a client to the machine; nil: refused.
func (e *Edge) visit(l *listener, client netip.AddrPort) *visitor {
	f, n := e.incoming(l, client)
	if f == nil {
		return nil
	}
	from := e.seenAs(n, client)
	in, err := e.datagrams(n, from, f.to)
	if errors.Is(err, errPortTaken) {
		in, err = e.datagrams(n, netip.AddrPortFrom(from.Addr(), 0), f.to)
	}
	if err != nil {
		e.done(f)
		return nil
	}
	return &visitor{in, f, newIdle(e.cfg.UDPIdle, f.cut)}
}

func (e *Edge) datagrams(n *nic, from, to netip.AddrPort) (inside, error) {
	in := inside{queue: new(waiter.Queue)}
	ep, failed := e.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, in.queue)
	if failed != nil {
		return in, errAborted
	}
	in.ep = ep
	if failed = ep.Bind(n.full(from)); failed == nil {
		failed = ep.Connect(n.full(to))
	}
	if failed != nil {
		ep.Close()
		if _, taken := failed.(*tcpip.ErrPortInUse); taken && from.Port() != 0 {
			return in, errPortTaken
		}
		return in, errAborted
	}
	return in, nil
}
