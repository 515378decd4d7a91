package chunks

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// IngestRequest says what to take in.
type IngestRequest struct {
	// Source reads as the whole disk. Where it has a Stat method (an *os.File), its size and time of change must be the
	// same before and after.
	Source io.ReaderAt
	// Size is the disk's length in bytes.
	Size int64
	// Extents are the ranges that may hold anything but zeros, in any order. nil asks an *os.File for its holes, and
	// takes the whole disk of any other source.
	Extents []Extent
	// Base and Changed make the ingest incremental: only the blocks that Changed touches are read, the others are those
	// of Base, and zeros beyond its end. Source still reads as the whole disk (the overlay upon its base), because a
	// change may cover a part of a block. Extents is not looked at.
	Base    *DiskIndex
	Changed []Extent
	// Workers hash and compress at once; 0 means one for each processor, and at least two. Each holds about 2 MiB.
	Workers int
	// Progress is called now and then, by one goroutine at a time, with the bytes to be read.
	Progress func(Progress)
}

// IngestResult says what was taken in.
type IngestResult struct {
	Index  *DiskIndex
	Digest Digest

	BytesRead   int64 // read from the source
	ZeroBytes   int64 // of the disk, holes included
	NewChunks   int   // stored by this call
	NewBytes    int64 // their raw length
	StoredBytes int64 // what they take in the store
	DedupChunks int   // found present
	DedupBytes  int64 // their raw length
}

// ingestSpan is what a worker reads at once.
const ingestSpan = 16

// Ingest stores a disk and attaches its index to the session's hold; the caller publishes. A cancelled or failed Ingest
// leaves chunks that the next one finds present, or that Collect takes. Errors: disk-changed, disk-unreadable,
// range-invalid, chunk-missing (Base is not whole in this store), the context's, and those of the session.
func Ingest(ctx context.Context, s Session, q IngestRequest) (IngestResult, error) {
	before, err := statSource(q.Source)
	if err != nil {
		return IngestResult{}, err
	}
	if before != nil && before.Mode().IsRegular() && before.Size() != q.Size {
		return IngestResult{}, Errorf(DiskChanged, "the disk has %d bytes, not %d", before.Size(), q.Size)
	}
	extents := q.Extents
	switch {
	case q.Base != nil:
		extents = changedExtents(q)
	case extents == nil:
		if extents, err = sourceExtents(q.Source, q.Size); err != nil {
			return IngestResult{}, err
		}
	}
	spans, err := blockRanges(extents, q.Size)
	if err != nil {
		return IngestResult{}, err
	}
	if q.Base != nil {
		if err := touchAll(ctx, s, q.Base); err != nil {
			return IngestResult{}, err
		}
	}
	in := &ingest{session: s, req: q}
	if err := in.run(ctx, spans); err != nil {
		// A source that shrank fails to be read; the change is the better explanation.
		if after, serr := statSource(q.Source); serr == nil && changed(before, after) && CodeOf(err) == DiskUnreadable {
			return IngestResult{}, Wrap(DiskChanged, err, "the disk changed while it was read")
		}
		return IngestResult{}, err
	}
	if after, err := statSource(q.Source); err != nil {
		return IngestResult{}, err
	} else if changed(before, after) {
		return IngestResult{}, Errorf(DiskChanged, "the disk changed while it was read: %d bytes of %s, then %d bytes of %s",
			before.Size(), before.ModTime(), after.Size(), after.ModTime())
	}
	x, err := in.index(spans)
	if err != nil {
		return IngestResult{}, err
	}
	in.result.Index = x
	in.result.ZeroBytes = zeroBytes(x)
	if in.result.Digest, err = s.Attach(ctx, x); err != nil {
		return IngestResult{}, err
	}
	return in.result, nil
}

// blockRange is count blocks from first; ids is where their ids go.
type blockRange struct{ first, count, ids int64 }

