package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Origin names the environment that a version is saved from.
type Origin struct {
	Environment string `json:"environment" doc:"id or name"`
	Region      string `json:"region,omitempty" doc:"where it is, if several have the name"`
}

// Picked is a value that the user names for a resource in a region.
type Picked struct {
	Region   string `json:"region"`
	Resource string `json:"resource" example:"web.public"`
	Value    string `json:"value" example:"203.0.113.7"`
}

type newTemplate struct {
	Write
	Body struct {
		Origin
		Name      string            `json:"name" doc:"as people call it"`
		Number    events.TemplateID `json:"number,omitempty" doc:"eight digits; chosen by Tombolo unless given"`
		Regions   []string          `json:"regions,omitempty" doc:"that should hold it; the environment's own always does"`
		Keep      int               `json:"keep,omitempty" minimum:"0" doc:"how many superseded versions stay"`
		Choices   []Picked          `json:"choices,omitempty"`
		Protected bool              `json:"protected,omitempty" doc:"against deletion"`
		Memory    bool              `json:"memory,omitempty" doc:"with the memory of running machines, so that what is made of it resumes; otherwise it boots"`
	}
}

// TemplateWrite is what every write to one template takes. It is exported for the
// reader of input structs, which skips embedded types that are not.
type TemplateWrite struct {
	Write
	Ref string `path:"ref"`
}

// RegionsWish is which regions should hold a template.
type RegionsWish struct {
	Set    []string `json:"set,omitempty" doc:"exactly these"`
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
	All    bool     `json:"all,omitempty" doc:"every region that is active"`
	None   bool     `json:"none,omitempty" doc:"no region: deletes the template"`
}

type templateRegions struct {
	TemplateWrite
	Body struct {
		RegionsWish
		Confirm bool     `json:"confirm,omitempty" doc:"none is meant"`
		Choices []Picked `json:"choices,omitempty"`
	}
}

type replaceTemplate struct {
	TemplateWrite
	Body struct {
		Origin
		Policy   string   `json:"policy,omitempty" enum:"all,quorum,available" doc:"when the reference moves: all regions have verified, so many, or the source's"`
		Quorum   int      `json:"quorum,omitempty" minimum:"0"`
		Deadline string   `json:"deadline,omitempty" doc:"RFC 3339; abandoned if it still waits then"`
		Choices  []Picked `json:"choices,omitempty"`
		Memory   bool     `json:"memory,omitempty" doc:"with the memory of running machines"`
	}
}

type keepTemplate struct {
	TemplateWrite
	Body struct {
		Keep int `json:"keep" minimum:"0" doc:"how many superseded versions stay"`
	}
}

type rollbackTemplate struct {
	TemplateWrite
	Body struct {
		Version int `json:"version" minimum:"1"`
	}
}

type protectTemplate struct {
	TemplateWrite
	Body struct {
		Protected bool `json:"protected"`
	}
}

// Bodies of commands, as the door's table has them.
type (
	templateBody struct {
		Template events.TemplateID `json:"template"`
	}
	setRegionsBody struct {
		Template events.TemplateID `json:"template"`
		Add      []events.RegionID `json:"add,omitempty"`
		Remove   []events.RegionID `json:"remove,omitempty"`
		Choices  []events.Choice   `json:"choices,omitempty"`
	}
	replaceBody struct {
		Template events.TemplateID   `json:"template"`
		Source   events.Source       `json:"source"`
		Policy   events.SwitchPolicy `json:"policy"`
		Deadline time.Time           `json:"deadline,omitzero"`
		Choices  []events.Choice     `json:"choices,omitempty"`
		Memory   bool                `json:"memory,omitempty"`
	}
	rollbackBody struct {
		Template events.TemplateID `json:"template"`
		Version  int               `json:"version"`
	}
	keepBody struct {
		Template events.TemplateID `json:"template"`
		Keep     int               `json:"keep"`
	}
	protectBody struct {
		Template  events.TemplateID `json:"template"`
		Protected bool              `json:"protected"`
	}
)

