package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/handlers/api"
)

var originColumns = []column{{"ENVIRONMENT", "environment", false}, {"NAME", "name", false}, {"REGION", "region", false}, {"TEMPLATE", "template", false},
	{"VERSION", "version", false}, {"STATE", "state", false}, {"BYTES BETWEEN REGIONS", "bytes_between_regions", false}, {"MS", "duration_ms", false}, {"COPIED", "copied", true}, {"RESUME", "resume", true}, {"BOOT", "boot", true}}

var planColumns = []column{{"TEMPLATE", "template", false}, {"VERSION", "version", false}, {"REGION", "region", false}, {"ENVIRONMENT", "name", false},
	{"FAST HERE", "fast_here", false}, {"BYTES TO COPY", "bytes_to_copy", false}, {"ESTIMATED MS", "estimated_ms", false}, {"HOLDERS", "holders", false}, {"RESUME", "resume", true}, {"BOOT", "boot", true}, {"ADDRESSES", "addresses", true}}

// instantiateBody is what an instantiation is asked for with.
type instantiateBody struct {
	Template   string `json:"template,omitempty"` // in a check; else it is in the path
	Region     string `json:"region"`
	Name       string `json:"name,omitempty"`
	CopyAgreed bool   `json:"copy_agreed,omitempty"`
	KeepCopy   bool   `json:"keep_copy,omitempty"`
}

func (a *app) templateInstantiate() *cobra.Command {
	var body instantiateBody
	c := a.verb("instantiate REF --region R", "Make an environment of it; asks before it is copied to where it is not stored", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if body.Region == "" {
			return usage("template instantiate needs --region").withNext("tombolo region ls --for %s says where it is stored", args[0])
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		if a.dryRun {
			body.Template = args[0]
			b, _, err := c.write(ctx, http.MethodPost, "/v1/check/instantiate", body)
			if err != nil {
				return err
			}
			return a.show(b, shape{name: "name", columns: planColumns})
		}
		path := templatePath(args[0]) + "/instantiate"
		body.CopyAgreed = a.yes
		_, accepted, err := c.write(ctx, http.MethodPost, path, body)
		if f := (*failure)(nil); errors.As(err, &f) && f.Code == "copy-needed" && a.canAsk() {
			if err := a.confirm("%s. Copy it?", f.Text); err != nil {
				return err
			}
			body.CopyAgreed = true
			_, accepted, err = c.write(ctx, http.MethodPost, path, body)
		}
		if err != nil {
			return err
		}
		if err := c.await(ctx, accepted.Operation); err != nil {
			return err
		}
		b, err := c.read(ctx, envPath(accepted.ID)+"/origin", nil)
		if err != nil {
			return err
		}
		var made api.Instantiated
		if err := json.Unmarshal(b, &made); err != nil {
			return err
		}
		if len(made.Boot) > 0 {
			a.say("%s started from power-on: version %d was saved without their memory", strings.Join(made.Boot, ", "), made.Version)
		}
		return a.show(b, shape{name: "environment", columns: originColumns})
	})
	f := c.Flags()
	f.StringVar(&body.Region, "region", "", "where the environment is made")
	f.StringVar(&body.Name, "name", "", "of the environment; derived from the template's unless given")
	f.BoolVar(&body.KeepCopy, "keep-copy", false, "have the region hold the template from here on")
	return a.planned(c)
}

// canAsk says whether there is a person to ask.
func (a *app) canAsk() bool { return !a.yes && !a.noInput && isTerminal(a.in) }

// planText is a refusal's plan in a line, for people.
func planText(plan json.RawMessage) string {
	var p struct {
		Copy      int64  `json:"bytes_to_copy"`
		Estimated *int64 `json:"estimated_ms"`
		Addresses []struct {
			Resource string `json:"resource"`
			Value    string `json:"value"`
		} `json:"addresses"`
	}
	if json.Unmarshal(plan, &p) != nil {
		return ""
	}
	out := fmt.Sprintf("at most %.1f MiB to copy, time unknown", float64(p.Copy)/(1<<20))
	if p.Estimated != nil {
		out = fmt.Sprintf("at most %.1f MiB to copy, about %.1f s", float64(p.Copy)/(1<<20), float64(*p.Estimated)/1000)
	}
	for _, l := range p.Addresses {
		out += fmt.Sprintf("; %s gets %s", l.Resource, l.Value)
	}
	return out
}
