package images

import (
	"bytes"
	"errors"
	"io"
)

// group is the metadata of one block group. Blocks of the inode table that hold nothing are nil: they cost neither
// memory nor space in the file.
type group struct {
	blocks, inodes []byte
	table          [inodeTableBlocks][]byte
	usedDirs       uint32
}

// volume is an ext4 file system whose metadata is in memory, while file data goes straight to the image.
type volume struct {
	out     io.WriterAt
	label   string
	uuid    [16]byte
	seed    [16]byte // of directory hashes; the kernel needs one as soon as it indexes a directory
	made    uint32
	written uint32
	groups  []*group
	total   uint32 // blocks
	grows   bool   // groups are added as blocks or inodes run out
	cursor  uint32 // where the search for free blocks begins
	journal []extent
}

// firstData is the first block of a group behind its metadata.
func firstData(g uint32) uint32 { return bitmapBlock(g) + 2 + inodeTableBlocks }

// bitmapBlock is the block bitmap's place; the inode bitmap and the inode table follow it.
func bitmapBlock(g uint32) uint32 {
	at := g * blocksPerGroup
	if hasBackup(g) {
		at += 2 // the superblock, the descriptors
	}
	return at
}

func (v *volume) addGroup() error {
	g := uint32(len(v.groups))
	if g == maxGroups {
		return &Error{Code: CodeFull, Text: "an image holds at most 16 GiB"}
	}
	n := &group{blocks: make([]byte, blockSize), inodes: make([]byte, blockSize)}
	for b := g * blocksPerGroup; b < firstData(g); b++ {
		setBit(n.blocks, b%blocksPerGroup)
	}
	for i := inodesPerGroup / 8; i < blockSize; i++ {
		n.inodes[i] = 0xFF // e2fsck wants the padding set
	}
	v.groups = append(v.groups, n)
	v.total = (g + 1) * blocksPerGroup
	return nil
}

// format begins an empty file system with a journal; root and lost+found are made by the caller.
func (v *volume) format() error {
	if err := v.addGroup(); err != nil {
		return err
	}
	for i := range uint32(lostFoundInode - 1) {
		setBit(v.groups[0].inodes, i)
	}
	v.cursor = firstData(0)
	runs, err := v.allocate(journalBlocks)
	if err != nil {
		return err
	}
	v.journal = runs
	if err := v.write(runs, journalSuperblock(v.uuid)); err != nil {
		return err
	}
	return v.putInode(journalInode, inode{mode: modeRegular | 0o600, links: 1, size: journalBlocks * blockSize,
		blocks: journalBlocks * blockSize / 512, time: v.made, extents: runs})
}

// allocate takes so many free blocks from the cursor on, in at most as many runs as fit into an inode.
func (v *volume) allocate(count uint32) ([]extent, error) {
	var runs []extent
	var found uint32
	start, wrapped := v.cursor, false
	for at := start; found < count; at++ {
		if at == v.total {
			switch {
			case v.grows:
				if err := v.addGroup(); err != nil {
					return nil, err
				}
			case wrapped:
				return nil, fullImage()
			default:
				at, wrapped = 0, true
			}
		}
		if wrapped && at >= start {
			return nil, fullImage()
		}
		if bit(v.groups[at/blocksPerGroup].blocks, at%blocksPerGroup) {
			continue
		}
		last := len(runs) - 1
		if last >= 0 && runs[last].start+runs[last].length == at && runs[last].length < blocksPerGroup-1 {
			runs[last].length++
		} else {
			if len(runs) == inlineExtents {
				return nil, fullImage()
			}
			runs = append(runs, extent{logical: found, start: at, length: 1})
		}
		found++
	}
	for _, r := range runs {
		for b := r.start; b < r.start+r.length; b++ {
			setBit(v.groups[b/blocksPerGroup].blocks, b%blocksPerGroup)
		}
		v.cursor = r.start + r.length
	}
	return runs, nil
}

func (v *volume) free(runs []extent) {
	for _, r := range runs {
		for b := r.start; b < r.start+r.length; b++ {
			clearBit(v.groups[b/blocksPerGroup].blocks, b%blocksPerGroup)
		}
	}
}

func (v *volume) allocateInode() (uint32, error) {
	for g := 0; ; g++ {
		if g == len(v.groups) {
			if !v.grows {
				return 0, fullImage()
			}
			if err := v.addGroup(); err != nil {
				return 0, err
			}
		}
		bitmap := v.groups[g].inodes
		for i := 0; i < inodesPerGroup/8; i++ {
			if bitmap[i] == 0xFF {
				continue
			}
			for b := range uint32(8) {
				if at := uint32(i)*8 + b; !bit(bitmap, at) {
					setBit(bitmap, at)
					return uint32(g)*inodesPerGroup + at + 1, nil
				}
			}
		}
	}
}

// place is an inode's group and its index within it.
func place(number uint32) (uint32, uint32) {
	return (number - 1) / inodesPerGroup, (number - 1) % inodesPerGroup
}

