package journal

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"sort"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
)

// Memory is the journal's twin in memory, for tests: the same bytes, the same
// answers, nothing kept. Its further methods are faults to test against.
type Memory struct {
	codec
	clock func() time.Time

	mu        sync.Mutex
	log       []delivery          // index is sequence-1
	removed   map[uint64]bool     // holes made by Remove
	heads     map[string][]uint64 // sequences by subject
	used      uint64
	limit     uint64
	finishing func(Proposal) bool
	vanished  bool
	loseAcks  int
	cut       bool
	changed   chan struct{} // closed and replaced at every change
}

var _ Journal = (*Memory)(nil)

// NewMemory makes an empty journal without a limit. The clock gives the time of storing.
func NewMemory(registry *events.Registry, clock func() time.Time) *Memory {
	return &Memory{
		codec:     codec{registry: registry, source: sourcePrefix + newID()},
		clock:     clock,
		removed:   map[uint64]bool{},
		heads:     map[string][]uint64{},
		finishing: func(Proposal) bool { return false },
		changed:   make(chan struct{}),
	}
}

// change runs f under the lock and wakes who waits.
func (m *Memory) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

// SetLimit bounds the journal, in bytes; 0 is no limit. The proposals for which
// finishing is true may use the last tenth.
func (m *Memory) SetLimit(limit uint64, finishing func(Proposal) bool) {
	m.change(func() { m.limit, m.finishing = limit, finishing })
}

// LoseAcks makes the next n appends store their event and lose the answer; the
// journal then finds out by itself.
func (m *Memory) LoseAcks(n int) { m.change(func() { m.loseAcks = n }) }

// Cut loses the connection: what is sent still arrives, no answer comes back.
// Heal restores it.
func (m *Memory) Cut() { m.change(func() { m.cut = true }) }

// Heal ends Cut.
func (m *Memory) Heal() { m.change(func() { m.cut = false }) }

// Remove makes a hole, as a store does that loses an event.
func (m *Memory) Remove(sequence uint64) {
	m.change(func() {
		subject := m.log[sequence-1].subject
		m.removed[sequence] = true
		m.heads[subject] = without(m.heads[subject], sequence)
	})
}

func without(sequences []uint64, sequence uint64) []uint64 {
	var out []uint64
	for _, s := range sequences {
		if s != sequence {
			out = append(out, s)
		}
	}
	return out
}

// Vanish drops everything, as a deleted stream does.
func (m *Memory) Vanish() { m.change(func() { m.vanished = true }) }

// Put stores a message as it is, past every check.
func (m *Memory) Put(subject string, header nats.Header, payload []byte) {
	m.change(func() {
		m.store(message{subject, maps.Clone(header), bytes.Clone(payload)})
	})
}

// Message gives a stored message, as a reader beside the journal sees it.
func (m *Memory) Message(sequence uint64) (subject string, header nats.Header, payload []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.copy(sequence)
	return d.subject, maps.Clone(d.header), d.payload
}

// store appends a message; the lock is held.
func (m *Memory) store(msg message) delivery {
	at := m.clock().UTC()
	if n := len(m.log); n > 0 && at.Before(m.log[n-1].stored) {
		at = m.log[n-1].stored
	}
	d := delivery{msg, uint64(len(m.log)) + 1, at}
	m.log = append(m.log, d)
	m.heads[msg.subject] = append(m.heads[msg.subject], d.sequence)
	m.used += msg.storedSize()
	return d
}

