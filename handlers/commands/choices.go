package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/number"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/projections"
)

// choosing checks values that a user named for resources before anything is set
// in motion: each region's pool says whether it would give them. What a pool
// gives without being asked for one value is left to the copy, which waits where
// there is nothing.
type choosing struct {
	choices  []events.Choice
	regions  []events.RegionID // that the choices may be about
	template events.TemplateID
	version  int // whose instances would reserve; of a version to come the next one
	inherits int // the version whose instances' values are taken over; 0: none
}

// check refuses a choice about another region or resource, and what the pools
// refuse: address-unknown with the bounds, address-taken, pool-undeclared.
func (c *call) check(ctx context.Context, o choosing, types map[string]events.ResourceRef) error {
	byPool := map[events.Aggregate]pool.Reserve{}
	for _, choice := range o.choices {
		if !slices.Contains(o.regions, choice.Region) {
			return aggregates.RefuseAs(aggregates.Invalid, "choice-misplaced", "%s is named for %s in %s, which is not one of the regions: %s",
				choice.Value, choice.Resource, choice.Region, join(slices.Compact(slices.Sorted(slices.Values(o.regions)))))
		}
		r, ok := types[choice.Resource]
		if !ok {
			unknown := aggregates.Refuse("resource-unknown", "%s is named for %s, and there is no such region-bound resource", choice.Value, choice.Resource)
			if len(types) == 0 {
				return unknown.WithNext("name no value: there is none that is bound to a region")
			}
			return unknown.WithNext("there are: %s", strings.Join(slices.Sorted(maps.Keys(types)), ", "))
		}
		if r.LeansOn != "" {
			return aggregates.Refuse("resource-leans", "%s carries the value of %s and has none of its own", choice.Resource, r.LeansOn).
				WithNext("name a value for %s", r.LeansOn)
		}
		a := pool.Of(choice.Region, events.PoolID(r.Type))
		cmd, ok := byPool[a]
		if !ok {
			cmd = pool.Reserve{Region: choice.Region, Type: events.PoolID(r.Type), Command: c.origin.Command.ID, Choices: map[string]string{},
				Owner: events.Owner{Account: c.origin.Account, Instance: instance.ID(c.origin.Account, o.template, o.version, choice.Region)},
				Until: c.door.executor.now().UTC().Add(time.Hour)}
			if o.inherits > 0 {
				cmd.InheritFrom = instance.ID(c.origin.Account, o.template, o.inherits, choice.Region)
			}
		}
		if before, twice := cmd.Choices[choice.Resource]; twice {
			return aggregates.RefuseAs(aggregates.Invalid, "resource-named-twice", "%s and %s are both named for %s in %s", before, choice.Value, choice.Resource, choice.Region)
		}
		cmd.Choices[choice.Resource] = choice.Value
		cmd.Resources = append(cmd.Resources, choice.Resource)
		byPool[a] = cmd
	}
	for _, a := range slices.SortedFunc(maps.Keys(byPool), func(a, b events.Aggregate) int { return strings.Compare(a.Subject(), b.Subject()) }) {
		if _, err := Consider(ctx, c.door.executor, c.origin, byPool[a]); err != nil {
			return err
		}
	}
	return nil
}

// graphOf reads what an environment consists of.
func (c *call) graphOf(ctx context.Context, view *projections.View, id events.EnvironmentID) (graph.Graph, error) {
	e, ok, err := projections.Environments{}.Environment(view, id)
	if err != nil {
		return graph.Graph{}, err
	}
	if !ok || e.Account != c.origin.Account {
		return graph.Graph{}, aggregates.RefuseAs(aggregates.NotFound, "environment-unknown", "there is no environment %q", id).WithNext("tombolo env ls")
	}
	raw, err := c.door.documents.Get(ctx, e.Graph)
	if err != nil {
		return graph.Graph{}, err
	}
	var g graph.Graph
	if err := json.Unmarshal(raw, &g); err != nil {
		return graph.Graph{}, fmt.Errorf("graph %s: %w", e.Graph, err)
	}
	return g, nil
}

// resourcesOf reads what is region-bound in an environment.
func (c *call) resourcesOf(ctx context.Context, view *projections.View, source events.Source) (map[string]events.ResourceRef, error) {
	g, err := c.graphOf(ctx, view, source.Environment)
	if err != nil {
		return nil, err
	}
	out := map[string]events.ResourceRef{}
	for _, r := range g.Resources() {
		out[r.ID] = events.ResourceRef{ID: r.ID, Type: string(r.Type), Value: r.Value, LeansOn: r.LeansOn}
	}
	return out, nil
}

