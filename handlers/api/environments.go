package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// OneEnvironment is an environment with its graph and what stands for its
// region-bound resources.
type OneEnvironment struct {
	Known
	projections.EnvironmentRow
	Now      string       `json:"power_now,omitempty" doc:"how its machines are seen: running, 2/3 running, starting"`
	Machines []Machine    `json:"machines" doc:"each with what it is declared to be, what was seen of it, and how it is reached"`
	Map      []Mapped     `json:"map"`
	Content  *graph.Graph `json:"content" doc:"nodes and edges; a machine's power state is the one last declared, the edge as it was set last"`
	Uploads  []Upload     `json:"uploads,omitempty" doc:"while its disks are taken in: where each goes"`
}

// Upload is where the bytes of one disk are sent: to the region itself, never
// through the control plane. PUT ranges with Content-Range: bytes a-b/total for
// the parts that hold data (what is never sent is zero), then POST
// URL/complete.
type Upload struct {
	Disk   string `json:"disk" doc:"node/item"`
	Bytes  int64  `json:"bytes"`
	URL    string `json:"url"`
	Ticket string `json:"ticket,omitempty" doc:"Authorization: Bearer of these requests, for an hour: after ticket-expired, ask for the environment again. Absent for whom the region lets send none."`
}

// AcceptedEnvironment is the answer to a creation.
type AcceptedEnvironment struct {
	Accepted
	Uploads []Upload `json:"uploads"`
}

// Checked is what a specification means, and everything that is wrong with it.
type Checked struct {
	OK       bool        `json:"ok"`
	Findings []Finding   `json:"findings"`
	Graph    graph.Graph `json:"graph"`
}

type environmentsInput struct {
	Paged
	Region string `query:"region" doc:"only in this region"`
}

type environmentInput struct {
	Read
	Ref    string `path:"ref" doc:"id or name"`
	Region string `query:"region" doc:"where it is, if several have the name"`
}

type newEnvironment struct {
	Write
	Body struct {
		Region string       `json:"region" doc:"id, name or alias"`
		Spec   *graph.Spec  `json:"spec,omitempty" doc:"as people write it down; or name and graph"`
		Name   string       `json:"name,omitempty" doc:"as people call it; with graph"`
		Graph  *graph.Graph `json:"graph,omitempty" doc:"nodes and edges as they are, for what a specification has no words for"`
	}
}

type specInput struct {
	Scope
	Body graph.Spec
}

type specOutput struct {
	Body Checked
}

// EnvironmentWrite is what every write to one environment takes. It is exported for the
// reader of input structs, which skips embedded types that are not.
type EnvironmentWrite struct {
	Write
	Ref    string `path:"ref" doc:"id or name"`
	Region string `query:"region" doc:"where it is, if several have the name"`
}

// environmentBody is the body of a command, as the door's table has it.
type environmentBody struct {
	Region      events.RegionID      `json:"region"`
	Environment events.EnvironmentID `json:"environment"`
}

func (s *Server) environmentRoutes() {
	get(s, "/v1/environments", "list-environments", "Which environments are there?", func(ctx context.Context, v at, in *environmentsInput) (List[Environment], uint64, error) {
		account, _, err := in.account(ctx)
		if err != nil {
			return List[Environment]{}, 0, err
		}
		var region events.RegionID
		if in.Region != "" {
			r, err := regionSpelled(v, in.Region)
			if err != nil {
				return List[Environment]{}, 0, err
			}
			region = r.Region
		}
		page, err := projections.Environments{}.List(v, account, region, in.Limit, in.Next)
		return listed(v.known, page, inList), 0, err
	})
	get(s, "/v1/environments/{ref}", "get-environment", "One environment", s.getEnvironment)
	accept(s, http.MethodPost, "/v1/environments", "create-environment", "Declare an environment; its disks are then sent to its region", s.createEnvironment)
	huma.Register(s.api, huma.Operation{OperationID: "check-environment", Method: http.MethodPost, Path: "/v1/check/environment", Tags: []string{"environments"},
		Summary: "What would a specification mean, and what is wrong with it? Nothing is done."}, func(_ context.Context, in *specInput) (*specOutput, error) {
		out := &specOutput{Checked{Graph: in.Body.Graph(), Findings: []Finding{}}}
		for _, f := range out.Body.Graph.Validate() {
			out.Body.Findings = append(out.Body.Findings, Finding(f))
		}
		var refused *aggregates.Refusal
		if _, err := commands.Slug(in.Body.Name); errors.As(err, &refused) {
			out.Body.Findings = append(out.Body.Findings, Finding{refused.Code, "name", refused.Text + ": " + refused.Next})
		}
		out.Body.OK = len(out.Body.Findings) == 0
		return out, nil
	})
	command(s, http.MethodDelete, "/v1/environments/{ref}", "delete-environment", "Delete it", func(ctx context.Context, in *EnvironmentWrite) (Accepted, error) {
		e, account, err := s.knownEnvironment(ctx, in.Scope, in.Ref, in.Region)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, account, events.KindEnvironment, "delete", environmentBody{e.Region, e.ID})
	})
}

