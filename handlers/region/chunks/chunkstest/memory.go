// Package chunkstest holds what tests of chunk stores share: the conformance suite (Run) and a twin in memory.
package chunkstest

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Memory is a chunk store without a disk, for tests. It keeps the contract with other means than the real one: one
// lock, and a set of ids for each session.
type Memory struct {
	mu       sync.Mutex
	closed   bool
	records  map[chunks.ID]chunks.Record
	indexes  map[chunks.Digest][]byte
	roots    map[string]chunks.Root
	holds    map[string]chunks.Hold
	sessions map[*memorySession]bool
	acquired map[*chunks.DiskIndex]chunks.Digest
}

var _ chunks.Store = (*Memory)(nil)

// NewMemory makes an empty store.
func NewMemory() *Memory {
	return &Memory{
		records: map[chunks.ID]chunks.Record{}, indexes: map[chunks.Digest][]byte{},
		roots: map[string]chunks.Root{}, holds: map[string]chunks.Hold{},
		sessions: map[*memorySession]bool{}, acquired: map[*chunks.DiskIndex]chunks.Digest{},
	}
}

// lock gives the unlocking, or why the store does not answer.
func (m *Memory) lock(ctx context.Context) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, chunks.Errorf(chunks.StoreClosed, "the store is closed")
	}
	return m.mu.Unlock, nil
}

// Damage flips a bit of a stored chunk.
func (m *Memory) Damage(id chunks.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rec := m.records[id]
	rec.Payload = bytes.Clone(rec.Payload)
	rec.Payload[len(rec.Payload)/2] ^= 1
	m.records[id] = rec
}

// Has implements chunks.Reader.
func (m *Memory) Has(ctx context.Context, ids []chunks.ID) ([]bool, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := make([]bool, len(ids))
	for i, id := range ids {
		_, ok := m.records[id]
		out[i] = ok || id.IsZero()
	}
	return out, nil
}

// ReadRecord implements chunks.Reader.
func (m *Memory) ReadRecord(ctx context.Context, id chunks.ID, buf []byte) (chunks.Record, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return chunks.Record{}, err
	}
	defer unlock()
	rec, ok := m.records[id]
	if !ok {
		return chunks.Record{}, chunks.Errorf(chunks.ChunkMissing, "chunk %s", id)
	}
	rec.Payload = append(buf[:0], rec.Payload...)
	return rec, nil
}

func (m *Memory) index(d chunks.Digest) (*chunks.DiskIndex, error) {
	if _, err := chunks.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	b, ok := m.indexes[d]
	if !ok {
		return nil, chunks.Errorf(chunks.IndexMissing, "disk index %s", d)
	}
	x, _, err := chunks.DecodeIndex(bytes.NewReader(b))
	return x, err
}

// Index implements chunks.Reader.
func (m *Memory) Index(ctx context.Context, d chunks.Digest) (*chunks.DiskIndex, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.index(d)
}

// Acquire implements chunks.Reader.
func (m *Memory) Acquire(ctx context.Context, d chunks.Digest) (*chunks.DiskIndex, func(), error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	x, err := m.index(d)
	if err != nil {
		return nil, nil, err
	}
	m.acquired[x] = d
	return x, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.acquired, x)
	}, nil
}

// Roots implements chunks.Reader.
func (m *Memory) Roots(ctx context.Context) ([]chunks.Root, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return slices.SortedFunc(maps.Values(m.roots), func(a, b chunks.Root) int { return cmp.Compare(a.Name, b.Name) }), nil
}

// Holds implements chunks.Reader.
func (m *Memory) Holds(ctx context.Context) ([]chunks.Hold, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return slices.SortedFunc(maps.Values(m.holds), func(a, b chunks.Hold) int { return cmp.Compare(a.Owner, b.Owner) }), nil
}

// List implements chunks.Reader.
func (m *Memory) List(ctx context.Context, each func([]chunks.ID) error) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	ids := slices.Collect(maps.Keys(m.records))
	unlock()
	for part := range slices.Chunk(ids, 100) {
		if err := each(part); err != nil {
			return err
		}
	}
	return nil
}

// Stats implements chunks.Reader.
func (m *Memory) Stats(ctx context.Context) (chunks.Stats, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return chunks.Stats{}, err
	}
	defer unlock()
	out := chunks.Stats{Roots: len(m.roots), Holds: len(m.holds), Chunks: len(m.records)}
	for _, rec := range m.records {
		out.StoredBytes += int64(rec.Size())
	}
	for _, r := range m.roots {
		for _, d := range r.Indexes {
			x, err := m.index(d)
			if err != nil {
				return chunks.Stats{}, err
			}
			out.LogicalBytes += x.Size()
		}
	}
	return out, nil
}

// Hold implements chunks.Writer.
func (m *Memory) Hold(ctx context.Context, owner string, until time.Time) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if owner == "" || until.IsZero() {
		return chunks.Errorf(chunks.HoldInvalid, "a hold wants an owner and an end")
	}
	h := m.holds[owner]
	h.Owner, h.Until = owner, until
	m.holds[owner] = h
	return nil
}

// Release implements chunks.Writer.
func (m *Memory) Release(ctx context.Context, owner string) (bool, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	_, existed := m.holds[owner]
	delete(m.holds, owner)
	return existed, nil
}

