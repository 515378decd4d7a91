package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// Client sends commands over the bus. Any NATS client can do the same.
type Client struct {
	conn      Requester
	prefix    string
	operation events.OperationID
}

// Requester is a connection to the bus: a *nats.Conn, or a *bus.Conn, which
// tells at once what it may not publish.
type Requester interface {
	RequestMsgWithContext(ctx context.Context, m *nats.Msg) (*nats.Msg, error)
}

// NewClient makes a client of a tenant's user, or of the control plane's own.
// The connection is the caller's to close.
func NewClient(conn Requester) *Client { return &Client{conn: conn, prefix: CommandPrefix} }

// NewAgentClient makes the client of a region's agent.
func NewAgentClient(conn Requester, region events.RegionID) *Client {
	return &Client{conn: conn, prefix: AgentPrefix + string(region) + "."}
}

// Within is the client for commands that belong to an operation that goes on: it
// is recorded as the correlation of what follows from them.
func (c *Client) Within(operation events.OperationID) *Client {
	return &Client{c.conn, c.prefix, operation}
}

// Do sends a command and waits for its answer. Sending it again with the same
// id, after whatever error, is safe. Errors: a *aggregates.Refusal, a
// *GraphError, or the connection's. A subject that the sender may not publish to
// is a refusal (not-permitted) over a *bus.Conn; over another the context ends.
func (c *Client) Do(ctx context.Context, account events.AccountID, kind events.Kind, verb string, id events.CommandID, body any) (Answer, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return Answer{}, fmt.Errorf("%s.%s: %w", kind, verb, err)
	}
	m := nats.NewMsg(c.prefix + string(account) + "." + string(kind) + "." + verb)
	m.Data = data
	m.Header.Set(CommandIDHeader, string(id))
	if c.operation != "" {
		m.Header.Set(CorrelationHeader, string(c.operation))
	}
	reply, err := c.conn.RequestMsgWithContext(ctx, m)
	if errors.Is(err, nats.ErrNoResponders) {
		return Answer{}, &aggregates.Refusal{Class: Unavailable, Code: "no-control-plane", Text: "no control plane answers on the bus", Next: "start it, or wait until it is back"}
	}
	var forbidden *bus.Error
	if errors.As(err, &forbidden) && forbidden.Code == bus.NotPermitted {
		return Answer{}, aggregates.RefuseAs(aggregates.Denied, string(bus.NotPermitted), "%s", forbidden.Text)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("%s.%s: %w", kind, verb, err)
	}
	var answer struct {
		Answer
		Error *Failure `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return Answer{}, fmt.Errorf("%s.%s: the answer cannot be read: %w", kind, verb, err)
	}
	f := answer.Error
	if f == nil {
		return answer.Answer, nil
	}
	no := &aggregates.Refusal{Class: f.Class, Code: f.Code, Text: f.Text, Next: f.Next}
	if len(f.Findings) > 0 {
		return Answer{}, &GraphError{no, f.Findings}
	}
	if len(f.Plan) > 0 {
		return Answer{}, &PlanError{no, f.Plan}
	}
	return Answer{}, no
}
