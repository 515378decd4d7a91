package commands

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
)

// Answer is what a client gets for an accepted command. The same command id
// gets the same answer however often it is sent.
type Answer struct {
	CommandID   events.CommandID   `json:"command_id"`
	Kind        events.Kind        `json:"kind"`
	ID          string             `json:"id" jsonschema:"of the aggregate: a template's number, an environment's id"`
	Region      events.RegionID    `json:"region,omitempty"`
	Event       events.Type        `json:"event,omitempty" jsonschema:"absent when there was nothing to do"`
	EventID     string             `json:"event_id,omitempty"`
	Sequence    uint64             `json:"sequence" jsonschema:"the journal's position: read with after= it to see this"`
	Revision    uint64             `json:"revision" jsonschema:"of the aggregate, for tombolo-if-revision"`
	Operation   events.OperationID `json:"operation,omitempty" jsonschema:"that the command set in motion"`
	NothingToDo string             `json:"nothing_to_do,omitempty" jsonschema:"why there was nothing to do"`
}

// Classes of failures that are not an aggregate's refusal.
const (
	Unavailable aggregates.Class = "unavailable" // try again later, with the same command id
	Internal    aggregates.Class = "internal"    // our fault; the log has it under the reference
)

// Failure is what a client gets for a command that was not accepted.
type Failure struct {
	Code      string           `json:"code" jsonschema:"stable"`
	Class     aggregates.Class `json:"class" jsonschema:"conflict, not-found, invalid, denied, confirmation, unavailable or internal"`
	Text      string           `json:"text"`
	Next      string           `json:"next,omitempty" jsonschema:"what can be done about it"`
	Findings  []graph.Finding  `json:"findings,omitempty" jsonschema:"everything that is wrong with the graph"`
	Plan      json.RawMessage  `json:"plan,omitempty" jsonschema:"what would be done if it were confirmed"`
	Reference string           `json:"reference,omitempty" jsonschema:"under which the log has an internal error"`
}

// Status is the HTTP status that says the same.
func (f Failure) Status() int {
	switch f.Class {
	case aggregates.Conflict:
		return 409
	case aggregates.NotFound:
		return 404
	case aggregates.Invalid:
		return 400
	case aggregates.Denied:
		return 403
	case aggregates.Confirmation:
		return 428
	case Unavailable:
		return 503
	}
	return 500
}

// GraphError is a refusal of a graph, with everything that is wrong with it.
type GraphError struct {
	Refusal  *aggregates.Refusal
	Findings []graph.Finding
}

func (e *GraphError) Error() string { return e.Refusal.Error() }

// Unwrap gives the refusal.
func (e *GraphError) Unwrap() error { return e.Refusal }

// PlanError is a refusal of what has to be confirmed, with what would be done.
type PlanError struct {
	Refusal *aggregates.Refusal
	Plan    json.RawMessage
}

func (e *PlanError) Error() string { return e.Refusal.Error() }

// Unwrap gives the refusal.
func (e *PlanError) Unwrap() error { return e.Refusal }

// FailureOf says to a client what went wrong. An unexpected error's text goes to
// the log alone, under the reference that the client gets.
func FailureOf(err error, log *slog.Logger) Failure {
	if r, ok := aggregates.AsRefusal(err); ok {
		f := Failure{Code: r.Code, Class: r.Class, Text: r.Text, Next: r.Next}
		var g *GraphError
		if errors.As(err, &g) {
			f.Findings = g.Findings
		}
		var p *PlanError
		if errors.As(err, &p) {
			f.Plan = p.Plan
		}
		return f
	}
	const again = "send it again with the same command id"
	var full *journal.FullError
	switch {
	case errors.Is(err, journal.ErrAmbiguous):
		return Failure{Code: "outcome-unknown", Class: Unavailable, Text: "whether the command was recorded could not be found out in time", Next: again}
	case errors.As(err, &full):
		return Failure{Code: full.Code(), Class: Unavailable, Text: "the journal has reached its limit: only what finishes, undoes or releases something is accepted", Next: "an administrator can raise its limit: tombolo server grow"}
	case errors.Is(err, events.ErrTooLarge):
		return Failure{Code: "too-large", Class: aggregates.Invalid, Text: "the command leads to an event larger than the journal takes", Next: "send less at once"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Failure{Code: "too-slow", Class: Unavailable, Text: "the command was not decided in time", Next: again}
	case documents.CodeOf(err) == documents.TooLarge:
		return Failure{Code: string(documents.TooLarge), Class: aggregates.Invalid, Text: "the graph is larger than a document may be"}
	}
	f := Failure{Code: "internal", Class: Internal, Text: "the command failed for a reason that is not yours", Reference: rand.Text(),
		Next: "send it again with the same command id; an administrator finds the reason in the log under the reference"}
	log.Error("a command failed", "reference", f.Reference, "error", err)
	return f
}
