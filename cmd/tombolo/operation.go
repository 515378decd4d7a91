package main

import (
	"context"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/events"
)

var operationColumns = []column{{"OPERATION", "id", false}, {"KIND", "kind", false}, {"STATE", "state", false}, {"TEMPLATE", "template", false},
	{"ENVIRONMENT", "environment", false}, {"REGION", "region", false}, {"STARTED", "started_at", false}, {"ENDED", "ended_at", true}, {"CAUSE", "cause.code", true}}

var partColumns = []column{{"REGION", "region", false}, {"KIND", "kind", false}, {"STEP", "step", false}, {"STATE", "state", false}, {"SINCE", "since", false},
	{"CAUSE", "cause.text", false}, {"RECEIVED", "received", true}, {"STORED", "stored", true}, {"ID", "id", true}}

func operationPath(id string) string { return "/v1/operations/" + url.PathEscape(id) }

func (a *app) operationCommand() *cobra.Command {
	var template string
	ls := a.verb("ls", "What was set in motion, the newest first", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		q := url.Values{}
		set(q, "template", template)
		return a.showList(ctx, "/v1/operations", q, shape{items: "items", name: "id", columns: operationColumns})
	})
	ls.Flags().StringVar(&template, "template", "", "only of this template")
	show := a.verb("show OPERATION", "One operation with its parts", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		s := shape{items: "parts", name: "id", columns: partColumns, parts: &shape{items: "failed_machines", name: "machine",
			columns: []column{{"MACHINE", "machine", false}, {"CAUSE", "cause.text", false}, {"NEXT", "cause.next", false}}}}
		if a.output == "name" {
			s.items = ""
		}
		return a.showOne(ctx, operationPath(args[0]), nil, s)
	})
	wait := a.verb("wait OPERATION", "Wait until it has ended (exit 7: not in time; 8, 9: it failed)", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		c, err := a.ready()
		if err != nil {
			return err
		}
		a.wait, a.noWait = true, false
		if err := c.await(ctx, events.OperationID(args[0])); err != nil {
			return err
		}
		return a.showOne(ctx, operationPath(args[0]), nil, shape{name: "id", columns: operationColumns})
	})
	cancel := a.verb("cancel OPERATION", "Undo what is not finished", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.sendAndShow(ctx, http.MethodPost, operationPath(args[0])+"/cancel", nil, operationPath, shape{name: "id", columns: operationColumns})
	})
	var region string
	retry := a.verb("retry OPERATION", "Try again what failed, in one region or in all", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.sendAndShow(ctx, http.MethodPost, operationPath(args[0])+"/retry", map[string]string{"region": region}, operationPath, shape{name: "id", columns: operationColumns})
	})
	retry.Flags().StringVar(&region, "region", "", "only there")
	return noun("operation", "What commands set in motion", ls, show, wait, cancel, retry)
}

var workColumns = []column{{"WORK", "work", false}, {"REGION", "region", false}, {"KIND", "kind", false}, {"STATE", "state", false}, {"SINCE", "since", false},
	{"CAUSE", "cause.text", false}, {"OPERATION", "operation", true}, {"ATTEMPT", "attempt", true}, {"EPOCH", "epoch", true}}

func (a *app) workCommand() *cobra.Command {
	path := func(id string) string { return "/v1/work/" + url.PathEscape(id) }
	var region, operation, state string
	ls := a.verb("ls", "What regions have to do, and what went wrong", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		q := url.Values{}
		set(q, "region", region)
		set(q, "operation", operation)
		set(q, "state", state)
		return a.showList(ctx, "/v1/work", q, shape{items: "items", name: "work", columns: workColumns})
	})
	ls.Flags().StringVar(&region, "region", "", "only of this region")
	ls.Flags().StringVar(&operation, "operation", "", "only of this operation")
	ls.Flags().StringVar(&state, "state", "open", "open, or trouble: failed and stuck ones")
	show := a.verb("show WORK", "One work order", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, path(args[0]), nil, shape{name: "work", columns: workColumns})
	})
	retry := a.verb("retry WORK", "Open a failed or stuck work order again", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.sendAndShow(ctx, http.MethodPost, path(args[0])+"/retry", nil, path, shape{name: "work", columns: workColumns})
	})
	var why string
	off := a.verb("write-off WORK --why TEXT", "Close a work order that nobody will do any more", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if why == "" {
			return usage("work write-off needs --why, for whoever looks at it later")
		}
		return a.sendAndShow(ctx, http.MethodPost, path(args[0])+"/write-off", map[string]string{"why": why}, path, shape{name: "work", columns: workColumns})
	})
	off.Flags().StringVar(&why, "why", "", "for whoever looks at it later")
	return noun("work", "Work orders of regions", ls, show, retry, off)
}

func (a *app) handlerCommand() *cobra.Command {
	parked := shape{items: "items", name: "key", columns: []column{{"PROCESS", "process", false}, {"KEY", "key", false}, {"CAUSE", "cause.text", false}, {"EVENTS", "sequences", false}}}
	ls := a.verb("ls", "What process managers and the inbox have parked", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		return a.showOne(ctx, "/v1/handlers", nil, parked)
	})
	on := func(verb, short, question string) *cobra.Command {
		return a.verb(verb+" PROCESS KEY", short, cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
			if question != "" {
				if err := a.confirm(question, args[0], args[1]); err != nil {
					return err
				}
			}
			c, err := a.ready()
			if err != nil {
				return err
			}
			b, _, err := c.write(ctx, http.MethodPost, "/v1/handlers/"+url.PathEscape(args[0])+"/"+url.PathEscape(args[1])+"/"+verb, nil)
			if err != nil {
				return err
			}
			return a.show(b, parked)
		})
	}
	return noun("handler", "Process managers", ls, on("retry", "Handle again what is parked; shows what is parked then", ""),
		on("skip", "Leave out what is parked, for good", "what %s has parked for %s is never handled; go on?"))
}
