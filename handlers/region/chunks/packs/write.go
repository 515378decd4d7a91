package packs

import (
	"context"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// session implements chunks.Session.
type session struct {
	store *Store
	owner string
	once  sync.Once
}

// Begin implements chunks.Writer.
func (s *Store) Begin(ctx context.Context, owner string) (chunks.Session, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	if _, ok := s.holds[owner]; !ok {
		return nil, chunks.Errorf(chunks.HoldUnknown, "no hold of %q", owner)
	}
	return s.beginSession(owner), nil
}

func (s *Store) beginSession(owner string) *session {
	n := &session{store: s, owner: owner}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.sessions[n] = s.epoch
	return n
}

// Close implements chunks.Session.
func (n *session) Close() {
	n.once.Do(func() {
		n.store.mu.Lock()
		defer n.store.mu.Unlock()
		delete(n.store.sessions, n)
	})
}

// Touch implements chunks.Session.
func (n *session) Touch(ctx context.Context, ids []chunks.ID) ([]bool, error) {
	return n.store.lookup(ctx, ids, true)
}

// lookup says which chunks are present, and protects them for the open sessions where touch is set.
func (s *Store) lookup(ctx context.Context, ids []chunks.ID, touch bool) ([]bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := make([]bool, len(ids))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, s.errClosed()
	}
	for i, id := range ids {
		out[i] = id.IsZero() || s.present(id, touch)
	}
	return out, nil
}

// present wants mu.
func (s *Store) present(id chunks.ID, touch bool) bool {
	e, ok := s.chunks[id]
	if ok && touch && e.touched != s.epoch {
		e.touched = s.epoch
		s.chunks[id] = e
	}
	return ok
}

// Put implements chunks.Session.
func (n *session) Put(ctx context.Context, sealed chunks.Sealed) (int64, error) {
	rec := sealed.Record()
	if rec.ID.IsZero() {
		return 0, chunks.Errorf(chunks.RecordInvalid, "a block of zeros is not stored")
	}
	s := n.store
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	s.mu.Lock()
	closed, present := s.closed, s.present(rec.ID, true)
	s.mu.Unlock()
	switch {
	case closed:
		return 0, s.errClosed()
	case present:
		return 0, nil
	}
	if err := s.room(rec.Size()); err != nil {
		return 0, err
	}
	e, err := s.append(rec)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks[rec.ID] = e
	return int64(e.len), nil
}

// roomEvery is how many bytes are put at most between two looks at the disk's room.
const roomEvery = 1 << 20

// room says whether n bytes more fit; it wants appendMu.
func (s *Store) room(n int) error {
	s.mu.Lock()
	stored := s.stored
	s.mu.Unlock()
	if s.options.MaxBytes > 0 && stored+int64(n) > s.options.MaxBytes {
		return chunks.Errorf(chunks.StoreFull, "the quota of %d bytes of %s is used; remove templates or raise it", s.options.MaxBytes, s.dir)
	}
	if s.unchecked += n; int64(s.unchecked) < min(roomEvery, s.options.Reserve/4) {
		return nil
	}
	free, err := s.fs.free(s.dir)
	if err != nil {
		return s.writeError(err, "ask for the room")
	}
	if free < s.options.Reserve {
		return chunks.Errorf(chunks.StoreFull, "%s has %d bytes of room, and %d are kept for making more; remove templates or free space", s.dir, free, s.options.Reserve)
	}
	s.unchecked = 0
	return nil
}

// append writes a record at the end of the active pack; it wants appendMu.
func (s *Store) append(rec chunks.Record) (entry, error) {
	if s.failed != nil {
		return entry{}, s.failed
	}
	if s.active != nil && (s.active.size+int64(rec.Size()) > s.options.PackSize || len(s.active.entries) >= maxPackEntries) {
		s.finish(s.active)
		s.active = nil
	}
	if s.active == nil {
		p, err := createPack(s.fs, s.path("packs"), s.next)
		if err != nil {
			return entry{}, s.writeError(err, "begin a pack")
		}
		s.next++
		s.active = p
		s.mu.Lock()
		s.packs[p.number] = p
		s.stored += p.size
		s.mu.Unlock()
	}
	p := s.active
	s.buf = append(rec.AppendHeader(s.buf[:0]), rec.Payload...)
	if _, err := p.f.WriteAt(s.buf, p.size); err != nil {
		// The next record overwrites what was written of this one; an opening would cut it off.
		return entry{}, s.writeError(err, "write a chunk")
	}
	e := entry{pack: p.number, off: uint32(p.size), len: uint32(rec.Size())}
	p.entries = append(p.entries, packEntry{id: rec.ID, off: e.off, len: e.len})
	p.size += int64(rec.Size())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored += int64(rec.Size())
	e.touched = s.epoch
	return e, nil
}

// finish takes a full pack to the disk without making writers wait; it wants appendMu. sync waits for it.
func (s *Store) finish(p *pack) {
	if p.durable(p.size) {
		p.entries = nil
		return
	}
	p.finished = make(chan struct{})
	s.finishing = append(s.finishing, p)
	go func() {
		defer close(p.finished)
		p.err = p.f.Sync()
	}()
}

// rotate ends the active pack.
func (s *Store) rotate() {
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	if s.active != nil {
		s.finish(s.active)
		s.active = nil
	}
}

// sync makes every record that was put before durable: pack, index, directory. Where the index does not find room it
// can be repeated. Where an fsync of a pack fails it cannot: the kernel may have dropped what it did not write, so
// nothing more is promised until the store is opened again and has looked at what is there.
func (s *Store) sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.appendMu.Lock()
	err, finishing, p := s.failed, s.finishing, s.active
	var entries []packEntry
	var size int64
	if p != nil {
		entries, size = p.entries, p.size
	}
	s.appendMu.Unlock()
	if err != nil || len(finishing) == 0 && (p == nil || p.durable(size)) {
		return err
	}
	for _, full := range finishing {
		if <-full.finished; full.err != nil {
			return s.fail(full.err)
		}
		if err := full.writeIndex(full.entries, full.size); err != nil {
			return s.writeError(err, "write the index of a pack")
		}
	}
	if p != nil && !p.durable(size) {
		if err := p.f.Sync(); err != nil {
			return s.fail(err)
		}
		if err := p.writeIndex(entries, size); err != nil {
			return s.writeError(err, "write the index of a pack")
		}
	}
	if err := s.fs.syncDir(s.path("packs")); err != nil {
		return s.writeError(err, "make the packs' names durable")
	}
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	s.finishing = s.finishing[len(finishing):]
	for _, full := range finishing {
		full.entries = nil
	}
	return nil
}

func (s *Store) fail(err error) error {
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	s.failed = s.writeError(err, "make chunks durable")
	return s.failed
}

// durable says whether the index file covers the pack up to size.
func (p *pack) durable(size int64) bool {
	p.indexMu.Lock()
	defer p.indexMu.Unlock()
	return p.covered >= size
}
