package pool

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
)

// span is one range that was added to the pool: a prefix of addresses or a list
// of values, and which of them are taken. A span never changes; set gives a new
// one that shares all but one page with the old.
type span struct {
	prefix netip.Prefix
	bind   netip.Prefix // where the prefix is really bound; zero: the values are what they say
	offset int          // added to ports where bind is used

	values []string       // instead of a prefix
	index  map[string]int // positions in values; written once, when the span is made

	pages []*page // nil where nothing is taken
	taken int
}

// A page holds the bits of 4096 positions, so that a change in a span of 2^20
// copies half a kilobyte of bits and two kilobytes of pointers.
const pageSize = 4096

type page struct {
	words [pageSize / 64]uint64
	taken int
}

func spanOf(prefix, bind netip.Prefix, offset int) span {
	s := span{prefix: prefix, bind: bind, offset: offset}
	s.pages = make([]*page, (s.size()+pageSize-1)/pageSize)
	return s
}

func spanOfValues(values []string) span {
	s := span{values: slices.Clone(values), index: make(map[string]int, len(values))}
	for i, v := range s.values {
		s.index[v] = i
	}
	s.pages = make([]*page, (s.size()+pageSize-1)/pageSize)
	return s
}

func (s span) size() int {
	if !s.prefix.IsValid() {
		return len(s.values)
	}
	return 1 << (s.prefix.Addr().BitLen() - s.prefix.Bits())
}

// at is the value at a position.
func (s span) at(i int) string {
	if !s.prefix.IsValid() {
		return s.values[i]
	}
	return plus(s.prefix.Addr(), i).String()
}

// position is the inverse of at.
func (s span) position(value string) (int, bool) {
	if !s.prefix.IsValid() {
		i, ok := s.index[value]
		return i, ok
	}
	a, err := netip.ParseAddr(value)
	if err != nil || !s.prefix.Contains(a) {
		return 0, false
	}
	return int(low(a) - low(s.prefix.Addr())), true
}

// set gives the span with the position taken or free.
func (s span) set(i int, taken bool) span {
	p := page{}
	if old := s.pages[i/pageSize]; old != nil {
		p = *old
	}
	word, bit := &p.words[i%pageSize/64], uint64(1)<<(i%64)
	if (*word&bit != 0) == taken {
		return s
	}
	*word ^= bit
	by := 1
	if !taken {
		by = -1
	}
	p.taken += by
	s.taken += by
	s.pages = slices.Clone(s.pages)
	s.pages[i/pageSize] = &p
	return s
}

// free is the lowest free position from i on, or -1.
func (s span) free(i int) int {
	for size := s.size(); i < size; {
		p := s.pages[i/pageSize]
		switch {
		case p == nil:
			return i
		case p.taken == pageSize:
			i = (i/pageSize + 1) * pageSize
			continue
		}
		if clear := ^p.words[i%pageSize/64] >> (i % 64); clear != 0 {
			if i += bits.TrailingZeros64(clear); i < size {
				return i
			}
			return -1
		}
		i = (i/64 + 1) * 64
	}
	return -1
}

// String is the range as people write it.
func (s span) String() string {
	switch {
	case s.prefix.IsValid():
		return s.prefix.String()
	case len(s.values) == 1:
		return s.values[0]
	default:
		return fmt.Sprintf("%s … %s (%d values)", s.values[0], s.values[len(s.values)-1], len(s.values))
	}
}

// low is the low half of an address: a range is at most 2^20 and aligned, so
// that differences within it never leave the low half.
func low(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}

func plus(a netip.Addr, i int) netip.Addr {
	b := a.As16()
	binary.BigEndian.PutUint64(b[8:], low(a)+uint64(i))
	sum := netip.AddrFrom16(b)
	if a.Is4() {
		return sum.Unmap()
	}
	return sum
}

// canonical gives addresses their one spelling and leaves other values alone.
func canonical(value string) string {
	if a, err := netip.ParseAddr(value); err == nil && a.Zone() == "" {
		return a.Unmap().String()
	}
	return value
}
