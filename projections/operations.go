package projections

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/tombolo-vdc/tombolo/events"
)

// Operations answers: what has a command set in motion, how far is each part of
// it, what went wrong where, and how did it end?
//
//	operations.operation           <operation id>                               → OperationRow
//	operations.operation.account   <account> <newest first> <operation id>
//	operations.operation.template  <template number> <newest first> <operation id>
//	operations.part                <operation id> <part's aggregate id>         → PartRow
//	operations.current             <aggregate id>                               → currentRow
type Operations struct{}

// OperationKind is what an operation is to bring about.
type OperationKind string

// The kinds of operations.
const (
	OperationTemplateCreate   OperationKind = "template.create"
	OperationTemplateReplace  OperationKind = "template.replace"
	OperationTemplateRollback OperationKind = "template.rollback"
	OperationTemplateRegions  OperationKind = "template.regions"
	OperationTemplateDelete   OperationKind = "template.delete"
	OperationInstantiate      OperationKind = "template.instantiate" // an environment made from a template
	OperationEnvCreate        OperationKind = "environment.create"
	OperationEnvDelete        OperationKind = "environment.delete"
	OperationEnvPower         OperationKind = "environment.power"
	OperationEnvRestart       OperationKind = "environment.restart" // of machines that died
	OperationEnvEdge          OperationKind = "environment.edge"
	OperationRegionDrain      OperationKind = "region.drain"
	OperationRegionRetire     OperationKind = "region.retire"
)

// OperationState is how far an operation is.
type OperationState string

// The states of an operation. The last five are outcomes as the vocabulary has
// them; a retry makes them "running" again.
const (
	OperationQueued     OperationState = "queued"     // a replacement behind another
	OperationRunning    OperationState = "running"    // not ended
	OperationCancelling OperationState = "cancelling" // its cancellation was asked for; it has not ended
	OperationSucceeded  OperationState = OperationState(events.Succeeded)
	OperationPartly     OperationState = OperationState(events.Partly)
	OperationRolledBack OperationState = OperationState(events.RolledBack)
	OperationLeftBehind OperationState = OperationState(events.LeftBehind)
	OperationCancelled  OperationState = OperationState(events.Cancelled)
)

// Ended reports whether nothing more happens by itself.
func (s OperationState) Ended() bool {
	return s != OperationQueued && s != OperationRunning && s != OperationCancelling
}

// OperationRow is an operation as a whole.
type OperationRow struct {
	ID          events.OperationID   `json:"id"`
	Account     events.AccountID     `json:"account"`
	Kind        OperationKind        `json:"kind"`
	State       OperationState       `json:"state"`
	Template    events.TemplateID    `json:"template,omitempty"`
	Version     int                  `json:"version,omitempty"`
	Environment events.EnvironmentID `json:"environment,omitempty"`
	Region      events.RegionID      `json:"region,omitempty"` // of the environment or region that it is about
	Name        string               `json:"name,omitempty"`   // of the template or environment that it makes
	Actor       events.Actor         `json:"actor"`            // who asked
	Cause       *events.Cause        `json:"cause,omitempty"`  // of its outcome
	Cancel      Time                 `json:"cancel_asked_at,omitzero"`
	Attempt     int                  `json:"attempt"` // 0: no retry was asked for
	Sequence    uint64               `json:"sequence"`
	Started     Time                 `json:"started_at"`
	Ended       Time                 `json:"ended_at,omitzero"`
	Revision    uint64               `json:"revision"` // of the operation's aggregate; 0 until something is asked of it
}

// PartKind is what a part of an operation is.
type PartKind string

// The kinds of parts.
const (
	PartInstance    PartKind = "instance"    // a copy in a region
	PartEnvironment PartKind = "environment" // an environment
	PartWork        PartKind = "work"        // one work order
)

// PartState is how far a part is: for work the WorkState; for the others these.
type PartState string

// The states of instances and environments as parts.
const (
	PartWanted   PartState = "wanted"   // asked for; its work orders say how far it is
	PartMapped   PartState = "mapped"   // what is region-bound has its values
	PartWaiting  PartState = "waiting"  // until somebody does what the cause says
	PartDone     PartState = "done"     // verified, or created
	PartFailed   PartState = "failed"   // the cause says why
	PartDropped  PartState = "dropped"  // another operation wants it removed before it was there
	PartRemoving PartState = "removing" // this operation wants it gone; the region has not said that it is
	PartRemoved  PartState = "removed"
)

