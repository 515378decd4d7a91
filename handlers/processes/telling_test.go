package processes

import (
	"fmt"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
)

// line tells an event in one line of a story.
func (w *world) line(r events.Record) string {
	a := r.Aggregate
	who := string(a.Kind) + " " + w.called(a.ID)
	if a.Region != events.None && a.Kind != events.KindRegion {
		who += " " + string(a.Region)
	}
	_, what, _ := strings.Cut(string(r.Event.EventType()), ".")
	return strings.TrimSpace(who + ": " + what + " " + w.detail(r.Event))
}

func (w *world) detail(e events.Event) string {
	switch e := e.(type) {
	case events.TemplateCreated:
		return fmt.Sprintf("%s from %s in %v", e.Operation, e.Source.Environment, e.Regions)
	case events.VersionSaved:
		return fmt.Sprintf("%d", e.Version)
	case events.ReplacementStaged:
		return fmt.Sprintf("%d %s from %s in %s, %s", e.Version, e.Operation, e.Source.Environment, e.Source.Region, e.Policy.Kind)
	case events.ReplacementQueued:
		return fmt.Sprintf("%s from %s in %s, %s", e.Operation, e.Source.Environment, e.Source.Region, e.Policy.Kind)
	case events.ReplacementUnqueued:
		return fmt.Sprintf("%s %s", e.Operation, e.Cause.Code)
	case events.VersionActivated:
		if e.Rollback {
			return fmt.Sprintf("%d in place of %d, going back", e.Version, e.Replaces)
		}
		return fmt.Sprintf("%d in place of %d", e.Version, e.Replaces)
	case events.VersionAbandoned:
		return fmt.Sprintf("%d %s", e.Version, e.Cause.Code)
	case events.VersionRetired:
		return fmt.Sprintf("%d", e.Version)
	case events.KeepSet:
		return fmt.Sprintf("%d", e.Keep)
	case events.RegionsChanged:
		return fmt.Sprintf("+%v -%v", e.Add, e.Remove)
	case events.CopyWanted:
		if e.Cached {
			return "cached"
		}
		return ""
	case events.ResourcesMapped:
		return mapping(e.Map)
	case events.EnvironmentMapped:
		return mapping(e.Map)
	case events.CopyWaiting:
		return e.Cause.Code
	case events.CopyFailed:
		return e.Cause.Code
	case events.CopyRemoved:
		if e.Lost {
			return "lost"
		}
		return ""
	case events.WorkFailed:
		return e.Cause.Code
	case events.WorkWrittenOff:
		return e.Why.Code
	case events.EnvironmentFailed:
		return e.Cause.Code
	case events.OperationFinished:
		if e.Cause != nil {
			return string(e.Outcome) + " " + e.Cause.Code
		}
		return string(e.Outcome)
	case events.WorkOrdered:
		var out []string
		for _, p := range e.Order.Power {
			out = append(out, strings.TrimSpace(p.Machine+" "+p.Power))
		}
		if e.Order.Memory {
			out = append(out, "with memory")
		}
		return strings.Join(out, ", ")
	case events.PowerSet:
		return strings.TrimSpace(strings.Join(e.Names(), " ") + " " + e.Power)
	case events.MachinesObserved:
		var out []string
		for _, m := range e.Machines {
			out = append(out, m.Machine+" "+m.Power)
		}
		return strings.Join(out, ", ")
	case events.LeasesReserved:
		return w.owner(e.Owner) + leases(" ", e.Leases) + leases(" inherits ", e.Inherited)
	case events.LeasesConfirmed:
		return w.owner(e.Owner)
	case events.LeasesInherited:
		return fmt.Sprintf("%s gives %d to %s", w.owner(e.From), len(e.Leases), w.owner(e.To))
	case events.LeasesBound:
		return w.owner(e.Owner) + leases(" ", e.Bound) + leases(" fresh ", e.Fresh)
	case events.LeasesReleased:
		return fmt.Sprintf("%s %s, %d freed, %d kept, %d passed", w.owner(e.Owner), e.Why, len(e.Freed), len(e.Kept), len(e.Passed))
	}
	return ""
}

func (w *world) owner(o events.Owner) string {
	if o.Environment != "" {
		return w.called(string(o.Environment))
	}
	return w.called(string(o.Instance))
}

func mapping(subs []events.Substitution) string {
	var out []string
	for _, s := range subs {
		out = append(out, fmt.Sprintf("%s→%s", s.Resource, s.To))
	}
	return strings.Join(out, " ")
}

func leases(before string, list []events.Lease) string {
	var out []string
	for _, l := range list {
		out = append(out, l.Value)
	}
	if len(out) == 0 {
		return ""
	}
	return before + strings.Join(out, " ")
}
