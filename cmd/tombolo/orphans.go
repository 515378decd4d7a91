package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/region"
)

// orphan is an effect with the region that has it.
type orphan struct {
	Region string `json:"region"`
	region.Effect
}

var orphanColumns = []column{{"REGION", "region", false}, {"KIND", "kind", false}, {"NAME", "name", false}, {"OWNER", "owner", false}}

func (a *app) orphansCommand() *cobra.Command {
	var in string
	with := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&in, "region", "", "only this region")
		return c
	}
	ls := with(a.verb("ls", "What regions' hosts have that no order owns", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		_, found, err := a.orphans(ctx, in)
		if err != nil {
			return err
		}
		return a.showOrphans(found)
	}))
	reap := with(a.verb("reap", "Take all of it away", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		c, found, err := a.orphans(ctx, in)
		if err != nil {
			return err
		}
		if a.dryRun || len(found) == 0 {
			return a.showOrphans(found)
		}
		if err := a.confirm("take away %s that no order owns?", count(len(found), "thing")); err != nil {
			return err
		}
		for _, o := range found {
			body, err := json.Marshal(o.Effect)
			if err != nil {
				return err
			}
			if _, err := c.inRegion(ctx, o.Region, http.MethodPost, "/v1/orphans/reap", body); err != nil {
				return err
			}
		}
		return a.showOrphans(found)
	}))
	return noun("orphans", "What regions' hosts have that no order owns", ls, reap)
}

func (a *app) showOrphans(found []orphan) error {
	if found == nil {
		found = []orphan{}
	}
	b, err := json.Marshal(map[string][]orphan{"items": found})
	if err != nil {
		return err
	}
	return a.show(b, shape{"items", "name", orphanColumns})
}

// orphans asks one region, or all that are not retired.
func (a *app) orphans(ctx context.Context, in string) (*client, []orphan, error) {
	c, err := a.ready()
	if err != nil {
		return nil, nil, err
	}
	names := []string{in}
	if in == "" {
		b, err := c.list(ctx, "/v1/regions", nil)
		if err != nil {
			return nil, nil, err
		}
		var all struct{ Items []api.Region }
		if err := json.Unmarshal(b, &all); err != nil {
			return nil, nil, err
		}
		names = nil
		for _, r := range all.Items {
			if r.Status != "retired" {
				names = append(names, string(r.Region))
			}
		}
	}
	var out []orphan
	for _, name := range names {
		b, err := c.inRegion(ctx, name, http.MethodGet, "/v1/orphans", nil)
		if err != nil {
			return nil, nil, err
		}
		var found api.Orphans
		if err := json.Unmarshal(b, &found); err != nil {
			return nil, nil, err
		}
		for _, e := range found.Items {
			out = append(out, orphan{name, e})
		}
	}
	return c, out, nil
}

// inRegion asks a region itself.
func (c *client) inRegion(ctx context.Context, name, method, path string, body []byte) ([]byte, error) {
	b, err := c.read(ctx, "/v1/regions/"+url.PathEscape(name), nil)
	if err != nil {
		return nil, err
	}
	var r api.Region
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r.HTTP == "" {
		f := fail(exitError, "region-not-ready", "no agent of %s has ever come up", name)
		f.Where = "region " + name
		return nil, f
	}
	request, err := c.bearer(ctx, method, "http://"+r.HTTP+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	b, _, err = c.send(request)
	return b, err
}
