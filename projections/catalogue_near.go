package projections

import (
	"slices"

	"github.com/tombolo-vdc/tombolo/events"
)

// Nearness says what it takes to use one version of a template in one region.
type Nearness struct {
	Held      bool              `json:"fast_here"`          // the region has verified it: nothing is copied ([0037])
	Behind    bool              `json:"behind,omitempty"`   // the region holds another version and has not come to this one
	Instance  events.InstanceID `json:"instance,omitempty"` // here, whatever its state
	State     InstanceState     `json:"state,omitempty"`    // of it
	Cause     *events.Cause     `json:"cause,omitempty"`    // why it waits or has failed
	Bytes     int64             `json:"bytes"`              // of the disks, as machines see them
	Copy      int64             `json:"bytes_to_copy"`      // from other regions, at most; 0 where it is held
	Holders   []events.RegionID `json:"holders"`            // that have verified it, sorted
	Rate      float64           `json:"bytes_per_second"`   // at which the region's largest copy came, from order to verified; 0: never measured
	Estimated *int64            `json:"estimated_ms"`       // for the copy; null where nothing was measured
}

// smallestMeasured is the fewest bytes of a copy that say something of a link.
const smallestMeasured = 64 << 10

// Near gives what it takes to use a version in a region; it needs a view of the
// catalogue and of work orders. CodeTemplateUnknown.
//
// What would be copied is known exactly only while it is copied. It is at most
// what any region received of the versions that came since the one that the region
// holds, or the size of the disks where none ever was copied.
func (c Catalogue) Near(r Reader, account events.AccountID, number events.TemplateID, version int, region events.RegionID) (Nearness, error) {
	s, err := c.standing(r, account, number)
	if err != nil {
		return Nearness{}, err
	}
	out := Nearness{Bytes: s.versions[version].Bytes, Holders: []events.RegionID{}}
	received, holds := map[int]int64{}, 0 // by version, what any region received; the latest version that is here
	for k := range s.instances {
		i := &s.instances[k]
		state := s.state(i)
		received[i.Version] = max(received[i.Version], i.Received)
		if i.Region == region && i.Version < version && i.Verified && state != InstanceRemoved && state != InstanceRemoving {
			holds = max(holds, i.Version)
		}
		if i.Region == region && state == InstanceBehind && version == s.template.Active {
			out.Behind = true
		}
		if i.Version != version || state == InstanceRemoved {
			continue
		}
		if i.Region == region {
			out.Instance, out.State, out.Cause = i.ID, state, i.Cause
			out.Held = i.Verified && state != InstanceRemoving
			continue
		}
		if i.Verified && state != InstanceRemoving {
			out.Holders = append(out.Holders, i.Region)
		}
	}
	slices.Sort(out.Holders)
	if out.Held {
		return out, nil
	}
	for v := holds + 1; v <= version; v++ {
		out.Copy += received[v]
	}
	if out.Copy == 0 || out.Copy > out.Bytes {
		out.Copy = out.Bytes
	}
	if out.Rate, err = c.rateInto(r, region, s.instances); err != nil || out.Rate == 0 {
		return out, err
	}
	ms := int64(float64(out.Copy) / out.Rate * 1000)
	out.Estimated = &ms
	return out, nil
}

// rateInto is how fast the largest copy into a region was, among a bounded number
// of what it holds and these: of a small one most of the time is not the link's.
func (c Catalogue) rateInto(r Reader, region events.RegionID, these []InstanceRow) (float64, error) {
	page, err := c.HeldIn(r, region, "", 100, "")
	if err != nil {
		return 0, err
	}
	var rate float64
	var largest int64
	for _, i := range append(page.Rows, these...) {
		if i.Region != region || i.Received < smallestMeasured {
			continue
		}
		orders, err := WorkOrders{}.OfOperation(r, i.Operation)
		if err != nil {
			return 0, err
		}
		for _, o := range orders {
			took := o.Since.Sub(o.Ordered.Time)
			if o.Kind == events.WorkCopy && o.Region == region && o.State == WorkStateDone && o.Received > max(largest, smallestMeasured) && took > 0 {
				rate, largest = float64(o.Received)/took.Seconds(), o.Received
			}
		}
	}
	return rate, nil
}
