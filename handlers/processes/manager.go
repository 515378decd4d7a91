package processes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/projections"
)

// manager is one process at work.
type manager struct {
	Definition
	journal  journal.Journal
	executor *commands.Executor
	log      *slog.Logger
	rows     *projections.Table[storedRow]
	byName   *projections.Index[storedRow]
	parked   *projections.Table[Parked]
	store    *projections.Consumer

	mu     sync.Mutex // one event, retry or skip at a time
	seen   uint64     // the last event that came by; the stored position is behind it
	passed int        // by so many events, which concerned no row
	closed bool
}

type storedRow struct {
	Key   string          `json:"key"`
	Names []string        `json:"names,omitempty"`
	State json.RawMessage `json:"state"`
}

// Parked is a row whose process could not handle an event. What concerns it
// waits; everything else goes on.
type Parked struct {
	Process   string       `json:"process"`
	Key       string       `json:"key"`
	Cause     events.Cause `json:"cause"`
	Sequences []uint64     `json:"sequences"` // the event that failed, and those known to wait behind it
}

// passedMost is how many events that concern nothing go by before the position
// is stored: what a restart reads again at most.
const passedMost = 1000

func newManager(d Definition, j journal.Journal, x *commands.Executor, store *projections.Store, log *slog.Logger) (*manager, error) {
	m := &manager{Definition: d, journal: j, executor: x, log: log}
	consumer := "process-" + d.Name
	m.byName = projections.NewIndex("name", func(row storedRow) []projections.Key {
		var out []projections.Key
		for _, n := range row.Names {
			out = append(out, projections.Key{n})
		}
		return out
	})
	m.rows = projections.NewTable(consumer, "rows", func(row storedRow) projections.Key { return projections.Key{row.Key} }, m.byName)
	m.parked = projections.NewTable(consumer, "parked", func(p Parked) projections.Key { return projections.Key{p.Key} })
	var err error
	m.store, err = store.Consumer(consumer, m.rows, m.parked)
	return m, err
}

// pass tells whether the event concerns no row, which most do, and lets it go by:
// handle is for the others. Where that cannot be told now, handle says why.
func (m *manager) pass(rec events.Record) (passed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() {
		if recover() != nil {
			passed = false // handle panics as well, where the router recovers it
		}
	}()
	if m.closed || m.passed+1 >= passedMost {
		return false
	}
	if rec.Sequence <= max(m.seen, m.store.Position()) {
		return true
	}
	if keys, err := m.keys(rec); err != nil || len(keys) > 0 {
		return false
	}
	m.seen, m.passed = rec.Sequence, m.passed+1
	return true
}

// handle has every row that the event concerns react to it, and stores the rows
// with the position. An error means: not now; the same event comes again.
func (m *manager) handle(ctx context.Context, rec events.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	if rec.Sequence <= max(m.seen, m.store.Position()) {
		return nil // handled before a restart, or by a retry
	}
	keys, err := m.keys(rec)
	if err != nil {
		return err
	}
	view, err := m.store.View()
	if err != nil {
		return err
	}
	defer view.Close()
	var c changes
	for _, key := range keys {
		p, parked, err := m.parked.Get(view, key)
		if err != nil {
			return err
		}
		if parked {
			p.Sequences = append(p.Sequences, rec.Sequence)
			c.park = append(c.park, p)
			continue
		}
		stored, _, err := m.rows.Get(view, key)
		if err != nil {
			return err
		}
		stored.Key = key
		row, over, err := m.advance(ctx, stored, rec)
		switch {
		case permanent(err):
			c.park = append(c.park, m.park(key, rec, err))
		case err != nil:
			return err
		case over:
			c.over = append(c.over, key)
		default:
			c.rows = append(c.rows, row)
		}
	}
	if err := m.store.Commit(rec.Sequence, func(b *projections.Batch) error { return m.write(b, c) }); err != nil {
		return err
	}
	m.seen, m.passed = rec.Sequence, 0
	return nil
}

var errClosed = errors.New("the process is closed")

// close waits for the event that is being handled and lets no further one in.
// (Watermill's Close may return while a message that it had just taken is still
// on its way to the handler.)
func (m *manager) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
}

// changes are what becomes of rows.
type changes struct {
	rows   []storedRow
	over   []string
	park   []Parked
	unpark []string
}

func (m *manager) write(b *projections.Batch, c changes) error {
	for _, row := range c.rows {
		if err := m.rows.Put(b, row); err != nil {
			return err
		}
	}
	for _, key := range c.over {
		if err := m.rows.Delete(b, key); err != nil {
			return err
		}
	}
	for _, p := range c.park {
		if err := m.parked.Put(b, p); err != nil {
			return err
		}
	}
	for _, key := range c.unpark {
		if err := m.parked.Delete(b, key); err != nil {
			return err
		}
	}
	return nil
}

// keys names the rows that the event concerns.
func (m *manager) keys(rec events.Record) ([]string, error) {
	var failed error
	keys := m.Keys(rec, func(name string) (out []string) {
		view, err := m.store.View()
		if err != nil {
			failed = errors.Join(failed, err)
			return nil
		}
		defer view.Close()
		for row, err := range m.rows.All(view, projections.Query[storedRow]{By: m.byName, Prefix: projections.Key{name}}) {
			if err != nil {
				failed = errors.Join(failed, err)
				break
			}
			out = append(out, row.Key)
		}
		return out
	})
	slices.Sort(keys)
	keys = slices.DeleteFunc(slices.Compact(keys), func(k string) bool { return k == "" })
	return keys, failed
}