func (v *volume) putInode(number uint32, n inode) error {
	g, i := place(number)
	block := &v.groups[g].table[i/inodesPerBlock]
	if *block == nil {
		*block = make([]byte, blockSize)
	}
	at := i % inodesPerBlock * inodeSize
	n.encode((*block)[at : at+inodeSize])
	return nil
}

func (v *volume) inode(number uint32) (inode, error) {
	g, i := place(number)
	if number == 0 || int(g) >= len(v.groups) || v.groups[g].table[i/inodesPerBlock] == nil {
		return inode{}, foreign("inode %d does not exist", number)
	}
	at := i % inodesPerBlock * inodeSize
	return decodeInode(v.groups[g].table[i/inodesPerBlock][at:at+inodeSize], v.total)
}

// write puts data into runs; what is left of the last block is written as zeros.
func (v *volume) write(runs []extent, data []byte) error {
	for _, r := range runs {
		n := min(len(data), int(r.length)*blockSize)
		if n == 0 {
			return nil
		}
		at := int64(r.start) * blockSize
		if _, err := v.out.WriteAt(data[:n], at); err != nil {
			return err
		}
		if pad := -n & (blockSize - 1); pad > 0 {
			if _, err := v.out.WriteAt(make([]byte, pad), at+int64(n)); err != nil {
				return err
			}
		}
		data = data[n:]
	}
	return nil
}

// store allocates blocks for data and writes it; empty data has no blocks.
func (v *volume) store(data []byte) ([]extent, uint32, error) {
	count := uint32((len(data) + blockSize - 1) / blockSize)
	if count == 0 {
		return nil, 0, nil
	}
	runs, err := v.allocate(count)
	if err != nil {
		return nil, 0, err
	}
	return runs, count * (blockSize / 512), v.write(runs, data)
}

// seal ends growing: the disk ends so many blocks behind the last one in use, at a whole MiB.
func (v *volume) seal(headroom int64) error {
	end := max(int64(v.lastUsed()), int64(firstData(uint32(len(v.groups)-1)))) + 1 + headroom
	const mib = 1 << 20 / blockSize
	end = (end + mib - 1) / mib * mib
	// A last group too small for its metadata and some data would be refused by the kernel.
	if g := uint32(end / blocksPerGroup); g < maxGroups {
		if least := int64(firstData(g)) + mib; end%blocksPerGroup != 0 && end < least {
			end = (least + mib - 1) / mib * mib
		}
	}
	if end > maxGroups*blocksPerGroup {
		return &Error{Code: CodeFull, Text: "an image holds at most 16 GiB"}
	}
	for int64(len(v.groups))*blocksPerGroup < end {
		if err := v.addGroup(); err != nil {
			return err
		}
	}
	v.total, v.grows = uint32(end), false
	last := v.groups[len(v.groups)-1]
	for b := v.total; b < uint32(len(v.groups))*blocksPerGroup; b++ {
		setBit(last.blocks, b%blocksPerGroup)
	}
	return nil
}

// flush writes all metadata.
func (v *volume) flush() error {
	descriptors := make([]byte, blockSize)
	var freeBlocks, freeInodes uint32
	for i, g := range v.groups {
		at := bitmapBlock(uint32(i))
		blocks, inodes := countZeros(g.blocks), countZeros(g.inodes)
		freeBlocks, freeInodes = freeBlocks+blocks, freeInodes+inodes
		d := descriptors[i*groupDescSize:]
		le.PutUint32(d[0x00:], at)
		le.PutUint32(d[0x04:], at+1)
		le.PutUint32(d[0x08:], at+2)
		le.PutUint16(d[0x0C:], uint16(blocks))
		le.PutUint16(d[0x0E:], uint16(inodes))
		le.PutUint16(d[0x10:], uint16(g.usedDirs))
		err := errors.Join(v.writeBlock(at, g.blocks), v.writeBlock(at+1, g.inodes))
		for j, block := range g.table {
			if block != nil {
				err = errors.Join(err, v.writeBlock(at+2+uint32(j), block))
			}
		}
		if err != nil {
			return err
		}
	}
	for i := range v.groups {
		if !hasBackup(uint32(i)) {
			continue
		}
		first := uint32(i) * blocksPerGroup
		at := int64(first) * blockSize
		if i == 0 {
			at = superblockOffset
		}
		if _, err := v.out.WriteAt(v.superblock(uint16(i), freeBlocks, freeInodes), at); err != nil {
			return err
		}
		if err := v.writeBlock(first+1, descriptors); err != nil {
			return err
		}
	}
	return nil
}

func (v *volume) writeBlock(number uint32, block []byte) error {
	_, err := v.out.WriteAt(block, int64(number)*blockSize)
	return err
}

