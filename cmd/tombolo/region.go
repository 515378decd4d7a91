package main

import (
	"context"
	"net/http"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/events"
)

var regionColumns = []column{{"REGION", "region", false}, {"NAME", "name", false}, {"STATUS", "status", false}, {"COUNTRY", "country", false},
	{"CONTINENT", "continent", false}, {"EPOCH", "epoch", false}, {"STATE", "state", true}, {"COUNTY", "county", true},
	{"LATITUDE", "latitude", true}, {"LONGITUDE", "longitude", true}, {"ALIASES", "aliases", true}, {"HTTP", "http", true}, {"REVISION", "revision", true}}

// nearColumns come first when regions are listed for a template.
var nearColumns = []column{{"REGION", "region", false}, {"NAME", "name", false}, {"STATUS", "status", false}, {"FAST HERE", "fast_here", false},
	{"BYTES TO COPY", "bytes_to_copy", false}, {"ESTIMATED MS", "estimated_ms", false}, {"COPY", "copy_state", false}, {"BYTES DONE", "copy.bytes_done", false}, {"BEHIND", "behind", true}}

var hostColumns = []column{{"REGION", "region", false}, {"MACHINES", "machines.available", false}, {"ACCELERATOR", "machines.hardware.accelerator", false},
	{"NETWORKS", "networks.name", false}, {"WHY", "machines.why", false}, {"ISOLATION", "machines.isolation", true}, {"CPU", "machines.hardware.cpu", true}}

var runningColumns = []column{{"ENVIRONMENT", "id.environment", false}, {"MACHINE", "id.machine", false}, {"STATE", "state", false}, {"PID", "pid", false},
	{"MEMORY", "memory", false}, {"USED", "used", false}, {"STARTED", "started", false}}

func (a *app) regionCommand() *cobra.Command {
	var in, status, ref string
	ls := a.verb("ls", "Which regions are there?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		q := url.Values{}
		set(q, "in", in)
		set(q, "status", status)
		columns := regionColumns
		if ref != "" {
			q.Set("for", ref)
			columns = append(slices.Clone(nearColumns), columns[3:]...)
		}
		if a.output == "geojson" {
			a.output = "json"
			return a.showOne(ctx, "/v1/map", q, shape{})
		}
		return a.showList(ctx, "/v1/regions", q, shape{items: "items", name: "region", columns: columns})
	})
	ls.Long = "Which regions are there, where, and (--for) which of them hold a template?\n\n-o geojson gives them as a GeoJSON feature collection (RFC 7946), for any program that draws maps."
	ls.Flags().StringVar(&in, "in", "", "only regions of this county, state, country or continent")
	ls.Flags().StringVar(&status, "status", "", "only active, draining or retired ones")

	ls.Flags().StringVar(&ref, "for", "", "a template: which regions hold it, and what a copy to the others would take")

	show := a.verb("show REGION", "One region", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, "/v1/regions/"+url.PathEscape(args[0]), nil, shape{name: "region", columns: regionColumns})
	})

	var profile events.RegionProfile
	add := a.verb("add REGION", "Make a region known", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if profile.Name == "" {
			profile.Name = args[0]
		}
		return a.sendAndShow(ctx, http.MethodPost, "/v1/regions", map[string]any{"region": args[0], "profile": profile},
			func(string) string { return "/v1/regions/" + url.PathEscape(args[0]) }, shape{name: "region", columns: regionColumns})
	})
	f := add.Flags()
	f.StringVar(&profile.Name, "name", "", "as people call it; the id if absent")
	f.StringSliceVar(&profile.Aliases, "alias", nil, "other spellings")
	f.StringVar(&profile.County, "county", "", "county")
	f.StringVar(&profile.State, "state", "", "state")
	f.StringVar(&profile.Country, "country", "", "country")
	f.StringVar(&profile.Continent, "continent", "", "continent")
	f.Float64Var(&profile.Latitude, "latitude", 0, "degrees, north positive")
	f.Float64Var(&profile.Longitude, "longitude", 0, "degrees, east positive")

	var agent string
	on := func(use, short, verb string, body func() any) *cobra.Command {
		return a.verb(use+" REGION", short, cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			path := "/v1/regions/" + url.PathEscape(args[0])
			if verb == "takeover" && agent == "" {
				return usage("region takeover needs --agent").withNext("its id is in the file agent-id of its data directory; tombolo region show names the present agent's")
			}
			if a.dryRun {
				return a.showOne(ctx, path+"/holdings", nil, shape{name: "region", columns: []column{{"REGION", "region", false}, {"LEAVE", "leave", false}, {"LAST COPIES", "last", false}, {"ENVIRONMENTS", "environments", false}}})
			}
			return a.sendAndShow(ctx, http.MethodPost, path+"/"+verb, body(), func(string) string { return path }, shape{name: "region", columns: regionColumns})
		})
	}
	drain := a.planned(on("drain", "Place nothing new in it, and have what is there leave", "drain", func() any { return nil }))
	var lost bool
	retire := a.planned(on("retire", "End a region for good", "retire", func() any { return map[string]bool{"lost": lost} }))
	retire.Flags().BoolVar(&lost, "lost", false, "what it holds is written off rather than removed")
	takeover := on("takeover", "Let another agent own it", "takeover", func() any { return map[string]string{"agent": agent} })
	takeover.Flags().StringVar(&agent, "agent", "", "id of the agent that may start the next epoch")
	scrub := a.verb("scrub REGION", "Read back everything in its store; what is damaged is fetched again", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		c, err := a.ready()
		if err != nil {
			return err
		}
		b, _, err := c.write(ctx, http.MethodPost, "/v1/regions/"+url.PathEscape(args[0])+"/scrub", nil)
		if err != nil {
			return err
		}
		return a.show(b, shape{name: "region", columns: []column{{"REGION", "region", false}, {"CHUNKS", "chunks", false}, {"BYTES", "bytes", false},
			{"DAMAGED", "damaged", false}, {"MISSING", "missing", false}, {"MS", "duration_ms", false}, {"HURT", "hurt", true}}})
	})
	host := a.verb("host REGION", "What its host can run, and what its machines and networks do now", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, "/v1/regions/"+url.PathEscape(args[0])+"/host", nil, shape{name: "region", columns: hostColumns,
			parts: &shape{items: "running", name: "id", columns: runningColumns}})
	})
	return noun("region", "Places with machines", ls, show, add, drain, retire, takeover, scrub, host)
}

// set puts a value into a query unless it is empty.
func set(q url.Values, name, value string) {
	if value != "" {
		q.Set(name, value)
	}
}
