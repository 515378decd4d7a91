package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Operation is what a command set in motion.
type Operation struct {
	projections.OperationRow
	Ended bool `json:"ended" doc:"nothing more happens by itself"`
}

func showOperation(o projections.OperationRow) Operation { return Operation{o, o.State.Ended()} }

// OneOperation is an operation with its parts: the tree.
type OneOperation struct {
	Known
	Operation
	Parts    []projections.PartRow `json:"parts"`
	Machines []FailedMachine       `json:"failed_machines,omitempty" doc:"of the environment that it is about, if it did not succeed: those that have failed"`
}

// FailedMachine is a machine that does not run because something went wrong.
type FailedMachine struct {
	Machine string        `json:"machine"`
	Cause   *events.Cause `json:"cause,omitempty"`
}

// failedMachines are those of the environment of an operation that has ended
// with less than it was to bring about.
func failedMachines(v projections.Reader, o projections.OperationRow) ([]FailedMachine, error) {
	if o.Environment == "" || !o.State.Ended() || o.State == projections.OperationSucceeded {
		return nil, nil
	}
	rows, err := projections.Environments{}.Machines(v, o.Environment)
	var out []FailedMachine
	for _, m := range rows {
		if m.Observed == events.MachineFailed {
			out = append(out, FailedMachine{m.Machine, m.Cause})
		}
	}
	return out, err
}

type operationsInput struct {
	Paged
	Template string `query:"template" doc:"only of this template (a reference)"`
}

type operationInput struct {
	Read
	Operation string `path:"operation"`
	Wait      int    `query:"wait" minimum:"0" maximum:"60" doc:"answer when it has ended, or after so many seconds"`
}

// OperationWrite is what every write to one operation takes. It is exported for the
// reader of input structs, which skips embedded types that are not.
type OperationWrite struct {
	Write
	Operation string `path:"operation"`
}

type operationRetry struct {
	OperationWrite
	Body struct {
		Region string `json:"region,omitempty" doc:"only there"`
	}
}

type operationBody struct {
	Operation string          `json:"operation"`
	Region    events.RegionID `json:"region,omitempty"`
}

func (s *Server) operationRoutes() {
	get(s, "/v1/operations", "list-operations", "What was set in motion, the newest first", func(ctx context.Context, v at, in *operationsInput) (List[Operation], uint64, error) {
		account, _, err := in.account(ctx)
		if err != nil {
			return List[Operation]{}, 0, err
		}
		var page projections.Page[projections.OperationRow]
		if in.Template == "" {
			page, err = projections.Operations{}.List(v, account, in.Limit, in.Next)
		} else {
			t, terr := projections.Catalogue{}.Resolve(v, account, in.Template)
			if terr != nil {
				return List[Operation]{}, 0, terr
			}
			page, err = projections.Operations{}.OfTemplate(v, t.Template.Number, in.Limit, in.Next)
		}
		return listed(v.known, page, showOperation), 0, err
	})
	get(s, "/v1/operations/{operation}", "get-operation", "One operation with its parts", s.getOperation)
	command(s, http.MethodPost, "/v1/operations/{operation}/cancel", "cancel-operation", "Undo what is not finished", func(ctx context.Context, in *OperationWrite) (Accepted, error) {
		o, err := s.knownOperation(ctx, in.Scope, in.Operation)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, o.Account, events.KindOperation, "cancel", operationBody{Operation: in.Operation})
	})
	command(s, http.MethodPost, "/v1/operations/{operation}/retry", "retry-operation", "Try again what failed, in one region or in all", func(ctx context.Context, in *operationRetry) (Accepted, error) {
		o, err := s.knownOperation(ctx, in.Scope, in.Operation)
		if err != nil {
			return Accepted{}, err
		}
		body := operationBody{Operation: in.Operation}
		if in.Body.Region != "" {
			if body.Region, err = s.knownRegion(ctx, in.Body.Region); err != nil {
				return Accepted{}, err
			}
		}
		return s.send(ctx, in.Write, o.Account, events.KindOperation, "retry", body)
	})
	huma.Register(s.api, huma.Operation{OperationID: "follow-progress", Method: http.MethodGet, Path: "/v1/operations/{operation}/progress", Tags: []string{"operations"},
		Summary: "How its transfers go, as server-sent events until it has ended", Responses: progressResponses(s.api.OpenAPI().Components.Schemas)}, s.followProgress)
}

