package processes

import (
	"fmt"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// holding brings one instance from wanted to verified and from unwanted to
// removed: it has the region's pools reserve what stands for the region-bound
// resources, then orders the copy, then tells the instance what the region
// reported. It waits where a pool is empty and goes on when there is stock.
type holding struct {
	Account  events.AccountID  `json:"account"`
	Region   events.RegionID   `json:"region"`
	Instance events.InstanceID `json:"instance"`
	Wanted   events.CopyWanted `json:"wanted"`
	Round    int               `json:"round"` // how often it was wanted; ids of a later round differ
	Attempt  int               `json:"attempt"`

	Reserved map[string][]events.Lease `json:"reserved"`          // by resource type
	Waiting  []string                  `json:"waiting,omitempty"` // types whose pool had nothing
	Mapped   bool                      `json:"mapped,omitempty"`
	Copy     events.WorkID             `json:"copy,omitempty"` // the copy that is under way
	Removing bool                      `json:"removing,omitempty"`
	Remove   events.WorkID             `json:"remove,omitempty"`
	Removed  bool                      `json:"removed,omitempty"`
}

// reservationTime is how long a reservation stands without the map that uses it.
const reservationTime = time.Hour

func holdingKeys(r events.Record, index func(string) []string) []string {
	switch e := r.Event.(type) {
	case events.InstanceEvent:
		return []string{r.Aggregate.ID}
	case events.LeasesReserved:
		if e.Owner.Instance != "" && e.Owner.Environment == "" {
			return []string{string(e.Owner.Instance)}
		}
	case events.RangeAdded, events.LeasesReleased:
		return index(waitingFor(r.Aggregate.Region, r.Aggregate.ID))
	case events.WorkEvent:
		return index("work/" + r.Aggregate.ID)
	}
	return nil
}

func waitingFor(region events.RegionID, resourceType string) string {
	return fmt.Sprintf("waiting/%s/%s", region, resourceType)
}

func (h *holding) Index() []string {
	var out []string
	for _, w := range []events.WorkID{h.Copy, h.Remove} {
		if w != "" {
			out = append(out, "work/"+string(w))
		}
	}
	for _, t := range h.Waiting {
		out = append(out, waitingFor(h.Region, t))
	}
	return out
}

func (h *holding) Over() bool { return h.Removed }

func (h *holding) React(r events.Record) []Send {
	switch e := r.Event.(type) {
	case events.CopyWanted:
		*h = holding{Account: r.Aggregate.Account, Region: r.Aggregate.Region, Instance: events.InstanceID(r.Aggregate.ID),
			Wanted: e, Round: int(r.Revision), Reserved: map[string][]events.Lease{}}
		return h.reserve(r.Time)
	case events.LeasesReserved:
		if h.Removing || h.Mapped {
			return nil
		}
		h.Reserved[r.Aggregate.ID] = append(slices.Clone(e.Leases), e.Inherited...)
		h.Waiting = slices.DeleteFunc(h.Waiting, func(t string) bool { return t == r.Aggregate.ID })
		return h.mapWhenComplete()
	case events.RangeAdded, events.LeasesReleased:
		return h.reserve(r.Time)
	case events.ResourcesMapped:
		h.Mapped = true
		return h.orderCopy()
	case events.CopyRetried:
		h.Attempt = e.Attempt
		if !h.Mapped {
			return h.reserve(r.Time)
		}
		return h.orderCopy()
	case events.CopyDamaged:
		h.Attempt++
		return h.orderCopy()
	case events.RemovalWanted:
		h.Removing, h.Waiting = true, nil
		if h.Copy != "" {
			return []Send{send(h.Account, h.step("undo copy"), work.OrderUndo{Ref: h.work(h.Copy),
				Why: events.Cause{Code: "not-wanted", Text: "the copy is no longer wanted"}})}
		}
		return h.orderRemove()
	case events.CopyRemoved:
		h.Removed = true
	case events.WorkEvent:
		return h.onWork(r, e)
	}
	return nil
}

func (h *holding) onWork(r events.Record, e events.WorkEvent) []Send {
	if r.Aggregate.ID == string(h.Remove) {
		switch e.(type) {
		case events.WorkDone, events.WorkWrittenOff:
			_, lost := e.(events.WorkWrittenOff)
			return append(h.release("removed"), send(h.Account, h.step("removed"), instance.ReportRemoved{Ref: h.ref(), Lost: lost}))
		}
		return nil
	}
	switch e := e.(type) {
	case events.WorkDone:
		if h.Removing {
			return nil // the undo that was ordered will say when nothing is left
		}
		h.Copy = ""
		return []Send{send(h.Account, h.step("verified"), instance.ReportVerified{Ref: h.ref(), Manifest: h.Wanted.Manifest,
			Location: e.Result.Location, Received: e.Result.Received, Stored: e.Result.Stored})}
	case events.WorkFailed:
		if h.Removing {
			return nil
		}
		h.Copy = ""
		return []Send{send(h.Account, h.step("failed"), instance.ReportFailed{Ref: h.ref(), Cause: e.Cause})}
	case events.WorkWrittenOff:
		h.Copy = ""
		if h.Removing {
			return append(h.release("lost"), send(h.Account, h.step("removed"), instance.ReportRemoved{Ref: h.ref(), Lost: true}))
		}
		return []Send{send(h.Account, h.step("failed"), instance.ReportFailed{Ref: h.ref(), Cause: e.Why})}
	case events.WorkUndone:
		h.Copy = ""
		return h.orderRemove()
	}
	return nil
}

// reserve asks every pool that has not answered yet.
func (h *holding) reserve(now time.Time) []Send {
	if h.Removing || h.Mapped {
		return nil
	}
	var out []Send
	for _, t := range h.types() {
		if _, have := h.Reserved[t]; have {
			continue
		}
		step := h.step("reserve " + t)
		cmd := pool.Reserve{Region: h.Region, Type: events.PoolID(t), Command: events.CommandID(string(h.Instance) + "/" + step),
			Owner: h.owner(), Choices: map[string]string{}, Until: now.Add(reservationTime)}
		if h.Wanted.Inherits != "" {
			cmd.InheritFrom = h.Wanted.Inherits
		}
		for _, res := range h.Wanted.Resources {
			if res.Type == t && res.LeansOn == "" {
				cmd.Resources = append(cmd.Resources, res.ID)
			}
		}
		for _, c := range h.Wanted.Choices {
			if c.Region == h.Region && slices.Contains(cmd.Resources, c.Resource) {
				cmd.Choices[c.Resource] = c.Value
			}
		}
		out = append(out, send(h.Account, step, cmd))
	}
	if len(out) == 0 {
		return h.mapWhenComplete()
	}
	return out
}

// types lists the resource types that pools must give; what leans on another
// resource follows that one.
func (h *holding) types() []string {
	var out []string
	for _, r := range h.Wanted.Resources {
		if r.LeansOn == "" && !slices.Contains(out, r.Type) {
			out = append(out, r.Type)
		}
	}
	return out
}

func (h *holding) mapWhenComplete() []Send {
	if len(h.Reserved) < len(h.types()) {
		return nil
	}
	out := []Send{send(h.Account, h.step("map"), instance.RecordMap{Ref: h.ref(), Map: substitutions(h.Wanted.Resources, h.Reserved)})}
	for _, t := range h.types() {
		out = append(out, send(h.Account, h.step("confirm "+t), pool.Confirm{Region: h.Region, Type: events.PoolID(t), Owner: h.owner()}))
	}
	return out
}

func (h *holding) orderCopy() []Send {
	if h.Removing || h.Copy != "" {
		return nil
	}
	step := h.step("copy")
	h.Copy = events.WorkID(events.DeriveID(h.Account, events.CommandID(h.Instance), step))
	return []Send{send(h.Account, step, work.Order{Ref: h.work(h.Copy), WorkOrdered: events.WorkOrdered{
		Kind: events.WorkCopy, Operation: h.Wanted.Operation, Order: h.order()}})}
}

func (h *holding) orderRemove() []Send {
	step := h.step("remove")
	h.Remove = events.WorkID(events.DeriveID(h.Account, events.CommandID(h.Instance), step))
	return []Send{send(h.Account, step, work.Order{Ref: h.work(h.Remove), WorkOrdered: events.WorkOrdered{
		Kind: events.WorkRemove, Operation: h.Wanted.Operation, Order: h.order()}})}
}

func (h *holding) order() events.Order {
	return events.Order{Template: h.Wanted.Template, Version: h.Wanted.Version, Instance: h.Instance, Manifest: h.Wanted.Manifest}
}

func (h *holding) release(why string) []Send {
	var out []Send
	for _, t := range h.types() {
		out = append(out, send(h.Account, h.step("release "+t), pool.Release{Region: h.Region, Type: events.PoolID(t), Owner: h.owner(), Why: why}))
	}
	return out
}

func (h *holding) Refused(s Send, why *aggregates.Refusal) []Send {
	for _, t := range h.types() {
		if s.Step != h.step("reserve "+t) {
			continue
		}
		if !slices.Contains(h.Waiting, t) {
			h.Waiting = append(h.Waiting, t)
		}
		return []Send{send(h.Account, h.step("waiting "+why.Code), instance.ReportWaiting{Ref: h.ref(), Cause: why.Cause()})}
	}
	return nil // the instance knows better: what was sent has become pointless
}

func (h *holding) step(what string) string {
	return fmt.Sprintf("%d/%d/%s", h.Round, h.Attempt, what)
}
func (h *holding) ref() instance.Ref              { return instance.Ref{Region: h.Region, Instance: h.Instance} }
func (h *holding) work(id events.WorkID) work.Ref { return work.Ref{Region: h.Region, Work: id} }
func (h *holding) owner() events.Owner            { return events.Owner{Account: h.Account, Instance: h.Instance} }

// substitutions gives the map: each resource that a pool serves has its lease's
// value, and what leans on one carries that one's new value in place of its old.
func substitutions(resources []events.ResourceRef, reserved map[string][]events.Lease) []events.Substitution {
	leases := map[string]events.Lease{}
	for _, ls := range reserved {
		for _, l := range ls {
			leases[l.Resource] = l
		}
	}
	var out []events.Substitution
	for _, r := range resources {
		if r.LeansOn != "" {
			out = append(out, events.Substitution{Resource: r.ID, Type: r.Type, From: r.Value, To: leases[r.LeansOn].Value, Chosen: events.Follows})
			continue
		}
		l := leases[r.ID]
		out = append(out, events.Substitution{Resource: r.ID, Type: r.Type, From: r.Value, To: l.Value, Chosen: l.Chosen, Lease: l.ID})
	}
	return out
}
