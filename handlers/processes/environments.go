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
// made to hold first), then its network is made. Once it is created, its
// machines are brought to the power states that it declares; one that they
// cannot be brought to ends the operation, and the environment stays.
type environments struct {
	Account     events.AccountID           `json:"account"`
	Region      events.RegionID            `json:"region"`
	Environment events.EnvironmentID       `json:"environment"`
	Declared    events.EnvironmentDeclared `json:"declared"`

	Bound    map[string][]events.Lease `json:"bound"` // by resource type
	Copying  bool                      `json:"copying,omitempty"`
	Mapped   bool                      `json:"mapped,omitempty"`
	Work     events.WorkID             `json:"work,omitempty"`    // receive or clone, until it is undone
	Content  events.Digest             `json:"content,omitempty"` // its graph with the disks' digests, once there are
	Connect  events.WorkID             `json:"connect,omitempty"` // until it is undone
	Made     bool                      `json:"made,omitempty"`
	Power    events.WorkID             `json:"power,omitempty"` // of its making, until it is done
	Failed   *events.Cause             `json:"failed,omitempty"`
	Said     bool                      `json:"said,omitempty"` // how its making ended
	Deleting events.OperationID        `json:"deleting,omitempty"`
	Discard  events.WorkID             `json:"discard,omitempty"`
	Stuck    events.WorkID             `json:"stuck,omitempty"` // an order that takes it away and did not work, or the one to start its machines
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
	for _, w := range []events.WorkID{v.Work, v.Connect, v.Power, v.Discard} {
		if w != "" {
			out = append(out, "work/"+string(w))
		}
	}
	if v.Copying {
		out = append(out, "instance/"+string(v.Declared.Origin.Instance))
	}
	if !v.Made || v.Power != "" {
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
		v.Made = true
		return v.power(e)
	case events.EnvironmentFailed:
		v.Failed = &e.Cause
		return v.undo(e.Cause)
	case events.EnvironmentDeletionAccepted:
		return v.onDeletion(e)
	case events.EnvironmentDeleted:
		v.Gone = true
		return []Send{v.finish(v.Deleting, events.Succeeded, nil)}
	case events.CancelAsked:
		if v.Power != "" {
			return []Send{send(v.Account, "undo power", work.OrderUndo{Ref: v.work(v.Power), Why: cancelled})}
		}
		return v.fail(cancelled)
	case events.RetryAsked:
		if v.Stuck == "" {
			return nil
		}
		v.Said = v.Said && v.Stuck != v.Power // it has not ended, once it is tried again
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

// connect has the network made, where there is one, before anybody is told that
// the environment is there.
func (v *environments) connect() []Send {
	if v.Declared.Networks == 0 {
		return v.created()
	}
	v.Connect = events.WorkID(events.DeriveID(v.Account, events.CommandID(v.Environment), "connect"))
	return []Send{send(v.Account, "connect", work.Order{Ref: v.work(v.Connect), WorkOrdered: events.WorkOrdered{Kind: events.WorkConnect,
		Order: events.Order{Environment: v.Environment, Graph: v.Content}, Operation: v.Declared.Operation}})}
}

func (v *environments) created() []Send {
	return []Send{send(v.Account, "created", environment.RecordCreated{Ref: v.ref(), Graph: v.Content})}
}

// power brings the machines to the states that are declared for them.
func (v *environments) power(e events.EnvironmentCreated) []Send {
	if v.Declared.Machines == 0 {
		v.Said = true
		return []Send{v.finish(v.Declared.Operation, events.Succeeded, nil)}
	}
	v.Power = events.WorkID(events.DeriveID(v.Account, events.CommandID(v.Environment), "power"))
	return []Send{guard(v.Account, environment.StillUsable{Ref: v.ref()}),
		send(v.Account, "power", work.Order{Ref: v.work(v.Power), WorkOrdered: events.WorkOrdered{Kind: events.WorkPower,
			Order: events.Order{Environment: v.Environment, Graph: e.Graph}, Operation: v.Declared.Operation}})}
}

// onPower says how the making of the environment ended, with its machines.
func (v *environments) onPower(id events.WorkID, e events.WorkEvent) []Send {
	if v.Deleting != "" {
		return nil
	}
	end := func(outcome events.Outcome, why *events.Cause) []Send {
		v.Said = true
		return []Send{v.finish(v.Declared.Operation, outcome, why)}
	}
	switch e := e.(type) {
	case events.WorkDone:
		v.Power, v.Stuck = "", ""
		return end(events.Succeeded, nil)
	case events.WorkFailed:
		v.Stuck = id
		return end(events.LeftBehind, &e.Cause)
	case events.WorkStuck:
		v.Stuck = id
		return end(events.LeftBehind, &e.Cause)
	case events.WorkUndone:
		v.Power, v.Stuck = "", ""
		return end(events.Cancelled, &cancelled)
	case events.WorkWrittenOff:
		v.Power, v.Stuck = "", ""
		return end(outcomeOf(e.Why), &e.Why)
	case events.WorkRetried:
		v.Stuck, v.Said = "", false
	}
	return nil
}

func (v *environments) onWork(r events.Record, e events.WorkEvent) []Send {
	id := events.WorkID(r.Aggregate.ID)
	if id == v.Power {
		return v.onPower(id, e)
	}
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
		if id == v.Connect {
			return v.created()
		}
		v.Content = e.Result.Graph
		return v.connect()
	case events.WorkFailed:
		return v.fail(e.Cause)
	case events.WorkUndone:
		v.Stuck = ""
		v.over(id)
		return v.undo(v.why())
	case events.WorkWrittenOff:
		v.over(id)
		if v.Failed == nil && v.Deleting == "" {
			return v.fail(e.Why)
		}
		return v.undo(v.why())
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

// undo takes back whatever there is of an environment that will not come to be,
// what was made last first.
func (v *environments) undo(why events.Cause) []Send {
	v.Copying = false
	switch {
	case v.Connect != "":
		return []Send{send(v.Account, "undo connect", work.OrderUndo{Ref: v.work(v.Connect), Why: why})}
	case v.Work != "":
		return []Send{send(v.Account, "undo", work.OrderUndo{Ref: v.work(v.Work), Why: why})}
	}
	return v.gone()
}

// over says that nothing is left of an order's effect.
func (v *environments) over(id events.WorkID) {
	if id == v.Connect {
		v.Connect = ""
	} else {
		v.Work = ""
	}
}

// why is the reason for which it does not come to be.
func (v *environments) why() events.Cause {
	if v.Failed != nil {
		return *v.Failed
	}
	return deletedMeanwhile
}

func (v *environments) onDeletion(e events.EnvironmentDeletionAccepted) []Send {
	v.Deleting, v.Copying = e.Operation, false
	out := []Send{send(v.Account, "release name", name.Release{Region: v.Region, Name: v.Declared.Name, Owner: string(v.Environment)})}
	switch {
	case v.Made:
		return append(append(out, v.dropPower()...), v.discard()...)
	case v.Failed != nil && (v.Work != "" || v.Connect != ""):
		return out // its undo is under way and will say when nothing is left
	default:
		return append(out, v.undo(deletedMeanwhile)...)
	}
}

// dropPower stops what is still bringing its machines up.
func (v *environments) dropPower() []Send {
	if v.Power == "" {
		return nil
	}
	why := events.Cause{Code: "environment-deleted", Text: "the environment was deleted before its machines had started"}
	out := []Send{send(v.Account, "undo power", work.OrderUndo{Ref: v.work(v.Power), Why: why})}
	if !v.Said {
		out = append(out, v.finish(v.Declared.Operation, events.Cancelled, &why))
	}
	v.Power, v.Stuck, v.Said = "", "", true
	return out
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
		why := v.why()
		out = append(out, v.finish(v.Declared.Operation, outcomeOf(why), &why))
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
