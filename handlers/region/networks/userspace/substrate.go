// Package userspace makes a region's networks without any privilege: segments are switches in this process, which machines
// are plugged into by unix sockets, and edges stand on gVisor's network stack. They live as long as the Substrate.
package userspace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/edge"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/segment"
)

// Config is what a substrate needs.
type Config struct {
	Dir       string           // holds the highest epoch seen and, where its name is not too long for that, the machines' sockets
	Pools     []networks.Pool  // where the public addresses of all known regions are bound; see SetPools
	Resolvers []netip.AddrPort // whom the edges ask for names of the world; nil: those of /etc/resolv.conf
	UDPIdle   time.Duration    // after which a flow of datagrams is forgotten; 0: a minute
	Log       *slog.Logger     // nil: none
}

// plugPatience is how long Plug waits for a machine that is said to be there.
const plugPatience = 10 * time.Second

// Substrate makes networks in user space.
type Substrate struct {
	cfg       edge.Config
	sockets   string
	epochFile string
	loopback  bool

	mu           sync.Mutex
	epoch        int
	closed       bool
	environments map[string]*environment
}

var _ networks.Substrate = (*Substrate)(nil)

// environment is the network of one.
type environment struct {
	network  networks.Network
	segments map[string]*segment.Segment
	ports    map[networks.PortID]*port
	edge     *edge.Edge // nil: no segment needs one
}

type port struct {
	*segment.Port
	segment string
	wire    *segment.Segment
	socket  string
	plugged bool
}

