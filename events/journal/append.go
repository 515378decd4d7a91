package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
)

// Append stores one event; see Journal. When all is well it costs one round trip.
func (j *JetStream) Append(ctx context.Context, p Proposal) (events.Record, error) {
	m, r, err := j.encode(p)
	if err != nil {
		return events.Record{}, err
	}
	if err := ctx.Err(); err != nil {
		return events.Record{}, err
	}
	size, kind := m.storedSize(), p.Event.EventType()
	finishing := j.options.Finishing(p)
	if !j.admits(ctx, size, finishing) {
		// A repeat of a stored proposal is answered even now.
		return j.settle(ctx, p, j.room.full(kind, finishing))
	}
	m.header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(p.Expect.Sequence, 10)}
	m.header[jetstream.ExpectedStreamHeader] = []string{StreamName}

	sent := false // whether a publish may have reached the store
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		newest := j.newest.Load()
		sequence, err := j.publish(ctx, m)
		switch {
		case err == nil:
			if sequence <= newest {
				return events.Record{}, fmt.Errorf("%w: sequence %d was acknowledged after %d", ErrVanished, sequence, newest)
			}
			j.seen(sequence)
			j.room.add(size)
			r.Sequence = sequence
			return r, nil
		case hasCode(err, jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant):
			// Another event is there, or on its way (replicated streams say so
			// early), or this one is, from an attempt before: look below.
		case hasCode(err, jetstream.JSErrCodeStreamMessageExceedsMaximum):
			return events.Record{}, fmt.Errorf("%w: %s: %w", events.ErrTooLarge, kind, err)
		case hasCode(err, codeStoreFailed, codeAccountResources, codeInsufficient, codeStorageResources):
			return j.settle(ctx, p, j.whyNotStored(ctx, kind, finishing, size, err))
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrMaxPayload):
			return events.Record{}, notStored(sent, err)
		case isAPIError(err):
			return j.settle(ctx, p, fmt.Errorf("append %s: %w", kind, err))
		default:
			sent = sent || !errors.Is(err, nats.ErrNoResponders)
		}
		// It may be stored, on its way, or lost: look, and send it again if it
		// is not there. The expected sequence lets only one of the copies in.
		found, moved, lookErr := j.find(ctx, p)
		switch {
		case found != nil:
			return *found, nil
		case moved != nil:
			return events.Record{}, moved
		case errors.Is(lookErr, ErrVanished):
			return events.Record{}, lookErr
		}
		select {
		case <-ctx.Done():
			return events.Record{}, notStored(sent, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// Pauses between two attempts of one append.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

func isAPIError(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api)
}

// notStored is the error at the end of trying.
func notStored(sent bool, err error) error {
	if sent {
		return fmt.Errorf("%w: %w", ErrAmbiguous, err)
	}
	return err
}

// publish sends the message and gives the sequence it was stored at. A time-out
// that is not the caller's is context.DeadlineExceeded too.
func (j *JetStream) publish(ctx context.Context, m message) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, j.options.AckWait)
	defer cancel()
	answer, err := j.conn.RequestMsgWithContext(ctx, &nats.Msg{Subject: m.subject, Header: m.header, Data: m.payload})
	if err != nil {
		return 0, err
	}
	var ack struct {
		Stream   string              `json:"stream"`
		Sequence uint64              `json:"seq"`
		Error    *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return 0, fmt.Errorf("JetStream's acknowledgement: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	if ack.Stream != StreamName || ack.Sequence == 0 {
		return 0, fmt.Errorf("JetStream's acknowledgement is of stream %q, sequence %d", ack.Stream, ack.Sequence)
	}
	return ack.Sequence, nil
}

// seen raises newest to the sequence.
func (j *JetStream) seen(sequence uint64) {
	for {
		newest := j.newest.Load()
		if sequence <= newest || j.newest.CompareAndSwap(newest, sequence) {
			return
		}
	}
}

