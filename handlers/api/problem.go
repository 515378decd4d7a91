package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Problem is every error's form (RFC 9457, application/problem+json).
type Problem struct {
	Type      string             `json:"type" doc:"about:blank: the code says more"`
	Title     string             `json:"title" doc:"the status in words"`
	Status    int                `json:"status"`
	Code      string             `json:"code" doc:"stable; can be searched in the source"`
	Detail    string             `json:"detail" doc:"what failed, where, why"`
	Next      string             `json:"next,omitempty" doc:"what can be done about it"`
	Instance  string             `json:"instance,omitempty" doc:"the request's id, as the log has it"`
	Operation events.OperationID `json:"operation,omitempty"`
	Region    events.RegionID    `json:"region,omitempty"`
	Position  *uint64            `json:"position,omitempty" doc:"how far the reads are (behind)"`
	Findings  []Finding          `json:"findings,omitempty" doc:"everything that is wrong, not only the first thing"`
	Plan      json.RawMessage    `json:"plan,omitempty" doc:"what would be done if it were confirmed"`
}

// Finding is one thing that is wrong with what was sent.
type Finding struct {
	Code string `json:"code"`
	Path string `json:"path"`
	Text string `json:"text"`
}

// Error is the detail with its code.
func (p *Problem) Error() string { return p.Detail + " (" + p.Code + ")" }

// GetStatus is for huma.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is for huma.
func (p *Problem) ContentType(string) string { return problemType }

const problemType = "application/problem+json"

func problem(status int, code, format string, args ...any) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

func (p *Problem) withNext(format string, args ...any) *Problem {
	p.Next = fmt.Sprintf(format, args...)
	return p
}

// statusOf is the HTTP status of a class of refusals.
func statusOf(r *aggregates.Refusal) int {
	if r.Code == "stale-revision" {
		return http.StatusPreconditionFailed // RFC 9110, 13.1.1: If-Match
	}
	switch r.Class {
	case aggregates.NotFound:
		return http.StatusNotFound
	case aggregates.Invalid:
		return http.StatusUnprocessableEntity
	case aggregates.Denied:
		return http.StatusForbidden
	case aggregates.Confirmation:
		return http.StatusPreconditionRequired
	default:
		return http.StatusConflict
	}
}

