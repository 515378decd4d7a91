package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/processes"
	"github.com/tombolo-vdc/tombolo/projections"
)

// OneWork is a work order with what it is about.
type OneWork struct {
	Known
	projections.WorkRow
	Order events.Order `json:"order"`
}

// Handlers knows what process managers have parked: processes.Runner.
type Handlers interface {
	Parked() ([]processes.Parked, error)
	Retry(ctx context.Context, process, key string) error
	Skip(ctx context.Context, process, key string) error
}

// Inbox knows the durable commands that could not be executed: commands.Inbox.
type Inbox interface {
	Parked(ctx context.Context) ([]commands.Parked, error)
	Retry(ctx context.Context, sequence uint64) error
	Drop(ctx context.Context, sequence uint64) error
}

// inboxProcess is the name under which the inbox stands among the handlers; its
// keys are sequences.
const inboxProcess = "inbox"

// ParkedList is what is parked: what concerns it waits, everything else goes on.
type ParkedList struct {
	Known
	Items []processes.Parked `json:"items"`
}

// Resumed is the answer to a retry or a skip: what is parked then.
type Resumed struct {
	Items []processes.Parked `json:"items"`
}

// HandlerWrite names one parked key. It is exported for the reader of input
// structs, which skips embedded types that are not.
type HandlerWrite struct {
	Scope
	Process string `path:"process" doc:"the process that parked it; inbox for durable commands"`
	Key     string `path:"key"`
}

type worksInput struct {
	Read
	Region    string `query:"region" doc:"only of this region"`
	Operation string `query:"operation" doc:"only of this operation"`
	State     string `query:"state" enum:"open,trouble" doc:"open: an agent has something to do; trouble: failed or stuck (default)"`
}

type workInput struct {
	Read
	Work string `path:"work"`
}

// WorkWrite is what every write to one work order takes. It is exported for the
// reader of input structs, which skips embedded types that are not.
type WorkWrite struct {
	Write
	Work string `path:"work"`
}

type writeOff struct {
	WorkWrite
	Body struct {
		Why string `json:"why" minLength:"1" doc:"for whoever looks at it later"`
	}
}

// Bodies of commands, as the door's table has them.
type (
	workBody struct {
		Region events.RegionID `json:"region"`
		Work   events.WorkID   `json:"work"`
	}
	writeOffBody struct {
		workBody
		Why events.Cause `json:"why"`
	}
)

func (s *Server) workRoutes() {
	get(s, "/v1/work", "list-work", "What regions have to do, and what went wrong", s.listWork)
	get(s, "/v1/work/{work}", "get-work", "One work order", func(ctx context.Context, v at, in *workInput) (OneWork, uint64, error) {
		w, err := work(ctx, v, in.Scope, in.Work)
		if err != nil {
			return OneWork{}, 0, err
		}
		order, _, err := projections.WorkOrders{}.Order(v, w.Work)
		return OneWork{v.known, w, order}, w.Revision, err
	})
	command(s, http.MethodPost, "/v1/work/{work}/retry", "retry-work", "Open a failed or stuck work order again", func(ctx context.Context, in *WorkWrite) (Accepted, error) {
		w, err := s.knownWork(ctx, *in)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, w.Account, events.KindWork, "retry", workBody{w.Region, w.Work})
	})
	command(s, http.MethodPost, "/v1/work/{work}/write-off", "write-off-work", "Close a work order that nobody will do any more", func(ctx context.Context, in *writeOff) (Accepted, error) {
		w, err := s.knownWork(ctx, in.WorkWrite)
		if err != nil {
			return Accepted{}, err
		}
		return s.send(ctx, in.Write, w.Account, events.KindWork, "write-off", writeOffBody{workBody{w.Region, w.Work}, events.Cause{Code: "written-off", Text: in.Body.Why}})
	})
	get(s, "/v1/handlers", "list-parked", "What process managers have parked", func(ctx context.Context, v at, _ *Read) (ParkedList, uint64, error) {
		out := ParkedList{Known: v.known, Items: []processes.Parked{}}
		if err := mustAdministrate(ctx); err != nil || s.Handlers == nil {
			return out, 0, err
		}
		parked, err := s.parked(ctx)
		out.Items = append(out.Items, parked...)
		return out, 0, err
	})
	s.handlerRoute("retry", "Handle again what is parked", Handlers.Retry, Inbox.Retry)
	s.handlerRoute("skip", "Leave out what is parked, for good", Handlers.Skip, Inbox.Drop)
}

