package main

import (
	"context"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
)

var poolColumns = []column{{"REGION", "region", false}, {"TYPE", "type", false}, {"SIZE", "size", false}, {"FREE", "free", false},
	{"RESERVED", "reserved", false}, {"BOUND", "bound", false}, {"RANGES", "ranges", true}, {"REVISION", "revision", true}}

func (a *app) poolCommand() *cobra.Command {
	var region string
	ls := a.verb("ls", "What stock has which region?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		q := url.Values{}
		set(q, "region", region)
		return a.showList(ctx, "/v1/pools", q, shape{items: "items", name: "type", columns: poolColumns})
	})
	ls.Flags().StringVar(&region, "region", "", "only of this region")
	pool := func(args []string) string {
		return "/v1/pools/" + url.PathEscape(args[0]) + "/" + url.PathEscape(args[1])
	}
	show := a.verb("show REGION TYPE", "One pool, its contents and leases", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, pool(args), nil, shape{name: "type", columns: poolColumns, parts: poolParts})
	})

	add := struct {
		Region     string   `json:"region"`
		Type       string   `json:"type"`
		Prefix     string   `json:"prefix,omitempty"`
		Values     []string `json:"values,omitempty"`
		Bind       string   `json:"bind,omitempty"`
		PortOffset int      `json:"port_offset,omitempty"`
	}{}
	addCmd := a.verb("add [PREFIX]", "Add addresses (as CIDR) or values to a region's pool", cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		switch {
		case add.Region == "" || add.Type == "":
			return usage("pool add needs --region and --type").withNext("tombolo pool add --region sydney --type public-address 203.0.113.0/28")
		case len(args) == 0 && len(add.Values) == 0:
			return usage("pool add needs a prefix, or --value for each value")
		case len(args) == 1:
			add.Prefix = args[0]
		}
		return a.sendAndShow(ctx, http.MethodPost, "/v1/pools", add, func(string) string { return pool([]string{add.Region, add.Type}) }, shape{name: "type", columns: poolColumns})
	})
	f := addCmd.Flags()
	f.StringVar(&add.Region, "region", "", "the pool's region")
	f.StringVar(&add.Type, "type", "", "type of region-bound resource: public-address, vpn-endpoint, …")
	f.StringSliceVar(&add.Values, "value", nil, "values one by one, for types that have no prefixes")
	f.StringVar(&add.Bind, "bind", "", "where the prefix is really bound, as CIDR of the same size; auto: in 127.0.0.0/8, port 80 at 8080, where nobody needs privileges")
	f.IntVar(&add.PortOffset, "port-offset", 0, "added to ports where they are really bound")

	lease := struct {
		For   string `json:"for"`
		Note  string `json:"note"`
		Value string `json:"value,omitempty"`
	}{}
	leaseCmd := a.verb("lease REGION TYPE", "Lease one value by hand", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		return a.sendAndShow(ctx, http.MethodPost, pool(args)+"/leases", lease, func(string) string { return pool(args) }, shape{items: "leases", name: "id", columns: leaseColumns})
	})
	leaseCmd.Flags().StringVar(&lease.For, "for", "", "the account that gets it")
	leaseCmd.Flags().StringVar(&lease.Note, "note", "", "what it is for")
	leaseCmd.Flags().StringVar(&lease.Value, "value", "", "this value; otherwise the lowest free")
	release := a.verb("release REGION TYPE LEASE", "Take back a lease that was granted by hand", cobra.ExactArgs(3), func(ctx context.Context, args []string) error {
		return a.sendAndShow(ctx, http.MethodDelete, pool(args)+"/leases/"+url.PathEscape(args[2]), nil, func(string) string { return pool(args) }, shape{name: "type", columns: poolColumns})
	})
	return noun("pool", "Stocks of region-bound resources", ls, show, addCmd, leaseCmd, release)
}

// poolParts are a pool's ranges and, under them, its leases.
var poolParts = &shape{items: "contents", name: "prefix", columns: []column{{"RANGE", "prefix", false}, {"VALUES", "values", false}, {"BOUND TO", "bind", false}, {"PORT OFFSET", "port_offset", false}},
	parts: &shape{items: "leases", name: "id", columns: leaseColumns}}

var leaseColumns = []column{{"LEASE", "id", false}, {"VALUE", "value", false}, {"BOUND TO", "bound_to", false}, {"PORT OFFSET", "port_offset", true}, {"RESOURCE", "resource", false}, {"ACCOUNT", "account", false},
	{"INSTANCE", "instance", false}, {"ENVIRONMENT", "environment", false}, {"CHOSEN", "chosen", true}, {"SINCE", "since", true}}
