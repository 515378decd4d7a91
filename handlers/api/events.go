package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/asyncapi"
)

// Event is one fact as CloudEvents 1.0 in JSON, with what Tombolo adds as
// extension attributes.
type Event struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            events.Type     `json:"type"`
	Subject         string          `json:"subject" doc:"account.region.kind.id; _ for none"`
	Time            time.Time       `json:"time" doc:"when it was decided"`
	DataContentType string          `json:"datacontenttype"`
	Sequence        uint64          `json:"sequence" doc:"position in the journal"`
	Revision        uint64          `json:"revision" doc:"position within its aggregate"`
	Stored          time.Time       `json:"stored" doc:"when the journal stored it; times in reads mean this one"`
	Schema          int             `json:"schema"`
	ActorAccount    string          `json:"actoraccount"`
	ActorUser       string          `json:"actoruser"`
	Command         string          `json:"command,omitempty"`
	CommandDigest   events.Digest   `json:"commanddigest,omitempty" doc:"of the command's body"`
	Correlation     string          `json:"correlation,omitempty" doc:"the operation, or what a client gave"`
	Causation       string          `json:"causation,omitempty" doc:"the event that led to it"`
	TraceParent     string          `json:"traceparent,omitempty"`
	Previous        events.Digest   `json:"previous,omitempty" doc:"digest of its aggregate's previous event"`
	Digest          events.Digest   `json:"digest"`
	Data            json.RawMessage `json:"data"`
}

func (s *Server) showEvent(r events.Record) Event {
	return Event{
		SpecVersion: "1.0", ID: r.ID, Source: s.Source, Type: r.Event.EventType(), Subject: strings.TrimPrefix(r.Aggregate.Subject(), events.SubjectPrefix),
		Time: r.Time.UTC(), DataContentType: "application/json", Sequence: r.Sequence, Revision: r.Revision, Stored: r.Stored.UTC(), Schema: r.Schema,
		ActorAccount: string(r.Actor.Account), ActorUser: string(r.Actor.User), Command: string(r.Command.ID), CommandDigest: r.Command.Digest, Correlation: r.Correlation,
		Causation: r.Causation, TraceParent: r.TraceParent, Previous: r.Previous, Digest: r.Digest, Data: json.RawMessage(r.Payload),
	}
}