// parked lists what processes and the inbox have put aside.
func (s *Server) parked(ctx context.Context) ([]processes.Parked, error) {
	out, err := s.Handlers.Parked()
	if err != nil || s.Inbox == nil {
		return out, err
	}
	aside, err := s.Inbox.Parked(ctx)
	for _, c := range aside {
		out = append(out, processes.Parked{Process: inboxProcess, Key: strconv.FormatUint(c.Sequence, 10), Sequences: []uint64{},
			Cause: events.Cause{Code: "command-parked", Text: fmt.Sprintf("command %s (%s.%s of account %s): %s", c.Command, c.Kind, c.Verb, c.Account, c.Because), Next: "handler retry, or handler skip"}})
	}
	return out, err
}

// handlerRoute registers what can be done about one parked key.
func (s *Server) handlerRoute(verb, summary string, process func(Handlers, context.Context, string, string) error, inbox func(Inbox, context.Context, uint64) error) {
	huma.Register(s.api, huma.Operation{OperationID: verb + "-parked", Method: http.MethodPost, Path: "/v1/handlers/{process}/{key}/" + verb, Summary: summary, Tags: []string{"handlers"}},
		func(ctx context.Context, in *HandlerWrite) (*struct{ Body Resumed }, error) {
			out := &struct{ Body Resumed }{Resumed{Items: []processes.Parked{}}}
			err := mustAdministrate(ctx)
			switch {
			case err != nil:
			case s.Handlers == nil:
				err = problem(http.StatusServiceUnavailable, "not-here", "this is a region: nothing is ever parked here").withNext("send it to the control plane at %s", s.Home)
			case in.Process == inboxProcess && s.Inbox != nil:
				sequence, nerr := strconv.ParseUint(in.Key, 10, 64)
				if nerr != nil {
					err = aggregates.RefuseAs(aggregates.NotFound, "parked-unknown", "no command is parked at %q", in.Key)
					break
				}
				err = inbox(s.Inbox, ctx, sequence)
			default:
				err = process(s.Handlers, ctx, in.Process, in.Key)
			}
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			left, err := s.parked(ctx)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			out.Body.Items = append(out.Body.Items, left...)
			return out, nil
		})
}

// mustAdministrate refuses those who do not.
func mustAdministrate(ctx context.Context) error {
	if u := callerOf(ctx); !u.administrates() {
		return problem(http.StatusForbidden, "administrators-only", "user %s of account %s is not an administrator", u.User, u.Account)
	}
	return nil
}

func work(ctx context.Context, v projections.Reader, scope Scope, id string) (projections.WorkRow, error) {
	account, all, err := scope.account(ctx)
	if err != nil {
		return projections.WorkRow{}, err
	}
	w, ok, err := projections.WorkOrders{}.Work(v, events.WorkID(id))
	if err == nil && (!ok || w.Account != account && !all) {
		err = aggregates.RefuseAs(aggregates.NotFound, "work-unknown", "there is no work order %q", id).WithNext("tombolo work ls")
	}
	return w, err
}

func (s *Server) knownWork(ctx context.Context, in WorkWrite) (projections.WorkRow, error) {
	return resolved(ctx, s, func(v at) (projections.WorkRow, error) { return work(ctx, v, in.Scope, in.Work) })
}

// listWork goes through the regions: their open orders and troubles are few.
func (s *Server) listWork(ctx context.Context, v at, in *worksInput) (List[projections.WorkRow], uint64, error) {
	out := List[projections.WorkRow]{Known: v.known, Items: []projections.WorkRow{}}
	account, all, err := in.account(ctx)
	if err != nil {
		return out, 0, err
	}
	keep := func(rows []projections.WorkRow) {
		for _, w := range rows {
			if all || w.Account == account {
				out.Items = append(out.Items, w)
			}
		}
	}
	if in.Operation != "" {
		rows, err := projections.WorkOrders{}.OfOperation(v, events.OperationID(in.Operation))
		keep(rows)
		return out, 0, err
	}
	regions, err := s.regionsFor(v, in.Region)
	if err != nil {
		return out, 0, err
	}
	ask := projections.WorkOrders{}.Trouble
	if in.State == "open" {
		ask = projections.WorkOrders{}.OpenIn
	}
	for _, r := range regions {
		for resume := ""; ; {
			page, err := ask(v, r, 1000, resume)
			if err != nil {
				return out, 0, err
			}
			keep(page.Rows)
			if resume = page.Resume; resume == "" {
				break
			}
		}
	}
	return out, 0, nil
}

// regionsFor gives the region that a spelling means, or all.
func (s *Server) regionsFor(v at, spelling string) ([]events.RegionID, error) {
	if spelling != "" {
		r, err := regionSpelled(v, spelling)
		return []events.RegionID{r.Region}, err
	}
	var out []events.RegionID
	for resume := ""; ; {
		page, err := projections.Regions{}.List(v, 1000, resume)
		if err != nil {
			return nil, err
		}
		for _, r := range page.Rows {
			out = append(out, r.Region)
		}
		if resume = page.Resume; resume == "" {
			return out, nil
		}
	}
}
