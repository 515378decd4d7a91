package edge

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// ends reads who is at the ends of what a machine opened.
func ends(id stack.TransportEndpointID) (from, to netip.AddrPort) {
	return netip.AddrPortFrom(netip.AddrFrom4(id.RemoteAddress.As4()), id.RemotePort),
		netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}

// outgoing is a flow of a machine to the outside, and where the host finds that.
func (e *Edge) outgoing(p networks.Protocol, from, to netip.AddrPort) (f *flow, at netip.AddrPort, ok bool) {
	v := e.now.Load()
	if v.inner(to.Addr()) != nil {
		return nil, at, false // refused, or nobody's: route has counted it
	}
	at, ok = e.cfg.Directory.Resolve(p, to)
	if !ok {
		e.counts.Refused.Add(1)
		return nil, at, false
	}
	f = &flow{protocol: p, from: from.Addr(), to: to, machine: from.Addr(), public: v.publics[from.Addr()].Address}
	return f, at, e.begin(f)
}

// tcpFromInside connects a machine to the outside. The machine's connection is complete when the host's is.
func (e *Edge) tcpFromInside(r *tcp.ForwarderRequest) {
	from, to := ends(r.ID())
	f, at, ok := e.outgoing(networks.TCP, from, to)
	if !ok {
		r.Complete(true)
		return
	}
	defer e.done(f)
	conn, give, err := e.dial(f, at)
	if err != nil {
		if errors.Is(err, errNoPort) {
			e.counts.Refused.Add(1)
		}
		r.Complete(true)
		return
	}
	defer give()
	var queue waiter.Queue
	ep, failed := r.CreateEndpoint(&queue)
	if failed != nil { // the machine has broken off
		refuse(conn.(*net.TCPConn))
		r.Complete(true)
		return
	}
	r.Complete(false)
	keepAlive(ep)
	e.splice(f.ctx, inside{ep, &queue}, conn.(*net.TCPConn))
}

// keepAlive notices machines that are gone for good; one that is paused for minutes is not.
func keepAlive(ep tcpip.Endpoint) {
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(10*time.Minute), tcpip.KeepaliveIntervalOption(time.Minute)
	for _, o := range []tcpip.SettableSocketOption{&idle, &interval} {
		_ = ep.SetSockOpt(o) // both are always there
	}
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, 10)
}

// tcpFromOutside connects what came in at a public port to the machine.
func (e *Edge) tcpFromOutside(l *listener, conn *net.TCPConn) {
	client := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	f, n := e.incoming(l, client)
	if f == nil {
		refuse(conn)
		return
	}
	defer e.done(f)
	in, err := e.connect(f, n, e.seenAs(n, client))
	if err != nil {
		refuse(conn)
		return
	}
	keepAlive(in.ep)
	e.splice(f.ctx, in, conn)
}

// refuse breaks a connection of the host off.
func refuse(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	conn.Close()
}

// incoming is a flow from the outside, and the interface that it goes on at; nil: refused.
func (e *Edge) incoming(l *listener, client netip.AddrPort) (*flow, *nic) {
	w := l.want.Load()
	n := e.now.Load().inner(w.target.Addr())
	from := client.Addr()
	if public, ok := e.cfg.Directory.Published(from); ok {
		from = public
	}
	f := &flow{protocol: l.at.protocol, from: from, to: w.target, machine: w.target.Addr(), public: w.public, entry: l}
	if n == nil || !e.begin(f) {
		return nil, nil
	}
	return f, n
}

// seenAs is how a machine sees a client: as who it is, where the machine can answer that by way of the edge; else as the gateway.
func (e *Edge) seenAs(n *nic, client netip.AddrPort) netip.AddrPort {
	if public, ok := e.cfg.Directory.Published(client.Addr()); ok {
		client = netip.AddrPortFrom(public, client.Port())
	}
	a := client.Addr()
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || e.now.Load().inner(a) != nil {
		return netip.AddrPortFrom(n.addr, 0)
	}
	return client
}

// connect opens a connection to a machine within its segment.
func (e *Edge) connect(f *flow, n *nic, from netip.AddrPort) (inside, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	defer cancel()
	in, err := e.connectFrom(ctx, n, from, f.to)
	if errors.Is(err, errPortTaken) { // the client has another connection from there, to another public address
		in, err = e.connectFrom(ctx, n, netip.AddrPortFrom(from.Addr(), 0), f.to)
	}
	return in, err
}

var errPortTaken = errors.New("the port is taken")

func (e *Edge) connectFrom(ctx context.Context, n *nic, from, to netip.AddrPort) (inside, error) {
	in := inside{queue: new(waiter.Queue)}
	ep, failed := e.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, in.queue)
	if failed != nil {
		return in, errAborted
	}
	in.ep = ep
	entry, notify := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	in.queue.EventRegister(&entry)
	defer in.queue.EventUnregister(&entry)
	if failed = ep.Bind(n.full(from)); failed == nil {
		failed = ep.Connect(n.full(to))
	}
	if _, started := failed.(*tcpip.ErrConnectStarted); started {
		select {
		case <-notify:
			failed = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			return in, ctx.Err()
		}
	}
	if failed != nil {
		ep.Abort()
		if _, taken := failed.(*tcpip.ErrPortInUse); taken && from.Port() != 0 {
			return in, errPortTaken
		}
		return in, errAborted
	}
	return in, nil
}