// eventsInput asks for facts. Which it is, a list or a stream, Accept decides.
type eventsInput struct {
	Scope
	From        uint64   `query:"from" doc:"first sequence; 1 for a list, the next event for a stream, if absent"`
	To          uint64   `query:"to" doc:"last sequence; the journal's last if absent"`
	Until       string   `query:"until" doc:"last sequence, or an RFC 3339 time that nothing later than is given"`
	Limit       int      `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Kind        []string `query:"kind,explode" doc:"only of these kinds of aggregate" example:"template"`
	Type        []string `query:"type,explode" doc:"only of these types; a trailing * stands for any end" example:"instance.copy-*"`
	Region      string   `query:"region" doc:"only of this region"`
	ID          string   `query:"id" doc:"only of the aggregate with this id, or of the operation"`
	Actor       string   `query:"actor" doc:"only what this user caused"`
	Correlation string   `query:"correlation" doc:"only of this operation, or of what a client gave"`
	LastEvent   string   `header:"Last-Event-ID" doc:"go on after this sequence (server-sent events)"`
	Accept      string   `header:"Accept" doc:"text/event-stream for a stream"`
}

// Events is a part of the history.
type Events struct {
	Known
	Items []Event `json:"items"`
	Next  uint64  `json:"next,omitempty" doc:"from= of the next part; absent when there is nothing more before to"`
}

func (s *Server) eventRoutes() {
	s.mux.HandleFunc("GET /asyncapi.json", func(w http.ResponseWriter, r *http.Request) {
		b, err := asyncapi.Document()
		if err != nil {
			s.write(w, r, s.problemOf(r.Context(), err))
			return
		}
		w.Header().Set("Content-Type", "application/vnd.aai.asyncapi+json;version=3.0.0")
		if _, err := w.Write(b); err != nil {
			s.Log.Debug("the description of the events could not be sent", "error", err)
		}
	})
	huma.Register(s.api, huma.Operation{OperationID: "list-events", Method: http.MethodGet, Path: "/v1/events", Tags: []string{"events"},
		Summary: "Facts, as a list from..to or as server-sent events that go on", Responses: eventResponses(s.api.OpenAPI().Components.Schemas)},
		func(ctx context.Context, in *eventsInput) (*huma.StreamResponse, error) {
			wanted, err := s.filter(ctx, in)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			nothing := false
			if in.Until != "" {
				until, err := s.asOf(ctx, in.Until)
				if err != nil {
					return nil, s.problemOf(ctx, err)
				}
				if nothing = until == 0; in.To == 0 || until < in.To {
					in.To = until
				}
			}
			if strings.Contains(in.Accept, "text/event-stream") {
				return s.eventStream(in, wanted)
			}
			list := Events{Known: complete(0), Items: []Event{}} // before the first event
			if !nothing {
				if list, err = s.history(ctx, in, wanted); err != nil {
					return nil, s.problemOf(ctx, err)
				}
			}
			return &huma.StreamResponse{Body: func(c huma.Context) {
				c.SetHeader("Content-Type", "application/json")
				c.SetHeader("Tombolo-Position", strconv.FormatUint(list.Position, 10))
				if err := json.NewEncoder(c.BodyWriter()).Encode(list); err != nil {
					s.Log.Debug("a list of events could not be sent", "error", err)
				}
			}}, nil
		})
}

func eventResponses(schemas huma.Registry) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {Description: "The events", Content: map[string]*huma.MediaType{
		"application/json":  {Schema: schemas.Schema(typeOf[Events](), true, "Events")},
		"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString, Description: "id is the sequence, event the type, data an Event"}},
	}}}
}

// filter says which records the caller asked for and may see: those of its own
// account; an administrator sees all, or those of the account named.
func (s *Server) filter(ctx context.Context, in *eventsInput) (func(events.Record) bool, error) {
	account, all, err := in.account(ctx)
	if err != nil {
		return nil, err
	}
	region := events.RegionID(in.Region)
	if in.Region != "" {
		if region, err = s.knownRegion(ctx, in.Region); err != nil {
			return nil, err
		}
	}
	types := slices.Clone(in.Type)
	if err := knownWords(in.Kind, types); err != nil {
		return nil, err
	}
	return func(r events.Record) bool {
		switch {
		case !all && r.Aggregate.Account != account:
			return false
		case region != "" && r.Aggregate.Region != region:
			return false
		case in.ID != "" && r.Aggregate.ID != in.ID && r.Correlation != in.ID:
			return false
		case in.Actor != "" && string(r.Actor.User) != in.Actor:
			return false
		case in.Correlation != "" && r.Correlation != in.Correlation:
			return false
		case len(in.Kind) > 0 && !slices.Contains(in.Kind, string(r.Aggregate.Kind)):
			return false
		case len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool { return matchesType(t, string(r.Event.EventType())) }):
			return false
		}
		return true
	}, nil
}

// knownWords refuses kinds and types that no event has: they would find nothing,
// and nobody would learn why.
func knownWords(kinds, types []string) error {
	known := events.NewRegistry().Definitions()
	for _, k := range kinds {
		if !slices.ContainsFunc(known, func(d events.Definition) bool { return string(d.Kind) == k }) {
			return problem(http.StatusUnprocessableEntity, "kind-unknown", "no event is of the kind %.60q", k).withNext("tombolo events schema lists all types; a kind is what stands before the full stop")
		}
	}
	for _, t := range types {
		if !slices.ContainsFunc(known, func(d events.Definition) bool { return matchesType(t, string(d.Type)) }) {
			return problem(http.StatusUnprocessableEntity, "event-type-unknown", "no event is of the type %.60q", t).withNext("tombolo events schema lists all types")
		}
	}
	return nil
}

func matchesType(pattern, t string) bool {
	if start, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(t, start)
	}
	return pattern == t
}

// errEnough ends a follow that has all it wants.
var errEnough = errors.New("enough events")

// history reads from..to.
func (s *Server) history(ctx context.Context, in *eventsInput, wanted func(events.Record) bool) (Events, error) {
	tip, err := s.Journal.Tip(ctx)
	if err != nil {
		return Events{}, err
	}
	from, to := max(in.From, 1), in.To
	if to == 0 || to > tip {
		to = tip
	}
	out := Events{Known: complete(to), Items: []Event{}}
	if from > to {
		return out, nil
	}
	err = s.Journal.Follow(ctx, from-1, func(r events.Record) error {
		if wanted(r) {
			if len(out.Items) == in.Limit {
				out.Next = r.Sequence
				return errEnough
			}
			out.Items = append(out.Items, s.showEvent(r))
		}
		if r.Sequence >= to {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		return Events{}, err
	}
	return out, nil
}

// Times of a stream.
const (
	streamBeat  = 15 * time.Second // a comment with the position, so that both sides see a dead connection
	streamWrite = 30 * time.Second // a client that takes nothing for so long is left
)

// eventStream answers with server-sent events until either side ends it, or to.
func (s *Server) eventStream(in *eventsInput, wanted func(events.Record) bool) (*huma.StreamResponse, error) {
	after, known := uint64(0), in.From > 0
	if known {
		after = in.From - 1
	}
	if in.LastEvent != "" {
		n, err := strconv.ParseUint(in.LastEvent, 10, 64)
		if err != nil {
			return nil, problem(http.StatusUnprocessableEntity, "last-event-invalid", "Last-Event-ID %q is not a sequence", in.LastEvent)
		}
		after, known = n, true
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		ctx := c.Context()
		tip, err := s.Journal.Tip(ctx)
		if err != nil || after > tip {
			p := problem(http.StatusUnprocessableEntity, "event-unknown", "the journal ends at %d, before %d", tip, after)
			if err != nil {
				p = s.problemOf(ctx, err)
			}
			c.SetHeader("Content-Type", problemType)
			c.SetStatus(p.Status)
			_ = json.NewEncoder(c.BodyWriter()).Encode(p) // nobody to tell
			return
		}
		if !known {
			after = tip
		}
		out := newEventWriter(c)
		seen := after
		stop := out.beat(ctx, streamBeat, func() uint64 { return seen })
		defer stop()
		if out.comment(after) != nil {
			return
		}
		err = s.Journal.Follow(ctx, after, func(r events.Record) error {
			out.mu.Lock()
			seen = r.Sequence
			out.mu.Unlock()
			if wanted(r) {
				if err := out.send(strconv.FormatUint(r.Sequence, 10), string(r.Event.EventType()), s.showEvent(r)); err != nil {
					return err
				}
			}
			if in.To > 0 && r.Sequence >= in.To {
				return errEnough
			}
			return nil
		})
		if ctx.Err() == nil && !errors.Is(err, errEnough) {
			s.Log.Warn("a stream of events has ended", "error", err)
		}
	}}, nil
}

// eventWriter writes server-sent events (WHATWG HTML, 9.2).
type eventWriter struct {
	mu      sync.Mutex
	context huma.Context
	control *http.ResponseController
}

func newEventWriter(c huma.Context) *eventWriter {
	c.SetHeader("Content-Type", "text/event-stream")
	c.SetHeader("Cache-Control", "no-store")
	c.SetHeader("X-Accel-Buffering", "no") // proxies that buffer
	w := &eventWriter{context: c}
	if rw, ok := c.BodyWriter().(http.ResponseWriter); ok {
		w.control = http.NewResponseController(rw)
	}
	return w
}

func (w *eventWriter) write(format string, args ...any) error {
	if w.control != nil {
		if err := w.control.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
	}
	if _, err := fmt.Fprintf(w.context.BodyWriter(), format, args...); err != nil {
		return err
	}
	if w.control != nil {
		return w.control.Flush()
	}
	return nil
}

func (w *eventWriter) send(id, event string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if id != "" {
		return w.write("id: %s\nevent: %s\ndata: %s\n\n", id, event, b)
	}
	return w.write("event: %s\ndata: %s\n\n", event, b)
}

func (w *eventWriter) comment(position uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write(": position %d\n\n", position)
}

// beat sends a comment every so often until the function that it gives is called.
func (w *eventWriter) beat(ctx context.Context, every time.Duration, position func() uint64) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				w.mu.Lock()
				err := w.write(": position %d\n\n", position())
				w.mu.Unlock()
				if err != nil {
					return
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}
