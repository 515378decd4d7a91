package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
)

const (
	prefetch  = 1024             // messages asked for ahead
	heartbeat = 5 * time.Second  // twice this without a sign makes a new consumer
	abandoned = 30 * time.Second // the server drops a consumer unused for this long
)

// errNear ends a reading of one's own: the tail goes on from here.
var errNear = errors.New("the tail has the rest")

// Follow calls each with every event after the position; see Journal. What lies far back is read by a consumer of its
// own, the end of the stream by one that all followers share.
func (j *JetStream) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	j.tail.join()
	defer j.tail.leave()
	position, digest := after, events.Digest("")
	step := func(r events.Record) error {
		if err := each(r); err != nil {
			return err
		}
		position, digest = r.Sequence, r.Digest
		return nil
	}
	for {
		var failed error
		err := j.follow(ctx, position, digest, func(r events.Record) error {
			if failed = step(r); failed != nil {
				return failed
			}
			if _, _, near := j.tail.after(j, position); near {
				return errNear
			}
			return nil
		})
		if failed != nil || !errors.Is(err, errNear) {
			return err
		}
		if err := j.followTail(ctx, &position, step); err != nil {
			return err
		}
	}
}

// followTail goes on with the tail until the context ends, each fails, or the tail does not know the position.
func (j *JetStream) followTail(ctx context.Context, position *uint64, each func(events.Record) error) error {
	for {
		records, moved, known := j.tail.after(j, *position)
		if !known {
			return nil
		}
		for _, r := range records {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := each(r); err != nil {
				return err
			}
		}
		if len(records) > 0 {
			continue
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow is Follow over a consumer of its own, after an event with this digest,
// which is empty where it is not known. Whatever consumer follows on another one
// goes on in the same journal: the sequence alone does not tell a journal that was
// restored from a backup, and has grown past the position since (ErrSetBack).
func (j *JetStream) follow(ctx context.Context, after uint64, digest events.Digest, each func(events.Record) error) error {
	position := after
	same := func(ctx context.Context) error {
		found, err := j.digestAt(ctx, position)
		switch {
		case err != nil || found == "":
			return err
		case digest == "":
			digest = found
		case digest != found:
			return &SetBackError{position, digest, found}
		}
		return nil
	}
	var stopped error // what each, or a check, ended with
	err := j.consume(ctx, after, "", same, func(d delivery) error {
		if d.sequence != position+1 {
			// Lost on the way, or in the store?
			if stopped = j.gapAfter(ctx, position, d.sequence); stopped != nil {
				return stopped
			}
			return errAgain
		}
		r, err := j.decode(d.message)
		if err != nil {
			stopped = fmt.Errorf("follow the journal: sequence %d: %w", d.sequence, err)
			return stopped
		}
		r.Sequence, r.Stored = d.sequence, d.stored
		if stopped = each(r); stopped != nil {
			return stopped
		}
		position, digest = d.sequence, r.Digest
		return nil
	})
	if stopped != nil {
		return stopped
	}
	return err
}

// digestAt gives the digest of a stored event; empty where there is none.
func (j *JetStream) digestAt(ctx context.Context, sequence uint64) (events.Digest, error) {
	if sequence == 0 {
		return "", nil
	}
	s, err := j.get(ctx, getRequest{Seq: sequence})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	m, err := s.message()
	return DigestOf(m.subject, m.header, m.payload), err
}

// delivery is a message with what the store says of it.
type delivery struct {
	message
	sequence uint64
	stored   time.Time
}

// errAgain asks consume for a new consumer from the last message that went well.
var errAgain = errors.New("consume again")

// consume calls each with the messages after the position, of one subject or of
// all, until the context ends, each fails or the journal does. A consumer that
// breaks is replaced, after the check of what it would go on from; nil for none.
// Its errors are the context's, each's, ErrVanished, ErrGap, ErrSetBack.
func (j *JetStream) consume(ctx context.Context, position uint64, filter string, check func(context.Context) error, each func(delivery) error) error {
	pause := firstPause
	for {
		err := j.reaches(ctx, position, filter)
		if err == nil && check != nil {
			err = check(ctx)
		}
		if err == nil {
			var failed error
			err = j.session(ctx, position+1, filter, func(d delivery) error {
				if d.sequence <= position {
					return nil
				}
				if failed = each(d); failed == nil {
					position, pause = d.sequence, firstPause
				}
				return failed
			})
			if failed != nil && !errors.Is(failed, errAgain) {
				return failed
			}
		}
		switch {
		case isFinished(ctx):
			return ctx.Err()
		case errors.Is(err, ErrVanished), errors.Is(err, ErrGap), errors.Is(err, ErrSetBack), errors.Is(err, nats.ErrConnectionClosed):
			return fmt.Errorf("follow the journal: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			pause = min(2*pause, lastPause)
		}
	}
}

// reaches checks that the stream is still ours and goes on after the position
// without a hole.
func (j *JetStream) reaches(ctx context.Context, position uint64, filter string) error {
	ctx, cancel := context.WithTimeout(ctx, apiWait)
	defer cancel()
	info, err := j.info(ctx)
	switch {
	case err != nil:
		return err
	case info.State.LastSeq < position:
		return &GapError{Missing: position}
	case info.State.LastSeq > position && filter == "":
		return j.gapAfter(ctx, position, 0)
	}
	return nil
}

// gapAfter tells whether the store lacks the message after the position.
func (j *JetStream) gapAfter(ctx context.Context, position, found uint64) error {
	next, err := j.get(ctx, getRequest{Seq: position + 1, NextFor: subjects})
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return &GapError{Missing: position + 1, Found: found}
	case errors.Is(err, ErrVanished):
		return err
	case err == nil && next.Sequence != position+1:
		return &GapError{Missing: position + 1, Found: next.Sequence}
	}
	return nil // there, or not to be known now: the next consumer will tell
}

// session runs one consumer until it breaks.
func (j *JetStream) session(ctx context.Context, from uint64, filter string, each func(delivery) error) error {
	// A consumer without acknowledgements loses what is on the way when the
	// connection is cut: every new connection gets a new one.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := j.conn.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer j.conn.RemoveStatusListener(changes)
	go func() {
		select {
		case <-changes:
			cancel()
		case <-ctx.Done():
		}
	}()

	consumer, err := j.js.CreateConsumer(ctx, StreamName, jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       from,
		FilterSubject:     filter,
		AckPolicy:         jetstream.AckNonePolicy,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: abandoned,
	})
	if err != nil {
		return err
	}
	// Nobody waits for the answer; without it the server drops the consumer by itself.
	defer func() {
		_ = j.conn.Publish(j.api+"CONSUMER.DELETE."+StreamName+"."+consumer.CachedInfo().Name, nil)
	}()
	// Each message is handled where it arrives: handing it to another goroutine
	// costs as much as reading it.
	ended := make(chan error, 1)
	over := false // of the callback's goroutine
	end := func(err error) {
		select {
		case ended <- err:
		default: // ended already
		}
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		if over {
			return
		}
		if err := deliver(ctx, m, each); err != nil {
			over = true
			end(err)
		}
	}, jetstream.PullMaxMessages(prefetch), jetstream.PullHeartbeat(heartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { end(err) }))
	if err != nil {
		return err
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	cancel() // what is on its way is not delivered
	consuming.Stop()
	<-consuming.Closed()
	return err
}

// deliver hands a message to each, unless the context has ended.
func deliver(ctx context.Context, m jetstream.Msg, each func(delivery) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	meta, err := m.Metadata()
	if err != nil {
		return err
	}
	return each(delivery{message{m.Subject(), m.Headers(), m.Data()}, meta.Sequence.Stream, meta.Timestamp})
}
