// Package client is how a region's agent speaks to the control plane: commands
// that are answered, and progress that is not.
package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

// patience is how long one answer is waited for; the door gives up before.
const patience = 15 * time.Second

// Client speaks for one region. It may be used from many goroutines.
type Client struct {
	conn     *bus.Conn
	region   events.RegionID
	commands *commands.Client
}

// New makes a client of the region's agent over its connection, which is the
// caller's to close.
func New(conn *bus.Conn, region events.RegionID) *Client {
	return &Client{conn, region, commands.NewAgentClient(conn, region)}
}

// Unavailable is an answer that is none: nobody is there, or the control plane
// could not do its work. The command is to be sent again with the same id.
type Unavailable struct{ Code, Text string }

// Error is the text with its code.
func (u *Unavailable) Error() string { return u.Text + " (" + u.Code + ")" }

// Command has one command executed and gives the sequence of its event, or of
// the aggregate's last one when there was nothing to do. What follows from it is
// recorded as the operation's, if there is one. Errors: a
// *aggregates.Refusal, which sending again does not change; after any other
// (*Unavailable, a time-out, a lost connection) the same command may be sent again.
func (c *Client) Command(ctx context.Context, operation events.OperationID, account events.AccountID, kind events.Kind, verb string, id events.CommandID, body any) (uint64, error) {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := c.commands.Within(operation).Do(within, account, kind, verb, id, body)
	if r, ok := aggregates.AsRefusal(err); ok && (r.Class == commands.Unavailable || r.Class == commands.Internal) {
		return 0, &Unavailable{r.Code, r.Text}
	}
	if err != nil {
		return 0, err
	}
	return answer.Sequence, nil
}

// Progress tells whoever watches how far a piece of the account's work is. It
// is stored nowhere, and lost where nobody watches.
func (c *Client) Progress(account events.AccountID, work events.WorkID, progress any) error {
	data, err := json.Marshal(progress)
	if err != nil {
		return fmt.Errorf("progress of %s: %w", work, err)
	}
	if err := c.conn.Publish(ProgressPrefix+string(account)+"."+string(c.region)+"."+string(work), data); err != nil {
		return fmt.Errorf("progress of %s: %w", work, err)
	}
	return nil
}

// ProgressPrefix begins the subject of progress; after it come account, region and work.
const ProgressPrefix = "tombolo.progress."
