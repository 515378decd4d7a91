package projections

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// run is what one commit writes: rows as they become, one after the other, and
// the position that they are of. Each is encoded once, whether it is written
// as a current row, as history, or as both.
type run struct {
	arena    []byte // keys and values
	entries  []entry
	tables   map[runTable]uint16
	heads    [][]byte // of the tables, by number: space and name, as keys have them
	mark     []byte   // key of the record that holds the position
	position []byte   // its value
}

// entry is one row as one event left it.
type entry struct {
	order   uint64 // of its key's bytes after the table's name, so that few keys are compared
	seq     uint64 // of the event; 0: it has no history
	at      uint32 // of its key in the arena; the value follows
	key     uint32 // length
	value   uint32 // length, with the byte that history has before it: 1, or 0 for a deletion
	table   uint16
	current bool // once sorted: the run holds no later one of its key
	void    bool // once sorted: the same event changed the row again
}

type runTable struct {
	space uint32
	name  string
}

// entryBytes is about what an entry takes beside its key and value.
const entryBytes = 40

func newRun(bytes int) *run {
	return &run{arena: make([]byte, 0, bytes), tables: map[runTable]uint16{}}
}

// reset empties the run for the next commit.
func (r *run) reset() {
	clear(r.tables)
	*r = run{arena: r.arena[:0], entries: r.entries[:0], tables: r.tables, heads: r.heads[:0]}
}

// size is about how many bytes the run takes.
func (r *run) size() int { return len(r.arena) + len(r.entries)*entryBytes }

// add appends a row, or its deletion if value is nil, and gives it as it lies in the run. key has its head.
func (r *run) add(t tableID, space uint32, seq uint64, key, value []byte) []byte {
	at, id := len(r.arena), runTable{space, t.name}
	table, ok := r.tables[id]
	head := key[1 : headLen+len(t.name)+1]
	if !ok {
		table = uint16(len(r.heads))
		r.tables[id] = table
		r.heads = append(r.heads, bytes.Clone(head))
	}
	kind := byte(1)
	if value == nil {
		kind = 0
	}
	r.arena = append(append(append(r.arena, key...), kind), value...)
	r.entries = append(r.entries, entry{order: orderOf(key[1+len(head):]), seq: seq, at: uint32(at), key: uint32(len(key)),
		value: uint32(1 + len(value)), table: table})
	if value == nil {
		return nil
	}
	return r.arena[at+len(key)+1 : len(r.arena) : len(r.arena)]
}

// orderOf gives the first bytes of b as a number of the same order.
func orderOf(b []byte) uint64 {
	var first [8]byte
	copy(first[:], b)
	return binary.BigEndian.Uint64(first[:])
}

func (r *run) keyOf(e *entry) []byte { return r.arena[e.at : e.at+e.key] }

// valueOf gives the value as history has it.
func (r *run) valueOf(e *entry) []byte { return r.arena[e.at+e.key : e.at+e.key+e.value] }

// sort brings the entries into the order of their keys, later ones first as history has them.
func (r *run) sort() {
	order := make([]int, len(r.heads))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare(r.heads[a], r.heads[b]) })
	rank := make([]int, len(order))
	for i, table := range order {
		rank[table] = i
	}
	slices.SortFunc(r.entries, func(a, b entry) int {
		switch {
		case a.table != b.table:
			return rank[a.table] - rank[b.table]
		case a.order != b.order:
			return cmp.Compare(a.order, b.order)
		}
		if c := bytes.Compare(r.keyOf(&a)[1:], r.keyOf(&b)[1:]); c != 0 {
			return c
		}
		return cmp.Compare(b.at, a.at)
	})
	for i := range r.entries {
		e := &r.entries[i]
		same := false
		if i > 0 {
			before := &r.entries[i-1]
			same = before.order == e.order && before.table == e.table && bytes.Equal(r.keyOf(before), r.keyOf(e))
			e.void = same && before.seq == e.seq
		}
		e.current = !same
	}
}

