package projections

import (
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Deadlines answers: what is over if nothing happens until when? A ticker reads
// what is due and sends the command that ends it; the aggregate decides with its
// own clock and record.
//
//	deadlines.deadline       <kind> <subject> <owner>                → DeadlineRow
//	deadlines.deadline.due   <kind> <until> <subject> <owner> …      those that can run out
type Deadlines struct{}

// DeadlineKind is what runs out.
type DeadlineKind string

// The kinds of deadlines.
const (
	DeadlineName        DeadlineKind = "name"        // a claim to a name without its owner; another may take it from then on
	DeadlineNumber      DeadlineKind = "number"      // a claim to a template's number, likewise
	DeadlineLeases      DeadlineKind = "leases"      // a reservation of a pool that was not confirmed
	DeadlineReplacement DeadlineKind = "replacement" // a replacement that is queued, or staged and waits for regions
	DeadlineUpload      DeadlineKind = "upload"      // an environment whose disks have not come
)

// DeadlineRow is one deadline that nothing has met yet.
type DeadlineRow struct {
	Kind      DeadlineKind       `json:"kind"`
	Until     time.Time          `json:"until,omitzero"` // exactly as the event says; zero: confirmed, kept so that it cannot run out again
	Account   events.AccountID   `json:"account"`        // of the aggregate
	Region    events.RegionID    `json:"region"`         // of the aggregate
	ID        string             `json:"id"`             // of the aggregate
	Owner     string             `json:"owner,omitempty"`
	Leases    events.Owner       `json:"leases,omitzero"`     // whose leases
	Version   int                `json:"version,omitempty"`   // of the replacement
	Operation events.OperationID `json:"operation,omitempty"` // on whose behalf
	Sequence  uint64             `json:"sequence"`            // of the event that set it
}

func (d DeadlineRow) key() Key { return deadlineKey(d.Kind, d.Account, d.Region, d.ID, d.Owner) }

func deadlineKey(kind DeadlineKind, account events.AccountID, region events.RegionID, id, owner string) Key {
	return Key{string(kind), string(account), string(region), id, owner}
}

var (
	deadlinesDue = index("due", func(d *DeadlineRow, in *entries) {
		if !d.Until.IsZero() {
			in.add(string(d.Kind), instant(d.Until))
		}
	})
	deadlines = NewTable("deadlines", "deadline", DeadlineRow.key, deadlinesDue)
)

// instant writes a time as text whose order is that of time, for the years 1 to 9999.
func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z") }

// Name is "deadlines".
func (Deadlines) Name() string { return "deadlines" }

// Shape of the rows.
func (Deadlines) Shape() int { return 3 }

// Tables of deadlines.
func (Deadlines) Tables() []Described { return []Described{deadlines} }

// Apply sets deadlines and takes away those that are met or pointless.
func (Deadlines) Apply(w *Batch, r events.Record) error {
	a := r.Aggregate
	set := func(kind DeadlineKind, until time.Time, owner string, more DeadlineRow) error {
		if until.IsZero() {
			return nil
		}
		more.Kind, more.Until, more.Owner, more.Sequence = kind, until.UTC(), owner, r.Sequence
		more.Account, more.Region, more.ID = a.Account, a.Region, a.ID
		return deadlines.Put(w, more)
	}
	met := func(kind DeadlineKind, owner string) error {
		return deadlines.Delete(w, deadlineKey(kind, a.Account, a.Region, a.ID, owner)...)
	}
	switch e := r.Event.(type) {
	// A name or number has one claim at a time, so the claimer is no part of the key.
	case events.NameClaimed:
		return set(DeadlineName, e.Until, "", DeadlineRow{})
	case events.NameConfirmed, events.NameReleased:
		return met(DeadlineName, "")
	case events.NumberClaimed:
		return set(DeadlineNumber, e.Until, "", DeadlineRow{})
	case events.NumberConfirmed:
		return met(DeadlineNumber, "")
	case events.LeasesReserved:
		// What was confirmed once stays confirmed when more is reserved.
		row, ok, err := deadlines.Get(w, deadlineKey(DeadlineLeases, a.Account, a.Region, a.ID, ownerKey(e.Owner))...)
		if err != nil || ok && row.Until.IsZero() {
			return err
		}
		return set(DeadlineLeases, e.Until, ownerKey(e.Owner), DeadlineRow{Leases: e.Owner})
	case events.LeasesConfirmed:
		return deadlines.Put(w, DeadlineRow{Kind: DeadlineLeases, Account: a.Account, Region: a.Region, ID: a.ID,
			Owner: ownerKey(e.Owner), Leases: e.Owner, Sequence: r.Sequence})
	case events.LeasesReleased:
		return met(DeadlineLeases, ownerKey(e.Owner))
	case events.ReplacementQueued:
		return set(DeadlineReplacement, e.Deadline, string(e.Operation), DeadlineRow{Operation: e.Operation})
	case events.ReplacementStaged:
		return set(DeadlineReplacement, e.Deadline, string(e.Operation), DeadlineRow{Version: e.Version, Operation: e.Operation})
	case events.ReplacementUnqueued:
		return met(DeadlineReplacement, string(e.Operation))
	case events.VersionActivated: // a rollback's operation is another one, and ends no waiting
		return met(DeadlineReplacement, string(e.Operation))
	case events.VersionAbandoned:
		return metAll(w, a, func(d DeadlineRow) bool { return d.Version == e.Version })
	case events.TemplateDeletionAccepted:
		return metAll(w, a, func(DeadlineRow) bool { return true })
	case events.EnvironmentDeclared:
		return set(DeadlineUpload, e.Until, "", DeadlineRow{Operation: e.Operation})
	case events.EnvironmentCreated, events.EnvironmentFailed, events.EnvironmentDeletionAccepted:
		return met(DeadlineUpload, "")
	}
	return nil
}

// metAll takes away the deadlines of a template's replacements that are chosen.
func metAll(w *Batch, a events.Aggregate, chosen func(DeadlineRow) bool) error {
	rows, err := gather(deadlines, w, Query[DeadlineRow]{Prefix: Key{string(DeadlineReplacement), string(a.Account), string(a.Region), a.ID}})
	if err != nil {
		return err
	}
	for _, d := range rows {
		if !chosen(d) {
			continue
		}
		if err := deadlines.Delete(w, d.key()...); err != nil {
			return err
		}
	}
	return nil
}

// ownerKey tells owners of leases apart.
func ownerKey(o events.Owner) string {
	if o.Environment != "" {
		return "environment " + string(o.Environment)
	}
	return "instance " + string(o.Instance)
}

// Due gives deadlines of a kind that are not later than now, the earliest first,
// at most limit. Those of names and numbers stay until the claim is taken over:
// there is nothing to send for them.
func (Deadlines) Due(r Reader, kind DeadlineKind, now time.Time, limit int) ([]DeadlineRow, error) {
	var out []DeadlineRow
	for row, err := range deadlines.All(r, Query[DeadlineRow]{By: deadlinesDue, Prefix: Key{string(kind)}, Limit: limit}) {
		if err != nil {
			return nil, err
		}
		if row.Until.After(now) {
			break
		}
		out = append(out, row)
	}
	return out, nil
}

// Next gives the earliest deadline of a kind; false if there is none.
func (Deadlines) Next(r Reader, kind DeadlineKind) (DeadlineRow, bool, error) {
	page, err := deadlines.Scan(r, Query[DeadlineRow]{By: deadlinesDue, Prefix: Key{string(kind)}, Limit: 1})
	if err != nil || len(page.Rows) == 0 {
		return DeadlineRow{}, false, err
	}
	return page.Rows[0], true, nil
}
