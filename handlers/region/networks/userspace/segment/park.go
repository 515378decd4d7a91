package segment

import (
	"encoding/binary"
	"slices"
	"sync"
)

// The bounds of what is kept for one address. The oldest frames go first.
const (
	ParkedFrames = 4096
	ParkedBytes  = 8 << 20
)

// park keeps frames for an address whose machine is on its way.
type park struct {
	mu       sync.Mutex
	released bool
	frames   []byte
	lengths  []int // of the frames, prefixes included, in order
}

// keep takes frames, and says whether it did: not after the release.
func (p *park) keep(run []byte, frames int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released {
		return false
	}
	p.frames = append(p.frames, run...)
	for len(run) > 0 {
		n := prefix + int(binary.BigEndian.Uint32(run))
		p.lengths = append(p.lengths, n)
		run = run[n:]
	}
	var gone, bytes int
	for len(p.lengths)-gone > ParkedFrames || len(p.frames)-bytes > ParkedBytes {
		bytes += p.lengths[gone]
		gone++
	}
	if gone > 0 {
		p.frames, p.lengths = p.frames[bytes:], p.lengths[gone:]
	}
	return true
}

func (p *park) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.lengths)
}

// Park keeps frames for the address from now on, in order and within bounds, until Release. Once more changes nothing.
func (s *Segment) Park(mac MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parked[mac] == nil {
		s.parked[mac] = &park{}
	}
}

// Release sends what was kept to wherever the address is now: where it was last seen, else where the plan has it, else
// everywhere. What comes later follows it.
func (s *Segment) Release(mac MAC) {
	s.mu.RLock()
	p := s.parked[mac]
	s.mu.RUnlock()
	if p == nil {
		return
	}
	// Who has looked up this park waits at its lock until all of it is on its way, and then looks up again.
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.released {
		return
	}
	p.released = true
	if len(p.lengths) > 0 {
		for _, st := range s.whereabouts(mac) {
			st.backlog(p.frames, len(p.lengths))
		}
	}
	p.frames, p.lengths = nil, nil
	s.mu.Lock()
	delete(s.parked, mac)
	s.mu.Unlock()
}

func (s *Segment) whereabouts(mac MAC) []*station {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if l := s.table[mac]; l != nil && l.at.here() {
		return []*station{l.at}
	}
	if o := s.owners[mac]; o != nil && o.here() {
		return []*station{o}
	}
	return slices.DeleteFunc(slices.Clone(*s.stations.Load()), func(st *station) bool { return !st.here() })
}

// Parked is how many frames wait for the address.
func (s *Segment) Parked(mac MAC) int {
	s.mu.RLock()
	p := s.parked[mac]
	s.mu.RUnlock()
	if p == nil {
		return 0
	}
	return p.waiting()
}
