package api

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Instantiated says what an environment was made from, and what that took.
type Instantiated struct {
	Known
	Environment  events.EnvironmentID         `json:"environment"`
	Name         string                       `json:"name"`
	State        projections.EnvironmentState `json:"state"`
	Region       events.RegionID              `json:"region"`
	Template     events.TemplateID            `json:"template"`
	Version      int                          `json:"version"`
	Copied       bool                         `json:"copied" doc:"the region did not hold it; it was copied first"`
	BetweenBytes int64                        `json:"bytes_between_regions" doc:"0 where it was stored"`
	Resume       []string                     `json:"resume,omitempty" doc:"machines that go on from where they were saved"`
	Boot         []string                     `json:"boot,omitempty" doc:"machines that start from power-on: their memory was not saved"`
	Duration     *int64                       `json:"duration_ms" doc:"from the command to the usable environment; null until then"`
}

// Wish is what an instantiation is asked for with.
type Wish struct {
	Region     string `json:"region" doc:"id, name or alias"`
	Name       string `json:"name,omitempty" doc:"of the environment; derived from the template's unless given"`
	CopyAgreed bool   `json:"copy_agreed,omitempty" doc:"copy it to the region first where it is not held there"`
	KeepCopy   bool   `json:"keep_copy,omitempty" doc:"have the region hold the template from here on"`
}

type instantiateTemplate struct {
	TemplateWrite
	Body Wish
}

type checkInstantiate struct {
	Write
	Body struct {
		Template string `json:"template" doc:"a reference"`
		Wish
	}
}

func (s *Server) instantiateRoutes() {
	command(s, http.MethodPost, "/v1/templates/{ref}/instantiate", "instantiate-template", "Make an environment of it; copy-needed (428) with the plan where it is not stored", func(ctx context.Context, in *instantiateTemplate) (Accepted, error) {
		account, body, err := s.wish(ctx, in.Scope, in.Ref, in.Body)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, account, events.KindTemplate, "instantiate", body)
	})
	accept(s, http.MethodPost, "/v1/check/instantiate", "check-instantiate", "What an instantiation would do; nothing is done", func(ctx context.Context, in *checkInstantiate) (Accepted, commands.Instantiation, error) {
		var plan commands.Instantiation
		account, body, err := s.wish(ctx, in.Scope, in.Body.Template, in.Body.Wish)
		if err != nil {
			return Accepted{}, plan, err
		}
		raw, err := s.plan(ctx, in.Write, account, events.KindTemplate, "instantiate", body)
		if err != nil {
			return Accepted{}, plan, err
		}
		return Accepted{}, plan, json.Unmarshal(raw, &plan)
	})
	get(s, "/v1/environments/{ref}/origin", "get-environment-origin", "What an environment was instantiated from, and what that took", s.origin)
}

func (s *Server) wish(ctx context.Context, scope Scope, ref string, w Wish) (events.AccountID, commands.InstantiateRequest, error) {
	account, _, err := scope.account(ctx)
	if err != nil {
		return "", commands.InstantiateRequest{}, err
	}
	region, err := s.knownRegion(ctx, w.Region)
	return account, commands.InstantiateRequest{Template: ref, Region: region, Name: w.Name, CopyAgreed: w.CopyAgreed, KeepCopy: w.KeepCopy}, err
}

func (s *Server) origin(ctx context.Context, v at, in *environmentInput) (Instantiated, uint64, error) {
	account, _, err := in.account(ctx)
	if err != nil {
		return Instantiated{}, 0, err
	}
	e, err := environment(v, account, in.Ref, in.Region)
	if err != nil {
		return Instantiated{}, 0, err
	}
	if e.Origin == nil {
		return Instantiated{}, 0, aggregates.RefuseAs(aggregates.NotFound, "environment-original", "environment %s was made of a file, not of a template", e.Name)
	}
	out := Instantiated{Known: v.known, Environment: e.ID, Name: e.Name, State: e.State, Region: e.Region, Template: e.Origin.Template,
		Version: e.Origin.Version, Copied: e.Origin.Copy}
	if e.Origin.Copy {
		i, _, err := projections.Catalogue{}.Instance(v, e.Origin.Instance)
		if err != nil {
			return out, 0, err
		}
		out.BetweenBytes = i.Received
	}
	if s.Documents != nil {
		m, err := s.manifest(ctx, e.Origin.Manifest)
		if err != nil {
			return out, 0, err
		}
		out.Resume, out.Boot = m.Graph.Starts()
	}
	if !e.Ready.IsZero() {
		ms := e.Ready.Sub(e.Declared.Time).Milliseconds()
		out.Duration = &ms
	}
	return out, e.Revision, nil
}
