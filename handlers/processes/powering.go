package processes

import (
	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// powering carries one wish for an environment that is there to its region, and
// what came of it to the operation: machines are to be in another power state
// (somebody said so, or the restart policy), or its edge is to let other things
// through. It keeps an operation that failed, because a retry may do better.
type powering struct {
	Account     events.AccountID     `json:"account"`
	Region      events.RegionID      `json:"region"`
	Environment events.EnvironmentID `json:"environment"`
	Operation   events.OperationID   `json:"operation"`

	Work  events.WorkID `json:"work"`
	Stuck bool          `json:"stuck,omitempty"` // failed, or its undo did not work
	Ended bool          `json:"ended,omitempty"`
}

func poweringKeys(r events.Record, index func(string) []string) []string {
	switch e := r.Event.(type) {
	case events.PowerSet:
		return []string{string(e.Operation)} // none in those of before machines ran
	case events.MachinesObserved:
		return []string{string(e.Operation)}
	case events.EdgeSet:
		return []string{string(e.Operation)}
	case events.EnvironmentDeletionAccepted:
		return index("environment/" + r.Aggregate.ID)
	case events.WorkEvent:
		return index("work/" + r.Aggregate.ID)
	case events.CancelAsked, events.RetryAsked:
		return index("operation/" + r.Aggregate.ID)
	}
	return nil
}

func (p *powering) Index() []string {
	return []string{"environment/" + string(p.Environment), "work/" + string(p.Work), "operation/" + string(p.Operation)}
}

func (p *powering) Over() bool { return p.Ended || p.Operation == "" }

func (p *powering) React(r events.Record) []Send {
	switch e := r.Event.(type) {
	case events.PowerSet:
		return p.order(r, e.Operation, events.WorkPower, events.Order{Power: wishes(e), Cold: e.Cold, Timeout: e.Timeout})
	case events.MachinesObserved:
		return p.order(r, e.Operation, events.WorkPower, events.Order{Power: restarts(e)})
	case events.EdgeSet:
		return p.order(r, e.Operation, events.WorkConnect, events.Order{})
	}
	if p.Operation == "" {
		return nil
	}
	switch e := r.Event.(type) {
	case events.EnvironmentDeletionAccepted:
		return append([]Send{p.undo(environmentDeleted)}, p.finish(events.Cancelled, &environmentDeleted)...)
	case events.CancelAsked:
		return []Send{p.undo(cancelled)}
	case events.RetryAsked:
		if p.Stuck {
			return []Send{send(p.Account, "retry", work.Retry{Ref: p.work()}).of(p.Operation)}
		}
	case events.WorkDone:
		return p.finish(events.Succeeded, nil)
	case events.WorkFailed:
		return p.failed(e.Cause)
	case events.WorkStuck:
		return p.failed(e.Cause)
	case events.WorkRetried:
		p.Stuck = false
	case events.WorkUndone:
		return p.finish(events.Cancelled, &cancelled)
	case events.WorkWrittenOff:
		return p.finish(outcomeOf(e.Why), &e.Why)
	}
	return nil
}

var environmentDeleted = events.Cause{Code: "environment-deleted", Text: "the environment was deleted"}

// order asks the region, unless the environment is on its way out: then its
// deletion, which is still to come by here, ends the operation.
func (p *powering) order(r events.Record, op events.OperationID, kind events.WorkKind, o events.Order) []Send {
	*p = powering{Account: r.Aggregate.Account, Region: r.Aggregate.Region, Environment: events.EnvironmentID(r.Aggregate.ID), Operation: op}
	p.Work = events.WorkID(events.DeriveID(p.Account, events.CommandID(op), string(kind)))
	o.Environment = p.Environment
	return []Send{guard(p.Account, environment.StillUsable{Ref: environment.Ref{Region: p.Region, Environment: p.Environment}}),
		send(p.Account, "order", work.Order{Ref: p.work(), WorkOrdered: events.WorkOrdered{Kind: kind, Order: o, Operation: op}}).of(op)}
}

// wishes are the power states that were set.
func wishes(e events.PowerSet) []events.MachinePower {
	names := e.Names()
	if len(names) == 0 {
		return []events.MachinePower{{Power: e.Power}}
	}
	var out []events.MachinePower
	for _, m := range names {
		out = append(out, events.MachinePower{Machine: m, Power: e.Power})
	}
	return out
}

// restarts are the machines that the policy has started again.
func restarts(e events.MachinesObserved) []events.MachinePower {
	var out []events.MachinePower
	for _, m := range e.Machines {
		if m.Restart != nil && m.Restart.Allowed {
			out = append(out, events.MachinePower{Machine: m.Machine, Power: "running"})
		}
	}
	return out
}

func (p *powering) undo(why events.Cause) Send {
	return send(p.Account, "undo", work.OrderUndo{Ref: p.work(), Why: why}).of(p.Operation)
}

func (p *powering) failed(why events.Cause) []Send {
	p.Stuck = true
	return []Send{p.end(events.LeftBehind, &why)}
}

func (p *powering) finish(outcome events.Outcome, why *events.Cause) []Send {
	p.Ended = true
	return []Send{p.end(outcome, why)}
}

func (p *powering) end(outcome events.Outcome, why *events.Cause) Send {
	return send(p.Account, "finish", operation.Finish{Operation: p.Operation, Outcome: outcome, Cause: why}).of(p.Operation)
}

// Refused: what was sent has become pointless.
func (p *powering) Refused(Send, *aggregates.Refusal) []Send { return nil }

func (p *powering) work() work.Ref { return work.Ref{Region: p.Region, Work: p.Work} }
