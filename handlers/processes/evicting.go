package processes

import (
	"fmt"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
)

// evicting looks after one thing in a region (an instance, an environment, an
// open work order) and sends it away when the region drains or is lost: a
// template is no longer wanted there, a cached copy is removed, and with a lost
// region environments are deleted and open work is written off. What cannot
// leave by itself (a last copy, an environment) is said in the operation, which
// then ends "partly" until somebody acts.
type evicting struct {
	Aggregate events.Aggregate   `json:"aggregate"`
	Wanted    *events.CopyWanted `json:"wanted,omitempty"` // of an instance
	Left      events.OperationID `json:"left,omitempty"`   // the region's operation that it stood against
	Closes    bool               `json:"closes,omitempty"` // of a work order: nothing but its own end will close it
	Lost      bool               `json:"lost,omitempty"`
	Away      bool               `json:"away,omitempty"`
}

func evictingKeys(r events.Record, index func(string) []string) []string {
	switch r.Event.(type) {
	case events.RegionDraining, events.RegionRetired:
		return index("in/" + string(r.Aggregate.Region))
	case events.CopyWanted, events.CopyKept, events.CopyRemoved,
		events.EnvironmentDeclared, events.EnvironmentDeleted,
		events.WorkOrdered, events.WorkRetried, events.WorkUndoOrdered, events.WorkDone, events.WorkFailed, events.WorkUndone, events.WorkWrittenOff:
		return []string{r.Aggregate.Subject()}
	case events.RetryAsked:
		return index("operation/" + r.Aggregate.ID)
	}
	return nil
}

func (v *evicting) Index() []string {
	out := []string{"in/" + string(v.Aggregate.Region)}
	if v.Left != "" {
		out = append(out, "operation/"+string(v.Left))
	}
	return out
}

func (v *evicting) Over() bool { return v.Away || v.Aggregate.ID == "" }

func (v *evicting) React(r events.Record) []Send {
	switch e := r.Event.(type) {
	case events.CopyWanted:
		*v = evicting{Aggregate: r.Aggregate, Wanted: &events.CopyWanted{Template: e.Template, Version: e.Version, Cached: e.Cached}}
	case events.CopyKept:
		if v.Wanted != nil {
			v.Wanted.Cached = false
		}
	case events.EnvironmentDeclared:
		*v = evicting{Aggregate: r.Aggregate}
	case events.WorkEvent:
		*v = evicting{Aggregate: r.Aggregate, Closes: closes(r), Away: !open(r)}
	case events.CopyRemoved, events.EnvironmentDeleted:
		v.Away = true
	case events.RegionDraining:
		return v.evict(e.Operation)
	case events.RegionRetired:
		v.Lost = v.Lost || e.Lost
		return v.evict(e.Operation)
	case events.RetryAsked:
		return v.evict(v.Left)
	}
	return nil
}

func (v *evicting) evict(op events.OperationID) []Send {
	v.Left = op
	a := v.Aggregate
	switch {
	case a.Kind == events.KindInstance:
		return evictCopy(events.Record{Aggregate: a}, *v.Wanted, op)
	case a.Kind == events.KindWork && v.Lost && v.Closes:
		return []Send{writeOff(a)}
	case a.Kind == events.KindEnvironment && v.Lost:
		return []Send{send(a.Account, "delete", environment.Delete{
			Ref: environment.Ref{Region: a.Region, Environment: events.EnvironmentID(a.ID)}, Operation: derived(op, a)})}
	case a.Kind == events.KindEnvironment:
		return v.stays(events.Cause{Code: "environment-left", Text: fmt.Sprintf("environment %s is in %s", a.ID, a.Region), Next: "delete it, or save it as a template elsewhere first"})
	}
	return nil
}

// open says whether the order is open after the event.
func open(r events.Record) bool {
	switch r.Event.(type) {
	case events.WorkOrdered, events.WorkRetried, events.WorkUndoOrdered:
		return true
	}
	return false
}

// closes says whether an order must be written off with its region. One that
// makes what the region is to hold is undone first, with that which wanted it,
// and its undo is written off.
func closes(r events.Record) bool {
	e, ordered := r.Event.(events.WorkOrdered)
	return !ordered || e.Kind != events.WorkCopy && e.Kind != events.WorkReceive && e.Kind != events.WorkClone && e.Kind != events.WorkConnect
}

// evictCopy has a copy leave a region.
func evictCopy(r events.Record, w events.CopyWanted, op events.OperationID) []Send {
	a := r.Aggregate
	if w.Cached {
		return []Send{send(a.Account, "remove", instance.WantRemoval{Ref: instance.Ref{Region: a.Region, Instance: events.InstanceID(a.ID)}, Operation: derived(op, a)})}
	}
	return []Send{send(a.Account, "not here", template.SetRegions{Template: w.Template, Remove: []events.RegionID{a.Region},
		Operation: derived(op, template.Of(a.Account, w.Template))})}
}

// stays says in the region's operation what could not leave.
func (v *evicting) stays(why events.Cause) []Send {
	return []Send{send(events.None, "stays", operation.Finish{Operation: v.Left, Outcome: events.Partly, Cause: &why}).of(v.Left)}
}

// Refused: a template has to be somewhere. With a lost region its last copy is
// lost, and so is the template; otherwise somebody has to decide.
func (v *evicting) Refused(s Send, why *aggregates.Refusal) []Send {
	switch {
	case s.Step == "not here" && why.Code == "would-delete" && v.Lost:
		return []Send{send(v.Aggregate.Account, "delete the lost", template.Delete{Template: v.Wanted.Template, Operation: derived(v.Left, template.Of(v.Aggregate.Account, v.Wanted.Template))})}
	case s.Step == "not here" && why.Code == "would-delete":
		return v.stays(events.Cause{Code: "last-copy", Text: fmt.Sprintf("template %s is nowhere but in %s", v.Wanted.Template, v.Aggregate.Region), Next: "add a region to it, or delete it; then retry the operation"})
	case s.Step == "delete the lost":
		return v.stays(why.Cause())
	}
	return nil
}
