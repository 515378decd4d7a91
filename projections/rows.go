package projections

// rowCache holds current rows by key, those that were used last: they are read
// back without asking Pebble. Rows move from one generation to the next when
// they are used; when the younger one is full, what is left in the older is
// dropped. A row that is not stored yet is never dropped, as a generation is at
// least one run and every run but the last is stored when one begins.
type rowCache struct {
	young, old map[string]*cachedRow
	bytes      int        // of the young ones
	known      *knownKeys // nil: all that Pebble has may be there
}

// cachedRow is a current row.
type cachedRow struct {
	value []byte // nil: there is none
	entry uint32 // that has the value in the run that is being filled, counted from 1; 0: it is not in the run
}

// cachedRowBytes is about what a cached row takes beside key and value.
const cachedRowBytes = 128

func newRowCache() *rowCache { return &rowCache{young: map[string]*cachedRow{}} }

// find gives the row if it is known.
func (c *rowCache) find(key []byte) (*cachedRow, bool) {
	if r, ok := c.young[string(key)]; ok {
		return r, true
	}
	r, ok := c.old[string(key)]
	if ok {
		c.add(key, r)
	}
	return r, ok
}

// add makes a row known.
func (c *rowCache) add(key []byte, r *cachedRow) {
	c.young[string(key)] = r
	c.bytes += len(key) + len(r.value) + cachedRowBytes
}

// age begins a new generation if the young one has so many bytes.
func (c *rowCache) age(limit int) {
	if c.bytes >= limit {
		c.old, c.young, c.bytes = c.young, make(map[string]*cachedRow, len(c.young)/2), 0
	}
}
