package projections

import (
	"bytes"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// txn collects what one commit will hold, event by event: one that fails leaves
// nothing behind.
type txn struct {
	store   *Store
	run     *run
	rows    *rowCache
	stored  func() error  // waits until the runs before this one are in Pebble
	room    []byte        // where the next row is encoded
	key     []byte        // where its key is made
	was, is entries       // where indexes find a row before and after its change
	undo    []undo        // what the event changed, in order
	lent    []*cachedRow  // whose values lie in the run
	begun   int           // entries of the run before the event
	scratch *pebble.Batch // indexed: rows as the last scan saw them; never committed
	scanned int           // entries of the run that scratch has
}

// undo is a row as it was before a change.
type undo struct {
	row *cachedRow
	was cachedRow
}

func newTxn(s *Store, r *run, rows *rowCache, stored func() error) *txn {
	return &txn{store: s, run: r, rows: rows, stored: stored}
}

// row gives a current row. The caller must not change its value.
func (t *txn) row(key []byte) (*cachedRow, error) {
	if r, ok := t.rows.find(key); ok {
		return r, nil
	}
	r := &cachedRow{}
	if k := t.rows.known; k == nil || k.has(key) {
		var err error
		if r.value, err = read(t.store.db, key); err != nil {
			return nil, err
		}
	}
	t.rows.add(key, r)
	return r, nil
}

// put stores a value, or a deletion if it is nil. row is what row gave for the
// key; nil if only scans read it.
func (t *txn) put(id tableID, space uint32, seq uint64, key, value []byte, row *cachedRow) {
	if row == nil {
		t.run.add(id, space, seq, key, value, 0)
		return
	}
	value = t.run.add(id, space, seq, key, value, row.entry)
	if row.value == nil && t.rows.known != nil {
		t.rows.known.add(key)
	}
	t.undo = append(t.undo, undo{row, *row})
	t.rows.bytes += len(value) - len(row.value)
	if row.entry == 0 {
		t.lent = append(t.lent, row)
	}
	*row = cachedRow{value, uint32(len(t.run.entries))}
}

// settle gives the rows that the txn changed values of their own, so that the
// run can go.
func (t *txn) settle() {
	for _, row := range t.lent {
		*row = cachedRow{value: bytes.Clone(row.value)}
	}
	t.lent = nil
}

// next makes what the event did last.
func (t *txn) next() { t.undo, t.begun = t.undo[:0], len(t.run.entries) }

// rollback takes back what the event did.
func (t *txn) rollback() error {
	for _, u := range slices.Backward(t.undo) {
		*u.row = u.was
	}
	t.run.entries = t.run.entries[:t.begun]
	t.undo = t.undo[:0]
	return t.discard()
}

// iterate gives an iterator over current rows that sees those of this txn, as
// they are now.
func (t *txn) iterate(lower, upper []byte) (*pebble.Iterator, error) {
	if t.scratch == nil {
		if err := t.stored(); err != nil {
			return nil, err
		}
		t.scratch = t.store.db.NewIndexedBatch()
	}
	for ; t.scanned < len(t.run.entries); t.scanned++ {
		e := &t.run.entries[t.scanned]
		key, value := t.run.keyOf(e), t.run.valueOf(e)
		var err error
		if value[0] != 0 {
			err = t.scratch.Set(key, value[1:], nil)
		} else {
			err = t.scratch.Delete(key, nil)
		}
		if err != nil {
			return nil, err
		}
	}
	return t.scratch.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

// discard lets go of what scans needed.
func (t *txn) discard() error {
	if t.scratch == nil {
		return nil
	}
	err := t.scratch.Close()
	t.scratch, t.scanned = nil, 0
	return err
}

// commit writes everything at once and ends the txn.
func (t *txn) commit() error { return errors.Join(t.discard(), t.store.write(t.run)) }

// read gets a value and copies it; nil if there is none.
func read(from pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := from.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return append(make([]byte, 0, len(v)), v...), closer.Close()
}

// Batch is what a projection's Apply, or a consumer's commit, writes to. It
// reads as well: rows as they are before and within this batch. It is used by
// one goroutine and is worthless once the function it was given to returns.
type Batch struct {
	t       *txn
	target  target
	history bool
	seq     uint64
}

// target is one space that is written: a projection in one shape, or a consumer.
type target struct {
	name   string
	space  uint32
	tables map[string]bool
}

func (w *Batch) check(t tableID) error {
	if t.projection != w.target.name || !w.target.tables[t.name] {
		return fail(CodeUndeclared, nil, "%s uses table %s of %s, which it does not declare", w.target.name, t.name, t.projection)
	}
	return nil
}

func (w *Batch) get(t tableID, key []byte) ([]byte, error) {
	row, err := w.row(t, key)
	if err != nil {
		return nil, err
	}
	return row.value, nil
}

// row is get for one who goes on to put.
func (w *Batch) row(t tableID, key []byte) (*cachedRow, error) {
	if err := w.check(t); err != nil {
		return nil, err
	}
	if t.unread {
		return nil, fail(CodeUndeclared, nil, "%s reads table %s, which it declares unread", w.target.name, t.name)
	}
	setHead(key, areaCurrent, w.target.space)
	return w.t.row(key)
}

// fresh is row where it does not matter what was there; nil if nobody will ask.
func (w *Batch) fresh(t tableID, key []byte) (*cachedRow, error) {
	if err := w.check(t); err != nil || t.unread {
		return nil, err
	}
	setHead(key, areaCurrent, w.target.space)
	row, ok := w.t.rows.find(key)
	if !ok {
		row = &cachedRow{}
		w.t.rows.add(key, row)
	}
	return row, nil
}

func (w *Batch) open(t tableID, lower, upper []byte) (*cursor, error) {
	if err := w.check(t); err != nil {
		return nil, err
	}
	setHead(lower, areaCurrent, w.target.space)
	setHead(upper, areaCurrent, w.target.space)
	it, err := w.t.iterate(lower, upper)
	if err != nil {
		return nil, err
	}
	return &cursor{it: it}, nil
}

// put stores a value, or a deletion if it is nil. The caller has checked the
// table; row is what row or fresh gave, nil for what scans alone read.
func (w *Batch) put(t tableID, key, value []byte, row *cachedRow) {
	setHead(key, areaCurrent, w.target.space)
	seq := w.seq
	if !w.history {
		seq = 0
	}
	w.t.put(t, w.target.space, seq, key, value, row)
}

// setHead fills in the first bytes of a key that was made by newKey.
func setHead(key []byte, area byte, space uint32) { appendHead(key[:0], area, space) }