func (v *volume) superblock(group uint16, freeBlocks, freeInodes uint32) []byte {
	b := make([]byte, superblockSize)
	le.PutUint32(b[0x00:], uint32(len(v.groups))*inodesPerGroup)
	le.PutUint32(b[0x04:], v.total)
	le.PutUint32(b[0x0C:], freeBlocks)
	le.PutUint32(b[0x10:], freeInodes)
	le.PutUint32(b[0x18:], 2) // s_log_block_size: 4 KiB
	le.PutUint32(b[0x1C:], 2) // s_log_cluster_size
	le.PutUint32(b[0x20:], blocksPerGroup)
	le.PutUint32(b[0x24:], blocksPerGroup)
	le.PutUint32(b[0x28:], inodesPerGroup)
	le.PutUint32(b[0x30:], v.written)
	le.PutUint16(b[0x36:], 0xFFFF) // s_max_mnt_count: no check for the number of mounts
	le.PutUint16(b[0x38:], superblockMagic)
	le.PutUint16(b[0x3A:], 1) // s_state: clean
	le.PutUint16(b[0x3C:], 1) // s_errors: continue
	le.PutUint32(b[0x40:], v.made)
	le.PutUint32(b[0x4C:], 1) // s_rev_level: dynamic inode sizes
	le.PutUint32(b[0x54:], lostFoundInode)
	le.PutUint16(b[0x58:], inodeSize)
	le.PutUint16(b[0x5A:], group)
	le.PutUint32(b[0x5C:], compatFeatures)
	le.PutUint32(b[0x60:], incompatFeatures)
	le.PutUint32(b[0x64:], roCompatFeatures)
	copy(b[0x68:0x78], v.uuid[:])
	copy(b[0x78:0x88], v.label)
	le.PutUint32(b[0xE0:], journalInode)
	copy(b[0xEC:0xFC], v.seed[:])
	b[0xFC] = 1 // s_def_hash_version: half MD4
	le.PutUint32(b[0x108:], v.made)
	le.PutUint16(b[0x15C:], 32) // s_min_extra_isize
	le.PutUint16(b[0x15E:], 32) // s_want_extra_isize
	le.PutUint32(b[0x160:], 1)  // s_flags: signed directory hash
	return b
}

// load reads the metadata of an image that this package built.
func load(from io.ReaderAt, size int64) (*volume, error) {
	b := make([]byte, superblockSize)
	if _, err := from.ReadAt(b, superblockOffset); err != nil {
		return nil, &Error{Code: CodeForeign, Text: "no superblock", Err: err}
	}
	v := &volume{total: le.Uint32(b[0x04:]), made: le.Uint32(b[0x108:]), written: le.Uint32(b[0x30:]),
		label: string(bytes.TrimRight(b[0x78:0x88], "\x00")), uuid: [16]byte(b[0x68:0x78]), seed: [16]byte(b[0xEC:0xFC])}
	count := (v.total + blocksPerGroup - 1) / blocksPerGroup
	if le.Uint16(b[0x38:]) != superblockMagic || le.Uint32(b[0x5C:]) != compatFeatures ||
		le.Uint32(b[0x60:]) != incompatFeatures || le.Uint32(b[0x64:]) != roCompatFeatures ||
		le.Uint32(b[0x18:]) != 2 || le.Uint32(b[0x28:]) != inodesPerGroup || le.Uint16(b[0x58:]) != inodeSize ||
		count == 0 || count > maxGroups || le.Uint32(b[0x00:]) != count*inodesPerGroup ||
		v.total <= firstData(count-1) || int64(v.total)*blockSize != size {
		return nil, foreign("the superblock is not one of ours")
	}
	descriptors := make([]byte, blockSize)
	if _, err := from.ReadAt(descriptors, blockSize); err != nil {
		return nil, err
	}
	table := make([]byte, inodeTableBlocks*blockSize)
	for i := range count {
		at := bitmapBlock(i)
		g := &group{blocks: make([]byte, blockSize), inodes: make([]byte, blockSize),
			usedDirs: uint32(le.Uint16(descriptors[i*groupDescSize+0x10:]))}
		if le.Uint32(descriptors[i*groupDescSize:]) != at {
			return nil, foreign("group %d is laid out otherwise", i)
		}
		for j, part := range [][]byte{g.blocks, g.inodes, table} {
			if _, err := from.ReadAt(part, int64(at+uint32(j))*blockSize); err != nil {
				return nil, err
			}
		}
		for j := range g.table {
			if block := table[j*blockSize : (j+1)*blockSize]; !allZero(block) {
				g.table[j] = bytes.Clone(block)
			}
		}
		v.groups = append(v.groups, g)
	}
	v.cursor = v.lastUsed() + 1
	return v, nil
}

// lastUsed is the last block in use, not counting what lies behind the end of the disk nor empty groups' metadata.
func (v *volume) lastUsed() uint32 {
	for g := len(v.groups) - 1; g >= 0; g-- {
		start, end := firstData(uint32(g)), min(uint32(g+1)*blocksPerGroup, v.total)
		for b := end - 1; b >= start; b-- {
			if bit(v.groups[g].blocks, b%blocksPerGroup) {
				return b
			}
		}
	}
	return firstData(0)
}

func fullImage() error {
	return &Error{Code: CodeFull, Text: "no room is left in the image"}
}
