package api

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/events"
	agent "github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Region is a place with machines.
type Region struct {
	Region    events.RegionID    `json:"region"`
	Name      string             `json:"name"`
	Aliases   []string           `json:"aliases,omitempty"`
	County    string             `json:"county,omitempty"`
	State     string             `json:"state,omitempty" doc:"the part of the country"`
	Country   string             `json:"country,omitempty"`
	Continent string             `json:"continent,omitempty"`
	Latitude  float64            `json:"latitude"`
	Longitude float64            `json:"longitude"`
	Status    string             `json:"status" enum:"active,draining,retired"`
	Lost      bool               `json:"lost,omitempty" doc:"retired, and what it held is written off"`
	Operation events.OperationID `json:"operation,omitempty" doc:"that drains or retires it"`
	Epoch     int                `json:"epoch" doc:"0 before any agent came"`
	Agent     string             `json:"agent,omitempty"`
	HTTP      string             `json:"http,omitempty" doc:"host:port where people ask the region itself"`
	Transfer  string             `json:"transfer,omitempty" doc:"host:port where other regions pull from"`
	Added     time.Time          `json:"added_at"`
	Revision  uint64             `json:"revision"`

	*projections.Nearness                           // of the template asked for
	CopyState             projections.InstanceState `json:"copy_state,omitempty" doc:"the word for the template's copy here, as where has it; absent where there is none"`
	Copy                  *agent.Progress           `json:"copy,omitempty" doc:"how far the copy of the template into this region is, while it goes on"`
}

func showRegion(r projections.RegionRow) Region {
	p := r.Profile
	return Region{Region: r.Region, Name: p.Name, Aliases: p.Aliases, County: p.County, State: p.State, Country: p.Country, Continent: p.Continent,
		Latitude: p.Latitude, Longitude: p.Longitude, Status: string(r.State), Lost: r.Lost, Operation: r.Operation, Epoch: r.Epoch, Agent: r.Agent,
		HTTP: r.HTTP, Transfer: r.Transfer, Added: millis(r.Added), Revision: r.Revision}
}

// OneRegion is a region with the position of the answer.
type OneRegion struct {
	Known
	Region
}

type regionInput struct {
	Read
	Region string `path:"region" doc:"id, name or alias"`
}

type regionsInput struct {
	Paged
	RegionFilter
}

// RegionFilter says which regions are asked about. It is exported for the reader
// of input structs, which skips embedded types that are not.
type RegionFilter struct {
	In     string `query:"in" doc:"only regions of this county, state, country or continent" example:"europe"`
	Status string `query:"status" enum:"active,draining,retired"`
	For    string `query:"for" doc:"a template's reference: say of each region whether it holds it, and what a copy would take"`
}

type newRegion struct {
	Write
	Body struct {
		Region  events.RegionID      `json:"region"`
		Profile events.RegionProfile `json:"profile"`
	}
}

// RegionWrite is what every write to one region takes. It is exported for the
// reader of input structs, which skips embedded types that are not.
type RegionWrite struct {
	Write
	Region string `path:"region" doc:"id, name or alias"`
}

type retireRegion struct {
	RegionWrite
	Body struct {
		Lost bool `json:"lost,omitempty" doc:"what it holds is written off rather than removed"`
	}
}

// Bodies of commands, as the door's table has them.
type (
	regionBody struct {
		Region events.RegionID `json:"region"`
	}
	retireBody struct {
		Region events.RegionID `json:"region"`
		Lost   bool            `json:"lost"`
	}
)

type takeoverRegion struct {
	RegionWrite
	Body struct {
		Agent string `json:"agent" doc:"the agent that may start the next epoch"`
	}
}

// Holdings is what a region holds, and what becomes of it when it drains.
type Holdings struct {
	Known
	Region       events.RegionID `json:"region"`
	Leave        []Held          `json:"leave" doc:"copies that leave by themselves: other regions hold their template, or they are cached"`
	Last         []Held          `json:"last" doc:"copies of templates that are wanted nowhere else: they stay until somebody adds a region or deletes them"`
	Environments []Held          `json:"environments" doc:"stay until somebody deletes them"`
}

