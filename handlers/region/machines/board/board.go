// Package board tells everyone who watches how machines' states change.
package board

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// Board knows the state of each machine. It is safe for concurrent use.
type Board struct {
	mu       sync.Mutex
	states   map[machines.ID]machines.Status
	watchers map[*watcher]struct{}
}

// watcher is who has not been told all yet; its queue is guarded by the board.
type watcher struct {
	queue []machines.Status
	more  chan struct{} // of one
}

// New makes an empty board.
func New() *Board {
	return &Board{states: map[machines.ID]machines.Status{}, watchers: map[*watcher]struct{}{}}
}

// Tell puts a machine's status up, and tells everyone where it is another state, end or process than before. After
// EndKilled there is no such machine.
func (b *Board) Tell(s machines.Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, known := b.states[s.ID]
	gone := s.End == machines.EndKilled
	if gone && !known || known && old.State == s.State && old.End == s.End && old.PID == s.PID {
		return
	}
	if gone {
		delete(b.states, s.ID)
	} else {
		b.states[s.ID] = s
	}
	for w := range b.watchers {
		w.queue = append(w.queue, s)
		w.wake()
	}
}

func (w *watcher) wake() {
	select {
	case w.more <- struct{}{}:
	default: // it will look anyway
	}
}

// Watch implements machines.Reader.
func (b *Board) Watch(ctx context.Context, each func(machines.Status)) error {
	w := &watcher{more: make(chan struct{}, 1)}
	b.mu.Lock()
	for _, s := range b.states {
		w.queue = append(w.queue, s)
	}
	slices.SortFunc(w.queue, func(a, b machines.Status) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	b.watchers[w] = struct{}{}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.watchers, w)
		b.mu.Unlock()
	}()
	for {
		b.mu.Lock()
		queue := w.queue
		w.queue = nil
		b.mu.Unlock()
		for _, s := range queue {
			if err := ctx.Err(); err != nil {
				return err
			}
			each(s)
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.more:
		}
	}
}
