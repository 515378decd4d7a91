package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
)

// The attributes of an event, in the order of the digest.
const (
	attrSpec = iota
	attrID
	attrSource
	attrType
	attrTime
	attrSubject
	attrContentType
	attrSchema
	attrRevision
	attrPrevious
	attrActorAccount
	attrActorUser
	attrCommand
	attrCommandDigest
	attrCorrelation
	attrCausation
	attrTraceParent
	attrCount
)

// required is how many attributes, from the first, are always there.
const required = attrRevision + 1

// headerNames is a table, never written to.
var headerNames = [attrCount]string{
	"ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-subject", "ce-datacontenttype",
	"tombolo-schema", "tombolo-revision", "tombolo-previous", "tombolo-actor-account", "tombolo-actor-user",
	"tombolo-command", "tombolo-command-digest", "tombolo-correlation", "tombolo-causation", "traceparent",
}

// attrOf is the inverse of headerNames; -1 for a header of somebody else. It is
// quicker than to look all names up in each message's headers.
func attrOf(name string) int {
	switch name {
	case "ce-specversion":
		return attrSpec
	case "ce-id":
		return attrID
	case "ce-source":
		return attrSource
	case "ce-type":
		return attrType
	case "ce-time":
		return attrTime
	case "ce-subject":
		return attrSubject
	case "ce-datacontenttype":
		return attrContentType
	case "tombolo-schema":
		return attrSchema
	case "tombolo-revision":
		return attrRevision
	case "tombolo-previous":
		return attrPrevious
	case "tombolo-actor-account":
		return attrActorAccount
	case "tombolo-actor-user":
		return attrActorUser
	case "tombolo-command":
		return attrCommand
	case "tombolo-command-digest":
		return attrCommandDigest
	case "tombolo-correlation":
		return attrCorrelation
	case "tombolo-causation":
		return attrCausation
	case "traceparent":
		return attrTraceParent
	}
	return -1
}

const (
	digestDomain = "tombolo-event-1"
	sourcePrefix = "urn:uuid:"
	contentType  = "application/json"
	specVersion  = "1.0"
)

// MaxHeaders is the most bytes that an event's headers may take on the wire.
const MaxHeaders = 8 << 10

// message is an event on the wire.
type message struct {
	subject string
	header  nats.Header
	payload []byte
}

// codec turns proposals into messages and messages into records.
type codec struct {
	registry *events.Registry
	source   string // ce-source of this journal
}

// encode gives the message for a proposal, and the record that it will be once
// it has a sequence. What could not be read back is refused here.
func (c codec) encode(p Proposal) (message, events.Record, error) {
	if err := validate(p); err != nil {
		return message{}, events.Record{}, err
	}
	payload, schema, err := c.registry.Encode(p.Event)
	if err != nil {
		return message{}, events.Record{}, err
	}
	subject := p.Aggregate.Subject()
	values := attributes(c.source, p.Event.EventType(), events.Record{ID: p.ID, Aggregate: p.Aggregate, Revision: p.Expect.Revision + 1, Time: p.Time, Actor: p.Actor,
		Command: p.Command, Correlation: p.Correlation, Causation: p.Causation, TraceParent: p.TraceParent, Schema: schema, Previous: p.Expect.Digest})
	m := message{subject: subject, header: make(nats.Header, attrCount+1), payload: payload}
	backing, size := values, 0
	for i := range backing {
		if backing[i] != "" {
			m.header[headerNames[i]] = backing[i : i+1 : i+1]
			size += len(headerNames[i]) + len(backing[i]) + len(": \r\n")
		}
	}
	if size > MaxHeaders {
		return message{}, events.Record{}, fmt.Errorf("%w: the headers of %s have %d bytes, at most %d are allowed", events.ErrTooLarge, p.Event.EventType(), size, MaxHeaders)
	}
	r, err := c.decode(m)
	if err != nil {
		return message{}, events.Record{}, err
	}
	return m, r, nil
}

