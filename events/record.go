package events

import "time"

// Type is an event's wire name, "<kind>.<past-tense>". It never changes.
type Type string

// Event is a fact. Every event is a plain struct whose fields are its JSON.
type Event interface{ EventType() Type }

// MaxPayload is the most bytes one event's JSON may have; what is larger
// (graphs, manifests) is stored as a document and named by its digest.
const MaxPayload = 64 << 10

// Actor is who caused an event: the credential's account and user, never what
// a payload claims.
type Actor struct {
	Account AccountID `json:"account"`
	User    UserID    `json:"user"`
}

// CommandRef is the command that an event answers. The digest of its body tells
// a retry (same body) from a reused id (another body).
type CommandRef struct {
	ID     CommandID
	Digest Digest
}

// Head is where an aggregate's events end: what an append must state, and what
// a new event is chained to. The zero Head is that of an aggregate without events.
type Head struct {
	Sequence uint64 // the journal position of the last event
	Revision uint64 // how many events there are
	Digest   Digest // digest of the last event
}

// Record is an event as it stands in the journal.
type Record struct {
	ID          string // derived from the command id; the CloudEvents id
	Aggregate   Aggregate
	Sequence    uint64    // position in the journal
	Revision    uint64    // position within the aggregate, from 1
	Time        time.Time // when it was decided (UTC)
	Stored      time.Time // when the journal stored it; times in reads mean this one
	Actor       Actor
	Command     CommandRef
	Correlation string // the operation, or what a client gave
	Causation   string // id of the event that led to the command; empty for people's commands
	TraceParent string // W3C Trace Context
	Schema      int    // of the payload as stored
	Previous    Digest // digest of the aggregate's previous event; empty for the first
	Digest      Digest // of this event: subject, attributes and payload
	Event       Event
	Payload     []byte // the JSON as stored, before upcasting
}

// Head is the aggregate's head once r is its last event.
func (r Record) Head() Head { return Head{r.Sequence, r.Revision, r.Digest} }
