package projections

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tombolo-vdc/tombolo/events"
)

// The store's own records:
//
//	m spaces              → the last space number given out (8 bytes, big endian)
//	m feed                → the feed's position (8 bytes, big endian) and the digest of the event there
//	                        (its text; missing where an earlier program wrote it)
//	m projection <name>   → spaceRecord of what reads are served from
//	m building <name>     → spaceRecord of what is being built beside it
//	m consumer <name>     → spaceRecord of a consumer
const (
	metaSpaces     = "spaces"
	metaFeed       = "feed"
	metaProjection = "projection"
	metaBuilding   = "building"
	metaConsumer   = "consumer"
)

// spaceRecord says what a space holds.
type spaceRecord struct {
	Space  uint32   `json:"space"`
	Shape  int      `json:"shape,omitempty"`
	Tables []string `json:"tables"`
	// Frozen: a projection's rows have another shape than the program folds, and
	// stand still at Position until the new ones are built.
	Frozen bool `json:"frozen,omitempty"`
	// Position of the rows, where the feed's is not theirs.
	Position uint64 `json:"position,omitempty"`
}

func (r spaceRecord) sameShape(shape int, tables []string) bool {
	return r.Shape == shape && slices.Equal(r.Tables, tables)
}

func setOf(tables []string) map[string]bool {
	set := make(map[string]bool, len(tables))
	for _, t := range tables {
		set[t] = true
	}
	return set
}

// tableNames gives the sorted names that the tables declare, and checks that
// they belong to their owner.
func tableNames(owner string, tables []Described) ([]string, error) {
	set := map[string]bool{}
	for _, t := range tables {
		for _, id := range t.describe() {
			if id.projection != owner {
				return nil, fail(CodeUndeclared, nil, "%s declares table %s of %s", owner, id.name, id.projection)
			}
			if set[id.name] {
				return nil, fail(CodeUndeclared, nil, "%s declares table %s twice", owner, id.name)
			}
			set[id.name] = true
		}
	}
	return slices.Sorted(maps.Keys(set)), nil
}

func readNumber(from pebble.Reader, key []byte) (uint64, error) {
	v, err := read(from, key)
	if err != nil || v == nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("the store's record %q has %d bytes, not 8", key, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// folded is the last event that a feed has folded.
type folded struct {
	position uint64
	digest   events.Digest // empty where it is not known
}

// markFeed gives the record that says how far the feed is.
func markFeed(last events.Record) (key, value []byte, err error) {
	return metaKey(metaFeed), append(binary.BigEndian.AppendUint64(nil, last.Sequence), last.Digest...), nil
}

// readFolded reads what markFeed gave.
func readFolded(from pebble.Reader) (folded, error) {
	v, err := read(from, metaKey(metaFeed))
	if err != nil || v == nil {
		return folded{}, err
	}
	if len(v) < 8 {
		return folded{}, fmt.Errorf("the store's record of its feed has %d bytes, not 8 or more", len(v))
	}
	last := folded{binary.BigEndian.Uint64(v), events.Digest(v[8:])}
	if last.digest != "" && !last.digest.Valid() {
		return folded{}, fmt.Errorf("the store's record of its feed has %q for a digest", last.digest)
	}
	return last, nil
}

func writeNumber(b *pebble.Batch, key []byte, n uint64) error {
	return b.Set(key, binary.BigEndian.AppendUint64(nil, n), nil)
}

func readRecord(from pebble.Reader, key []byte) (r spaceRecord, ok bool, err error) {
	v, err := read(from, key)
	if err != nil || v == nil {
		return r, false, err
	}
	if err := json.Unmarshal(v, &r); err != nil {
		return r, false, fmt.Errorf("the store's record %q: %w", key, err)
	}
	return r, true, nil
}

func writeRecord(b *pebble.Batch, key []byte, r spaceRecord) error {
	v, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return b.Set(key, v, nil)
}

// newSpace takes an unused space number; b must be an indexed batch, and the caller holds s.mu
// until it is committed.
func newSpace(b *pebble.Batch) (uint32, error) {
	last, err := readNumber(b, metaKey(metaSpaces))
	if err != nil {
		return 0, err
	}
	if last >= maxSpace {
		return 0, fmt.Errorf("all %d spaces are used up", maxSpace)
	}
	return uint32(last + 1), writeNumber(b, metaKey(metaSpaces), last+1)
}

// dropSpace deletes all rows of a space, now and ever.
func dropSpace(b *pebble.Batch, space uint32) error {
	for _, area := range []byte{areaCurrent, areaHistory} {
		lower := appendHead(nil, area, space)
		if err := b.DeleteRange(lower, append(appendHead(nil, area, space), 0xff), nil); err != nil {
			return err
		}
	}
	return nil
}

// recordNames lists the second parts of all records of a kind.
func recordNames(from pebble.Reader, kind string) ([]string, error) {
	body := appendPart([]byte{areaMeta}, kind)
	it, err := from.NewIter(&pebble.IterOptions{
		LowerBound: append(slices.Clone(body), partStart),
		UpperBound: append(slices.Clone(body), pastParts),
	})
	if err != nil {
		return nil, err
	}
	var out []string
	for it.First(); it.Valid(); it.Next() {
		out = append(out, string(it.Key()[len(body)+1:len(it.Key())-1])) // names are tokens: nothing is escaped
	}
	if err := it.Error(); err != nil {
		it.Close()
		return nil, err
	}
	return out, it.Close()
}
