package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

var ruleColumns = []column{{"ACTION", "action", false}, {"PROTOCOL", "protocol", false}, {"FROM", "from", false}, {"TO", "to", false}, {"PORTS", "ports", false}}

var forwardParts = &shape{items: "forwards", name: "resource", columns: []column{{"OPEN", "resource", false}, {"ADDRESS", "address", false}, {"PROTOCOL", "protocol", false},
	{"PORT", "port", false}, {"LAST", "last", true}, {"REACHED AT", "at", false}, {"MACHINE", "machine", false}, {"ITS ADDRESS", "target", false}, {"ITS PORT", "to", false}}}

var changeShape = shape{items: "changes", name: "what", columns: []column{{"", "change", false}, {"WHAT", "what", false}, {"TEXT", "text", false}}}

func edgePath(ref, region string, dryRun bool) string {
	query := url.Values{}
	set(query, "region", region)
	if dryRun {
		query.Set("dry_run", "true")
	}
	path := envPath(ref) + "/edge"
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return path
}

// envEdge is the noun of what crosses an environment's edge.
func (a *app) envEdge() *cobra.Command {
	var region string
	where := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&region, "region", "", "where the environment is, if several regions have the name")
		return c
	}
	show := where(a.verb("show ENV", "Its rules, and the ports that are open", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		query := url.Values{}
		set(query, "region", region)
		return a.showOne(ctx, envPath(args[0])+"/edge", query, shape{items: "rules", name: "action", columns: ruleColumns, parts: forwardParts})
	}))
	var file string
	apply := a.planned(where(a.verb("apply ENV -f FILE", "Have the edge let through what the file says, and nothing of what was set before", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if file == "" {
			return usage("env edge apply needs -f").withNext("tombolo env edge show %s -o yaml writes what is set now", args[0])
		}
		body, err := readEdge(file)
		if err != nil {
			return err
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		plan, _, err := c.write(ctx, http.MethodPut, edgePath(args[0], region, true), body)
		if err != nil {
			return err
		}
		if a.dryRun {
			return a.show(plan, changeShape)
		}
		var planned struct {
			Changes []struct{ Change, What, Text string } `json:"changes"`
		}
		if err := json.Unmarshal(plan, &planned); err != nil {
			return err
		}
		for _, l := range planned.Changes {
			a.say("%s %s: %s", l.Change, l.What, l.Text)
		}
		done, accepted, err := c.write(ctx, http.MethodPut, edgePath(args[0], region, false), body)
		if err != nil {
			return err
		}
		if err := c.await(ctx, accepted.Operation); err != nil {
			return err
		}
		return a.show(done, changeShape)
	})))
	apply.Flags().StringVarP(&file, "file", "f", "", "rules, source_ports and open (YAML), as env edge show -o yaml writes them")
	apply.Flags().Lookup("dry-run").Usage = "show what would change and do nothing"
	return noun("edge", "What crosses an environment's edge: rules, open ports, the port pool", show, apply)
}

// readEdge reads what an edge is to be. What a read says beside that is left out, so that its output is a file to start from.
func readEdge(file string) (map[string]any, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fail(exitError, "file-unreadable", "the edge's file cannot be read: %v", err)
	}
	var body map[string]any
	if err := decodeYAML(file, b, &body); err != nil {
		if f := new(failure); errors.As(err, &f) {
			return nil, f
		}
		return nil, fail(exitError, "yaml-invalid", "%s is not YAML:\n%s", file, yaml.FormatError(err, false, true))
	}
	for _, said := range []string{"position", "lag", "environment", "region", "set_at", "forwards"} {
		delete(body, said)
	}
	if body == nil {
		return nil, fail(exitError, "file-empty", "%s says nothing; nothing was done", file).withNext("rules: [] sets an edge without rules")
	}
	return body, nil
}