// PartRow is one thing that an operation does in one region. With its cause it
// says where something went wrong: operation, region, resource (what it is
// about), step.
type PartRow struct {
	Operation   events.OperationID   `json:"operation"`
	ID          string               `json:"id"` // of the instance, environment or work order
	Kind        PartKind             `json:"kind"`
	Step        string               `json:"step"` // the kind of work; "hold" or "remove" of an instance; "make" or "delete" of an environment
	Account     events.AccountID     `json:"account"`
	Region      events.RegionID      `json:"region"`
	Template    events.TemplateID    `json:"template,omitempty"`
	Version     int                  `json:"version,omitempty"`
	Instance    events.InstanceID    `json:"instance,omitempty"`
	Environment events.EnvironmentID `json:"environment,omitempty"`
	State       string               `json:"state"` // a PartState or a WorkState
	Undo        bool                 `json:"undo,omitempty"`
	Epoch       int                  `json:"epoch,omitempty"`
	Attempt     int                  `json:"attempt,omitempty"`
	Cause       *events.Cause        `json:"cause,omitempty"`
	Sequence    uint64               `json:"sequence"` // of the event that began it
	Began       Time                 `json:"began_at"` // when it was asked for
	Since       Time                 `json:"since"`    // when it came to be in this state
	Bytes       int64                `json:"bytes,omitempty"`
	Received    int64                `json:"received,omitempty"`
	Stored      int64                `json:"stored,omitempty"`
}

// currentRow says which operation an aggregate is part of just now.
type currentRow struct {
	ID        string             `json:"id"`
	Operation events.OperationID `json:"operation"`
}

// newestFirst gives sequences as parts whose order is the reverse of theirs.
func newestFirst(seq uint64) string { return Number(math.MaxUint64 - seq) }

var (
	operationAccounts = index("account", func(o *OperationRow, in *entries) {
		in.add(string(o.Account), newestFirst(o.Sequence))
	})
	operationTemplates = index("template", func(o *OperationRow, in *entries) {
		if o.Template != "" {
			in.add(string(o.Template), newestFirst(o.Sequence))
		}
	})
	operations = NewTable("operations", "operation", func(o OperationRow) Key { return Key{string(o.ID)} },
		operationAccounts, operationTemplates)
	operationParts = NewTable("operations", "part", func(p PartRow) Key { return Key{string(p.Operation), p.ID} })
	currents       = NewTable("operations", "current", func(c currentRow) Key { return Key{c.ID} })
)

// Name is "operations".
func (Operations) Name() string { return "operations" }

// Shape of the rows.
func (Operations) Shape() int { return 2 }

// Tables of operations.
func (Operations) Tables() []Described { return []Described{operations, operationParts, currents} }

// Apply begins operations, and folds what happens to their parts.
func (o Operations) Apply(w *Batch, r events.Record) error {
	switch fact := r.Event.(type) {
	case events.TemplateEvent:
		return o.template(w, r, fact)
	case events.EnvironmentEvent:
		return o.environment(w, r, fact)
	case events.RegionEvent:
		return o.region(w, r, fact)
	case events.InstanceEvent:
		return o.instance(w, r, fact)
	case events.WorkEvent:
		return o.work(w, r, fact)
	case events.OperationEvent:
		return o.asked(w, r, fact)
	}
	return nil
}

// begin makes the operation's row unless it is there: a creation that is
// abandoned deletes under the same operation, a queued replacement is staged.
func begin(w *Batch, r events.Record, row OperationRow) error {
	if row.ID == "" {
		return nil
	}
	_, ok, err := operations.Get(w, string(row.ID))
	if err != nil || ok {
		return err
	}
	row.Account, row.Actor, row.Sequence, row.Started = r.Aggregate.Account, r.Actor, r.Sequence, stored(r)
	row.State = cmp.Or(row.State, OperationRunning)
	return operations.Put(w, row)
}

func (Operations) template(w *Batch, r events.Record, fact events.TemplateEvent) error {
	row := OperationRow{Template: events.TemplateID(r.Aggregate.ID)}
	switch e := fact.(type) {
	case events.TemplateCreated:
		row.ID, row.Kind, row.Name, row.Version = e.Operation, OperationTemplateCreate, e.Name, 1
	case events.ReplacementQueued:
		row.ID, row.Kind, row.State = e.Operation, OperationTemplateReplace, OperationQueued
	case events.ReplacementUnqueued:
		return nil // the operation's own end says so
	case events.ReplacementStaged:
		row.ID, row.Kind, row.Version = e.Operation, OperationTemplateReplace, e.Version
		if err := begin(w, r, row); err != nil {
			return err
		}
		return operations.Change(w, func(o *OperationRow) {
			o.Version = e.Version
			if o.State == OperationQueued {
				o.State = OperationRunning
			}
		}, string(e.Operation))
	case events.VersionActivated:
		if !e.Rollback {
			return nil
		}
		row.ID, row.Kind, row.Version = e.Operation, OperationTemplateRollback, e.Version
	case events.RegionsChanged:
		row.ID, row.Kind = e.Operation, OperationTemplateRegions
	case events.TemplateDeletionAccepted:
		row.ID, row.Kind = e.Operation, OperationTemplateDelete
	}
	return begin(w, r, row)
}

