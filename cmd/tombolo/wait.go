package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"strconv"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
)

// operationState is what waiting needs to know of an operation.
type operationState struct {
	ID       events.OperationID `json:"id"`
	State    string             `json:"state"`
	Cause    *events.Cause      `json:"cause"`
	Ended    bool               `json:"ended"`
	Position uint64             `json:"position"`
	Machines []struct {
		Machine string        `json:"machine"`
		Cause   *events.Cause `json:"cause"`
	} `json:"failed_machines"`
}

// await waits for an operation as the flags say: exit 7 when the time is over, 8
// and 9 when it failed.
func (c *client) await(ctx context.Context, id events.OperationID) error {
	if id == "" {
		return nil
	}
	if c.app.noWait || !c.app.wait {
		c.app.say("operation %s goes on; tombolo operation wait %s", id, id)
		return nil
	}
	deadline := time.Time{}
	if c.app.timeout > 0 {
		deadline = time.Now().Add(c.app.timeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	show := c.showProgress(ctx, id)
	state, err := c.ended(ctx, id)
	show.stop()
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() == context.DeadlineExceeded {
		f := fail(exitRunning, "still-running", "operation %s has not ended after %s", id, c.app.timeout)
		f.Where = "operation " + string(id)
		return f.withNext("tombolo operation wait %s", id)
	}
	if errors.Is(err, context.Canceled) {
		f := fail(exitError, "interrupted", "interrupted; operation %s goes on", id)
		return f.withNext("tombolo operation wait %s, or tombolo operation cancel %s", id, id)
	}
	var f *failure
	if errors.As(err, &f) && f.Where == "" { // it was accepted, and goes on whether or not anybody waits
		f.Where = "waiting for operation " + string(id)
		if f.Next != "" {
			f.Next += "; "
		}
		f.Next += "then tombolo operation wait " + string(id)
	}
	if err != nil {
		return err
	}
	c.app.position = max(c.app.position, state.Position)
	return state.failure()
}

// ended asks until the operation has ended. Each question waits at the server.
func (c *client) ended(ctx context.Context, id events.OperationID) (operationState, error) {
	for {
		b, err := c.read(ctx, "/v1/operations/"+url.PathEscape(string(id)), url.Values{"wait": {strconv.Itoa(int(longPoll / time.Second))}})
		if err != nil {
			return operationState{}, err
		}
		var state operationState
		if err := json.Unmarshal(b, &state); err != nil {
			return state, err
		}
		if state.Ended {
			return state, nil
		}
	}
}

// longPoll is how long one question waits at the server.
const longPoll = 20 * time.Second

// failure is how an operation's end is an exit code.
func (o operationState) failure() error {
	f := fail(exitError, "operation-failed", "operation %s: %s", o.ID, o.State)
	switch events.Outcome(o.State) {
	case events.Succeeded:
		return nil
	case events.RolledBack, events.Cancelled:
		f.Exit = exitRolledBack
	case events.LeftBehind, events.Partly:
		f.Exit = exitLeftBehind
	}
	if o.Cause != nil {
		f.Code, f.Text, f.Next = o.Cause.Code, f.Text+": "+o.Cause.Text, o.Cause.Next
	}
	for _, m := range o.Machines {
		finding := api.Finding{Code: "machine-failed", Path: m.Machine}
		if m.Cause != nil {
			finding.Code, finding.Text = m.Cause.Code, m.Cause.Text
		}
		f.Findings = append(f.Findings, finding)
	}
	if f.Next == "" {
		f.Next = "tombolo operation show " + string(o.ID)
	}
	f.Where = "operation " + string(o.ID)
	return f
}

// again prints an answer, and with --watch again whenever it is another one.
func (a *app) again(ctx context.Context, c *client, ask func() ([]byte, error), s shape) error {
	b, err := ask()
	if err != nil {
		return err
	}
	a.sayLag(b)
	if err := a.show(b, s); err != nil || !a.watch {
		return err
	}
	shown := withoutPosition(b)
	err = c.stream(ctx, "/v1/events", nil, "", func(id, _ string, _ []byte) error {
		seq, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			return err
		}
		a.position = max(a.position, seq)
		b, err := ask()
		if err != nil {
			return err
		}
		if now := withoutPosition(b); !bytes.Equal(now, shown) {
			shown = now
			return a.show(b, s)
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// sayLag tells how far the answer reaches where that is not to the end.
func (a *app) sayLag(b []byte) {
	var known struct {
		Position uint64          `json:"position"`
		Lag      json.RawMessage `json:"lag"`
	}
	if a.asOf != "" || json.Unmarshal(b, &known) != nil {
		return
	}
	switch lag := string(known.Lag); lag {
	case "", "0":
	case "null":
		a.say("known up to event %d; whether there are more is not known: the journal cannot be reached", known.Position)
	default:
		a.say("known up to event %d; the journal is %s ahead", known.Position, lag)
	}
}

// withoutPosition is an answer without what changes though nothing else does.
func withoutPosition(b []byte) []byte {
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil {
		return b
	}
	delete(fields, "position")
	delete(fields, "lag")
	out, err := json.Marshal(fields)
	if err != nil {
		return b
	}
	return out
}
