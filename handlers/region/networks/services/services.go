// Package services is what an environment's edge tells machines: addresses by DHCP and names by DNS. It decides on messages;
// substrates bring them, over whatever sockets they have.
package services

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// internalDomain is reserved for private use by ICANN's board, 2024-07-29.
const internalDomain = "internal"

// Directory knows the machines of one environment. All methods are safe for concurrent use.
type Directory struct {
	resolvers func() []netip.AddrPort
	asking    chan struct{}

	mu      sync.Mutex
	network networks.Network
	leases  map[string]*leases // by segment
}

// New makes a directory without machines. Names of the world are asked of the resolvers.
func New(resolvers func() []netip.AddrPort) *Directory {
	return &Directory{resolvers: resolvers, asking: make(chan struct{}, maxAsking), leases: map[string]*leases{}}
}

// Set says which machines there are. Leases of segments that stay are kept.
func (d *Directory) Set(n networks.Network) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.network = n
	for id := range d.leases {
		if s, ok := d.segment(id); !ok || !s.DHCP {
			delete(d.leases, id)
		}
	}
}

// domain is what follows a machine's name; d.mu is held.
func (d *Directory) domain() string { return d.network.Environment + "." + internalDomain }

func (d *Directory) segment(id string) (networks.Segment, bool) {
	i := slices.IndexFunc(d.network.Segments, func(s networks.Segment) bool { return s.ID == id })
	if i < 0 {
		return networks.Segment{}, false
	}
	return d.network.Segments[i], true
}

// visible are the segments whose machines those of this one can reach, its own first; d.mu is held.
func (d *Directory) visible(id string) []networks.Segment {
	own, ok := d.segment(id)
	if !ok {
		return nil
	}
	out := []networks.Segment{own}
	for _, s := range d.network.Segments {
		if s.ID != id && own.Routed() && s.Routed() {
			out = append(out, s)
		}
	}
	return out
}

// addresses are those of a machine, as a segment sees it.
func (d *Directory) addresses(segment, machine string) (out []netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.visible(segment) {
		for _, p := range s.Ports {
			if !strings.EqualFold(p.Machine, machine) {
				continue
			}
			a := p.Address
			if !a.IsValid() {
				a = d.leases[s.ID].of(networks.CanonicalMAC(p.MAC))
			}
			if a.IsValid() {
				out = append(out, a)
			}
		}
	}
	return out
}

// name is that of the machine that has an address, as a segment sees it; known: the address is the environment's.
func (d *Directory) name(segment string, a netip.Addr) (name string, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.network.Segments {
		known = known || s.Subnet.IsValid() && s.Subnet.Contains(a)
	}
	for _, s := range d.visible(segment) {
		for _, p := range s.Ports {
			if p.Address == a || !p.Address.IsValid() && a.IsValid() && d.leases[s.ID].of(networks.CanonicalMAC(p.MAC)) == a {
				return strings.ToLower(p.Machine), known
			}
		}
	}
	return "", known
}

// portOf gives the port of a MAC.
func portOf(s networks.Segment, mac net.HardwareAddr) (networks.Port, bool) {
	i := slices.IndexFunc(s.Ports, func(p networks.Port) bool { return networks.CanonicalMAC(p.MAC) == mac.String() })
	if i < 0 {
		return networks.Port{}, false
	}
	return s.Ports[i], true
}