// attributes are an event's headers as they are on the wire, in the order of the digest.
func attributes(source string, kind events.Type, r events.Record) [attrCount]string {
	return [attrCount]string{
		attrSpec:          specVersion,
		attrID:            escape(r.ID),
		attrSource:        source,
		attrType:          escape(string(kind)),
		attrTime:          r.Time.UTC().Format(time.RFC3339Nano),
		attrSubject:       strings.TrimPrefix(r.Aggregate.Subject(), events.SubjectPrefix),
		attrContentType:   contentType,
		attrSchema:        strconv.Itoa(r.Schema),
		attrRevision:      strconv.FormatUint(r.Revision, 10),
		attrPrevious:      string(r.Previous),
		attrActorAccount:  escape(string(r.Actor.Account)),
		attrActorUser:     escape(string(r.Actor.User)),
		attrCommand:       escape(string(r.Command.ID)),
		attrCommandDigest: escape(string(r.Command.Digest)),
		attrCorrelation:   escape(r.Correlation),
		attrCausation:     escape(r.Causation),
		attrTraceParent:   escape(r.TraceParent),
	}
}

// DigestOfRecord is the digest that an event of this type, with the record's attributes and payload, has in the
// journal with that source (ce-source): what whoever holds a copy of an event computes to see whether it was altered.
func DigestOfRecord(source string, kind events.Type, r events.Record) events.Digest {
	values := attributes(source, kind, r)
	return digest(r.Aggregate.Subject(), &values, r.Payload)
}

func validate(p Proposal) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrProposal}, args...)...)
	}
	if p.Event == nil {
		return refuse("it has no event")
	}
	if err := p.Aggregate.Validate(); err != nil {
		return refuse("%w", err)
	}
	if kind, _, _ := strings.Cut(string(p.Event.EventType()), "."); kind != string(p.Aggregate.Kind) {
		return refuse("%s is not an event of a %s", p.Event.EventType(), p.Aggregate.Kind)
	}
	if p.ID == "" {
		return refuse("it has no id")
	}
	if p.Time.IsZero() {
		return refuse("it has no time")
	}
	first := p.Expect.Sequence == 0
	if first != (p.Expect.Revision == 0) || first != (p.Expect.Digest == "") || !first && !p.Expect.Digest.Valid() || p.Expect.Revision > p.Expect.Sequence {
		return refuse("the expected head is not one of a record: sequence %d, revision %d, digest %q", p.Expect.Sequence, p.Expect.Revision, p.Expect.Digest)
	}
	for i, s := range []string{p.ID, string(p.Actor.Account), string(p.Actor.User), string(p.Command.ID), string(p.Command.Digest), p.Correlation, p.Causation, p.TraceParent} {
		if !utf8.ValidString(s) {
			return refuse("%s is not UTF-8", [...]string{"id", "actor's account", "actor's user", "command id", "command digest", "correlation", "causation", "traceparent"}[i])
		}
	}
	return nil
}

// decode reads a message: its envelope, then its event. Sequence and Stored are
// the caller's to fill in.
func (c codec) decode(m message) (events.Record, error) {
	r, kind, err := c.envelope(m)
	if err != nil {
		return r, err
	}
	r.Event, err = c.registry.Decode(kind, r.Schema, m.payload)
	return r, err
}

// envelope reads everything but the event itself. Its errors mean that the
// message was not written by a journal with this id.
func (c codec) envelope(m message) (events.Record, events.Type, error) {
	var values [attrCount]string
	for name, v := range m.header {
		i := attrOf(name)
		if i < 0 {
			continue
		}
		if len(v) != 1 {
			return events.Record{}, "", foreign(m, "header %s has %d values", name, len(v))
		}
		values[i] = v[0]
	}
	for i, v := range values[:required] {
		if v == "" {
			return events.Record{}, "", foreign(m, "header %s is missing", headerNames[i])
		}
	}
	aggregate, err := events.ParseSubject(m.subject)
	if err != nil {
		return events.Record{}, "", foreign(m, "%v", err)
	}
	for _, fixed := range []struct {
		attr int
		want string
	}{{attrSpec, specVersion}, {attrSource, c.source}, {attrContentType, contentType}, {attrSubject, m.subject[len(events.SubjectPrefix):]}} {
		if values[fixed.attr] != fixed.want {
			return events.Record{}, "", foreign(m, "header %s is %q, not %q", headerNames[fixed.attr], values[fixed.attr], fixed.want)
		}
	}
	at, err := time.Parse(time.RFC3339Nano, values[attrTime])
	if err != nil {
		return events.Record{}, "", foreign(m, "header ce-time: %v", err)
	}
	schema, err := strconv.Atoi(values[attrSchema])
	if err != nil {
		return events.Record{}, "", foreign(m, "header tombolo-schema: %v", err)
	}
	revision, err := strconv.ParseUint(values[attrRevision], 10, 64)
	if err != nil || revision == 0 {
		return events.Record{}, "", foreign(m, "header tombolo-revision is %q", values[attrRevision])
	}
	return events.Record{
		ID:          unescape(values[attrID]),
		Aggregate:   aggregate,
		Revision:    revision,
		Time:        at.UTC(),
		Actor:       events.Actor{Account: events.AccountID(unescape(values[attrActorAccount])), User: events.UserID(unescape(values[attrActorUser]))},
		Command:     events.CommandRef{ID: events.CommandID(unescape(values[attrCommand])), Digest: events.Digest(unescape(values[attrCommandDigest]))},
		Correlation: unescape(values[attrCorrelation]),
		Causation:   unescape(values[attrCausation]),
		TraceParent: unescape(values[attrTraceParent]),
		Schema:      schema,
		Previous:    events.Digest(values[attrPrevious]),
		Digest:      digest(m.subject, &values, m.payload),
		Payload:     m.payload,
	}, events.Type(unescape(values[attrType])), nil
}

