package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/projections"
)

func (s *Server) replayRoutes() {
	get(s, "/v1/audit/replay/{at}", "audit-replay", "The catalogue as of then, folded anew from the journal alone", func(ctx context.Context, v at, in *momentInput) (m Moment, _ uint64, err error) {
		account, _, err := in.account(ctx)
		if err != nil {
			return m, 0, err
		}
		return m, 0, s.replayed(ctx, v.Position(), func(v *projections.View, _ projections.Status) error {
			m, err = momentOf(v, complete(v.Position()), account)
			return err
		})
	})
	get(s, "/v1/audit/replay/{at}/digests", "audit-replay-digests", "Digests of the read models as of then, folded anew from the journal alone", func(ctx context.Context, v at, _ *momentInput) (d Digests, _ uint64, err error) {
		return d, 0, s.replayed(ctx, v.Position(), func(v *projections.View, status projections.Status) error {
			d, err = digestsOf(v, complete(v.Position()), status)
			return err
		})
	})
}

// replayed folds the journal anew up to a position and shows it to ask.
func (s *Server) replayed(ctx context.Context, until uint64, ask func(*projections.View, projections.Status) error) error {
	if err := mustAdministrate(ctx); err != nil {
		return err
	}
	if !s.replay.TryLock() {
		return problem(http.StatusServiceUnavailable, "replay-busy", "another replay is going on").withNext("ask again when it has ended")
	}
	defer s.replay.Unlock()
	return replayInto(ctx, s.Scratch, s.Journal, until, ask)
}

// replayInto folds what from gives, up to until, into a store of its own that is gone afterwards.
func replayInto(ctx context.Context, scratch string, from projections.Follower, until uint64, ask func(*projections.View, projections.Status) error) (err error) {
	dir, err := os.MkdirTemp(scratch, "replay-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := projections.Open(dir, projections.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	feed, err := store.Feed(projections.All()...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- feed.Run(ctx, bounded{from, until}) }()
	err = feed.WaitFor(ctx, until)
	cancel()
	if ended := <-ran; err != nil {
		if !errors.Is(ended, context.Canceled) {
			err = ended // why it could not be reached
		}
		return err
	}
	v, err := feed.AsOf(until)
	if err != nil {
		return err
	}
	return cmp.Or(ask(v, feed.Status()), v.Close())
}

// bounded follows up to one event, and then waits for the end.
type bounded struct {
	from projections.Follower
	last uint64
}

// Follow is projections.Follower.
func (b bounded) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	if after < b.last {
		err := b.from.Follow(ctx, after, func(r events.Record) error {
			if err := each(r); err != nil {
				return err
			}
			if r.Sequence >= b.last {
				return errEnough
			}
			return nil
		})
		if !errors.Is(err, errEnough) {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// ReadEvent reads a line of an export: the record, without its event, and which journal it is of.
func ReadEvent(line []byte) (r events.Record, kind events.Type, source string, err error) {
	var e Event
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return r, "", "", err
	}
	if d.More() {
		return r, "", "", errors.New("more than one value on a line")
	}
	aggregate, err := events.ParseSubject(events.SubjectPrefix + e.Subject)
	if err != nil {
		return r, "", "", err
	}
	var payload bytes.Buffer
	if err := json.Compact(&payload, e.Data); err != nil {
		return r, "", "", err
	}
	if e.SpecVersion != "1.0" || e.DataContentType != "application/json" || e.Sequence == 0 || e.Revision == 0 {
		return r, "", "", errors.New("it is no CloudEvent of a journal")
	}
	return events.Record{ID: e.ID, Aggregate: aggregate, Sequence: e.Sequence, Revision: e.Revision, Time: e.Time, Stored: e.Stored,
		Actor:   events.Actor{Account: events.AccountID(e.ActorAccount), User: events.UserID(e.ActorUser)},
		Command: events.CommandRef{ID: events.CommandID(e.Command), Digest: e.CommandDigest}, Correlation: e.Correlation, Causation: e.Causation,
		TraceParent: e.TraceParent, Schema: e.Schema, Previous: e.Previous, Digest: e.Digest, Payload: payload.Bytes()}, e.Type, e.Source, nil
}

// lines calls each with every line of an export, from 1, until each fails.
func lines(from io.Reader, each func(n int, line []byte) error) error {
	scan := bufio.NewScanner(from)
	scan.Buffer(nil, 4*(events.MaxPayload+journal.MaxHeaders))
	for n := 1; scan.Scan(); n++ {
		if err := each(n, scan.Bytes()); err != nil {
			return err
		}
	}
	return scan.Err()
}

// exported follows an export.
type exported struct {
	open     func() (io.ReadCloser, error)
	registry *events.Registry
}

// Follow is projections.Follower: it ends with the file.
func (x exported) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	f, err := x.open()
	if err != nil {
		return err
	}
	err = lines(f, func(n int, line []byte) error {
		r, kind, _, err := ReadEvent(line)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if r.Sequence <= after {
			return ctx.Err()
		}
		if r.Event, err = x.registry.Decode(kind, r.Schema, r.Payload); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		return each(r)
	})
	return cmp.Or(err, f.Close(), error(io.ErrUnexpectedEOF))
}

// ReplayExport folds an export of the whole journal (one that Verify found nothing wrong with) up to a sequence, or
// if that is 0 up to a time, and gives the account's catalogue as it was then: what the server answers to audit at.
func ReplayExport(ctx context.Context, open func() (io.ReadCloser, error), until uint64, to time.Time, account events.AccountID) (m Moment, err error) {
	if until == 0 {
		f, err := open()
		if err != nil {
			return m, err
		}
		err = lines(f, func(n int, line []byte) error {
			r, _, _, err := ReadEvent(line)
			if err == nil && !r.Stored.After(to) {
				until = r.Sequence
			}
			return err
		})
		if err = cmp.Or(err, f.Close()); err != nil {
			return m, err
		}
	}
	err = replayInto(ctx, "", exported{open, events.NewRegistry()}, until, func(v *projections.View, _ projections.Status) error {
		m, err = momentOf(v, complete(v.Position()), account)
		return err
	})
	return m, err
}
