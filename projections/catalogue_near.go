package projections

import (
	"slices"
	"time"

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
	Rate      float64           `json:"bytes_per_second"`   // at which the region's latest copy came, from order to verified; 0: never measured
	Estimated *int64            `json:"estimated_ms"`       // for the copy; null where nothing was measured
}

// smallestMeasured is the fewest bytes of a copy that say something of a link.
const smallestMeasured = 64 << 10

// Near gives what it takes to use a version in a region; it needs a view of the
// catalogue and of work orders. CodeTemplateUnknown.
//
// What would be copied is known exactly only while it is copied: it is what other
// regions received of the version, or the size of its disks where none did.
func (c Catalogue) Near(r Reader, account events.AccountID, number events.TemplateID, version int, region events.RegionID) (Nearness, error) {
	s, err := c.standing(r, account, number)
	if err != nil {
		return Nearness{}, err
	}
	out := Nearness{Bytes: s.versions[version].Bytes, Holders: []events.RegionID{}}
	var received int64
	for k := range s.instances {
		i := &s.instances[k]
		state := s.state(i)
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
			received = max(received, i.Received)
		}
	}
	slices.Sort(out.Holders)
	if out.Held {
		return out, nil
	}
	if out.Copy = out.Bytes; received > 0 {
		out.Copy = received
	}
	if out.Rate, err = c.rateInto(r, region); err != nil || out.Rate == 0 {
		return out, err
	}
	ms := int64(float64(out.Copy) / out.Rate * 1000)
	out.Estimated = &ms
	return out, nil
}

// rateInto is how fast the latest copy into a region was, among a bounded number
// of what it holds.
func (c Catalogue) rateInto(r Reader, region events.RegionID) (float64, error) {
	page, err := c.HeldIn(r, region, "", 100, "")
	if err != nil {
		return 0, err
	}
	var rate float64
	var latest time.Time
	for _, i := range page.Rows {
		if i.Received < smallestMeasured {
			continue
		}
		orders, err := WorkOrders{}.OfOperation(r, i.Operation)
		if err != nil {
			return 0, err
		}
		for _, o := range orders {
			took := o.Since.Sub(o.Ordered.Time)
			if o.Kind == events.WorkCopy && o.Region == region && o.State == WorkStateDone && o.Received >= smallestMeasured && took > 0 && o.Since.After(latest) {
				rate, latest = float64(o.Received)/took.Seconds(), o.Since.Time
			}
		}
	}
	return rate, nil
}
