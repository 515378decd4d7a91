package processes

import (
	"fmt"
	"maps"
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/aggregates/number"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// placing looks after one template: it has a new version saved where its
// environment is, wants an instance in every region of the set, first where the
// bytes are, moves the reference when the policy is satisfied, and has the
// instances removed that are no longer wanted. It says when an operation on the
// template has ended and how (efforts.go).
type placing struct {
	Account  events.AccountID   `json:"account"`
	Template events.TemplateID  `json:"template"`
	Name     string             `json:"name"`
	Regions  []events.RegionID  `json:"regions"`
	Active   int                `json:"active,omitempty"`
	Staged   int                `json:"staged,omitempty"`
	Versions []placedVersion    `json:"versions"` // those of which anything is left
	Efforts  []effort           `json:"efforts,omitempty"`
	Deleting events.OperationID `json:"deleting,omitempty"`
	Unborn   events.OperationID `json:"unborn,omitempty"` // the creation, once its version was given up
	Deleted  bool               `json:"deleted,omitempty"`

	at uint64 // the event being handled
}

type placedVersion struct {
	Version   int                               `json:"version"`
	Operation events.OperationID                `json:"operation"`
	Source    events.Source                     `json:"source"`
	Choices   []events.Choice                   `json:"choices,omitempty"`
	Manifest  events.Digest                     `json:"manifest,omitempty"`
	Bytes     int64                             `json:"bytes,omitempty"`
	Resources []events.ResourceRef              `json:"resources,omitempty"`
	Save      events.WorkID                     `json:"save,omitempty"`   // under way
	Stuck     bool                              `json:"stuck,omitempty"`  // its save could not be undone
	Gone      bool                              `json:"gone,omitempty"`   // abandoned or retired
	Lender    events.RegionID                   `json:"lender,omitempty"` // outside the set; holds it only until the set does
	Held      map[events.RegionID]instanceState `json:"held"`
	Cached    map[events.RegionID]bool          `json:"cached"` // held without being wanted
}

// instanceState is what the process knows of an instance.
type instanceState string

const (
	wanted   instanceState = "wanted"
	verified instanceState = "verified"
	failed   instanceState = "failed"
	leaving  instanceState = "leaving"
)

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
	}
	for _, e := range p.Efforts {
		out = append(out, "operation/"+string(e.Operation))
	}
	if p.Deleting != "" {
		out = append(out, "operation/"+string(p.Deleting))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (p *placing) Over() bool { return p.Deleted || p.Template == "" }

func (p *placing) React(r events.Record) []Send {
	if e, ok := r.Event.(events.TemplateCreated); ok {
		*p = placing{Account: r.Aggregate.Account, Template: events.TemplateID(r.Aggregate.ID), Name: e.Name, Regions: e.Regions, Staged: 1, at: r.Sequence}
		p.begin(effort{Operation: e.Operation, Version: 1, Creation: true})
		return append([]Send{
			send(p.Account, "confirm number", number.Confirm{Number: p.Template, Owner: string(e.Operation)}),
			send(p.Account, "confirm name", name.Confirm{Name: e.Name, Owner: r.Aggregate.ID}),
		}, p.save(1, e.Operation, e.Source, e.Choices, e.Memory)...)
	}
	p.at = r.Sequence
	out := p.react(r)
	p.forget()
	return out
}

func (p *placing) react(r events.Record) []Send {
	switch e := r.Event.(type) {
	case events.ReplacementStaged:
		p.Staged = e.Version
		p.begin(effort{Operation: e.Operation, Version: e.Version})
		return p.save(e.Version, e.Operation, e.Source, e.Choices, e.Memory)
	case events.ReplacementQueued:
		p.begin(effort{Operation: e.Operation, Queued: true})
	case events.ReplacementUnqueued:
		return append(p.drop(e.Operation, e.Cause), p.next())
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
		return p.onRetired(e)
	case events.KeepSet:
		return p.retire()
	case events.TemplateDeletionAccepted:
		return p.onDeletion(e)
	case events.TemplateDeleted:
		p.Deleted = true
		if p.Unborn == p.Deleting {
			return nil // the creation itself has said how it ended
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
func (p *placing) save(n int, op events.OperationID, source events.Source, choices []events.Choice, memory bool) []Send {
	v := placedVersion{Version: n, Operation: op, Source: source, Choices: choices, Held: map[events.RegionID]instanceState{}, Cached: map[events.RegionID]bool{},
		Save: events.WorkID(events.DeriveID(p.Account, events.CommandID(op), fmt.Sprintf("save %s@%d", p.Template, n)))}
	p.Versions = append(p.Versions, v)
	return []Send{send(p.Account, "save", work.Order{Ref: work.Ref{Region: source.Region, Work: v.Save}, WorkOrdered: events.WorkOrdered{
		Kind: events.WorkSave, Operation: op, Order: events.Order{Environment: source.Environment, Template: p.Template, Version: n, Memory: memory}}})}
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
			return nil // the undo that was ordered will say when nothing is left
		}
		return []Send{send(p.Account, "saved", template.RecordSaved{Template: p.Template, Version: v.Version,
			Manifest: e.Result.Manifest, Bytes: e.Result.Bytes, Resources: e.Result.Resources})}
	case events.WorkFailed:
		return p.abandon(v, e.Cause)
	case events.WorkWrittenOff:
		v.Save = ""
		if v.Gone {
			return p.ended()
		}
		return p.abandon(v, e.Why)
	case events.WorkUndone:
		v.Save, v.Stuck = "", false
		return p.ended()
	case events.WorkStuck:
		v.Stuck = true
	case events.WorkRetried:
		v.Stuck = false
	}
	return nil
}

func (p *placing) undoSave(v *placedVersion, why events.Cause) []Send {
	if v.Save == "" {
		return nil
	}
	return []Send{send(p.Account, fmt.Sprintf("undo save %d", v.Version), work.OrderUndo{Ref: work.Ref{Region: v.Source.Region, Work: v.Save}, Why: why})}
}

func (p *placing) abandon(v *placedVersion, why events.Cause) []Send {
	if v.Gone {
		return nil
	}
	return []Send{send(p.Account, "abandon", template.Abandon{Template: p.Template, Version: v.Version, Operation: v.Operation, Cause: why})}
}

// want asks regions to hold the version.
func (p *placing) want(v *placedVersion, regions ...events.RegionID) []Send {
	var out []Send
	for _, region := range regions {
		inSet := slices.Contains(p.Regions, region)
		if have := v.Held[region]; have != "" && !(inSet && v.Cached[region] && have != leaving) || v.Manifest == "" || v.Gone {
			continue
		}
		if v.Held[region] == "" {
			v.Held[region] = wanted
			if !inSet {
				v.Lender = region
			}
		}
		delete(v.Cached, region)
		w := events.CopyWanted{Template: p.Template, Version: v.Version, Manifest: v.Manifest, Bytes: v.Bytes, Resources: v.Resources,
			Cached: !inSet, Operation: p.operationOf(v, region)}
		for _, c := range v.Choices {
			if c.Region == region {
				w.Choices = append(w.Choices, c)
			}
		}
		if a := p.version(p.Active); a != nil && a.Version != v.Version && a.Held[region] != "" {
			w.Inherits = p.instance(a.Version, region)
		}
		out = append(out, send(p.Account, fmt.Sprintf("want %d in %s", v.Version, region), instance.Want{Ref: p.ref(v.Version, region), CopyWanted: w}))
	}
	return out
}

// removeAll has every region let go of the version.
func (p *placing) removeAll(op events.OperationID, v *placedVersion) []Send {
	return p.remove(op, v, slices.Sorted(maps.Keys(v.Held))...)
}

// remove has regions let go of the version.
func (p *placing) remove(op events.OperationID, v *placedVersion, regions ...events.RegionID) []Send {
	var out []Send
	for _, region := range regions {
		if have := v.Held[region]; have == "" || have == leaving {
			continue
		}
		v.Held[region] = leaving
		out = append(out, send(p.Account, fmt.Sprintf("remove %d from %s", v.Version, region),
			instance.WantRemoval{Ref: p.ref(v.Version, region), Operation: op}))
	}
	return out
}

func (p *placing) onInstance(r events.Record, e events.InstanceEvent) []Send {
	region := r.Aggregate.Region
	v := p.versionOf(r.Aggregate)
	if w, ok := e.(events.CopyWanted); ok && (v == nil || v.Held[region] == "") {
		return p.onCached(r, v, w)
	}
	if v == nil || v.Held[region] == "" {
		return nil
	}
	switch e.(type) {
	case events.RemovalWanted:
		v.Held[region] = leaving
	case events.CopyRemoved:
		delete(v.Held, region)
		delete(v.Cached, region)
		var out []Send
		if slices.Contains(p.Regions, region) && p.current(v) {
			out = p.want(v, region) // removed, and wanted again meanwhile
		}
		return append(out, p.ended()...)
	case events.CopyKept:
		delete(v.Cached, region)
	}
	if v.Held[region] == leaving {
		return nil // whatever else it says comes too late
	}
	switch e.(type) {
	case events.CopyVerified:
		v.Held[region] = verified
		// Where the bytes are comes first; the others copy from there.
		var out []Send
		if p.current(v) {
			out = p.want(v, p.Regions...)
		}
		return append(append(out, p.activate(v)...), p.ended()...)
	case events.CopyFailed:
		v.Held[region] = failed
		return append(p.giveUp(v, region), p.ended()...)
	case events.CopyWaiting:
		return p.giveUp(v, region)
	case events.CopyRetried, events.CopyDamaged:
		v.Held[region] = wanted
	}
	return nil
}

// onCached takes note of a copy that an environment asked for: it goes with its
// version, and at once where that has gone already.
func (p *placing) onCached(r events.Record, v *placedVersion, w events.CopyWanted) []Send {
	region := r.Aggregate.Region
	if v == nil || v.Gone || p.Deleting != "" {
		if v != nil {
			v.Held[region] = leaving
		}
		return []Send{send(r.Aggregate.Account, "not wanted", instance.WantRemoval{
			Ref: instance.Ref{Region: region, Instance: events.InstanceID(r.Aggregate.ID)}, Operation: w.Operation})}
	}
	v.Held[region], v.Cached[region] = wanted, w.Cached
	if slices.Contains(p.Regions, region) && p.current(v) {
		return p.want(v, region)
	}
	return nil
}

// giveUp removes a copy that only an environment asked for: that environment has
// failed by this, and nobody else would have it tried again.
func (p *placing) giveUp(v *placedVersion, region events.RegionID) []Send {
	if !v.Cached[region] {
		return nil
	}
	return p.remove(v.Operation, v, region)
}

// current says whether the regions of the set are to hold the version.
func (p *placing) current(v *placedVersion) bool {
	return !v.Gone && p.Deleting == "" && (v.Version == p.Active || v.Version == p.Staged)
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
	return []Send{send(p.Account, "activate", template.Activate{Template: p.Template, Version: v.Version, Verified: have})}
}

func (p *placing) onActivated(e events.VersionActivated) []Send {
	if p.Staged == e.Version {
		p.Staged = 0
	}
	p.Active = e.Version
	var out []Send
	if e.Rollback {
		p.begin(effort{Operation: e.Operation, Version: e.Version})
		out = p.want(p.version(e.Version), p.Regions...) // regions may have come since it was active
	}
	out = append(out, p.retire()...)
	return append(append(out, p.next()), p.ended()...)
}

// retire offers the superseded versions; the template decides which of them it keeps.
func (p *placing) retire() []Send {
	var out []Send
	for _, old := range p.Versions {
		if old.Version != p.Active && !old.Gone && old.Manifest != "" && old.Version != p.Staged {
			out = append(out, send(p.Account, fmt.Sprintf("retire %d", old.Version), template.Retire{Template: p.Template, Version: old.Version}))
		}
	}
	return out
}

// next takes the next replacement out of the queue, if there is one.
func (p *placing) next() Send {
	s := send(p.Account, "next", template.StageNext{Template: p.Template})
	for _, e := range p.Efforts {
		if e.Queued {
			return s.of(e.Operation)
		}
	}
	return s
}

func (p *placing) onAbandoned(e events.VersionAbandoned) []Send {
	v := p.version(e.Version)
	v.Gone = true
	if p.Staged == e.Version {
		p.Staged = 0
	}
	p.conclude(v, outcomeOf(e.Cause), &e.Cause)
	out := append(p.undoSave(v, e.Cause), p.removeAll(e.Operation, v)...)
	if p.Active == 0 {
		p.Unborn = e.Operation
		out = append(out, send(p.Account, "delete the unborn", template.Delete{Template: p.Template, Operation: e.Operation}))
	} else {
		out = append(out, p.next())
	}
	return append(out, p.ended()...)
}

func (p *placing) onRetired(e events.VersionRetired) []Send {
	v := p.version(e.Version)
	if v == nil {
		return nil // the template was deleted meanwhile, and it with it
	}
	v.Gone = true
	p.conclude(v, events.Cancelled, &overtaken) // only what some region has not got is still there to conclude
	op := v.Operation
	if a := p.version(p.Active); a != nil {
		op = a.Operation
	}
	return append(p.removeAll(op, v), p.ended()...)
}

func (p *placing) onRegions(e events.RegionsChanged) []Send {
	p.begin(effort{Operation: e.Operation, Add: e.Add, Remove: e.Remove})
	p.Regions = slices.DeleteFunc(append(slices.Clone(p.Regions), e.Add...), func(r events.RegionID) bool { return slices.Contains(e.Remove, r) })
	slices.Sort(p.Regions)
	var out []Send
	for i := range p.Versions {
		v := &p.Versions[i]
		if v.Gone {
			continue
		}
		for _, region := range e.Remove {
			if p.current(v) && p.isLast(v, region) {
				v.Lender = region // the regions of the set have to get it from somewhere
				continue
			}
			out = append(out, p.remove(e.Operation, v, region)...)
		}
		v.Choices = append(v.Choices, e.Choices...)
		if !p.current(v) {
			continue
		}
		if p.holds(v, slices.Collect(maps.Keys(v.Held))) {
			out = append(out, p.want(v, e.Add...)...)
		}
		out = append(out, p.activate(v)...)
	}
	return append(out, p.ended()...)
}

// holds says whether one of the regions has verified the version.
func (p *placing) holds(v *placedVersion, regions []events.RegionID) bool {
	return slices.ContainsFunc(regions, func(r events.RegionID) bool { return v.Held[r] == verified })
}

// isLast says whether the region's copy is the one that all others are to come
// from: the only one that is verified, or the source's while none is.
func (p *placing) isLast(v *placedVersion, region events.RegionID) bool {
	if p.holds(v, p.Regions) {
		return false
	}
	return v.Held[region] == verified || v.Held[region] == wanted && region == v.Source.Region
}

// returnLent has the lender let go of the version once the set can do without.
func (p *placing) returnLent(v *placedVersion) []Send {
	region := v.Lender
	if region == "" || p.Deleting != "" || v.Gone {
		return nil
	}
	if slices.Contains(p.Regions, region) || v.Held[region] == "" {
		v.Lender = ""
		return nil
	}
	if p.current(v) && (!p.holds(v, p.Regions) || slices.ContainsFunc(p.Regions, func(r events.RegionID) bool { return v.Held[r] == wanted })) {
		return nil
	}
	v.Lender = ""
	return p.remove(v.Operation, v, region)
}

func (p *placing) onDeletion(e events.TemplateDeletionAccepted) []Send {
	p.Deleting, p.Staged = e.Operation, 0
	why := events.Cause{Code: "template-deleted", Text: "the template was deleted"}
	out := []Send{send(p.Account, "release name", name.Release{Name: p.Name, Owner: string(p.Template)})}
	for i := range p.Versions {
		v := &p.Versions[i]
		if !v.Gone {
			out = append(out, p.undoSave(v, why)...)
		}
		v.Gone = true
		out = append(out, p.removeAll(e.Operation, v)...)
	}
	out = append(out, p.concludeAll(why)...)
	return append(out, p.ended()...)
}

// Refused: a template whose number or name another has taken meanwhile does not
// come to be. Every other decision is asked again by the next event that could
// change its answer.
func (p *placing) Refused(s Send, why *aggregates.Refusal) []Send {
	if s.Step == "confirm number" || s.Step == "confirm name" {
		return p.abandon(p.version(1), why.Cause())
	}
	return nil
}

// forget drops versions of which nothing is left, so that the row stays as
// large as what it looks after.
func (p *placing) forget() {
	p.Versions = slices.DeleteFunc(p.Versions, func(v placedVersion) bool {
		return v.Gone && len(v.Held) == 0 && v.Save == "" && !slices.ContainsFunc(p.Efforts, func(e effort) bool { return e.Version == v.Version })
	})
}

func (p *placing) version(n int) *placedVersion {
	for i := range p.Versions {
		if p.Versions[i].Version == n {
			return &p.Versions[i]
		}
	}
	return nil
}

// versionOf finds the version that an instance is a copy of.
func (p *placing) versionOf(a events.Aggregate) *placedVersion {
	for i := range p.Versions {
		if string(p.instance(p.Versions[i].Version, a.Region)) == a.ID {
			return &p.Versions[i]
		}
	}
	return nil
}

func (p *placing) instance(version int, region events.RegionID) events.InstanceID {
	return instance.ID(p.Account, p.Template, version, region)
}

func (p *placing) ref(version int, region events.RegionID) instance.Ref {
	return instance.Ref{Region: region, Instance: p.instance(version, region)}
}