// Publish implements chunks.Writer.
func (m *Memory) Publish(ctx context.Context, r chunks.Root) error {
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if r.Name == "" || r.Owner == "" || len(r.Indexes) == 0 {
		return chunks.Errorf(chunks.RootInvalid, "a root wants a name, an owner and at least one disk")
	}
	for _, d := range r.Indexes {
		x, err := m.index(d)
		if err != nil {
			return err
		}
		for _, id := range x.DataIDs() {
			if _, ok := m.records[id]; !ok {
				return chunks.Errorf(chunks.ChunkMissing, "chunk %s", id)
			}
		}
	}
	if old, ok := m.roots[r.Name]; ok && (old.Owner != r.Owner || !slices.Equal(old.Indexes, r.Indexes)) {
		return chunks.Errorf(chunks.RootConflict, "%q", r.Name)
	}
	r.Indexes = slices.Clone(r.Indexes)
	m.roots[r.Name] = r
	return nil
}

// Unpublish implements chunks.Writer.
func (m *Memory) Unpublish(ctx context.Context, name string) (bool, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	_, existed := m.roots[name]
	delete(m.roots, name)
	return existed, nil
}

// Quarantine implements chunks.Writer.
func (m *Memory) Quarantine(ctx context.Context, ids []chunks.ID) ([]chunks.ID, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var dropped []chunks.ID
	codec := chunks.NewCodec()
	for _, id := range ids {
		if rec, ok := m.records[id]; ok {
			if _, err := codec.Open(rec); err != nil {
				delete(m.records, id)
				dropped = append(dropped, id)
			}
		}
	}
	return dropped, nil
}

// Collect implements chunks.Writer.
func (m *Memory) Collect(ctx context.Context, r chunks.CollectRequest) (chunks.CollectResult, error) {
	var out chunks.CollectResult
	unlock, err := m.lock(ctx)
	if err != nil {
		return out, err
	}
	defer unlock()
	named := map[chunks.Digest]bool{}
	for owner, h := range m.holds {
		if h.Until.Before(r.Now) {
			delete(m.holds, owner)
			out.HoldsExpired = append(out.HoldsExpired, owner)
			continue
		}
		for _, d := range h.Indexes {
			named[d] = true
		}
	}
	slices.Sort(out.HoldsExpired)
	for _, root := range m.roots {
		for _, d := range root.Indexes {
			named[d] = true
		}
	}
	for _, d := range m.acquired {
		named[d] = true
	}
	used := map[chunks.ID]bool{}
	for n := range m.sessions {
		maps.Copy(used, n.used)
	}
	for d := range named {
		x, err := m.index(d)
		if err != nil {
			return out, chunks.Wrap(chunks.StoreDamaged, err, "nothing is collected")
		}
		for _, id := range x.DataIDs() {
			used[id] = true
		}
	}
	for id, rec := range m.records {
		if !used[id] {
			delete(m.records, id)
			out.ChunksRemoved++
			out.BytesFreed += int64(rec.Size())
		}
	}
	for d, b := range m.indexes {
		if !named[d] {
			delete(m.indexes, d)
			out.IndexesRemoved++
			out.BytesFreed += int64(len(b))
		}
	}
	return out, nil
}

// Close implements chunks.Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

type memorySession struct {
	m     *Memory
	owner string
	used  map[chunks.ID]bool
}

// Begin implements chunks.Writer.
func (m *Memory) Begin(ctx context.Context, owner string) (chunks.Session, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, ok := m.holds[owner]; !ok {
		return nil, chunks.Errorf(chunks.HoldUnknown, "no hold of %q", owner)
	}
	n := &memorySession{m: m, owner: owner, used: map[chunks.ID]bool{}}
	m.sessions[n] = true
	return n, nil
}

func (n *memorySession) Close() {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	delete(n.m.sessions, n)
}

func (n *memorySession) Touch(ctx context.Context, ids []chunks.ID) ([]bool, error) {
	unlock, err := n.m.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := make([]bool, len(ids))
	for i, id := range ids {
		_, ok := n.m.records[id]
		out[i] = ok || id.IsZero()
		n.used[id] = true
	}
	return out, nil
}

func (n *memorySession) Put(ctx context.Context, s chunks.Sealed) (int64, error) {
	unlock, err := n.m.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	rec := s.Record()
	if rec.ID.IsZero() {
		return 0, chunks.Errorf(chunks.RecordInvalid, "a block of zeros is not stored")
	}
	n.used[rec.ID] = true
	if _, ok := n.m.records[rec.ID]; ok {
		return 0, nil
	}
	rec.Payload = bytes.Clone(rec.Payload)
	n.m.records[rec.ID] = rec
	return int64(rec.Size()), nil
}

func (n *memorySession) Attach(ctx context.Context, x *chunks.DiskIndex) (chunks.Digest, error) {
	var b bytes.Buffer
	d, err := x.Encode(&b)
	if err != nil {
		return "", err
	}
	unlock, err := n.m.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	h, ok := n.m.holds[n.owner]
	if !ok {
		return "", chunks.Errorf(chunks.HoldUnknown, "no hold of %q any more", n.owner)
	}
	n.m.indexes[d] = b.Bytes()
	if !slices.Contains(h.Indexes, d) {
		h.Indexes = append(slices.Clone(h.Indexes), d)
		n.m.holds[n.owner] = h
	}
	return d, nil
}
