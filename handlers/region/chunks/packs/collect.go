package packs

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Collect implements chunks.Writer. It marks what is named and then writes packs anew without what is
// not. A pack goes away after the copies of what it held in use are durable.
func (s *Store) Collect(ctx context.Context, r chunks.CollectRequest) (out chunks.CollectResult, err error) {
	if r.MinGarbage < 0 || r.MinGarbage > 1 {
		return out, chunks.Errorf(chunks.RangeInvalid, "a share of %v", r.MinGarbage)
	}
	s.collectMu.Lock()
	defer s.collectMu.Unlock()
	if err := s.begin(ctx); err != nil {
		return out, err
	}
	named, err := s.beginCollect(r, &out)
	if err != nil {
		return out, err
	}
	for d := range named {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		x, err := s.Index(ctx, d)
		if err != nil {
			return out, chunks.Wrap(chunks.StoreDamaged, err, "a named disk cannot be read, so nothing is collected")
		}
		s.mark(x)
	}
	if err := s.sweep(ctx, r, &out); err != nil {
		return out, err
	}
	return out, s.sweepIndexes(&out)
}

// beginCollect forgets holds that ended, and gives the disks that roots and holds name. What is named later than here is
// marked by who names it.
func (s *Store) beginCollect(r chunks.CollectRequest, out *chunks.CollectResult) (map[chunks.Digest]bool, error) {
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	if err := errors.Join(s.brokenMeta("roots"), s.brokenMeta("holds")); err != nil {
		return nil, chunks.Wrap(chunks.StoreDamaged, err, "nothing is collected")
	}
	named := map[chunks.Digest]bool{}
	for owner, h := range s.holds {
		if h.Until.Before(r.Now) {
			if _, err := s.removeMeta("holds", owner); err != nil {
				return nil, err
			}
			delete(s.holds, owner)
			out.HoldsExpired = append(out.HoldsExpired, owner)
			continue
		}
		for _, d := range h.Indexes {
			named[d] = true
		}
	}
	slices.Sort(out.HoldsExpired)
	for _, root := range s.roots {
		for _, d := range root.Indexes {
			named[d] = true
		}
	}
	s.mu.Lock()
	s.collects++
	var read []*chunks.DiskIndex
	for _, a := range s.acquired {
		read = append(read, a.index)
	}
	s.mu.Unlock()
	for _, x := range read {
		s.mark(x)
	}
	return named, nil
}

// inUse says what the running Collect must keep; oldest is from oldestSession. It wants mu.
func (s *Store) inUse(e entry, oldest uint32) bool {
	return e.marked == s.collects || e.touched >= oldest
}

// oldestSession is the first epoch whose touches count; it wants mu.
func (s *Store) oldestSession() uint32 {
	out := uint32(math.MaxUint32)
	for _, began := range s.sessions {
		out = min(out, began)
	}
	return out
}

func (s *Store) sweep(ctx context.Context, r chunks.CollectRequest, out *chunks.CollectResult) error {
	s.mu.Lock()
	live, oldest := map[uint32]int64{}, s.oldestSession()
	for _, e := range s.chunks {
		if s.inUse(e, oldest) {
			live[e.pack] += int64(e.len)
		}
	}
	s.mu.Unlock()

	s.appendMu.Lock()
	active := s.active
	var chosen []*pack
	for _, p := range s.sortedPacks() {
		used := p.size - packHeaderSize
		// A pack that is empty, the active one apart, is garbage too.
		if garbage := used - live[p.number]; garbage > 0 && float64(garbage) >= r.MinGarbage*float64(used) || used == 0 && p != active {
			chosen = append(chosen, p)
		}
	}
	s.appendMu.Unlock()
	if len(chosen) == 0 {
		return nil
	}
	// Packs without anything in use go first, and without a sync: on a full disk there is no room for its indexes.
	var mixed []*pack
	for _, p := range chosen {
		gone, err := s.drop(p, out)
		if err != nil {
			return err
		}
		if !gone {
			mixed = append(mixed, p)
		}
	}
	if err := s.writeError(s.fs.syncDir(s.path("packs")), "make the removal of packs durable"); err != nil || len(mixed) == 0 {
		return err
	}
	if slices.Contains(mixed, active) {
		s.rotate()
	}
	if err := s.sync(); err != nil {
		return err
	}
	// Those with the least in use make the most room for the others.
	slices.SortStableFunc(mixed, func(a, b *pack) int { return cmp.Compare(live[a.number], live[b.number]) })
	for _, p := range mixed {
		if err := s.rewrite(ctx, p, out); err != nil {
			return err
		}
	}
	return nil
}

// rewrite copies what is in use of a durable pack to the active one and removes the pack.
func (s *Store) rewrite(ctx context.Context, p *pack, out *chunks.CollectResult) error {
	entries, err := s.packEntries(p)
	if err != nil {
		return err
	}
	buf := make([]byte, chunks.MaxRecordSize)
	var copied int64
	for _, pe := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.Lock()
		e, ok := s.chunks[pe.id]
		here := ok && e.pack == p.number && e.off == pe.off
		if here && !s.inUse(e, s.oldestSession()) {
			delete(s.chunks, pe.id)
			out.ChunksRemoved++
			here = false
		}
		s.mu.Unlock()
		if !here {
			continue
		}
		rec, _, err := p.record(e, buf)
		if err == nil && rec.ID != pe.id {
			err = chunks.Errorf(chunks.ChunkDamaged, "chunk %s: its place holds %s", pe.id, rec.ID)
		}
		if err != nil {
			s.mu.Lock()
			delete(s.chunks, pe.id)
			s.mu.Unlock()
			out.Damaged = append(out.Damaged, pe.id)
			continue
		}
		n, err := s.move(rec, e)
		if err != nil {
			return err
		}
		copied += n
	}
	if err := s.sync(); err != nil {
		return err
	}
	if err := s.removePack(p); err != nil {
		return err
	}
	out.BytesFreed += p.size - copied
	return s.writeError(s.fs.syncDir(s.path("packs")), "make the removal of a pack durable")
}

