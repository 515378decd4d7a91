package processes

import (
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// environments brings one environment from declared to created, and from
// deleted to gone: its region's pools bind what it is reached by, then its
// disks are received, or cloned from an instance that the region holds (or is
// made to hold first).
type environments struct {
	Account     events.AccountID           `json:"account"`
	Region      events.RegionID            `json:"region"`
	Environment events.EnvironmentID       `json:"environment"`
	Declared    events.EnvironmentDeclared `json:"declared"`

	Bound    map[string][]events.Lease `json:"bound"` // by resource type
	Copying  bool                      `json:"copying,omitempty"`
	Mapped   bool                      `json:"mapped,omitempty"`
	Work     events.WorkID             `json:"work,omitempty"` // receive or clone, until it is undone
	Made     bool                      `json:"made,omitempty"`
	Failed   *events.Cause             `json:"failed,omitempty"`
	Said     bool                      `json:"said,omitempty"` // how its making ended
	Deleting events.OperationID        `json:"deleting,omitempty"`
	Discard  events.WorkID             `json:"discard,omitempty"`
	Stuck    events.WorkID             `json:"stuck,omitempty"` // an order that takes it away and did not work
	Gone     bool                      `json:"gone,omitempty"`
}

func environmentKeys(r events.Record, index func(string) []string) []string {
	switch e := r.Event.(type) {
	case events.EnvironmentEvent:
		return []string{r.Aggregate.ID}
	case events.LeasesBound:
		return []string{string(e.Owner.Environment)}
	case events.CopyVerified, events.CopyFailed, events.CopyWaiting, events.RemovalWanted:
		return index("instance/" + r.Aggregate.ID)
	case events.WorkEvent:
		return index("work/" + r.Aggregate.ID)
	case events.CancelAsked, events.RetryAsked:
		return index("operation/" + r.Aggregate.ID)
	}
	return nil
}

func (v *environments) Index() []string {
	var out []string
	for _, w := range []events.WorkID{v.Work, v.Discard} {
		if w != "" {
			out = append(out, "work/"+string(w))
		}
	}
	if v.Copying {
		out = append(out, "instance/"+string(v.Declared.Origin.Instance))
	}
	if !v.Made {
		out = append(out, "operation/"+string(v.Declared.Operation))
	}
	if v.Stuck != "" && v.Deleting != "" {
		out = append(out, "operation/"+string(v.Deleting))
	}
	return out
}

func (v *environments) Over() bool { return v.Gone || v.Environment == "" }

func (v *environments) React(r events.Record) []Send {
	if _, declared := r.Event.(events.EnvironmentDeclared); !declared && v.Environment == "" {
		return nil // deleted; nothing of it is left to look after
	}
	switch e := r.Event.(type) {
	case events.EnvironmentDeclared:
		*v = environments{Account: r.Aggregate.Account, Region: r.Aggregate.Region, Environment: events.EnvironmentID(r.Aggregate.ID),
			Declared: e, Bound: map[string][]events.Lease{}}
		out := []Send{send(v.Account, "confirm name", name.Confirm{Region: v.Region, Name: e.Name, Owner: r.Aggregate.ID})}
		if e.Origin != nil && e.Origin.Copy {
			v.Copying = true
			return append(out, v.guard(), send(v.Account, "copy first", instance.Demand{Ref: v.instance(), CopyWanted: events.CopyWanted{
				Template: e.Origin.Template, Version: e.Origin.Version, Manifest: e.Origin.Manifest, Bytes: e.Origin.Bytes,
				Resources: e.Resources, Cached: true, Operation: e.Operation}}))
		}
		return append(out, v.bind()...)
	case events.CopyVerified:
		v.Copying = false
		return v.bind()
	case events.RemovalWanted:
		return v.fail(events.Cause{Code: "copy-not-wanted", Text: "the copy that it was to be made from is being removed"})
	case events.CopyFailed:
		return v.fail(e.Cause)
	case events.CopyWaiting:
		return v.fail(e.Cause) // a person waits for this environment: say so now
	case events.LeasesBound:
		v.Bound[r.Aggregate.ID] = append(slices.Clone(e.Bound), e.Fresh...)
		return v.mapWhenComplete()
	case events.EnvironmentMapped:
		v.Mapped = true
		return v.make()
	case events.EnvironmentCreated:
		v.Made, v.Said = true, true
		return []Send{v.finish(v.Declared.Operation, events.Succeeded, nil)}
	case events.EnvironmentFailed:
		v.Failed = &e.Cause
		return v.undo(e.Cause)
	case events.EnvironmentDeletionAccepted:
		return v.onDeletion(e)
	case events.EnvironmentDeleted:
		v.Gone = true
		return []Send{v.finish(v.Deleting, events.Succeeded, nil)}
	case events.CancelAsked:
		return v.fail(cancelled)
	case events.RetryAsked:
		if v.Stuck == "" {
			return nil
		}
		return []Send{send(v.Account, "retry", work.Retry{Ref: v.work(v.Stuck)})}
	case events.WorkEvent:
		return v.onWork(r, e)
	}
	return nil
}

// bind has every pool give what the environment is reached by.
func (v *environments) bind() []Send {
	var out []Send
	for _, t := range v.types() {
		cmd := pool.Bind{Region: v.Region, Type: events.PoolID(t), Command: events.CommandID(string(v.Environment) + "/bind " + t),
			Owner: v.owner(), Choices: map[string]string{}}
		if o := v.Declared.Origin; o != nil {
			cmd.Instance = o.Instance
		}
		for _, res := range v.Declared.Resources {
			if res.Type != t || res.LeansOn != "" {
				continue
			}
			cmd.Resources = append(cmd.Resources, res.ID)
			if v.Declared.Origin == nil && res.Value != "" {
				cmd.Choices[res.ID] = res.Value
			}
		}
		out = append(out, send(v.Account, "bind "+t, cmd))
	}
	if len(out) == 0 {
		return v.mapWhenComplete()
	}
	return append([]Send{v.guard()}, out...)
}

func (v *environments) guard() Send {
	return guard(v.Account, environment.StillMade{Ref: v.ref()})
}

func (v *environments) types() []string { return pooledTypes(v.Declared.Resources) }

func (v *environments) mapWhenComplete() []Send {
	if len(v.Bound) < len(v.types()) {
		return nil
	}
	return []Send{send(v.Account, "map", environment.RecordMap{Ref: v.ref(), Map: substitutions(v.Declared.Resources, v.Bound)})}
}

// make has the disks made.
func (v *environments) make() []Send {
	if v.Failed != nil || v.Deleting != "" {
		return nil
	}
	kind := events.WorkReceive
	order := events.Order{Environment: v.Environment, Graph: v.Declared.Graph, Disks: v.Declared.Disks, Until: v.Declared.Until}
	if o := v.Declared.Origin; o != nil {
		kind = events.WorkClone
		order.Template, order.Version, order.Instance, order.Manifest = o.Template, o.Version, o.Instance, o.Manifest
	}
	v.Work = events.WorkID(events.DeriveID(v.Account, events.CommandID(v.Environment), "make"))
	return []Send{send(v.Account, "make", work.Order{Ref: v.work(v.Work), WorkOrdered: events.WorkOrdered{Kind: kind, Order: order, Operation: v.Declared.Operation}})}
}

func (v *environments) onWork(r events.Record, e events.WorkEvent) []Send {
	id := events.WorkID(r.Aggregate.ID)
	if id == v.Discard {
		switch e.(type) {
		case events.WorkDone, events.WorkWrittenOff:
			return v.gone()
		case events.WorkFailed:
			v.Stuck = id
		case events.WorkRetried:
			v.Stuck = ""
		}
		return nil
	}
	switch e := e.(type) {
	case events.WorkDone:
		if v.Failed != nil || v.Deleting != "" {
			return nil
		}
		return []Send{send(v.Account, "created", environment.RecordCreated{Ref: v.ref(), Graph: e.Result.Graph})}
	case events.WorkFailed:
		return v.fail(e.Cause)
	case events.WorkUndone:
		v.Work, v.Stuck = "", ""
		return v.gone()
	case events.WorkWrittenOff:
		v.Work = ""
		if v.Failed == nil && v.Deleting == "" {
			return v.fail(e.Why)
		}
		return v.gone()
	case events.WorkStuck:
		v.Stuck = id
	case events.WorkRetried:
		v.Stuck = ""
	}
	return nil
}

func (v *environments) fail(why events.Cause) []Send {
	if v.Made || v.Failed != nil || v.Deleting != "" {
		return nil
	}
	return []Send{send(v.Account, "failed", environment.RecordFailed{Ref: v.ref(), Cause: why})}
}

// undo takes back whatever there is of an environment that will not come to be.
func (v *environments) undo(why events.Cause) []Send {
	v.Copying = false
	if v.Work == "" {
		return v.gone()
	}
	return []Send{send(v.Account, "undo", work.OrderUndo{Ref: v.work(v.Work), Why: why})}
}

func (v *environments) onDeletion(e events.EnvironmentDeletionAccepted) []Send {
	v.Deleting, v.Copying = e.Operation, false
	out := []Send{send(v.Account, "release name", name.Release{Region: v.Region, Name: v.Declared.Name, Owner: string(v.Environment)})}
	switch {
	case v.Made:
		return append(out, v.discard()...)
	case v.Failed != nil && v.Work != "":
		return out // its undo is under way and will say when nothing is left
	default:
		return append(out, v.undo(deletedMeanwhile)...)
	}
}

var deletedMeanwhile = events.Cause{Code: "environment-deleted", Text: "the environment was deleted before it was made"}

func (v *environments) discard() []Send {
	v.Discard = events.WorkID(events.DeriveID(v.Account, events.CommandID(v.Environment), "discard"))
	return []Send{send(v.Account, "discard", work.Order{Ref: v.work(v.Discard), WorkOrdered: events.WorkOrdered{Kind: events.WorkDiscard,
		Order: events.Order{Environment: v.Environment}, Operation: v.Deleting}})}
}

// gone gives back the name and the leases, and says that nothing is left, and
// how its making ended where that was not said.
func (v *environments) gone() []Send {
	out := []Send{send(v.Account, "release name", name.Release{Region: v.Region, Name: v.Declared.Name, Owner: string(v.Environment)})}
	for _, t := range v.types() {
		out = append(out, send(v.Account, "release "+t, pool.Release{Region: v.Region, Type: events.PoolID(t), Owner: v.owner(), Why: "removed"}))
	}
	if !v.Said {
		v.Said = true
		why := v.Failed
		if why == nil {
			why = &deletedMeanwhile
		}
		out = append(out, v.finish(v.Declared.Operation, outcomeOf(*why), why))
	}
	if v.Deleting != "" {
		out = append(out, send(v.Account, "deleted", environment.RecordDeleted{Ref: v.ref()}))
	}
	return out
}

func (v *environments) finish(op events.OperationID, outcome events.Outcome, why *events.Cause) Send {
	return send(v.Account, "finish "+string(op), operation.Finish{Operation: op, Outcome: outcome, Cause: why}).of(op)
}

// Refused: a pool that cannot give is a reason to say no to the environment.
func (v *environments) Refused(s Send, why *aggregates.Refusal) []Send {
	for _, t := range v.types() {
		if s.Step == "bind "+t {
			return v.fail(why.Cause())
		}
	}
	switch {
	case s.Step == "copy first" && why.Code == "copy-held":
		v.Copying = false
		return v.bind()
	case s.Step == "copy first", s.Step == "confirm name":
		return v.fail(why.Cause())
	}
	return nil
}

func (v *environments) ref() environment.Ref {
	return environment.Ref{Region: v.Region, Environment: v.Environment}
}
func (v *environments) instance() instance.Ref {
	return instance.Ref{Region: v.Region, Instance: v.Declared.Origin.Instance}
}
func (v *environments) work(id events.WorkID) work.Ref { return work.Ref{Region: v.Region, Work: id} }
func (v *environments) owner() events.Owner {
	return events.Owner{Account: v.Account, Environment: v.Environment}
}