// writer is what a run is written to: a batch, or a table of its own.
type writer interface {
	set(key, value []byte) error
	remove(key []byte) error
}

// writeTo writes the run, sorted: current rows, history, position.
func (r *run) writeTo(w writer) error {
	r.sort()
	history := false
	for i := range r.entries {
		e := &r.entries[i]
		history = history || e.seq > 0
		if !e.current {
			continue
		}
		var err error
		if v := r.valueOf(e); v[0] != 0 {
			err = w.set(r.keyOf(e), v[1:])
		} else {
			err = w.remove(r.keyOf(e))
		}
		if err != nil {
			return err
		}
	}
	var key []byte
	for i := range r.entries {
		e := &r.entries[i]
		if !history || e.void || e.seq == 0 {
			continue
		}
		key = append(key[:0], r.keyOf(e)...)
		key[0] = areaHistory
		key = appendSequence(key, e.seq)
		if err := w.set(key, r.valueOf(e)); err != nil {
			return err
		}
	}
	if r.mark == nil {
		return nil
	}
	return w.set(r.mark, r.position)
}

// batchWriter writes to a batch.
type batchWriter struct{ *pebble.Batch }

func (b batchWriter) set(key, value []byte) error {
	op := b.SetDeferred(len(key), len(value))
	copy(op.Key, key)
	copy(op.Value, value)
	return op.Finish()
}

func (b batchWriter) remove(key []byte) error { return b.Delete(key, nil) }

// tableWriter writes to an sstable.
type tableWriter struct{ *sstable.Writer }

func (t tableWriter) set(key, value []byte) error { return t.Set(key, value) }
func (t tableWriter) remove(key []byte) error     { return t.Delete(key) }

// tableFile is an objstorage.Writable over a file. Pebble's own writes four
// kilobytes at a time.
type tableFile struct {
	file vfs.File
	*bufio.Writer
}

const tableFileBuffer = 256 << 10

// Write see objstorage.Writable.
func (f *tableFile) Write(p []byte) error {
	_, err := f.Writer.Write(p)
	return err
}

// StartMetadataPortion see objstorage.Writable.
func (f *tableFile) StartMetadataPortion() error { return nil }

// Finish makes the file last.
func (f *tableFile) Finish() error {
	err := f.Flush()
	if err == nil {
		err = f.file.Sync()
	}
	return errors.Join(err, f.file.Close())
}

// Abort closes the file, which is removed then.
func (f *tableFile) Abort() { _ = f.file.Close() }

// mostSublevels is how many tables may lie above each other until they are
// merged, however far behind a feed is: each read looks into all of them.
const mostSublevels = 64

// write stores the run, all of it or nothing. A large one becomes a table of its
// own: the write-ahead log, the memtable and its flush would each handle every
// row once more.
func (s *Store) write(r *run) error {
	if r.size() < s.options.tableBytes {
		b := s.db.NewBatchWithSize(2*r.size() + 1<<10)
		err := r.writeTo(batchWriter{b})
		if err == nil {
			err = b.Commit(pebble.NoSync)
		}
		return errors.Join(err, b.Close())
	}
	// A table lasts as soon as it is taken in. What was committed before it must
	// not be lost by a crash that leaves the table.
	if err := s.db.LogData(nil, pebble.Sync); err != nil {
		return err
	}
	path := s.options.fs.PathJoin(s.dir, fmt.Sprintf("%s%d", runFiles, s.runs.Add(1)))
	file, err := s.options.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w := sstable.NewWriter(&tableFile{file: file, Writer: bufio.NewWriterSize(file, tableFileBuffer)}, s.tableOptions)
	err = errors.Join(r.writeTo(tableWriter{w}), w.Close())
	if err == nil {
		err = s.db.Ingest(context.Background(), []string{path}) // and removes the file
	}
	if err != nil {
		return errors.Join(err, s.options.fs.Remove(path))
	}
	s.pacer.hold(s.db.Metrics().Levels[0].Sublevels < mostSublevels)
	return nil
}
