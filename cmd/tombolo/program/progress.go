package program

import (
	"context"
	"encoding/json"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/commands/client"
)

// progress follows on the bus what agents tell of their work, a region.Progress as
// JSON. What nobody follows is lost; the journal has the result.
type progress struct{ conn *nats.Conn }

var _ api.Progress = progress{}

// progressBacklog bounds what waits for a slow client; the rest is dropped, as a
// later report says more.
const progressBacklog = 256

// Follow calls each with every report on an operation until the context ends.
func (p progress) Follow(ctx context.Context, account events.AccountID, operation events.OperationID, each func(json.RawMessage) error) error {
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
