// Package edge is what stands between the segments of an environment, and between them and everything else, in user space:
// gateway, DHCP, names, routing, translation and filtering. Its own connections, those of machines to the outside and those
// that come in, end in gVisor's network stack and go on from the host's sockets; packets between segments pass as they are.
package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/segment"
)

// Config is what edges of a region share.
type Config struct {
	Directory *Directory              // of public addresses
	Resolvers func() []netip.AddrPort // whom to ask for names of the world
	UDPIdle   time.Duration           // after which a flow of datagrams is forgotten
	Log       *slog.Logger
}

// The bounds of one edge.
const (
	maxFlows    = 4096 // connections to and from the outside
	maxOpening  = 1024 // TCP connections of machines that are being opened
	tcpTimeWait = 5 * time.Second
	dialTimeout = 20 * time.Second
)

// Counts are those since the edge was made.
type Counts struct {
	Opened, Refused, PortsExhausted, InBytes, OutBytes atomic.Uint64
}

// Edge is that of one environment.
type Edge struct {
	cfg         Config
	environment string
	stack       *stack.Stack
	tracker     *tracker
	counts      Counts
	ctx         context.Context
	end         context.CancelFunc
	running     sync.WaitGroup
	now         atomic.Pointer[view]

	mu        sync.Mutex
	nextNIC   tcpip.NICID
	flows     map[*flow]struct{}
	listeners map[socket]*listener
	sources   map[netip.Addr]*sourcePorts
	pings     map[pingKey]*ping
}

// view is what the edge is now, as those see it who carry packets. It never changes; another one takes its place.
type view struct {
	network networks.Network
	nics    []*nic
	publics map[netip.Addr]networks.Public // by the machine's address
}

// inner gives the edge's interface to the segment that an address is of.
func (v *view) inner(a netip.Addr) *nic {
	for _, n := range v.nics {
		if n.segment.Routed() && n.segment.Subnet.Contains(a) {
			return n
		}
	}
	return nil
}

// allows applies the rules to a connection whose default is to be let through: what comes from outside is asked about only
// where a public address opens it.
func (v *view) allows(p networks.Protocol, from netip.Addr, to netip.AddrPort) bool {
	return networks.Decide(v.network.Edge.Rules, p, from, to, true)
}

// New makes an edge that stands alone.
func New(environment string, cfg Config) (*Edge, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	var (
		sack     = tcpip.TCPSACKEnabled(true)
		moderate = tcpip.TCPModerateReceiveBufferOption(true)
		wait     = tcpip.TCPTimeWaitTimeoutOption(tcpTimeWait)
		sendBuf  = tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 4 << 20}
		recvBuf  = tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 256 << 10, Max: 4 << 20}
	)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &wait, &sendBuf, &recvBuf} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return nil, fmt.Errorf("TCP option %T: %s", o, err)
		}
	}
	e := &Edge{
		cfg: cfg, environment: environment, stack: s, tracker: newTracker(),
		flows: map[*flow]struct{}{}, listeners: map[socket]*listener{},
		sources: map[netip.Addr]*sourcePorts{}, pings: map[pingKey]*ping{},
	}
	e.ctx, e.end = context.WithCancel(context.Background())
	e.now.Store(&view{network: networks.Network{Environment: environment}})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, maxOpening, e.tcpFromInside).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, e.udpFromInside).HandlePacket)
	return e, nil
}

// Counts are the edge's; connections are those of now.
func (e *Edge) Counts() (c *Counts, connections int) {
	e.mu.Lock()
	n := len(e.flows)
	e.mu.Unlock()
	return &e.counts, n + e.tracker.count(time.Now())
}

// Change is a change that is ready: all that can fail has been done.
type Change struct {
	edge   *Edge
	next   networks.Network
	opened map[socket]*listener // sockets that are bound and not yet listened at
}