// advance has the row react to the event and sends what follows. Everything
// sent has a derived id: an event that is handled again sends the same again.
func (m *manager) advance(ctx context.Context, stored storedRow, rec events.Record) (_ storedRow, over bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &brokenError{fmt.Sprintf("panic: %v\n%s", p, debug.Stack())}
		}
	}()
	row, err := m.decode(stored.State)
	if err != nil {
		return storedRow{}, false, &brokenError{err.Error()}
	}
	queue := row.React(rec)
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		id := events.CommandID(events.DeriveID(s.Account, events.CommandID(m.Name+"/"+stored.Key), fmt.Sprintf("%d/%s", rec.Sequence, s.Step)))
		_, err := s.execute(ctx, m.executor, commands.Origin{
			Account: s.Account, Actor: controlPlane, Correlation: cmp.Or(string(s.operation), rec.Correlation), Causation: rec.ID, TraceParent: rec.TraceParent,
			Command: events.CommandRef{ID: id, Digest: events.DigestOf([]byte(id))}, // the event and the step are the body
		})
		if refusal, ok := aggregates.AsRefusal(err); ok {
			if refusal.Code == "busy" {
				return storedRow{}, false, err
			}
			if s.guards {
				break
			}
			queue = append(queue, row.Refused(s, refusal)...)
			continue
		}
		if err != nil {
			return storedRow{}, false, fmt.Errorf("%s: %w", s.Step, err)
		}
	}
	state, err := json.Marshal(row)
	if err != nil {
		return storedRow{}, false, &brokenError{err.Error()}
	}
	return storedRow{Key: stored.Key, Names: row.Index(), State: state}, row.Over(), nil
}

// brokenError is what trying again does not mend.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return e.text }

func permanent(err error) bool {
	var broken *brokenError
	return errors.As(err, &broken) || errors.Is(err, journal.ErrChain) || errors.Is(err, journal.ErrProposal) ||
		errors.Is(err, events.ErrUnknownEvent) || errors.Is(err, events.ErrTooLarge)
}

func (m *manager) park(key string, rec events.Record, err error) Parked {
	m.log.Error("a process cannot handle an event; what it concerns is parked", "process", m.Name, "key", key, "sequence", rec.Sequence, "error", err)
	return Parked{Process: m.Name, Key: key, Sequences: []uint64{rec.Sequence},
		Cause: events.Cause{Code: "handler-failed", Text: err.Error(), Next: "handler retry, or handler skip"}}
}

func (m *manager) list() ([]Parked, error) {
	view, err := m.store.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	var out []Parked
	for p, err := range m.parked.All(view, projections.Query[Parked]{}) {
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// errReached ends a follow at the position that it was to reach.
var errReached = errors.New("reached")

// resume handles what a parked row has missed. The events are read from the
// journal again, not from the list of those that wait: a row that failed half
// way has sent commands whose events it could not be found by.
func (m *manager) resume(ctx context.Context, key string, skip bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	view, err := m.store.View()
	if err != nil {
		return err
	}
	defer view.Close()
	p, parked, err := m.parked.Get(view, key)
	if err != nil {
		return err
	}
	if !parked {
		return aggregates.RefuseAs(aggregates.NotFound, "not-parked", "%s has nothing parked for %s", m.Name, key)
	}
	row, _, err := m.rows.Get(view, key)
	if err != nil {
		return err
	}
	row.Key = key
	over := false
	var again *Parked
	// Also what has come by without concerning the row: it may concern it now,
	// and does not come again.
	position := max(m.seen, m.store.Position())
	err = m.journal.Follow(ctx, p.Sequences[0]-1, func(rec events.Record) error {
		concerned := slices.Contains(m.Keys(rec, func(name string) []string {
			if slices.Contains(row.Names, name) {
				return []string{key}
			}
			return nil
		}), key)
		if concerned && again == nil && !(skip && rec.Sequence == p.Sequences[0]) {
			next, gone, err := m.advance(ctx, row, rec)
			switch {
			case permanent(err):
				failed := m.park(key, rec, err)
				again = &failed
			case err != nil:
				return err
			case gone:
				row, over = storedRow{Key: key}, true
			default:
				row, over = next, false
			}
		} else if concerned && again != nil {
			again.Sequences = append(again.Sequences, rec.Sequence)
		}
		if rec.Sequence >= position {
			return errReached
		}
		return nil
	})
	if !errors.Is(err, errReached) {
		return err
	}
	var c changes
	switch {
	case over:
		c.over = []string{key}
	case row.State != nil:
		c.rows = []storedRow{row}
	}
	if again != nil {
		c.park = []Parked{*again}
	} else {
		c.unpark = []string{key}
	}
	write := func(b *projections.Batch) error { return m.write(b, c) }
	if position > m.store.Position() {
		return m.store.Commit(position, write) // or a restart would give the row once more what it has reacted to now
	}
	return m.store.Amend(write)
}
