package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Template is a reference and what it stands for.
type Template struct {
	ID      events.TemplateID         `json:"id" doc:"its number"`
	Version int                       `json:"version" doc:"the active one, or the one that the reference pins; 0 if none is active yet"`
	State   projections.TemplateState `json:"state"`
	projections.TemplateRow
}

func showTemplate(t projections.TemplateRow) Template {
	return Template{ID: t.Number, Version: t.Active, State: t.State(), TemplateRow: t}
}

// OneTemplate is a template with its versions.
type OneTemplate struct {
	Known
	Template
	Reference projections.ReferenceKind `json:"reference" doc:"how it was referred to"`
	Pinned    bool                      `json:"pinned"`
	WaitsFor  []events.RegionID         `json:"waits_for" doc:"regions that the staged version waits for"`
	Versions  []projections.VersionRow  `json:"versions"`
	Content   *graph.Graph              `json:"content" doc:"nodes and edges that the version consists of, each machine in the power state that it was saved in; null until it is saved"`
}

// Where says which region holds which version.
type Where struct {
	Lag *uint64 `json:"lag"`
	projections.WhereAnswer
}

// Instances are all that a template ever had.
type Instances struct {
	Known
	Items []projections.Instance `json:"items"`
}

// Inspection is a template as one region has it.
type Inspection struct {
	Known
	Template events.TemplateID    `json:"template"`
	Version  int                  `json:"version"`
	Region   events.RegionID      `json:"region"`
	Instance projections.Instance `json:"instance"`
	Map      []Mapped             `json:"map" doc:"what stands here for what the source had"`
	Manifest *graph.Manifest      `json:"manifest" doc:"equal in all regions; null until the version is saved"`
}

// Difference is what two regions' instances of one version differ in: the map
// and nothing else.
type Difference struct {
	Known
	Template events.TemplateID `json:"template"`
	Version  int               `json:"version"`
	Between  [2]string         `json:"between"`
	Digest   events.Digest     `json:"digest" doc:"of the content, which is the same"`
	Items    []DifferentValue  `json:"items"`
}

// DifferentValue is one line of it.
type DifferentValue struct {
	Resource string `json:"resource"`
	Type     string `json:"type"`
	Source   string `json:"source" doc:"what the source environment had"`
	First    string `json:"first"`
	Second   string `json:"second"`
}

type templatesInput struct {
	Paged
	Region   string `query:"region" doc:"only those wanted in this region"`
	Deleted  bool   `query:"deleted" doc:"deleted ones too"`
	Creating bool   `query:"creating" doc:"those too whose first version is still being saved: there is nothing to use of them yet"`
}

// TemplateRead is what every read of one template takes. It is exported for the
// reader of input structs, which skips embedded types that are not.
type TemplateRead struct {
	Read
	Ref string `path:"ref" doc:"number, name, URL, either of them with @version, or loc:region/slot"`
}

type templateInRegion struct {
	TemplateRead
	Region string `query:"region" required:"true"`
}

type templateBetween struct {
	TemplateRead
	Between []string `query:"between" required:"true" minItems:"2" maxItems:"2" doc:"two regions"`
}

func (s *Server) templateRoutes() {
	get(s, "/v1/templates", "list-templates", "Which templates are there?", s.listTemplates)
	get(s, "/v1/templates/{ref}", "get-template", "One template with its versions", s.getTemplate)
	get(s, "/v1/templates/{ref}/where", "where", "Which regions hold which version?", func(ctx context.Context, v at, in *TemplateRead) (Where, uint64, error) {
		t, account, gone, err := templateOrDeleted(ctx, v, in.Scope, in.Ref)
		if err != nil {
			return Where{}, 0, err
		}
		w, err := projections.Catalogue{}.Where(v.View, account, t.Number)
		if err == nil && gone != nil && len(w.Regions) == 0 {
			err = gone
		}
		return Where{v.known.Lag, w}, t.Revision, err
	})
	get(s, "/v1/templates/{ref}/instances", "list-instances", "All instances that it ever had", func(ctx context.Context, v at, in *TemplateRead) (Instances, uint64, error) {
		t, account, _, err := templateOrDeleted(ctx, v, in.Scope, in.Ref)
		if err != nil {
			return Instances{}, 0, err
		}
		items, err := projections.Catalogue{}.Instances(v, account, t.Number)
		return Instances{v.known, items}, t.Revision, err
	})
	get(s, "/v1/templates/{ref}/inspect", "inspect-template", "What is in it, as one region has it", s.inspect)
	get(s, "/v1/templates/{ref}/diff", "diff-template", "What two regions' instances differ in", s.diff)
	s.planRoutes()
	s.templateWrites()
}

