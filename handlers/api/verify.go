package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// Verification is what an audit found.
type Verification struct {
	OK         bool          `json:"ok"`
	Source     string        `json:"source,omitempty" doc:"the journal"`
	Events     uint64        `json:"events" doc:"that are as they were written"`
	Aggregates uint64        `json:"aggregates"`
	Head       string        `json:"head" doc:"SEQUENCE:DIGEST after the last of them; who has noted it down recognizes the journal by it"`
	Finding    *journal.Flaw `json:"finding,omitempty" doc:"the first thing that is wrong"`
}

type verifyInput struct {
	Scope
	Head string `query:"head" doc:"SEQUENCE:DIGEST that was noted down before"`
}

func (s *Server) verifyRoutes() {
	huma.Register(s.api, huma.Operation{OperationID: "audit-verify", Method: http.MethodGet, Path: "/v1/audit/verify", Tags: []string{"audit"},
		Summary: "Walk the journal and check that every event continues the ones before it"},
		func(ctx context.Context, in *verifyInput) (*struct{ Body Verification }, error) {
			out, err := s.verify(ctx, in)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			return &struct{ Body Verification }{out}, nil
		})
}

// verify walks the journal itself. The read models have no part in it.
func (s *Server) verify(ctx context.Context, in *verifyInput) (Verification, error) {
	if err := mustAdministrate(ctx); err != nil {
		return Verification{}, err
	}
	known, err := KnownHead(in.Head)
	if err != nil {
		return Verification{}, err
	}
	until, err := s.Journal.Tip(ctx)
	if err != nil {
		return Verification{}, err
	}
	a := journal.NewAuditor(false, known)
	if until > 0 {
		err = s.Journal.Follow(ctx, 0, func(r events.Record) error {
			if err := a.Check(r); err != nil {
				return err
			}
			if r.Sequence >= until {
				return errEnough
			}
			return nil
		})
	}
	var gap *journal.GapError
	switch {
	case err == nil, errors.Is(err, errEnough):
		err = a.End()
	case errors.As(err, &gap):
		err = &journal.Flaw{Code: journal.FoundMissing, Sequence: gap.Missing, Detail: fmt.Sprintf("sequence %d is missing from the store", gap.Missing)}
	case errors.Is(err, events.ErrUnknownEvent):
		err = &journal.Flaw{Code: journal.FoundUnreadable, Sequence: a.At().Sequence + 1, Detail: err.Error()}
	}
	return verified(a, s.Source, err)
}

// KnownHead reads a head that somebody noted down; none is no error.
func KnownHead(text string) (journal.Position, error) {
	if text == "" {
		return journal.Position{}, nil
	}
	p, err := journal.ParsePosition(text)
	if err != nil {
		return p, problem(http.StatusUnprocessableEntity, "head-invalid", "%s", err.Error()).withNext("audit verify prints one")
	}
	return p, nil
}

func verified(a *journal.Auditor, source string, err error) (Verification, error) {
	var f *journal.Flaw
	if err != nil && !errors.As(err, &f) {
		return Verification{}, err
	}
	v := Verification{OK: f == nil, Source: source, Head: a.At().String(), Finding: f}
	v.Events, v.Aggregates = a.Counts()
	return v, nil
}

// VerifyExport checks an export by itself: that each event has the digest it states, and that the events continue
// one another. partial is an export of one account's events, whose sequences have gaps. known is a head noted down
// before, or zero: without one nothing shows that the end of the file was cut off.
func VerifyExport(from io.Reader, partial bool, known journal.Position) (Verification, error) {
	a := journal.NewAuditor(partial, known)
	source := ""
	var found *journal.Flaw
	err := lines(from, func(n int, line []byte) error {
		r, kind, of, err := ReadEvent(line)
		if found != nil { // is the missing one further down?
			if err == nil && found.Misplaced(r) {
				return errEnough
			}
			return nil
		}
		if err != nil {
			return &journal.Flaw{Code: journal.FoundUnreadable, Sequence: a.At().Sequence + 1, Detail: fmt.Sprintf("line %d cannot be read: %v", n, err)}
		}
		if source == "" {
			source = of
		}
		if got := journal.DigestOfRecord(source, kind, r); got != r.Digest || of != source {
			return &journal.Flaw{Code: journal.FoundAltered, Sequence: r.Sequence, Subject: r.Aggregate.Subject()[len(events.SubjectPrefix):],
				Detail: fmt.Sprintf("sequence %d (line %d) states the digest %s and has %s", r.Sequence, n, r.Digest, got)}
		}
		err = a.Check(r)
		if errors.As(err, &found) && found.Code == journal.FoundMissing {
			return nil
		}
		return err
	})
	switch {
	case found != nil:
		err = found
	case err == nil:
		err = a.End()
	}
	return verified(a, source, err)
}
