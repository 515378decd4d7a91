package edge

import (
	"net/netip"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// maxTracked is how many routed connections one edge remembers. A new one beyond them is refused.
const maxTracked = 1 << 16

// How long a routed connection is remembered after its last packet.
const (
	idleOpen    = time.Hour
	idleOpening = time.Minute
	idleClosing = 30 * time.Second
	idleOther   = 3 * time.Minute
)

// tuple is what a connection is recognised by. ICMP echo has its identifier in both ports, what has no ports zeros.
type tuple struct {
	protocol uint8
	from, to netip.AddrPort
}

func (t tuple) reverse() tuple { return tuple{t.protocol, t.to, t.from} }

// tracked is a connection between two segments. It is under both of its tuples.
type tracked struct {
	opened  tuple // in the direction of its first packet: what rules decide on
	expires time.Time
	replied bool
	closing bool
}

// fragment is what the later fragments of a packet are recognised by.
type fragment struct {
	protocol uint8
	id       uint16
	from, to netip.Addr
}

// tracker remembers connections between segments, whose packets are passed on as they are.
type tracker struct {
	mu        sync.Mutex
	known     map[tuple]*tracked
	fragments map[fragment]time.Time
	swept     time.Time
}

func newTracker() *tracker {
	return &tracker{known: map[tuple]*tracked{}, fragments: map[fragment]time.Time{}}
}

// packet is what the tracker wants to know of one.
type packet struct {
	tuple
	fin, rst bool
	first    *fragment // it is the first fragment of several
}

// pass says whether a packet belongs to a connection that was let through, or opens one that allow lets through.
// opened: it is new. A connection that began before the edge did is taken up in the middle, if it may be opened that way.
func (t *tracker) pass(p packet, now time.Time, allow func(tuple) bool) (ok, opened bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now, 10*time.Second)
	c := t.known[p.tuple]
	if c == nil || now.After(c.expires) {
		if !allow(p.tuple) || len(t.known) >= 2*maxTracked && !t.sweep(now, 0) {
			return false, false
		}
		c = &tracked{opened: p.tuple}
		t.known[p.tuple], t.known[p.reverse()] = c, c
		opened = true
	}
	c.replied = c.replied || p.tuple != c.opened
	c.closing = c.closing || p.fin || p.rst
	idle := idleOther
	if p.protocol == protocolTCP {
		switch {
		case c.closing:
			idle = idleClosing
		case c.replied:
			idle = idleOpen
		default:
			idle = idleOpening
		}
	}
	c.expires = now.Add(idle)
	if p.first != nil && len(t.fragments) < maxTracked {
		t.fragments[*p.first] = now.Add(idleClosing)
	}
	return true, opened
}

// knows says whether a packet, or one that answers it, belongs to a connection: for errors about it.
func (t *tracker) knows(u tuple) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[u] != nil
}

// passFragment says whether the first fragment was let through.
func (t *tracker) passFragment(f fragment, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, ok := t.fragments[f]
	return ok && now.Before(until)
}

// sweep forgets what has expired, unless it did lately, and says whether there is room.
func (t *tracker) sweep(now time.Time, lately time.Duration) bool {
	if now.Sub(t.swept) > lately {
		t.swept = now
		for u, c := range t.known {
			if now.After(c.expires) {
				delete(t.known, u)
			}
		}
		for f, until := range t.fragments {
			if now.After(until) {
				delete(t.fragments, f)
			}
		}
	}
	return len(t.known) < 2*maxTracked
}

// cut forgets the connections that must not go on.
func (t *tracker) cut(allow func(tuple) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for u, c := range t.known {
		if !allow(c.opened) {
			delete(t.known, u)
		}
	}
}

// count is of the connections now.
func (t *tracker) count(now time.Time) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now, 0)
	return len(t.known) / 2
}

// ruleProtocol is the name of an IP protocol for rules; "" is one that only rules for all protocols match.
func ruleProtocol(p uint8) networks.Protocol {
	switch p {
	case protocolTCP:
		return networks.TCP
	case protocolUDP:
		return networks.UDP
	case protocolICMP:
		return networks.ICMP
	}
	return ""
}
