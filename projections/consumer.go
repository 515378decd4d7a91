package projections

import (
	"encoding/json"
	"fmt"
	"sync"
)

// Consumer is a handler's own rows and its position in the journal, written
// together: after a crash the handler goes on after Position, and its rows are
// those of that position. Its rows have no history. Its methods may be called
// from many goroutines.
type Consumer struct {
	store  *Store
	target target

	mu       sync.Mutex
	record   spaceRecord
	position uint64
}

// Consumer opens the rows of a handler; name is a token and never changes. The
// tables are those made with NewTable(name, …). One store gives each consumer
// once: two holders would each believe in a position of their own.
func (s *Store) Consumer(name string, tables ...Described) (*Consumer, error) {
	declared, err := tableNames(name, tables)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.consumers[name] {
		return nil, fail(CodeInUse, nil, "the rows of %s are in use", name)
	}
	record, ok, err := readRecord(s.db, metaKey(metaConsumer, name))
	if err != nil {
		return nil, err
	}
	if !ok {
		b := s.db.NewIndexedBatch()
		defer b.Close()
		if record.Space, err = newSpace(b); err != nil {
			return nil, err
		}
		record.Tables = declared
		if err := writeRecord(b, metaKey(metaConsumer, name), record); err != nil {
			return nil, err
		}
		if err := b.Commit(nil); err != nil {
			return nil, err
		}
	}
	s.consumers[name] = true
	return &Consumer{
		store: s, record: record, position: record.Position,
		target: target{name: name, space: record.Space, tables: setOf(declared)},
	}, nil
}

// Position is the sequence of the last event that the rows account for.
func (c *Consumer) Position() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.position
}

// Commit stores the rows that write makes, and the position, or neither if
// write fails. A sequence that is not after Position is CodeOutOfOrder: the
// event was handled before. A later one than the next is well: a handler need
// not commit for events that do not concern it.
func (c *Consumer) Commit(seq uint64, write func(*Batch) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seq <= c.position {
		return fail(CodeOutOfOrder, nil, "%s is at position %d already, event %d cannot be committed", c.target.name, c.position, seq)
	}
	t := newTxn(c.store, newRun(0), newRowCache(), func() error { return nil })
	if err := c.fill(t, seq, write); err != nil {
		if e := t.discard(); e != nil {
			return fmt.Errorf("%w (and the batch was not closed: %v)", err, e)
		}
		return err
	}
	if err := t.commit(); err != nil {
		return fmt.Errorf("commit rows of %s at position %d: %w", c.target.name, seq, err)
	}
	c.position = seq
	return nil
}

func (c *Consumer) fill(t *txn, seq uint64, write func(*Batch) error) error {
	if err := write(&Batch{t: t, target: c.target, seq: seq}); err != nil {
		return err
	}
	record := c.record
	record.Position = seq
	var err error
	t.run.mark = metaKey(metaConsumer, c.target.name)
	t.run.position, err = json.Marshal(record)
	return err
}

// View reads the rows as they are now. The caller closes it.
func (c *Consumer) View() (*View, error) {
	snapshot := c.store.db.NewSnapshot()
	record, _, err := readRecord(snapshot, metaKey(metaConsumer, c.target.name))
	if err != nil {
		snapshot.Close()
		return nil, err
	}
	s := served{space: c.target.space, tables: c.target.tables}
	return &View{snapshot: snapshot, position: record.Position, spaces: map[string]viewSpace{c.target.name: {served: s}}}, nil
}

// Amend stores rows that change without an event: somebody decided about them by
// hand. The position stays.
func (c *Consumer) Amend(write func(*Batch) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := newTxn(c.store, newRun(0), newRowCache(), func() error { return nil })
	if err := c.fill(t, c.position, write); err != nil {
		if e := t.discard(); e != nil {
			return fmt.Errorf("%w (and the batch was not closed: %v)", err, e)
		}
		return err
	}
	if err := t.commit(); err != nil {
		return fmt.Errorf("amend rows of %s at position %d: %w", c.target.name, c.position, err)
	}
	return nil
}
