// Package segment is a layer-2 network in user space: a switch that learns where addresses are, with a bounded queue before
// each port, so that a machine that stands still costs the others nothing.
//
// Frames travel as QEMU's stream netdev writes them: each after its length in 4 bytes, big-endian. They are never taken out
// of that form: what a machine sends to one destination in a row is looked up once and passed on as one piece of memory.
package segment

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	prefix    = 4               // bytes of length before each frame
	minFrame  = 14              // an Ethernet header
	overhead  = minFrame + 8    // with two VLAN tags
	maxLength = 4096 + 65536    // QEMU's largest; a longer one is no frame
	aging     = 5 * time.Minute // IEEE 802.1Q, table 8-6
	// learnedMax is how many addresses are learned at one port beyond those of the plan. Others are flooded to.
	learnedMax = 1024
)

// MAC is the 48 bits of an Ethernet address.
type MAC uint64

// ParseMAC takes 6 bytes.
func ParseMAC(b []byte) MAC {
	return MAC(binary.BigEndian.Uint16(b))<<32 | MAC(binary.BigEndian.Uint32(b[2:]))
}

func (m MAC) group() bool { return m>>40&1 == 1 }

// String is the usual form, with colons.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", byte(m>>40), byte(m>>32), byte(m>>24), byte(m>>16), byte(m>>8), byte(m))
}

// receiver is what frames are passed on to.
type receiver interface {
	// deliver takes whole frames, which it may not keep. It never waits for a machine.
	deliver(run []byte, frames int)
	// backlog is deliver for frames that waited elsewhere: no bound holds.
	backlog(run []byte, frames int)
	// here says that somebody is connected.
	here() bool
}

// learned is where an address was last seen.
type learned struct {
	at    *station
	extra bool         // not in the plan
	seen  atomic.Int64 // nanoseconds of the segment's clock
}

// station is one place of the segment that frames come from and go to.
type station struct {
	receiver
	counts   Counts
	learned  int  // addresses beyond the plan; guarded by Segment.mu
	sendsAny bool // may send with every address: what stands behind it was checked elsewhere
}

// Counts are those of one station, as seen from the segment.
type Counts struct {
	InFrames, InBytes, InDropped    atomic.Uint64
	OutFrames, OutBytes, OutDropped atomic.Uint64
	Garbage                         atomic.Uint64 // connections that were closed for what came over them
}

// Segment is one layer-2 network. Its methods are safe for concurrent use.
type Segment struct {
	maxFrame uint32
	clock    func() time.Duration

	mu       sync.RWMutex
	owners   map[MAC]*station // of the plan: nobody else sends with these
	table    map[MAC]*learned
	parked   map[MAC]*park
	stations atomic.Pointer[[]*station] // copied when it changes
}

// New makes a segment for frames with at most mtu bytes of payload.
func New(mtu int) *Segment {
	start := time.Now()
	s := &Segment{
		maxFrame: uint32(mtu + overhead),
		clock:    func() time.Duration { return time.Since(start) },
		owners:   map[MAC]*station{},
		table:    map[MAC]*learned{},
		parked:   map[MAC]*park{},
	}
	s.stations.Store(&[]*station{})
	return s
}

// MTU is the payload that its frames may have, in bytes.
func (s *Segment) MTU() int { return int(s.maxFrame) - overhead }

func (s *Segment) join(st *station, mac MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owners[mac] = st
	all := append(slices.Clone(*s.stations.Load()), st)
	s.stations.Store(&all)
}

func (s *Segment) leave(st *station, mac MAC) {
	s.forget(st)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners[mac] == st {
		delete(s.owners, mac)
		delete(s.parked, mac)
	}
	all := slices.DeleteFunc(slices.Clone(*s.stations.Load()), func(o *station) bool { return o == st })
	s.stations.Store(&all)
}

// forget drops what was learned at a station whose machine went.
func (s *Segment) forget(st *station) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.table, func(_ MAC, l *learned) bool { return l.at == st })
	st.learned = 0
}