// Held is one thing that a region holds.
type Held struct {
	Account     events.AccountID     `json:"account"`
	Template    events.TemplateID    `json:"template,omitempty"`
	Version     int                  `json:"version,omitempty"`
	Environment events.EnvironmentID `json:"environment,omitempty"`
	Name        string               `json:"name"`
	Bytes       int64                `json:"bytes,omitempty"`
}

func (s *Server) holdings(ctx context.Context, v at, in *regionInput) (Holdings, uint64, error) {
	out := Holdings{Known: v.known, Leave: []Held{}, Last: []Held{}, Environments: []Held{}}
	if err := mustAdministrate(ctx); err != nil {
		return out, 0, err
	}
	r, err := regionSpelled(v, in.Region)
	if err != nil {
		return out, 0, err
	}
	out.Region = r.Region
	for resume := ""; ; {
		page, err := projections.Catalogue{}.HeldIn(v, r.Region, "", 1000, resume)
		if err != nil {
			return out, 0, err
		}
		for _, i := range page.Rows {
			t, _, err := projections.Catalogue{}.Template(v, i.Account, i.Template)
			if err != nil {
				return out, 0, err
			}
			held := Held{Account: i.Account, Template: i.Template, Version: i.Version, Name: t.Name, Bytes: i.Bytes}
			if !i.Cached && slices.Equal(t.Regions, []events.RegionID{r.Region}) {
				out.Last = append(out.Last, held)
			} else {
				out.Leave = append(out.Leave, held)
			}
		}
		if resume = page.Resume; resume == "" {
			break
		}
	}
	for resume := ""; ; {
		page, err := projections.Environments{}.InRegion(v, r.Region, 1000, resume)
		if err != nil {
			return out, 0, err
		}
		for _, e := range page.Rows {
			out.Environments = append(out.Environments, Held{Account: e.Account, Environment: e.ID, Name: e.Name})
		}
		if resume = page.Resume; resume == "" {
			return out, r.Revision, nil
		}
	}
}

func (s *Server) regionRoutes() {
	get(s, "/v1/regions/{region}/holdings", "list-holdings", "What a region holds, and what of it would leave if it were drained", s.holdings)
	get(s, "/v1/regions", "list-regions", "Which regions are there?", s.listRegions)
	get(s, "/v1/regions/{region}", "get-region", "One region", func(ctx context.Context, v at, in *regionInput) (OneRegion, uint64, error) {
		r, err := regionSpelled(v, in.Region)
		return OneRegion{v.known, showRegion(r)}, r.Revision, err
	})
	command(s, http.MethodPost, "/v1/regions", "add-region", "Make a region known", func(ctx context.Context, in *newRegion) (Accepted, error) {
		return s.send(ctx, in.Write, events.None, events.KindRegion, "add", region.Add{Region: in.Body.Region, Profile: in.Body.Profile})
	})
	onRegion := func(path, id, summary, verb string) {
		command(s, http.MethodPost, path, id, summary, func(ctx context.Context, in *RegionWrite) (Accepted, error) {
			r, err := s.knownRegion(ctx, in.Region)
			if err != nil {
				return Accepted{}, err
			}
			return s.send(ctx, in.Write, events.None, events.KindRegion, verb, regionBody{r})
		})
	}
	onRegion("/v1/regions/{region}/drain", "drain-region", "Place nothing new in it, and have what is there leave", "drain")
	command(s, http.MethodPost, "/v1/regions/{region}/retire", "retire-region", "End a region for good", func(ctx context.Context, in *retireRegion) (Accepted, error) {
		r, err := s.knownRegion(ctx, in.Region)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, events.None, events.KindRegion, "retire", retireBody{r, in.Body.Lost})
	})
	command(s, http.MethodPost, "/v1/regions/{region}/takeover", "take-over-region", "Let another agent own it", func(ctx context.Context, in *takeoverRegion) (Accepted, error) {
		r, err := s.knownRegion(ctx, in.Region)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, events.None, events.KindRegion, "takeover", region.Takeover{Region: r, Agent: in.Body.Agent})
	})
}

