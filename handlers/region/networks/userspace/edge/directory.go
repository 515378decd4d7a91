package edge

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// socket is where something is bound.
type socket struct {
	protocol networks.Protocol
	at       netip.AddrPort
}

// Directory knows where public addresses are really bound: exactly those of the edges that share it, and by their pools those
// of others. It decides what machines may reach from the host, which is most of the world and nothing of the host itself.
type Directory struct {
	mu     sync.Mutex
	pools  []networks.Pool
	edges  map[*Edge][]networks.Public
	own    []netip.Prefix // the host's addresses
	readAt time.Time
}

// NewDirectory makes an empty one.
func NewDirectory() *Directory { return &Directory{edges: map[*Edge][]networks.Public{}} }

// SetPools says where the public addresses of all known regions are bound.
func (d *Directory) SetPools(pools []networks.Pool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pools = slices.Clone(pools)
}

func (e *Edge) directory(publics []networks.Public) {
	d := e.cfg.Directory
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(publics) == 0 {
		delete(d.edges, e)
	} else {
		d.edges[e] = slices.Clone(publics)
	}
}

// Resolve gives where the host reaches what a machine wants to reach. Not ok: no machine may. ICMP has port 0.
func (d *Directory) Resolve(p networks.Protocol, to netip.AddrPort) (at netip.AddrPort, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, publics := range d.edges {
		for _, public := range publics {
			if public.Address != to.Addr() {
				continue
			}
			at := public.Bound(to.Port())
			if p == networks.ICMP {
				return netip.AddrPortFrom(at.Addr(), 0), true
			}
			return at, slices.ContainsFunc(public.Open, func(f networks.Forward) bool {
				return f.Protocol == p && f.Port <= to.Port() && to.Port() <= f.LastPort()
			})
		}
	}
	for _, pool := range d.pools {
		bound, ok := pool.Bound(to.Addr())
		if !ok {
			continue
		}
		if p == networks.ICMP {
			return netip.AddrPortFrom(bound, 0), true
		}
		port := int(to.Port()) + pool.PortOffset
		if port < 1 || port > 65535 {
			return netip.AddrPort{}, false
		}
		at := netip.AddrPortFrom(bound, uint16(port))
		// Who listens at all of the host's addresses listens at this one too, and is not who is meant.
		return at, !d.ofHost(bound) || listens(p, at)
	}
	a := to.Addr()
	return to, !(a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.As4()[0] == 0 || a.As4()[0] >= 240 || d.ofHost(a))
}

// Published gives the public address that stands for an address of the host, where one does. For the address that everybody
// on the host has when they name none, none does.
func (d *Directory) Published(a netip.Addr) (netip.Addr, bool) {
	if a == netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		return netip.Addr{}, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, publics := range d.edges {
		for _, public := range publics {
			if public.Bound(0).Addr() == a {
				return public.Address, true
			}
		}
	}
	for _, pool := range d.pools {
		if public, ok := pool.Published(a); ok {
			return public, true
		}
	}
	return netip.Addr{}, false
}

// hostMemory is how long the host's addresses are believed to be the same.
const hostMemory = 2 * time.Second

// ofHost says whether an address is one of this host's. When they cannot be read, every one is.
func (d *Directory) ofHost(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	if now := time.Now(); now.Sub(d.readAt) > hostMemory {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return true
		}
		d.own, d.readAt = d.own[:0], now
		for _, in := range addrs {
			if p, err := netip.ParsePrefix(in.String()); err == nil {
				d.own = append(d.own, p)
			}
		}
	}
	return slices.ContainsFunc(d.own, func(p netip.Prefix) bool { return p.Addr() == a })
}

// listens says whether a socket of this host is bound to exactly this address and port; see proc_net(5). Where the host does
// not tell, none is.
func listens(p networks.Protocol, at netip.AddrPort) bool {
	f, err := os.Open("/proc/net/" + string(p))
	if err != nil {
		return false
	}
	defer f.Close()
	a := at.Addr().As4() // the kernel prints these four bytes as one number of its own byte order
	local := fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(a[:]), at.Port())
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		// A TCP socket that listens is in state 0A, a UDP one that is not connected in 07.
		if len(fields) > 3 && fields[1] == local && (fields[3] == "0A" || p == networks.UDP && fields[3] == "07") {
			return true
		}
	}
	return false
}
