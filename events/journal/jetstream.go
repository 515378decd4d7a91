package journal

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
)

const (
	// StreamName is the stream that holds the events.
	StreamName = "EVENTS"
	// MetadataID is the key of the stream's metadata that holds the journal's id.
	MetadataID = "tombolo-journal"
	// MinBytes is the least limit a journal can have: below it the tenth that is
	// kept for finishing, undoing and releasing would not hold one event.
	MinBytes = 2 << 20

	subjects       = events.SubjectPrefix + ">"
	maxMessage     = events.MaxPayload + MaxHeaders
	leastDuplicate = 100 * time.Millisecond // the least nats-server accepts; nothing here uses Nats-Msg-Id
)

// Codes of nats-server that nats.go has no name for (server/errors.json).
const (
	codeAccountResources jetstream.ErrorCode = 10002
	codeInsufficient     jetstream.ErrorCode = 10023
	codeStorageResources jetstream.ErrorCode = 10047
	codeStoreFailed      jetstream.ErrorCode = 10077
)

// Options of Open.
type Options struct {
	Registry *events.Registry // required
	// Known is the journal's id as remembered outside the stream, empty on the
	// very first start. With it, a stream that is missing or another is ErrVanished.
	Known string
	// Remember stores the journal's id where Known will come from next time, before
	// Open returns; it is called when Known is empty. See MarkerFile.
	Remember func(id string) error
	// MaxBytes limits a stream that Open creates, in bytes; at least MinBytes and
	// below the disk's size. The limit of an existing stream is raised with Grow.
	MaxBytes int64
	// Replicas of a stream that Open creates; 0 means 1.
	Replicas int
	// Finishing says which proposals finish, undo or release something: the
	// ones that the last tenth of the limit is kept for. nil means none.
	Finishing func(Proposal) bool
	// Alarm is told whenever the journal comes to another level of fullness, from
	// Roomy at the start; it must not wait for the journal. nil means nobody is.
	Alarm func(level Level, used, limit uint64)
	// AckWait is how long an acknowledgement is waited for before the journal
	// looks whether the event was stored; 0 means 2 s.
	AckWait time.Duration
	// Domain is the JetStream domain to go to, if not the connection's own.
	Domain string
}

// JetStream is the journal over a stream. It has nothing to close; its
// connection is the caller's.
type JetStream struct {
	codec
	conn    *nats.Conn
	js      jetstream.JetStream
	api     string // prefix of JetStream's API subjects
	id      string
	options Options
	room    room
	// newest is the highest sequence this process has seen acknowledged: a lower
	// one acknowledged later can only come from another stream.
	newest atomic.Uint64
	tail   tail
}

var _ Journal = (*JetStream)(nil)

// Open opens the journal, and creates its stream if it never existed. Errors:
// ErrOptions, ErrVanished, ErrMismatch, or JetStream's.
func Open(ctx context.Context, conn *nats.Conn, o Options) (*JetStream, error) {
	if o.Registry == nil {
		return nil, fmt.Errorf("%w: there is no registry", ErrOptions)
	}
	if o.AckWait <= 0 {
		o.AckWait = 2 * time.Second
	}
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.Finishing == nil {
		o.Finishing = func(Proposal) bool { return false }
	}
	j := &JetStream{conn: conn, options: o, api: "$JS.API.", room: room{alarm: o.Alarm}}
	var err error
	if o.Domain == "" {
		j.js, err = jetstream.New(conn)
	} else {
		j.api = "$JS." + o.Domain + ".API."
		j.js, err = jetstream.NewWithDomain(conn, o.Domain)
	}
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	stream, err := j.js.Stream(ctx, StreamName)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if o.Known != "" {
			return nil, fmt.Errorf("%w: there is no stream %s, but journal %s was there before", ErrVanished, StreamName, o.Known)
		}
		stream, err = j.create(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	info := stream.CachedInfo()
	if differences := mismatch(info.Config); len(differences) > 0 {
		return nil, &MismatchError{Differences: differences}
	}
	j.id = info.Config.Metadata[MetadataID]
	if o.Known != "" && o.Known != j.id {
		return nil, fmt.Errorf("%w: stream %s is journal %s, but journal %s was there before", ErrVanished, StreamName, j.id, o.Known)
	}
	if o.Known == "" && o.Remember != nil {
		if err := o.Remember(j.id); err != nil {
			return nil, fmt.Errorf("remember journal %s: %w", j.id, err)
		}
	}
	j.codec = codec{registry: o.Registry, source: sourcePrefix + j.id}
	j.newest.Store(info.State.LastSeq)
	j.room.learn(info.State.Bytes, limitOf(info.Config), time.Now())
	return j, nil
}

func (j *JetStream) create(ctx context.Context) (jetstream.Stream, error) {
	if j.options.MaxBytes < MinBytes {
		return nil, fmt.Errorf("%w: a limit of %d bytes is too small, at least %d are needed", ErrOptions, j.options.MaxBytes, MinBytes)
	}
	stream, err := j.js.CreateStream(ctx, config(newID(), j.options.MaxBytes, j.options.Replicas))
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return j.js.Stream(ctx, StreamName) // another process was first
	}
	return stream, err
}

