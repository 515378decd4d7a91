package edge

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// errNoPort says that all source ports are in use.
var errNoPort = errors.New("all source ports are in use")

// sourcePorts are those of one public address, or of the edge.
type sourcePorts struct {
	ports networks.PortRange
	mu    sync.Mutex
	used  map[socketPort]bool
	next  uint16
}

type socketPort struct {
	protocol networks.Protocol
	port     uint16
}

// sourceRange is what the ports in e.sources are of; e.mu is held.
func (e *Edge) sourceRange() networks.PortRange {
	for _, s := range e.sources {
		return s.ports
	}
	return networks.PortRange{}
}

// portsOf gives the source ports of a public address, none: of the edge. nil: any may be used.
func (e *Edge) portsOf(public netip.Addr) *sourcePorts {
	ports := e.now.Load().network.Edge.SourcePorts
	if ports == (networks.PortRange{}) {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.sources[public]
	if s == nil || s.ports != ports {
		s = &sourcePorts{ports: ports, used: map[socketPort]bool{}, next: ports.First}
		e.sources[public] = s
	}
	return s
}

// take gives a port that no connection uses, in turn, so that one that was just given back rests.
func (s *sourcePorts) take(p networks.Protocol) (uint16, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range int(s.ports.Last) - int(s.ports.First) + 1 {
		port := s.next
		if s.next++; port == s.ports.Last {
			s.next = s.ports.First
		}
		if k := (socketPort{p, port}); !s.used[k] {
			s.used[k] = true
			return port, true
		}
	}
	return 0, false
}

func (s *sourcePorts) give(p networks.Protocol, port uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, socketPort{p, port})
}

// dial connects the host to the outside in a machine's place: from its public address, where that can be, and from one of the
// source ports, where there are any. The port is the connection's until give is called. Error: errNoPort, or the host's.
func (e *Edge) dial(f *flow, at netip.AddrPort) (conn net.Conn, give func(), err error) {
	var local netip.Addr
	if p, ok := e.now.Load().publics[f.machine]; ok {
		// From the host's loopback nothing reaches the world, and from anywhere else not the loopback.
		if b := p.Bound(0).Addr(); b.IsLoopback() == at.Addr().IsLoopback() {
			local = b
		}
	}
	network := string(f.protocol) + "4"
	try := func(port uint16) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout}
		if local.IsValid() || port != 0 {
			from := local
			if !from.IsValid() {
				from = netip.IPv4Unspecified()
			}
			if f.protocol == networks.TCP {
				d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, port))
				d.Control = reuse // its port may still have an older connection to another place that waits to be forgotten
			} else {
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, port))
			}
		}
		return d.DialContext(f.ctx, network, at.String())
	}
	ports := e.portsOf(f.public)
	if ports == nil {
		conn, err := try(0)
		return conn, func() {}, err
	}
	var taken []uint16 // by others of the host: not ours to use, and not tried twice
	defer func() {
		for _, port := range taken {
			ports.give(f.protocol, port)
		}
	}()
	for {
		port, ok := ports.take(f.protocol)
		if !ok {
			e.counts.PortsExhausted.Add(1)
			return nil, nil, errNoPort
		}
		conn, err := try(port)
		if err == nil {
			var once sync.Once
			return conn, func() { once.Do(func() { ports.give(f.protocol, port) }) }, nil
		}
		taken = append(taken, port)
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) || f.ctx.Err() != nil {
			return nil, nil, err
		}
	}
}

func reuse(_, _ string, c syscall.RawConn) error {
	var failed error
	if err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); err != nil {
		return err
	}
	return failed
}