func (Operations) region(w *Batch, r events.Record, fact events.RegionEvent) error {
	row := OperationRow{Region: r.Aggregate.Region}
	switch e := fact.(type) {
	case events.RegionDraining:
		row.ID, row.Kind = e.Operation, OperationRegionDrain
	case events.RegionRetired:
		row.ID, row.Kind = e.Operation, OperationRegionRetire
	}
	return begin(w, r, row)
}

// join makes the event's aggregate a part of an operation.
func join(w *Batch, r events.Record, p PartRow) error {
	if p.Operation == "" {
		return nil
	}
	p.ID, p.Account, p.Region = r.Aggregate.ID, r.Aggregate.Account, r.Aggregate.Region
	p.Sequence, p.Began, p.Since = r.Sequence, stored(r), stored(r)
	if err := create(currents, w, r, currentRow{p.ID, p.Operation}); err != nil {
		return err
	}
	return create(operationParts, w, r, p)
}

// change edits the part that the event's aggregate is just now.
func change(w *Batch, r events.Record, edit func(*PartRow)) error {
	c, ok, err := currents.Get(w, r.Aggregate.ID)
	if err != nil || !ok {
		return err
	}
	return operationParts.Change(w, func(p *PartRow) {
		before := p.State
		edit(p)
		if p.State != before {
			p.Since = stored(r)
		}
	}, string(c.Operation), r.Aggregate.ID)
}

// become is an edit that sets a state and its cause.
func become[S ~string](s S, why *events.Cause) func(*PartRow) {
	return func(p *PartRow) { p.State, p.Cause = string(s), why }
}

func (Operations) environment(w *Batch, r events.Record, fact events.EnvironmentEvent) error {
	id := events.EnvironmentID(r.Aggregate.ID)
	switch e := fact.(type) {
	case events.EnvironmentDeclared:
		row := OperationRow{ID: e.Operation, Kind: OperationEnvCreate, Environment: id, Region: r.Aggregate.Region, Name: e.Name}
		part := PartRow{Operation: e.Operation, Kind: PartEnvironment, Step: "make", Environment: id, State: string(PartWanted)}
		if e.Origin != nil {
			row.Kind, row.Template, row.Version = OperationInstantiate, e.Origin.Template, e.Origin.Version
			part.Template, part.Version, part.Instance, part.Bytes = e.Origin.Template, e.Origin.Version, e.Origin.Instance, e.Origin.Bytes
		}
		if err := begin(w, r, row); err != nil {
			return err
		}
		return join(w, r, part)
	case events.EnvironmentMapped:
		return change(w, r, become(PartMapped, nil))
	case events.EnvironmentCreated:
		return change(w, r, become(PartDone, nil))
	case events.EnvironmentFailed:
		return change(w, r, become(PartFailed, &e.Cause))
	case events.EnvironmentDeletionAccepted:
		if err := begin(w, r, OperationRow{ID: e.Operation, Kind: OperationEnvDelete, Environment: id, Region: r.Aggregate.Region}); err != nil {
			return err
		}
		return leave(w, r, PartRow{Operation: e.Operation, Kind: PartEnvironment, Step: "delete", Environment: id})
	case events.EnvironmentDeleted:
		return change(w, r, become(PartRemoved, nil))
	case events.PowerSet:
		return begin(w, r, OperationRow{ID: e.Operation, Kind: OperationEnvPower, Environment: id, Region: r.Aggregate.Region})
	case events.MachinesObserved:
		return begin(w, r, OperationRow{ID: e.Operation, Kind: OperationEnvRestart, Environment: id, Region: r.Aggregate.Region})
	case events.EdgeSet:
		return begin(w, r, OperationRow{ID: e.Operation, Kind: OperationEnvEdge, Environment: id, Region: r.Aggregate.Region})
	}
	return nil
}

// leave makes the aggregate a part of the operation that wants it gone. What it
// was a part of before is dropped there if it had not ended.
func leave(w *Batch, r events.Record, p PartRow) error {
	err := change(w, r, func(before *PartRow) {
		p.Template, p.Version, p.Instance = before.Template, before.Version, before.Instance
		if before.State != string(PartDone) && before.State != string(PartFailed) {
			before.State, before.Cause = string(PartDropped), nil
		}
	})
	if err != nil {
		return err
	}
	p.State = string(PartRemoving)
	return join(w, r, p)
}

