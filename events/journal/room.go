package journal

import (
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// room knows how full the journal is without asking before each append: what
// the store said last, plus what this process has appended since.
type room struct {
	mu          sync.Mutex
	used, limit uint64
	learned     time.Time
	asking      bool
}

const (
	// staleAfter is how old the store's word may get: other processes append too.
	staleAfter = 10 * time.Second
	// doubtful is the same for refusing: no event is refused on older word.
	doubtful = 100 * time.Millisecond
)

// reserved is the limit for events that do not finish, undo or release.
func reserved(limit uint64) uint64 { return limit / 10 * 9 }

// admits reports whether an event may be stored. Limit 0 is none.
func admits(used, limit, size uint64, finishing bool) bool {
	switch {
	case limit == 0:
		return true
	case finishing:
		return used+size <= limit
	}
	return used+size <= reserved(limit)
}

func (r *room) learn(used, limit uint64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used, r.limit, r.learned = used, limit, now
}

func (r *room) add(size uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used += size
}

// ask gives the verdict on an event of this size, whether it rests on fresh word, and whether
// the caller should fetch newer word in the background (then asked ends that).
func (r *room) ask(size uint64, finishing bool, now time.Time) (admitted, fresh, refresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	age := now.Sub(r.learned)
	refresh = age > staleAfter && !r.asking
	r.asking = r.asking || refresh
	return admits(r.used, r.limit, size, finishing), age < doubtful, refresh
}

func (r *room) asked() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asking = false
}

func (r *room) full(t events.Type) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &FullError{Type: t, Used: r.used, Limit: r.limit}
}
