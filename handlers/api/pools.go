package api

import (
	"context"
	"net/http"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// OnePool is a pool with what it is made of and who has what. Leases of other
// accounts are counted and not shown.
type OnePool struct {
	Known
	projections.PoolRow
	Prefixes []projections.RangeRow `json:"contents"`
	Leases   []Lease                `json:"leases"`
}

type poolsInput struct {
	Paged
	Region string `query:"region" doc:"only of this region"`
}

type poolInput struct {
	Read
	Region string `path:"region" doc:"id, name or alias"`
	Type   string `path:"type" example:"public-address"`
}

type newRange struct {
	Write
	Body struct {
		Region     string   `json:"region" doc:"id, name or alias"`
		Type       string   `json:"type" example:"public-address"`
		Prefix     string   `json:"prefix,omitempty" doc:"addresses, as CIDR" example:"203.0.113.0/28"`
		Values     []string `json:"values,omitempty" doc:"of other types, one by one"`
		Bind       string   `json:"bind,omitempty" doc:"where the prefix is really bound, as CIDR of the same size; auto: on the host's loopback, where nobody needs privileges"`
		PortOffset int      `json:"port_offset,omitempty"`
	}
}

type newLease struct {
	Write
	Region string `path:"region"`
	Type   string `path:"type"`
	Body   struct {
		For   events.AccountID `json:"for" doc:"the account that gets it"`
		Note  string           `json:"note" doc:"what it is for"`
		Value string           `json:"value,omitempty" doc:"this one; otherwise the lowest free"`
	}
}

type oldLease struct {
	Write
	Region string `path:"region"`
	Type   string `path:"type"`
	Lease  string `path:"lease"`
}

// Bodies of commands, as the door's table has them.
type (
	rangeBody struct {
		Region     events.RegionID `json:"region"`
		Type       events.PoolID   `json:"type"`
		Prefix     string          `json:"prefix,omitempty"`
		Values     []string        `json:"values,omitempty"`
		Bind       string          `json:"bind,omitempty"`
		PortOffset int             `json:"port_offset,omitempty"`
	}
	grantBody struct {
		Region events.RegionID  `json:"region"`
		Type   events.PoolID    `json:"type"`
		For    events.AccountID `json:"for"`
		Note   string           `json:"note"`
		Value  string           `json:"value,omitempty"`
	}
	revokeBody struct {
		Region events.RegionID `json:"region"`
		Type   events.PoolID   `json:"type"`
		Lease  events.LeaseID  `json:"lease"`
	}
)

func (s *Server) poolRoutes() {
	get(s, "/v1/pools", "list-pools", "What stock has which region?", func(_ context.Context, v at, in *poolsInput) (List[projections.PoolRow], uint64, error) {
		var region events.RegionID
		if in.Region != "" {
			r, err := regionSpelled(v, in.Region)
			if err != nil {
				return List[projections.PoolRow]{}, 0, err
			}
			region = r.Region
		}
		page, err := projections.Pools{}.List(v, region, in.Limit, in.Next)
		return listed(v.known, page, same[projections.PoolRow]), 0, err
	})
	get(s, "/v1/pools/{region}/{type}", "get-pool", "One pool, its contents and leases", s.getPool)
	command(s, http.MethodPost, "/v1/pools", "add-range", "Add to a region's pool; the first addition makes it", func(ctx context.Context, in *newRange) (Accepted, error) {
		region, err := s.knownRegion(ctx, in.Body.Region)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, events.None, events.KindPool, "add-range", rangeBody{region, events.PoolID(in.Body.Type), in.Body.Prefix,
			in.Body.Values, in.Body.Bind, in.Body.PortOffset})
	})
	command(s, http.MethodPost, "/v1/pools/{region}/{type}/leases", "grant-lease", "Lease one value by hand", func(ctx context.Context, in *newLease) (Accepted, error) {
		region, err := s.knownRegion(ctx, in.Region)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, events.None, events.KindPool, "grant", grantBody{region, events.PoolID(in.Type), in.Body.For, in.Body.Note, in.Body.Value})
	})
	command(s, http.MethodDelete, "/v1/pools/{region}/{type}/leases/{lease}", "revoke-lease", "Take back a lease that was granted by hand", func(ctx context.Context, in *oldLease) (Accepted, error) {
		region, err := s.knownRegion(ctx, in.Region)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, events.None, events.KindPool, "revoke", revokeBody{region, events.PoolID(in.Type), events.LeaseID(in.Lease)})
	})
}

func (s *Server) getPool(ctx context.Context, v at, in *poolInput) (OnePool, uint64, error) {
	account, all, err := in.account(ctx)
	if err != nil {
		return OnePool{}, 0, err
	}
	region, err := regionSpelled(v, in.Region)
	if err != nil {
		return OnePool{}, 0, err
	}
	kind := events.PoolID(in.Type)
	row, ok, err := projections.Pools{}.Pool(v, region.Region, kind)
	if err == nil && !ok {
		err = aggregates.RefuseAs(aggregates.NotFound, "pool-unknown", "%s has no pool of %s", region.Region, kind).WithNext("tombolo pool ls --region %s", region.Region)
	}
	if err != nil {
		return OnePool{}, 0, err
	}
	out := OnePool{Known: v.known, PoolRow: row, Leases: []Lease{}}
	if out.Prefixes, err = (projections.Pools{}).Ranges(v, region.Region, kind); err != nil {
		return out, 0, err
	}
	for resume := ""; ; {
		page, err := projections.Pools{}.Leases(v, region.Region, kind, 1000, resume)
		if err != nil {
			return out, 0, err
		}
		for _, l := range page.Rows {
			if all || l.Account == account {
				out.Leases = append(out.Leases, Lease{l, boundIn(out.Prefixes, l.Value)})
			}
		}
		if resume = page.Resume; resume == "" {
			return out, row.Revision, nil
		}
	}
}

func same[T any](x T) T { return x }
