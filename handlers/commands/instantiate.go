package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/projections"
)

// InstantiateRequest is the body of template.instantiate.
type InstantiateRequest struct {
	Template   string          `json:"template" jsonschema:"a reference: number, name, URL or location, with @version behind it where one is meant whatever is active; or a manifest's digest"`
	Region     events.RegionID `json:"region" jsonschema:"where the environment is made"`
	Name       string          `json:"name,omitempty" jsonschema:"of the environment; derived from the template's unless given"`
	CopyAgreed bool            `json:"copy_agreed,omitempty" jsonschema:"copy it to the region first where it is not held there"`
	KeepCopy   bool            `json:"keep_copy,omitempty" jsonschema:"have the region hold the template from here on"`
}

// Instantiation is the plan of an instantiation.
type Instantiation struct {
	Template  events.TemplateID `json:"template"`
	Name      string            `json:"name" jsonschema:"of the environment"`
	Version   int               `json:"version"`
	Pinned    bool              `json:"pinned"`
	Region    events.RegionID   `json:"region"`
	Addresses []PlannedLease    `json:"addresses" jsonschema:"what its region-bound resources would be now"`
	Resume    []string          `json:"resume,omitempty" jsonschema:"machines that go on from where they were saved"`
	Boot      []string          `json:"boot,omitempty" jsonschema:"machines that start from power-on: their memory was not saved"`
	projections.Nearness
}

// PlannedLease is a value that a pool would give.
type PlannedLease struct {
	Resource string `json:"resource"`
	Type     string `json:"type"`
	Value    string `json:"value"`
	Of       string `json:"of" jsonschema:"instance: what the region holds for the template; pool: a fresh one"`
	BoundTo  string `json:"bound_to,omitempty" jsonschema:"the host's address that stands for it, where it is bound elsewhere"`
	Offset   int    `json:"port_offset,omitempty" jsonschema:"added to its ports there"`
}

func instantiateTemplate() Verb {
	return composed("template", "instantiate", "Make an environment of a version, where it is stored or, if that is agreed to, after a copy.", MaxBody,
		func(_ context.Context, c *call, r InstantiateRequest) error {
			if r.Template == "" || !events.IsToken(string(r.Region)) {
				return badRequest("the field %q is not a reference, or %q not a region: %.80q, %.80q", "template", "region", r.Template, string(r.Region))
			}
			if r.Name != "" {
				if _, err := Slug(r.Name); err != nil {
					return err
				}
			}
			c.region = r.Region
			if r.KeepCopy {
				c.also = []string{"set-regions"} // which it comes to
			}
			i := instantiation{call: c, request: r}
			c.run = i.run
			c.plan = func(ctx context.Context) (any, error) { return i.decide(ctx) }
			return nil
		})
}

// instantiation is one command on its way.
type instantiation struct {
	*call
	request InstantiateRequest

	resolved projections.Resolved
	version  projections.VersionRow
	manifest graph.Manifest
}

func (i *instantiation) ref() environment.Ref {
	return environment.Ref{Region: i.request.Region, Environment: events.EnvironmentID(events.DeriveID(i.origin.Account, i.origin.Command.ID, "environment"))}
}

// display is the environment's name: the one asked for, or the template's with
// what tells its environments apart.
func (i *instantiation) display() string {
	if i.request.Name != "" {
		return strings.TrimSpace(i.request.Name)
	}
	id := strings.ReplaceAll(string(i.ref().Environment), "-", "")
	return fmt.Sprintf("%.48s-%.8s", i.resolved.Template.Name, id)
}

// run declares the environment. What the reference means is decided now and is
// in the event; a command that comes again finds its environment whatever the
// reference has come to mean.
func (i *instantiation) run(ctx context.Context) (Answer, error) {
	o, there, err := Recall[environment.State, events.EnvironmentEvent](ctx, i.door.executor, i.origin, mainRole, i.ref().Aggregate(i.origin.Account))
	if err != nil {
		return Answer{}, err
	}
	if !there {
		if o, err = i.declare(ctx); err != nil {
			return Answer{}, err
		}
	}
	return i.answer(o), i.keep(ctx, there)
}

