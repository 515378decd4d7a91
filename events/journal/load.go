package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
)

// fetchAtMost is up to how many events are fetched one by one; a consumer costs
// about as much as this many questions.
const fetchAtMost = 8

// Last gives the sequence of the aggregate's last event; 0 without any.
func (j *JetStream) Last(ctx context.Context, a events.Aggregate) (uint64, error) {
	last, err := j.get(ctx, getRequest{LastFor: a.Subject(), NoHeaders: true})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the last event of %s: %w", nameOf(a), err)
	}
	return last.Sequence, nil
}

// Load gives the aggregate's events after the given head. The last event tells
// by its revision how many there are: none or one costs one question, a few one
// question each, many a consumer.
func (j *JetStream) Load(ctx context.Context, a events.Aggregate, after events.Head) ([]events.Record, error) {
	records, err := j.load(ctx, a, after)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", nameOf(a), err)
	}
	return records, nil
}

func (j *JetStream) load(ctx context.Context, a events.Aggregate, after events.Head) ([]events.Record, error) {
	last, err := j.get(ctx, getRequest{LastFor: a.Subject()})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		last, err = stored{}, nil
	}
	if err != nil {
		return nil, err
	}
	if last.Sequence <= after.Sequence {
		return nil, endsAt(a, after, last.Sequence)
	}
	end, err := j.outline(last)
	if err != nil {
		return nil, &ChainError{Aggregate: a, Sequence: last.Sequence, Reason: err.Error(), Cause: err}
	}
	c := chain{codec: j.codec, aggregate: a, head: after}
	if end.Revision > after.Revision && end.Revision-after.Revision <= fetchAtMost {
		for c.head.Sequence < last.Sequence && len(c.records) < fetchAtMost {
			s := last
			if c.head.Revision+1 < end.Revision {
				if s, err = j.get(ctx, getRequest{Seq: c.head.Sequence + 1, NextFor: a.Subject()}); err != nil {
					return nil, err
				}
			}
			m, err := s.message()
			if err != nil {
				return nil, &ChainError{Aggregate: a, Sequence: s.Sequence, Reason: err.Error(), Cause: err}
			}
			if err := c.add(delivery{m, s.Sequence, s.Time}); err != nil {
				return nil, err
			}
		}
		return c.records, nil
	}
	err = j.consume(ctx, after.Sequence, a.Subject(), nil, func(d delivery) error {
		if err := c.add(d); err != nil {
			return err
		}
		if d.sequence >= last.Sequence {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		return nil, err
	}
	return c.records, nil
}

// errEnough ends a consumer that has served its purpose.
var errEnough = errors.New("enough")

// endsAt is Load's answer when nothing follows the head.
func endsAt(a events.Aggregate, after events.Head, last uint64) error {
	if last == after.Sequence {
		return nil
	}
	return &ChainError{Aggregate: a, Sequence: after.Sequence, Reason: fmt.Sprintf("the aggregate ends at sequence %d already", last)}
}

// chain gathers an aggregate's events and checks each against the one before.
type chain struct {
	codec
	aggregate events.Aggregate
	head      events.Head
	records   []events.Record
}

func (c *chain) add(d delivery) error {
	r, kind, err := c.envelope(d.message)
	if err != nil {
		return &ChainError{Aggregate: c.aggregate, Sequence: d.sequence, Reason: err.Error(), Cause: err}
	}
	r.Sequence, r.Stored = d.sequence, d.stored
	if err := chained(c.head, r); err != nil {
		return err
	}
	if r.Event, err = c.registry.Decode(kind, r.Schema, d.payload); err != nil {
		return err
	}
	c.head = r.Head()
	c.records = append(c.records, r)
	return nil
}
