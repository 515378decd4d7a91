package projections

import (
	"fmt"

	"github.com/tombolo-vdc/tombolo/events"
)

// WorkOrders answers: which work is open in a region, what needs a person, and is
// there an order with this id? The agent's intake reads the first, operators the
// second, the janitor the third.
//
//	work-orders.work            <work id>                                → WorkRow, all that ever were
//	work-orders.work.open       <region> <sequence ordered> <work id>    ordered, started or undoing
//	work-orders.work.trouble    <region> <failed|stuck> <work id>
//	work-orders.work.operation  <operation id> <work id>
//	work-orders.order           <work id>                                → OrderRow, which never changes
type WorkOrders struct{}

// WorkState is how far a work order is.
type WorkState string

// The states of a work order.
const (
	WorkStateOrdered    WorkState = "ordered"     // no agent has taken it up, or it is to be tried again
	WorkStateStarted    WorkState = "started"     // an agent has taken it up
	WorkStateDone       WorkState = "done"        // the effect is there
	WorkStateFailed     WorkState = "failed"      // the effect is not there and will not come by itself
	WorkStateUndoing    WorkState = "undoing"     // whatever there is of the effect is to go
	WorkStateUndone     WorkState = "undone"      // nothing of the effect is left
	WorkStateStuck      WorkState = "stuck"       // the undo did not work; a person must look
	WorkStateWrittenOff WorkState = "written-off" // nobody will do it any more; its region is lost
)

// Open reports whether an agent has something to do for it.
func (s WorkState) Open() bool {
	return s == WorkStateOrdered || s == WorkStateStarted || s == WorkStateUndoing
}

// WorkRow is a work order as it is now.
type WorkRow struct {
	Work      events.WorkID      `json:"work"`
	Account   events.AccountID   `json:"account"`
	Region    events.RegionID    `json:"region"`
	Kind      events.WorkKind    `json:"kind"`
	Operation events.OperationID `json:"operation"`
	State     WorkState          `json:"state"`
	Undo      bool               `json:"undo,omitempty"` // its undo was ordered
	Epoch     int                `json:"epoch,omitempty"`
	Attempt   int                `json:"attempt,omitempty"`
	Cause     *events.Cause      `json:"cause,omitempty"`    // of failed, stuck and written-off; of undoing why
	Sequence  uint64             `json:"sequence"`           // of the event that ordered it
	Ordered   Time               `json:"ordered_at"`         // when it was ordered
	Since     Time               `json:"since"`              // when it came to be in this state
	Location  string             `json:"location,omitempty"` // of done: the slot in the region's store
	Received  int64              `json:"received,omitempty"` // of done: bytes from other regions
	Stored    int64              `json:"stored,omitempty"`   // of done: bytes new to the store
	Freed     int64              `json:"freed,omitempty"`    // of done: bytes given back
	Revision  uint64             `json:"revision"`
}

// OrderRow is what a work order is about.
type OrderRow struct {
	Work  events.WorkID `json:"work"`
	Order events.Order  `json:"order"`
}

var (
	workOpen = index("open", func(o *WorkRow, in *entries) {
		if o.State.Open() {
			in.add(string(o.Region), Number(o.Sequence))
		}
	})
	workTrouble = index("trouble", func(o *WorkRow, in *entries) {
		if o.State == WorkStateFailed || o.State == WorkStateStuck {
			in.add(string(o.Region), string(o.State))
		}
	})
	workOperations = index("operation", func(o *WorkRow, in *entries) { in.add(string(o.Operation)) })
	works          = NewTable("work-orders", "work", func(o WorkRow) Key { return Key{string(o.Work)} },
		workOpen, workTrouble, workOperations)
	orders = unread(NewTable("work-orders", "order", func(o OrderRow) Key { return Key{string(o.Work)} }))
)

// Name is "work-orders".
func (WorkOrders) Name() string { return "work-orders" }

// Shape of the rows.
func (WorkOrders) Shape() int { return 2 }

