package api

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
)

// Enrol gives what the agent of a region on another host needs.
type Enrol func(ctx context.Context, region events.RegionID) (json.RawMessage, error)

type enrolInput struct {
	Scope
	Region string `path:"region" doc:"id, name or alias"`
}

// plain is an answer without a position: it is no read of the journal.
type plain[B any] struct{ Body B }

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
