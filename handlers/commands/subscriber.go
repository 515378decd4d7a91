package commands

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go/jetstream"
)

// Metadata of the messages that a subscriber gives.
const (
	subjectKey = "subject"
	triesKey   = "tries" // how often it was delivered, this time included
)

// subscriber feeds Watermill's router from a durable pull consumer: one message
// at a time, the same one again, after a pause, when it is nacked. What is not
// acknowledged when the process ends comes again after the consumer's AckWait.
type subscriber struct {
	consumer jetstream.Consumer
	pause    func(tries int) time.Duration
	log      *slog.Logger

	running sync.WaitGroup
	mu      sync.Mutex
	stops   []context.CancelFunc
}

var _ message.Subscriber = (*subscriber)(nil)

// Subscribe gives the consumer's messages, whatever the topic: the consumer is
// bound to its stream.
func (s *subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	it, err := s.consumer.Messages(jetstream.PullMaxMessages(1))
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	ctx, stop := context.WithCancel(ctx)
	s.mu.Lock()
	s.stops = append(s.stops, stop)
	s.mu.Unlock()
	out := make(chan *message.Message)
	s.running.Go(func() {
		defer close(out)
		defer stop()
		defer context.AfterFunc(ctx, it.Stop)()
		for {
			m, err := it.Next()
			switch {
			case errors.Is(err, jetstream.ErrMsgIteratorClosed):
				return
			case err != nil:
				// A lost connection or a missed heartbeat: the iterator goes on by itself.
				s.log.Warn("the inbox cannot be read for now", "error", err)
				select {
				case <-time.After(s.pause(1)):
				case <-ctx.Done():
				}
				continue
			}
			s.deliver(ctx, out, m)
		}
	})
	return out, nil
}

// deliver hands one message on and settles it.
func (s *subscriber) deliver(ctx context.Context, out chan<- *message.Message, m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		s.log.Error("a message that is not a stream's reached the inbox", "subject", m.Subject(), "error", err)
		return
	}
	wm := message.NewMessageWithContext(ctx, fmt.Sprintf("%s/%d", meta.Stream, meta.Sequence.Stream), m.Data())
	wm.Metadata.Set(subjectKey, m.Subject())
	wm.Metadata.Set(triesKey, strconv.FormatUint(meta.NumDelivered, 10))
	select {
	case out <- wm:
	case <-ctx.Done():
		s.settled(m.Nak())
		return
	}
	select { // what was handed on is settled, also when the context has ended
	case <-wm.Acked():
		s.settled(m.Ack())
	case <-wm.Nacked():
		s.settled(m.NakWithDelay(s.pause(int(meta.NumDelivered))))
	}
}

// settled notes that the consumer was not told: the message will come again,
// which is harmless.
func (s *subscriber) settled(err error) {
	if err != nil {
		s.log.Warn("a message of the inbox is not settled and will come again", "error", err)
	}
}

// Close ends all subscriptions, after the message that is being handled.
func (s *subscriber) Close() error {
	s.mu.Lock()
	for _, stop := range s.stops {
		stop()
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

func triesOf(m *message.Message) int {
	n, err := strconv.Atoi(m.Metadata.Get(triesKey))
	if err != nil {
		return 1
	}
	return n
}
