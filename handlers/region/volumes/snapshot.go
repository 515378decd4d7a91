package volumes

import (
	"context"
	"errors"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// foldBytes is what Fold copies at once.
const foldBytes = 1 << 20

// Snapshot is one moment of one or several volumes, which stands still while writes go on.
type Snapshot struct{ parts []*part }

type part struct {
	volume  *Volume
	top     *layer // ready to be the volume's top, until the moment is taken
	base    *chunks.Disk
	frozen  []*layer
	result  chunks.IngestResult
	stored  bool
	rebased bool
}

// Freeze is Prepare and Take. Errors: theirs.
func Freeze(ctx context.Context, volumes ...*Volume) (*Snapshot, error) {
	s, err := Prepare(ctx, volumes...)
	if err != nil {
		return nil, err
	}
	if err := s.Take(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Prepare makes everything ready for a moment of all the volumes, so that Take need only switch: whoever stops writers for
// it stops them for microseconds. Close the snapshot, whatever becomes of it. Errors: volume-busy (a volume is in another
// snapshot), volume-failed, volume-closed, volume-full, io-failed, the context's.
func Prepare(ctx context.Context, volumes ...*Volume) (_ *Snapshot, err error) {
	s := &Snapshot{}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, v := range volumes {
		if !v.saving.TryLock() {
			return nil, errorf(VolumeBusy, "%s is being saved", v.dir)
		}
		s.parts = append(s.parts, &part{volume: v})
	}
	for _, p := range s.parts {
		if err := p.volume.fold(ctx); err != nil {
			return nil, err
		}
		if p.top, err = p.volume.prepareTop(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Take takes the moment: whatever was answered before is in it, whatever was begun after is not. Requests wait for
// microseconds only. Error: volume-closed.
func (s *Snapshot) Take() error {
	for _, p := range s.parts {
		p.volume.mu.Lock()
		defer p.volume.mu.Unlock()
		if p.volume.closed {
			return errorf(VolumeClosed, "%s is closed", p.volume.dir)
		}
	}
	for _, p := range s.parts {
		v := p.volume
		p.base, p.frozen = v.base, v.layers
		v.layers = append([]*layer{p.top}, v.layers...)
		p.top = nil
	}
	return nil
}

// prepareTop makes an empty layer and describes it as the top before it is: a crash in between leaves an empty top.
func (v *Volume) prepareTop() (*layer, error) {
	v.flushing.Lock()
	defer v.flushing.Unlock()
	done, err := v.begin(0, 0, true)
	if err != nil {
		return nil, err
	}
	done()
	number := v.next
	v.next++
	l, err := createLayer(v.fs, v.dir, number, v.size)
	if err != nil {
		return nil, ioError(err, "make a layer in %s", v.dir)
	}
	m := v.meta
	m.Layers = append([]int{number}, v.numbers()...)
	if err := v.describe(m); err != nil {
		// Nobody knows what the disk describes now. The files stay, so that either is whole; tidy removes them.
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// dropTop takes back what prepareTop did.
func (v *Volume) dropTop(l *layer) error {
	v.flushing.Lock()
	defer v.flushing.Unlock()
	m := v.meta
	m.Layers = v.numbers()
	if err := v.describe(m); err != nil {
		return errors.Join(err, l.close())
	}
	return l.remove()
}

// numbers are those of the layers in use; the caller holds saving.
func (v *Volume) numbers() (n []int) {
	for _, l := range v.layers {
		n = append(n, l.number)
	}
	return n
}

// describe writes the description; the caller holds flushing.
func (v *Volume) describe(m meta) error {
	if err := writeMeta(v.fs, v.dir, m); err != nil {
		return err
	}
	v.meta = m
	return nil
}

// fold moves the frozen layer that an earlier save left into the top, so that there is room for another one. The volume
// reads the same at every moment. The caller holds saving.
func (v *Volume) fold(ctx context.Context) error {
	if len(v.layers) < 2 {
		return nil
	}
	top, frozen := v.layers[0], v.layers[1]
	buf := make([]byte, foldBytes)
	var err error
	frozen.states.spans(func(s span) bool {
		for at := s.first; at < s.end && err == nil; {
			end := min(s.end, at+foldBytes/BlockSize)
			if err = ctx.Err(); err == nil {
				err = v.foldRun(top, frozen, span{at, end, s.state}, buf)
			}
			at = end
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	v.flushing.Lock()
	defer v.flushing.Unlock()
	if err := v.sync(v.layers); err != nil {
		return err
	}
	return v.settle(v.meta.Base, v.base)
}

// foldRun copies what the top does not tell of.
func (v *Volume) foldRun(top, frozen *layer, s span, buf []byte) error {
	defer v.lockBlocks(s.first, s.end)()
	defer top.changes.Add(1)
	for at := s.first; at < s.end; {
		has, end := top.states.run(at, s.end)
		if has == inherited {
			if s.state == written {
				off := at * BlockSize
				p := buf[:min(end*BlockSize, v.size)-off]
				if err := readFull(frozen.data, p, off); err != nil {
					return wrap(IOFailed, err, "read %s.data", frozen.prefix)
				}
				if _, err := top.data.WriteAt(p, off); err != nil {
					return ioError(err, "write %s.data", top.prefix)
				}
			}
			if err := top.mark(at, end, s.state); err != nil {
				return ioError(err, "write %s.log", top.prefix)
			}
		}
		at = end
	}
	return nil
}

// settle makes the top the only layer, over a base with which the volume reads the same. The caller holds saving and flushing.
func (v *Volume) settle(d chunks.Digest, base *chunks.Disk) error {
	m := v.meta
	m.Base, m.Layers = d, v.numbers()[:1]
	if err := v.describe(m); err != nil {
		return err
	}
	v.mu.Lock()
	old, frozen := v.base, v.layers[1:]
	v.base, v.layers = base, v.layers[:1:1]
	v.mu.Unlock()
	var errs []error
	if old != nil && old != base {
		errs = append(errs, old.Close())
	}
	for _, l := range frozen {
		errs = append(errs, l.remove())
	}
	if err := errors.Join(errs...); err != nil {
		return wrap(IOFailed, err, "let go of what %s needs no more", v.dir)
	}
	return nil
}

// Ingest stores each volume as it was, in the order given to Freeze: only what changed since its base is read and hashed.
// The indexes are under the session's hold; the caller publishes them. Progress counts the bytes of all the volumes
// together. A repeat after an error is cheap. Errors: those of chunks.Ingest.
func (s *Snapshot) Ingest(ctx context.Context, session chunks.Session, progress func(chunks.Progress)) ([]chunks.IngestResult, error) {
	var results []chunks.IngestResult
	var before, total int64
	extents := make([][]chunks.Extent, len(s.parts))
	for i, p := range s.parts {
		extents[i] = changed(p.frozen, p.volume.size)
		for _, e := range extents[i] {
			total += e.Length
		}
	}
	for i, p := range s.parts {
		q := chunks.IngestRequest{Source: p, Size: p.volume.size, Extents: extents[i]}
		if p.base != nil {
			q.Base, q.Changed = p.base.Index(), extents[i]
		}
		if progress != nil {
			// The store reads whole chunks, so its count of a volume may pass that of the blocks changed.
			var length int64
			for _, e := range extents[i] {
				length += e.Length
			}
			q.Progress = func(at chunks.Progress) {
				progress(chunks.Progress{Done: before + at.Done*length/max(1, at.Total), Total: total})
			}
		}
		r, err := chunks.Ingest(ctx, session, q)
		if err != nil {
			return nil, err
		}
		for _, e := range extents[i] {
			before += e.Length
		}
		p.result, p.stored = r, true
		results = append(results, r)
	}
	return results, nil
}

// ReadAt reads a volume as it was.
func (p *part) ReadAt(b []byte, off int64) (int, error) {
	if err := readLayers(p.frozen, p.base, b, off); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Rebase makes what Ingest stored the volumes' bases; only what was written since stays in the overlays. Before, the
// caller protects the new indexes in the chunk store by a root, and takes the old one away after. A repeat after an error
// goes on where it was. Errors: volume-busy (not ingested yet), base-unreadable, volume-full, io-failed.
func (s *Snapshot) Rebase(ctx context.Context) error {
	for _, p := range s.parts {
		if !p.stored {
			return errorf(VolumeBusy, "%s is not stored yet", p.volume.dir)
		}
	}
	for _, p := range s.parts {
		if p.rebased {
			continue
		}
		if err := p.rebase(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *part) rebase(ctx context.Context) error {
	v := p.volume
	base, err := v.openBase(ctx, p.result.Digest)
	if err != nil {
		return err
	}
	v.flushing.Lock()
	defer v.flushing.Unlock()
	err = v.settle(p.result.Digest, base)
	p.rebased = v.base == base
	if !p.rebased {
		err = errors.Join(err, base.Close())
	}
	return err
}

// Close ends the snapshot. Without Rebase the volumes stay as they were, and the next one tidies up. It may be called
// more than once.
func (s *Snapshot) Close() {
	for _, p := range s.parts {
		if p.top != nil {
			// What is left of a top that no volume got is removed when the volume is opened again.
			_ = p.volume.dropTop(p.top)
		}
		p.volume.saving.Unlock()
	}
	s.parts = nil
}
