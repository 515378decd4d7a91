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
// reported. It waits where a pool is empty and goes on when there is stock. When
// its version takes the reference, it takes over the leases of the one before.
type holding struct {
	Account  events.AccountID  `json:"account"`
	Region   events.RegionID   `json:"region"`
	Instance events.InstanceID `json:"instance"`
	Wanted   events.CopyWanted `json:"wanted"`

	Missing   []string                  `json:"missing,omitempty"` // types that their pool has not answered for
	Waiting   []string                  `json:"waiting,omitempty"` // those of them whose pool had nothing
	Reserved  map[string][]events.Lease `json:"reserved"`          // by resource type
	Mapped    bool                      `json:"mapped,omitempty"`
	From      events.InstanceID         `json:"from,omitempty"` // whose leases it takes over, being the active one
	Copy      events.WorkID             `json:"copy,omitempty"` // ordered last
	Copying   bool                      `json:"copying,omitempty"`
	Attempt   int                       `json:"attempt,omitempty"` // that the copy is ordered for; 0 in rows of before it was kept
	Removing  bool                      `json:"removing,omitempty"`
	RemovedBy events.OperationID        `json:"removed_by,omitempty"`
	Remove    events.WorkID             `json:"remove,omitempty"`
	Stuck     events.WorkID             `json:"stuck,omitempty"` // an order that takes the copy away and did not work
	Removed   bool                      `json:"removed,omitempty"`

	at uint64 // the event being handled: what it leads to has ids of its own
}

// reservationTime is how long a reservation stands without the map that uses it.
// The instance exists before it, so this only bounds what a control plane that
// never comes back leaves behind.
const reservationTime = 30 * 24 * time.Hour

func holdingKeys(r events.Record, index func(string) []string) []string {
	switch e := r.Event.(type) {
	case events.InstanceEvent:
		return []string{r.Aggregate.ID}
	case events.LeasesReserved:
		return []string{string(e.Owner.Instance)}
	case events.LeasesReleased:
		waiting := index(waitingFor(r.Aggregate.Region, r.Aggregate.ID))
		if e.Why == "expired" {
			waiting = append(waiting, string(e.Owner.Instance))
		}
		return waiting
	case events.RangeAdded, events.LeaseRevoked:
		return index(waitingFor(r.Aggregate.Region, r.Aggregate.ID))
	case events.VersionActivated:
		return index("template/" + r.Aggregate.ID)
	case events.WorkEvent:
		return index("work/" + r.Aggregate.ID)
	case events.RetryAsked:
		return index("operation/" + r.Aggregate.ID)
	}
	return nil
}

func waitingFor(region events.RegionID, resourceType string) string {
	return fmt.Sprintf("waiting/%s/%s", region, resourceType)
}

func (h *holding) Index() []string {
	out := []string{"template/" + string(h.Wanted.Template)}
	for _, w := range []events.WorkID{h.Copy, h.Remove} {
		if w != "" {
			out = append(out, "work/"+string(w))
		}
	}
	for _, t := range h.Waiting {
		out = append(out, waitingFor(h.Region, t))
	}
	if h.Stuck != "" {
		out = append(out, "operation/"+string(h.RemovedBy), "operation/"+string(h.Wanted.Operation))
	}
	return out
}

func (h *holding) Over() bool { return h.Removed || h.Instance == "" }

func (h *holding) React(r events.Record) []Send {
	if e, ok := r.Event.(events.CopyWanted); ok {
		*h = holding{Account: r.Aggregate.Account, Region: r.Aggregate.Region, Instance: events.InstanceID(r.Aggregate.ID),
			Wanted: e, Reserved: map[string][]events.Lease{}, Missing: pooledTypes(e.Resources), Attempt: 1, at: r.Sequence}
		return h.reserve(r.Time)
	}
	if h.Instance == "" {
		return nil // removed; nothing of it is left to look after
	}
	h.at = r.Sequence
	switch e := r.Event.(type) {
	case events.LeasesReserved:
		return h.onReserved(r.Aggregate.ID, e)
	case events.LeasesReleased:
		if e.Owner.Instance == h.Instance { // expired before it was confirmed
			delete(h.Reserved, r.Aggregate.ID)
			h.miss(r.Aggregate.ID)
		}
		return h.reserve(r.Time)
	case events.RangeAdded, events.LeaseRevoked:
		return h.reserve(r.Time)
	case events.ResourcesMapped:
		if h.Mapped {
			return nil
		}
		h.Mapped = true
		return h.orderCopy()
	case events.VersionActivated:
		return h.onActivated(r, e)
	case events.CopyRetried:
		h.Attempt = e.Attempt
		if !h.Mapped {
			return h.reserve(r.Time)
		}
		return h.orderCopy()
	case events.CopyDamaged:
		return h.orderCopy()
	case events.RemovalWanted:
		h.Removing, h.RemovedBy, h.Waiting = true, e.Operation, nil
		if h.Copying {
			return []Send{send(h.Account, "undo copy", work.OrderUndo{Ref: h.work(h.Copy),
				Why: events.Cause{Code: "not-wanted", Text: "the copy is no longer wanted"}})}
		}
		return h.orderRemove()
	case events.CopyRemoved:
		h.Removed = true
	case events.RetryAsked:
		if h.Stuck == "" || e.Region != "" && e.Region != h.Region {
			return nil
		}
		return []Send{send(h.Account, "retry "+string(h.Stuck), work.Retry{Ref: h.work(h.Stuck)})}
	case events.WorkEvent:
		if r.Aggregate.ID == string(h.Remove) {
			return h.onRemove(e)
		}
		return h.onCopy(e)
	}
	return nil
}

