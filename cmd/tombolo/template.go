package main

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

var templateColumns = []column{{"TEMPLATE", "number", false}, {"NAME", "name", false}, {"VERSION", "active_version", false}, {"STATE", "state", false},
	{"REGIONS", "regions", false}, {"CREATED", "created_at", false}, {"DISPLAY", "display", true}, {"STAGED", "staged_version", true},
	{"KEEP", "keep", true}, {"PROTECTED", "protected", true}, {"REVISION", "revision", true}}

var whereColumns = []column{{"REGION", "region", false}, {"VERSION", "version", false}, {"STATE", "state", false}, {"ACTIVE", "active", false},
	{"WANTED", "wanted", false}, {"OBSERVED", "observed", false}, {"VERIFIED", "verified", false}, {"LOCATION", "location", false},
	{"BYTES", "bytes", true}, {"RECEIVED", "received", true}, {"INSTANCE", "instance_id", true}, {"DIGEST", "digest", true}, {"CREATED", "created_at", true}, {"CAUSE", "cause.code", false}}

var whereShape = shape{items: "regions", name: "region", columns: whereColumns}

func templatePath(ref string) string { return "/v1/templates/" + url.PathEscape(ref) }

// picked is a value that the user names for a resource in a region.
type picked struct {
	Region   string `json:"region"`
	Resource string `json:"resource"`
	Value    string `json:"value"`
}

// choices reads --map region:resource=value.
func choices(flags []string) ([]picked, error) {
	var out []picked
	for _, f := range flags {
		region, rest, ok := strings.Cut(f, ":")
		resource, value, ok2 := strings.Cut(rest, "=")
		if !ok || !ok2 || region == "" || resource == "" || value == "" {
			return nil, usage("--map %s is not REGION:RESOURCE=VALUE", f).withNext("--map sydney:web.public=203.0.113.7")
		}
		out = append(out, picked{region, resource, value})
	}
	return out, nil
}

func (a *app) templateCommand() *cobra.Command {
	one := shape{name: "id", columns: templateColumns}
	var region string
	var deleted, creating bool
	ls := a.verb("ls", "Which templates are there?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		q := url.Values{}
		set(q, "region", region)
		if deleted {
			q.Set("deleted", "true")
		}
		if creating {
			q.Set("creating", "true")
		}
		return a.showList(ctx, "/v1/templates", q, shape{items: "items", name: "number", columns: templateColumns})
	})
	ls.Flags().StringVar(&region, "region", "", "only those wanted in this region")
	ls.Flags().BoolVar(&deleted, "deleted", false, "deleted ones too")
	ls.Flags().BoolVar(&creating, "creating", false, "those too whose first version is still being saved")
	show := a.verb("show REF", "One template, its versions, and every node that it consists of", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, templatePath(args[0]), nil, shape{name: "id", columns: templateColumns, parts: nodeParts})
	})
	instances := a.verb("instances REF", "All instances that it ever had", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, templatePath(args[0])+"/instances", nil, shape{items: "items", name: "instance_id", columns: whereColumns})
	})
	var in string
	var specific bool
	inspect := a.verb("inspect REF [--region R]", "What in it is bound to a region, and why; or what one region has in its place", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if in == "" || specific {
			return a.showOne(ctx, templatePath(args[0])+"/region-specific", nil, shape{items: "items", name: "resource", columns: []column{{"RESOURCE", "resource", false},
				{"TYPE", "type", false}, {"SOURCE", "value", false}, {"WHY", "why", false}, {"ASKS IN", "asks_in", false}, {"LEANS ON", "leans_on", true}}})
		}
		return a.showOne(ctx, templatePath(args[0])+"/inspect", url.Values{"region": {in}}, shape{items: "map", name: "resource", columns: []column{{"RESOURCE", "resource", false}, {"TYPE", "type", false}, {"SOURCE", "from", false}, {"HERE", "to", false}, {"BOUND TO", "bound_to", false}, {"CHOSEN", "chosen", false}, {"LEASE", "lease", true}}})
	})
	inspect.Flags().StringVar(&in, "region", "", "as this region has it")
	inspect.Flags().BoolVar(&specific, "region-specific", false, "what is bound to a region, and why (as without --region)")
	var between []string
	diff := a.verb("diff REF --between A,B", "What two regions' instances differ in", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if len(between) != 2 {
			return usage("template diff needs --between with two regions").withNext("--between beijing,sydney")
		}
		return a.showOne(ctx, templatePath(args[0])+"/diff", url.Values{"between": {strings.Join(between, ",")}}, shape{items: "items", name: "resource", columns: []column{{"RESOURCE", "resource", false}, {"TYPE", "type", false}, {"SOURCE", "source", false}, {strings.ToUpper(between[0]), "first", false}, {strings.ToUpper(between[1]), "second", false}}})
	})
	diff.Flags().StringSliceVar(&between, "between", nil, "two regions")
	protect := func(name, short string, on bool) *cobra.Command {
		return a.verb(name+" REF", short, cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
			return a.sendAndShow(ctx, http.MethodPost, templatePath(args[0])+"/protect", map[string]bool{"protected": on}, templatePath, one)
		})
	}
	var version int
	rollback := a.verb("rollback REF --to VERSION", "Move the reference back to a version that was kept", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if version < 1 {
			return usage("template rollback needs --to with a version")
		}
		return a.sendAndShow(ctx, http.MethodPost, templatePath(args[0])+"/rollback", map[string]int{"version": version}, templatePath, one)
	})
	rollback.Flags().IntVar(&version, "to", 0, "the version to go back to")
	versions := -1
	keep := a.verb("keep REF --versions N", "Change how many superseded versions stay; those beyond are removed", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if versions < 0 {
			return usage("template keep needs --versions with a number from 0")
		}
		return a.sendAndShow(ctx, http.MethodPost, templatePath(args[0])+"/keep", map[string]int{"keep": versions}, templatePath, one)
	})
	keep.Flags().IntVar(&versions, "versions", -1, "how many superseded versions stay")
	keep.Flags().Lookup("versions").DefValue = ""
	remove := a.planned(a.verb("delete REF", "Delete it with every copy", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if a.dryRun {
			return a.showOne(ctx, templatePath(args[0])+"/where", nil, whereShape)
		}
		if err := a.confirm("delete template %s with every copy?", args[0]); err != nil {
			return err
		}
		return a.sendOnly(ctx, http.MethodDelete, templatePath(args[0]), nil)
	}))
	remove.Flags().Lookup("dry-run").Usage = "print the copies that would be deleted and do nothing"
	return noun("template", "Templates: one reference, many regions", a.templateCreate(one), ls, show, a.templateRegions(one), a.templateReplace(one), a.templateInstantiate(), a.templateExport(), a.templateImport(one), instances, inspect, diff,
		rollback, keep, protect("protect", "Protect it against deletion", true), protect("unprotect", "Take the protection off", false), remove)
}