// newID is a random UUID (RFC 9562, version 4).
func newID() string {
	var u [16]byte
	rand.Read(u[:]) // never fails (crypto/rand)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// config is the stream as the journal needs it.
func config(id string, maxBytes int64, replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              StreamName,
		Description:       "Tombolo's journal: every fact, for ever",
		Subjects:          []string{subjects},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew,
		DenyDelete:        true,
		DenyPurge:         true,
		MaxBytes:          maxBytes,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxConsumers:      -1,
		MaxMsgSize:        maxMessage,
		Duplicates:        leastDuplicate,
		Replicas:          replicas,
		Metadata:          map[string]string{MetadataID: id},
	}
}

// mismatch names what in c would break a promise of the journal. What may
// differ between installations (limit, replicas, placement, compression) is not
// looked at.
func mismatch(c jetstream.StreamConfig) []string {
	var out []string
	must := func(ok bool, format string, args ...any) {
		if !ok {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	must(c.Metadata[MetadataID] != "", "metadata %s is missing: the stream is not a journal", MetadataID)
	must(len(c.Subjects) == 1 && c.Subjects[0] == subjects, "subjects are %q, not %q", c.Subjects, subjects)
	must(c.Storage == jetstream.FileStorage, "storage is %s, not file", c.Storage)
	must(c.Retention == jetstream.LimitsPolicy, "retention is %s, not limits", c.Retention)
	must(c.Discard == jetstream.DiscardNew, "discard is %s, not new", c.Discard)
	must(!c.DiscardNewPerSubject, "discard_new_per_subject is on")
	must(c.DenyDelete, "deny_delete is off")
	must(c.DenyPurge, "deny_purge is off")
	must(!c.AllowRollup, "allow_rollup_hdrs is on")
	must(!c.AllowDirect && !c.MirrorDirect, "allow_direct or mirror_direct is on: reads could come from a replica that lags")
	must(c.MaxAge == 0, "max_age is %s: events would expire", c.MaxAge)
	must(c.MaxMsgs <= 0, "max_msgs is %d", c.MaxMsgs)
	must(c.MaxMsgsPerSubject <= 0, "max_msgs_per_subject is %d", c.MaxMsgsPerSubject)
	must(c.MaxMsgSize <= 0 || c.MaxMsgSize >= maxMessage, "max_msg_size is %d, at least %d is needed", c.MaxMsgSize, maxMessage)
	must(!c.NoAck, "no_ack is on")
	must(!c.Sealed, "the stream is sealed")
	must(c.Mirror == nil && len(c.Sources) == 0, "the stream is a mirror or has sources")
	must(c.SubjectTransform == nil, "subject_transform is set")
	must(!c.AllowMsgTTL && c.SubjectDeleteMarkerTTL == 0, "messages may have a time to live")
	must(!c.AllowMsgCounter, "allow_msg_counter is on")
	must(!c.AllowMsgSchedules, "allow_msg_schedules is on")
	must(c.PersistMode == jetstream.DefaultPersistMode, "persist_mode is %s: an acknowledged event could be lost", c.PersistMode)
	return out
}

func limitOf(c jetstream.StreamConfig) uint64 {
	if c.MaxBytes <= 0 {
		return 0
	}
	return uint64(c.MaxBytes)
}

// ID is the journal's id, drawn when its stream was created.
func (j *JetStream) ID() string { return j.id }

// info asks for the stream, and checks that it is still ours.
func (j *JetStream) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	stream, err := j.js.Stream(ctx, StreamName)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: there is no stream %s any more", ErrVanished, StreamName)
	}
	if err != nil {
		return nil, err
	}
	info := stream.CachedInfo()
	if id := info.Config.Metadata[MetadataID]; id != j.id {
		return nil, fmt.Errorf("%w: stream %s is now journal %q, not %s", ErrVanished, StreamName, id, j.id)
	}
	j.room.learn(info.State.Bytes, limitOf(info.Config), time.Now())
	return info, nil
}

// Tip gives the sequence of the journal's last event.
func (j *JetStream) Tip(ctx context.Context) (uint64, error) {
	info, err := j.info(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the journal's tip: %w", err)
	}
	return info.State.LastSeq, nil
}