func (s *Server) listTemplates(ctx context.Context, v at, in *templatesInput) (List[Template], uint64, error) {
	account, _, err := in.account(ctx)
	if err != nil {
		return List[Template]{}, 0, err
	}
	var page projections.Page[projections.TemplateRow]
	switch {
	case in.Region != "":
		r, rerr := regionSpelled(v, in.Region)
		if rerr != nil {
			return List[Template]{}, 0, rerr
		}
		page, err = projections.Catalogue{}.WantedIn(v, account, r.Region, in.Limit, in.Next)
	case in.Deleted:
		page, err = projections.Catalogue{}.ListAll(v, account, in.Limit, in.Next)
	default:
		page, err = projections.Catalogue{}.List(v, account, in.Limit, in.Next)
	}
	out := listed(v.known, page, showTemplate)
	if !in.Creating {
		out.Items = slices.DeleteFunc(out.Items, func(t Template) bool { return t.State == projections.TemplateCreating })
	}
	return out, 0, err
}

// template finds what a reference means in the caller's account.
func template(ctx context.Context, v projections.Reader, scope Scope, ref string) (projections.Resolved, events.AccountID, error) {
	account, _, err := scope.account(ctx)
	if err != nil {
		return projections.Resolved{}, "", err
	}
	t, err := projections.Catalogue{}.Resolve(v, account, ref)
	return t, account, err
}

// templateOrDeleted is template, but finds one that is deleted as well; gone is
// then why it does not resolve.
func templateOrDeleted(ctx context.Context, v projections.Reader, scope Scope, ref string) (row projections.TemplateRow, account events.AccountID, gone, err error) {
	t, account, err := template(ctx, v, scope, ref)
	var unknown *projections.NotFoundError
	if !errors.As(err, &unknown) || unknown.Code != projections.CodeTemplateDeleted {
		return t.Template, account, nil, err
	}
	if account, _, err = scope.account(ctx); err != nil {
		return row, account, nil, err
	}
	row, _, err = projections.Catalogue{}.Template(v, account, unknown.Template)
	return row, account, unknown, err
}

func (s *Server) getTemplate(ctx context.Context, v at, in *TemplateRead) (OneTemplate, uint64, error) {
	t, account, err := template(ctx, v, in.Scope, in.Ref)
	if err != nil {
		return OneTemplate{}, 0, err
	}
	out := OneTemplate{Known: v.known, Template: showTemplate(t.Template), Reference: t.Kind, Pinned: t.Pinned}
	out.Version = t.Version
	if out.Versions, err = (projections.Catalogue{}).Versions(v, t.Template.Number); err != nil {
		return out, 0, err
	}
	out.WaitsFor, err = projections.Catalogue{}.WaitsFor(v, account, t.Template.Number)
	if err != nil {
		return out, 0, err
	}
	if out.WaitsFor == nil {
		out.WaitsFor = []events.RegionID{}
	}
	for _, version := range out.Versions {
		if version.Version == out.Version && version.Manifest != "" && s.Documents != nil {
			if out.Content, err = s.content(ctx, version.Manifest); err != nil {
				return out, 0, err
			}
		}
	}
	return out, t.Template.Revision, nil
}

// documentPatience bounds what a region that is cut off waits for a document.
const documentPatience = 2 * time.Second

// content is the graph of a version. A region that cannot reach the documents
// goes without: everything else of its answer is its own.
func (s *Server) content(ctx context.Context, d events.Digest) (*graph.Graph, error) {
	ctx, cancel := context.WithTimeout(ctx, documentPatience)
	defer cancel()
	m, err := s.manifest(ctx, d)
	switch {
	case err == nil:
		return &m.Graph, nil
	case s.Commands == nil && documents.CodeOf(err) == "":
		return nil, nil
	}
	return nil, err
}

