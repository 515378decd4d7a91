// Package processes holds the process managers: what spans aggregates. Each is
// a file in the same order: what it carries from whom to whom, its row, the fold
// with what it sends, what a refusal means, when it is over. A process does no
// I/O; its facts are the journal's, its effects are commands whose ids derive
// from the event that led to them, so that a step taken twice is a step taken
// once.
package processes

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

// Row is a process's memory of one thing it looks after.
type Row interface {
	// React folds one event that concerns the row and says what to send.
	React(r events.Record) []Send
	// Refused is told when a decision said no to something that was sent.
	Refused(s Send, why *aggregates.Refusal) []Send
	// Index names the row by other things than its key: "work/<id>".
	Index() []string
	// Over says that the row is not needed, any more or at all.
	Over() bool
}

// Send is a command on its way from a process.
type Send struct {
	// Step is unique among what the row sends because of one event; the
	// command's id derives from the row, the event and the step.
	Step    string
	Account events.AccountID
	// operation is the one that it is sent for, where that is not the one which
	// the event that led to it belongs to.
	operation events.OperationID
	guards    bool // refused, it takes the sends behind it with it
	execute   func(ctx context.Context, x *commands.Executor, o commands.Origin) (commands.Outcome, error)
}

// send makes a Send of a command.
func send[S aggregates.State[S, E], E events.Event](account events.AccountID, step string, c aggregates.Command[S, E]) Send {
	return Send{Step: step, Account: account, execute: func(ctx context.Context, x *commands.Executor, o commands.Origin) (commands.Outcome, error) {
		return commands.Execute(ctx, x, o, "event", c)
	}}
}

// of names the operation that the command is sent for.
func (s Send) of(op events.OperationID) Send {
	s.operation = op
	return s
}

// guard makes a Send that asks an aggregate whether the sends behind it still
// make sense, and changes nothing. A process that has fallen behind, or has lost
// its rows, reacts to old events: what was refused then might be granted now,
// and nobody would give it back.
func guard[S aggregates.State[S, E], E events.Event](account events.AccountID, c aggregates.Command[S, E]) Send {
	s := send(account, "guard", c)
	s.guards = true
	return s
}

// Definition is one process manager in the table.
type Definition struct {
	Name string
	// Keys names the rows that the event concerns; index looks rows up by what
	// Row.Index gave. Most events concern none.
	Keys   func(r events.Record, index func(string) []string) []string
	decode func(stored []byte) (Row, error)
}

func define[R any, P interface {
	*R
	Row
}](name string, keys func(events.Record, func(string) []string) []string) Definition {
	return Definition{Name: name, Keys: keys, decode: func(stored []byte) (Row, error) {
		row := P(new(R))
		if stored == nil {
			return row, nil
		}
		if err := json.Unmarshal(stored, row); err != nil {
			return nil, fmt.Errorf("process %s: stored row: %w", name, err)
		}
		return row, nil
	}}
}

// All is the table of process managers.
func All() []Definition {
	return []Definition{
		define[holding]("holding", holdingKeys),
		define[placing]("placing", placingKeys),
		define[environments]("environments", environmentKeys),
		define[powering]("powering", poweringKeys),
		define[draining]("draining", drainingKeys),
		define[evicting]("evicting", evictingKeys),
	}
}

// controlPlane is who a process acts as; whom it acts for is in the operation.
var controlPlane = events.Actor{Account: events.None, User: "control-plane"}