// drop removes a pack, durable or not, where nothing of it is in use.
func (s *Store) drop(p *pack, out *chunks.CollectResult) (gone bool, err error) {
	entries, err := s.packEntries(p)
	if err != nil {
		return false, err
	}
	// Nobody syncs or appends meanwhile.
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	if p == s.active {
		entries = p.entries
	}
	if !s.forgetUnused(p, entries, out) {
		return false, nil
	}
	if p == s.active {
		s.active = nil
	}
	if i := slices.Index(s.finishing, p); i >= 0 {
		<-p.finished
		s.finishing = slices.Delete(slices.Clone(s.finishing), i, i+1)
	}
	out.BytesFreed += p.size
	return true, s.removePack(p)
}

// forgetUnused forgets the chunks of a pack, all or (where one is in use) none.
func (s *Store) forgetUnused(p *pack, entries []packEntry, out *chunks.CollectResult) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := s.oldestSession()
	here := func(pe packEntry) (entry, bool) {
		e, ok := s.chunks[pe.id]
		return e, ok && e.pack == p.number && e.off == pe.off
	}
	for _, pe := range entries {
		if e, ok := here(pe); ok && s.inUse(e, oldest) {
			return false
		}
	}
	for _, pe := range entries {
		if _, ok := here(pe); ok {
			delete(s.chunks, pe.id)
			out.ChunksRemoved++
		}
	}
	return true
}

// removePack removes the files of a pack that holds nothing any more, after its readers are done.
func (s *Store) removePack(p *pack) error {
	s.mu.Lock()
	delete(s.packs, p.number)
	s.stored -= p.size
	s.mu.Unlock()
	if err := p.close(); err != nil {
		return s.writeError(err, "close a pack")
	}
	for _, path := range []string{p.path(), p.indexPath()} {
		if err := s.fs.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s.writeError(err, "remove a pack")
		}
	}
	return nil
}

// move appends a copy of a record and leads readers to it, unless the chunk went away meanwhile.
func (s *Store) move(rec chunks.Record, from entry) (int64, error) {
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	to, err := s.append(rec)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.chunks[rec.ID]; ok && now.pack == from.pack && now.off == from.off {
		to.marked, to.touched = now.marked, now.touched
		s.chunks[rec.ID] = to
	}
	return int64(to.len), nil
}

// sweepIndexes removes the disk indexes that nothing names.
func (s *Store) sweepIndexes(out *chunks.CollectResult) error {
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	named := map[string]bool{}
	add := func(ds []chunks.Digest) {
		for _, d := range ds {
			named[s.diskIndexPath(d)] = true
		}
	}
	for _, r := range s.roots {
		add(r.Indexes)
	}
	for _, h := range s.holds {
		add(h.Indexes)
	}
	s.mu.Lock()
	for d := range s.acquired {
		add([]chunks.Digest{d})
	}
	s.mu.Unlock()
	found, err := filepath.Glob(s.path("indexes", "*.idx"))
	if err != nil {
		return err
	}
	for _, path := range found {
		if named[path] {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return s.writeError(err, "look at a disk index")
		}
		if err := s.fs.remove(path); err != nil {
			return s.writeError(err, "remove a disk index")
		}
		delete(s.sizes, chunks.Digest("sha256:"+strings.TrimSuffix(filepath.Base(path), ".idx")))
		out.IndexesRemoved++
		out.BytesFreed += info.Size()
	}
	if out.IndexesRemoved == 0 {
		return nil
	}
	return s.writeError(s.fs.syncDir(s.path("indexes")), "make the removal of disk indexes durable")
}

// Quarantine implements chunks.Writer.
func (s *Store) Quarantine(ctx context.Context, ids []chunks.ID) ([]chunks.ID, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	// Not beside Collect, which moves chunks and removes packs.
	s.collectMu.Lock()
	defer s.collectMu.Unlock()
	codec, buf := chunks.NewCodec(), make([]byte, chunks.MaxRecordSize)
	bad := map[*pack]map[chunks.ID]bool{}
	for _, id := range ids {
		rec, err := s.ReadRecord(ctx, id, buf)
		if err == nil {
			_, err = codec.Open(rec)
		}
		switch code := chunks.CodeOf(err); {
		case code == chunks.ChunkDamaged:
			s.mu.Lock()
			p := s.packs[s.chunks[id].pack]
			s.mu.Unlock()
			if bad[p] == nil {
				bad[p] = map[chunks.ID]bool{}
			}
			bad[p][id] = true
		case err != nil && code != chunks.ChunkMissing:
			return nil, err
		}
	}
	if len(bad) == 0 {
		return nil, nil
	}
	// The index files say what is gone, so all of these packs must have theirs.
	s.rotate()
	if err := s.sync(); err != nil {
		return nil, err
	}
	var dropped []chunks.ID
	for p, drop := range bad {
		if err := p.dropFromIndex(drop); err != nil {
			return dropped, s.writeError(err, "take damaged chunks out of an index")
		}
		s.mu.Lock()
		for id := range drop {
			delete(s.chunks, id)
			dropped = append(dropped, id)
		}
		s.mu.Unlock()
	}
	slices.SortFunc(dropped, func(a, b chunks.ID) int { return slices.Compare(a[:], b[:]) })
	return dropped, s.writeError(s.fs.syncDir(s.path("packs")), "make the quarantine durable")
}
