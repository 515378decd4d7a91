package projections

import (
	"bytes"
	"slices"
)

// entries are where the indexes of a table find a row. They are filled anew for
// each row that is written, in the same room.
type entries struct {
	room  []byte
	list  []indexEntry
	index int    // whose entries are added
	own   []byte // how the row's own key ends each of their keys
}

// indexEntry is one entry, its key in the room: what comes after the index's name.
type indexEntry struct{ index, from, to int }

func (x *entries) reset() {
	x.room, x.list, x.own = x.room[:0], x.list[:0], x.own[:0]
}

// add adds an entry of the index, unless it is there.
func (x *entries) add(parts ...string) {
	from := len(x.room)
	x.room = append(appendParts(x.room, parts), x.own...)
	if x.holds(x.index, x.room[from:]) {
		x.room = x.room[:from]
		return
	}
	x.list = append(x.list, indexEntry{x.index, from, len(x.room)})
}

// addUnlessEmpty adds an entry of one part, if there is that.
func (x *entries) addUnlessEmpty(part string) {
	if part != "" {
		x.add(part)
	}
}

func (x *entries) key(e indexEntry) []byte { return x.room[e.from:e.to] }

// holds reports whether an index has an entry with the key.
func (x *entries) holds(index int, key []byte) bool {
	for _, e := range x.list {
		if e.index == index && bytes.Equal(x.key(e), key) {
			return true
		}
	}
	return false
}

// equal reports whether both are the same in the same order.
func (x *entries) equal(y *entries) bool {
	return bytes.Equal(x.room, y.room) && slices.Equal(x.list, y.list)
}
