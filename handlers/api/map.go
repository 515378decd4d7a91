package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// RegionMap is the regions as a GeoJSON feature collection (RFC 7946, section
// 3.3): any program that draws maps can show it. Position and lag are foreign
// members (section 6.1).
type RegionMap struct {
	Known
	Type     string          `json:"type" enum:"FeatureCollection"`
	Features []RegionFeature `json:"features"`
}

// RegionFeature is one region on the map; its properties are those of a list of
// regions.
type RegionFeature struct {
	Type       string          `json:"type" enum:"Feature"`
	ID         events.RegionID `json:"id"`
	Geometry   Point           `json:"geometry"`
	Properties Region          `json:"properties"`
}

// Point is a place.
type Point struct {
	Type        string     `json:"type" enum:"Point"`
	Coordinates [2]float64 `json:"coordinates" doc:"longitude, latitude: degrees, WGS 84"`
}

type mapInput struct {
	Read
	RegionFilter
}

// geoJSON is the media type of GeoJSON (RFC 7946, section 12).
const geoJSON = "application/geo+json"

type mapOutput struct {
	Position    uint64 `header:"Tombolo-Position" doc:"sequence of the last event that the answer shows"`
	ContentType string `header:"Content-Type"`
	Body        RegionMap
}

func (s *Server) mapRoutes() {
	huma.Register(s.api, huma.Operation{OperationID: "map-regions", Method: http.MethodGet, Path: "/v1/map", Tags: []string{"regions"},
		Summary: "Which regions are there, as GeoJSON, with which of them hold a template and how far copies are?"},
		func(ctx context.Context, in *mapInput) (*mapOutput, error) {
			out := &mapOutput{ContentType: geoJSON}
			body, err := lookup(ctx, s, in.Read, func(v at) (RegionMap, error) { return s.mapRegions(ctx, v, in) })
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			out.Position, out.Body = body.Position, body
			return out, nil
		})
}

func (s *Server) mapRegions(ctx context.Context, v at, in *mapInput) (RegionMap, error) {
	out := RegionMap{Known: v.known, Type: "FeatureCollection", Features: []RegionFeature{}}
	for next := ""; ; {
		page, _, err := s.listRegions(ctx, v, &regionsInput{Paged: Paged{Read: in.Read, Limit: 1000, Next: next}, RegionFilter: in.RegionFilter})
		if err != nil {
			return out, err
		}
		for _, r := range page.Items {
			out.Features = append(out.Features, RegionFeature{Type: "Feature", ID: r.Region, Properties: r,
				Geometry: Point{Type: "Point", Coordinates: [2]float64{r.Longitude, r.Latitude}}})
		}
		if next = page.Next; next == "" {
			return out, nil
		}
	}
}

// underWay adds how far the copies into regions are that have begun.
func (s *Server) underWay(v at, all []Region) error {
	if s.Progress == nil {
		return nil
	}
	for i, r := range all {
		if r.Nearness == nil || r.Nearness.State != projections.InstanceCopying {
			continue
		}
		instance, ok, err := projections.Catalogue{}.Instance(v, r.Nearness.Instance)
		if err != nil {
			return err
		}
		if t, there := s.Progress.Latest(instance.Account, instance.Operation, r.Region); ok && there {
			all[i].Copy = &t
		}
	}
	return nil
}
