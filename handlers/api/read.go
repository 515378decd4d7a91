package api

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/projections"
)

// Read is what every read takes.
type Read struct {
	Scope
	After uint64 `query:"after" doc:"answer only once the reads show the event with this sequence; behind (503) if that takes too long"`
	AsOf  string `query:"as-of" doc:"answer as of this sequence or RFC 3339 time" example:"2026-11-21T10:00:00Z"`
}

// Paged is what every list takes besides.
type Paged struct {
	Read
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"at most so many items"`
	Next  string `query:"next" doc:"go on after the page that gave this token"`
}

// Known says how far an answer reaches.
type Known struct {
	Position uint64  `json:"position" doc:"sequence of the last event that the answer shows"`
	Lag      *uint64 `json:"lag" doc:"how many events the journal has beyond what is known here; null if the journal cannot be reached; 0 as of a position"`
}

// List is a part of a list.
type List[T any] struct {
	Known
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty" doc:"gets the next page; absent at the end"`
}

// read is a read's answer on the wire.
type read[B any] struct {
	Position uint64 `header:"Tombolo-Position" doc:"sequence of the last event that the answer shows"`
	ETag     string `header:"ETag" doc:"the revision of what was read, for If-Match"`
	Body     B
}

// at is one view with what is said of it.
type at struct {
	*projections.View
	known Known
}

// view opens a view as the request wants it. The caller closes it.
func (s *Server) view(ctx context.Context, r Read) (at, error) {
	wait, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	if r.After > 0 {
		if err := s.Feed.WaitFor(wait, r.After); err != nil {
			return at{}, err
		}
	}
	if r.AsOf == "" {
		v, err := s.Feed.Now()
		if err != nil {
			return at{}, err
		}
		return at{v, s.known(ctx, v.Position())}, nil
	}
	seq, err := s.asOf(ctx, r.AsOf)
	if err != nil {
		return at{}, err
	}
	if err := s.Feed.WaitFor(wait, seq); err != nil {
		return at{}, err
	}
	v, err := s.Feed.AsOf(seq)
	if err != nil {
		return at{}, err
	}
	return at{v, complete(seq)}, nil
}

// complete is what is said of an answer as of a position that was reached: it lacks nothing, whatever came
// since. The same question has the same answer, byte by byte, at any time and from any rebuilt read model.
func complete(position uint64) Known {
	none := uint64(0)
	return Known{Position: position, Lag: &none}
}

// asOf gives the sequence that a sequence or a time means.
func (s *Server) asOf(ctx context.Context, text string) (uint64, error) {
	if seq, err := strconv.ParseUint(text, 10, 64); err == nil {
		tip, err := s.Journal.Tip(ctx)
		if err != nil {
			return 0, err
		}
		if seq > tip {
			return 0, problem(http.StatusUnprocessableEntity, "as-of-future", "sequence %d has not happened yet: the journal ends at %d", seq, tip)
		}
		return seq, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, problem(http.StatusUnprocessableEntity, "as-of-invalid", "%q is neither a sequence nor an RFC 3339 time", text).
			withNext("as-of=1234 or as-of=2026-11-21T10:00:00Z")
	}
	if t.After(s.Now()) {
		return 0, problem(http.StatusUnprocessableEntity, "as-of-future", "%s has not come yet", text)
	}
	return s.Journal.At(ctx, t)
}

// tipPatience bounds what the lag may cost a read where the journal is far away.
const tipPatience = 250 * time.Millisecond

func (s *Server) known(ctx context.Context, position uint64) Known {
	ctx, cancel := context.WithTimeout(ctx, tipPatience)
	defer cancel()
	k := Known{Position: position}
	here, err := s.Feed.Position()
	if err != nil {
		return k
	}
	if tip, err := s.Journal.Tip(ctx); err == nil {
		lag := max(tip, here) - here
		k.Lag = &lag
	}
	return k
}

// get registers a read of one thing. ask fills the body; revision 0 gives no ETag.
func get[I reader, B any](s *Server, path, id, summary string, ask func(context.Context, at, *I) (body B, revision uint64, err error)) {
	huma.Register(s.api, huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Tags: []string{tagOf(path)}},
		func(ctx context.Context, in *I) (*read[B], error) {
			v, err := s.view(ctx, (*in).read())
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			body, revision, err := ask(ctx, v, in)
			if err = cmp.Or(err, v.Close()); err != nil {
				return nil, s.problemOf(ctx, err)
			}
			out := &read[B]{Position: v.known.Position, Body: body}
			if revision > 0 {
				out.ETag = strconv.Quote(strconv.FormatUint(revision, 10))
			}
			return out, nil
		})
}

// reader is an input that embeds Read.
type reader interface{ read() Read }

func (r Read) read() Read { return r }

// tagOf is the noun of a path: /v1/regions/{region} → regions.
func tagOf(path string) string {
	rest := path[len("/v1/"):]
	for i, c := range rest {
		if c == '/' {
			return rest[:i]
		}
	}
	return rest
}

// listed gives a page on the wire.
func listed[R, T any](k Known, page projections.Page[R], show func(R) T) List[T] {
	out := List[T]{Known: k, Items: make([]T, 0, len(page.Rows)), Next: page.Resume}
	for _, r := range page.Rows {
		out.Items = append(out.Items, show(r))
	}
	return out
}