// New makes a substrate without networks.
func New(c Config) (*Substrate, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	sockets, err := socketFolder(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	if c.UDPIdle == 0 {
		c.UDPIdle = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	resolvers := func() []netip.AddrPort { return c.Resolvers }
	if c.Resolvers == nil {
		resolvers = func() []netip.AddrPort { return edge.HostResolvers("/etc/resolv.conf") }
	}
	s := &Substrate{
		cfg:     edge.Config{Directory: edge.NewDirectory(), Resolvers: resolvers, UDPIdle: c.UDPIdle, Log: c.Log},
		sockets: sockets, epochFile: filepath.Join(c.Dir, "epoch"), environments: map[string]*environment{},
	}
	if s.epoch, err = readEpoch(s.epochFile); err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	s.cfg.Directory.SetPools(c.Pools)
	if l, err := net.ListenPacket("udp4", "127.10.0.1:0"); err == nil {
		s.loopback = l.Close() == nil
	}
	return s, nil
}

// SetPools says where the public addresses of all known regions are bound, so that machines reach those of others.
func (s *Substrate) SetPools(_ context.Context, pools []networks.Pool) error {
	s.cfg.Directory.SetPools(pools)
	return nil
}

// Capabilities are those of this host.
func (s *Substrate) Capabilities(context.Context) (networks.Capabilities, error) {
	return networks.Capabilities{Name: "user", Available: true, LoopbackBind: s.loopback, KeepsClient: true, Parks: true, Echo: edge.CanEcho()}, nil
}

// List gives all networks, by environment.
func (s *Substrate) List(context.Context) ([]networks.Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []networks.Network{}
	for _, name := range slices.Sorted(maps.Keys(s.environments)) {
		out = append(out, clone(s.environments[name].network))
	}
	return out, nil
}

// Network gives one. Error: network-unknown.
func (s *Substrate) Network(_ context.Context, name string) (networks.Network, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.environments[name]
	if !ok {
		return networks.Network{}, networks.Errorf(networks.NetworkUnknown, "environment %s has no network here", name)
	}
	return clone(e.network), nil
}

// Counters gives those of all ports and edges, in order.
func (s *Substrate) Counters(context.Context) ([]networks.Counters, []networks.EdgeCounters, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ports, edges := []networks.Counters{}, []networks.EdgeCounters{}
	for _, name := range slices.Sorted(maps.Keys(s.environments)) {
		e := s.environments[name]
		for id, p := range e.ports {
			c := p.Counts()
			ports = append(ports, networks.Counters{
				PortID: id, Segment: p.segment, Plugged: p.Plugged(),
				InFrames: c.InFrames.Load(), InBytes: c.InBytes.Load(), OutFrames: c.OutFrames.Load(), OutBytes: c.OutBytes.Load(),
				InDropped: c.InDropped.Load(), OutDropped: c.OutDropped.Load(), Parked: uint64(p.wire.Parked(p.MAC())),
			})
		}
		counters := networks.EdgeCounters{Environment: name}
		if e.edge != nil {
			c, connections := e.edge.Counts()
			counters.Connections, counters.Opened, counters.Refused = uint64(connections), c.Opened.Load(), c.Refused.Load()
			counters.PortsExhausted, counters.InBytes, counters.OutBytes = c.PortsExhausted.Load(), c.InBytes.Load(), c.OutBytes.Load()
		}
		edges = append(edges, counters)
	}
	slices.SortFunc(ports, func(a, b networks.Counters) int { return comparePorts(a.PortID, b.PortID) })
	return ports, edges, nil
}

func comparePorts(a, b networks.PortID) int {
	if c := strings.Compare(a.Environment, b.Environment); c != 0 {
		return c
	}
	if c := strings.Compare(a.Machine, b.Machine); c != 0 {
		return c
	}
	return a.Interface - b.Interface
}

// admit refuses a caller that has lost the region, and remembers one that has it; s.mu is held.
func (s *Substrate) admit(epoch int) error {
	if s.closed {
		return errors.New("networks: the substrate is closed")
	}
	if epoch < s.epoch {
		return networks.Errorf(networks.StaleEpoch, "epoch %d was seen, and %d asks", s.epoch, epoch)
	}
	if epoch > s.epoch {
		if err := writeEpoch(s.epochFile, epoch); err != nil {
			return fmt.Errorf("networks: %w", err)
		}
		s.epoch = epoch
	}
	return nil
}

// Apply makes the network be as described.
func (s *Substrate) Apply(ctx context.Context, n networks.Network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admit(n.Epoch); err != nil {
		return err
	}
	if err := networks.Validate(n); err != nil {
		return err
	}
	n = clone(n)
	e := s.environments[n.Environment]
	if e == nil {
		e = &environment{segments: map[string]*segment.Segment{}, ports: map[networks.PortID]*port{}}
	}
	front, fresh := e.edge, false
	if needsEdge := slices.ContainsFunc(n.Segments, func(s networks.Segment) bool { return s.EdgeAddress().IsValid() }); needsEdge && front == nil {
		var err error
		if front, err = edge.New(n.Environment, s.cfg); err != nil {
			return fmt.Errorf("networks: %w", err)
		}
		fresh = true
	}
	var change *edge.Change
	if front != nil {
		var err error
		if change, err = front.Prepare(ctx, n); err != nil {
			if fresh {
				front.Close()
			}
			return err
		}
	}
	// From here on nothing fails.
	s.environments[n.Environment], e.edge = e, front
	gone := s.rewire(e, n)
	e.network = n
	var err error
	if change != nil {
		err = change.Commit(e.segments)
	}
	for _, p := range gone {
		s.discard(p)
	}
	if err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	return nil
}

// rewire makes segments and ports as described, and gives the ports that are left over.
func (s *Substrate) rewire(e *environment, n networks.Network) (gone []*port) {
	segments, ports := map[string]*segment.Segment{}, map[networks.PortID]*port{}
	for _, want := range n.Segments {
		wire := e.segments[want.ID]
		if wire == nil || wire.MTU() != want.MTUOr() {
			wire = segment.New(want.MTUOr())
		}
		segments[want.ID] = wire
		for _, p := range want.Ports {
			id := networks.PortID{Environment: n.Environment, Machine: p.Machine, Interface: p.Interface}
			raw, _ := net.ParseMAC(p.MAC) // Validate has read it
			mac := segment.ParseMAC(raw)
			old := e.ports[id]
			if old != nil && old.wire == wire && old.MAC() == mac {
				ports[id] = old
				continue
			}
			fresh := &port{segment: want.ID, wire: wire, socket: s.socket(id)}
			if old != nil {
				fresh.plugged = old.plugged
				old.Close()
			}
			fresh.Port = wire.NewPort(mac)
			if fresh.plugged {
				fresh.Connect(fresh.socket)
			}
			ports[id] = fresh
		}
	}
	for id, p := range e.ports {
		if ports[id] == nil {
			gone = append(gone, p)
		}
	}
	e.segments, e.ports = segments, ports
	return gone
}

// discard takes a port away, and what its machine has left.
func (s *Substrate) discard(p *port) {
	p.Close()
	if err := os.Remove(p.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Warn("a machine's socket cannot be removed", "socket", p.socket, "err", err)
	}
}

// Remove takes away everything of an environment.
func (s *Substrate) Remove(_ context.Context, epoch int, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admit(epoch); err != nil {
		return err
	}
	if e := s.environments[name]; e != nil {
		delete(s.environments, name)
		if e.edge != nil {
			e.edge.Close()
		}
		for _, p := range e.ports {
			s.discard(p)
		}
	}
	return nil
}

// Close ends all networks: they do not outlive it. Machines are left to listen for the next one.
func (s *Substrate) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, e := range s.environments {
		if e.edge != nil {
			e.edge.Close()
		}
		for _, p := range e.ports {
			p.Close()
		}
	}
	clear(s.environments)
	return nil
}

// socketFolder makes the folder of the machines' sockets: below dir or, where that
// is too long a name for sockets, in one of the user's own for temporary files,
// always the same for the same dir. Errors: socket-path-long, socket-unusable.
func socketFolder(dir string) (string, error) {
	longest, err := nbd.SocketPath(filepath.Join(dir, "ports"), strings.Repeat("0", socketName))
	if err != nil {
		return "", err
	}
	folder := filepath.Dir(longest)
	if filepath.Base(folder) != "ports" {
		folder = longest // named after the whole path
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	// In a folder of somebody else the sockets could be replaced by others.
	for _, f := range []string{filepath.Dir(folder), folder} {
		var st unix.Stat_t
		if err := unix.Stat(f, &st); err != nil {
			return "", err
		}
		if int(st.Uid) != os.Getuid() {
			return "", fmt.Errorf("%s belongs to another user", f)
		}
	}
	return folder, nil
}

// socketName is how long the name of a port's socket is.
const socketName = 16

// socket is where a port's machine listens.
func (s *Substrate) socket(p networks.PortID) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d", p.Environment, p.Machine, p.Interface))
	return filepath.Join(s.sockets, hex.EncodeToString(sum[:socketName/2]))
}

// port finds one; s.mu is held.
func (s *Substrate) port(epoch int, p networks.PortID) (*port, error) {
	if err := s.admit(epoch); err != nil {
		return nil, err
	}
	if e := s.environments[p.Environment]; e != nil && e.ports[p] != nil {
		return e.ports[p], nil
	}
	return nil, networks.Errorf(networks.NetworkUnknown, "interface %d of %s in environment %s has no port here", p.Interface, p.Machine, p.Environment)
}

// Attachment gives the socket that the machine is to listen at. Error: network-unknown.
func (s *Substrate) Attachment(_ context.Context, epoch int, id networks.PortID) (networks.Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.port(epoch, id)
	if err != nil {
		return networks.Attachment{}, err
	}
	return networks.Attachment{Socket: p.socket}, nil
}

// Plug connects the port to the machine, and waits until it is. Errors: network-unknown, plug-failed.
func (s *Substrate) Plug(ctx context.Context, epoch int, id networks.PortID) error {
	s.mu.Lock()
	p, err := s.port(epoch, id)
	if err == nil {
		p.plugged = true
		p.Connect(p.socket)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, plugPatience)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		return networks.Wrap(networks.PlugFailed, err, "interface %d of %s does not listen at %s", id.Interface, id.Machine, p.socket)
	}
	return nil
}

// Unplug disconnects the port. Error: network-unknown.
func (s *Substrate) Unplug(_ context.Context, epoch int, id networks.PortID) error {
	return s.with(epoch, id, func(p *port) {
		p.plugged = false
		p.Unplug()
	})
}

// Park keeps frames for the port. Error: network-unknown.
func (s *Substrate) Park(_ context.Context, epoch int, id networks.PortID) error {
	return s.with(epoch, id, func(p *port) { p.wire.Park(p.MAC()) })
}

// Release sends them on. Error: network-unknown.
func (s *Substrate) Release(_ context.Context, epoch int, id networks.PortID) error {
	return s.with(epoch, id, func(p *port) { p.wire.Release(p.MAC()) })
}

func (s *Substrate) with(epoch int, id networks.PortID, do func(*port)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.port(epoch, id)
	if err == nil {
		do(p)
	}
	return err
}
