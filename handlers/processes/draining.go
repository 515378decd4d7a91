package processes

import (
	"fmt"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// draining counts what one region holds, says when a drain or the loss of the
// region has ended, and sends away what arrives after it began. What was there
// before is the business of evicting.
type draining struct {
	Region     events.RegionID      `json:"region"`
	Held       int                  `json:"held"` // instances and environments
	Draining   bool                 `json:"draining,omitempty"`
	Lost       bool                 `json:"lost,omitempty"`
	Operation  events.OperationID   `json:"operation,omitempty"`  // what arrives late is sent away for
	Unfinished []events.OperationID `json:"unfinished,omitempty"` // end when nothing is held
}

func drainingKeys(r events.Record, _ func(string) []string) []string {
	switch r.Event.(type) {
	case events.RegionDraining, events.RegionRetired, events.CopyWanted, events.CopyRemoved,
		events.EnvironmentDeclared, events.EnvironmentDeleted,
		events.WorkOrdered, events.WorkUndoOrdered, events.WorkRetried:
		return []string{string(r.Aggregate.Region)}
	}
	return nil
}

func (d *draining) Index() []string { return nil }

func (d *draining) Over() bool { return d.Held == 0 && !d.Draining && !d.Lost }

func (d *draining) React(r events.Record) []Send {
	d.Region = r.Aggregate.Region
	switch e := r.Event.(type) {
	case events.RegionDraining:
		d.Draining, d.Operation = true, e.Operation
		d.Unfinished = append(d.Unfinished, e.Operation)
		return d.ended()
	case events.RegionRetired:
		d.Draining, d.Lost, d.Operation = true, d.Lost || e.Lost, e.Operation
		d.Unfinished = append(d.Unfinished, e.Operation)
		return d.ended()
	case events.CopyWanted:
		d.Held++
		if d.Draining {
			return evictCopy(r, e, d.Operation)
		}
	case events.EnvironmentDeclared:
		d.Held++
		if d.Lost {
			return []Send{send(r.Aggregate.Account, "delete", environment.Delete{
				Ref: environment.Ref{Region: d.Region, Environment: events.EnvironmentID(r.Aggregate.ID)}, Operation: derived(d.Operation, r.Aggregate)})}
		}
	case events.CopyRemoved, events.EnvironmentDeleted:
		d.Held--
		return d.ended()
	case events.WorkEvent:
		if d.Lost && closes(r) {
			return []Send{writeOff(r.Aggregate)}
		}
	}
	return nil
}

func (d *draining) ended() []Send {
	if d.Held > 0 {
		return nil
	}
	var out []Send
	for _, op := range d.Unfinished {
		out = append(out, send(events.None, fmt.Sprintf("finish %s", op), operation.Finish{Operation: op, Outcome: events.Succeeded}).of(op))
	}
	d.Unfinished = nil
	return out
}

// Refused: what arrived late and cannot leave is said by the count that stays.
func (d *draining) Refused(Send, *aggregates.Refusal) []Send { return nil }

// derived is the operation in the account of something that the region's
// operation brings about there.
func derived(op events.OperationID, a events.Aggregate) events.OperationID {
	return events.OperationID(events.DeriveID(a.Account, events.CommandID(op), string(a.Kind)+" "+a.ID))
}

var regionLost = events.Cause{Code: "region-lost", Text: "its region was retired as lost"}

func writeOff(a events.Aggregate) Send {
	return send(a.Account, "write off", work.WriteOff{Ref: work.Ref{Region: a.Region, Work: events.WorkID(a.ID)}, Why: regionLost})
}
