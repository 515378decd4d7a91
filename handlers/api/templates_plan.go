package api

import (
	"context"
	"fmt"
	"net/http"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/projections"
)

// RegionsPlan is what a change of a template's regions comes to.
type RegionsPlan struct {
	Template events.TemplateID `json:"template"`
	Version  int               `json:"version"`
	Add      []PlannedCopy     `json:"add"`
	Remove   []events.RegionID `json:"remove"`
	Stay     []events.RegionID `json:"stay" doc:"held before and after; nothing moves there"`
	Deletes  bool              `json:"deletes" doc:"no region is left: the template is deleted with every copy"`
}

// PlannedCopy is a region that is added, and what that takes.
type PlannedCopy struct {
	Region    events.RegionID `json:"region"`
	Copy      int64           `json:"bytes_to_copy"`
	Estimated *int64          `json:"estimated_ms" doc:"null where nothing was measured"`
}

type checkRegions struct {
	Write
	Body struct {
		Template string `json:"template" doc:"a reference"`
		RegionsWish
	}
}

// RegionSpecific is what is bound to a region in a version, and why ([0023]).
type RegionSpecific struct {
	Known
	Template events.TemplateID  `json:"template"`
	Version  int                `json:"version"`
	Items    []SpecificResource `json:"items"`
}

// SpecificResource is one region-bound resource.
type SpecificResource struct {
	Resource string            `json:"resource"`
	Type     string            `json:"type"`
	Value    string            `json:"value" doc:"what the source had"`
	LeansOn  string            `json:"leans_on,omitempty" doc:"the resource whose value it carries"`
	Why      string            `json:"why" doc:"why it cannot be the same in another region"`
	Asks     []events.RegionID `json:"asks_in" doc:"regions that should hold the template and have no pool of this type: the copy stops there and asks"`
}

func (s *Server) planRoutes() {
	accept(s, http.MethodPost, "/v1/check/regions", "check-template-regions", "What a change of a template's regions would do; nothing is done", s.planSetRegions)
	get(s, "/v1/templates/{ref}/region-specific", "list-region-specific", "What in it is bound to a region, and why?", s.regionSpecific)
}

func (s *Server) planSetRegions(ctx context.Context, in *checkRegions) (Accepted, RegionsPlan, error) {
	plan := RegionsPlan{Add: []PlannedCopy{}, Remove: []events.RegionID{}, Stay: []events.RegionID{}}
	t, account, err := s.knownTemplate(ctx, TemplateWrite{Write: in.Write, Ref: in.Body.Template})
	if err != nil {
		return Accepted{}, plan, err
	}
	change, err := s.change(ctx, t, in.Body.RegionsWish)
	if err != nil {
		return Accepted{}, plan, err
	}
	plan.Template, plan.Version = t.Number, max(t.Active, 1)
	plan.Stay = append(plan.Stay, without(t.Regions, change.Remove)...)
	plan.Remove = append(plan.Remove, without(change.Remove, without(change.Remove, t.Regions))...)
	plan.Deletes = in.Body.None
	added := without(change.Add, t.Regions)
	_, err = lookup(ctx, s, Read{}, func(v at) (bool, error) {
		for _, r := range added {
			near, err := projections.Catalogue{}.Near(v, account, t.Number, plan.Version, r)
			if err != nil {
				return false, err
			}
			plan.Add = append(plan.Add, PlannedCopy{r, near.Copy, near.Estimated})
		}
		return true, nil
	})
	return Accepted{}, plan, err
}

func (s *Server) regionSpecific(ctx context.Context, v at, in *TemplateRead) (RegionSpecific, uint64, error) {
	out := RegionSpecific{Known: v.known, Items: []SpecificResource{}}
	t, _, err := template(ctx, v, in.Scope, in.Ref)
	if err != nil {
		return out, 0, err
	}
	out.Template, out.Version = t.Template.Number, t.Version
	version, _, err := projections.Catalogue{}.Version(v, t.Template.Number, t.Version)
	if err != nil {
		return out, 0, err
	}
	for _, r := range version.Resources {
		item := SpecificResource{Resource: r.ID, Type: r.Type, Value: r.Value, LeansOn: r.LeansOn, Why: whyBound(r), Asks: []events.RegionID{}}
		for _, region := range t.Template.Regions {
			if r.LeansOn != "" {
				break // it comes with what it leans on
			}
			if _, ok, err := (projections.Pools{}).Pool(v, region, events.PoolID(r.Type)); err != nil {
				return out, 0, err
			} else if !ok {
				item.Asks = append(item.Asks, region)
			}
		}
		out.Items = append(out.Items, item)
	}
	return out, t.Template.Revision, nil
}

// whyBound says why a resource cannot be the same in another region.
func whyBound(r events.ResourceRef) string {
	switch {
	case r.LeansOn != "":
		return fmt.Sprintf("it carries the value of %s, which is another one in each region", r.LeansOn)
	case r.Type == string(graph.PublicAddress):
		return "a public address is routed to one region and comes from that region's pool"
	case r.Type == string(graph.VPNEndpoint):
		return "a tunnel ends at an endpoint of one region, which comes from that region's pool"
	case r.Type == string(graph.Route):
		return "a route to another environment starts from an address of one region"
	}
	return fmt.Sprintf("nothing is known of the type %s: a region without a pool of it stops and asks", r.Type)
}
