package processes

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// effort is an operation on a template that has not ended for good: a creation,
// a replacement, a rollback (each about one version in all regions), or a change
// of regions (about the active version in some). It ends when nothing more will
// happen by itself; where regions failed it stays, because a retry may turn
// "partly" into "all".
type effort struct {
	Operation events.OperationID `json:"operation"`
	Version   int                `json:"version,omitempty"` // 0: the active one
	Creation  bool               `json:"creation,omitempty"`
	Queued    bool               `json:"queued,omitempty"`
	Add       []events.RegionID  `json:"add,omitempty"`
	Remove    []events.RegionID  `json:"remove,omitempty"`
	Cancelled bool               `json:"cancelled,omitempty"`
	Outcome   events.Outcome     `json:"outcome,omitempty"` // decided; it waits until nothing is left of it
	Cause     *events.Cause      `json:"cause,omitempty"`
	Said      events.Outcome     `json:"said,omitempty"` // since the last retry
}

var overtaken = events.Cause{Code: "overtaken", Text: "what it had not done yet is not wanted any more"}

var cancelled = events.Cause{Code: "cancelled", Text: "its cancellation was asked for"}

// outcomeOf is how something ends that was given up for this reason.
func outcomeOf(why events.Cause) events.Outcome {
	if why.Code == cancelled.Code || why.Code == "template-deleted" || why.Code == "environment-deleted" {
		return events.Cancelled
	}
	return events.RolledBack
}

// begin adds an effort, or tells more of one that is known.
func (p *placing) begin(e effort) {
	known := p.effort(e.Operation)
	switch {
	case known == nil:
		p.Efforts = append(p.Efforts, e)
	case e.Version != 0:
		known.Version, known.Queued = e.Version, false
	default: // its own cancellation
		known.Remove = append(known.Remove, e.Remove...)
	}
}

func (p *placing) effort(op events.OperationID) *effort {
	for i := range p.Efforts {
		if p.Efforts[i].Operation == op {
			return &p.Efforts[i]
		}
	}
	return nil
}

// operationOf is the operation on whose behalf the region holds the version.
func (p *placing) operationOf(v *placedVersion, region events.RegionID) events.OperationID {
	for _, e := range slices.Backward(p.Efforts) {
		if !e.Cancelled && slices.Contains(e.Add, region) {
			return e.Operation
		}
	}
	return v.Operation
}

// conclude decides how the operation of a version ends that will not go on.
func (p *placing) conclude(v *placedVersion, outcome events.Outcome, why *events.Cause) {
	for i := range p.Efforts {
		e := &p.Efforts[i]
		switch {
		case e.Version != v.Version || e.Outcome != "":
		case e.Cancelled:
			e.Outcome, e.Cause = events.Cancelled, &cancelled
		default:
			e.Outcome, e.Cause = outcome, why
		}
	}
}

// concludeAll decides it for all that is under way; what only waits in the queue
// ends at once.
func (p *placing) concludeAll(why events.Cause) []Send {
	var out []Send
	p.Efforts = slices.DeleteFunc(p.Efforts, func(e effort) bool {
		if e.Queued {
			out = append(out, p.finish(e.Operation, outcomeOf(why), &why))
		}
		return e.Queued
	})
	for i := range p.Efforts {
		if e := &p.Efforts[i]; e.Outcome == "" {
			e.Outcome, e.Cause = outcomeOf(why), &why
		}
	}
	return out
}

// drop ends an effort that has not begun.
func (p *placing) drop(op events.OperationID, why events.Cause) []Send {
	if p.effort(op) == nil {
		return nil
	}
	p.Efforts = slices.DeleteFunc(p.Efforts, func(e effort) bool { return e.Operation == op })
	return []Send{p.finish(op, outcomeOf(why), &why)}
}

// ended finishes every operation that has nothing left to wait for, and the
// template once nothing of it is left.
func (p *placing) ended() []Send {
	var out []Send
	left := false
	for i := range p.Versions {
		v := &p.Versions[i]
		out = append(out, p.returnLent(v)...)
		left = left || len(v.Held) > 0 || v.Save != ""
	}
	p.Efforts = slices.DeleteFunc(p.Efforts, func(e effort) bool { return e.Outcome != "" && p.finishDecided(e, left, &out) })
	if p.Deleting != "" {
		if !left {
			out = append(out, send(p.Account, "deleted", template.RecordDeleted{Template: p.Template}))
		}
		return out
	}
	p.Efforts = slices.DeleteFunc(p.Efforts, func(e effort) bool { return e.Outcome == "" && !e.Queued && p.over(&e, &out) })
	for i := range p.Efforts {
		e := &p.Efforts[i]
		if s, ok := p.stands(e); ok && s == events.Partly && e.Said != s {
			e.Said = s
			out = append(out, p.finish(e.Operation, s, &events.Cause{Code: "regions-failed", Text: "some regions did not get it; each says why", Next: "operation retry"}))
		}
	}
	return out
}

// finishDecided finishes an effort whose outcome is decided once what it had
// brought about is gone.
func (p *placing) finishDecided(e effort, left bool, out *[]Send) bool {
	v := p.version(e.Version)
	if v != nil && (len(v.Held) > 0 || v.Save != "") || e.Version == 0 && left {
		return false
	}
	if e.Said != e.Outcome {
		*out = append(*out, p.finish(e.Operation, e.Outcome, e.Cause))
	}
	return true
}

