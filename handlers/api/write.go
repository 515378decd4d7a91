package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

// Write is what every write takes.
type Write struct {
	Scope
	Key         string `header:"Idempotency-Key" maxLength:"64" doc:"the command's id: the same one with the same body has one effect and one answer, however often it comes"`
	IfMatch     string `header:"If-Match" doc:"the revision that the decision was made on, as ETag gave it" example:"\"7\""`
	TraceParent string `header:"traceparent" doc:"W3C Trace Context"`
}

// Accepted is the answer to a write.
type Accepted struct {
	ID        string             `json:"id" doc:"of what the command was about"`
	Region    events.RegionID    `json:"region,omitempty"`
	Operation events.OperationID `json:"operation,omitempty" doc:"of what it set in motion; GET /v1/operations/{id}"`
	Sequence  uint64             `json:"sequence" doc:"of the event; give it to a read as after= to read your own write"`
	Revision  uint64             `json:"revision" doc:"of what the command was about"`
	Because   string             `json:"because,omitempty" doc:"why there was nothing to do"`
	Command   events.CommandID   `json:"command" doc:"the Idempotency-Key, or the one that was made up for it"`
}

// write is a write's answer on the wire.
type written[B any] struct {
	Status   int
	Location string `header:"Location" doc:"of the operation (202)"`
	ETag     string `header:"ETag"`
	Position uint64 `header:"Tombolo-Position" doc:"sequence of the event"`
	Body     B
}

// writer is an input that embeds Write.
type writer interface{ write() Write }

func (w Write) write() Write { return w }

// send takes one command to the door.
func (s *Server) send(ctx context.Context, w Write, account events.AccountID, kind events.Kind, verb string, body any) (Accepted, error) {
	r, err := s.request(ctx, w, account, kind, verb, body)
	if err != nil {
		return Accepted{}, err
	}
	a, err := s.Commands.Do(ctx, r)
	if err != nil {
		return Accepted{}, err
	}
	return Accepted{ID: a.ID, Region: a.Region, Operation: a.Operation, Sequence: a.Sequence, Revision: a.Revision, Because: a.NothingToDo, Command: a.CommandID}, nil
}

// plan asks the door what a command would do.
func (s *Server) plan(ctx context.Context, w Write, account events.AccountID, kind events.Kind, verb string, body any) (json.RawMessage, error) {
	r, err := s.request(ctx, w, account, kind, verb, body)
	if err != nil {
		return nil, err
	}
	return s.Commands.Plan(ctx, r)
}

// request is one command as the door takes it.
func (s *Server) request(ctx context.Context, w Write, account events.AccountID, kind events.Kind, verb string, body any) (commands.Request, error) {
	if s.Commands == nil {
		return commands.Request{}, problem(http.StatusServiceUnavailable, "not-here", "this is a region: it answers reads, and changes nothing").
			withNext("send it to the control plane at %s", s.Home)
	}
	revision, err := ifMatch(w.IfMatch)
	if err != nil {
		return commands.Request{}, err
	}
	payload, err := json.Marshal(body)
	if err != nil {
		return commands.Request{}, err
	}
	u := callerOf(ctx)
	return commands.Request{
		Account: account, Kind: kind, Verb: verb, Command: events.CommandID(w.Key), Body: payload, IfRevision: revision, TraceParent: w.TraceParent,
		From: commands.Identity{Actor: events.Actor{Account: u.Account, User: u.User}, Role: u.Role, Region: u.Region, Permissions: u.Permissions},
	}, nil
}

// ifMatch reads a revision as ETag gives it; "*" and nothing ask for none.
func ifMatch(header string) (*uint64, error) {
	text := strings.TrimSpace(header)
	if text == "" || text == "*" {
		return nil, nil
	}
	n, err := strconv.ParseUint(strings.Trim(text, `"`), 10, 64)
	if err != nil {
		return nil, problem(http.StatusUnprocessableEntity, "revision-invalid", "If-Match %s is not a revision", header).withNext(`If-Match: "7", as ETag gave it`)
	}
	return &n, nil
}

// accept registers a write. do sends the command and gives the body.
func accept[I writer, B any](s *Server, method, path, id, summary string, do func(context.Context, *I) (Accepted, B, error)) {
	huma.Register(s.api, huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tagOf(path)}, DefaultStatus: http.StatusOK},
		func(ctx context.Context, in *I) (*written[B], error) {
			a, body, err := do(ctx, in)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			out := &written[B]{Status: http.StatusOK, Position: a.Sequence, Body: body}
			if a.Revision > 0 {
				out.ETag = strconv.Quote(strconv.FormatUint(a.Revision, 10))
			}
			if a.Operation != "" && a.Because == "" {
				out.Status, out.Location = http.StatusAccepted, "/v1/operations/"+string(a.Operation)
			}
			return out, nil
		})
}

// command registers a write whose answer is Accepted and nothing else.
func command[I writer](s *Server, method, path, id, summary string, do func(context.Context, *I) (Accepted, error)) {
	accept(s, method, path, id, summary, func(ctx context.Context, in *I) (Accepted, Accepted, error) {
		a, err := do(ctx, in)
		return a, a, err
	})
}