// foreign is the error for a message that no journal wrote.
func foreign(m message, format string, args ...any) error {
	return fmt.Errorf("%w: message on %s was not written by this journal: %s", events.ErrUnknownEvent, m.subject, fmt.Sprintf(format, args...))
}

// DigestOf is the digest of an event as it lies in the stream, for auditors; the
// package documentation defines it. Of a header with several values the first counts,
// but no journal writes or accepts such a one.
func DigestOf(subject string, header nats.Header, payload []byte) events.Digest {
	var values [attrCount]string
	for i, name := range headerNames {
		if v := header[name]; len(v) > 0 {
			values[i] = v[0]
		}
	}
	return digest(subject, &values, payload)
}

// digest is the event's digest as the package documentation defines it.
func digest(subject string, values *[attrCount]string, payload []byte) events.Digest {
	var room [1536]byte // most events fit; larger ones move to the heap
	b := netstring(room[:0], digestDomain)
	b = netstring(b, subject)
	for _, v := range values {
		b = netstring(b, v)
	}
	b = netstring(b, payload)
	sum := sha256.Sum256(b)
	out := make([]byte, 0, len("sha256:")+2*len(sum))
	return events.Digest(hex.AppendEncode(append(out, "sha256:"...), sum[:]))
}

func netstring[B ~string | ~[]byte](to []byte, b B) []byte {
	to = strconv.AppendInt(to, int64(len(b)), 10)
	to = append(to, ':')
	to = append(to, b...)
	return append(to, ',')
}

const upperHex = "0123456789ABCDEF"

func plain(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' }

// escape encodes a header value (CloudEvents HTTP binding 1.0.2, 3.1.3.2).
func escape(s string) string {
	clean := 0
	for clean < len(s) && plain(s[clean]) {
		clean++
	}
	if clean == len(s) {
		return s
	}
	out := []byte(s[:clean])
	for i := clean; i < len(s); i++ {
		if c := s[i]; plain(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(out)
}

// unescape is the inverse of escape; a percent sign that begins no escape stands
// for itself, as the binding asks.
func unescape(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				out = append(out, b[0])
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// storedSize is what a message takes in the store (nats-server's file store:
// record length 4, sequence 8, time 8, lengths 2 and 4, checksum 8).
func (m message) storedSize() uint64 {
	header := len("NATS/1.0\r\n\r\n")
	for name, values := range m.header {
		for _, v := range values {
			header += len(name) + len(v) + len(": \r\n")
		}
	}
	return uint64(34 + len(m.subject) + header + len(m.payload))
}

// chained checks that r continues the aggregate that ends at head.
func chained(head events.Head, r events.Record) error {
	broken := func(format string, args ...any) error {
		return &ChainError{Aggregate: r.Aggregate, Sequence: r.Sequence, Reason: fmt.Sprintf(format, args...)}
	}
	if r.Revision != head.Revision+1 {
		return broken("revision %d follows revision %d", r.Revision, head.Revision)
	}
	if r.Previous != head.Digest {
		return broken("it names %q as the digest of the event before it, which is %q", r.Previous, head.Digest)
	}
	return nil
}