// over finishes an effort that came to its end without failures.
func (p *placing) over(e *effort, out *[]Send) bool {
	s, ok := p.stands(e)
	if !ok || s == events.Partly {
		return false
	}
	var why *events.Cause
	switch {
	case s == events.Cancelled && e.Cancelled:
		why = &cancelled
	case s == events.Cancelled:
		why = &overtaken
	}
	*out = append(*out, p.finish(e.Operation, s, why))
	return true
}

// stands says how an effort stands once nothing more will happen by itself.
func (p *placing) stands(e *effort) (events.Outcome, bool) {
	if e.Queued || e.Outcome != "" {
		return "", false
	}
	for _, region := range e.Remove {
		for _, v := range p.Versions {
			if v.Held[region] == leaving || v.Lender == region && v.Held[region] != "" {
				return "", false
			}
		}
	}
	v := p.version(cmp.Or(e.Version, p.Active))
	if v == nil || v.Manifest == "" {
		return "", false
	}
	if e.Cancelled {
		return events.Cancelled, !slices.ContainsFunc(e.Remove, func(r events.RegionID) bool {
			return slices.Contains(p.Regions, r) && v.Held[r] != verified && v.Held[r] != failed
		})
	}
	regions := e.Add
	if len(e.Add) > 0 && !slices.ContainsFunc(e.Add, func(r events.RegionID) bool { return slices.Contains(p.Regions, r) }) {
		return events.Cancelled, true
	}
	switch {
	case e.Version != 0 && (v.Version == p.Active || v.Version == p.Staged):
		regions = p.Regions
	case e.Version != 0:
		regions = slices.Collect(maps.Keys(v.Held)) // another has the reference; no region gets this one any more
	}
	source := v.Held[v.Source.Region]
	missing, failures := false, e.Version != 0 && source == failed
	for _, region := range regions {
		if !slices.Contains(p.Regions, region) {
			continue
		}
		switch v.Held[region] {
		case wanted, leaving:
			return "", false
		case failed:
			failures = true
		case "":
			missing = true
		}
	}
	switch {
	case e.Version != 0 && source == wanted:
		return "", false
	case failures:
		return events.Partly, true
	case missing || v.Version == p.Staged:
		return "", false
	}
	return events.Succeeded, true
}

func (p *placing) finish(op events.OperationID, outcome events.Outcome, why *events.Cause) Send {
	return send(p.Account, fmt.Sprintf("finish %s: %s", op, outcome), operation.Finish{Operation: op, Outcome: outcome, Cause: why}).of(op)
}

// onCancel has what is not finished undone. A replacement that has taken the
// reference is not taken back: that is what rolling back is for.
func (p *placing) onCancel(op events.OperationID) []Send {
	e := p.effort(op)
	switch {
	case e == nil || e.Outcome != "" || p.Deleting != "":
		return nil
	case e.Queued:
		return []Send{send(p.Account, "unqueue", template.Unqueue{Template: p.Template, Operation: op, Cause: cancelled})}
	case e.Version != 0 && e.Version == p.Staged:
		return p.abandon(p.version(e.Version), cancelled)
	case e.Version != 0 && !e.Creation:
		return nil
	}
	e.Cancelled = true
	c := template.SetRegions{Template: p.Template, Operation: op}
	v := p.version(cmp.Or(e.Version, p.Active))
	for _, region := range p.Regions {
		if (e.Creation || slices.Contains(e.Add, region)) && (v == nil || v.Held[region] != verified) {
			c.Remove = append(c.Remove, region)
		}
	}
	for _, region := range e.Remove {
		if v != nil && v.Held[region] == leaving && !slices.Contains(p.Regions, region) {
			c.Add = append(c.Add, region)
		}
	}
	e.Remove = c.Remove
	if len(c.Add)+len(c.Remove) == 0 {
		return p.ended()
	}
	return []Send{send(p.Account, "cancel", c)}
}

// onRetry has what failed or waits tried again.
func (p *placing) onRetry(op events.OperationID, asked events.RetryAsked) []Send {
	e := p.effort(op)
	var out []Send
	for _, v := range p.Versions {
		if v.Stuck && (op == p.Deleting || e != nil && e.Version == v.Version) {
			out = append(out, send(p.Account, fmt.Sprintf("retry save %d", v.Version), work.Retry{Ref: work.Ref{Region: v.Source.Region, Work: v.Save}}))
		}
	}
	if e == nil || e.Outcome != "" {
		return out
	}
	e.Said = ""
	v := p.version(cmp.Or(e.Version, p.Active))
	if v == nil || e.Cancelled {
		return append(out, p.ended()...)
	}
	for _, region := range slices.Sorted(maps.Keys(v.Held)) {
		state := v.Held[region]
		if state != failed && state != wanted || asked.Region != "" && asked.Region != region || e.Version == 0 && !slices.Contains(e.Add, region) {
			continue
		}
		v.Held[region] = wanted
		out = append(out, send(p.Account, fmt.Sprintf("retry %d in %s", v.Version, region), instance.Retry{Ref: p.ref(v.Version, region), Operation: op}))
	}
	return append(out, p.ended()...)
}
