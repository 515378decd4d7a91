package projections

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"

	"github.com/tombolo-vdc/tombolo/events"
)

// Reader is where rows are read from: a [View], or the [Batch] being written.
type Reader interface {
	get(t tableID, key []byte) ([]byte, error)
	open(t tableID, lower, upper []byte) (*cursor, error)
}

// tableID is a table's or an index's name within its projection.
type tableID struct {
	projection, name string
	unread           bool // its fold never reads it
}

// newKey begins a key; the head is filled in by the Reader.
func (t tableID) newKey(parts []string) []byte { return t.keyIn(make([]byte, 0, 96), parts) }

// keyIn is newKey in room, whose content is lost.
func (t tableID) keyIn(room []byte, parts []string) []byte {
	var head [headLen]byte
	return appendParts(append(append(room[:0], head[:]...), t.name...), parts)
}

// Described is a table as its projection declares it.
type Described interface{ describe() []tableID }

// Table is a kind of rows of one projection or consumer. It is a description
// and holds nothing: declare it once, in a variable that never changes. Rows
// are structs of exported fields with JSON names; codec.go says how they are stored.
type Table[R any] struct {
	id      tableID
	key     func(R) Key
	indexes []*Index[R]
	// In the order of the indexes.
	indexIDs []tableID
	codec    codec[R]
}

// Index finds a table's rows by other parts than their key. A row is found
// under every key that the function gives for it, or not at all for none.
type Index[R any] struct {
	name string
	find func(row *R, in *entries)
}

// indexID names an index within its projection.
func (t *Table[R]) indexID(x *Index[R]) tableID {
	for i, o := range t.indexes {
		if o == x {
			return t.indexIDs[i]
		}
	}
	return tableID{projection: t.id.projection, name: t.id.name + "." + x.name} // of another table: refused as undeclared
}

// NewIndex describes an index. Its name must be a token.
func NewIndex[R any](name string, keys func(R) []Key) *Index[R] {
	return index(name, func(row *R, in *entries) {
		for _, k := range keys(*row) {
			in.add(k...)
		}
	})
}

// index is NewIndex for rows that events change often: find adds the keys, and
// neither they nor the row are copied.
func index[R any](name string, find func(row *R, in *entries)) *Index[R] {
	return &Index[R]{name, find}
}

// NewTable describes a table of the named projection (or consumer) and how a
// row's key follows from the row. It panics on names that are not tokens:
// those are errors of the program's text.
func NewTable[R any](projection, name string, key func(R) Key, indexes ...*Index[R]) *Table[R] {
	t := &Table[R]{id: tableID{projection: projection, name: name}, key: key, indexes: indexes, codec: codecOf[R]()}
	for _, x := range indexes {
		t.indexIDs = append(t.indexIDs, tableID{projection: projection, name: name + "." + x.name})
	}
	seen := map[string]bool{}
	for _, n := range append([]string{projection, name}, names(indexes)...) {
		if !events.IsToken(n) {
			panic(fmt.Sprintf("table %s of %s: the name %q is not a token", name, projection, n))
		}
	}
	for _, id := range t.describe() {
		if seen[id.name] {
			panic(fmt.Sprintf("table %s of %s: %s is declared twice", name, projection, id.name))
		}
		seen[id.name] = true
	}
	return t
}

// unread says that the fold stores rows of the table and never looks at them
// again: they need not be kept for it.
func unread[R any](t *Table[R]) *Table[R] {
	t.id.unread = true
	return t
}

func names[R any](indexes []*Index[R]) []string {
	var out []string
	for _, x := range indexes {
		out = append(out, x.name)
	}
	return out
}

func (t *Table[R]) describe() []tableID {
	return append([]tableID{t.id}, t.indexIDs...)
}

// rowKey is the complete key of a row.
func (t *Table[R]) rowKey(key Key) []byte { return append(t.id.newKey(key), keyEnd) }

// keyFor is rowKey for one write, until the next.
func (t *Table[R]) keyFor(w *Batch, key Key) []byte {
	w.t.key = append(t.id.keyIn(w.t.key, key), keyEnd)
	return w.t.key
}

// Get reads one row.
func (t *Table[R]) Get(r Reader, key ...string) (row R, ok bool, err error) {
	value, err := r.get(t.id, t.rowKey(key))
	if err != nil || value == nil {
		return row, false, err
	}
	row, err = t.decode(value)
	return row, err == nil, err
}

func (t *Table[R]) decode(value []byte) (row R, err error) {
	err = t.decodeTo(value, &row)
	return row, err
}

func (t *Table[R]) decodeTo(value []byte, row *R) error {
	if err := t.codec.unmarshal(value, row); err != nil {
		return fmt.Errorf("row of table %s of %s: %w", t.id.name, t.id.projection, err)
	}
	return nil
}

