package packs

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Has implements chunks.Reader.
func (s *Store) Has(ctx context.Context, ids []chunks.ID) ([]bool, error) {
	return s.lookup(ctx, ids, false)
}

// ReadRecord implements chunks.Reader.
func (s *Store) ReadRecord(ctx context.Context, id chunks.ID, buf []byte) (chunks.Record, error) {
	if err := ctx.Err(); err != nil {
		return chunks.Record{}, err
	}
	for {
		s.mu.Lock()
		e, ok := s.chunks[id]
		p, closed := s.packs[e.pack], s.closed
		s.mu.Unlock()
		switch {
		case closed:
			return chunks.Record{}, s.errClosed()
		case !ok || p == nil:
			return chunks.Record{}, chunks.Errorf(chunks.ChunkMissing, "chunk %s is not in %s", id, s.dir)
		}
		rec, there, err := p.record(e, buf)
		if !there {
			continue // the pack was collected meanwhile: the chunk lies elsewhere, or nowhere
		}
		if err == nil && rec.ID != id {
			err = chunks.Errorf(chunks.ChunkDamaged, "chunk %s: its place in %s holds %s", id, p.path(), rec.ID)
		}
		return rec, err
	}
}

// record reads one record; there is false where the pack is gone. Error: chunk-damaged.
func (p *pack) record(e entry, buf []byte) (rec chunks.Record, there bool, err error) {
	buf = slices.Grow(buf[:0], int(e.len))[:e.len]
	if there, err = p.readAt(buf, int64(e.off)); !there {
		return rec, false, nil
	}
	var h chunks.RecordHeader
	if err == nil {
		h, err = chunks.ParseRecordHeader(buf)
	}
	if err == nil {
		rec, err = h.Record(buf[min(chunks.RecordHeaderSize, len(buf)):])
	}
	if err != nil {
		return rec, true, chunks.Wrap(chunks.ChunkDamaged, err, "%s at %d", p.path(), e.off)
	}
	return rec, true, nil
}

// Acquire implements chunks.Reader.
func (s *Store) Acquire(ctx context.Context, d chunks.Digest) (*chunks.DiskIndex, func(), error) {
	if err := s.begin(ctx); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	a := s.acquired[d]
	if a != nil { // somebody reads it: neither its index nor its protection must be made again
		a.count++
		s.mu.Unlock()
		<-a.marked
		return a.index, s.releaser(d, a), nil
	}
	s.mu.Unlock()
	x, err := s.Index(ctx, d)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	if a = s.acquired[d]; a == nil {
		a = &acquiredDisk{index: x, marked: make(chan struct{})}
		s.acquired[d] = a
		defer func() {
			// A running Collect has chosen what to keep already.
			s.mark(x)
			close(a.marked)
		}()
	}
	a.count++
	s.mu.Unlock()
	return a.index, s.releaser(d, a), nil
}

func (s *Store) releaser(d chunks.Digest, a *acquiredDisk) func() {
	var once sync.Once
	return func() {
		once.Do(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if a.count--; a.count == 0 {
				delete(s.acquired, d)
			}
		})
	}
}

// acquiredDisk is a disk that is read, count times.
type acquiredDisk struct {
	index  *chunks.DiskIndex
	count  int
	marked chan struct{} // closed once a Collect that runs knows of it
}

// mark protects a disk from the running Collect. What names a disk marks it, after it is there for the next Collect to see.
func (s *Store) mark(x *chunks.DiskIndex) {
	for ids := range slices.Chunk(x.DataIDs(), 4096) {
		s.mu.Lock()
		for _, id := range ids {
			if e, ok := s.chunks[id]; ok && e.marked != s.collects {
				e.marked = s.collects
				s.chunks[id] = e
			}
		}
		s.mu.Unlock()
	}
}

// touch protects what is present of a disk for the open sessions, and gives what is not.
func (s *Store) touch(x *chunks.DiskIndex) (missing []chunks.ID) {
	for ids := range slices.Chunk(x.DataIDs(), 4096) {
		s.mu.Lock()
		for _, id := range ids {
			if !s.present(id, true) {
				missing = append(missing, id)
			}
		}
		s.mu.Unlock()
	}
	return missing
}

// List implements chunks.Reader.
func (s *Store) List(ctx context.Context, each func([]chunks.ID) error) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	for _, p := range s.sortedPacks() {
		entries, err := s.packEntries(p)
		if err != nil {
			return err
		}
		for part := range slices.Chunk(entries, 4096) {
			if err := ctx.Err(); err != nil {
				return err
			}
			ids := make([]chunks.ID, 0, len(part))
			s.mu.Lock()
			for _, e := range part {
				if at, ok := s.chunks[e.id]; ok && at.pack == p.number && at.off == e.off {
					ids = append(ids, e.id)
				}
			}
			s.mu.Unlock()
			if len(ids) > 0 {
				if err := each(ids); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *Store) sortedPacks() []*pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.packs), func(a, b *pack) int { return cmp.Compare(a.number, b.number) })
}

// packEntries gives the records of a pack, none where it was collected meanwhile.
func (s *Store) packEntries(p *pack) ([]packEntry, error) {
	s.appendMu.Lock()
	entries := p.entries
	s.appendMu.Unlock()
	if entries != nil {
		return entries, nil
	}
	entries, _, err := readPackIndex(p.indexPath())
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.packs[p.number] != p {
			return nil, nil
		}
		return nil, chunks.Wrap(chunks.StoreDamaged, err, "read the index of %s; opening the store again makes it anew", p.path())
	}
	return entries, nil
}

// Stats implements chunks.Reader.
func (s *Store) Stats(ctx context.Context) (chunks.Stats, error) {
	if err := s.begin(ctx); err != nil {
		return chunks.Stats{}, err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	out := chunks.Stats{Roots: len(s.roots), Holds: len(s.holds)}
	for _, r := range s.roots {
		for _, d := range r.Indexes {
			size, known := s.sizes[d]
			if !known {
				x, err := s.Index(ctx, d)
				if err != nil {
					return chunks.Stats{}, err
				}
				size = x.Size()
				s.sizes[d] = size
			}
			out.LogicalBytes += size
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.StoredBytes, out.Chunks = s.stored, len(s.chunks)
	return out, nil
}