func progressResponses(schemas huma.Registry) map[string]*huma.Response {
	schemas.Schema(typeOf[region.Progress](), true, "Progress")
	return map[string]*huma.Response{"200": {Description: "Progress", Content: map[string]*huma.MediaType{
		"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString, Description: "events progress (data is a Progress) and ended"}}}}}
}

// operation reads one that the caller may see.
func operation(ctx context.Context, v projections.Reader, scope Scope, id string) (projections.OperationRow, error) {
	account, all, err := scope.account(ctx)
	if err != nil {
		return projections.OperationRow{}, err
	}
	o, ok, err := projections.Operations{}.Operation(v, events.OperationID(id))
	if err == nil && (!ok || o.Account != account && !all && !callerOf(ctx).administrates()) {
		err = aggregates.RefuseAs(aggregates.NotFound, "operation-unknown", "there is no operation %q", id).WithNext("tombolo operation ls")
	}
	return o, err
}

func (s *Server) knownOperation(ctx context.Context, scope Scope, id string) (projections.OperationRow, error) {
	return resolved(ctx, s, func(v at) (projections.OperationRow, error) { return operation(ctx, v, scope, id) })
}

// getOperation waits, if asked, by looking again at every event.
func (s *Server) getOperation(ctx context.Context, v at, in *operationInput) (OneOperation, uint64, error) {
	o, err := operation(ctx, v, in.Scope, in.Operation)
	if err != nil {
		return OneOperation{}, 0, err
	}
	if in.Wait > 0 && in.AsOf == "" && !o.State.Ended() {
		if err := s.waitEnded(ctx, v.Position(), o.ID, time.Duration(in.Wait)*time.Second); err != nil {
			return OneOperation{}, 0, err
		}
		later, err := s.view(ctx, Read{})
		if err != nil {
			return OneOperation{}, 0, err
		}
		defer later.Close()
		v = later
		if o, err = operation(ctx, v, in.Scope, in.Operation); err != nil {
			return OneOperation{}, 0, err
		}
	}
	parts, err := projections.Operations{}.Parts(v, o.ID)
	if parts == nil {
		parts = []projections.PartRow{}
	}
	if err != nil {
		return OneOperation{}, 0, err
	}
	machines, err := failedMachines(v, o)
	return OneOperation{v.known, showOperation(o), parts, machines}, o.Revision, err
}

// waitEnded returns when the operation has ended or the time is over.
func (s *Server) waitEnded(ctx context.Context, position uint64, id events.OperationID, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		var behind *projections.BehindError
		if err := s.Feed.WaitFor(ctx, position+1); errors.As(err, &behind) {
			return nil // nothing has happened: it is shown as it is
		} else if err != nil {
			return err
		}
		v, err := s.Feed.Now()
		if err != nil {
			return err
		}
		position = v.Position()
		o, _, err := projections.Operations{}.Operation(v, id)
		if err = errors.Join(err, v.Close()); err != nil || o.State.Ended() {
			return err
		}
	}
}

type progressInput struct {
	Read
	Operation string `path:"operation"`
}

// followProgress streams transfers until the operation has ended.
func (s *Server) followProgress(ctx context.Context, in *progressInput) (*huma.StreamResponse, error) {
	o, err := lookup(ctx, s, in.Read, func(v at) (projections.OperationRow, error) { return operation(ctx, v, in.Scope, in.Operation) })
	if err != nil {
		return nil, s.problemOf(ctx, err)
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		out := newEventWriter(c)
		ctx, cancel := context.WithCancel(c.Context())
		defer cancel()
		stop := out.beat(ctx, streamBeat, func() uint64 { return s.Feed.Status().Position })
		defer stop()
		if out.comment(s.Feed.Status().Position) != nil {
			return
		}
		followed := make(chan struct{})
		go func() {
			defer close(followed)
			if s.Progress == nil {
				return
			}
			err := s.Progress.Follow(ctx, o.Account, o.ID, func(t json.RawMessage) error { return out.send("", "progress", t) })
			if err != nil && ctx.Err() == nil {
				s.Log.Warn("progress cannot be followed", "operation", o.ID, "error", err)
			}
		}()
		for !o.State.Ended() && ctx.Err() == nil {
			if s.waitEnded(ctx, 0, o.ID, streamWrite) != nil {
				break
			}
			next, err := lookup(ctx, s, Read{}, func(v at) (projections.OperationRow, error) { return operation(ctx, v, in.Scope, in.Operation) })
			if err != nil {
				break
			}
			o = next
		}
		cancel()
		<-followed
		if o.State.Ended() {
			if err := out.send("", "ended", showOperation(o)); err != nil {
				s.Log.Debug("an operation's end could not be sent", "error", err)
			}
		}
	}}, nil
}
