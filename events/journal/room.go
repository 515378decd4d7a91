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
	alarm       func(level Level, used, limit uint64)
	level       Level // that the alarm was told of
}

// Level is how full a journal is.
type Level int

// The levels.
const (
	Roomy Level = iota
	// Filling is from eight tenths of the limit on: it is to be raised soon.
	Filling
	// NearlyFull is where the next event may be beyond nine tenths, from where on only what finishes, undoes or
	// releases something is accepted.
	NearlyFull
)

// LevelOf is the level of a journal that takes so many bytes of so many that it may take; limit 0 is none.
func LevelOf(used, limit uint64) Level {
	switch {
	case limit == 0 || used < limit/10*8:
		return Roomy
	case used+maxMessage <= reserved(limit):
		return Filling
	}
	return NearlyFull
}

const (
	// staleAfter is how old the store's word may get: other processes append too.
	staleAfter = 10 * time.Second
	// doubtful is the same for refusing: no event is refused on older word.
	doubtful = 100 * time.Millisecond
)

// reserved is the limit, in bytes, for events that do not finish, undo or release.
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
	r.used, r.limit, r.learned = used, limit, now
	r.unlockAndTell()
}

// unlockAndTell gives mu back and raises the alarm where the level is another one than before.
func (r *room) unlockAndTell() {
	level, used, limit := LevelOf(r.used, r.limit), r.used, r.limit
	changed := level != r.level
	r.level = level
	r.mu.Unlock()
	if changed && r.alarm != nil {
		r.alarm(level, used, limit)
	}
}

func (r *room) add(size uint64) {
	r.mu.Lock()
	r.used += size
	r.unlockAndTell()
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

func (r *room) full(t events.Type, finishing bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &FullError{Type: t, Finishing: finishing, Used: r.used, Limit: r.limit}
}
