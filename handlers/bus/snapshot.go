package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Snapshot is what JetStream says of a stream whose content was taken; it is needed to restore it.
type Snapshot struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`
}

// Name is the stream's.
func (s Snapshot) Name() (string, error) {
	var c struct {
		Name string `json:"name"`
	}
	err := json.Unmarshal(s.Config, &c)
	if err == nil && c.Name == "" {
		err = errors.New("a snapshot's configuration has no name")
	}
	return c.Name, err
}

// Last is the sequence of the last message in it.
func (s Snapshot) Last() (uint64, error) {
	var state struct {
		Last uint64 `json:"last_seq"`
	}
	err := json.Unmarshal(s.State, &state)
	return state.Last, err
}

const (
	// snapshotWait bounds the time between two parts of a snapshot.
	snapshotWait = 30 * time.Second
	// snapshotPart is the most bytes of one, below the bus's largest message.
	snapshotPart = 256 << 10
)

// StreamNames are the names of all streams.
func StreamNames(ctx context.Context, conn *nats.Conn) ([]string, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	var out []string
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		out = append(out, name)
	}
	return out, names.Err()
}

// TakeSnapshot writes what a stream holds at one moment, while it is in use; its consumers too, if they are wanted. Every message is
// checked against its checksum before. The parts come by JetStream's own protocol ($JS.API.STREAM.SNAPSHOT;
// nats-server, JSApiStreamSnapshotRequest): each asks for its acknowledgement, and one without data is the end.
func TakeSnapshot(ctx context.Context, conn *nats.Conn, stream string, consumers bool, to io.Writer) (Snapshot, error) {
	var s Snapshot
	inbox := conn.NewInbox()
	parts, err := conn.SubscribeSync(inbox)
	if err != nil {
		return s, err
	}
	defer func() { _ = parts.Unsubscribe() }() // the connection may have ended
	if err := parts.SetPendingLimits(-1, -1); err != nil {
		return s, err
	}
	request := map[string]any{"deliver_subject": inbox, "chunk_size": snapshotPart, "jsck": true, "no_consumers": !consumers}
	var answer struct {
		Snapshot
		Error *jetstream.APIError `json:"error"`
	}
	if err := ask(ctx, conn, "$JS.API.STREAM.SNAPSHOT."+stream, request, &answer); err != nil {
		return s, fmt.Errorf("take a snapshot of %s: %w", stream, err)
	}
	if answer.Error != nil {
		return s, fmt.Errorf("take a snapshot of %s: %w", stream, answer.Error)
	}
	for {
		m, err := next(ctx, parts)
		if err != nil {
			return s, fmt.Errorf("take a snapshot of %s: %w", stream, err)
		}
		if len(m.Data) == 0 {
			if status := m.Header.Get("Status"); status != "" && status != "204" {
				return s, fmt.Errorf("take a snapshot of %s: JetStream ended it with %s %s", stream, status, m.Header.Get("Description"))
			}
			return answer.Snapshot, nil
		}
		if _, err := to.Write(m.Data); err != nil {
			return s, err
		}
		if m.Reply != "" {
			if err := m.Respond(nil); err != nil {
				return s, fmt.Errorf("take a snapshot of %s: %w", stream, err)
			}
		}
	}
}

// RestoreSnapshot makes a stream that is not there from a snapshot of it: the same messages with their sequences and
// times, and the same consumers ($JS.API.STREAM.RESTORE; nats-server, JSApiStreamRestoreRequest).
func RestoreSnapshot(ctx context.Context, conn *nats.Conn, s Snapshot, from io.Reader) error {
	name, err := s.Name()
	if err != nil {
		return err
	}
	broken := func(err error) error { return fmt.Errorf("restore the stream %s: %w", name, err) }
	var answer struct {
		Deliver string              `json:"deliver_subject"`
		Error   *jetstream.APIError `json:"error"`
	}
	if err := ask(ctx, conn, "$JS.API.STREAM.RESTORE."+name, s, &answer); err != nil {
		return broken(err)
	}
	if answer.Error != nil {
		return broken(answer.Error)
	}
	part := make([]byte, snapshotPart)
	for end := false; !end; {
		n, err := io.ReadFull(from, part)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			end = true
		case err != nil:
			return broken(err)
		}
		if n > 0 {
			if err := send(ctx, conn, answer.Deliver, part[:n]); err != nil {
				return broken(err)
			}
		}
	}
	if err := send(ctx, conn, answer.Deliver, nil); err != nil {
		return broken(err)
	}
	return nil
}

// send sends one part of a restore; the answer to it is empty or says what went wrong.
func send(ctx context.Context, conn *nats.Conn, subject string, part []byte) error {
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	m, err := conn.RequestWithContext(ctx, subject, part)
	if err != nil || len(m.Data) == 0 {
		return err
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	return nil
}

func ask(ctx context.Context, conn *nats.Conn, subject string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	m, err := conn.RequestWithContext(ctx, subject, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(m.Data, answer)
}

func next(ctx context.Context, parts *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	return parts.NextMsgWithContext(ctx)
}