// Prepare binds what a network needs beyond what is bound already. Error: bind-failed; then nothing is bound.
func (e *Edge) Prepare(ctx context.Context, n networks.Network) (*Change, error) {
	c := &Change{edge: e, next: n, opened: map[socket]*listener{}}
	e.mu.Lock()
	have := maps.Clone(e.listeners)
	e.mu.Unlock()
	for _, p := range n.Edge.Publics {
		if err := probe(ctx, p); err != nil {
			c.Abandon()
			return nil, err
		}
		for at, w := range wanted(p) {
			if have[at] != nil {
				continue
			}
			l, err := open(ctx, at, w)
			if err != nil {
				c.Abandon()
				return nil, err
			}
			c.opened[at] = l
		}
	}
	return c, nil
}

// Abandon lets go of what was prepared.
func (c *Change) Abandon() {
	for _, l := range c.opened {
		l.close()
	}
}

// Commit makes the edge be as prepared. What the new network still has is not touched. An error is one of this program.
func (c *Change) Commit(segments map[string]*segment.Segment) error {
	e, was := c.edge, c.edge.now.Load()
	next := &view{network: c.next, publics: map[netip.Addr]networks.Public{}}
	for _, p := range slices.Backward(c.next.Edge.Publics) { // the first of several is the one it comes from
		next.publics[p.Target] = p
	}
	old := map[string]*nic{}
	for _, n := range was.nics {
		old[n.segment.ID] = n
	}
	var fresh []*nic
	for _, s := range c.next.Segments {
		if !s.EdgeAddress().IsValid() {
			continue
		}
		if n := old[s.ID]; n != nil && n.fits(s, segments[s.ID]) {
			delete(old, s.ID)
			n.update(s)
			next.nics = append(next.nics, n)
			continue
		}
		e.nextNIC++
		n := newNIC(e, e.nextNIC, s, segments[s.ID])
		next.nics, fresh = append(next.nics, n), append(fresh, n)
	}
	for _, n := range old {
		n.close()
	}
	e.now.Store(next)
	var failed error
	for _, n := range fresh {
		failed = errors.Join(failed, n.start())
	}
	e.directory(c.next.Edge.Publics)
	e.listen(c)
	e.cut(next)
	return failed
}

// listen takes over the new listeners, tells those that stay where they lead now, and closes those that are not wanted.
func (e *Edge) listen(c *Change) {
	wants := map[socket]want{}
	for _, p := range c.next.Edge.Publics {
		maps.Copy(wants, wanted(p))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for at, l := range e.listeners {
		if w, ok := wants[at]; ok {
			l.want.Store(&w)
		} else {
			delete(e.listeners, at)
			l.close()
		}
	}
	for at, l := range c.opened {
		e.listeners[at] = l
		l.start(e)
	}
	// Ports in use stay in use under another range, and are given back to the old one.
	if was := e.sourceRange(); was != c.next.Edge.SourcePorts {
		clear(e.sources)
	}
}

// cut ends every connection that the edge as it is now would not let through, or whose way is gone.
func (e *Edge) cut(v *view) {
	e.mu.Lock()
	var doomed []*flow
	for f := range e.flows {
		if !f.stays(v) {
			doomed = append(doomed, f)
		}
	}
	for k, p := range e.pings {
		if v.inner(k.from) == nil || !v.allows(networks.ICMP, k.from, netip.AddrPortFrom(k.to, 0)) {
			p.close()
			delete(e.pings, k)
		}
	}
	e.mu.Unlock()
	for _, f := range doomed {
		f.cut()
	}
	e.tracker.cut(func(t tuple) bool { return v.routes(t) })
}

// routes says whether a connection between two segments may be.
func (v *view) routes(t tuple) bool {
	return v.inner(t.from.Addr()) != nil && v.inner(t.to.Addr()) != nil &&
		v.allows(ruleProtocol(t.protocol), t.from.Addr(), t.to)
}

// Close ends everything of the edge, and returns when no socket and no goroutine is left.
func (e *Edge) Close() {
	e.end()
	nothing := &Change{edge: e, next: networks.Network{Environment: e.environment}}
	_ = nothing.Commit(nil) // removes only, which cannot fail
	e.stack.Close()         // breaks off what is being opened
	e.running.Wait()
	e.stack.Wait()
}
