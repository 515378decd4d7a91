package chunks

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Export writes a disk to path as a raw image with holes for zeros. The image is written beside, made durable and then
// renamed, so that path holds the whole disk or what it held before. Every byte is checked against its chunk's hash.
// Errors: those of Reader.Acquire and ReadRecord, export-failed, the context's.
func Export(ctx context.Context, r Reader, d Digest, path string, progress func(Progress)) (err error) {
	x, release, err := r.Acquire(ctx, d)
	if err != nil {
		return err
	}
	defer release()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.partial")
	if err != nil {
		return Wrap(ExportFailed, err, "write beside %s", path)
	}
	beside := true
	defer func() {
		if err != nil && beside {
			err = errors.Join(err, ignoreClosed(f.Close()), os.Remove(f.Name()))
		}
	}()
	if err := f.Truncate(x.size); err != nil {
		return Wrap(ExportFailed, err, "size %s", path)
	}
	if err := writeBlocks(ctx, r, x, f, progress); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return f.Chmod(0o644) },
		f.Sync,
		f.Close,
		func() error { return os.Rename(f.Name(), path) },
	} {
		if err := step(); err != nil {
			return Wrap(ExportFailed, err, "finish %s", path)
		}
	}
	beside = false
	dir, derr := os.Open(filepath.Dir(path))
	if derr == nil {
		derr = errors.Join(dir.Sync(), dir.Close())
	}
	if derr != nil {
		return Wrap(ExportFailed, derr, "make the name %s durable", path)
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func writeBlocks(ctx context.Context, r Reader, x *DiskIndex, f *os.File, progress func(Progress)) error {
	type part struct {
		first int64
		ids   []ID
	}
	parts := make(chan part)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(parts)
		for run := range x.Runs() {
			first := run.First
			for ids := range slices.Chunk(run.IDs, ingestSpan) {
				select {
				case parts <- part{first, ids}:
				case <-ctx.Done():
					return ctx.Err()
				}
				first += int64(len(ids))
			}
		}
		return nil
	})
	var mu sync.Mutex
	now := Progress{Total: x.size - zeroBytes(x)}
	for range max(2, runtime.GOMAXPROCS(0)) {
		group.Go(func() error {
			codec, buf := NewCodec(), make([]byte, MaxRecordSize)
			for p := range parts {
				var done int64
				for i, id := range p.ids {
					block := p.first + int64(i)
					rec, err := r.ReadRecord(ctx, id, buf)
					if err != nil {
						return err
					}
					raw, err := codec.Open(rec)
					if err != nil {
						return err
					}
					if len(raw) != x.BlockLen(block) {
						return Errorf(ChunkDamaged, "chunk %s has %d bytes, the index wants %d", id, len(raw), x.BlockLen(block))
					}
					if _, err := f.WriteAt(raw, block*BlockSize); err != nil {
						return Wrap(ExportFailed, err, "write at %d", block*BlockSize)
					}
					done += int64(len(raw))
				}
				if progress != nil {
					mu.Lock()
					now.Done += done
					progress(now)
					mu.Unlock()
				}
			}
			return nil
		})
	}
	return group.Wait()
}