func (a *app) templateCreate(one shape) *cobra.Command {
	body := struct {
		Environment string   `json:"environment"`
		Region      string   `json:"region,omitempty"`
		Name        string   `json:"name"`
		Number      string   `json:"number,omitempty"`
		Regions     []string `json:"regions,omitempty"`
		Keep        int      `json:"keep,omitempty"`
		Choices     []picked `json:"choices,omitempty"`
		Protected   bool     `json:"protected,omitempty"`
		Memory      bool     `json:"memory,omitempty"`
	}{}
	var maps []string
	c := a.verb("create --from-env ENV --name NAME", "Save an environment as version 1 of a new template", cobra.NoArgs, func(ctx context.Context, _ []string) (err error) {
		if body.Environment == "" || body.Name == "" {
			return usage("template create needs --from-env and --name")
		}
		if body.Choices, err = choices(maps); err != nil {
			return err
		}
		return a.sendAndShow(ctx, http.MethodPost, "/v1/templates", body, templatePath, one)
	})
	f := c.Flags()
	f.StringVar(&body.Environment, "from-env", "", "the environment that is saved: id or name")
	f.StringVar(&body.Region, "from-region", "", "where it is, if several regions have the name")
	f.StringVar(&body.Name, "name", "", "as people call it")
	f.StringVar(&body.Number, "number", "", "eight digits; chosen by Tombolo unless given")
	f.StringSliceVar(&body.Regions, "regions", nil, "that should hold it; the environment's own always does")
	f.IntVar(&body.Keep, "keep", 0, "how many superseded versions stay (template keep changes it)")
	f.BoolVar(&body.Protected, "protect", false, "protect it against deletion")
	f.BoolVar(&body.Memory, "memory", false, memoryUsage)
	f.StringArrayVar(&maps, "map", nil, "a value named for a resource: REGION:RESOURCE=VALUE")
	return c
}