// Put stores a row, in place of the one with the same key. Storing what is
// there already stores nothing.
func (t *Table[R]) Put(w *Batch, row R) error {
	value := t.encode(w, &row)
	key := t.keyFor(w, t.key(row))
	old, err := w.row(t.id, key)
	if err != nil || bytes.Equal(old.value, value) {
		return err
	}
	if err := t.findStored(&w.t.was, old.value); err != nil {
		return err
	}
	t.find(&w.t.is, &row)
	return t.store(w, key, value, old)
}

// replace is Put of a row that every event makes anew, in a table without
// indexes: what was there does not matter, so it is not read.
func replace[R any](t *Table[R], w *Batch, row R) error {
	key := t.keyFor(w, t.key(row))
	old, err := w.fresh(t.id, key)
	if err != nil {
		return err
	}
	w.put(t.id, key, t.encode(w, &row), old)
	return nil
}

// create stores the row that an event makes. That of an aggregate's first event
// cannot be there yet, so nothing is read to find out; one that may be is Put.
func create[R any](t *Table[R], w *Batch, r events.Record, row R) error {
	if r.Revision != 1 && !t.id.unread {
		return t.Put(w, row)
	}
	key := t.keyFor(w, t.key(row))
	old, err := w.fresh(t.id, key)
	if err != nil {
		return err
	}
	t.find(&w.t.was, nil)
	t.find(&w.t.is, &row)
	return t.store(w, key, t.encode(w, &row), old)
}

// encode gives the row as it is stored, until the next encode.
func (t *Table[R]) encode(w *Batch, row *R) []byte {
	w.t.room = t.codec.marshal(w.t.room[:0], row)
	return w.t.room
}

// Delete removes a row; removing what is not there does nothing.
func (t *Table[R]) Delete(w *Batch, key ...string) error {
	k := t.keyFor(w, key)
	old, err := w.row(t.id, k)
	if err != nil || old.value == nil {
		return err
	}
	return t.remove(w, k, old)
}

// remove deletes the row that is stored under the key.
func (t *Table[R]) remove(w *Batch, key []byte, old *cachedRow) error {
	if err := t.findStored(&w.t.was, old.value); err != nil {
		return err
	}
	t.find(&w.t.is, nil)
	return t.store(w, key, nil, old)
}

// Change reads a row, lets edit change it, and stores it; under another key if
// edit changed that. CodeRowMissing if it is not there. edit must not use the
// batch itself.
func (t *Table[R]) Change(w *Batch, edit func(*R), key ...string) error {
	k := t.keyFor(w, key)
	old, err := w.row(t.id, k)
	if err != nil {
		return err
	}
	if old.value == nil {
		return fail(CodeRowMissing, nil, "table %s of %s has no row %q", t.id.name, t.id.projection, key)
	}
	row, err := t.decode(old.value)
	if err != nil {
		return err
	}
	t.find(&w.t.was, &row) // before edit, which may write to what the row refers to
	edit(&row)
	if !slices.Equal(t.key(row), key) {
		if err := t.remove(w, k, old); err != nil {
			return err
		}
		return t.Put(w, row)
	}
	value := t.encode(w, &row)
	if bytes.Equal(old.value, value) {
		return nil
	}
	t.find(&w.t.is, &row)
	return t.store(w, k, value, old)
}

// find tells where the indexes find a row; nil is found nowhere.
func (t *Table[R]) find(in *entries, row *R) {
	in.reset()
	if row == nil || len(t.indexes) == 0 {
		return
	}
	in.own = append(appendParts(in.own, t.key(*row)), keyEnd)
	for i, x := range t.indexes {
		in.index = i
		x.find(row, in)
	}
}

// findStored is find of a row as it is stored; nil is found nowhere.
func (t *Table[R]) findStored(in *entries, stored []byte) error {
	if stored == nil || len(t.indexes) == 0 {
		t.find(in, nil)
		return nil
	}
	row, err := t.decode(stored)
	if err != nil {
		return err
	}
	t.find(in, &row)
	return nil
}

// store writes a row, or its deletion, and brings its index entries from w.t.was to w.t.is.
func (t *Table[R]) store(w *Batch, key, value []byte, row *cachedRow) error {
	if !w.t.was.equal(&w.t.is) { // most changes leave them
		var room [binary.MaxVarintLen64]byte
		rest := binary.AppendUvarint(room[:0], uint64(len(key)-headLen-len(t.id.name)))
		if err := t.storeEntries(w, &w.t.was, &w.t.is, nil); err != nil {
			return err
		}
		if err := t.storeEntries(w, &w.t.is, &w.t.was, rest); err != nil {
			return err
		}
	}
	w.put(t.id, key, value, row)
	return nil
}

// storeEntries writes the entries that are in these and not in those.
func (t *Table[R]) storeEntries(w *Batch, these, those *entries, value []byte) error {
	for _, e := range these.list {
		if those.holds(e.index, these.key(e)) {
			continue
		}
		id := t.indexIDs[e.index]
		if err := w.check(id); err != nil {
			return err
		}
		w.put(id, append(id.newKey(nil), these.key(e)...), value, nil)
	}
	return nil
}