// atTipWith asks the reads and closes them again.
func (c *call) atTipWith(ctx context.Context, ask func(*projections.View) error) error {
	view, err := c.door.atTip(ctx)
	if err != nil {
		return err
	}
	return foundOut(errors.Join(ask(view), view.Close()))
}

// checkCreate looks at the choices of a new template before its claims, which a
// refusal would leave behind. A command that was here before is past it.
func (c *call) checkCreate(ctx context.Context, r TemplateRequest) error {
	if c.door.reads == nil {
		return nil
	}
	for role, n := range c.numbers(r.Number) {
		if _, there, err := Recall[number.State, events.NumberEvent](ctx, c.door.executor, c.origin, role, number.Of(n)); there || err != nil {
			return err
		}
	}
	source := events.Source{Environment: r.Environment, Region: r.Region}
	var types map[string]events.ResourceRef
	err := c.atTipWith(ctx, func(v *projections.View) (err error) {
		if err := c.savable(v, source); err != nil {
			return err
		}
		types, err = c.resourcesOf(ctx, v, source)
		return err
	})
	if err != nil || len(r.Choices) == 0 {
		return err
	}
	return c.check(ctx, choosing{choices: r.Choices, regions: append(slices.Clone(r.Regions), r.Region), template: candidate(c.origin, "number/0"), version: 1}, types)
}

// savable refuses an environment that is not there, or not yet: the region would
// have nothing to save.
func (c *call) savable(view *projections.View, source events.Source) error {
	e, ok, err := projections.Environments{}.Environment(view, source.Environment)
	switch {
	case err != nil:
		return err
	case !ok || e.Account != c.origin.Account || e.Region != source.Region:
		return aggregates.RefuseAs(aggregates.NotFound, "environment-unknown", "there is no environment %q in %s", source.Environment, source.Region).WithNext("tombolo env ls")
	case e.State != projections.EnvironmentCreated:
		return aggregates.Refuse("environment-not-ready", "environment %s is %s", e.Name, e.State).WithNext("save it when it is created: tombolo env show %s", e.Name)
	}
	return nil
}

// checkReplace looks at the choices of a replacement.
func checkReplace(ctx context.Context, r *template.Replace, c *call) error {
	return c.checkChange(ctx, r.Template, r.Choices, func(v *projections.View, t projections.TemplateRow) (choosing, map[string]events.ResourceRef, error) {
		types, err := c.resourcesOf(ctx, v, r.Source)
		return choosing{regions: t.Regions, version: t.Latest + len(t.Queue) + 1, inherits: t.Active}, types, err
	})
}

// checkRegions looks at the choices for regions that are added.
func checkRegions(ctx context.Context, r *template.SetRegions, c *call) error {
	return c.checkChange(ctx, r.Template, r.Choices, func(v *projections.View, t projections.TemplateRow) (choosing, map[string]events.ResourceRef, error) {
		version := max(t.Active, 1)
		row, _, err := projections.Catalogue{}.Version(v, t.Number, version)
		types := map[string]events.ResourceRef{}
		for _, res := range row.Resources {
			types[res.ID] = res
		}
		return choosing{regions: r.Add, version: version}, types, err
	})
}

func (c *call) checkChange(ctx context.Context, t events.TemplateID, choices []events.Choice,
	about func(*projections.View, projections.TemplateRow) (choosing, map[string]events.ResourceRef, error)) error {
	if len(choices) == 0 || c.door.reads == nil {
		return nil
	}
	if _, there, err := Recall[template.State, events.TemplateEvent](ctx, c.door.executor, c.origin, mainRole, template.Of(c.origin.Account, t)); there || err != nil {
		return err
	}
	var o choosing
	var types map[string]events.ResourceRef
	err := c.atTipWith(ctx, func(v *projections.View) error {
		row, ok, err := projections.Catalogue{}.Template(v, c.origin.Account, t)
		if err != nil || !ok {
			return err // the template itself says that it is not there
		}
		o, types, err = about(v, row)
		return err
	})
	if err != nil || types == nil {
		return err
	}
	o.choices, o.template = choices, t
	return c.check(ctx, o, types)
}
