package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// MaxBody is the most bytes that a command's body may have, unless its verb says otherwise.
const MaxBody = 64 << 10

// Verb is one command that can be sent: a line of the table.
type Verb struct {
	Kind    events.Kind
	Name    string
	Doc     string
	Starts  bool // an operation, whose id the answer carries
	Creates bool // something new, so that there is no revision to compare
	MaxBody int  // bytes
	Request *jsonschema.Schema

	bind func(ctx context.Context, body []byte, c *call) error
}

// String is "<kind>.<verb>".
func (v Verb) String() string { return string(v.Kind) + "." + v.Name }

// call is one command on its way: bind fills in region and run.
type call struct {
	door   *Door
	verb   *Verb
	origin Origin
	region events.RegionID // that the command concerns; None
	also   []string        // other verbs of its kind that the sender has to be allowed
	run    func(ctx context.Context) (Answer, error)
	plan   func(ctx context.Context) (any, error) // what run would do; nil where nobody asks
}

// mainRole is the role of the event that a command is about. It is the same for
// all verbs: a command id that comes again with another verb is noticed.
const mainRole = "command"

// operation is the id of what the command sets in motion.
func (c *call) operation() events.OperationID {
	return OperationOf(c.origin.Account, c.origin.Command.ID)
}

// OperationOf is the id of the operation that a command sets in motion, and
// under which the inbox records a refusal.
func OperationOf(account events.AccountID, command events.CommandID) events.OperationID {
	return events.OperationID(events.DeriveID(account, command, "operation"))
}

func (c *call) answer(o Outcome) Answer {
	a := Answer{
		CommandID: c.origin.Command.ID, Kind: o.Aggregate.Kind, ID: o.Aggregate.ID,
		Event: o.Event, EventID: o.EventID, Sequence: o.Sequence, Revision: o.Head.Revision, NothingToDo: o.Because,
	}
	if o.Aggregate.Region != events.None {
		a.Region = o.Aggregate.Region
	}
	if c.verb.Starts && o.Event != "" {
		a.Operation = c.operation()
	}
	return a
}

// fill completes a command after its body was read.
type fill[C any] struct {
	hidden   string // a field that is the door's to set: not in the schema, refused in a body
	optional string // a field that has a default
	starts   bool   // an operation
	set      func(ctx context.Context, to *C, c *call) error
	check    func(ctx context.Context, command *C, c *call) error // what no aggregate alone can refuse, once access is granted
	plan     func(ctx context.Context, command *C, c *call) (any, error)
}

// starts fills in the id of the operation that the command sets in motion.
func starts[C any](at func(*C) *events.OperationID) fill[C] {
	return fill[C]{hidden: "operation", starts: true, set: func(_ context.Context, to *C, c *call) error {
		*at(to) = c.operation()
		return nil
	}}
}

// commandID fills in the command's own id.
func commandID[C any](at func(*C) *events.CommandID) fill[C] {
	return fill[C]{hidden: "command", set: func(_ context.Context, to *C, c *call) error {
		*at(to) = c.origin.Command.ID
		return nil
	}}
}

// direct is a verb that maps one to one onto an aggregate's command.
func direct[C aggregates.Command[S, E], S aggregates.State[S, E], E events.Event](kind events.Kind, name, doc string, fills ...fill[C]) Verb {
	v := Verb{Kind: kind, Name: name, Doc: doc, MaxBody: MaxBody, Request: schemaOf[C]()}
	for _, f := range fills {
		v.Starts = v.Starts || f.starts
		f.amend(v.Request)
	}
	v.bind = func(ctx context.Context, body []byte, c *call) error {
		var command C
		if err := decode(body, v.Request, &command); err != nil {
			return err
		}
		for _, f := range fills {
			if f.set == nil {
				continue
			}
			if err := f.set(ctx, &command, c); err != nil {
				return err
			}
		}
		c.region = command.Aggregate(c.origin.Account).Region
		for _, f := range fills {
			if f.plan != nil {
				c.plan = func(ctx context.Context) (any, error) { return f.plan(ctx, &command, c) }
			}
		}
		c.run = func(ctx context.Context) (Answer, error) {
			for _, f := range fills {
				if f.check == nil {
					continue
				}
				if err := f.check(ctx, &command, c); err != nil {
					return Answer{}, err
				}
			}
			o, err := Execute(ctx, c.door.executor, c.origin, mainRole, command)
			if err != nil {
				return Answer{}, err
			}
			return c.answer(o), nil
		}
		return nil
	}
	return v
}

// composed is a verb of several steps: claims first, then the domain's event.
func composed[R any](kind events.Kind, name, doc string, maxBody int, steps func(ctx context.Context, c *call, request R) error) Verb {
	v := Verb{Kind: kind, Name: name, Doc: doc, Starts: true, Creates: true, MaxBody: maxBody, Request: schemaOf[R]()}
	v.bind = func(ctx context.Context, body []byte, c *call) error {
		var request R
		if err := decode(body, v.Request, &request); err != nil {
			return err
		}
		return steps(ctx, c, request)
	}
	return v
}

// amend makes the schema say what the client may and must send.
func (f fill[C]) amend(s *jsonschema.Schema) {
	for _, name := range []string{f.hidden, f.optional} {
		if name != "" && s.Properties[name] == nil {
			panic("the table names the field " + name + ", which its command does not have")
		}
	}
	s.Required = slices.DeleteFunc(s.Required, func(name string) bool { return name == f.hidden || name == f.optional })
	s.PropertyOrder = slices.DeleteFunc(s.PropertyOrder, func(name string) bool { return name == f.hidden })
	delete(s.Properties, f.hidden)
}

// schemaOf is the JSON Schema (2020-12) of a type. A type that has none is a
// mistake in the table, found at start.
func schemaOf[T any]() *jsonschema.Schema {
	s, err := jsonschema.For[T](nil)
	if err != nil {
		panic(err)
	}
	return s
}

func badRequest(format string, args ...any) *aggregates.Refusal {
	return aggregates.RefuseAs(aggregates.Invalid, "bad-request", format, args...)
}

// decode reads a body strictly: it is one JSON object with the schema's fields
// and no others, and none of the required ones is missing.
func decode(body []byte, schema *jsonschema.Schema, to any) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return undecodable(err)
	}
	if fields == nil {
		return badRequest("the body is not a JSON object")
	}
	for name := range fields {
		if schema.Properties[name] == nil {
			return badRequest("there is no field %.80q here", name).WithNext("the fields are: %s", strings.Join(schema.PropertyOrder, ", "))
		}
	}
	for _, name := range schema.Required {
		if _, ok := fields[name]; !ok {
			return badRequest("the field %q is missing", name)
		}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return undecodable(err)
	}
	return nil
}

func undecodable(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return badRequest("the body is not JSON: %v, at byte %d", syntax, syntax.Offset)
	case errors.As(err, &kind) && kind.Field == "":
		return badRequest("the body is a JSON %s, not an object", kind.Value)
	case errors.As(err, &kind):
		return badRequest("the field %q cannot be a %s", kind.Field, kind.Value)
	}
	return badRequest("the body cannot be read: %s", strings.TrimPrefix(err.Error(), "json: "))
}
