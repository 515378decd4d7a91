package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Codes of what an audit finds. They are stable.
const (
	FoundMissing    = "event-missing"    // a sequence or a revision is not there
	FoundSwapped    = "event-swapped"    // an event stands at another's place
	FoundAltered    = "event-altered"    // an event is not what its digest, or the event after it, says
	FoundUnreadable = "event-unreadable" // something stands there that is no event of this journal
	FoundTruncated  = "tail-missing"     // the events end before a head that is known
	FoundOther      = "head-differs"     // at a known head the events are others
)

// Flaw is the first thing that is wrong with a sequence of events.
type Flaw struct {
	Code     string `json:"code"`
	Sequence uint64 `json:"sequence"` // of the event that is altered, missing or misplaced
	Subject  string `json:"subject,omitempty"`
	Detail   string `json:"detail"`

	wanted wanted // what should have stood there
}

type wanted struct {
	sequence uint64
	subject  string // of the revision that is missing; else empty
	revision uint64
}

func (f *Flaw) Error() string { return f.Detail + " (" + f.Code + ")" }

// Misplaced turns a finding that an event is missing into one that it stands elsewhere, if r is that event:
// whoever holds everything looks at what follows the gap.
func (f *Flaw) Misplaced(r events.Record) bool {
	subject := r.Aggregate.Subject()
	there := f.Code == FoundMissing && (f.wanted.sequence != 0 && r.Sequence == f.wanted.sequence ||
		f.wanted.subject == subject && f.wanted.revision != 0 && r.Revision == f.wanted.revision)
	if there {
		f.Code, f.Subject = FoundSwapped, shortened(subject)
		f.Detail = fmt.Sprintf("the event of %s with revision %d and sequence %d stands behind others that it comes before", f.Subject, r.Revision, r.Sequence)
	}
	return there
}

// Position is a sequence with the running digest there: what somebody notes down to recognize the journal by later.
// The running digest covers every event up to the sequence, with its place and the time when it was stored.
type Position struct {
	Sequence uint64
	Digest   events.Digest
}

// String is SEQUENCE:DIGEST.
func (p Position) String() string { return strconv.FormatUint(p.Sequence, 10) + ":" + string(p.Digest) }

// ParsePosition reads SEQUENCE:DIGEST.
func ParsePosition(text string) (Position, error) {
	number, digest, _ := strings.Cut(text, ":")
	sequence, err := strconv.ParseUint(number, 10, 64)
	p := Position{sequence, events.Digest(digest)}
	if err != nil || sequence == 0 || !p.Digest.Valid() {
		return Position{}, fmt.Errorf("%.100q is not SEQUENCE:sha256:…", text)
	}
	return p, nil
}

// Auditor walks events in the order of the journal and checks that they continue one another: sequence by sequence,
// and within each aggregate revision by revision and digest by digest. What a chain without signatures cannot show: that
// events at the end were cut off, or that everything from some event on was written anew by somebody who computed the
// digests again. A Position noted down before shows both. An Auditor is used by one goroutine.
type Auditor struct {
	partial bool
	known   Position
	at      Position
	heads   map[string]events.Head
	events  uint64
}

// NewAuditor begins at the journal's first event. partial allows gaps in the sequences (events of one account alone).
// known is a position noted down before, or zero.
func NewAuditor(partial bool, known Position) *Auditor {
	return &Auditor{partial: partial, known: known, at: Position{Digest: events.DigestOf([]byte(positionDomain))}, heads: map[string]events.Head{}}
}

const positionDomain = "tombolo-position-1"

// Check takes the next event; r.Digest is what was computed from it. The error is a *Flaw.
func (a *Auditor) Check(r events.Record) error {
	subject := r.Aggregate.Subject()
	found := func(code string, sequence uint64, format string, args ...any) *Flaw {
		return &Flaw{Code: code, Sequence: sequence, Subject: shortened(subject), Detail: fmt.Sprintf(format, args...)}
	}
	switch due := a.at.Sequence + 1; {
	case r.Sequence < due:
		return found(FoundSwapped, r.Sequence, "sequence %d stands behind sequence %d", r.Sequence, a.at.Sequence)
	case r.Sequence > due && !a.partial:
		f := found(FoundMissing, due, "sequence %d is missing: %d follows %d", due, r.Sequence, a.at.Sequence)
		f.Subject, f.wanted = "", wanted{sequence: due}
		return f
	}
	head := a.heads[subject]
	switch {
	case r.Revision <= head.Revision:
		return found(FoundSwapped, r.Sequence, "sequence %d is revision %d of %s, which sequence %d has brought to %d already", r.Sequence, r.Revision, shortened(subject), head.Sequence, head.Revision)
	case r.Revision > head.Revision+1:
		f := found(FoundMissing, r.Sequence, "revision %d of %s is missing before sequence %d, which is revision %d", head.Revision+1, shortened(subject), r.Sequence, r.Revision)
		f.wanted = wanted{subject: subject, revision: head.Revision + 1}
		return f
	case r.Previous != head.Digest && head.Sequence == 0:
		return found(FoundAltered, r.Sequence, "sequence %d is the first event of %s and names an event before it", r.Sequence, shortened(subject))
	case r.Previous != head.Digest:
		return found(FoundAltered, head.Sequence, "sequence %d (revision %d of %s) is not the event that sequence %d follows: the digest of either was altered with it", head.Sequence, head.Revision, shortened(subject), r.Sequence)
	}
	a.heads[subject] = r.Head()
	a.events++
	a.at = Position{r.Sequence, runningDigest(a.at.Digest, r)}
	if a.at.Sequence == a.known.Sequence && a.at.Digest != a.known.Digest {
		f := found(FoundOther, a.at.Sequence, "up to sequence %d these are other events than those of the known head: here the digest is %s", a.at.Sequence, a.at.Digest)
		f.Subject = ""
		return f
	}
	return nil
}

// End says whether the events reach the known head. The error is a *Flaw.
func (a *Auditor) End() error {
	if a.at.Sequence >= a.known.Sequence {
		return nil
	}
	return &Flaw{Code: FoundTruncated, Sequence: a.at.Sequence + 1, Detail: fmt.Sprintf("the events end at sequence %d, before the known head %d", a.at.Sequence, a.known.Sequence)}
}

// At is the position after the last event that was right.
func (a *Auditor) At() Position { return a.at }

// Counts are how many events were right, and of how many aggregates.
func (a *Auditor) Counts() (events, aggregates uint64) { return a.events, uint64(len(a.heads)) }

func runningDigest(before events.Digest, r events.Record) events.Digest {
	b := netstring(nil, positionDomain)
	b = netstring(b, before)
	b = netstring(b, strconv.FormatUint(r.Sequence, 10))
	b = netstring(b, r.Stored.UTC().Format(time.RFC3339Nano))
	b = netstring(b, r.Digest)
	sum := sha256.Sum256(b)
	return events.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

func shortened(subject string) string { return strings.TrimPrefix(subject, events.SubjectPrefix) }