// reserve asks every pool that has not answered yet.
func (h *holding) reserve(now time.Time) []Send {
	if h.Removing {
		return nil
	}
	if len(h.Missing) == 0 {
		return h.mapWhenComplete()
	}
	out := []Send{guard(h.Account, instance.StillWanted{Ref: h.ref()})}
	for _, t := range h.Missing {
		cmd := pool.Reserve{Region: h.Region, Type: events.PoolID(t), Command: events.CommandID(fmt.Sprintf("%s/%d", h.Instance, h.at)),
			Owner: h.owner(), Choices: map[string]string{}, InheritFrom: h.Wanted.Inherits, Until: now.Add(reservationTime)}
		if h.From != "" {
			cmd.InheritFrom = h.From
		}
		for _, res := range h.Wanted.Resources {
			if res.Type == t && res.LeansOn == "" {
				cmd.Resources = append(cmd.Resources, res.ID)
			}
		}
		for _, c := range h.Wanted.Choices {
			if c.Region == h.Region && slices.Contains(cmd.Resources, c.Resource) && !h.Mapped {
				cmd.Choices[c.Resource] = c.Value
			}
		}
		out = append(out, send(h.Account, "reserve "+t, cmd))
	}
	return out
}

func (h *holding) miss(t string) {
	if !slices.Contains(h.Missing, t) {
		h.Missing = append(h.Missing, t)
	}
}

func (h *holding) onReserved(t string, e events.LeasesReserved) []Send {
	if h.Removing {
		return nil
	}
	given := append(slices.Clone(e.Leases), e.Inherited...)
	for _, old := range h.Reserved[t] {
		if !slices.ContainsFunc(given, func(l events.Lease) bool { return l.Resource == old.Resource }) {
			given = append(given, old)
		}
	}
	h.Reserved[t] = given
	h.Missing = slices.DeleteFunc(h.Missing, func(m string) bool { return m == t })
	h.Waiting = slices.DeleteFunc(h.Waiting, func(w string) bool { return w == t })
	return append(h.mapWhenComplete(), h.inherit()...)
}

func (h *holding) mapWhenComplete() []Send {
	if len(h.Missing) > 0 && !h.Mapped {
		return nil
	}
	out := []Send{send(h.Account, "map", instance.RecordMap{Ref: h.ref(), Map: substitutions(h.Wanted.Resources, h.Reserved)})}
	for _, t := range pooledTypes(h.Wanted.Resources) {
		out = append(out, send(h.Account, "confirm "+t, pool.Confirm{Region: h.Region, Type: events.PoolID(t), Owner: h.owner()}))
	}
	return out
}

// onActivated: the active version's instance takes over what it inherits. One
// that takes the reference back may have passed its leases on before, and has
// to inherit anew; its map follows.
func (h *holding) onActivated(r events.Record, e events.VersionActivated) []Send {
	if e.Version != h.Wanted.Version || e.Replaces == 0 || h.Removing {
		h.From = ""
		return nil
	}
	h.From = instance.ID(h.Account, h.Wanted.Template, e.Replaces, h.Region)
	var out []Send
	if e.Rollback {
		for _, t := range pooledTypes(h.Wanted.Resources) {
			h.miss(t)
		}
		out = h.reserve(r.Time)
	}
	return append(out, h.inherit()...)
}

func (h *holding) inherit() []Send {
	if h.From == "" {
		return nil
	}
	var out []Send
	for _, t := range pooledTypes(h.Wanted.Resources) {
		out = append(out, send(h.Account, "inherit "+t, pool.Inherit{Region: h.Region, Type: events.PoolID(t),
			From: events.Owner{Account: h.Account, Instance: h.From}, To: h.owner()}))
	}
	return out
}