func (a *app) templateRegions(one shape) *cobra.Command {
	body := struct {
		Set     []string `json:"set,omitempty"`
		Add     []string `json:"add,omitempty"`
		Remove  []string `json:"remove,omitempty"`
		All     bool     `json:"all,omitempty"`
		None    bool     `json:"none,omitempty"`
		Confirm bool     `json:"confirm,omitempty"`
		Choices []picked `json:"choices,omitempty"`
	}{}
	var maps []string
	c := a.verb("regions REF", "Change which regions should hold it", cobra.ExactArgs(1), func(ctx context.Context, args []string) (err error) {
		ways := 0
		for _, given := range []bool{len(body.Set) > 0, len(body.Add)+len(body.Remove) > 0, body.All, body.None} {
			if given {
				ways++
			}
		}
		if ways != 1 {
			return usage("template regions needs one of --set, --add and --remove, --all, --none")
		}
		if body.Choices, err = choices(maps); err != nil {
			return err
		}
		if a.dryRun {
			c, err := a.ready()
			if err != nil {
				return err
			}
			b, _, err := c.write(ctx, http.MethodPost, "/v1/check/regions", map[string]any{"template": args[0], "set": body.Set, "add": body.Add, "remove": body.Remove, "all": body.All, "none": body.None})
			if err != nil {
				return err
			}
			return a.show(b, shape{name: "template", columns: []column{{"TEMPLATE", "template", false}, {"ADD", "add", false}, {"REMOVE", "remove", false}, {"STAY", "stay", false}, {"DELETES", "deletes", false}}})
		}
		if body.None {
			if err := a.confirm("in no region, template %s is deleted with every copy; go on?", args[0]); err != nil {
				return err
			}
			body.Confirm = true
			return a.sendOnly(ctx, http.MethodPost, templatePath(args[0])+"/regions", body)
		}
		return a.sendAndShow(ctx, http.MethodPost, templatePath(args[0])+"/regions", body, templatePath, one)
	})
	f := c.Flags()
	f.StringSliceVar(&body.Set, "set", nil, "exactly these")
	f.StringSliceVar(&body.Add, "add", nil, "these too")
	f.StringSliceVar(&body.Remove, "remove", nil, "these no longer")
	f.BoolVar(&body.All, "all", false, "every region that is active")
	f.BoolVar(&body.None, "none", false, "no region: deletes the template")
	f.StringArrayVar(&maps, "map", nil, "a value named for a resource: REGION:RESOURCE=VALUE")
	return a.planned(c)
}

func (a *app) templateReplace(one shape) *cobra.Command {
	var from, region, policy, deadline string
	var maps []string
	var memory bool
	c := a.verb("replace REF --from-env ENV", "Save a further version and switch the reference to it", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if from == "" {
			return usage("template replace needs --from-env")
		}
		body, err := replaceRequest(from, region, policy, deadline, maps, memory)
		if err != nil {
			return err
		}
		return a.sendAndShow(ctx, http.MethodPost, templatePath(args[0])+"/replace", body, templatePath, one)
	})
	f := c.Flags()
	f.StringVar(&from, "from-env", "", "the environment that is saved: id or name")
	f.StringVar(&region, "from-region", "", "where it is, if several regions have the name")
	f.StringVar(&policy, "policy", "all", "when the reference moves: all, quorum=N or available")
	f.BoolVar(&memory, "memory", false, memoryUsage)
	f.StringVar(&deadline, "deadline", "", "abandon it if it still waits then: RFC 3339, or a duration from now")
	f.StringArrayVar(&maps, "map", nil, "a value named for a resource: REGION:RESOURCE=VALUE")
	return c
}

// replaceBody is what a replacement is asked for with.
type replaceBody struct {
	Environment string   `json:"environment"`
	Region      string   `json:"region,omitempty"`
	Policy      string   `json:"policy,omitempty"`
	Quorum      int      `json:"quorum,omitempty"`
	Deadline    string   `json:"deadline,omitempty"`
	Choices     []picked `json:"choices,omitempty"`
	Memory      bool     `json:"memory,omitempty"`
}

func replaceRequest(from, region, policy, deadline string, maps []string, memory bool) (replaceBody, error) {
	b := replaceBody{Environment: from, Region: region, Policy: policy, Deadline: deadline, Memory: memory}
	var err error
	if b.Choices, err = choices(maps); err != nil {
		return b, err
	}
	if n, ok := strings.CutPrefix(policy, "quorum="); ok {
		b.Policy = "quorum"
		if b.Quorum, err = atoi("--policy quorum", n); err != nil {
			return b, err
		}
	} else if policy != "" && policy != "all" && policy != "available" {
		return b, usage("--policy %s: all, quorum=N or available", policy)
	}
	if d, err := time.ParseDuration(deadline); err == nil {
		b.Deadline = time.Now().Add(d).UTC().Format(time.RFC3339)
	}
	return b, nil
}

func (a *app) whereCommand() *cobra.Command {
	return a.verb("where TEMPLATE", "Which regions hold which version?", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, templatePath(args[0])+"/where", nil, whereShape)
	})
}