// environment finds the one environment that an id or a name means.
func environment(v projections.Reader, account events.AccountID, ref, region string) (projections.EnvironmentRow, error) {
	none := projections.EnvironmentRow{}
	e, ok, err := projections.Environments{}.Environment(v, events.EnvironmentID(ref))
	if err != nil {
		return none, err
	}
	if ok && e.Account == account {
		return e, nil
	}
	var id events.RegionID
	if region != "" {
		r, err := regionSpelled(v, region)
		if err != nil {
			return none, err
		}
		id = r.Region
	}
	unknown := aggregates.RefuseAs(aggregates.NotFound, "environment-unknown", "there is no environment %q", ref).WithNext("tombolo env ls")
	slug, err := commands.Slug(ref)
	if err != nil {
		return none, unknown
	}
	found, err := projections.Environments{}.Named(v, account, id, slug)
	switch {
	case err != nil:
		return none, err
	case len(found) == 0:
		return none, unknown
	case len(found) > 1:
		if usable := slices.DeleteFunc(slices.Clone(found), unusable); len(usable) > 0 {
			found = usable
		}
	}
	if len(found) > 1 {
		var where []string
		for _, f := range found {
			where = append(where, fmt.Sprintf("%s in %s (%s)", f.ID, f.Region, f.State))
		}
		return none, aggregates.Refuse("environment-ambiguous", "%d environments are called %q: %s", len(found), ref, strings.Join(where, ", ")).WithNext("name the region, or use the id")
	}
	return found[0], nil
}

// unusable says whether an environment holds its name no longer: one that could not be made, or goes. A name means
// such a one only where nothing else has the name.
func unusable(e projections.EnvironmentRow) bool {
	return e.State == projections.EnvironmentFailed || e.State == projections.EnvironmentDeleting
}

func (s *Server) knownEnvironment(ctx context.Context, scope Scope, ref, region string) (projections.EnvironmentRow, events.AccountID, error) {
	account, _, err := scope.account(ctx)
	if err != nil {
		return projections.EnvironmentRow{}, "", err
	}
	e, err := resolved(ctx, s, func(v at) (projections.EnvironmentRow, error) { return environment(v, account, ref, region) })
	return e, account, err
}

func (s *Server) getEnvironment(ctx context.Context, v at, in *environmentInput) (OneEnvironment, uint64, error) {
	account, _, err := in.account(ctx)
	if err != nil {
		return OneEnvironment{}, 0, err
	}
	e, err := environment(v, account, in.Ref, in.Region)
	if err != nil {
		return OneEnvironment{}, 0, err
	}
	out := OneEnvironment{Known: v.known, EnvironmentRow: e, Now: e.Summary(), Machines: []Machine{}}
	lines, _, err := projections.Environments{}.Map(v, e.ID)
	if err != nil {
		return out, 0, err
	}
	if out.Map, err = boundAll(v, e.Region, lines); err != nil {
		return out, 0, err
	}
	if e.Origin == nil && (e.State == projections.EnvironmentDeclaring || e.State == projections.EnvironmentReceiving) {
		if out.Uploads, err = s.uploads(ctx, v, e.Region, e.ID, e.Disks); err != nil {
			return out, 0, err
		}
	}
	if s.Documents == nil {
		return out, e.Revision, nil
	}
	g, _, err := s.graphNow(ctx, v, e)
	if err != nil {
		return out, 0, err
	}
	if out.Machines, err = machines(v, e, g, out.Map); err != nil {
		return out, 0, err
	}
	out.Content = &g
	for i := range out.Content.Nodes {
		if n := &out.Content.Nodes[i]; n.Type == graph.Machine {
			n.Power = graph.Power(e.PowerOf(n.ID, string(n.Power)))
		}
	}
	return out, e.Revision, nil
}

// uploads says where an environment's disks go: none while the region has no agent.
func (s *Server) uploads(ctx context.Context, v projections.Reader, region events.RegionID, id events.EnvironmentID, disks []events.DiskWanted) ([]Upload, error) {
	r, ok, err := projections.Regions{}.Region(v, region)
	if err != nil || !ok || r.HTTP == "" {
		return nil, err
	}
	ticket, err := s.uploadTicket(ctx, region, id)
	if err != nil {
		return nil, err
	}
	var out []Upload
	for _, d := range disks {
		node, item, _ := strings.Cut(d.Name, "/")
		out = append(out, Upload{Disk: d.Name, Bytes: d.Bytes, Ticket: ticket,
			URL: fmt.Sprintf("%s/v1/uploads/%s/%s/%s", trust.URL(r.HTTP), id, url.PathEscape(node), url.PathEscape(item))})
	}
	return out, nil
}

func (s *Server) createEnvironment(ctx context.Context, in *newEnvironment) (Accepted, AcceptedEnvironment, error) {
	account, _, err := in.account(ctx)
	if err != nil {
		return Accepted{}, AcceptedEnvironment{}, err
	}
	region, err := s.knownRegion(ctx, in.Body.Region)
	if err != nil {
		return Accepted{}, AcceptedEnvironment{}, err
	}
	var g graph.Graph
	name := in.Body.Name
	switch spec := in.Body.Spec; {
	case spec != nil && in.Body.Graph == nil && name == "":
		name, g = spec.Name, spec.Graph()
	case spec == nil && in.Body.Graph != nil:
		g = *in.Body.Graph
	default:
		return Accepted{}, AcceptedEnvironment{}, problem(http.StatusUnprocessableEntity, "request-invalid", "send a specification, or a name and a graph")
	}
	a, err := s.send(ctx, in.Write, account, events.KindEnvironment, "create", commands.EnvironmentRequest{Name: name, Region: region, Graph: g})
	if err != nil {
		return a, AcceptedEnvironment{}, err
	}
	out := AcceptedEnvironment{Accepted: a, Uploads: []Upload{}}
	var wanted []events.DiskWanted
	for _, d := range g.Disks() {
		wanted = append(wanted, events.DiskWanted{Name: d.Name(), Bytes: d.Size})
	}
	to, err := lookup(ctx, s, Read{}, func(v at) ([]Upload, error) { return s.uploads(ctx, v, region, events.EnvironmentID(a.ID), wanted) })
	if to != nil {
		out.Uploads = to
	}
	return a, out, err
}
