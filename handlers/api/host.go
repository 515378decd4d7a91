package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Host is what a region's agent knows and does on its own host, beside its
// orders: region.Agent.
type Host interface {
	Orphans(ctx context.Context) ([]region.Effect, error)
	Reap(ctx context.Context, e region.Effect) error
	Scrub(ctx context.Context) (region.Scrubbed, error)
	Counts() region.Counts
	HostState(ctx context.Context) (region.HostState, error)
	HostLoad(ctx context.Context) (region.HostState, error)
}

// Orphan is something on a region's host that no order owns.
type Orphan struct {
	Region events.RegionID `json:"region"`
	region.Effect
}

// Orphans are what the regions found when they were asked.
type Orphans struct {
	Items       []Orphan          `json:"items"`
	Unreachable []events.RegionID `json:"unreachable" doc:"regions that did not answer: what they have is not known"`
}

// Scrub is what reading back a region's store found.
type Scrub struct {
	Region events.RegionID `json:"region"`
	region.Scrubbed
}

type orphansInput struct {
	Scope
	Region string `query:"region" doc:"only there; everywhere if absent"`
}

type reapInput struct {
	Scope
	Body struct {
		Region string `json:"region"`
		Kind   string `json:"kind,omitempty" doc:"with name: only this one; all of the region if absent"`
		Name   string `json:"name,omitempty"`
	}
}

// RegionHost is what a region's host can do, and does now.
type RegionHost struct {
	Region events.RegionID `json:"region"`
	region.HostState
}

type oneHost struct {
	Scope
	Region string `path:"region" doc:"id, name or alias"`
}

func (s *Server) hostRoutes() {
	administer(s, http.MethodGet, "/v1/orphans", "list-orphans", "What is on the regions' hosts that no order owns", s.orphans)
	administer(s, http.MethodPost, "/v1/orphans/reap", "reap-orphans", "Remove what no order owns; answers what was removed", s.reap)
	administer(s, http.MethodPost, "/v1/regions/{region}/scrub", "scrub-region", "Read back everything in the region's store; what is damaged is fetched again", s.scrub)
	administer(s, http.MethodGet, "/v1/regions/{region}/host", "show-host", "What the region's host can run, and what its machines and networks do now", s.host)
}

// administer registers what administrators ask of hosts: neither a read of the
// projections nor a command.
func administer[I, B any](s *Server, method, path, id, summary string, do func(context.Context, *I) (B, error)) {
	huma.Register(s.api, huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tagOf(path)}},
		func(ctx context.Context, in *I) (*struct{ Body B }, error) {
			out := &struct{ Body B }{}
			err := mustAdministrate(ctx)
			if err == nil {
				out.Body, err = do(ctx, in)
			}
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			return out, nil
		})
}

func (s *Server) orphans(ctx context.Context, in *orphansInput) (Orphans, error) {
	out := Orphans{Items: []Orphan{}, Unreachable: []events.RegionID{}}
	if s.Host != nil {
		effects, err := s.Host.Orphans(ctx)
		for _, e := range effects {
			out.Items = append(out.Items, Orphan{Effect: e})
		}
		return out, err
	}
	regions, err := lookup(ctx, s, Read{}, func(v at) ([]events.RegionID, error) { return s.regionsFor(v, in.Region) })
	if err != nil {
		return out, err
	}
	for _, r := range regions {
		var there Orphans
		err := s.askRegion(ctx, r, http.MethodGet, "/v1/orphans", nil, &there)
		var p *Problem
		if errors.As(err, &p) && p.Code == regionUnreachable && in.Region == "" {
			out.Unreachable = append(out.Unreachable, r)
			continue
		}
		if err != nil {
			return out, err
		}
		for _, o := range there.Items {
			o.Region = r
			out.Items = append(out.Items, o)
		}
	}
	return out, nil
}