func (i *instantiation) declare(ctx context.Context) (Outcome, error) {
	plan, err := i.decide(ctx)
	if err != nil {
		return Outcome{}, err
	}
	if !plan.Held && !i.request.CopyAgreed {
		return Outcome{}, needsCopy(plan)
	}
	m := i.manifest
	canonical, _, err := documents.Canonical(m.Graph)
	if err != nil {
		return Outcome{}, err
	}
	digest, err := i.door.documents.Put(ctx, canonical)
	if err != nil {
		return Outcome{}, err
	}
	slug, err := Slug(plan.Name)
	if err != nil {
		return Outcome{}, err
	}
	declared := events.EnvironmentDeclared{Name: slug, Display: plan.Name, Graph: digest, Operation: i.operation(), Resources: i.version.Resources,
		Networks: m.Graph.Count(graph.Network), Machines: m.Graph.Count(graph.Machine),
		Origin: &events.TemplateRef{Template: plan.Template, Version: plan.Version, Manifest: i.version.Manifest, Bytes: i.version.Bytes,
			Instance: instance.ID(i.origin.Account, plan.Template, plan.Version, plan.Region), Copy: !plan.Held}}
	for _, d := range m.Graph.Disks() {
		declared.Disks = append(declared.Disks, events.DiskWanted{Name: d.Name(), Bytes: d.Size})
	}
	ref := i.ref()
	if _, err := hold(ctx, i.call, "name", name.Claim{Region: ref.Region, Name: slug, Owner: string(ref.Environment), Until: i.until()}); err != nil {
		return Outcome{}, err
	}
	return Execute(ctx, i.door.executor, i.origin, mainRole, environment.Declare{Ref: ref, EnvironmentDeclared: declared})
}

// keep has the region hold the template from here on, as an operation of its own.
func (i *instantiation) keep(ctx context.Context, again bool) error {
	if !i.request.KeepCopy {
		return nil
	}
	if again { // which template it was is in the event; the reference may mean another by now
		records, err := i.door.executor.journal.Load(ctx, i.ref().Aggregate(i.origin.Account), events.Head{})
		if err != nil {
			return err
		}
		i.resolved.Template.Number = records[0].Event.(events.EnvironmentDeclared).Origin.Template
	}
	_, err := Execute(ctx, i.door.executor, i.origin, "keep", template.SetRegions{Template: i.resolved.Template.Number, Add: []events.RegionID{i.request.Region},
		Operation: events.OperationID(events.DeriveID(i.origin.Account, i.origin.Command.ID, "keep-operation"))})
	return err
}

func needsCopy(plan Instantiation) error {
	text := fmt.Sprintf("%s does not hold version %d of template %s: at most %.1f MiB would be copied", plan.Region, plan.Version, plan.Template, float64(plan.Copy)/(1<<20))
	if plan.Estimated != nil {
		text += fmt.Sprintf(", which takes about %.1f s", float64(*plan.Estimated)/1000)
	} else {
		text += "; how long that takes is unknown"
	}
	raw, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	return &PlanError{Plan: raw, Refusal: aggregates.RefuseAs(aggregates.Confirmation, "copy-needed", "%s", text).
		WithNext("agree to the copy (--yes), or choose one of the regions that hold it: %s", join(plan.Holders))}
}

func join(regions []events.RegionID) string {
	var out []string
	for _, r := range regions {
		out = append(out, string(r))
	}
	return strings.Join(out, ", ")
}

// decide says what the reference means now, what it takes, and whether it can be.
func (i *instantiation) decide(ctx context.Context) (Instantiation, error) {
	view, err := i.door.atTip(ctx)
	if err != nil {
		return Instantiation{}, err
	}
	defer view.Close()
	plan, err := i.look(view)
	if err != nil {
		return plan, foundOut(err)
	}
	if err := i.allowed(plan); err != nil {
		return plan, err
	}
	if plan.Addresses, err = i.addresses(ctx); err != nil {
		return plan, err
	}
	raw, err := i.door.documents.Get(ctx, i.version.Manifest)
	if err != nil {
		return plan, err
	}
	if err := json.Unmarshal(raw, &i.manifest); err != nil {
		return plan, fmt.Errorf("manifest %s: %w", i.version.Manifest, err)
	}
	plan.Resume, plan.Boot = i.manifest.Graph.Starts()
	for n := range plan.Addresses {
		a := &plan.Addresses[n]
		place, offset, ok, err := projections.Pools{}.Place(view, plan.Region, events.PoolID(a.Type), a.Value)
		if err != nil {
			return plan, err
		}
		if ok && (place != a.Value || offset != 0) {
			a.BoundTo, a.Offset = place, offset
		}
	}
	return plan, nil
}

func (i *instantiation) look(view *projections.View) (Instantiation, error) {
	plan := Instantiation{Region: i.request.Region}
	if err := usable(view, i.request.Region); err != nil {
		return plan, err
	}
	var err error
	if i.resolved, err = (projections.Catalogue{}).Resolve(view, i.origin.Account, i.request.Template); err != nil {
		return plan, err
	}
	t := i.resolved.Template
	if i.resolved.Version == 0 {
		return plan, aggregates.Refuse("version-not-active", "no version of template %s (%s) is active yet", t.Number, t.Name).WithNext("wait until its first version is: tombolo where %s", t.Number)
	}
	if i.version, _, err = (projections.Catalogue{}).Version(view, t.Number, i.resolved.Version); err != nil {
		return plan, err
	}
	plan.Template, plan.Version, plan.Pinned, plan.Name = t.Number, i.resolved.Version, i.resolved.Pinned, i.display()
	plan.Nearness, err = projections.Catalogue{}.Near(view, i.origin.Account, t.Number, plan.Version, plan.Region)
	return plan, err
}

