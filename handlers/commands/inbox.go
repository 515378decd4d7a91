package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

const (
	// InboxStream holds commands that were accepted and are not yet executed.
	InboxStream = "INBOX"
	// ParkedStream holds those that could not be executed, with the reason; a
	// person looks at them.
	ParkedStream = "INBOX-PARKED"

	inboxSubjects  = "tombolo.queue.inbox."  // <account>.<kind>.<verb>
	parkedSubjects = "tombolo.queue.parked." // the same
	inboxConsumer  = "commands"
	// poisonTries is how often a command is tried whose failure is not that of
	// something it needs.
	poisonTries = 5

	parkedReasonHeader = "tombolo-parked-because"
)

// Inbox keeps commands durably and executes them in the order of their arrival,
// one at a time, however many control planes there are.
type Inbox struct {
	door     *Door
	js       jetstream.JetStream
	consumer jetstream.Consumer
	parked   jetstream.Stream
	pause    func(tries int) time.Duration
	log      *slog.Logger
}

// Receipt is the answer to a command that was put into the inbox.
type Receipt struct {
	Accepted  bool               `json:"accepted"`
	CommandID events.CommandID   `json:"command_id"`
	Operation events.OperationID `json:"operation" jsonschema:"that the command starts, or under which its refusal is recorded"`
}

// envelope is a command in the inbox.
type envelope struct {
	Account     events.AccountID `json:"account"`
	Kind        events.Kind      `json:"kind"`
	Verb        string           `json:"verb"`
	Command     events.CommandID `json:"command"`
	From        Identity         `json:"from"` // as of its acceptance; asked for anew when it is executed
	IfRevision  *uint64          `json:"if_revision,omitempty"`
	Correlation string           `json:"correlation,omitempty"`
	Causation   string           `json:"causation,omitempty"`
	TraceParent string           `json:"traceparent,omitempty"`
	Body        json.RawMessage  `json:"body"`
}

// OpenInbox opens the inbox's streams, and creates them with so many replicas
// (0 means 1) where they are not there. What waits may take so many bytes, and
// what could not be executed an eighth of it.
func OpenInbox(ctx context.Context, conn *nats.Conn, d *Door, bytes int64, replicas int) (*Inbox, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fmt.Errorf("open the inbox: %w", err)
	}
	in := &Inbox{door: d, js: js, pause: backOff, log: d.log}
	stream, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: InboxStream, Description: "Commands accepted and not yet executed", Subjects: []string{inboxSubjects + ">"},
		Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Replicas: max(replicas, 1),
		Discard: jetstream.DiscardNew, MaxBytes: bytes, Duplicates: 2 * time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("open the inbox: %w", err)
	}
	in.parked, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: ParkedStream, Description: "Commands that could not be executed, and why", Subjects: []string{parkedSubjects + ">"},
		Storage: jetstream.FileStorage, Replicas: max(replicas, 1), Discard: jetstream.DiscardNew, MaxBytes: bytes / 8,
	})
	if err != nil {
		return nil, fmt.Errorf("open the inbox: %w", err)
	}
	in.consumer, err = stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: inboxConsumer, AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1,
		// One at a time, also after a failure: the order of arrival is kept.
		MaxAckPending: 1, AckWait: 3 * patience,
	})
	if err != nil {
		return nil, fmt.Errorf("open the inbox: %w", err)
	}
	return in, nil
}

// backOff is the pause after so many tries.
func backOff(tries int) time.Duration {
	return min(100*time.Millisecond<<min(tries-1, 10), 30*time.Second)
}

