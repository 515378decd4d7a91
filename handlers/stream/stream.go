// Package stream feeds the journal to Watermill's router: stream order, one
// message at a time for each handler, from the position that the handler keeps
// with its own rows. A message that is nacked comes again, after a pause that
// grows; no message is passed over.
package stream

import (
	"context"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// Subscriber is a Watermill subscriber over a journal. The topic of a
// subscription is the handler's name.
type Subscriber struct {
	journal journal.Journal
	after   func(handler string) uint64
	pass    func(events.Record) bool
	failed  func(handler string, err error)

	mu     sync.Mutex
	closed chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
}

// New makes a subscriber. after gives the position that a handler goes on from;
// pass lets events go by that are nothing to the handlers, without a message;
// failed is told when a handler's feed ends by an error (a gap, an unknown
// event): it does not go on by itself.
func New(j journal.Journal, after func(handler string) uint64, pass func(events.Record) bool, failed func(handler string, err error)) *Subscriber {
	return &Subscriber{journal: j, after: after, pass: pass, failed: failed, closed: make(chan struct{})}
}

// Pauses between deliveries of a message that was nacked.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 30 * time.Second
)

// Subscribe starts the handler's feed.
func (s *Subscriber) Subscribe(ctx context.Context, handler string) (<-chan *message.Message, error) {
	out := make(chan *message.Message)
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wg.Go(func() {
		defer close(out)
		defer cancel()
		err := s.journal.Follow(ctx, s.after(handler), func(r events.Record) error {
			if s.pass(r) {
				return ctx.Err()
			}
			return deliver(ctx, out, r)
		})
		if ctx.Err() == nil && err != nil {
			s.failed(handler, err)
		}
	})
	s.wg.Go(func() {
		select {
		case <-s.closed:
			cancel()
		case <-ctx.Done():
		}
	})
	return out, nil
}

// Close ends all feeds and waits for them.
func (s *Subscriber) Close() error {
	s.once.Do(func() { close(s.closed) })
	s.wg.Wait()
	return nil
}

type recordKey struct{}

// Record gives the event that the message carries.
func Record(m *message.Message) events.Record {
	r, _ := m.Context().Value(recordKey{}).(events.Record)
	return r
}

// deliver hands the event over until it is acknowledged.
func deliver(ctx context.Context, out chan<- *message.Message, r events.Record) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		m := message.NewMessage(r.ID, r.Payload)
		m.Metadata.Set("correlation_id", r.Correlation)
		m.Metadata.Set("type", string(r.Event.EventType()))
		mctx, done := context.WithCancel(context.WithValue(ctx, recordKey{}, r))
		m.SetContext(mctx)
		select {
		case out <- m:
		case <-ctx.Done():
			done()
			return ctx.Err()
		}
		select {
		case <-m.Acked():
			done()
			return nil
		case <-m.Nacked():
			done()
		case <-ctx.Done():
			done()
			return ctx.Err()
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