func (s *Server) templateWrites() {
	command(s, http.MethodPost, "/v1/templates", "create-template", "Save an environment as version 1 of a new template", s.createTemplate)
	command(s, http.MethodPost, "/v1/templates/{ref}/regions", "set-template-regions", "Change which regions should hold it", s.setRegions)
	command(s, http.MethodPost, "/v1/templates/{ref}/replace", "replace-template", "Save a further version and switch the reference to it", s.replace)
	command(s, http.MethodPost, "/v1/templates/{ref}/rollback", "roll-back-template", "Move the reference back to a version that was kept", func(ctx context.Context, in *rollbackTemplate) (Accepted, error) {
		t, account, err := s.knownTemplate(ctx, in.TemplateWrite)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, account, events.KindTemplate, "rollback", rollbackBody{t.Number, in.Body.Version})
	})
	command(s, http.MethodPost, "/v1/templates/{ref}/protect", "protect-template", "Protect it against deletion, or take the protection off", func(ctx context.Context, in *protectTemplate) (Accepted, error) {
		t, account, err := s.knownTemplate(ctx, in.TemplateWrite)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, account, events.KindTemplate, "protect", protectBody{t.Number, in.Body.Protected})
	})
	command(s, http.MethodPost, "/v1/templates/{ref}/keep", "keep-versions", "Say how many superseded versions stay; those beyond are removed", func(ctx context.Context, in *keepTemplate) (Accepted, error) {
		t, account, err := s.knownTemplate(ctx, in.TemplateWrite)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, account, events.KindTemplate, "keep", keepBody{t.Number, in.Body.Keep})
	})
	command(s, http.MethodDelete, "/v1/templates/{ref}", "delete-template", "Delete it with every copy", func(ctx context.Context, in *TemplateWrite) (Accepted, error) {
		t, account, err := s.knownTemplate(ctx, *in)
		if err != nil {
			return s.deletedBefore(ctx, *in, account, err)
		}
		return s.send(ctx, in.Write, account, events.KindTemplate, "delete", templateBody{t.Number})
	})
}

// deletedBefore answers a deletion of a template that does not resolve any more:
// as it was answered then if this is the command that deleted it, whose answer
// got lost; with why it does not resolve otherwise.
func (s *Server) deletedBefore(ctx context.Context, in TemplateWrite, account events.AccountID, why error) (Accepted, error) {
	var gone *projections.NotFoundError
	if in.Key == "" || !errors.As(why, &gone) || gone.Code != projections.CodeTemplateDeleted {
		return Accepted{}, why
	}
	a, err := s.send(ctx, in.Write, account, events.KindTemplate, "delete", templateBody{gone.Template})
	if err != nil || a.Because != "" {
		return Accepted{}, why
	}
	return a, nil
}

func (s *Server) knownTemplate(ctx context.Context, in TemplateWrite) (projections.TemplateRow, events.AccountID, error) {
	account, _, err := in.account(ctx)
	if err != nil {
		return projections.TemplateRow{}, "", err
	}
	t, err := resolved(ctx, s, func(v at) (projections.TemplateRow, error) {
		t, err := projections.Catalogue{}.Resolve(v, account, in.Ref)
		return t.Template, err
	})
	return t, account, err
}