// blockRanges makes sorted, disjoint ranges of whole blocks of extents.
func blockRanges(extents []Extent, size int64) ([]blockRange, error) {
	if size < 0 || size > maxDiskSize {
		return nil, Errorf(RangeInvalid, "disk of %d bytes", size)
	}
	extents = slices.Clone(extents)
	slices.SortFunc(extents, func(a, b Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	var out []blockRange
	var total int64
	for _, e := range extents {
		if e.Offset < 0 || e.Length < 0 || e.Offset > size || e.Length > size-e.Offset {
			return nil, Errorf(RangeInvalid, "extent %d+%d is outside of a disk of %d bytes", e.Offset, e.Length, size)
		}
		if e.Length == 0 {
			continue
		}
		first, end := e.Offset/BlockSize, blocksOf(e.Offset+e.Length)
		if n := len(out); n > 0 && first <= out[n-1].first+out[n-1].count {
			last := &out[n-1]
			total += max(0, end-last.first-last.count)
			last.count = max(last.count, end-last.first)
			continue
		}
		out = append(out, blockRange{first: first, count: end - first, ids: total})
		total += end - first
	}
	return out, nil
}

// changedExtents adds to the changed ranges the blocks that have another length than in the base.
func changedExtents(q IngestRequest) []Extent {
	out := slices.Clone(q.Changed)
	if q.Size == q.Base.size {
		return out
	}
	if edge := min(q.Size, q.Base.size) / BlockSize * BlockSize; edge < min(q.Size, q.Base.size) {
		out = append(out, Extent{Offset: edge, Length: min(BlockSize, q.Size-edge)})
	}
	return out
}

func touchAll(ctx context.Context, s Session, x *DiskIndex) error {
	for ids := range slices.Chunk(x.ids, 4096) {
		have, err := s.Touch(ctx, ids)
		if err != nil {
			return err
		}
		if i := slices.Index(have, false); i >= 0 {
			return Errorf(ChunkMissing, "chunk %s of the base is not in the store", ids[i])
		}
	}
	return nil
}

type ingest struct {
	session Session
	req     IngestRequest
	ids     []ID

	mu     sync.Mutex
	result IngestResult
}

func (in *ingest) run(ctx context.Context, ranges []blockRange) error {
	var total, totalBytes int64
	for _, r := range ranges {
		total += r.count
		totalBytes += min(r.count*BlockSize, in.req.Size-r.first*BlockSize)
	}
	in.ids = make([]ID, total)
	workers := in.req.Workers
	if workers <= 0 {
		workers = max(2, runtime.GOMAXPROCS(0))
	}
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range workers {
		group.Go(func() error {
			w := ingestWorker{ingest: in, codec: NewCodec(), buf: make([]byte, ingestSpan*BlockSize)}
			at := 0
			for {
				// Spans are cut from the ids' positions, so every worker finds its own without a channel.
				pos := next.Add(ingestSpan) - ingestSpan
				if pos >= total {
					return nil
				}
				for end := min(pos+ingestSpan, total); pos < end; {
					for ranges[at].ids+ranges[at].count <= pos {
						at++
					}
					r := ranges[at]
					n := min(end, r.ids+r.count) - pos
					if err := w.span(ctx, r.first+pos-r.ids, n, in.ids[pos:pos+n]); err != nil {
						return err
					}
					pos += n
				}
				in.report(&w.stats, totalBytes)
			}
		})
	}
	return group.Wait()
}

// report adds a worker's figures to the whole and clears them.
func (in *ingest) report(w *IngestResult, total int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.result.BytesRead += w.BytesRead
	in.result.NewChunks += w.NewChunks
	in.result.NewBytes += w.NewBytes
	in.result.StoredBytes += w.StoredBytes
	in.result.DedupChunks += w.DedupChunks
	in.result.DedupBytes += w.DedupBytes
	*w = IngestResult{}
	if in.req.Progress != nil {
		in.req.Progress(Progress{Done: in.result.BytesRead, Total: total})
	}
}

type ingestWorker struct {
	*ingest
	codec *Codec
	buf   []byte
	stats IngestResult
}

func (w *ingestWorker) span(ctx context.Context, first, count int64, ids []ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	offset := first * BlockSize
	buf := w.buf[:min(count*BlockSize, w.req.Size-offset)]
	if n, err := w.req.Source.ReadAt(buf, offset); n < len(buf) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return Wrap(DiskUnreadable, err, "read %d of %d bytes at %d", n, len(buf), offset)
	}
	w.stats.BytesRead += int64(len(buf))
	for i := range ids {
		raw := buf[:min(BlockSize, len(buf))]
		buf = buf[len(raw):]
		block := NewBlock(raw)
		ids[i] = block.ID()
		if ids[i].IsZero() {
			continue
		}
		have, err := w.session.Touch(ctx, ids[i:i+1])
		if err != nil {
			return err
		}
		var stored int64
		if !have[0] {
			if stored, err = w.session.Put(ctx, w.codec.Seal(block)); err != nil {
				return err
			}
		}
		if stored == 0 {
			w.stats.DedupChunks++
			w.stats.DedupBytes += int64(len(raw))
			continue
		}
		w.stats.NewChunks++
		w.stats.NewBytes += int64(len(raw))
		w.stats.StoredBytes += stored
	}
	return nil
}

// index joins the read blocks with zeros or the base.
func (in *ingest) index(ranges []blockRange) (*DiskIndex, error) {
	b := NewIndexBuilder(in.req.Size)
	for _, r := range ranges {
		in.fill(b, r.first)
		for _, id := range in.ids[r.ids : r.ids+r.count] {
			b.Append(id)
		}
	}
	in.fill(b, blocksOf(in.req.Size))
	return b.Index()
}

// fill appends the blocks that were not read, up to block end.
func (in *ingest) fill(b *IndexBuilder, end int64) {
	if base := in.req.Base; base != nil {
		for r := range base.Runs() {
			from, to := max(r.First, b.blocks), min(r.First+r.Count, end)
			switch {
			case from >= to:
			case r.IDs == nil:
				b.AppendZeros(to - from)
			default:
				for _, id := range r.IDs[from-r.First : to-r.First] {
					b.Append(id)
				}
			}
		}
	}
	b.AppendZeros(end - b.blocks)
}

func zeroBytes(x *DiskIndex) int64 {
	var n int64
	for r := range x.Runs() {
		if r.IDs == nil {
			n += min(r.Count*BlockSize, x.size-r.First*BlockSize)
		}
	}
	return n
}

func statSource(source io.ReaderAt) (fs.FileInfo, error) {
	f, ok := source.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return nil, nil
	}
	info, err := f.Stat()
	if err != nil {
		return nil, Wrap(DiskUnreadable, err, "look at the disk")
	}
	return info, nil
}

func changed(before, after fs.FileInfo) bool {
	return before != nil && after != nil && (before.Size() != after.Size() || !before.ModTime().Equal(after.ModTime()))
}

// sourceExtents gives the ranges of a file that are not holes, and the whole of any other source.
func sourceExtents(source io.ReaderAt, size int64) ([]Extent, error) {
	whole := []Extent{{0, size}}
	f, ok := source.(*os.File)
	if !ok {
		return whole, nil
	}
	extents, err := fileExtents(f, size)
	if errors.Is(err, errors.ErrUnsupported) {
		return whole, nil
	} else if err != nil {
		return nil, Wrap(DiskUnreadable, err, "look for the holes of %s", f.Name())
	}
	return extents, nil
}
