package edge

import (
	"context"
	"net/netip"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// flow is one connection between a machine and the outside, or a flow of datagrams that is taken for one.
type flow struct {
	protocol networks.Protocol
	from     netip.Addr     // as rules see them
	to       netip.AddrPort //
	machine  netip.Addr     // the end that is inside
	public   netip.Addr     // the public address that it uses; none: the edge's own
	entry    *listener      // where it came in; nil: it went out
	ctx      context.Context
	cut      context.CancelFunc
}

// begin registers a flow, if the rules of now let it through. end must be called when it is over; its context ends when it
// must be.
func (e *Edge) begin(f *flow) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	v := e.now.Load()
	if e.ctx.Err() != nil || len(e.flows) >= maxFlows || !f.stays(v) {
		e.counts.Refused.Add(1)
		return false
	}
	f.ctx, f.cut = context.WithCancel(e.ctx)
	e.flows[f] = struct{}{}
	e.counts.Opened.Add(1)
	e.running.Add(1)
	return true
}

func (e *Edge) done(f *flow) {
	f.cut()
	e.mu.Lock()
	delete(e.flows, f)
	e.mu.Unlock()
	e.running.Done()
}

// stays says whether the edge as it is lets the flow be.
func (f *flow) stays(v *view) bool {
	if v.inner(f.machine) == nil || !v.allows(f.protocol, f.from, f.to) {
		return false
	}
	if f.entry == nil {
		return v.publics[f.machine].Address == f.public
	}
	w := f.entry.want.Load()
	return !f.entry.closed.Load() && w.public == f.public && w.target == f.to
}
