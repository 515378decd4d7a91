package images

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/bits"
)

// The on-disk format follows the kernel's documentation, "ext4 Data Structures and Algorithms"
// (Documentation/filesystems/ext4). The names of the fields are given beside their offsets.
const (
	blockSize        = 4096
	blocksPerGroup   = 8 * blockSize // one bitmap block describes a group
	inodesPerGroup   = 16384
	inodeSize        = 256
	inodesPerBlock   = blockSize / inodeSize
	inodeTableBlocks = inodesPerGroup / inodesPerBlock
	journalBlocks    = 1024 // JBD2_MIN_JOURNAL_BLOCKS: 4 MiB
	groupDescSize    = 32
	maxGroups        = blockSize / groupDescSize // one block of descriptors, 16 GiB
	inlineExtents    = 4                         // extents that fit into an inode
	maxLinks         = 65000                     // EXT4_LINK_MAX, without the feature dir_nlink

	rootInode      = 2
	journalInode   = 8
	lostFoundInode = 11 // s_first_ino, the first one that is not reserved

	superblockOffset = 1024
	superblockSize   = 1024
	superblockMagic  = 0xEF53
	extentMagic      = 0xF30A
	journalMagic     = 0xC03B3998

	compatFeatures   = 0x4 | 0x8        // has_journal, ext_attr
	incompatFeatures = 0x2 | 0x40       // filetype, extents
	roCompatFeatures = 0x1 | 0x2 | 0x40 // sparse_super, large_file, extra_isize

	flagExtents = 0x80000 // EXT4_EXTENTS_FL

	modeType    = 0xF000
	modeRegular = 0x8000
	modeDir     = 0x4000
	modeSymlink = 0xA000

	typeRegular = 1 // file types of a directory entry
	typeDir     = 2
	typeSymlink = 7

	fastSymlink = 60 // targets shorter than this live in the inode
	maxSymlink  = blockSize - 1
	maxName     = 255
)

var le = binary.LittleEndian

// extent is a run of blocks of a file.
type extent struct {
	logical uint32 // first block within the file
	start   uint32 // first block on the disk
	length  uint32
}

// inode is what this package writes of an inode, and so all that it reads.
type inode struct {
	mode    uint16
	links   uint16
	size    int64
	blocks  uint32 // in units of 512 bytes
	time    uint32
	dtime   uint32
	extents []extent
	target  string // of a fast symbolic link
}

func (n inode) encode(to []byte) {
	clear(to)
	le.PutUint16(to[0x00:], n.mode)
	le.PutUint32(to[0x04:], uint32(n.size))
	le.PutUint32(to[0x08:], n.time) // i_atime
	le.PutUint32(to[0x0C:], n.time) // i_ctime
	le.PutUint32(to[0x10:], n.time) // i_mtime
	le.PutUint32(to[0x14:], n.dtime)
	le.PutUint16(to[0x1A:], n.links)
	le.PutUint32(to[0x1C:], n.blocks)
	le.PutUint32(to[0x6C:], uint32(n.size>>32))
	le.PutUint16(to[0x80:], 32)     // i_extra_isize
	le.PutUint32(to[0x90:], n.time) // i_crtime
	if n.target != "" {
		copy(to[0x28:0x28+fastSymlink], n.target)
		return
	}
	le.PutUint32(to[0x20:], flagExtents)
	le.PutUint16(to[0x28:], extentMagic)
	le.PutUint16(to[0x2A:], uint16(len(n.extents)))
	le.PutUint16(to[0x2C:], inlineExtents)
	for i, e := range n.extents {
		at := to[0x34+12*i:]
		le.PutUint32(at[0:], e.logical)
		le.PutUint16(at[4:], uint16(e.length))
		le.PutUint32(at[8:], e.start)
	}
}

// decodeInode reads an inode and refuses one that this package would not have written, or that points outside a
// disk of so many blocks.
func decodeInode(from []byte, blocks uint32) (inode, error) {
	n := inode{
		mode:   le.Uint16(from[0x00:]),
		size:   int64(le.Uint32(from[0x04:])) | int64(le.Uint32(from[0x6C:]))<<32,
		time:   le.Uint32(from[0x10:]),
		dtime:  le.Uint32(from[0x14:]),
		links:  le.Uint16(from[0x1A:]),
		blocks: le.Uint32(from[0x1C:]),
	}
	flags := le.Uint32(from[0x20:])
	if n.mode&modeType == modeSymlink && flags&flagExtents == 0 {
		if n.size < 1 || n.size >= fastSymlink {
			return inode{}, foreign("a symbolic link of %d bytes without blocks", n.size)
		}
		n.target = string(from[0x28 : 0x28+n.size])
		return n, nil
	}
	if flags != flagExtents || le.Uint16(from[0x28:]) != extentMagic || le.Uint16(from[0x2E:]) != 0 {
		return inode{}, foreign("an inode without an extent list of its own")
	}
	entries := int(le.Uint16(from[0x2A:]))
	if entries > inlineExtents {
		return inode{}, foreign("an inode with %d extents", entries)
	}
	var next uint32
	for i := range entries {
		at := from[0x34+12*i:]
		e := extent{logical: le.Uint32(at[0:]), length: uint32(le.Uint16(at[4:])), start: le.Uint32(at[8:])}
		if e.logical != next || e.length == 0 || e.length > blocksPerGroup || le.Uint16(at[6:]) != 0 ||
			uint64(e.start)+uint64(e.length) > uint64(blocks) {
			return inode{}, foreign("an extent outside the disk")
		}
		next += e.length
		n.extents = append(n.extents, e)
	}
	if n.size < 0 || n.size > int64(next)*blockSize {
		return inode{}, foreign("a file larger than its extents")
	}
	return n, nil
}