// Accept checks the command as the door does before an aggregate is asked, and
// stores it. It returns once the command is on the disk.
func (in *Inbox) Accept(ctx context.Context, r Request) (Receipt, error) {
	c, err := in.door.admit(ctx, r)
	if err != nil {
		return Receipt{}, err
	}
	id := c.origin.Command.ID
	data, err := json.Marshal(envelope{r.Account, r.Kind, r.Verb, id, r.From, r.IfRevision, r.Correlation, r.Causation, r.TraceParent, r.Body})
	if err != nil {
		return Receipt{}, err
	}
	// The digest is part of the id: a command id that comes again with another
	// body is not taken for the same message, and is refused when it is executed.
	key := events.DeriveID(r.Account, id, string(c.origin.Command.Digest))
	_, err = in.js.Publish(ctx, inboxSubjects+string(r.Account)+"."+string(r.Kind)+"."+r.Verb, data,
		jetstream.WithMsgID(key), jetstream.WithExpectStream(InboxStream))
	if err != nil {
		return Receipt{}, fmt.Errorf("store the command in the inbox: %w", err)
	}
	return Receipt{Accepted: true, CommandID: id, Operation: c.operation()}, nil
}

// Run executes what is in the inbox until the context ends. A command that is
// being executed is finished first.
func (in *Inbox) Run(ctx context.Context) error {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 2 * patience}, watermill.NewSlogLoggerWithLevelMapping(in.log, map[slog.Level]slog.Level{
		slog.LevelInfo: slog.LevelDebug, // it tells every start and stop of a handler
	}))
	if err != nil {
		return fmt.Errorf("run the inbox: %w", err)
	}
	source := &subscriber{consumer: in.consumer, pause: in.pause, log: in.log}
	router.AddConsumerHandler("inbox", inboxSubjects+">", source, in.handle)
	if err := router.Run(ctx); err != nil {
		return fmt.Errorf("run the inbox: %w", err)
	}
	return ctx.Err()
}

// handle executes one command. nil means that its outcome is recorded: by the
// aggregate, by its operation, or by its being parked.
func (in *Inbox) handle(m *message.Message) (err error) {
	// Not the router's context: what is begun is finished.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.Context()), patience)
	defer cancel()
	tries := triesOf(m)
	defer func() {
		if p := recover(); p != nil {
			stack := make([]byte, 8<<10)
			err = fmt.Errorf("panic: %v\n%s", p, stack[:runtime.Stack(stack, false)])
		}
		if err != nil && !in.lasting(err) && tries >= poisonTries {
			err = in.park(ctx, m, "it failed "+fmt.Sprint(tries)+" times: "+FailureOf(err, in.log).Reference)
		}
	}()
	var e envelope
	if err := json.Unmarshal(m.Payload, &e); err != nil {
		return in.park(ctx, m, "it cannot be read")
	}
	r := Request{e.Account, e.Kind, e.Verb, e.Command, e.Body, e.From, e.IfRevision, e.Correlation, e.Causation, e.TraceParent}
	err = in.execute(ctx, r)
	no, refused := aggregates.AsRefusal(err)
	if !refused && FailureOf(err, slog.New(slog.DiscardHandler)).Class == aggregates.Invalid {
		f := FailureOf(err, in.log)
		no, refused = aggregates.RefuseAs(f.Class, f.Code, "%s", f.Text), true
	}
	switch {
	case err == nil:
		return nil
	case refused && no.Code == "command-id-reused":
		// The operation is the other command's: its outcome must stay what it is.
		return in.park(ctx, m, no.Error())
	case refused:
		return in.record(ctx, r, no)
	}
	return err
}

// errDirectory: the directory could not say who somebody is.
var errDirectory = errors.New("the directory does not answer")

// execute executes a command by what its sender is now: who was removed, or may
// do less than when it was accepted, is refused.
func (in *Inbox) execute(ctx context.Context, r Request) error {
	who, err := in.door.asNow(ctx, r.From)
	if _, refused := aggregates.AsRefusal(err); err != nil && !refused {
		return fmt.Errorf("%w: %w", errDirectory, err)
	}
	if err != nil {
		return err
	}
	r.From = who
	c, err := in.door.admit(ctx, r)
	if err != nil {
		return err
	}
	_, err = c.run(ctx)
	return err
}