func (Operations) instance(w *Batch, r events.Record, fact events.InstanceEvent) error {
	switch e := fact.(type) {
	case events.CopyWanted:
		return join(w, r, PartRow{Operation: e.Operation, Kind: PartInstance, Step: "hold", Template: e.Template, Version: e.Version,
			Instance: events.InstanceID(r.Aggregate.ID), State: string(PartWanted), Attempt: 1, Bytes: e.Bytes})
	case events.ResourcesMapped:
		return change(w, r, become(PartMapped, nil))
	case events.CopyWaiting:
		return change(w, r, become(PartWaiting, &e.Cause))
	case events.CopyVerified:
		return change(w, r, func(p *PartRow) {
			p.State, p.Cause, p.Received, p.Stored = string(PartDone), nil, e.Received, e.Stored
		})
	case events.CopyFailed:
		return change(w, r, become(PartFailed, &e.Cause))
	case events.CopyRetried:
		return change(w, r, func(p *PartRow) { p.State, p.Cause, p.Attempt = string(PartWanted), nil, e.Attempt })
	case events.RemovalWanted:
		return leave(w, r, PartRow{Operation: e.Operation, Kind: PartInstance, Step: "remove"})
	case events.CopyRemoved:
		return change(w, r, become(PartRemoved, nil))
	}
	return nil
}

func (Operations) work(w *Batch, r events.Record, fact events.WorkEvent) error {
	switch e := fact.(type) {
	case events.WorkOrdered:
		return join(w, r, PartRow{Operation: e.Operation, Kind: PartWork, Step: string(e.Kind), Template: e.Order.Template, Version: e.Order.Version,
			Instance: e.Order.Instance, Environment: e.Order.Environment, State: string(WorkStateOrdered)})
	case events.WorkStarted:
		return change(w, r, func(p *PartRow) {
			p.Epoch, p.Attempt = e.Epoch, e.Attempt
			if !p.Undo {
				p.State, p.Cause = string(WorkStateStarted), nil
			}
		})
	case events.WorkDone:
		return change(w, r, func(p *PartRow) {
			p.State, p.Cause = string(WorkStateDone), nil
			p.Bytes, p.Received, p.Stored = e.Result.Bytes, e.Result.Received, e.Result.Stored
		})
	case events.WorkFailed:
		return change(w, r, become(WorkStateFailed, &e.Cause))
	case events.WorkUndoOrdered:
		return change(w, r, func(p *PartRow) { p.State, p.Cause, p.Undo = string(WorkStateUndoing), &e.Why, true })
	case events.WorkUndone:
		return change(w, r, become(WorkStateUndone, nil))
	case events.WorkStuck:
		return change(w, r, become(WorkStateStuck, &e.Cause))
	case events.WorkRetried:
		return change(w, r, func(p *PartRow) {
			p.State, p.Cause = string(WorkStateOrdered), nil
			if p.Undo {
				p.State = string(WorkStateUndoing)
			}
		})
	case events.WorkWrittenOff:
		return change(w, r, become(WorkStateWrittenOff, &e.Why))
	}
	return fmt.Errorf("operations do not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
}

// asked folds what people asked of an operation, and how it ended. One that no
// event has begun is not there to be shown.
func (Operations) asked(w *Batch, r events.Record, fact events.OperationEvent) error {
	row, ok, err := operations.Get(w, r.Aggregate.ID)
	if err != nil || !ok {
		return err
	}
	row.Revision = r.Revision
	switch e := fact.(type) {
	case events.CancelAsked:
		row.Cancel = stored(r)
		if !row.State.Ended() {
			row.State = OperationCancelling
		}
	case events.RetryAsked:
		row.Attempt, row.State, row.Cause, row.Ended = e.Attempt, OperationRunning, nil, Time{}
	case events.OperationFinished:
		row.State, row.Cause, row.Ended = OperationState(e.Outcome), e.Cause, stored(r)
	default:
		return fmt.Errorf("operations do not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
	}
	return operations.Put(w, row)
}

// Operation gives one operation; false if there is none.
func (Operations) Operation(r Reader, id events.OperationID) (OperationRow, bool, error) {
	return operations.Get(r, string(id))
}

// Parts gives the parts of an operation, in the order in which they began.
func (Operations) Parts(r Reader, id events.OperationID) ([]PartRow, error) {
	out, err := gather(operationParts, r, Query[PartRow]{Prefix: Key{string(id)}})
	slices.SortFunc(out, func(a, b PartRow) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return out, err
}

// List gives the account's operations, the newest first, a page at a time.
func (Operations) List(r Reader, account events.AccountID, limit int, resume string) (Page[OperationRow], error) {
	return operations.Scan(r, Query[OperationRow]{By: operationAccounts, Prefix: Key{string(account)}, Limit: limit, Resume: resume})
}

// OfTemplate gives the operations on a template, and those that made
// environments from it, the newest first, a page at a time.
func (Operations) OfTemplate(r Reader, number events.TemplateID, limit int, resume string) (Page[OperationRow], error) {
	return operations.Scan(r, Query[OperationRow]{By: operationTemplates, Prefix: Key{string(number)}, Limit: limit, Resume: resume})
}
