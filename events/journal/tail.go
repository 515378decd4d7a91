package journal

import (
	"context"
	"sync"

	"github.com/tombolo-vdc/tombolo/events"
)

// tailRecords is how many of the last records are kept, at least, for those who follow. Who is further behind reads the
// stream by itself until it has come so near.
const tailRecords = 512

// tail reads the end of the stream once for all who follow it in this process. Without it each of them (a read model,
// every process manager) would have a consumer of its own, and every event would be delivered and decoded as often as
// there are followers.
type tail struct {
	mu        sync.Mutex
	followers int
	reading   context.CancelFunc // ends the reading; nil where nobody reads
	known     bool               // low is known
	low       uint64             // the position before the records
	records   []events.Record    // the last ones, without a gap; never changed, as followers look at them
	moved     chan struct{}      // closed when records came, or the reading ended
}

// join counts a follower in.
func (t *tail) join() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.followers++
}

// leave ends the reading with the last follower.
func (t *tail) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.followers--; t.followers == 0 && t.reading != nil {
		t.reading()
		t.reading = nil // what still reads is no longer this tail's
	}
}

// after gives the records after the position, and what to wait for where there are none. It does not know where the
// position lies before what is kept, or nobody reads; then it begins to.
func (t *tail) after(j *JetStream, position uint64) (records []events.Record, moved <-chan struct{}, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reading == nil {
		ctx, cancel := context.WithCancel(context.Background())
		t.reading, t.known, t.records, t.moved = cancel, false, nil, make(chan struct{})
		go t.read(ctx, cancel, j)
		return nil, nil, false
	}
	if !t.known || position < t.low {
		return nil, nil, false
	}
	return t.records[min(position-t.low, uint64(len(t.records))):], t.moved, true
}

// read keeps what comes after the tip until the context ends or the stream cannot be read. What is wrong then, each
// follower finds out by itself.
func (t *tail) read(ctx context.Context, cancel context.CancelFunc, j *JetStream) {
	defer cancel()
	if tip, err := j.Tip(ctx); err == nil && t.start(ctx, tip) {
		_ = j.follow(ctx, tip, "", func(r events.Record) error {
			t.keep(ctx, r)
			return ctx.Err()
		})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() == nil { // otherwise another reading may have begun
		t.reading = nil
		t.tell()
	}
}

func (t *tail) start(ctx context.Context, tip uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	t.known, t.low = true, tip
	return true
}

func (t *tail) keep(ctx context.Context, r events.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if len(t.records) == 2*tailRecords {
		t.low += tailRecords
		t.records = append(make([]events.Record, 0, 2*tailRecords), t.records[tailRecords:]...)
	}
	t.records = append(t.records, r)
	t.tell()
}

// tell wakes who waits. The caller holds mu.
func (t *tail) tell() {
	close(t.moved)
	t.moved = make(chan struct{})
}
