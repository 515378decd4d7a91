package main

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
)

// shownContext is a context without its secrets.
type shownContext struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	HTTP    string `json:"http"`
	NATS    string `json:"nats,omitempty"`
	Account string `json:"account"`
	User    string `json:"user"`
	File    string `json:"file"`
	Problem string `json:"problem,omitempty"`
}

var contextColumns = []column{{"NAME", "name", false}, {"CURRENT", "current", false}, {"HTTP", "http", false}, {"ACCOUNT", "account", false},
	{"USER", "user", false}, {"PROBLEM", "problem", false}, {"NATS", "nats", true}, {"FILE", "file", true}}

func (a *app) contextCommand() *cobra.Command {
	ls := a.verb("ls", "Which contexts are there?", cobra.NoArgs, func(context.Context, []string) error {
		known, err := a.contexts()
		if err != nil {
			return err
		}
		list := struct {
			Items []shownContext `json:"items"`
		}{[]shownContext{}}
		for _, name := range slices.Sorted(maps.Keys(known.Files)) {
			list.Items = append(list.Items, describe(known, name))
		}
		b, err := json.Marshal(list)
		if err != nil {
			return err
		}
		return a.show(b, shape{items: "items", name: "name", columns: contextColumns})
	})
	show := a.verb("show [NAME]", "One context, without its secrets", cobra.MaximumNArgs(1), func(_ context.Context, args []string) error {
		known, err := a.contexts()
		if err != nil {
			return err
		}
		name := known.Current
		if len(args) > 0 {
			name = args[0]
		} else if a.context != "" {
			name = a.context
		}
		if _, ok := known.Files[name]; !ok {
			return fail(exitNotFound, "context-unknown", "there is no context %q", name).withNext("tombolo context ls")
		}
		b, err := json.Marshal(describe(known, name))
		if err != nil {
			return err
		}
		return a.show(b, shape{name: "name", columns: contextColumns})
	})
	use := a.verb("use NAME|FILE", "Make a context the current one", cobra.ExactArgs(1), func(_ context.Context, args []string) error {
		known, err := a.contexts()
		if err != nil {
			return err
		}
		name := args[0]
		if _, ok := known.Files[name]; !ok {
			c, err := contexts.Read(name)
			if err != nil {
				return fail(exitNotFound, "context-unknown", "%q is neither a context nor the file of one: %v", name, err).withNext("tombolo context ls")
			}
			if name, err = filepath.Abs(name); err != nil {
				return err
			}
			known.Files[c.Name], name = name, c.Name
		}
		known.Current = name
		if err := known.Save(); err != nil {
			return err
		}
		a.say("the current context is %s", name)
		return nil
	})
	return noun("context", "Which server, and as whom", ls, show, use)
}

func (a *app) contexts() (contexts.Known, error) {
	if err := a.checkOutput(); err != nil {
		return contexts.Known{}, err
	}
	dir, err := a.configDir()
	if err != nil {
		return contexts.Known{}, err
	}
	return contexts.Load(dir)
}

func describe(known contexts.Known, name string) shownContext {
	out := shownContext{Name: name, Current: name == known.Current, File: known.Files[name]}
	c, err := contexts.Read(known.Files[name])
	switch {
	case os.IsNotExist(err):
		out.Problem = "its file is gone"
	case err != nil:
		out.Problem = err.Error()
	default:
		out.HTTP, out.NATS, out.Account, out.User = c.HTTP, c.NATS, string(c.Account), string(c.User)
	}
	return out
}