// online waits until the connection is there and takes the lock; the caller
// gives it back when err is nil.
func (m *Memory) online(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.mu.Lock()
		if m.vanished {
			m.mu.Unlock()
			return ErrVanished
		}
		if !m.cut {
			return nil
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// Append stores one event; see Journal.
func (m *Memory) Append(ctx context.Context, p Proposal) (events.Record, error) {
	msg, r, err := m.encode(p)
	if err != nil {
		return events.Record{}, err
	}
	if err := ctx.Err(); err != nil {
		return events.Record{}, err
	}
	var sequence uint64
	var lost bool
	m.change(func() {
		lost = m.cut || m.loseAcks > 0
		sequence, err = m.accept(p, msg)
		if m.loseAcks > 0 && sequence > 0 {
			m.loseAcks--
		}
	})
	if sequence > 0 && !lost {
		r.Sequence = sequence
		return r, nil
	}
	// Refused, or no answer came: look.
	if waiting := m.online(ctx); waiting != nil {
		if lost && waiting != ErrVanished {
			return events.Record{}, fmt.Errorf("%w: %w", ErrAmbiguous, waiting)
		}
		return events.Record{}, waiting
	}
	defer m.mu.Unlock()
	var head events.Head
	for _, s := range m.heads[p.Aggregate.Subject()] {
		found, _, outlineErr := m.envelope(m.log[s-1].message)
		if outlineErr != nil {
			return events.Record{}, outlineErr
		}
		found.Sequence = s
		head = found.Head()
		if s > p.Expect.Sequence && found.ID == p.ID {
			found, err = m.decode(m.log[s-1].message)
			found.Sequence = s
			return found, err
		}
	}
	if head.Sequence != p.Expect.Sequence {
		return events.Record{}, &ConflictError{Aggregate: p.Aggregate, Expected: p.Expect, Actual: head}
	}
	return events.Record{}, err
}

// accept stores the message if it may be; the lock is held.
func (m *Memory) accept(p Proposal, msg message) (uint64, error) {
	if m.vanished {
		return 0, ErrVanished
	}
	if finishing := m.finishing(p); !admits(m.used, m.limit, msg.storedSize(), finishing) {
		return 0, &FullError{Type: p.Event.EventType(), Finishing: finishing, Used: m.used, Limit: m.limit}
	}
	if m.last(p.Aggregate) != p.Expect.Sequence {
		return 0, &ConflictError{Aggregate: p.Aggregate, Expected: p.Expect}
	}
	return m.store(msg).sequence, nil
}

func (m *Memory) last(a events.Aggregate) uint64 {
	sequences := m.heads[a.Subject()]
	if len(sequences) == 0 {
		return 0
	}
	return sequences[len(sequences)-1]
}

// Load gives the aggregate's events after the given head; see Journal.
func (m *Memory) Load(ctx context.Context, a events.Aggregate, after events.Head) ([]events.Record, error) {
	if err := m.online(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if last := m.last(a); last <= after.Sequence {
		return nil, endsAt(a, after, last)
	}
	c := chain{codec: m.codec, aggregate: a, head: after}
	for _, s := range m.heads[a.Subject()] {
		if s > after.Sequence {
			if err := c.add(m.copy(s)); err != nil {
				return nil, fmt.Errorf("load %s: %w", nameOf(a), err)
			}
		}
	}
	return c.records, nil
}

// copy keeps the stored payload out of the callers' reach.
func (m *Memory) copy(sequence uint64) delivery {
	d := m.log[sequence-1]
	d.payload = bytes.Clone(d.payload)
	return d
}

// Last gives the sequence of the aggregate's last event; 0 without any.
func (m *Memory) Last(ctx context.Context, a events.Aggregate) (uint64, error) {
	if err := m.online(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	return m.last(a), nil
}

// Tip gives the sequence of the journal's last event.
func (m *Memory) Tip(ctx context.Context) (uint64, error) {
	if err := m.online(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	return uint64(len(m.log)), nil
}

// Follow calls each with every event after the position; see Journal.
func (m *Memory) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	for position := after; ; {
		d, changed, err := m.next(ctx, position)
		if err != nil {
			return err
		}
		if d.sequence == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		r, err := m.decode(d.message)
		if err != nil {
			return fmt.Errorf("follow the journal: sequence %d: %w", d.sequence, err)
		}
		r.Sequence, r.Stored = d.sequence, d.stored
		if err := each(r); err != nil {
			return err
		}
		position = d.sequence
	}
}

// next gives the event after the position, or what to wait for.
func (m *Memory) next(ctx context.Context, position uint64) (delivery, <-chan struct{}, error) {
	if err := m.online(ctx); err != nil {
		return delivery{}, nil, err
	}
	defer m.mu.Unlock()
	tip := uint64(len(m.log))
	switch {
	case tip < position:
		return delivery{}, nil, &GapError{Missing: position}
	case tip == position:
		return delivery{}, m.changed, nil
	case m.removed[position+1]:
		found := position + 2
		for m.removed[found] {
			found++
		}
		if found > tip {
			found = 0
		}
		return delivery{}, nil, &GapError{Missing: position + 1, Found: found}
	}
	return m.copy(position + 1), nil, nil
}

// At gives the sequence of the last event stored not later than t; 0 if none.
func (m *Memory) At(ctx context.Context, t time.Time) (uint64, error) {
	if err := m.online(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	return uint64(sort.Search(len(m.log), func(i int) bool { return m.log[i].stored.After(t) })), nil
}

// Usage tells how full the journal is, in bytes.
func (m *Memory) Usage(ctx context.Context) (used, limit uint64, err error) {
	if err := m.online(ctx); err != nil {
		return 0, 0, err
	}
	defer m.mu.Unlock()
	return m.used, m.limit, nil
}
