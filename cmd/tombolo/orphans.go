package main

import (
	"context"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
)

func (a *app) orphansCommand() *cobra.Command {
	found := shape{items: "items", name: "name", columns: []column{{"REGION", "region", false}, {"KIND", "kind", false}, {"NAME", "name", false}, {"OWNER", "owner", false}}}
	var region string
	ls := a.verb("ls", "What is on the regions' hosts that no order owns", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		q := url.Values{}
		set(q, "region", region)
		return a.showOne(ctx, "/v1/orphans", q, found)
	})
	ls.Flags().StringVar(&region, "region", "", "only there")
	var body struct {
		Region string `json:"region"`
		Kind   string `json:"kind,omitempty"`
		Name   string `json:"name,omitempty"`
	}
	reap := a.verb("reap --region R", "Remove what no order owns; shows what was removed", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if body.Region == "" || (body.Kind == "") != (body.Name == "") {
			return usage("orphans reap needs --region, and for one of its orphans --kind and --name")
		}
		what := "everything that no order owns"
		if body.Name != "" {
			what = body.Kind + " " + body.Name
		}
		if err := a.confirm("remove %s from %s?", what, body.Region); err != nil {
			return err
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		b, _, err := c.write(ctx, http.MethodPost, "/v1/orphans/reap", body)
		if err != nil {
			return err
		}
		return a.show(b, found)
	})
	reap.Flags().StringVar(&body.Region, "region", "", "where")
	reap.Flags().StringVar(&body.Kind, "kind", "", "of the one to remove")
	reap.Flags().StringVar(&body.Name, "name", "", "of the one to remove")
	return noun("orphans", "What is left on hosts and belongs to nothing", ls, reap)
}
