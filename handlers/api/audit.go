package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Moment is how the catalogue stood at one position.
type Moment struct {
	Known
	Templates    []Template                   `json:"templates"`
	Copies       []projections.Instance       `json:"copies" doc:"which region holds which version"`
	Regions      []Region                     `json:"regions"`
	Environments []projections.EnvironmentRow `json:"environments"`
}

// Digests are those of all read models at one position: equal wherever the same events were folded.
type Digests struct {
	Known
	Items []ProjectionDigest `json:"items"`
}

// ProjectionDigest is one of them.
type ProjectionDigest struct {
	Projection string        `json:"projection"`
	Shape      int           `json:"shape" doc:"of its rows; digests of different shapes differ"`
	Digest     events.Digest `json:"digest"`
	Building   bool          `json:"building,omitempty" doc:"it is being built again beside the rows that are read"`
}

// Changes are what changed in the catalogue between two moments.
type Changes struct {
	Known
	From  uint64   `json:"from" doc:"position of the first moment"`
	To    uint64   `json:"to" doc:"position of the second"`
	Items []Change `json:"items"`
}

// Change is one thing that is there at one moment only, or is not the same.
type Change struct {
	Kind   string        `json:"kind" enum:"template,copy,region,environment"`
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	Change string        `json:"change" enum:"added,removed,changed"`
	Fields []FieldChange `json:"fields,omitempty"`
}

// FieldChange is one value that changed; absent is null.
type FieldChange struct {
	Field string          `json:"field"`
	From  json.RawMessage `json:"from"`
	To    json.RawMessage `json:"to"`
}

type momentInput struct {
	Scope
	At string `path:"at" doc:"a sequence or an RFC 3339 time"`
}

// read makes the path's moment the one that is read.
func (m momentInput) read() Read { return Read{Scope: m.Scope, AsOf: m.At} }

type changesInput struct {
	Scope
	From string `query:"from" required:"true" doc:"a sequence or an RFC 3339 time"`
	To   string `query:"to" required:"true" doc:"another one"`
}

func (c changesInput) read() Read { return Read{Scope: c.Scope, AsOf: c.To} }

type rebuildInput struct {
	Scope
	Body struct {
		Projection string `json:"projection,omitempty" doc:"all of them if absent"`
	}
}

func (s *Server) auditRoutes() {
	get(s, "/v1/audit/at/{at}", "audit-at", "The catalogue as of then", func(ctx context.Context, v at, in *momentInput) (Moment, uint64, error) {
		account, _, err := in.account(ctx)
		if err != nil {
			return Moment{}, 0, err
		}
		m, err := momentOf(v.View, v.known, account)
		return m, 0, err
	})
	get(s, "/v1/audit/diff", "audit-diff", "What changed in the catalogue between two moments", s.changes)
	get(s, "/v1/audit/digests", "audit-digests", "Digests of the read models, to compare with another's", func(ctx context.Context, v at, _ *Read) (Digests, uint64, error) {
		if err := mustAdministrate(ctx); err != nil {
			return Digests{}, 0, err
		}
		d, err := digestsOf(v.View, v.known, s.Feed.Status())
		return d, 0, err
	})
	huma.Register(s.api, huma.Operation{OperationID: "audit-rebuild", Method: http.MethodPost, Path: "/v1/audit/rebuild", Tags: []string{"audit"}, DefaultStatus: http.StatusOK,
		Summary: "Build read models again beside those that are read; GET /v1/audit/digests says when they have taken their place"},
		func(ctx context.Context, in *rebuildInput) (*struct{ Body Digests }, error) {
			out, err := s.rebuild(ctx, in.Body.Projection)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			return &struct{ Body Digests }{out}, nil
		})
	s.replayRoutes()
	s.verifyRoutes()
}

// momentOf reads the whole catalogue of an account.
func momentOf(v *projections.View, known Known, account events.AccountID) (Moment, error) {
	out := Moment{Known: known, Templates: []Template{}, Copies: []projections.Instance{}, Regions: []Region{}, Environments: []projections.EnvironmentRow{}}
	err := pages(func(resume string) (string, error) {
		page, err := projections.Catalogue{}.List(v, account, 1000, resume)
		for _, t := range page.Rows {
			out.Templates = append(out.Templates, showTemplate(t))
		}
		return page.Resume, err
	})
	if err != nil {
		return out, err
	}
	for _, t := range out.Templates {
		where, err := projections.Catalogue{}.Where(v, account, t.Number)
		if err != nil {
			return out, err
		}
		out.Copies = append(out.Copies, where.Regions...)
	}
	err = pages(func(resume string) (string, error) {
		page, err := projections.Regions{}.List(v, 1000, resume)
		for _, r := range page.Rows {
			out.Regions = append(out.Regions, showRegion(r))
		}
		return page.Resume, err
	})
	if err != nil {
		return out, err
	}
	return out, pages(func(resume string) (string, error) {
		page, err := projections.Environments{}.List(v, account, "", 1000, resume)
		out.Environments = append(out.Environments, page.Rows...)
		return page.Resume, err
	})
}

// pages goes through a list to its end.
func pages(read func(resume string) (string, error)) error {
	for resume := ""; ; {
		next, err := read(resume)
		if err != nil || next == "" {
			return err
		}
		resume = next
	}
}