// verdict says where frames from one address to another go.
type verdict struct {
	drop  bool
	park  *park
	to    *station
	flood bool
}

// decide learns the source and looks the destination up.
func (s *Segment) decide(from *station, dst, src MAC) verdict {
	now := int64(s.clock())
	s.mu.RLock()
	owner, entry := s.owners[src], s.table[src]
	v := s.lookup(from, dst, now)
	s.mu.RUnlock()
	if src.group() || owner != nil && owner != from && !from.sendsAny {
		return verdict{drop: true}
	}
	if entry != nil && entry.at == from {
		entry.seen.Store(now)
	} else {
		s.learn(from, src, now)
	}
	return v
}

func (s *Segment) lookup(from *station, dst MAC, now int64) verdict {
	if dst.group() {
		return verdict{flood: true}
	}
	if p := s.parked[dst]; p != nil {
		return verdict{park: p}
	}
	if l := s.table[dst]; l != nil && now-l.seen.Load() < int64(aging) {
		if l.at == from {
			return verdict{} // it has them already
		}
		return verdict{to: l.at}
	}
	return verdict{flood: true}
}

func (s *Segment) learn(from *station, src MAC, now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	extra := s.owners[src] == nil
	if extra && from.learned >= learnedMax {
		maps.DeleteFunc(s.table, func(_ MAC, l *learned) bool {
			aged := l.extra && l.at == from && now-l.seen.Load() >= int64(aging)
			if aged {
				from.learned--
			}
			return aged
		})
		if from.learned >= learnedMax {
			return
		}
	}
	if old := s.table[src]; old != nil && old.extra {
		old.at.learned--
	}
	if extra {
		from.learned++
	}
	l := &learned{at: from, extra: extra}
	l.seen.Store(now)
	s.table[src] = l
}

// input passes on the whole frames of buf. It gives how many bytes that were; an error says that what follows cannot be a frame.
func (s *Segment) input(from *station, buf []byte) (used int, err error) {
	var (
		v          verdict
		key        []byte // the two addresses that v is for
		start      int    // of the frames that go the same way
		frames     int
		got, bytes int // in all
	)
	for len(buf)-used >= prefix {
		n := binary.BigEndian.Uint32(buf[used:])
		if n < minFrame || n > maxLength {
			err = fmt.Errorf("a frame of %d bytes", n)
			break
		}
		end := used + prefix + int(n)
		if end > len(buf) {
			break
		}
		frame := buf[used+prefix : end]
		tooLong := n > s.maxFrame
		if tooLong || key == nil || string(frame[:12]) != string(key) {
			s.pass(from, v, buf[start:used], frames)
			start, frames, key = used, 0, frame[:12]
			if tooLong {
				v, key = verdict{drop: true}, nil
			} else {
				v = s.decide(from, ParseMAC(frame), ParseMAC(frame[6:]))
			}
		}
		used = end
		frames++
		got++
		bytes += int(n)
	}
	s.pass(from, v, buf[start:used], frames)
	from.counts.InFrames.Add(uint64(got))
	from.counts.InBytes.Add(uint64(bytes))
	return used, err
}

// pass sends frames that have one verdict.
func (s *Segment) pass(from *station, v verdict, run []byte, frames int) {
	switch {
	case frames == 0:
	case v.drop:
		from.counts.InDropped.Add(uint64(frames))
	case v.park != nil:
		if !v.park.keep(run, frames) { // released meanwhile
			first := run[prefix:]
			s.pass(from, s.decide(from, ParseMAC(first), ParseMAC(first[6:])), run, frames)
		}
	case v.to != nil:
		v.to.deliver(run, frames)
	case v.flood:
		s.flood(from, run, frames)
	}
}

func (s *Segment) flood(from *station, run []byte, frames int) {
	for _, st := range *s.stations.Load() {
		if st != from && st.here() {
			st.deliver(run, frames)
		}
	}
}
