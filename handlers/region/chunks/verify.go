package chunks

import (
	"bytes"
	"context"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// VerifyResult says what is wrong with a disk; nothing is where both lists are empty.
type VerifyResult struct {
	Chunks  int   // distinct chunks read
	Bytes   int64 // their raw length
	Damaged []ID
	Missing []ID
}

// Err gives chunk-damaged or chunk-missing where something is wrong, with the first id.
func (v VerifyResult) Err() error {
	switch {
	case len(v.Damaged) > 0:
		return Errorf(ChunkDamaged, "%d chunks damaged, %d missing; the first is %s", len(v.Damaged), len(v.Missing), v.Damaged[0])
	case len(v.Missing) > 0:
		return Errorf(ChunkMissing, "%d chunks missing; the first is %s", len(v.Missing), v.Missing[0])
	}
	return nil
}

// Verify reads and hashes every chunk of a disk. A region says "verified" only after it. Damaged chunks are for
// Writer.Quarantine. The error tells why Verify could not look, not what it found. Errors: those of Reader.Acquire, the context's.
func Verify(ctx context.Context, r Reader, d Digest, progress func(Progress)) (VerifyResult, error) {
	x, release, err := r.Acquire(ctx, d)
	if err != nil {
		return VerifyResult{}, err
	}
	defer release()
	lengths := make(map[ID]int64, x.DataBlocks())
	once := make([]ID, 0, x.DataBlocks()) // in the disk's order, which is about the store's
	for run := range x.Runs() {
		for i, id := range run.IDs {
			if _, told := lengths[id]; !told {
				lengths[id] = int64(x.BlockLen(run.First + int64(i)))
				once = append(once, id)
			}
		}
	}
	c := &checker{reader: r, progress: progress, total: int64(len(once)) * BlockSize, lengths: lengths}
	err = c.run(ctx, func(each func([]ID) error) error { return each(once) })
	return c.found(), err
}

// ScrubResult says what is wrong with a store.
type ScrubResult struct {
	VerifyResult            // Damaged are no longer in the store
	Hurt         []HurtRoot // sorted by name
}

// HurtRoot is a root that is not whole.
type HurtRoot struct {
	Root   Root
	Chunks []ID // damaged or missing, sorted; empty where an index itself cannot be read
	Err    error
}

// Scrub reads and hashes every chunk of the store, quarantines the damaged ones so that they can be fetched again, and
// names the roots that are hurt. Errors: the context's; those of Reader.Roots and Writer.Quarantine.
func Scrub(ctx context.Context, s Store, progress func(Progress)) (ScrubResult, error) {
	stats, err := s.Stats(ctx)
	if err != nil {
		return ScrubResult{}, err
	}
	c := &checker{reader: s, progress: progress, total: int64(stats.Chunks) * BlockSize, moving: true}
	if err := c.run(ctx, func(each func([]ID) error) error { return s.List(ctx, each) }); err != nil {
		return ScrubResult{VerifyResult: c.found()}, err
	}
	out := ScrubResult{VerifyResult: c.found()}
	if len(out.Damaged) > 0 {
		if out.Damaged, err = s.Quarantine(ctx, out.Damaged); err != nil {
			return out, err
		}
	}
	roots, err := s.Roots(ctx)
	if err != nil {
		return out, err
	}
	for _, root := range roots {
		if hurt, err := hurtBy(ctx, s, root); err != nil {
			return out, err
		} else if hurt != nil {
			out.Hurt = append(out.Hurt, *hurt)
			out.Missing = append(out.Missing, hurt.Chunks...)
		}
	}
	slices.SortFunc(out.Missing, compareIDs)
	out.Missing = slices.DeleteFunc(slices.Compact(out.Missing), func(id ID) bool { return slices.Contains(out.Damaged, id) })
	return out, nil
}

// hurtBy gives what a root lacks, nil where it is whole.
func hurtBy(ctx context.Context, s Store, root Root) (*HurtRoot, error) {
	hurt := HurtRoot{Root: root}
	for _, d := range root.Indexes {
		x, err := s.Index(ctx, d)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			hurt.Err = err
			continue
		}
		for ids := range slices.Chunk(x.ids, 4096) {
			have, err := s.Has(ctx, ids)
			if err != nil {
				return nil, err
			}
			for i, ok := range have {
				if !ok {
					hurt.Chunks = append(hurt.Chunks, ids[i])
				}
			}
		}
	}
	if hurt.Err == nil && len(hurt.Chunks) == 0 {
		return nil, nil
	}
	slices.SortFunc(hurt.Chunks, compareIDs)
	hurt.Chunks = slices.Compact(hurt.Chunks)
	return &hurt, nil
}

func compareIDs(a, b ID) int { return bytes.Compare(a[:], b[:]) }

const checkBatch = 64

// checker reads and hashes chunks with several workers.
type checker struct {
	reader   Reader
	progress func(Progress)
	total    int64
	lengths  map[ID]int64 // what the disk wants; nil where any length is right
	moving   bool         // a missing chunk was collected meanwhile

	mu     sync.Mutex
	result VerifyResult
}

func (c *checker) run(ctx context.Context, list func(each func([]ID) error) error) error {
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan []ID)
	group.Go(func() error {
		defer close(batches)
		return list(func(ids []ID) error {
			for part := range slices.Chunk(ids, checkBatch) {
				select {
				case batches <- slices.Clone(part):
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	for range max(2, runtime.GOMAXPROCS(0)) {
		group.Go(func() error {
			codec, buf := NewCodec(), make([]byte, MaxRecordSize)
			for ids := range batches {
				if err := c.check(ctx, codec, buf, ids); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (c *checker) check(ctx context.Context, codec *Codec, buf []byte, ids []ID) error {
	var part VerifyResult
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := c.reader.ReadRecord(ctx, id, buf)
		if err == nil {
			_, err = codec.Open(rec)
		}
		if want, ok := c.lengths[id]; ok && err == nil && want != int64(rec.RawLen) {
			err = Errorf(ChunkDamaged, "chunk %s has %d bytes, the index wants %d", id, rec.RawLen, want)
		}
		switch code := CodeOf(err); {
		case err == nil:
			part.Chunks++
			part.Bytes += int64(rec.RawLen)
		case code == ChunkDamaged:
			part.Damaged = append(part.Damaged, id)
		case code == ChunkMissing && !c.moving:
			part.Missing = append(part.Missing, id)
		case code == ChunkMissing:
		default:
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.Chunks += part.Chunks
	c.result.Bytes += part.Bytes
	c.result.Damaged = append(c.result.Damaged, part.Damaged...)
	c.result.Missing = append(c.result.Missing, part.Missing...)
	if c.progress != nil {
		c.progress(Progress{Done: min(c.total, int64(c.result.Chunks+len(c.result.Damaged)+len(c.result.Missing))*BlockSize), Total: c.total})
	}
	return nil
}

func (c *checker) found() VerifyResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(c.result.Damaged, compareIDs)
	slices.SortFunc(c.result.Missing, compareIDs)
	return c.result
}