func (s *Server) reap(ctx context.Context, in *reapInput) (Orphans, error) {
	out := Orphans{Items: []Orphan{}, Unreachable: []events.RegionID{}}
	if s.Host == nil {
		r, err := s.knownRegion(ctx, in.Body.Region)
		if err != nil {
			return out, err
		}
		if err := s.askRegion(ctx, r, http.MethodPost, "/v1/orphans/reap", in.Body, &out); err != nil {
			return out, err
		}
		for i := range out.Items {
			out.Items[i].Region = r
		}
		return out, nil
	}
	effects, err := s.Host.Orphans(ctx)
	if err != nil {
		return out, err
	}
	for _, e := range effects {
		if in.Body.Name != "" && (e.Name != in.Body.Name || e.Kind != in.Body.Kind) {
			continue
		}
		var gone *region.Error
		if err := s.Host.Reap(ctx, e); errors.As(err, &gone) && gone.Code == region.NotAnOrphan {
			continue // the janitor was faster
		} else if err != nil {
			return out, err
		}
		out.Items = append(out.Items, Orphan{Effect: e})
	}
	if in.Body.Name != "" && len(out.Items) == 0 {
		return out, aggregates.RefuseAs(aggregates.NotFound, "not-an-orphan", "%s %s has an owner, or is gone", in.Body.Kind, in.Body.Name).WithNext("tombolo orphans ls")
	}
	return out, nil
}

func (s *Server) scrub(ctx context.Context, in *oneHost) (Scrub, error) {
	r, err := s.knownRegion(ctx, in.Region)
	if err != nil {
		return Scrub{}, err
	}
	out := Scrub{Region: r}
	if s.Host != nil {
		out.Scrubbed, err = s.Host.Scrub(ctx)
		return out, err
	}
	return out, s.askRegion(ctx, r, http.MethodPost, "/v1/regions/"+url.PathEscape(string(r))+"/scrub", struct{}{}, &out)
}

func (s *Server) host(ctx context.Context, in *oneHost) (RegionHost, error) {
	r, err := s.knownRegion(ctx, in.Region)
	if err != nil {
		return RegionHost{}, err
	}
	out := RegionHost{Region: r}
	if s.Host != nil {
		out.HostState, err = s.Host.HostState(ctx)
		return out, err
	}
	return out, s.askRegion(ctx, r, http.MethodGet, "/v1/regions/"+url.PathEscape(string(r))+"/host", struct{}{}, &out)
}

const regionUnreachable = "region-unreachable"

// askRegion passes a question on to a region's agent, as the one who asked, by a
// ticket of theirs. A region's refusal is answered as it is.
func (s *Server) askRegion(ctx context.Context, id events.RegionID, method, path string, body, to any) error {
	row, err := lookup(ctx, s, Read{}, func(v at) (projections.RegionRow, error) { return regionSpelled(v, string(id)) })
	if err != nil {
		return err
	}
	away := func(why string) error {
		p := problem(http.StatusServiceUnavailable, regionUnreachable, "the agent of %s does not answer: %s", id, why).withNext("is it running? tombolo region show %s", id)
		p.Region = id
		return p
	}
	if row.HTTP == "" {
		return away("none has come yet")
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, method, trust.URL(row.HTTP)+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	ticket, _, err := s.ticket(ctx, trust.Ticket{Region: row.Region, For: trust.ToAsk})
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+ticket)
	r.Header.Set("Content-Type", "application/json")
	resp, err := s.Regions.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return away("it cannot be connected to")
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		p := &Problem{}
		if err := json.NewDecoder(resp.Body).Decode(p); err != nil || p.Code == "" {
			return away(resp.Status)
		}
		if strings.HasPrefix(p.Code, "ticket-") { // the one who asked has done nothing wrong
			return away(p.Detail + "; look at the clock of its host")
		}
		p.Region = id
		return p
	}
	return json.NewDecoder(resp.Body).Decode(to)
}

// hostMetrics are a region's figures beside those of its reads.
func hostMetrics(h Host) []prometheus.Collector {
	gauge := func(name, help string, value func(region.Counts) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value(h.Counts())) })
	}
	count := func(name, help string, value func(region.Counts) int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value(h.Counts())) })
	}
	return []prometheus.Collector{
		gauge("tombolo_orphans", "What the janitor saw last that no order owns.", func(c region.Counts) int64 { return c.Orphans }),
		count("tombolo_orphans_reaped_total", "What the janitor or a person removed that no order owned.", func(c region.Counts) int64 { return c.Reaped }),
		count("tombolo_scrubs_total", "How often the store was read back.", func(c region.Counts) int64 { return c.Scrubs }),
		count("tombolo_scrub_damaged_chunks_total", "Chunks that did not match their digests.", func(c region.Counts) int64 { return c.Damaged }),
		newGuestMetrics(h),
	}
}
