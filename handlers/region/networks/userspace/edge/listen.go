package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// want is where a public port leads.
type want struct {
	public netip.Addr
	target netip.AddrPort
}

// wanted gives the sockets that a public address needs.
func wanted(p networks.Public) map[socket]want {
	out := map[socket]want{}
	for _, f := range p.Open {
		target := p.Target
		if f.Target.IsValid() {
			target = f.Target
		}
		for i := 0; int(f.Port)+i <= int(f.LastPort()); i++ {
			at := socket{f.Protocol, p.Bound(f.Port + uint16(i))}
			out[at] = want{p.Address, netip.AddrPortFrom(target, f.ToPort()+uint16(i))}
		}
	}
	return out
}

// listener is a public port.
type listener struct {
	at      socket
	want    atomic.Pointer[want]
	closed  atomic.Bool
	stream  *net.TCPListener
	packets *net.UDPConn
}

func bindFailed(p networks.Protocol, at netip.AddrPort, err error) error {
	return networks.Wrap(networks.BindFailed, err, "%s %s cannot be bound", p, at)
}

// probe says whether a public address can be bound here at all; one without open ports is still where connections come from.
func probe(ctx context.Context, p networks.Public) error {
	at := netip.AddrPortFrom(p.Bound(0).Addr(), 0)
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp4", at.String())
	if err != nil {
		return bindFailed(networks.UDP, at, err)
	}
	return conn.Close()
}

// open binds a public port. Error: bind-failed.
func open(ctx context.Context, at socket, w want) (*listener, error) {
	l := &listener{at: at}
	l.want.Store(&w)
	var config net.ListenConfig
	if at.protocol == networks.TCP {
		stream, err := config.Listen(ctx, "tcp4", at.at.String())
		if err != nil {
			return nil, bindFailed(at.protocol, at.at, err)
		}
		l.stream = stream.(*net.TCPListener)
		return l, nil
	}
	packets, err := config.ListenPacket(ctx, "udp4", at.at.String())
	if err != nil {
		return nil, bindFailed(at.protocol, at.at, err)
	}
	l.packets = packets.(*net.UDPConn)
	return l, nil
}

func (l *listener) close() {
	l.closed.Store(true)
	if l.stream != nil {
		l.stream.Close()
	} else {
		l.packets.Close()
	}
}

// start serves the port until it is closed.
func (l *listener) start(e *Edge) {
	e.running.Add(1)
	go func() {
		defer e.running.Done()
		if l.packets != nil {
			e.udpFromOutside(l)
			return
		}
		for {
			conn, err := l.stream.AcceptTCP()
			switch {
			case err == nil:
				go e.tcpFromOutside(l, conn)
			case l.closed.Load() || errors.Is(err, net.ErrClosed):
				return
			default: // out of file descriptors: later
				e.cfg.Log.Warn("a public port cannot accept", "at", fmt.Sprint(l.at), "err", err)
				select {
				case <-time.After(100 * time.Millisecond):
				case <-e.ctx.Done():
				}
			}
		}
	}()
}