// admits reports whether the limit lets an event in; it asks the store only
// before it says no.
func (j *JetStream) admits(ctx context.Context, size uint64, finishing bool) bool {
	admitted, fresh, refresh := j.room.ask(size, finishing, time.Now())
	if refresh {
		go func() {
			defer j.room.asked()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiWait)
			defer cancel()
			// A failure leaves the old figure, and the next append asks again.
			_, _ = j.info(ctx)
		}()
	}
	if admitted || fresh {
		return admitted
	}
	if _, err := j.info(ctx); err != nil {
		return true // the publish will tell what is wrong
	}
	admitted, _, _ = j.room.ask(size, finishing, time.Now())
	return admitted
}

// whyNotStored turns JetStream's refusal to store into ErrFull where a limit is
// the reason. Code 10077 stands for any failure of the store: the figures tell.
func (j *JetStream) whyNotStored(ctx context.Context, t events.Type, finishing bool, size uint64, err error) error {
	if hasCode(err, codeStoreFailed) {
		used, limit, usageErr := j.Usage(ctx)
		if usageErr != nil || admits(used, limit, size, true) {
			return fmt.Errorf("append %s: %w", t, err)
		}
	}
	return fmt.Errorf("%w: %w", j.room.full(t, finishing), err)
}

// settle ends an append that the store refused: the record if the proposal is
// stored, the conflict if the aggregate has moved, else the reason given.
func (j *JetStream) settle(ctx context.Context, p Proposal, reason error) (events.Record, error) {
	found, moved, err := j.find(ctx, p)
	switch {
	case found != nil:
		return *found, nil
	case moved != nil:
		return events.Record{}, moved
	case errors.Is(err, ErrVanished):
		return events.Record{}, err
	case err != nil:
		return events.Record{}, fmt.Errorf("%w: %w", ErrAmbiguous, errors.Join(reason, err))
	}
	return events.Record{}, reason
}

// find looks for the proposal among the aggregate's events after p.Expect. It
// gives its record, or a ConflictError if there are other events only (or the
// aggregate ends before p.Expect), or neither: the aggregate stands at p.Expect.
func (j *JetStream) find(ctx context.Context, p Proposal) (*events.Record, error, error) {
	last, err := j.get(ctx, getRequest{LastFor: p.Aggregate.Subject()})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		last, err = stored{}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look for %s in %s: %w", p.ID, nameOf(p.Aggregate), err)
	}
	if last.Sequence == p.Expect.Sequence {
		return nil, nil, nil
	}
	var head events.Head
	for next := p.Expect.Sequence + 1; next <= last.Sequence; {
		s := last
		if next < last.Sequence {
			if s, err = j.get(ctx, getRequest{Seq: next, NextFor: p.Aggregate.Subject()}); err != nil {
				return nil, nil, fmt.Errorf("look for %s in %s: %w", p.ID, nameOf(p.Aggregate), err)
			}
		}
		r, err := j.outline(s)
		if err != nil {
			return nil, nil, err
		}
		if r.ID == p.ID {
			if r, err = j.record(s); err != nil {
				return nil, nil, err
			}
			j.seen(r.Sequence)
			r.Stored = time.Time{} // as the first answer had it
			return &r, nil, nil
		}
		head, next = r.Head(), s.Sequence+1
	}
	if head.Sequence == 0 && last.Sequence > 0 { // Expect lies beyond the end
		r, err := j.outline(last)
		if err != nil {
			return nil, nil, err
		}
		head = r.Head()
	}
	return nil, &ConflictError{Aggregate: p.Aggregate, Expected: p.Expect, Actual: head}, nil
}

// outline decodes a stored message but for its event, which a newer program may
// have written.
func (j *JetStream) outline(s stored) (events.Record, error) {
	m, err := s.message()
	if err != nil {
		return events.Record{}, err
	}
	r, _, err := j.envelope(m)
	r.Sequence, r.Stored = s.Sequence, s.Time
	return r, err
}

// record decodes a stored message in full.
func (j *JetStream) record(s stored) (events.Record, error) {
	m, err := s.message()
	if err != nil {
		return events.Record{}, err
	}
	r, err := j.decode(m)
	r.Sequence, r.Stored = s.Sequence, s.Time
	return r, err
}
