package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/handlers/api"
)

//go:embed sample.yaml
var sample []byte

var envColumns = []column{{"ENVIRONMENT", "id", false}, {"NAME", "name", false}, {"REGION", "region", false}, {"STATE", "state", false},
	{"POWER", "power_now", false}, {"CREATED", "created_at", false}, {"TEMPLATE", "origin.template", true}, {"VERSION", "origin.version", true},
	{"CAUSE", "cause.text", true}, {"REVISION", "revision", true}}

var nodeColumns = []column{{"NODE", "id", false}, {"TYPE", "type", false}, {"NAME", "name", false}}

// nodeParts are the nodes of a graph, below what consists of them.
var nodeParts = &shape{items: "content.nodes", name: "id", columns: []column{{"NODE", "id", false}, {"TYPE", "type", false}, {"POWER", "power", false}, {"NAME", "name", true}}}

func envPath(ref string) string { return "/v1/environments/" + url.PathEscape(ref) }

func (a *app) envCommand() *cobra.Command {
	machines := *machineParts
	machines.parts = nodeParts
	one := shape{name: "id", columns: envColumns, parts: &machines}
	init := a.verb("init [FILE]", "Write a commented sample (environment.yaml)", cobra.MaximumNArgs(1), func(_ context.Context, args []string) error {
		return a.envInit(append(args, "environment.yaml")[0])
	})
	schema := a.verb("schema", "The JSON Schema of the file", cobra.NoArgs, func(context.Context, []string) error {
		b, err := api.SpecSchema()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out, string(b))
		return err
	})
	var region string
	in := func() url.Values {
		q := url.Values{}
		set(q, "region", region)
		return q
	}
	where := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&region, "region", "", "where it is, if several regions have the name")
		return c
	}
	ls := a.verb("ls", "Which environments are there?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		return a.showList(ctx, "/v1/environments", in(), shape{items: "items", name: "id", columns: envColumns})
	})
	ls.Flags().StringVar(&region, "region", "", "only in this region")
	show := where(a.verb("show ENV", "One environment", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, envPath(args[0]), in(), one)
	}))
	commands := []*cobra.Command{init, schema, a.envCreate(one), a.envImport(one), a.envExport(), ls, show, a.envSave(), a.envConsole(), a.envScreenshot()}
	commands = append(append(commands, a.envPower(one)...), a.envEdge())
	remove := a.planned(where(a.verb("delete ENV", "Delete it", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if a.dryRun {
			return a.showOne(ctx, envPath(args[0]), in(), one)
		}
		if err := a.confirm("delete environment %s?", args[0]); err != nil {
			return err
		}
		path := envPath(args[0])
		if q := in().Encode(); q != "" {
			path += "?" + q
		}
		return a.sendOnly(ctx, http.MethodDelete, path, nil)
	})))
	remove.Flags().Lookup("dry-run").Usage = "print what would be deleted and do nothing"
	return noun("env", "Environments: running virtual data centers", append(commands, remove)...)
}

// envInit writes the sample, and never over a file that is there.
func (a *app) envInit(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if os.IsExist(err) {
		return fail(exitConflict, "file-exists", "%s is there already", path).withNext("name another file")
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(sample); err != nil {
		f.Close()
		return err
	}
	a.say("%s is written; tombolo env create -f %s --region REGION", path, path)
	return f.Close()
}

// envCreate declares an environment and sends its disks to its region.
func (a *app) envCreate(one shape) *cobra.Command {
	var file, region string
	c := a.verb("create -f FILE --region R", "Make an environment of a file and its disks", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if file == "" || region == "" {
			return usage("env create needs -f and --region").withNext("tombolo env init writes a sample file")
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		spec, err := c.readSpec(ctx, file)
		if err != nil {
			return err
		}
		if a.dryRun {
			return a.show(spec.checked, shape{items: "graph.nodes", name: "id", columns: nodeColumns})
		}
		b, accepted, err := c.write(ctx, http.MethodPost, "/v1/environments", map[string]any{"region": region, "spec": spec.body})
		if err != nil {
			return err
		}
		var created api.AcceptedEnvironment
		if err := json.Unmarshal(b, &created); err != nil {
			return err
		}
		if err := c.upload(ctx, accepted.ID, spec.disks); err != nil {
			_, never := errors.AsType[*contentError](err)
			if f, ok := errors.AsType[*failure](err); ok && f.Code == "store-full" {
				never = true // what was sent takes up the room that others need
			}
			if never || errors.Is(err, context.Canceled) {
				return c.abandon(ctx, accepted.ID, err)
			}
			return err
		}
		if err := c.await(ctx, accepted.Operation); err != nil {
			return err
		}
		if b, err = c.read(ctx, envPath(accepted.ID), nil); err != nil {
			return err
		}
		return a.show(b, one)
	})
	c.Flags().StringVarP(&file, "file", "f", "", "what it consists of (YAML); disk paths are relative to it")
	c.Flags().StringVar(&region, "region", "", "where it is made")
	return a.planned(c)
}

const memoryUsage = "with the memory of running machines: what is made of it goes on where they were, rather than boot"

// envSave saves an environment as a new template or as a further version.
func (a *app) envSave() *cobra.Command {
	var name, ref, region, policy string
	var regions []string
	var memory bool
	c := a.verb("save ENV --new NAME | --replace REF", "Save it as a new template, or as a further version of one", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		one := shape{name: "id", columns: templateColumns}
		switch {
		case name != "" && ref != "":
			return usage("env save: --new or --replace, not both")
		case name != "":
			return a.sendAndShow(ctx, http.MethodPost, "/v1/templates", map[string]any{"environment": args[0], "region": region, "name": name, "regions": regions, "memory": memory}, templatePath, one)
		case ref != "":
			body, err := replaceRequest(args[0], region, policy, "", nil, memory)
			if err != nil {
				return err
			}
			return a.sendAndShow(ctx, http.MethodPost, templatePath(ref)+"/replace", body, templatePath, one)
		}
		return fail(exitConfirm, "save-ambiguous", "whether %s is saved as a new template or replaces one was not said; nothing was done", args[0]).withNext("--new NAME or --replace REF")
	})
	f := c.Flags()
	f.StringVar(&name, "new", "", "as a new template of this name")
	f.StringSliceVar(&regions, "regions", nil, "that should hold the new template")
	f.StringVar(&ref, "replace", "", "as a further version of this template")
	f.StringVar(&policy, "policy", "all", "of a replacement: all, quorum=N or available")
	f.BoolVar(&memory, "memory", false, memoryUsage)
	f.StringVar(&region, "region", "", "where it is, if several regions have the name")
	return c
}
