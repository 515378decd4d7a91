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
	sorted   []ending // once sorted
	tables   map[runTable]uint16
	heads    [][]byte // of the tables, by number: space and name, as keys have them
	mark     []byte   // key of the record that holds the position
	position []byte   // its value
}

// entry is one row as one event left it.
type entry struct {
	order  uint64 // of its key's bytes after the table's name, so that few keys are compared
	seq    uint64 // of the event; 0: it has no history
	at     uint32 // of its key in the arena; the value follows
	key    uint32 // length
	value  uint32 // length, with the byte that history has before it: 1, or 0 for a deletion
	before uint32 // which entry has the key's value before, counted from 1; 0: none, or it is not known
	table  uint16
	passed bool // once sorted: a later entry names this one
}

// ending is an entry that none later names. Only these are sorted: most
// entries of a feed that is behind are of the same few rows.
type ending struct {
	order uint64
	entry uint32
	rank  uint16 // of the table
	same  bool   // the ending before has this key too
}

type runTable struct {
	space uint32
	name  string
}

// entryBytes is about what an entry takes beside its key and value.
const entryBytes = 48

func newRun(bytes int) *run {
	return &run{arena: make([]byte, 0, bytes), tables: map[runTable]uint16{}}
}

// reset empties the run for the next commit.
func (r *run) reset() {
	clear(r.tables)
	*r = run{arena: r.arena[:0], entries: r.entries[:0], sorted: r.sorted[:0], tables: r.tables, heads: r.heads[:0]}
}

// size is about how many bytes the run takes.
func (r *run) size() int { return len(r.arena) + len(r.entries)*entryBytes }

// add appends a row, or its deletion if value is nil, and gives it as it lies in the run. key has its head;
// before is what entry.before says.
func (r *run) add(t tableID, space uint32, seq uint64, key, value []byte, before uint32) []byte {
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
		value: uint32(1 + len(value)), before: before, table: table})
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

// sort brings the endings into the order of their keys, later ones first as history has them.
func (r *run) sort() {
	order := make([]int, len(r.heads))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare(r.heads[a], r.heads[b]) })
	rank := make([]uint16, len(order))
	for i, table := range order {
		rank[table] = uint16(i)
	}
	for i := range r.entries {
		if b := r.entries[i].before; b > 0 {
			r.entries[b-1].passed = true
		}
	}
	for i := range r.entries {
		if e := &r.entries[i]; !e.passed {
			r.sorted = append(r.sorted, ending{order: e.order, entry: uint32(i), rank: rank[e.table]})
		}
	}
	slices.SortFunc(r.sorted, func(a, b ending) int {
		switch {
		case a.rank != b.rank:
			return int(a.rank) - int(b.rank)
		case a.order != b.order:
			return cmp.Compare(a.order, b.order)
		}
		if c := bytes.Compare(r.keyOf(&r.entries[a.entry])[1:], r.keyOf(&r.entries[b.entry])[1:]); c != 0 {
			return c
		}
		return cmp.Compare(b.entry, a.entry)
	})
	for i := range r.sorted {
		if i > 0 {
			last, this := &r.sorted[i-1], &r.sorted[i]
			this.same = last.order == this.order && last.rank == this.rank &&
				bytes.Equal(r.keyOf(&r.entries[last.entry]), r.keyOf(&r.entries[this.entry]))
		}
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
	for _, x := range r.sorted {
		if x.same {
			continue
		}
		e := &r.entries[x.entry]
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
	written := uint64(0) // the event whose row of the key was written last
	for _, x := range r.sorted {
		if !x.same {
			written = 0
		}
		key = append(key[:0], r.keyOf(&r.entries[x.entry])...)
		key[0] = areaHistory
		own := len(key)
		for n := x.entry + 1; n > 0; n = r.entries[n-1].before {
			e := &r.entries[n-1]
			if e.seq == written { // the same event changed the row again, or it has no history
				continue
			}
			written = e.seq
			key = appendSequence(key[:own], e.seq)
			if err := w.set(key, r.valueOf(e)); err != nil {
				return err
			}
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
