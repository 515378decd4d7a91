package transfer

import (
	"context"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// queue shares out the chunks of a transfer to workers. A batch is a request on its way; who has nothing to do takes
// over the second half of a batch that would end much later with who has it.
type queue struct {
	mu      sync.Mutex
	changed chan struct{} // closed and made anew whenever a waiting worker should look again

	ids      []chunks.ID    // all that is lacking, in the disk's order
	fresh    int            // the first that nobody ever asked for
	returned []int          // asked for and not got
	not      map[int]uint64 // sources (bits) that do not have a good copy
	batches  map[*batch]bool
	left     int
	alive    uint64 // sources (bits)
	perChunk []time.Duration
	now      func() time.Time
}

// batch is what one worker asked for; ids[next:end] have not come yet.
type batch struct {
	source    int
	items     []int
	next, end int
	began     time.Time
}

const (
	minBatch = 8
	maxBatch = 256
	// A theft must save at least this much, or connections would be broken for nothing.
	minSaving = 200 * time.Millisecond
)

func newQueue(ids []chunks.ID, sources int, now func() time.Time) *queue {
	return &queue{
		changed: make(chan struct{}), ids: ids, not: map[int]uint64{}, batches: map[*batch]bool{}, left: len(ids),
		alive: 1<<sources - 1, perChunk: make([]time.Duration, sources), now: now,
	}
}

// wake lets waiting workers look again; it wants mu.
func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// take gives a source its next batch; nil where all is done, the source is out, or the context ended. It waits while
// others have work that may come back.
func (q *queue) take(ctx context.Context, source, want int) *batch {
	tick := time.NewTicker(minSaving)
	defer tick.Stop()
	for {
		q.mu.Lock()
		if q.left == 0 || q.alive&(1<<source) == 0 || ctx.Err() != nil || q.hopeless() {
			q.mu.Unlock()
			return nil
		}
		b := q.pick(source, want)
		if b == nil {
			b = q.steal(source)
		}
		if b != nil {
			b.source, b.end, b.began = source, len(b.items), q.now()
			q.batches[b] = true
			q.mu.Unlock()
			return b
		}
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-tick.C: // a batch that does not move becomes worth stealing by time alone
		case <-ctx.Done():
		}
	}
}

func (q *queue) pick(source, want int) *batch {
	var b batch
	kept := q.returned[:0]
	for _, i := range q.returned {
		if len(b.items) < want && q.not[i]&(1<<source) == 0 {
			b.items = append(b.items, i)
		} else {
			kept = append(kept, i)
		}
	}
	q.returned = kept
	for ; len(b.items) < want && q.fresh < len(q.ids); q.fresh++ {
		b.items = append(b.items, q.fresh)
	}
	if len(b.items) == 0 {
		return nil
	}
	return &b
}

// steal takes the second half of the batch of another source that would end last, where the thief is at least twice as
// fast. Connections to one source share its link, so between them there is nothing to gain.
func (q *queue) steal(thief int) *batch {
	var victim *batch
	var longest time.Duration
	for b := range q.batches {
		if left := b.end - b.next; left >= 2 && b.source != thief {
			per := q.now().Sub(b.began) / time.Duration(max(1, b.next))
			if d := per * time.Duration(left); d > longest {
				victim, longest = b, d
			}
		}
	}
	if victim == nil {
		return nil
	}
	half := (victim.end - victim.next) / 2
	if own := q.perChunk[thief] * time.Duration(half); longest < 2*own+minSaving {
		return nil
	}
	var out batch
	for _, i := range victim.items[victim.end-half : victim.end] {
		if q.not[i]&(1<<thief) != 0 {
			return nil
		}
		out.items = append(out.items, i)
	}
	victim.end -= half
	return &out
}

// arrived moves the batch on by one chunk; more says whether the rest of the answer is still wanted.
func (q *queue) arrived(b *batch) (more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b.next++
	q.left--
	if q.left == 0 {
		q.wake()
	}
	return b.next < b.end
}

// lacks moves the batch on by a chunk that the source does not have, or has a bad copy of.
func (q *queue) lacks(b *batch) (more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := b.items[b.next]
	q.not[i] |= 1 << b.source
	q.returned = append(q.returned, i)
	b.next++
	q.wake()
	return b.next < b.end
}

// finish gives back what did not come.
func (q *queue) finish(b *batch) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.batches, b)
	q.returned = append(q.returned, b.items[b.next:b.end]...)
	if b.next > 0 {
		per := q.now().Sub(b.began) / time.Duration(b.next)
		if old := q.perChunk[b.source]; old > 0 {
			per = (per + 3*old) / 4
		}
		q.perChunk[b.source] = per
	}
	q.wake()
}

// drop takes a source out.
func (q *queue) drop(source int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.alive &^= 1 << source
	q.wake()
}

// hopeless says that a chunk is left that no source can give; it wants mu.
func (q *queue) hopeless() bool {
	if q.alive == 0 {
		return true
	}
	for _, i := range q.returned {
		if q.alive&^q.not[i] == 0 {
			return true
		}
	}
	return false
}

// without gives the chunks that no source has a good copy of, and how many have not come.
func (q *queue) without() (nobody []chunks.ID, left int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range q.returned {
		if q.alive != 0 && q.alive&^q.not[i] == 0 {
			nobody = append(nobody, q.ids[i])
		}
	}
	return nobody, q.left
}

// idsOf gives the ids that a batch began with.
func (q *queue) idsOf(b *batch) []chunks.ID {
	out := make([]chunks.ID, len(b.items))
	for n, i := range b.items {
		out[n] = q.ids[i]
	}
	return out
}
