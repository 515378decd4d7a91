package region

import (
	"context"
	"log/slog"
	"strings"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// readyDisks keeps the indexes of the instances' disks in memory, so that a
// clone opens in the same few milliseconds whatever the disk's size: reading an
// index of 16 GiB takes tens of them. An index takes 32 bytes for each 64 KiB of
// data; beyond readyBytes of data the least recently published are read when
// they are needed.
type readyDisks struct {
	cache *chunks.Cache

	mu    sync.Mutex
	disks map[string][]*chunks.Disk // by root
	order []string
	bytes int64
}

// readyBytes is how much disk data the indexes in memory may stand for: 128 MiB
// of memory.
const readyBytes = 256 << 30

func newReadyDisks(c *chunks.Cache) *readyDisks {
	return &readyDisks{cache: c, disks: map[string][]*chunks.Disk{}}
}

// keep opens the disks of a root that was published.
func (r *readyDisks) keep(ctx context.Context, root chunks.Root) error {
	var open []*chunks.Disk
	var bytes int64
	for _, d := range root.Indexes {
		disk, err := r.cache.Open(ctx, d)
		if err != nil {
			closeAll(open)
			return err
		}
		open = append(open, disk)
		bytes += disk.Size()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(root.Name)
	r.disks[root.Name], r.order = open, append(r.order, root.Name)
	for r.bytes += bytes; r.bytes > readyBytes && len(r.order) > 1; {
		r.drop(r.order[0])
	}
	return nil
}

// keepAll opens the disks of all instances that the store holds. What cannot be
// read keeps nothing else from being ready: scrubbing reports it, and its clones
// say why.
func (r *readyDisks) keepAll(ctx context.Context, store chunks.Reader, log *slog.Logger) {
	roots, err := store.Roots(ctx) // with an error, those that can be read
	if err != nil {
		log.Error("not everything that the store holds can be listed", "error", err)
	}
	for _, root := range roots {
		if !strings.HasPrefix(root.Name, instanceRoots) {
			continue
		}
		if err := r.keep(ctx, root); err != nil {
			log.Error("an instance's disks cannot be read", "name", root.Name, "error", err)
		}
	}
}

// forget closes the disks of a root that goes.
func (r *readyDisks) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop(name)
}

// drop is forget; r.mu is held.
func (r *readyDisks) drop(name string) {
	for _, d := range r.disks[name] {
		r.bytes -= d.Size()
	}
	closeAll(r.disks[name])
	delete(r.disks, name)
	for i, n := range r.order {
		if n == name {
			r.order = append(r.order[:i:i], r.order[i+1:]...)
			break
		}
	}
}

func (r *readyDisks) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.disks {
		r.drop(name)
	}
}

func closeAll(disks []*chunks.Disk) {
	for _, d := range disks {
		d.Close() // reading only: there is nothing to lose
	}
}
