package segment

import "encoding/binary"

// Local is a place within this process: the edge.
type Local struct {
	station
	seg *Segment
	mac MAC
	in  func(frame []byte)
}

// NewLocal makes a place for somebody who has one address, and nothing else.
func (s *Segment) NewLocal(mac MAC) *Local {
	l := &Local{seg: s, mac: mac}
	l.station.receiver = l
	return l
}

// Join begins. Frames for the address, and those for all, are handed to in, which may not keep them, is called by several
// goroutines at once, and is where a machine that sends too much waits.
func (l *Local) Join(in func(frame []byte)) {
	l.in = in
	l.seg.join(&l.station, l.mac)
}

// Send passes on frames, each after its length in 4 bytes.
func (l *Local) Send(frames []byte) {
	// What is in it was made here; a frame that is longer than the segment's MTU is dropped like any other.
	_, _ = l.seg.input(&l.station, frames)
}

// Close takes it out of the segment.
func (l *Local) Close() { l.seg.leave(&l.station, l.mac) }

func (l *Local) here() bool { return true }

func (l *Local) deliver(run []byte, frames int) {
	if to := ParseMAC(run[prefix:]); to != l.mac && !to.group() {
		return // all of them go to one address
	}
	for len(run) > 0 {
		n := prefix + int(binary.BigEndian.Uint32(run))
		l.in(run[prefix:n])
		run = run[n:]
	}
}

func (l *Local) backlog(run []byte, frames int) { l.deliver(run, frames) }