// listRegions lists them, with what a template would take in each if that is asked.
func (s *Server) listRegions(ctx context.Context, v at, in *regionsInput) (List[Region], uint64, error) {
	out, err := pageOfRegions(v, in)
	if err != nil || in.For == "" {
		return out, 0, err
	}
	t, account, err := template(ctx, v, in.Scope, in.For)
	if err != nil {
		return out, 0, err
	}
	for i := range out.Items {
		near, err := projections.Catalogue{}.Near(v, account, t.Template.Number, t.Version, out.Items[i].Region)
		if err != nil {
			return out, 0, err
		}
		out.Items[i].Nearness, out.Items[i].CopyState = &near, near.State
	}
	return out, 0, s.underWay(v, out.Items)
}

// pageOfRegions pages through all regions; groupings are few and read whole.
func pageOfRegions(v at, in *regionsInput) (List[Region], error) {
	if in.In == "" && in.Status == "" {
		page, err := projections.Regions{}.List(v, in.Limit, in.Next)
		return listed(v.known, page, showRegion), err
	}
	out := List[Region]{Known: v.known, Items: []Region{}}
	for resume, last := in.Next, false; !last; {
		page, err := projections.Regions{}.List(v, in.Limit, resume)
		if err != nil {
			return out, err
		}
		for _, r := range page.Rows {
			if (in.Status == "" || in.Status == string(r.State)) && (in.In == "" || lies(r.Profile, in.In)) {
				out.Items = append(out.Items, showRegion(r))
			}
		}
		resume, out.Next = page.Resume, page.Resume
		last = resume == "" || len(out.Items) >= in.Limit
	}
	return out, nil
}

// lies reports whether a region is in a county, state, country or continent.
func lies(p events.RegionProfile, in string) bool {
	return slices.ContainsFunc([]string{p.County, p.State, p.Country, p.Continent}, func(place string) bool {
		return place != "" && strings.EqualFold(place, in)
	})
}

// regionSpelled finds the one region that a spelling means.
func regionSpelled(v projections.Reader, spelling string) (projections.RegionRow, error) {
	if r, ok, err := (projections.Regions{}).Region(v, events.RegionID(spelling)); ok || err != nil {
		return r, err
	}
	found, err := projections.Regions{}.Spelled(v, spelling)
	switch {
	case err != nil:
		return projections.RegionRow{}, err
	case len(found) == 0:
		return projections.RegionRow{}, aggregates.RefuseAs(aggregates.NotFound, "region-unknown", "there is no region %q", spelling).WithNext("tombolo region ls")
	case len(found) > 1:
		var ids []string
		for _, r := range found {
			ids = append(ids, string(r.Region))
		}
		return projections.RegionRow{}, aggregates.Refuse("region-ambiguous", "%q may mean %s", spelling, strings.Join(ids, " or ")).WithNext("use the id")
	}
	return found[0], nil
}

// knownRegion resolves a spelling for a write. What was added a moment ago is
// waited for before it is called unknown.
func (s *Server) knownRegion(ctx context.Context, spelling string) (events.RegionID, error) {
	return resolved(ctx, s, func(v at) (events.RegionID, error) {
		r, err := regionSpelled(v, spelling)
		return r.Region, err
	})
}

// resolved reads for a write: once at once and, if nothing is found, once more
// when the reads have come to where the journal ends.
func resolved[T any](ctx context.Context, s *Server, find func(at) (T, error)) (T, error) {
	found, err := lookup(ctx, s, Read{}, find)
	if r, ok := aggregates.AsRefusal(err); !ok || r.Class != aggregates.NotFound {
		return found, err
	}
	tip, terr := s.Journal.Tip(ctx)
	if terr != nil {
		return found, terr
	}
	return lookup(ctx, s, Read{After: tip}, find)
}

func lookup[T any](ctx context.Context, s *Server, r Read, find func(at) (T, error)) (T, error) {
	v, err := s.view(ctx, r)
	if err != nil {
		var none T
		return none, err
	}
	found, err := find(v)
	return found, cmp.Or(err, v.Close())
}

// millis is a time as the interface shows it.
func millis(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }
