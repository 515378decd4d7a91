package projections

import (
	"bytes"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// txn collects what one commit will hold. Current rows are kept apart until
// then: a row that many events of a batch change is written once, and is read
// back without asking Pebble.
type txn struct {
	db      *pebble.DB
	out     *pebble.Batch // history and the store's own records
	rows    rowCache
	older   rowCache      // of the commit before: what it holds need not be read
	room    []byte        // where the next row is encoded
	scratch *pebble.Batch // indexed: rows as the last scan saw them; never committed
	unseen  []string      // keys of rows that scratch does not have yet
	bytes   int
}

// rowCache holds current rows by key.
type rowCache map[string]cachedRow

type cachedRow struct {
	value   []byte // nil: there is none
	changed bool   // since the last commit
}

// roomBytes is how much room for rows is made at once.
const roomBytes = 64 << 10

// newTxn begins a commit of about so many bytes.
func newTxn(db *pebble.DB, bytes int, rows, older rowCache) *txn {
	return &txn{db: db, out: db.NewBatchWithSize(bytes), rows: rows, older: older}
}

// get gives a current row, nil if there is none. The caller must not change it.
func (t *txn) get(key []byte) ([]byte, error) {
	if r, ok := t.rows[string(key)]; ok {
		return r.value, nil
	}
	r, ok := t.older[string(key)]
	if !ok {
		var err error
		if r.value, err = read(t.db, key); err != nil {
			return nil, err
		}
	}
	t.rows[string(key)] = cachedRow{value: r.value}
	t.bytes += len(key) + len(r.value)
	return r.value, nil
}

func (t *txn) put(key, value []byte) {
	k := string(key)
	if t.scratch != nil {
		t.unseen = append(t.unseen, k)
	}
	t.rows[k] = cachedRow{value, true}
	t.bytes += len(key) + len(value)
}

// keep makes the encoded row last.
func (t *txn) keep(value []byte) {
	if len(value) <= cap(t.room) {
		t.room = t.room[len(value):len(value)]
	}
	if cap(t.room) < roomBytes/32 {
		t.room = make([]byte, 0, roomBytes)
	}
}

// iterate gives an iterator over current rows that sees those of this txn, as
// they are now.
func (t *txn) iterate(lower, upper []byte) (*pebble.Iterator, error) {
	if t.scratch == nil {
		t.scratch = t.db.NewIndexedBatch()
		for k, r := range t.rows {
			if r.changed {
				t.unseen = append(t.unseen, k)
			}
		}
	}
	for _, k := range t.unseen {
		if err := write(t.scratch, k, t.rows[k].value); err != nil {
			return nil, err
		}
	}
	t.unseen = t.unseen[:0]
	return t.scratch.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

func write(b *pebble.Batch, key string, value []byte) error {
	if value == nil {
		return b.Delete([]byte(key), nil)
	}
	op := b.SetDeferred(len(key), len(value))
	copy(op.Key, key)
	copy(op.Value, value)
	return op.Finish()
}

// commit writes everything in one batch and ends the txn.
func (t *txn) commit() error {
	keys := make([]string, 0, len(t.rows))
	for k, r := range t.rows {
		if r.changed {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys) // Pebble takes what is in order faster
	for _, k := range keys {
		if err := write(t.out, k, t.rows[k].value); err != nil {
			return errors.Join(err, t.discard())
		}
	}
	return errors.Join(t.out.Commit(pebble.NoSync), t.discard())
}

// discard ends the txn.
func (t *txn) discard() error {
	err := t.out.Close()
	if t.scratch != nil {
		err = errors.Join(err, t.scratch.Close())
	}
	return err
}

// read gets a value and copies it; nil if there is none.
func read(from pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := from.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return bytes.Clone(v), closer.Close()
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
	if err := w.check(t); err != nil {
		return nil, err
	}
	setHead(key, areaCurrent, w.target.space)
	return w.t.get(key)
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

// put stores a value, or a deletion if it is nil. The caller has checked the table.
func (w *Batch) put(key, value []byte) error {
	setHead(key, areaCurrent, w.target.space)
	w.t.put(key, value)
	if !w.history {
		return nil
	}
	// Written in place: keys and values of a rebuild are copied once, not twice.
	op := w.t.out.SetDeferred(len(key)+seqLen, len(value)+1)
	copy(op.Key, key)
	op.Key[0] = areaHistory
	appendSequence(op.Key[:len(key)], w.seq)
	if value != nil {
		op.Value[0] = 1
		copy(op.Value[1:], value)
	} else {
		op.Value[0] = 0
	}
	w.t.bytes += len(key) + seqLen + len(value)
	return op.Finish()
}

// setHead fills in the first bytes of a key that was made by newKey.
func setHead(key []byte, area byte, space uint32) { appendHead(key[:0], area, space) }
