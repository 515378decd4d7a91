package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
)

// Host is a region's host as its agent sees it: region.Agent.
type Host interface {
	Orphans(ctx context.Context) ([]region.Effect, error)
	Reap(ctx context.Context, e region.Effect) error
}

// Enrol gives what the agent of a region on another host needs.
type Enrol func(ctx context.Context, region events.RegionID) (json.RawMessage, error)

// Orphans is what a region's host has and no order owns.
type Orphans struct {
	Items []region.Effect `json:"items"`
}

type orphanInput struct {
	Body region.Effect
}

type enrolInput struct {
	Scope
	Region string `path:"region" doc:"id, name or alias"`
}

// plain is an answer without a position: it is about the host, not the journal.
type plain[B any] struct{ Body B }

// hostRoutes are what a region alone can answer.
func (s *Server) hostRoutes() {
	huma.Register(s.api, huma.Operation{OperationID: "list-orphans", Method: http.MethodGet, Path: "/v1/orphans", Tags: []string{"orphans"},
		Summary: "What does this region's host have that no order owns?"},
		func(ctx context.Context, _ *struct{}) (*plain[Orphans], error) {
			if err := s.mayHost(ctx); err != nil {
				return nil, s.problemOf(ctx, err)
			}
			found, err := s.Host.Orphans(ctx)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			if found == nil {
				found = []region.Effect{}
			}
			return &plain[Orphans]{Orphans{found}}, nil
		})
	huma.Register(s.api, huma.Operation{OperationID: "reap-orphan", Method: http.MethodPost, Path: "/v1/orphans/reap", Tags: []string{"orphans"},
		Summary: "Take away one of them", DefaultStatus: http.StatusNoContent},
		func(ctx context.Context, in *orphanInput) (*struct{}, error) {
			err := s.mayHost(ctx)
			if err == nil {
				err = s.Host.Reap(ctx, in.Body)
			}
			var e *region.Error
			if errors.As(err, &e) {
				return nil, problem(http.StatusConflict, e.Code, "%s", e.Text).withNext("%s", e.Next)
			}
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			return nil, nil
		})
}

func (s *Server) mayHost(ctx context.Context) error {
	if s.Host == nil {
		return problem(http.StatusServiceUnavailable, "not-here", "the control plane has no host of its own").
			withNext("ask the region, at the address that GET /v1/regions/{region} gives as http")
	}
	return mustAdministrate(ctx)
}

// enrolRoutes let an administrator fetch a region's key and certificates.
func (s *Server) enrolRoutes() {
	huma.Register(s.api, huma.Operation{OperationID: "enrol-agent", Method: http.MethodPost, Path: "/v1/regions/{region}/enrol", Tags: []string{"regions"},
		Summary: "The key and certificates of the region's agent: secrets, given to administrators alone"},
		func(ctx context.Context, in *enrolInput) (*plain[json.RawMessage], error) {
			if s.Enrol == nil {
				return nil, problem(http.StatusServiceUnavailable, "not-here", "a region enrols no agents").withNext("ask the control plane at %s", s.Home)
			}
			if err := mustAdministrate(ctx); err != nil {
				return nil, s.problemOf(ctx, err)
			}
			id, err := s.knownRegion(ctx, in.Region)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			enrolment, err := s.Enrol(ctx, id)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			return &plain[json.RawMessage]{enrolment}, nil
		})
}
