package projections

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tombolo-vdc/tombolo/events"
)

// View reads rows at one position, whatever is folded meanwhile. It must be
// closed, and soon: it keeps old data from being cleared away. Its methods may
// be called from many goroutines.
type View struct {
	snapshot *pebble.Snapshot
	position uint64
	spaces   map[string]viewSpace

	mu    sync.Mutex
	point *pebble.Iterator // over history, for single rows; made when first needed
}

type viewSpace struct {
	served
	history bool // rows lie at a later position than the view: read them from history
}

// Position is the sequence of the last event that the view shows.
func (v *View) Position() uint64 { return v.position }

// Close ends the view.
func (v *View) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var err error
	if v.point != nil {
		err = v.point.Close()
		v.point = nil
	}
	return errors.Join(err, v.snapshot.Close())
}

func (v *View) space(t tableID) (viewSpace, error) {
	s, ok := v.spaces[t.projection]
	switch {
	case !ok:
		return s, fail(CodeUnknown, nil, "%s is not in this view", t.projection)
	case s.tables == nil:
		return s, fail(CodeBuilding, nil, "%s is being built for the first time", t.projection)
	case !s.tables[t.name]:
		return s, fail(CodeBuilding, nil, "%s is being built with its new table %s", t.projection, t.name)
	}
	return s, nil
}

func (v *View) get(t tableID, key []byte) ([]byte, error) {
	s, err := v.space(t)
	if err != nil {
		return nil, err
	}
	if !s.history {
		setHead(key, areaCurrent, s.space)
		return read(v.snapshot, key)
	}
	setHead(key, areaHistory, s.space)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.point == nil {
		if v.point, err = v.snapshot.NewIter(nil); err != nil {
			return nil, err
		}
	}
	if !v.point.SeekPrefixGE(appendSequence(key, v.position)) {
		return nil, v.point.Error()
	}
	value, err := v.point.ValueAndErr()
	if err != nil || len(value) == 0 || value[0] == 0 {
		return nil, err
	}
	return bytes.Clone(value[1:]), nil
}

func (v *View) open(t tableID, lower, upper []byte) (*cursor, error) {
	s, err := v.space(t)
	if err != nil {
		return nil, err
	}
	return v.openSpace(s, lower, upper)
}

func (v *View) openSpace(s viewSpace, lower, upper []byte) (*cursor, error) {
	area := byte(areaCurrent)
	if s.history {
		area = areaHistory
	}
	setHead(lower, area, s.space)
	setHead(upper, area, s.space)
	it, err := v.snapshot.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	return &cursor{it: it, history: s.history, asOf: v.position}, nil
}

// Digest is a digest over all rows of a projection, index entries included, at
// the view's position. Two stores that folded the same events with the same
// shape have the same digest at the same position, and a view as of a position
// has the digest that was current then. Nothing local enters it.
func (v *View) Digest(projection string) (events.Digest, error) {
	s, ok := v.spaces[projection]
	if !ok {
		return "", fail(CodeUnknown, nil, "%s is not in this view", projection)
	}
	if s.tables == nil {
		return "", fail(CodeBuilding, nil, "%s is being built for the first time", projection)
	}
	h := sha256.New()
	var number []byte
	add := func(b []byte) {
		number = binary.AppendUvarint(number[:0], uint64(len(b)))
		h.Write(number)
		h.Write(b)
	}
	add([]byte(projection))
	h.Write(binary.AppendUvarint(nil, uint64(s.shape)))
	c, err := v.openSpace(s, make([]byte, headLen), append(make([]byte, headLen), 0xff))
	if err != nil {
		return "", err
	}
	for c.next() {
		add(c.key())
		add(c.value())
	}
	if err := errors.Join(c.err(), c.close()); err != nil {
		return "", err
	}
	return events.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), nil
}

// cursor goes through rows in the order of their keys, one version of each.
type cursor struct {
	it      *pebble.Iterator
	history bool
	asOf    uint64
	started bool
	seek    []byte
	failed  error
}

// next moves to the next row, the first one at first.
func (c *cursor) next() bool {
	switch {
	case !c.started:
		c.started = true
		c.it.First()
	case c.history:
		c.it.NextPrefix() // past the older versions, without reading them
	default:
		c.it.Next()
	}
	if !c.history {
		return c.it.Valid()
	}
	for c.it.Valid() {
		key := c.it.Key()
		n := split(key)
		seq, ok := sequenceOf(key[n:])
		if !ok {
			c.failed = errors.New("a history key has no sequence")
			return false
		}
		if seq > c.asOf {
			// The next key from here on is the version wanted, or another row.
			c.seek = appendSequence(append(c.seek[:0], key[:n]...), c.asOf)
			c.it.SeekGE(c.seek)
			continue
		}
		if v := c.it.Value(); len(v) > 0 && v[0] != 0 {
			return true
		}
		c.it.NextPrefix()
	}
	return false
}

// key is the row's key without its head and sequence; valid until next.
func (c *cursor) key() []byte {
	k := c.it.Key()
	return k[headLen:split(k)]
}

// value is the row's value; valid until next.
func (c *cursor) value() []byte {
	if c.history {
		return c.it.Value()[1:]
	}
	return c.it.Value()
}

func (c *cursor) err() error   { return errors.Join(c.failed, c.it.Error()) }
func (c *cursor) close() error { return c.it.Close() }
