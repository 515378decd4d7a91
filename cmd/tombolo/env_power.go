package main

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// machineParts are an environment's machines, and how each is reached.
var machineParts = &shape{items: "machines", name: "id", columns: []column{{"MACHINE", "id", false}, {"DECLARED", "declared", false}, {"OBSERVED", "observed", false},
	{"ADDRESS", "interfaces.address", false}, {"PUBLIC", "public.address", false}, {"REACHED AT", "public.open.at", false}, {"CAUSE", "cause.text", false},
	{"VAPP", "vapp", true}, {"SINCE", "since", true}, {"ACCELERATOR", "accelerator", true}, {"MAC", "interfaces.mac", true}, {"RESTART", "restart.why", true}}}

// powerRequest is what POST /v1/environments/{ref}/power takes.
type powerRequest struct {
	Power    string   `json:"power"`
	Machines []string `json:"machines,omitempty"`
	VApp     string   `json:"vapp,omitempty"`
	Cold     bool     `json:"cold,omitempty"`
	Timeout  int      `json:"timeout,omitempty"`
}

// envPower are the verbs that bring machines to a power state.
func (a *app) envPower(one shape) []*cobra.Command {
	var out []*cobra.Command
	for _, p := range []struct{ verb, short, power, long string }{
		{"start", "Start its machines", "running",
			"One that is suspended goes on where it was; one that is off boots; one that runs goes on running."},
		{"suspend", "Suspend its machines", "suspended",
			"The memory and the devices' state of each are stored, and the machine is taken off the host. Disks and memory belong\ntogether: it goes on where it was."},
		{"resume", "Resume its machines", "running",
			"One that is suspended goes on where it was; one that is off boots."},
		{"stop", "Have its machines shut down", "stopped",
			"Each guest is asked to shut down. One that has not when --grace is over goes on running, and the command fails: then\nask again, or power it off."},
		{"poweroff", "Power its machines off", "powered-off",
			"At once, as by pulling the plug: what a guest has not written to its disks is lost, and so is memory that was stored."},
	} {
		var body powerRequest
		var region string
		var grace time.Duration
		c := a.verb(p.verb+" ENV", p.short, cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			if len(body.Machines) > 0 && body.VApp != "" {
				return usage("env %s: --vm or --vapp, not both", p.verb)
			}
			if grace < 0 || grace > time.Hour || grace%time.Second != 0 {
				return usage("--grace %s: whole seconds, at most an hour", grace)
			}
			body.Power, body.Timeout = p.power, int(grace/time.Second)
			path, query := envPath(args[0])+"/power", url.Values{}
			if set(query, "region", region); len(query) > 0 {
				path += "?" + query.Encode()
			}
			return a.sendAndShow(ctx, http.MethodPost, path, body, envPath, one)
		})
		c.Long = p.short + ".\n\n" + p.long
		c.Flags().StringSliceVar(&body.Machines, "vm", nil, "one machine, or several, rather than all")
		c.Flags().StringVar(&body.VApp, "vapp", "", "the machines of this vApp rather than all")
		c.Flags().StringVar(&region, "region", "", "where it is, if several regions have the name")
		switch p.power {
		case "running":
			c.Flags().BoolVar(&body.Cold, "cold", false, "boot a suspended machine whose memory does not fit this region's hardware; what was in its memory is lost")
		case "stopped":
			c.Flags().DurationVar(&grace, "grace", 0, "how long a guest has to shut down; the region's own time unless given")
		}
		out = append(out, c)
	}
	return out
}
