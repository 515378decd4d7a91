package program

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/commands/client"
	"github.com/tombolo-vdc/tombolo/handlers/region"
)

// progress follows on the bus what agents tell of their work, a region.Progress as
// JSON, and remembers the latest word on each copy. It is not kept anywhere: the
// journal has the result.
type progress struct {
	conn *nats.Conn

	mu     sync.Mutex
	latest map[transfer]region.Progress
}

var _ api.Progress = (*progress)(nil)

// transfer is what an operation has brought to a region.
type transfer struct {
	account   events.AccountID
	operation events.OperationID
	region    events.RegionID
}

// progressBacklog bounds what waits for a slow client; the rest is dropped, as a
// later report says more.
const progressBacklog = 256

// latestMost bounds what is remembered. Beyond it all is forgotten: what still
// goes on is told again within a second.
const latestMost = 4096

// newProgress listens on the connection until that is closed.
func newProgress(conn *nats.Conn) (*progress, error) {
	p := &progress{conn: conn, latest: map[transfer]region.Progress{}}
	_, err := conn.Subscribe(client.ProgressPrefix+">", func(m *nats.Msg) {
		var t region.Progress
		if json.Unmarshal(m.Data, &t) != nil || t.Kind != events.WorkCopy {
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.latest) >= latestMost {
			clear(p.latest)
		}
		p.latest[transfer{t.Account, t.Operation, t.Region}] = t
	})
	return p, err
}

// Latest is the last report on an operation's copy into a region.
func (p *progress) Latest(account events.AccountID, operation events.OperationID, region events.RegionID) (region.Progress, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, ok := p.latest[transfer{account, operation, region}]
	return t, ok
}

// Follow calls each with every report on an operation until the context ends.
func (p *progress) Follow(ctx context.Context, account events.AccountID, operation events.OperationID, each func(json.RawMessage) error) error {
	reports := make(chan *nats.Msg, progressBacklog)
	sub, err := p.conn.ChanSubscribe(client.ProgressPrefix+string(account)+".>", reports)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-reports:
			var about struct {
				Operation events.OperationID `json:"operation"`
			}
			if json.Unmarshal(m.Data, &about) != nil || about.Operation != operation {
				continue
			}
			if err := each(m.Data); err != nil {
				return err
			}
		}
	}
}
