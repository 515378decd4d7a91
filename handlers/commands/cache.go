package commands

import (
	"container/list"
	"sync"

	"github.com/tombolo-vdc/tombolo/events"
)

// cache keeps the states of the aggregates used last. A slot that is in use is
// never evicted, and is used by one goroutine at a time.
type cache struct {
	mu    sync.Mutex
	size  int
	slots map[events.Aggregate]*slot
	idle  *list.List // slots nobody uses, least recently used first
}

type slot struct {
	mu        sync.Mutex
	aggregate events.Aggregate
	loaded    bool // state is the fold of everything up to head, and head was the tip when last looked
	state     any  // the aggregate's State; its type is the command's business
	head      events.Head
	answered  map[string]answer // by event id

	users   int           // under cache.mu
	element *list.Element // in idle, when users is 0
}

type answer struct {
	body    events.Digest
	outcome Outcome
}

func newCache(size int) *cache {
	return &cache{size: size, slots: map[events.Aggregate]*slot{}, idle: list.New()}
}

// acquire gives the aggregate's slot for the caller's use alone.
func (c *cache) acquire(a events.Aggregate) *slot {
	c.mu.Lock()
	s, ok := c.slots[a]
	if !ok {
		s = &slot{aggregate: a, answered: map[string]answer{}}
		c.slots[a] = s
	}
	if s.element != nil {
		c.idle.Remove(s.element)
		s.element = nil
	}
	s.users++
	c.mu.Unlock()
	s.mu.Lock()
	return s
}

func (c *cache) release(s *slot) {
	s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.users--
	if s.users > 0 {
		return
	}
	s.element = c.idle.PushBack(s)
	for len(c.slots) > c.size && c.idle.Len() > 0 {
		oldest := c.idle.Remove(c.idle.Front()).(*slot)
		delete(c.slots, oldest.aggregate)
	}
}