// Tables of work orders.
func (WorkOrders) Tables() []Described { return []Described{works, orders} }

// Apply folds the facts of work orders.
func (WorkOrders) Apply(w *Batch, r events.Record) error {
	fact, ok := r.Event.(events.WorkEvent)
	if !ok {
		return nil
	}
	if e, ok := fact.(events.WorkOrdered); ok {
		id := events.WorkID(r.Aggregate.ID)
		if err := create(orders, w, r, OrderRow{id, e.Order}); err != nil {
			return err
		}
		return create(works, w, r, WorkRow{Work: id, Account: r.Aggregate.Account, Region: r.Aggregate.Region, Kind: e.Kind,
			Operation: e.Operation, State: WorkStateOrdered, Sequence: r.Sequence, Ordered: stored(r), Since: stored(r), Revision: r.Revision})
	}
	var unknown error
	err := works.Change(w, func(o *WorkRow) {
		o.Revision = r.Revision
		unknown = o.fold(r, fact)
	}, r.Aggregate.ID)
	if unknown != nil {
		return unknown
	}
	return err
}

func (o *WorkRow) fold(r events.Record, fact events.WorkEvent) error {
	become := func(s WorkState, why *events.Cause) { o.State, o.Cause, o.Since = s, why, stored(r) }
	switch e := fact.(type) {
	case events.WorkStarted:
		o.Epoch, o.Attempt = e.Epoch, e.Attempt
		if !o.Undo {
			become(WorkStateStarted, nil)
		}
	case events.WorkDone:
		become(WorkStateDone, nil)
		o.Location, o.Received, o.Stored, o.Freed = e.Result.Location, e.Result.Received, e.Result.Stored, e.Result.Freed
	case events.WorkFailed:
		become(WorkStateFailed, &e.Cause)
	case events.WorkUndoOrdered:
		o.Undo = true
		become(WorkStateUndoing, &e.Why)
	case events.WorkUndone:
		become(WorkStateUndone, nil)
	case events.WorkStuck:
		become(WorkStateStuck, &e.Cause)
	case events.WorkRetried:
		if o.Undo {
			become(WorkStateUndoing, nil)
		} else {
			become(WorkStateOrdered, nil)
		}
	case events.WorkWrittenOff:
		become(WorkStateWrittenOff, &e.Why)
	default:
		return fmt.Errorf("work orders do not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
	}
	return nil
}

// Work gives one order by its id, whatever its state; false if there never was
// one: what carries such a tag is an orphan.
func (WorkOrders) Work(r Reader, id events.WorkID) (WorkRow, bool, error) {
	return works.Get(r, string(id))
}

// Order gives what an order is about; false if there never was one.
func (WorkOrders) Order(r Reader, id events.WorkID) (events.Order, bool, error) {
	row, ok, err := orders.Get(r, string(id))
	return row.Order, ok, err
}

// OpenIn gives the open orders of a region, in the order in which they were
// given, a page at a time.
func (WorkOrders) OpenIn(r Reader, region events.RegionID, limit int, resume string) (Page[WorkRow], error) {
	return works.Scan(r, Query[WorkRow]{By: workOpen, Prefix: Key{string(region)}, Limit: limit, Resume: resume})
}

// Trouble gives the failed orders and then the stuck ones of a region, or (if
// that is empty) of all regions, region by region, a page at a time.
func (WorkOrders) Trouble(r Reader, region events.RegionID, limit int, resume string) (Page[WorkRow], error) {
	var prefix Key
	if region != "" {
		prefix = Key{string(region)}
	}
	return works.Scan(r, Query[WorkRow]{By: workTrouble, Prefix: prefix, Limit: limit, Resume: resume})
}

// OfOperation gives the orders of an operation, by id.
func (WorkOrders) OfOperation(r Reader, id events.OperationID) ([]WorkRow, error) {
	return gather(works, r, Query[WorkRow]{By: workOperations, Prefix: Key{string(id)}})
}