func (n inode) fileMode() fs.FileMode {
	mode := fs.FileMode(n.mode & 0o777)
	switch n.mode & modeType {
	case modeDir:
		return mode | fs.ModeDir
	case modeSymlink:
		return mode | fs.ModeSymlink
	case modeRegular:
		return mode
	default:
		return mode | fs.ModeIrregular
	}
}

// dirent is one entry of a directory.
type dirent struct {
	inode uint32
	kind  byte
	name  string
}

func direntSize(name string) int { return (8 + len(name) + 3) &^ 3 }

func putDirent(to []byte, length int, d dirent) {
	le.PutUint32(to[0:], d.inode)
	le.PutUint16(to[4:], uint16(length))
	to[6] = byte(len(d.name))
	to[7] = d.kind
	copy(to[8:], d.name)
}

// encodeDir lays entries out in blocks; the last entry of each block reaches to its end. After them come so many
// spare blocks without entries.
func encodeDir(entries []dirent, spare int) []byte {
	data := make([]byte, 0, blockSize)
	block := make([]byte, blockSize)
	used, last := 0, 0
	flush := func() {
		le.PutUint16(block[last+4:], uint16(blockSize-last))
		data = append(data, block...)
		clear(block)
		used, last = 0, 0
	}
	for _, d := range entries {
		size := direntSize(d.name)
		if used+size > blockSize {
			flush()
		}
		putDirent(block[used:], size, d)
		last, used = used, used+size
	}
	flush()
	for range spare {
		flush()
	}
	return data
}

// slot is an entry and where it stands in its block.
type slot struct {
	dirent
	at, length int
}

// slots reads the entries of one block of a directory, unused ones too.
func slots(block []byte) ([]slot, error) {
	var out []slot
	for at := 0; at < len(block); {
		if len(block)-at < 8 {
			return nil, foreign("a directory entry that leaves its block")
		}
		length, name := int(le.Uint16(block[at+4:])), int(block[at+6])
		if length < 8 || length%4 != 0 || at+length > len(block) || 8+name > length {
			return nil, foreign("a directory entry that leaves its block")
		}
		out = append(out, slot{at: at, length: length, dirent: dirent{
			inode: le.Uint32(block[at:]), kind: block[at+7], name: string(block[at+8 : at+8+name])}})
		at += length
	}
	return out, nil
}

// hasBackup says whether a group starts with a copy of the superblock (sparse_super: 0, 1 and powers of 3, 5, 7).
func hasBackup(group uint32) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []uint32{3, 5, 7} {
		power := base
		for power < group {
			power *= base
		}
		if power == group {
			return true
		}
	}
	return false
}

func bit(bitmap []byte, i uint32) bool { return bitmap[i/8]&(1<<(i%8)) != 0 }
func setBit(bitmap []byte, i uint32)   { bitmap[i/8] |= 1 << (i % 8) }
func clearBit(bitmap []byte, i uint32) { bitmap[i/8] &^= 1 << (i % 8) }

func countZeros(bitmap []byte) uint32 {
	free := 0
	for _, b := range bitmap {
		free += bits.OnesCount8(^b)
	}
	return uint32(free)
}

// journalSuperblock is the first block of an empty journal (jbd2, which is big-endian).
func journalSuperblock(uuid [16]byte) []byte {
	be := binary.BigEndian
	b := make([]byte, blockSize)
	be.PutUint32(b[0x00:], journalMagic)
	be.PutUint32(b[0x04:], 4) // a superblock of version 2
	be.PutUint32(b[0x0C:], blockSize)
	be.PutUint32(b[0x10:], journalBlocks)
	be.PutUint32(b[0x14:], 1) // s_first
	be.PutUint32(b[0x18:], 1) // s_sequence; s_start is 0: nothing to replay
	copy(b[0x30:], uuid[:])
	be.PutUint32(b[0x40:], 1) // s_nr_users
	return b
}

func foreign(format string, args ...any) error {
	return &Error{Code: CodeForeign, Text: fmt.Sprintf(format, args...)}
}
