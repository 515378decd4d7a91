package volumes

import "sync/atomic"

// state is what a layer says of a block.
type state uint64

const (
	inherited state = iota // the layer below tells
	written                // the bytes are in the layer's file
	zeroed                 // the block reads as zeros, whatever the file holds
)

const (
	wordBlocks = 32                     // two bits each
	pageWords  = 512                    // a page is 4 KiB
	pageBlocks = wordBlocks * pageWords // 64 MiB of the volume
	allOnes    = ^uint64(0) / 3         // 01 in every pair of bits
)

// blockMap holds the states of a layer's blocks. Memory follows what was written: 4 KiB for each 64 MiB that is touched.
// Reading needs no lock; one goroutine at a time may set.
type blockMap struct {
	blocks int64
	pages  []atomic.Pointer[[pageWords]atomic.Uint64]
}

func newBlockMap(size int64) blockMap {
	blocks := blocksOf(size)
	return blockMap{blocks: blocks, pages: make([]atomic.Pointer[[pageWords]atomic.Uint64], (blocks+pageBlocks-1)/pageBlocks)}
}

// blocksOf is the number of blocks that n bytes take.
func blocksOf(n int64) int64 { return (n + BlockSize - 1) / BlockSize }

func (m *blockMap) at(block int64) state {
	page := m.pages[block/pageBlocks].Load()
	if page == nil {
		return inherited
	}
	return state(page[block%pageBlocks/wordBlocks].Load()>>(block%wordBlocks*2)) & 3
}

// run gives the state of a block, and where, at end or before, another state begins.
func (m *blockMap) run(block, end int64) (state, int64) {
	s := m.at(block)
	for block < end {
		page := m.pages[block/pageBlocks].Load()
		switch {
		case page == nil:
			if s != inherited {
				return s, block
			}
			block += pageBlocks - block%pageBlocks
		case block%wordBlocks == 0 && page[block%pageBlocks/wordBlocks].Load() == uint64(s)*allOnes:
			block += wordBlocks
		case m.at(block) != s:
			return s, block
		default:
			block++
		}
	}
	return s, end
}

// set gives the blocks from first to end a state and says whether any had another one.
func (m *blockMap) set(first, end int64, s state) {
	for block := first; block < end; {
		at := &m.pages[block/pageBlocks]
		page := at.Load()
		if page == nil {
			page = new([pageWords]atomic.Uint64)
			at.Store(page)
		}
		word := &page[block%pageBlocks/wordBlocks]
		from := block % wordBlocks
		to := min(wordBlocks, from+end-block)
		mask := ^uint64(0) >> (64 - 2*(to-from)) << (2 * from)
		word.Store(word.Load()&^mask | uint64(s)*allOnes&mask)
		block += to - from
	}
}

// span is a run of blocks of one state.
type span struct {
	first, end int64
	state      state
}

// spans calls each with the runs that are not inherited, in order, until it says no.
func (m *blockMap) spans(each func(span) bool) {
	for block := int64(0); block < m.blocks; {
		s, end := m.run(block, m.blocks)
		if s != inherited && !each(span{block, end, s}) {
			return
		}
		block = end
	}
}
