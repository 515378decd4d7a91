package projections

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// pacer lets Pebble compact, except while a feed catches up: rows that a later
// table changes anyway would be written again and again meanwhile, by a
// processor that the feed could use. It is the pebble.CompactionScheduler of one store.
type pacer struct {
	db       pebble.DBForCompaction // since Register
	granting sync.Mutex             // held while db is asked for work

	mu      sync.Mutex
	running int
	held    bool
	closed  bool
}

// Register is called once, by Pebble.
func (p *pacer) Register(_ int, db pebble.DBForCompaction) { p.db = db }

// Unregister returns when the database is not called any more.
func (p *pacer) Unregister() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.granting.Lock() // waits for a grant that goes on
	defer p.granting.Unlock()
}

// TrySchedule is Pebble's question whether a compaction may begin.
func (p *pacer) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !p.take() {
		return false, nil
	}
	return true, p
}

// take counts one more compaction in, if it may begin.
func (p *pacer) take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.held || p.running >= p.db.GetAllowedWithoutPermission() {
		return false
	}
	p.running++
	return true
}

func (p *pacer) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
}

// UpdateGetAllowedWithoutPermission has nothing to do: how many are allowed never changes.
func (p *pacer) UpdateGetAllowedWithoutPermission() {}

// Started, MeasureCPU and CumulativeStats tell of a compaction; nothing follows from it.
func (p *pacer) Started() {}

// MeasureCPU see Started.
func (p *pacer) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats see Started.
func (p *pacer) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// Done ends one compaction, and begins the next if one waits.
func (p *pacer) Done() {
	p.leave()
	p.grant()
}

// hold stops compactions from beginning, or lets them.
func (p *pacer) hold(held bool) {
	p.mu.Lock()
	was := p.held
	p.held = held
	p.mu.Unlock()
	if was && !held {
		p.grant()
	}
}

// grant lets waiting compactions begin.
func (p *pacer) grant() {
	p.granting.Lock()
	defer p.granting.Unlock()
	for p.take() {
		if waiting, _ := p.db.GetWaitingCompaction(); !waiting || !p.db.Schedule(p) {
			p.leave()
			return
		}
	}
}