// keyOf gives the key of the row that an index entry names: the entry ends with
// it, and its value says how much of it that is. Older entries hold the key.
func (t *Table[R]) keyOf(entry, value []byte) ([]byte, error) {
	if len(value) > binary.MaxVarintLen16 {
		return append(make([]byte, headLen), value...), nil
	}
	n, size := binary.Uvarint(value)
	if size <= 0 || n > uint64(len(entry)) {
		return nil, fmt.Errorf("an index entry of table %s of %s: %w", t.id.name, t.id.projection, errRow)
	}
	return append(t.id.newKey(nil), entry[len(entry)-int(n):]...), nil
}

// Query says which rows, in which order.
type Query[R any] struct {
	By     *Index[R] // in the order of this index; nil: in the order of the rows' keys
	Prefix Key       // only rows whose key (or index key) begins with these parts
	Limit  int       // at most so many; 0: [Table.Scan] takes DefaultLimit, [Table.All] takes all
	Resume string    // go on after the page that gave this token
}

// DefaultLimit is how many rows a page has at most if nobody says.
const DefaultLimit = 100

// Page is a part of a list.
type Page[R any] struct {
	Rows []R
	// Resume gets the next page; empty at the end. It holds no position: pages
	// of one list are consistent if they are read as of the first one's
	// [View.Position].
	Resume string
}

// Scan reads one page. CodeResumeInvalid for a token of another question.
func (t *Table[R]) Scan(r Reader, q Query[R]) (Page[R], error) {
	if q.Limit <= 0 {
		q.Limit = DefaultLimit
	}
	limit := q.Limit
	q.Limit++ // one more tells whether there is a next page
	page := Page[R]{}
	var last []byte
	err := t.walk(r, q, func(key, value []byte) (bool, error) {
		if len(page.Rows) == limit {
			page.Resume = base64.RawURLEncoding.EncodeToString(last)
			return false, nil
		}
		last = append(last[:0], key...)
		var err error
		page.Rows, err = t.appendRow(page.Rows, value)
		return true, err
	})
	if err != nil {
		return Page[R]{}, err
	}
	return page, nil
}

// All yields rows one by one, or one error as the last thing.
func (t *Table[R]) All(r Reader, q Query[R]) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		over := false
		err := t.walk(r, q, func(_, value []byte) (bool, error) {
			row, err := t.decode(value)
			over = err == nil && !yield(row, nil)
			return !over, err
		})
		if err != nil && !over {
			var none R
			yield(none, err)
		}
	}
}

// gather reads a whole list.
func gather[R any](t *Table[R], r Reader, q Query[R]) ([]R, error) {
	const usual = 16 // rows are large: a list that grows copies them
	out := make([]R, 0, usual)
	err := t.walk(r, q, func(_, value []byte) (more bool, err error) {
		out, err = t.appendRow(out, value)
		return true, err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// appendRow appends a row from its stored value.
func (t *Table[R]) appendRow(rows []R, value []byte) ([]R, error) {
	var zero R
	rows = append(rows, zero)
	return rows, t.decodeTo(value, &rows[len(rows)-1])
}

// walk calls each with the stored rows of q, and with the key (without head)
// that each was found under, until each wants no more. Both are valid until it returns.
func (t *Table[R]) walk(r Reader, q Query[R], each func(key, value []byte) (more bool, err error)) (err error) {
	id := t.id
	if q.By != nil {
		id = t.indexID(q.By)
	}
	body := id.newKey(q.Prefix)
	lower := append(bytes.Clone(body), keyEnd)
	upper := append(bytes.Clone(body), pastParts)
	if q.Resume != "" {
		token, err := base64.RawURLEncoding.DecodeString(q.Resume)
		rest, ok := bytes.CutPrefix(token, body[headLen:])
		if err != nil || !ok || len(rest) == 0 || rest[0] > partStart || split(token) != len(token) || token[len(token)-1] != keyEnd {
			return fail(CodeResumeInvalid, err, "the resume token is not one of this list")
		}
		lower = after(append(make([]byte, headLen), token...))
	}
	c, err := r.open(id, lower, upper)
	if err != nil {
		return err
	}
	defer func() {
		if e := c.close(); err == nil {
			err = e
		}
	}()
	for n := 0; (q.Limit <= 0 || n < q.Limit) && c.next(); n++ {
		value := c.value()
		if q.By != nil {
			key, err := t.keyOf(c.key(), value)
			if err != nil {
				return err
			}
			if value, err = r.get(t.id, key); err != nil {
				return err
			}
			if value == nil {
				if _, writing := r.(*Batch); writing {
					continue // deleted by the loop that reads this list
				}
				return fmt.Errorf("index %s of %s names a row that is not there", id.name, id.projection)
			}
		}
		if more, err := each(c.key(), value); err != nil || !more {
			return err
		}
	}
	return c.err()
}
