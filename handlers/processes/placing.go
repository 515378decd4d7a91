package processes

import (
	"fmt"
	"maps"
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/aggregates/number"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// placing looks after one template: it has a new version saved where its
// environment is, wants an instance in every region of the set, first where the
// bytes are, moves the reference when the policy is satisfied, and has the
// instances removed that are no longer wanted. It says when an operation on the
// template has ended and how.
type placing struct {
	Account  events.AccountID   `json:"account"`
	Template events.TemplateID  `json:"template"`
	Name     string             `json:"name"`
	Regions  []events.RegionID  `json:"regions"`
	Active   int                `json:"active,omitempty"`
	Staged   int                `json:"staged,omitempty"`
	Versions []placedVersion    `json:"versions"`
	Changes  []regionChange     `json:"changes,omitempty"` // region changes that are not finished
	Deleting events.OperationID `json:"deleting,omitempty"`
	Deleted  bool               `json:"deleted,omitempty"`
}

type placedVersion struct {
	Version   int                               `json:"version"`
	Operation events.OperationID                `json:"operation"`
	Source    events.Source                     `json:"source"`
	Choices   []events.Choice                   `json:"choices,omitempty"`
	Manifest  events.Digest                     `json:"manifest,omitempty"`
	Bytes     int64                             `json:"bytes,omitempty"`
	Resources []events.ResourceRef              `json:"resources,omitempty"`
	Save      events.WorkID                     `json:"save,omitempty"`    // under way
	Gone      bool                              `json:"gone,omitempty"`    // abandoned or retired
	Outcome   events.Outcome                    `json:"outcome,omitempty"` // how its operation ends once nothing is left to do
	Cause     *events.Cause                     `json:"cause,omitempty"`
	Finished  bool                              `json:"finished,omitempty"`
	Rounds    map[events.RegionID]int           `json:"rounds"` // how often it was wanted there; ids of a later round differ
	Held      map[events.RegionID]instanceState `json:"held"`
}

// instanceState is what the process knows of an instance.
type instanceState string

const (
	wanted   instanceState = "wanted"
	verified instanceState = "verified"
	failed   instanceState = "failed"
	leaving  instanceState = "leaving"
)

type regionChange struct {
	Operation events.OperationID `json:"operation"`
	Add       []events.RegionID  `json:"add,omitempty"`
	Remove    []events.RegionID  `json:"remove,omitempty"`
	Cancelled bool               `json:"cancelled,omitempty"`
}

func placingKeys(r events.Record, index func(string) []string) []string {
	switch e := r.Event.(type) {
	case events.TemplateEvent:
		return []string{r.Aggregate.ID}
	case events.CopyWanted:
		return []string{string(e.Template)}
	case events.InstanceEvent:
		return index("instance/" + r.Aggregate.ID)
	case events.WorkEvent:
		return index("work/" + r.Aggregate.ID)
	case events.OperationEvent:
		return index("operation/" + r.Aggregate.ID)
	}
	return nil
}

func (p *placing) Index() []string {
	var out []string
	for _, v := range p.Versions {
		if v.Save != "" {
			out = append(out, "work/"+string(v.Save))
		}
		for region := range v.Held {
			out = append(out, "instance/"+string(p.instance(v.Version, region)))
		}
		if !slices.Contains(out, "operation/"+string(v.Operation)) {
			out = append(out, "operation/"+string(v.Operation))
		}
	}
	for _, c := range p.Changes {
		out = append(out, "operation/"+string(c.Operation))
	}
	slices.Sort(out)
	return out
}

func (p *placing) Over() bool { return p.Deleted }

func (p *placing) React(r events.Record) []Send {
	switch e := r.Event.(type) {
	case events.TemplateCreated:
		*p = placing{Account: r.Aggregate.Account, Template: events.TemplateID(r.Aggregate.ID), Name: e.Name, Regions: e.Regions, Staged: 1}
		return append([]Send{
			send(p.Account, "confirm number", number.Confirm{Number: p.Template, Owner: string(e.Operation)}),
			send(p.Account, "confirm name", name.Confirm{Name: e.Name, Owner: r.Aggregate.ID}),
		}, p.save(1, e.Operation, e.Source, e.Choices)...)
	case events.ReplacementStaged:
		p.Staged = e.Version
		return p.save(e.Version, e.Operation, e.Source, e.Choices)
	case events.VersionSaved:
		v := p.version(e.Version)
		v.Manifest, v.Bytes, v.Resources, v.Save = e.Manifest, e.Bytes, e.Resources, ""
		return p.want(v, v.Source.Region)
	case events.RegionsChanged:
		return p.onRegions(e)
	case events.VersionActivated:
		return p.onActivated(e)
	case events.VersionAbandoned:
		return p.onAbandoned(e)
	case events.VersionRetired:
		v := p.version(e.Version)
		v.Gone, v.Outcome = true, events.Succeeded
		return append(p.remove(v, ""), p.ended()...)
	case events.TemplateDeletionAccepted:
		return p.onDeletion(e)
	case events.TemplateDeleted:
		p.Deleted = true
		if slices.ContainsFunc(p.Versions, func(v placedVersion) bool { return v.Operation == p.Deleting }) {
			return nil // the creation itself failed, and has said so
		}
		return []Send{p.finish(p.Deleting, events.Succeeded, nil)}
	case events.InstanceEvent:
		return p.onInstance(r, e)
	case events.WorkEvent:
		return p.onSave(r, e)
	case events.CancelAsked:
		return p.onCancel(events.OperationID(r.Aggregate.ID))
	case events.RetryAsked:
		return p.onRetry(events.OperationID(r.Aggregate.ID), e)
	}
	return nil
}

// save has the version's content fixed where its environment is.
func (p *placing) save(n int, op events.OperationID, source events.Source, choices []events.Choice) []Send {
	step := fmt.Sprintf("save %d", n)
	v := placedVersion{Version: n, Operation: op, Source: source, Choices: choices, Held: map[events.RegionID]instanceState{}, Rounds: map[events.RegionID]int{},
		Save: events.WorkID(events.DeriveID(p.Account, events.CommandID(op), step))}
	p.Versions = append(p.Versions, v)
	return []Send{send(p.Account, step, work.Order{Ref: work.Ref{Region: source.Region, Work: v.Save}, WorkOrdered: events.WorkOrdered{
		Kind: events.WorkSave, Operation: op, Order: events.Order{Environment: source.Environment, Template: p.Template, Version: n}}})}
}

func (p *placing) onSave(r events.Record, e events.WorkEvent) []Send {
	i := slices.IndexFunc(p.Versions, func(v placedVersion) bool { return string(v.Save) == r.Aggregate.ID })
	if i < 0 {
		return nil
	}
	v := &p.Versions[i]
	switch e := e.(type) {
	case events.WorkDone:
		if v.Gone {
			return nil
		}
		return []Send{send(p.Account, fmt.Sprintf("saved %d", v.Version), template.RecordSaved{Template: p.Template, Version: v.Version,
			Manifest: e.Result.Manifest, Bytes: e.Result.Bytes, Resources: e.Result.Resources})}
	case events.WorkFailed:
		return p.abandon(v, e.Cause)
	case events.WorkWrittenOff:
		if v.Gone {
			v.Save = ""
			return p.ended()
		}
		return p.abandon(v, e.Why)
	case events.WorkUndone:
		v.Save = ""
		return p.ended()
	}
	return nil
}

func (p *placing) abandon(v *placedVersion, why events.Cause) []Send {
	return []Send{send(p.Account, fmt.Sprintf("abandon %d", v.Version), template.Abandon{Template: p.Template, Version: v.Version, Operation: v.Operation, Cause: why})}
}

// want asks regions to hold the version.
func (p *placing) want(v *placedVersion, regions ...events.RegionID) []Send {
	var out []Send
	for _, region := range regions {
		if _, have := v.Held[region]; have || v.Manifest == "" || v.Gone {
			continue
		}
		v.Held[region] = wanted
		v.Rounds[region]++
		w := events.CopyWanted{Template: p.Template, Version: v.Version, Manifest: v.Manifest, Bytes: v.Bytes, Resources: v.Resources,
			Cached: !slices.Contains(p.Regions, region), Operation: p.operationOf(v, region)}
		for _, c := range v.Choices {
			if c.Region == region {
				w.Choices = append(w.Choices, c)
			}
		}
		if a := p.version(p.Active); a != nil && a.Version != v.Version && a.Held[region] != "" {
			w.Inherits = p.instance(a.Version, region)
		}
		out = append(out, send(p.Account, v.step("want", region), instance.Want{Ref: p.ref(v.Version, region), CopyWanted: w}))
	}
	return out
}

// operationOf is the operation on whose behalf the region holds the version.
func (p *placing) operationOf(v *placedVersion, region events.RegionID) events.OperationID {
	for _, c := range slices.Backward(p.Changes) {
		if slices.Contains(c.Add, region) {
			return c.Operation
		}
	}
	return v.Operation
}

func (p *placing) remove(v *placedVersion, only events.RegionID) []Send {
	var out []Send
	op := p.Deleting
	for _, region := range slices.Sorted(maps.Keys(v.Held)) {
		if only != "" && region != only || v.Held[region] == leaving {
			continue
		}
		if op == "" {
			op = v.Operation
		}
		v.Held[region] = leaving
		out = append(out, send(p.Account, v.step("remove", region),
			instance.WantRemoval{Ref: p.ref(v.Version, region), Operation: op}))
	}
	return out
}

func (p *placing) onInstance(r events.Record, e events.InstanceEvent) []Send {
	var v *placedVersion
	for i := range p.Versions {
		if string(p.instance(p.Versions[i].Version, r.Aggregate.Region)) == r.Aggregate.ID {
			v = &p.Versions[i]
		}
	}
	region := r.Aggregate.Region
	if v == nil || v.Held[region] == "" {
		return nil // a cached copy that this process did not ask for
	}
	switch e.(type) {
	case events.CopyVerified:
		if v.Held[region] == leaving {
			return nil
		}
		v.Held[region] = verified
		// Where the bytes are comes first; the others copy from there.
		out := p.want(v, p.Regions...)
		return append(append(out, p.activate(v)...), p.ended()...)
	case events.CopyFailed:
		v.Held[region] = failed
		return p.ended()
	case events.CopyRetried, events.CopyDamaged:
		v.Held[region] = wanted
	case events.RemovalWanted:
		v.Held[region] = leaving
	case events.CopyRemoved:
		delete(v.Held, region)
		out := p.ended()
		if slices.Contains(p.Regions, region) && p.Deleting == "" {
			out = append(out, p.want(v, region)...) // removed and wanted again meanwhile
		}
		return out
	}
	return nil
}

// activate asks for the switch; the template decides whether its policy is satisfied.
func (p *placing) activate(v *placedVersion) []Send {
	if p.Staged != v.Version || p.Deleting != "" {
		return nil
	}
	var have []events.RegionID
	for _, region := range p.Regions {
		if v.Held[region] == verified {
			have = append(have, region)
		}
	}
	return []Send{send(p.Account, fmt.Sprintf("activate %d with %v", v.Version, have), template.Activate{Template: p.Template, Version: v.Version, Verified: have})}
}

func (p *placing) onActivated(e events.VersionActivated) []Send {
	if p.Staged == e.Version {
		p.Staged = 0
	}
	before := p.version(e.Replaces)
	p.Active = e.Version
	v := p.version(e.Version)
	var out []Send
	if before != nil {
		for _, region := range slices.Sorted(maps.Keys(v.Held)) {
			if before.Held[region] == "" {
				continue
			}
			for _, t := range pooledTypes(v.Resources) {
				out = append(out, send(p.Account, fmt.Sprintf("inherit %s in %s: %d to %d for %s", t, region, before.Version, v.Version, e.Operation), pool.Inherit{
					Region: region, Type: events.PoolID(t), From: p.owner(before.Version, region), To: p.owner(v.Version, region)}))
			}
		}
	}
	for _, old := range p.Versions {
		if old.Version != p.Active && !old.Gone && old.Manifest != "" && old.Version != p.Staged {
			out = append(out, send(p.Account, fmt.Sprintf("retire %d after %d for %s", old.Version, e.Version, e.Operation), template.Retire{Template: p.Template, Version: old.Version}))
		}
	}
	if e.Rollback {
		out = append(out, p.finish(e.Operation, events.Succeeded, nil))
	}
	out = append(out, send(p.Account, fmt.Sprintf("next after %d for %s", e.Version, e.Operation), template.StageNext{Template: p.Template}))
	return append(out, p.ended()...)
}

func (p *placing) onAbandoned(e events.VersionAbandoned) []Send {
	v := p.version(e.Version)
	v.Gone = true
	if p.Staged == e.Version {
		p.Staged = 0
	}
	var out []Send
	if v.Save != "" {
		out = append(out, p.undoSave(v, e.Cause))
	}
	out = append(out, p.remove(v, "")...)
	if v.Version == 1 && p.Active == 0 {
		out = append(out, send(p.Account, "delete the unborn", template.Delete{Template: p.Template, Operation: e.Operation}))
	} else {
		out = append(out, send(p.Account, fmt.Sprintf("next after abandoned %d", e.Version), template.StageNext{Template: p.Template}))
	}
	v.Outcome, v.Cause = events.RolledBack, &e.Cause
	if e.Cause.Code == cancelled.Code {
		v.Outcome = events.Cancelled
	}
	return append(out, p.ended()...)
}

var cancelled = events.Cause{Code: "cancelled", Text: "its cancellation was asked for"}

func (p *placing) undoSave(v *placedVersion, why events.Cause) Send {
	return send(p.Account, fmt.Sprintf("undo save %d", v.Version), work.OrderUndo{Ref: work.Ref{Region: v.Source.Region, Work: v.Save}, Why: why})
}

func (p *placing) onRegions(e events.RegionsChanged) []Send {
	if i := slices.IndexFunc(p.Changes, func(c regionChange) bool { return c.Operation == e.Operation }); i >= 0 {
		p.Changes[i].Remove = append(p.Changes[i].Remove, e.Remove...) // its own cancellation
	} else {
		p.Changes = append(p.Changes, regionChange{Operation: e.Operation, Add: e.Add, Remove: e.Remove})
	}
	p.Regions = slices.DeleteFunc(append(p.Regions, e.Add...), func(r events.RegionID) bool { return slices.Contains(e.Remove, r) })
	slices.Sort(p.Regions)
	var out []Send
	for i := range p.Versions {
		v := &p.Versions[i]
		if v.Gone {
			continue
		}
		for _, region := range e.Remove {
			out = append(out, p.remove(v, region)...)
		}
		if v.Version != p.Active && v.Version != p.Staged || !p.anyVerified(v) {
			continue
		}
		v.Choices = append(v.Choices, e.Choices...)
		out = append(out, p.want(v, e.Add...)...)
		out = append(out, p.activate(v)...)
	}
	return append(out, p.ended()...)
}

func (p *placing) anyVerified(v *placedVersion) bool {
	return slices.Contains(slices.Collect(maps.Values(v.Held)), verified)
}

func (p *placing) onDeletion(e events.TemplateDeletionAccepted) []Send {
	p.Deleting, p.Staged = e.Operation, 0
	out := []Send{send(p.Account, "release name", name.Release{Name: p.Name, Owner: string(p.Template)})}
	for i := range p.Versions {
		v := &p.Versions[i]
		if v.Save != "" && !v.Gone {
			v.Gone = true
			out = append(out, p.undoSave(v, events.Cause{Code: "template-deleted", Text: "the template is deleted"}))
		}
		out = append(out, p.remove(v, "")...)
	}
	return append(out, p.ended()...)
}

// ended finishes every operation that has nothing left to wait for.
func (p *placing) ended() []Send {
	var out []Send
	left := false
	for i := range p.Versions {
		v := &p.Versions[i]
		left = left || len(v.Held) > 0 || v.Save != ""
		switch {
		case v.Finished:
		case v.Gone && v.Outcome != "" && len(v.Held) == 0 && v.Save == "":
			v.Finished = true
			out = append(out, p.finish(v.Operation, v.Outcome, v.Cause))
		case !v.Gone && v.Version != p.Staged && v.Manifest != "" && p.Deleting == "":
			if s := p.outcome(v.Operation, v, p.Regions); s != nil {
				v.Finished = true
				out = append(out, *s)
				for region := range v.Held {
					if !slices.Contains(p.Regions, region) { // held only to copy from
						out = append(out, p.remove(v, region)...)
					}
				}
			}
		}
	}
	if p.Deleting != "" {
		if !left {
			out = append(out, send(p.Account, "deleted", template.RecordDeleted{Template: p.Template}))
		}
		return out
	}
	p.Changes = slices.DeleteFunc(p.Changes, func(c regionChange) bool {
		for _, region := range c.Remove {
			for _, v := range p.Versions {
				if v.Held[region] == leaving {
					return false
				}
			}
		}
		a := p.version(p.Active)
		if a == nil {
			return false
		}
		if c.Cancelled {
			out = append(out, p.finish(c.Operation, events.Cancelled, &cancelled))
			return true
		}
		s := p.outcome(c.Operation, a, c.Add)
		if s != nil {
			out = append(out, *s)
		}
		return s != nil && !p.anyFailed(a, c.Add)
	})
	return out
}

func (p *placing) anyFailed(v *placedVersion, regions []events.RegionID) bool {
	return slices.ContainsFunc(regions, func(r events.RegionID) bool { return v.Held[r] == failed })
}

// outcome says how the operation ended once none of the regions is under way.
func (p *placing) outcome(op events.OperationID, v *placedVersion, regions []events.RegionID) *Send {
	for _, region := range regions {
		if st, have := v.Held[region]; slices.Contains(p.Regions, region) && (!have || st == wanted || st == leaving) {
			return nil
		}
	}
	s := p.finish(op, events.Succeeded, nil)
	if p.anyFailed(v, regions) {
		s = p.finish(op, events.Partly, &events.Cause{Code: "regions-failed", Text: "some regions did not get it; each says why", Next: "operation retry"})
	}
	return &s
}

func (p *placing) finish(op events.OperationID, outcome events.Outcome, why *events.Cause) Send {
	return send(p.Account, fmt.Sprintf("finish %s: %s", op, outcome), operation.Finish{Operation: op, Outcome: outcome, Cause: why})
}

func (p *placing) onCancel(op events.OperationID) []Send {
	for i := range p.Versions {
		v := &p.Versions[i]
		if v.Operation == op && v.Version == p.Staged {
			return p.abandon(v, cancelled)
		}
	}
	for i := range p.Changes {
		c := &p.Changes[i]
		if c.Operation != op {
			continue
		}
		c.Cancelled = true
		var undo []events.RegionID
		for _, region := range c.Add {
			if a := p.version(p.Active); a == nil || a.Held[region] != verified {
				undo = append(undo, region)
			}
		}
		return append([]Send{send(p.Account, "cancel "+string(op), template.SetRegions{Template: p.Template, Remove: undo, Operation: op})}, p.ended()...)
	}
	return nil
}

func (p *placing) onRetry(op events.OperationID, e events.RetryAsked) []Send {
	var out []Send
	for i := range p.Versions {
		v := &p.Versions[i]
		for _, region := range slices.Sorted(maps.Keys(v.Held)) {
			if p.operationOf(v, region) != op || e.Region != "" && e.Region != region || v.Held[region] == leaving {
				continue
			}
			v.Finished = v.Finished && v.Held[region] != failed
			out = append(out, send(p.Account, fmt.Sprintf("retry %d of %d in %s", e.Attempt, v.Version, region), instance.Retry{Ref: p.ref(v.Version, region), Operation: op}))
		}
	}
	return out
}

// Refused needs nothing: every decision is asked again by the next event that
// could change its answer.
func (p *placing) Refused(Send, *aggregates.Refusal) []Send { return nil }

func pooledTypes(resources []events.ResourceRef) []string {
	var out []string
	for _, r := range resources {
		if r.LeansOn == "" && !slices.Contains(out, r.Type) {
			out = append(out, r.Type)
		}
	}
	return out
}

func (p *placing) version(n int) *placedVersion {
	for i := range p.Versions {
		if p.Versions[i].Version == n {
			return &p.Versions[i]
		}
	}
	return nil
}

// step names what is done with the version in the region, this time.
func (v *placedVersion) step(what string, region events.RegionID) string {
	return fmt.Sprintf("%s %d in %s, round %d", what, v.Version, region, v.Rounds[region])
}

func (p *placing) instance(version int, region events.RegionID) events.InstanceID {
	return instance.ID(p.Account, p.Template, version, region)
}

func (p *placing) ref(version int, region events.RegionID) instance.Ref {
	return instance.Ref{Region: region, Instance: p.instance(version, region)}
}

func (p *placing) owner(version int, region events.RegionID) events.Owner {
	return events.Owner{Account: p.Account, Instance: p.instance(version, region)}
}