func (s *Server) regionIDs(ctx context.Context, spellings []string) ([]events.RegionID, error) {
	var out []events.RegionID
	for _, r := range spellings {
		id, err := s.knownRegion(ctx, r)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out, nil
}

func (s *Server) choices(ctx context.Context, picked []Picked) ([]events.Choice, error) {
	var out []events.Choice
	for _, p := range picked {
		r, err := s.knownRegion(ctx, p.Region)
		if err != nil {
			return nil, err
		}
		out = append(out, events.Choice{Region: r, Resource: p.Resource, Value: p.Value})
	}
	return out, nil
}

func (s *Server) createTemplate(ctx context.Context, in *newTemplate) (Accepted, error) {
	env, account, err := s.knownEnvironment(ctx, in.Scope, in.Body.Environment, in.Body.Region)
	if err != nil {
		return Accepted{}, err
	}
	regions, err := s.regionIDs(ctx, in.Body.Regions)
	if err != nil {
		return Accepted{}, err
	}
	choices, err := s.choices(ctx, in.Body.Choices)
	if err != nil {
		return Accepted{}, err
	}
	return s.send(ctx, in.Write, account, events.KindTemplate, "create", commands.TemplateRequest{Environment: env.ID, Region: env.Region,
		Name: in.Body.Name, Number: in.Body.Number, Regions: regions, Keep: in.Body.Keep, Choices: choices, Protected: in.Body.Protected, Memory: in.Body.Memory})
}

func (s *Server) setRegions(ctx context.Context, in *templateRegions) (Accepted, error) {
	t, account, err := s.knownTemplate(ctx, in.TemplateWrite)
	if err != nil {
		return Accepted{}, err
	}
	b := in.Body
	if b.None {
		if !b.Confirm {
			return Accepted{}, aggregates.RefuseAs(aggregates.Confirmation, "deletes-template", "in no region, template %s (%s) is deleted with every copy", t.Number, t.Name).
				WithNext("confirm it (--yes)")
		}
		return s.send(ctx, in.Write, account, events.KindTemplate, "delete", templateBody{t.Number})
	}
	body, err := s.change(ctx, t, b.RegionsWish)
	if err != nil {
		return Accepted{}, err
	}
	if body.Choices, err = s.choices(ctx, b.Choices); err != nil {
		return Accepted{}, err
	}
	return s.send(ctx, in.Write, account, events.KindTemplate, "set-regions", body)
}

// change is what a wish adds to a template's regions and takes from them.
func (s *Server) change(ctx context.Context, t projections.TemplateRow, w RegionsWish) (setRegionsBody, error) {
	body := setRegionsBody{Template: t.Number}
	wanted, err := s.regionIDs(ctx, w.Set)
	if err != nil {
		return body, err
	}
	if w.All {
		if wanted, err = lookup(ctx, s, Read{}, activeRegions); err != nil {
			return body, err
		}
	}
	if body.Add, err = s.regionIDs(ctx, w.Add); err != nil {
		return body, err
	}
	if body.Remove, err = s.regionIDs(ctx, w.Remove); err != nil {
		return body, err
	}
	if len(wanted) > 0 {
		body.Add = append(body.Add, without(wanted, t.Regions)...)
	}
	if len(wanted) > 0 || w.None {
		body.Remove = append(body.Remove, without(t.Regions, wanted)...)
	}
	return body, nil
}

func without(all, these []events.RegionID) []events.RegionID {
	return slices.DeleteFunc(slices.Clone(all), func(r events.RegionID) bool { return slices.Contains(these, r) })
}

func activeRegions(v at) ([]events.RegionID, error) {
	var out []events.RegionID
	for resume := ""; ; {
		page, err := projections.Regions{}.InState(v, projections.RegionActive, 1000, resume)
		if err != nil {
			return nil, err
		}
		for _, r := range page.Rows {
			out = append(out, r.Region)
		}
		if resume = page.Resume; resume == "" {
			return out, nil
		}
	}
}

func (s *Server) replace(ctx context.Context, in *replaceTemplate) (Accepted, error) {
	t, account, err := s.knownTemplate(ctx, in.TemplateWrite)
	if err != nil {
		return Accepted{}, err
	}
	env, _, err := s.knownEnvironment(ctx, in.Scope, in.Body.Environment, in.Body.Region)
	if err != nil {
		return Accepted{}, err
	}
	body := replaceBody{Template: t.Number, Memory: in.Body.Memory, Source: events.Source{Environment: env.ID, Region: env.Region},
		Policy: events.SwitchPolicy{Kind: in.Body.Policy, Quorum: in.Body.Quorum}}
	if body.Policy.Kind == "" {
		body.Policy.Kind = "all"
	}
	if body.Deadline, err = s.deadline(in.Body.Deadline); err != nil {
		return Accepted{}, err
	}
	if body.Choices, err = s.choices(ctx, in.Body.Choices); err != nil {
		return Accepted{}, err
	}
	return s.send(ctx, in.Write, account, events.KindTemplate, "replace", body)
}