// manifest reads what a version consists of. A document whose bytes are not those
// of its digest is not given.
func (s *Server) manifest(ctx context.Context, d events.Digest) (*graph.Manifest, error) {
	b, err := s.Documents.Get(ctx, d)
	if err != nil {
		return nil, err
	}
	m := &graph.Manifest{}
	return m, json.Unmarshal(b, m)
}

// instanceIn finds a version's instance in a region.
func instanceIn(v at, account events.AccountID, t projections.Resolved, spelling string) (projections.Instance, []events.Substitution, error) {
	r, err := regionSpelled(v, spelling)
	if err != nil {
		return projections.Instance{}, nil, err
	}
	if t.Version == 0 {
		return projections.Instance{}, nil, aggregates.Refuse("version-not-active", "no version of template %s (%s) is active yet", t.Template.Number, t.Template.Name).
			WithNext("name one: %s@1", t.Template.Number)
	}
	all, err := projections.Catalogue{}.Instances(v, account, t.Template.Number)
	if err != nil {
		return projections.Instance{}, nil, err
	}
	i := slices.IndexFunc(all, func(i projections.Instance) bool {
		return i.Region == r.Region && i.Version == t.Version && i.State != projections.InstanceRemoved
	})
	if i < 0 {
		return projections.Instance{}, nil, aggregates.RefuseAs(aggregates.NotFound, "instance-unknown", "%s has no instance of version %d of template %s", r.Region, t.Version, t.Template.Number).
			WithNext("tombolo where %s", t.Template.Number)
	}
	lines, _, err := projections.Catalogue{}.Map(v, all[i].ID)
	if lines == nil {
		lines = []events.Substitution{}
	}
	return all[i], lines, err
}

func (s *Server) inspect(ctx context.Context, v at, in *templateInRegion) (Inspection, uint64, error) {
	t, account, err := template(ctx, v, in.Scope, in.Ref)
	if err != nil {
		return Inspection{}, 0, err
	}
	i, lines, err := instanceIn(v, account, t, in.Region)
	if err != nil {
		return Inspection{}, 0, err
	}
	values, err := boundAll(v, i.Region, lines)
	if err != nil {
		return Inspection{}, 0, err
	}
	out := Inspection{Known: v.known, Template: t.Template.Number, Version: t.Version, Region: i.Region, Instance: i, Map: values}
	if i.Manifest == "" || s.Documents == nil {
		return out, i.Revision, nil
	}
	out.Manifest, err = s.manifest(ctx, i.Manifest)
	return out, i.Revision, err
}

func (s *Server) diff(ctx context.Context, v at, in *templateBetween) (Difference, uint64, error) {
	t, account, err := template(ctx, v, in.Scope, in.Ref)
	if err != nil {
		return Difference{}, 0, err
	}
	first, a, err := instanceIn(v, account, t, in.Between[0])
	if err != nil {
		return Difference{}, 0, err
	}
	second, b, err := instanceIn(v, account, t, in.Between[1])
	if err != nil {
		return Difference{}, 0, err
	}
	out := Difference{Known: v.known, Template: t.Template.Number, Version: t.Version, Between: [2]string{string(first.Region), string(second.Region)},
		Digest: first.Digest, Items: []DifferentValue{}}
	byResource := map[string]*DifferentValue{}
	line := func(s events.Substitution) *DifferentValue {
		if byResource[s.Resource] == nil {
			byResource[s.Resource] = &DifferentValue{Resource: s.Resource, Type: s.Type, Source: s.From}
		}
		return byResource[s.Resource]
	}
	for _, l := range a {
		line(l).First = l.To
	}
	for _, l := range b {
		line(l).Second = l.To
	}
	for _, l := range byResource {
		if l.First != l.Second {
			out.Items = append(out.Items, *l)
		}
	}
	slices.SortFunc(out.Items, func(a, b DifferentValue) int { return strings.Compare(a.Resource, b.Resource) })
	return out, 0, nil
}

// deadline reads a time that must come.
func (s *Server) deadline(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil || !t.After(s.Now()) {
		return t, problem(http.StatusUnprocessableEntity, "deadline-invalid", "the deadline %q is not an RFC 3339 time that is still to come", text)
	}
	return t, nil
}