func (h *holding) orderCopy() []Send {
	if h.Removing || h.Copying {
		return nil
	}
	h.Copying, h.Copy = true, h.newWork("copy")
	return []Send{send(h.Account, "copy", work.Order{Ref: h.work(h.Copy), WorkOrdered: events.WorkOrdered{
		Kind: events.WorkCopy, Operation: h.Wanted.Operation, Order: h.order()}})}
}

// onCopy tells the instance what the region reports of the copy. An order that
// failed may be opened again by hand, so its reports count for as long as no
// other has taken its place.
func (h *holding) onCopy(e events.WorkEvent) []Send {
	switch e := e.(type) {
	case events.WorkDone:
		if h.Removing {
			return nil // the undo that was ordered will say when nothing is left
		}
		h.Copying = false
		return []Send{send(h.Account, "verified", instance.ReportVerified{Ref: h.ref(), Manifest: h.Wanted.Manifest,
			Location: e.Result.Location, Received: e.Result.Received, Stored: e.Result.Stored})}
	case events.WorkFailed:
		if h.Removing {
			return nil
		}
		return h.copyFailed(e.Cause)
	case events.WorkWrittenOff:
		if !h.Removing {
			return h.copyFailed(e.Why)
		}
		if h.Remove == "" { // else the copy had failed before, and its removal is what counts
			return h.gone("lost")
		}
	case events.WorkRetried:
		h.Copying, h.Stuck = h.Copying || !h.Removing, ""
	case events.WorkStuck:
		h.Stuck = h.Copy
	case events.WorkUndone:
		h.Copying, h.Stuck = false, ""
		return h.orderRemove()
	}
	return nil
}

func (h *holding) copyFailed(why events.Cause) []Send {
	h.Copying = false
	return []Send{send(h.Account, "failed", instance.ReportFailed{Ref: h.ref(), Cause: why, Attempt: h.Attempt})}
}

func (h *holding) orderRemove() []Send {
	h.Remove = h.newWork("remove")
	return []Send{send(h.Account, "remove", work.Order{Ref: h.work(h.Remove), WorkOrdered: events.WorkOrdered{
		Kind: events.WorkRemove, Operation: h.RemovedBy, Order: h.order()}})}
}

func (h *holding) onRemove(e events.WorkEvent) []Send {
	switch e.(type) {
	case events.WorkDone:
		return h.gone("removed")
	case events.WorkWrittenOff:
		return h.gone("lost")
	case events.WorkFailed:
		h.Stuck = h.Remove
	case events.WorkRetried:
		h.Stuck = ""
	}
	return nil
}

// gone gives the leases back and says that nothing of the copy is left.
func (h *holding) gone(why string) []Send {
	var out []Send
	for _, t := range pooledTypes(h.Wanted.Resources) {
		out = append(out, send(h.Account, "release "+t, pool.Release{Region: h.Region, Type: events.PoolID(t), Owner: h.owner(), Why: why}))
	}
	return append(out, send(h.Account, "removed", instance.ReportRemoved{Ref: h.ref(), Lost: why == "lost"}))
}

func (h *holding) order() events.Order {
	return events.Order{Template: h.Wanted.Template, Version: h.Wanted.Version, Instance: h.Instance, Manifest: h.Wanted.Manifest}
}

// Refused: where a pool says no, the copy waits, and says for what.
func (h *holding) Refused(s Send, why *aggregates.Refusal) []Send {
	for _, t := range h.Missing {
		if s.Step != "reserve "+t {
			continue
		}
		if !slices.Contains(h.Waiting, t) {
			h.Waiting = append(h.Waiting, t)
		}
		return []Send{send(h.Account, "waiting for "+t, instance.ReportWaiting{Ref: h.ref(), Cause: why.Cause()})}
	}
	return nil // the instance knows better: what was sent has become pointless
}

func (h *holding) newWork(what string) events.WorkID {
	return events.WorkID(events.DeriveID(h.Account, events.CommandID(h.Instance), fmt.Sprintf("%s at %d", what, h.at)))
}
func (h *holding) ref() instance.Ref              { return instance.Ref{Region: h.Region, Instance: h.Instance} }
func (h *holding) work(id events.WorkID) work.Ref { return work.Ref{Region: h.Region, Work: id} }
func (h *holding) owner() events.Owner            { return events.Owner{Account: h.Account, Instance: h.Instance} }

// pooledTypes lists the resource types that pools must give; what leans on
// another resource follows that one.
func pooledTypes(resources []events.ResourceRef) []string {
	var out []string
	for _, r := range resources {
		if r.LeansOn == "" && !slices.Contains(out, r.Type) {
			out = append(out, r.Type)
		}
	}
	return out
}

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
