package main

import (
	"context"
	"net/http"

	"github.com/spf13/cobra"
)

func (a *app) serverGrow() *cobra.Command {
	var to int64
	grow := a.verb("grow --to BYTES", "Raise the journal's limit, while the server runs", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if to <= 0 {
			return usage("server grow needs --to BYTES")
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		b, _, err := c.write(ctx, http.MethodPost, "/v1/journal/grow", map[string]int64{"to": to})
		if err != nil {
			return err
		}
		return a.show(b, shape{"", "limit", []column{{"USED", "used", false}, {"LIMIT", "limit", false}, {"WARNING", "warning", false}}})
	})
	grow.Flags().Int64Var(&to, "to", 0, "bytes that the journal may take from now on")
	return grow
}