// record makes the refusal the outcome of the command's operation, unless that
// has one: the command may come again after it was executed, by somebody who may
// no longer do so.
func (in *Inbox) record(ctx context.Context, r Request, no *aggregates.Refusal) error {
	cause := no.Cause()
	id := OperationOf(r.Account, r.Command)
	untouched := uint64(0)
	_, err := Execute(ctx, in.door.executor, Origin{
		Account: r.Account, Actor: r.From.Actor, IfRevision: &untouched, Correlation: string(id), TraceParent: r.TraceParent,
		Command: events.CommandRef{ID: r.Command, Digest: events.DigestOf([]byte(no.Code))},
	}, "refused/"+no.Code, operation.Finish{Operation: id, Outcome: events.RolledBack, Cause: &cause})
	if _, refused := aggregates.AsRefusal(err); refused {
		return nil
	}
	return err
}

// lasting tells failures of what a command needs, which are waited for, from
// those of the command itself.
func (in *Inbox) lasting(err error) bool {
	return errors.Is(err, errDirectory) || errors.Is(err, journal.ErrAmbiguous) || errors.Is(err, journal.ErrFull) || errors.Is(err, journal.ErrVanished) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout)
}

// park puts the command aside where a person sees it.
func (in *Inbox) park(ctx context.Context, m *message.Message, because string) error {
	in.log.Error("a command in the inbox is parked", "subject", m.Metadata.Get(subjectKey), "because", because)
	_, err := in.js.PublishMsg(ctx, &nats.Msg{
		Subject: parkedSubjects + strings.TrimPrefix(m.Metadata.Get(subjectKey), inboxSubjects),
		Header:  nats.Header{parkedReasonHeader: {strings.Join(strings.Fields(because), " ")}},
		Data:    m.Payload,
	}, jetstream.WithMsgID(m.UUID))
	if err != nil {
		return fmt.Errorf("park a command: %w", err)
	}
	return nil
}

// Parked is a command that could not be executed.
type Parked struct {
	Sequence uint64 // in the stream of the parked
	Account  events.AccountID
	Kind     events.Kind
	Verb     string
	Command  events.CommandID
	Because  string
	At       time.Time
}

// Parked lists the commands that are put aside, oldest first.
func (in *Inbox) Parked(ctx context.Context) ([]Parked, error) {
	info, err := in.parked.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("list parked commands: %w", err)
	}
	var out []Parked
	for seq := info.State.FirstSeq; info.State.Msgs > 0 && seq <= info.State.LastSeq; seq++ {
		m, err := in.parked.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // was taken away
		}
		if err != nil {
			return nil, fmt.Errorf("list parked commands: %w", err)
		}
		var e envelope
		p := Parked{Sequence: seq, Because: m.Header.Get(parkedReasonHeader), At: m.Time}
		if json.Unmarshal(m.Data, &e) == nil { // what cannot be read is listed all the same
			p.Account, p.Kind, p.Verb, p.Command = e.Account, e.Kind, e.Verb, e.Command
		}
		out = append(out, p)
	}
	return out, nil
}

// Retry puts a parked command back into the inbox; Drop forgets it. Both refuse
// parked-unknown.
func (in *Inbox) Retry(ctx context.Context, sequence uint64) error {
	m, err := in.parked.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return parkedUnknown(sequence)
	}
	if err != nil {
		return fmt.Errorf("retry a parked command: %w", err)
	}
	if _, err := in.js.Publish(ctx, inboxSubjects+strings.TrimPrefix(m.Subject, parkedSubjects), m.Data); err != nil {
		return fmt.Errorf("retry a parked command: %w", err)
	}
	return in.Drop(ctx, sequence)
}

func parkedUnknown(sequence uint64) error {
	return aggregates.RefuseAs(aggregates.NotFound, "parked-unknown", "no command is parked at %d", sequence)
}

// Drop takes a parked command away for good.
func (in *Inbox) Drop(ctx context.Context, sequence uint64) error {
	if _, err := in.parked.GetMsg(ctx, sequence); errors.Is(err, jetstream.ErrMsgNotFound) {
		return parkedUnknown(sequence)
	}
	if err := in.parked.DeleteMsg(ctx, sequence); err != nil {
		return fmt.Errorf("drop a parked command: %w", err)
	}
	return nil
}
