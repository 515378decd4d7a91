package api

import (
	"net"
	"strconv"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Bound says where an address of a pool is really bound, where that is
// elsewhere: what a client that is on the region's host connects to.
type Bound struct {
	BoundTo    string `json:"bound_to,omitempty" doc:"the host's address that stands for it; absent where it is bound as itself" example:"127.10.0.1"`
	PortOffset int    `json:"port_offset,omitempty" doc:"added to its ports there"`
}

// Mapped is what stands for a region-bound resource, and where it is bound.
type Mapped struct {
	events.Substitution
	Bound
}

// Lease is who has a value of a pool, and where it is bound.
type Lease struct {
	projections.LeaseRow
	Bound
}

// Open is a port of a public address, or some in a row, that is let in.
type Open struct {
	Protocol string `json:"protocol" enum:"tcp,udp"`
	Port     uint16 `json:"port" doc:"of the public address"`
	Last     uint16 `json:"last,omitempty" doc:"of several in a row"`
	To       uint16 `json:"to" doc:"of the machine; several in a row follow it"`
	At       string `json:"at,omitempty" doc:"where it is really reached; of several in a row the first" example:"127.10.0.1:8080"`
}

// boundIn says where a value is bound, given its pool's ranges.
func boundIn(ranges []projections.RangeRow, value string) Bound {
	address, offset, ok := projections.PlaceIn(ranges, value)
	if !ok || address == value && offset == 0 {
		return Bound{}
	}
	return Bound{address, offset}
}

// boundAll adds to a map where its values are bound.
func boundAll(v projections.Reader, region events.RegionID, lines []events.Substitution) ([]Mapped, error) {
	out := []Mapped{}
	ranges := map[string][]projections.RangeRow{} // by type
	for _, l := range lines {
		r, read := ranges[l.Type]
		if !read {
			var err error
			if r, err = (projections.Pools{}).Ranges(v, region, events.PoolID(l.Type)); err != nil {
				return nil, err
			}
			ranges[l.Type] = r
		}
		out = append(out, Mapped{l, boundIn(r, l.To)})
	}
	return out, nil
}

// openAt says where what a public address opens is reached.
func openAt(address string, b Bound, opens []graph.Opening) []Open {
	out := []Open{}
	host := address
	if b.BoundTo != "" {
		host = b.BoundTo
	}
	for _, o := range opens {
		open := Open{Protocol: o.Protocol, Port: o.Port, To: o.To}
		if o.Last != o.Port {
			open.Last = o.Last
		}
		if port := int(o.Port) + b.PortOffset; host != "" && int(o.Last)+b.PortOffset <= 65535 {
			open.At = net.JoinHostPort(host, strconv.Itoa(port))
		}
		out = append(out, open)
	}
	return out
}
