package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/asyncapi"
)

var eventColumns = []column{{"SEQUENCE", "sequence", false}, {"TIME", "stored", false}, {"TYPE", "type", false}, {"SUBJECT", "subject", false},
	{"ACTOR", "actoruser", false}, {"REVISION", "revision", true}, {"CORRELATION", "correlation", true}, {"DIGEST", "digest", true}}

// eventFilter is what people may narrow events down by.
type eventFilter struct {
	kinds, types []string
	region, id   string
	from, to     uint64

	actor, correlation, until string
}

func (e *eventFilter) flags(c *cobra.Command) *cobra.Command {
	f := c.Flags()
	f.StringSliceVar(&e.kinds, "kind", nil, "only of these kinds of aggregate")
	f.StringSliceVar(&e.types, "type", nil, "only of these types; a trailing * stands for any end")
	f.StringVar(&e.region, "region", "", "only of this region")
	f.StringVar(&e.id, "id", "", "only of the aggregate or operation with this id")
	f.Uint64Var(&e.from, "from", 0, "first sequence")
	f.Uint64Var(&e.to, "to", 0, "last sequence")
	f.StringVar(&e.actor, "actor", "", "only what this user caused")
	f.StringVar(&e.correlation, "correlation", "", "only of this operation, or of what a client gave")
	return c
}

func (e *eventFilter) query() url.Values {
	q := url.Values{}
	for _, k := range e.kinds {
		q.Add("kind", k)
	}
	for _, t := range e.types {
		q.Add("type", t)
	}
	set(q, "region", e.region)
	set(q, "id", e.id)
	set(q, "actor", e.actor)
	set(q, "correlation", e.correlation)
	set(q, "until", e.until)
	if e.from > 0 {
		q.Set("from", strconv.FormatUint(e.from, 10))
	}
	if e.to > 0 {
		q.Set("to", strconv.FormatUint(e.to, 10))
	}
	return q
}

func (a *app) eventsCommand() *cobra.Command {
	var filter eventFilter
	var follow bool
	c := a.verb("events", "What has happened, and with --follow what happens", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		c, err := a.ready()
		if err != nil {
			return err
		}
		if follow {
			return c.follow(ctx, filter.query())
		}
		return c.history(ctx, filter.query())
	})
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	c.AddCommand(a.eventsSchema())
	return filter.flags(c)
}

func (a *app) eventsSchema() *cobra.Command {
	var schema int
	c := a.verb("schema [TYPE]", "The JSON Schema of an event's data; without a type the AsyncAPI document of all", cobra.MaximumNArgs(1), func(_ context.Context, args []string) error {
		b, err := asyncapi.Document()
		if len(args) > 0 {
			if schema == 0 {
				for _, d := range events.NewRegistry().Definitions() {
					if string(d.Type) == args[0] {
						schema = d.Schema
					}
				}
			}
			b, err = asyncapi.Schema(events.Type(args[0]), schema)
		}
		if errors.Is(err, asyncapi.ErrUnknown) {
			return fail(exitNotFound, "event-type-unknown", "there is no event %s with a schema %d", args[0], schema).withNext("tombolo events schema lists all, under components.messages")
		}
		if err != nil {
			return err
		}
		_, err = a.out.Write(b)
		return err
	})
	c.Flags().IntVar(&schema, "schema", 0, "an older one than today's")
	return c
}

// history prints a part of the history, page by page; as JSON one event a line.
func (c *client) history(ctx context.Context, q url.Values) error {
	return c.pages(ctx, q, c.app.showEvents)
}

// pages reads a part of the history as of one moment and calls each with every
// page of it, its events and the whole answer.
func (c *client) pages(ctx context.Context, q url.Values, each func(items []json.RawMessage, page []byte) error) error {
	for {
		r, err := c.request(ctx, http.MethodGet, "/v1/events", q, nil)
		if err != nil {
			return err
		}
		b, _, err := c.send(r)
		if err != nil {
			return err
		}
		var page struct {
			Items    []json.RawMessage `json:"items"`
			Next     uint64            `json:"next"`
			Position uint64            `json:"position"`
		}
		if err := json.Unmarshal(b, &page); err != nil {
			return err
		}
		if err := each(page.Items, b); err != nil {
			return err
		}
		if page.Next == 0 {
			return nil
		}
		q.Set("from", strconv.FormatUint(page.Next, 10))
		q.Del("until")
		q.Set("to", strconv.FormatUint(page.Position, 10)) // of one moment
	}
}

func (a *app) showEvents(items []json.RawMessage, page []byte) error {
	if a.output != "json" {
		return a.show(page, shape{items: "items", name: "id", columns: eventColumns})
	}
	for _, e := range items {
		if err := a.line(e); err != nil {
			return err
		}
	}
	return nil
}

// line prints one JSON value on one line.
func (a *app) line(value []byte) error {
	var out bytes.Buffer
	if err := json.Compact(&out, value); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.out, out.String())
	return err
}

// follow prints events as they come, over broken connections too.
func (c *client) follow(ctx context.Context, q url.Values) error {
	last, pause := "", time.Second
	for {
		err := c.stream(ctx, "/v1/events", q, last, func(id, _ string, data []byte) error {
			last, pause = id, time.Second
			if c.app.output == "json" {
				return c.app.line(data)
			}
			return c.app.show(append(append([]byte(`{"items":[`), data...), `]}`...), shape{items: "items", name: "id", columns: eventColumns})
		})
		if ctx.Err() != nil {
			return nil // ctrl-C is how it ends
		}
		if err == nil && q.Get("to") != "" {
			return nil
		}
		if f, ok := err.(*failure); ok && f.Code != "server-unreachable" {
			return f
		}
		c.app.say("the stream broke off; going on after %s", last)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
			pause = min(2*pause, 30*time.Second)
		}
	}
}

// stream reads server-sent events (WHATWG HTML, 9.2.6) until the server ends
// them; each gets those that have data.
func (c *client) stream(ctx context.Context, path string, q url.Values, last string, each func(id, event string, data []byte) error) error {
	r, err := c.request(ctx, http.MethodGet, path, q, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "text/event-stream")
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return c.unreachable(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		var b bytes.Buffer
		if _, err := b.ReadFrom(resp.Body); err != nil {
			return c.unreachable(err)
		}
		return c.problem(resp, b.Bytes())
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	var id, event string
	var data []byte
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "id":
			id = value
		case "event":
			event = value
		case "data":
			data = append(data, value...)
		}
		if lines.Text() == "" && data != nil {
			if err := each(id, event, data); err != nil {
				return err
			}
			event, data = "", nil
		}
	}
	return lines.Err()
}