// usable refuses a region where nothing new is placed.
func usable(view *projections.View, region events.RegionID) error {
	r, ok, err := projections.Regions{}.Region(view, region)
	switch {
	case err != nil:
		return err
	case !ok:
		return aggregates.RefuseAs(aggregates.NotFound, "region-unknown", "there is no region %q", region).WithNext("tombolo region ls")
	case r.State == projections.RegionRetired:
		return aggregates.Refuse("region-retired", "the region %s was retired for good", region).WithNext("choose another one: tombolo region ls")
	case r.State == projections.RegionDraining:
		return aggregates.Refuse("region-draining", "the region %s is being drained: nothing new is placed there", region).WithNext("choose another one: tombolo region ls")
	}
	return nil
}

// allowed refuses what would not come to its end.
func (i *instantiation) allowed(plan Instantiation) error {
	t := i.resolved.Template
	switch {
	case i.request.KeepCopy && plan.Version != t.Active:
		return aggregates.RefuseAs(aggregates.Invalid, "keep-copy-pinned", "regions are made to hold the active version, %d, and not %d", t.Active, plan.Version).
			WithNext("leave keep_copy away, or the version")
	case plan.Held:
		return nil
	case plan.Behind && !plan.Pinned:
		return aggregates.Refuse("behind", "%s has not come to version %d of template %s (%s), which is the active one", plan.Region, plan.Version, t.Number, t.Name).
			WithNext("wait for it (tombolo where %s), choose one of %s, or name the version that it holds: %s@N", t.Number, join(plan.Holders), t.Number)
	case plan.State == projections.InstanceRemoving:
		return aggregates.Refuse("removal-unfinished", "version %d of template %s is still being removed from %s", plan.Version, t.Number, plan.Region).
			WithNext("wait for its removal, then ask again")
	case plan.State == projections.InstanceFailed || plan.State == projections.InstanceWaiting:
		why := "for a reason that is not known"
		if plan.Cause != nil {
			why = plan.Cause.Text
		}
		return aggregates.Refuse("copy-stopped", "the copy of version %d of template %s in %s is %s: %s", plan.Version, t.Number, plan.Region, plan.State, why).
			WithNext("see to that copy first, then ask again")
	case len(plan.Holders) == 0:
		return aggregates.Refuse("nowhere-verified", "no region has verified version %d of template %s: there is nothing to copy from", plan.Version, t.Number).
			WithNext("tombolo where %s", t.Number)
	}
	return nil
}

// addresses asks the region's pools what they would give: each decides as it
// will when the environment binds.
func (i *instantiation) addresses(ctx context.Context) ([]PlannedLease, error) {
	out := []PlannedLease{}
	byType := map[string][]string{}
	var types []string
	for _, r := range i.version.Resources {
		if r.LeansOn != "" {
			continue
		}
		if byType[r.Type] == nil {
			types = append(types, r.Type)
		}
		byType[r.Type] = append(byType[r.Type], r.ID)
	}
	ref := i.ref()
	for _, t := range types {
		event, err := Consider(ctx, i.door.executor, i.origin, pool.Bind{Region: ref.Region, Type: events.PoolID(t), Command: events.CommandID(string(ref.Environment) + "/bind " + t),
			Owner: events.Owner{Account: i.origin.Account, Environment: ref.Environment}, Resources: byType[t],
			Instance: instance.ID(i.origin.Account, i.resolved.Template.Number, i.resolved.Version, ref.Region)})
		if err != nil {
			return nil, err
		}
		if bound, ok := event.(events.LeasesBound); ok {
			for _, l := range bound.Bound {
				out = append(out, PlannedLease{Resource: l.Resource, Type: t, Value: l.Value, Of: "instance"})
			}
			for _, l := range bound.Fresh {
				out = append(out, PlannedLease{Resource: l.Resource, Type: t, Value: l.Value, Of: "pool"})
			}
		}
	}
	slices.SortFunc(out, func(a, b PlannedLease) int { return strings.Compare(a.Resource, b.Resource) })
	return out, nil
}

// atTip opens the reads.
func (d *Door) atTip(ctx context.Context) (*projections.View, error) {
	if d.reads == nil {
		return nil, aggregates.Refuse("catalogue-missing", "what the reference means cannot be found out here")
	}
	return d.reads.AtTip(ctx)
}

// foundOut makes a refusal of what the catalogue says of a reference.
func foundOut(err error) error {
	var unknown *projections.NotFoundError
	var ambiguous *projections.AmbiguousError
	switch {
	case errors.As(err, &unknown):
		return aggregates.RefuseAs(aggregates.NotFound, string(unknown.Code), "%s", unknown.Detail)
	case errors.As(err, &ambiguous):
		return aggregates.Refuse(string(projections.CodeReferenceAmbiguous), "%s", ambiguous.Error()).WithNext("use the number")
	}
	return err
}
