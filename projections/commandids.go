package projections

import "github.com/tombolo-vdc/tombolo/events"

// CommandIDs answers: was this command id used before, with which body, and what
// came of it? An aggregate answers this for its own events alone; here it is
// answered across aggregates. Commands that processes send have derived ids and
// are not kept.
//
//	command-ids.command  <actor's account> <command id>  → CommandRow
type CommandIDs struct{}

// CommandRow is the last event of one command of a person. A command that claims
// names or numbers first leaves several; the last one is the answer to it.
type CommandRow struct {
	Account   events.AccountID `json:"account"` // of the actor, as the credential says
	User      events.UserID    `json:"user"`
	ID        events.CommandID `json:"id"`
	Digest    events.Digest    `json:"digest"` // of the body; a retry has the same
	Type      events.Type      `json:"type"`
	Event     string           `json:"event"`
	Aggregate string           `json:"aggregate"` // its subject
	Sequence  uint64           `json:"sequence"`
	Revision  uint64           `json:"revision"`
}

var commands = unread(NewTable("command-ids", "command", func(c CommandRow) Key { return Key{string(c.Account), string(c.ID)} }))

// Name is "command-ids".
func (CommandIDs) Name() string { return "command-ids" }

// Shape of the rows.
func (CommandIDs) Shape() int { return 2 }

// Tables of command ids.
func (CommandIDs) Tables() []Described { return []Described{commands} }

// Apply notes the commands of people.
func (CommandIDs) Apply(w *Batch, r events.Record) error {
	if r.Causation != "" || r.Command.ID == "" {
		return nil
	}
	return replace(commands, w, CommandRow{Account: r.Actor.Account, User: r.Actor.User, ID: r.Command.ID, Digest: r.Command.Digest,
		Type: r.Event.EventType(), Event: r.ID, Aggregate: r.Aggregate.Subject(), Sequence: r.Sequence, Revision: r.Revision})
}

// Command gives what came of a command id of an account's users; false if no
// accepted command had it.
func (CommandIDs) Command(r Reader, account events.AccountID, id events.CommandID) (CommandRow, bool, error) {
	return commands.Get(r, string(account), string(id))
}