// problemOf turns an error into what a stranger may read. What is not known here
// is internal: its text goes to the log alone.
func (s *Server) problemOf(ctx context.Context, err error) *Problem {
	var p *Problem
	var behind *projections.BehindError
	var reads *projections.Error
	if errors.As(err, &p) {
		return p
	}
	var unknown *projections.NotFoundError
	var ambiguous *projections.AmbiguousError
	var graph *commands.GraphError
	switch {
	case errors.As(err, &unknown):
		p := problem(http.StatusNotFound, string(unknown.Code), "%s", unknown.Detail)
		if unknown.Code == projections.CodeTemplateUnknown {
			return p.withNext("tombolo template ls")
		}
		return p
	case errors.As(err, &ambiguous):
		return problem(http.StatusConflict, string(projections.CodeReferenceAmbiguous), "%s", ambiguous.Error()).withNext("use the number")
	case errors.As(err, &graph):
		p := problem(statusOf(graph.Refusal), graph.Refusal.Code, "%s", graph.Refusal.Text)
		for _, f := range graph.Findings {
			p.Findings = append(p.Findings, Finding(f))
		}
		return p
	}
	if r, ok := aggregates.AsRefusal(err); ok {
		p := problem(statusOf(r), r.Code, "%s", r.Text)
		p.Next = r.Next
		var planned *commands.PlanError
		if errors.As(err, &planned) {
			p.Plan = planned.Plan
		}
		return p
	}
	var full *journal.FullError
	switch {
	case errors.As(err, &behind):
		p := problem(http.StatusServiceUnavailable, "behind", "the reads here are at position %d, %d is wanted", behind.Position, behind.Wanted).
			withNext("ask again, or ask the control plane")
		p.Position = &behind.Position
		return p
	case errors.As(err, &reads) && reads.Code == projections.CodeResumeInvalid:
		return problem(http.StatusUnprocessableEntity, string(reads.Code), "%s", reads.Detail)
	case errors.As(err, &reads) && reads.Code == projections.CodeBuilding:
		return problem(http.StatusServiceUnavailable, string(reads.Code), "%s", reads.Detail).withNext("ask again in a moment")
	case errors.As(err, &full):
		return problem(http.StatusInsufficientStorage, full.Code(), "the journal has %d of at most %d bytes; only what finishes, undoes or releases something is accepted", full.Used, full.Limit).
			withNext("an administrator can raise the limit: tombolo server grow --to BYTES")
	case documents.CodeOf(err) == documents.Damaged:
		s.Log.Error("a stored document is damaged", "request", requestID(ctx), "error", err)
		return problem(http.StatusInternalServerError, string(documents.Damaged), "what is stored of it does not match its digest or signature: it was changed").
			withNext("restore the control plane's data from a backup; nothing is made of what was changed")
	case errors.Is(err, journal.ErrAmbiguous):
		return problem(http.StatusServiceUnavailable, "outcome-unknown", "whether the command was stored could not be found out in time").
			withNext("send it again with the same Idempotency-Key")
	case errors.Is(err, events.ErrTooLarge):
		return problem(http.StatusRequestEntityTooLarge, "too-large", "what was sent does not fit into an event")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return problem(http.StatusServiceUnavailable, "timed-out", "the answer did not come in time").withNext("ask again")
	}
	s.Log.Error("an HTTP request failed", "request", requestID(ctx), "error", err)
	in := problem(http.StatusInternalServerError, "internal", "something went wrong that is not your doing")
	in.Instance = requestID(ctx)
	return in.withNext("look for %s in the server's log", in.Instance)
}

func internal(r *http.Request) *Problem {
	in := problem(http.StatusInternalServerError, "internal", "something went wrong that is not your doing")
	in.Instance = requestID(r.Context())
	return in.withNext("look for %s in the server's log", in.Instance)
}

// write answers with a problem outside of huma.
func (s *Server) write(w http.ResponseWriter, r *http.Request, p *Problem) {
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	if err := json.NewEncoder(w).Encode(p); err != nil {
		s.Log.Debug("an error could not be sent", "path", r.URL.Path, "error", err)
	}
}

// transform gives huma's own errors (a body that does not fit its schema) our form.
func (s *Server) transform(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := problem(m.Status, "bad-request", "%s", m.Detail)
	if m.Status == http.StatusUnprocessableEntity {
		p.Code = "request-invalid"
	}
	if m.Status >= 500 {
		p.Code, p.Detail = "internal", "something went wrong that is not your doing"
		return p, nil
	}
	for _, e := range m.Errors {
		p.Findings = append(p.Findings, Finding{Code: p.Code, Path: e.Location, Text: e.Message})
	}
	switch n := len(p.Findings); {
	case n == 1: // that is all there is to say
		p.Detail = strings.TrimPrefix(p.Findings[0].Path+": "+p.Findings[0].Text, ": ")
	case n > 1:
		p.Detail = fmt.Sprintf("%d things are wrong with what was sent", n)
	}
	return p, nil
}

// documentErrors puts our form of errors into the OpenAPI document in the place
// of huma's.
func (s *Server) documentErrors() {
	schemas := s.api.OpenAPI().Components.Schemas
	ours := huma.SchemaFromType(schemas, typeOf[Problem]())
	if theirs := schemas.Map()["ErrorModel"]; theirs != nil {
		*theirs = *ours
	}
	// Rows show times as RFC 3339 text by a MarshalJSON of their own.
	if t := schemas.Map()["Time"]; t != nil {
		*t = huma.Schema{Type: huma.TypeString, Format: "date-time", Description: "UTC, milliseconds"}
	}
}