// Usage tells how full the journal is, in bytes.
func (j *JetStream) Usage(ctx context.Context) (used, limit uint64, err error) {
	info, err := j.info(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("read the journal's usage: %w", err)
	}
	return info.State.Bytes, limitOf(info.Config), nil
}

// Grow raises the journal's limit to the given bytes; one that is not higher
// than the present is ErrOptions.
func (j *JetStream) Grow(ctx context.Context, bytes int64) error {
	info, err := j.info(ctx)
	if err != nil {
		return fmt.Errorf("grow the journal: %w", err)
	}
	if now := info.Config.MaxBytes; now <= 0 || bytes <= now {
		return fmt.Errorf("%w: the limit is %d bytes and can only be raised, not set to %d", ErrOptions, now, bytes)
	}
	c := info.Config
	c.MaxBytes = bytes
	if _, err := j.js.UpdateStream(ctx, c); err != nil {
		return fmt.Errorf("grow the journal: %w", err)
	}
	_, err = j.info(ctx)
	return err
}

// At gives the sequence of the last event stored not later than t; 0 if none.
func (j *JetStream) At(ctx context.Context, t time.Time) (uint64, error) {
	for {
		// Times are whole nanoseconds, so "later than t" begins one after it.
		after := t.Add(1)
		m, err := j.get(ctx, getRequest{StartTime: &after, NoHeaders: true})
		switch {
		case err == nil:
			return m.Sequence - 1, nil
		case !errors.Is(err, jetstream.ErrMsgNotFound):
			return 0, fmt.Errorf("find the position at %s: %w", t.UTC().Format(time.RFC3339Nano), err)
		}
		info, err := j.info(ctx)
		if err != nil {
			return 0, fmt.Errorf("find the position at %s: %w", t.UTC().Format(time.RFC3339Nano), err)
		}
		if info.State.LastSeq == 0 || !info.State.LastTime.After(t) {
			return info.State.LastSeq, nil
		}
		// An event later than t came in between: ask again.
	}
}

// getRequest and stored are JetStream's STREAM.MSG.GET (nats-server,
// JSApiMsgGetRequest and StoredMsg); nats.go has no way to give a start time.
type getRequest struct {
	Seq       uint64     `json:"seq,omitempty"`
	LastFor   string     `json:"last_by_subj,omitempty"`
	NextFor   string     `json:"next_by_subj,omitempty"`
	StartTime *time.Time `json:"start_time,omitempty"`
	NoHeaders bool       `json:"no_hdr,omitempty"`
}

type stored struct {
	Subject  string    `json:"subject"`
	Sequence uint64    `json:"seq"`
	Header   []byte    `json:"hdrs"`
	Data     []byte    `json:"data"`
	Time     time.Time `json:"time"`
}

// get reads one message from the stream's leader: jetstream.ErrMsgNotFound,
// ErrVanished, or what else went wrong.
func (j *JetStream) get(ctx context.Context, request getRequest) (stored, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return stored{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiWait)
	defer cancel()
	answer, err := j.conn.RequestWithContext(ctx, j.api+"STREAM.MSG.GET."+StreamName, body)
	if err != nil {
		return stored{}, err
	}
	var response struct {
		Message *stored             `json:"message"`
		Error   *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &response); err != nil {
		return stored{}, fmt.Errorf("JetStream's answer: %w", err)
	}
	switch {
	case response.Error == nil && response.Message != nil:
		return *response.Message, nil
	case response.Error == nil:
		return stored{}, errors.New("JetStream answered with neither message nor error")
	case response.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return stored{}, jetstream.ErrMsgNotFound
	case response.Error.ErrorCode == jetstream.JSErrCodeStreamNotFound:
		return stored{}, fmt.Errorf("%w: there is no stream %s any more", ErrVanished, StreamName)
	}
	return stored{}, response.Error
}

// apiWait bounds one question to JetStream.
const apiWait = 5 * time.Second

// message gives the stored message in the codec's shape.
func (s stored) message() (message, error) {
	m := message{subject: s.Subject, payload: s.Data}
	if len(s.Header) > 0 {
		header, err := nats.DecodeHeadersMsg(s.Header)
		if err != nil {
			return m, foreign(m, "its headers cannot be read: %v", err)
		}
		m.header = header
	}
	return m, nil
}

// isFinished reports whether the caller's context ended, as opposed to a
// question's own time limit.
func isFinished(ctx context.Context) bool { return ctx.Err() != nil }

// hasCode reports whether err is JetStream's with one of the codes.
func hasCode(err error, codes ...jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	for _, c := range codes {
		if api.ErrorCode == c {
			return true
		}
	}
	return false
}

// nameOf is an aggregate's name without the prefix all of them share.
func nameOf(a events.Aggregate) string {
	return strings.TrimPrefix(a.Subject(), events.SubjectPrefix)
}