func digestsOf(v *projections.View, known Known, status projections.Status) (Digests, error) {
	out := Digests{Known: known, Items: []ProjectionDigest{}}
	for _, p := range status.Projections {
		d, err := v.Digest(p.Name)
		if err != nil {
			return out, err
		}
		out.Items = append(out.Items, ProjectionDigest{p.Name, p.Served, d, p.Building})
	}
	return out, nil
}

// rebuild begins to build what is named again, and says how things stand.
func (s *Server) rebuild(ctx context.Context, projection string) (Digests, error) {
	if err := mustAdministrate(ctx); err != nil {
		return Digests{}, err
	}
	known := false
	for _, p := range s.Feed.Status().Projections {
		if projection == "" || projection == p.Name {
			known = true
			if err := s.Feed.Rebuild(p.Name); err != nil {
				return Digests{}, err
			}
		}
	}
	if !known {
		return Digests{}, problem(http.StatusNotFound, "projection-unknown", "there is no read model %q", projection).withNext("GET /v1/audit/digests lists them")
	}
	v, err := s.view(ctx, Read{})
	if err != nil {
		return Digests{}, err
	}
	out, err := digestsOf(v.View, v.known, s.Feed.Status())
	return out, cmp.Or(err, v.Close())
}

// changes compares two moments.
func (s *Server) changes(ctx context.Context, second at, in *changesInput) (Changes, uint64, error) {
	account, _, err := in.account(ctx)
	if err != nil {
		return Changes{}, 0, err
	}
	first, err := s.view(ctx, Read{Scope: in.Scope, AsOf: in.From})
	if err != nil {
		return Changes{}, 0, err
	}
	before, err := momentOf(first.View, first.known, account)
	if err = cmp.Or(err, first.Close()); err != nil {
		return Changes{}, 0, err
	}
	if from, to := before.Position, second.known.Position; from > to {
		return Changes{}, 0, problem(http.StatusUnprocessableEntity, "moments-backwards", "the first moment (%s, sequence %d) is later than the second (%s, sequence %d)", in.From, from, in.To, to).
			withNext("name the earlier one first: tombolo audit diff %s %s", in.To, in.From)
	}
	after, err := momentOf(second.View, second.known, account)
	if err != nil {
		return Changes{}, 0, err
	}
	out := Changes{Known: second.known, From: before.Position, To: after.Position, Items: []Change{}}
	return out, 0, cmp.Or(
		compare(&out, "template", before.Templates, after.Templates, func(t Template) (string, string) { return string(t.ID), t.Name }),
		compare(&out, "copy", before.Copies, after.Copies, copyName),
		compare(&out, "region", before.Regions, after.Regions, func(r Region) (string, string) { return string(r.Region), r.Name }),
		compare(&out, "environment", before.Environments, after.Environments, func(e projections.EnvironmentRow) (string, string) { return string(e.ID), e.Name }),
	)
}

// copyName: a copy that its region has not been asked for yet has no id of its own.
func copyName(i projections.Instance) (id, name string) {
	name = fmt.Sprintf("%s@%d in %s", i.Template, i.Version, i.Region)
	return name, name
}

// compare adds what is different between two lists of one kind of thing.
func compare[T any](out *Changes, kind string, before, after []T, name func(T) (id, name string)) error {
	type thing struct {
		name   string
		fields map[string]json.RawMessage
	}
	read := func(list []T) (map[string]thing, error) {
		all := map[string]thing{}
		for _, t := range list {
			b, err := json.Marshal(t)
			if err != nil {
				return nil, err
			}
			fields := map[string]json.RawMessage{}
			if err := leaves(fields, "", b); err != nil {
				return nil, err
			}
			id, shown := name(t)
			all[id] = thing{shown, fields}
		}
		return all, nil
	}
	was, err := read(before)
	if err != nil {
		return err
	}
	is, err := read(after)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(union(was, is))) {
		old, there := was[id]
		now, still := is[id]
		switch {
		case !there:
			out.Items = append(out.Items, Change{Kind: kind, ID: id, Name: now.name, Change: "added"})
			continue
		case !still:
			out.Items = append(out.Items, Change{Kind: kind, ID: id, Name: old.name, Change: "removed"})
			continue
		}
		c := Change{Kind: kind, ID: id, Name: now.name, Change: "changed"}
		for _, field := range slices.Sorted(maps.Keys(union(old.fields, now.fields))) {
			if !bytes.Equal(old.fields[field], now.fields[field]) {
				c.Fields = append(c.Fields, FieldChange{field, orNull(old.fields[field]), orNull(now.fields[field])})
			}
		}
		if len(c.Fields) > 0 {
			out.Items = append(out.Items, c)
		}
	}
	return nil
}

// leaves puts every value of a JSON object into to, under the path of its fields; a list is one value.
func leaves(to map[string]json.RawMessage, path string, value json.RawMessage) error {
	if len(value) == 0 || value[0] != '{' {
		to[path] = value
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		return err
	}
	for name, v := range fields {
		if path != "" {
			name = path + "." + name
		}
		if err := leaves(to, name, v); err != nil {
			return err
		}
	}
	return nil
}

func union[V any](a, b map[string]V) map[string]V {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

func orNull(value json.RawMessage) json.RawMessage {
	if value == nil {
		return json.RawMessage("null")
	}
	return value
}
