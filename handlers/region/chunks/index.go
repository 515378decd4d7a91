package chunks

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"sort"
)

// DiskIndex is the content of one disk: its size and the ids of its blocks in order. It is immutable and safe for
// concurrent use. Zero blocks are kept as runs, so memory follows the data (32 bytes per 64 KiB), not the size.
//
// Encoding, version 1 (integers big-endian; the digest is the SHA-256 of these bytes):
//
//	8 bytes   "TDISKIX" and the version, 0x01
//	4 bytes   block size, 65536
//	8 bytes   size of the disk in bytes
//	runs, until ceil(size / block size) blocks are told:
//	  uvarint   count<<1 | kind, count >= 1, in the shortest form
//	  kind 0    count blocks of zeros
//	  kind 1    count ids of 32 bytes each, none of them ZeroID
//
// Runs of one kind never follow each other and nothing follows the last run: one disk has one encoding, thus one digest.
type DiskIndex struct {
	size int64
	runs []indexRun
	ids  []ID
}

// indexRun is count blocks from block first; ids is where their ids start in DiskIndex.ids, or -1 for zeros.
type indexRun struct {
	first, count int64
	ids          int
}

const (
	indexMagic     = "TDISKIX\x01"
	maxDiskSize    = 1 << 56
	decodeIDsBatch = 1024
)

// Run is a stretch of blocks of one kind; IDs is nil for zeros, else it has one id for each block and must not be changed.
type Run struct {
	First, Count int64
	IDs          []ID
}

// Size is the disk's length in bytes.
func (x *DiskIndex) Size() int64 { return x.size }

// Blocks is the number of blocks, zeros included.
func (x *DiskIndex) Blocks() int64 { return blocksOf(x.size) }

// DataBlocks is the number of blocks that are not zeros; a chunk that is used twice counts twice.
func (x *DiskIndex) DataBlocks() int { return len(x.ids) }

// DataIDs gives the ids of the blocks that are not zeros, in order, with repeats. It must not be changed.
func (x *DiskIndex) DataIDs() []ID { return x.ids }

// At gives the id of a block, 0 <= block < Blocks().
func (x *DiskIndex) At(block int64) ID {
	r := x.runs[sort.Search(len(x.runs), func(i int) bool { return x.runs[i].first+x.runs[i].count > block })]
	if r.ids < 0 {
		return ZeroID
	}
	return x.ids[int64(r.ids)+block-r.first]
}

// BlockLen is the length in bytes of a block: BlockSize, or less for the last one.
func (x *DiskIndex) BlockLen(block int64) int { return int(min(BlockSize, x.size-block*BlockSize)) }

// Runs gives the blocks in order.
func (x *DiskIndex) Runs() iter.Seq[Run] {
	return func(yield func(Run) bool) {
		for _, r := range x.runs {
			out := Run{First: r.first, Count: r.count}
			if r.ids >= 0 {
				out.IDs = x.ids[r.ids : r.ids+int(r.count)]
			}
			if !yield(out) {
				return
			}
		}
	}
}

// Encode writes the canonical encoding and gives its digest.
func (x *DiskIndex) Encode(w io.Writer) (Digest, error) {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(sum, w), 64<<10)
	var head [20]byte
	copy(head[:], indexMagic)
	binary.BigEndian.PutUint32(head[8:], BlockSize)
	binary.BigEndian.PutUint64(head[12:], uint64(x.size))
	out.Write(head[:]) // bufio keeps the first error for Flush
	for r := range x.Runs() {
		kind := uint64(0)
		if r.IDs != nil {
			kind = 1
		}
		out.Write(binary.AppendUvarint(nil, uint64(r.Count)<<1|kind))
		for i := range r.IDs {
			out.Write(r.IDs[i][:])
		}
	}
	if err := out.Flush(); err != nil {
		return "", err
	}
	return digestOfSum(sum.Sum(nil)), nil
}

// Digest is the content address of the index.
func (x *DiskIndex) Digest() Digest {
	d, err := x.Encode(io.Discard)
	if err != nil {
		panic("chunks: writing nowhere failed: " + err.Error())
	}
	return d
}

// DecodeIndex reads an encoded index to the end of r and gives its digest. It trusts nothing in r, and its memory is
// bounded by the bytes that r holds. Errors: index-invalid; those of r as they are.
func DecodeIndex(r io.Reader) (*DiskIndex, Digest, error) {
	sum := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(r, sum), 64<<10)
	var head [20]byte
	if err := readFull(in, head[:]); err != nil {
		return nil, "", err
	}
	size := binary.BigEndian.Uint64(head[12:])
	switch {
	case !bytes.Equal(head[:7], []byte(indexMagic[:7])):
		return nil, "", Errorf(IndexInvalid, "not a disk index")
	case head[7] != indexMagic[7]:
		return nil, "", Errorf(IndexInvalid, "disk index of version %d; this program reads version %d", head[7], indexMagic[7])
	case binary.BigEndian.Uint32(head[8:]) != BlockSize:
		return nil, "", Errorf(IndexInvalid, "block size %d; this program reads %d", binary.BigEndian.Uint32(head[8:]), BlockSize)
	case size > maxDiskSize:
		return nil, "", Errorf(IndexInvalid, "disk of %d bytes", size)
	}
	b := NewIndexBuilder(int64(size))
	lastKind := uint64(2)
	for total := blocksOf(int64(size)); b.blocks < total; {
		v, err := readUvarint(in)
		if err != nil {
			return nil, "", err
		}
		kind, count := v&1, v>>1
		if count == 0 || count > uint64(total-b.blocks) || kind == lastKind {
			return nil, "", Errorf(IndexInvalid, "run of %d blocks of kind %d at block %d of %d", count, kind, b.blocks, total)
		}
		lastKind = kind
		if kind == 0 {
			b.AppendZeros(int64(count))
			continue
		}
		var batch [decodeIDsBatch]ID
		for count > 0 {
			n := min(count, decodeIDsBatch)
			for i := range batch[:n] {
				if err := readFull(in, batch[i][:]); err != nil {
					return nil, "", err
				}
				if batch[i].IsZero() {
					return nil, "", Errorf(IndexInvalid, "zero block told as data at block %d", b.blocks)
				}
				b.Append(batch[i])
			}
			count -= n
		}
	}
	if _, err := in.ReadByte(); err == nil {
		return nil, "", Errorf(IndexInvalid, "bytes after the last run")
	} else if !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	x, err := b.Index()
	return x, digestOfSum(sum.Sum(nil)), err
}

func readFull(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return Errorf(IndexInvalid, "disk index ends too early")
	}
	return err
}

func readUvarint(r *bufio.Reader) (uint64, error) {
	var v uint64
	for i := 0; i < binary.MaxVarintLen64; i++ {
		c, err := r.ReadByte()
		if errors.Is(err, io.EOF) {
			return 0, Errorf(IndexInvalid, "disk index ends too early")
		} else if err != nil {
			return 0, err
		}
		if i == 9 && c > 1 || i > 0 && c == 0 {
			break
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v, nil
		}
	}
	return 0, Errorf(IndexInvalid, "run length is not in its shortest form")
}

func blocksOf(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// IndexBuilder makes a DiskIndex from front to back.
type IndexBuilder struct {
	x      DiskIndex
	blocks int64
}

// NewIndexBuilder starts the index of a disk of size bytes.
func NewIndexBuilder(size int64) *IndexBuilder { return &IndexBuilder{x: DiskIndex{size: size}} }

// Append adds one block.
func (b *IndexBuilder) Append(id ID) {
	if id.IsZero() {
		b.AppendZeros(1)
		return
	}
	b.extend(1, len(b.x.ids))
	b.x.ids = append(b.x.ids, id)
}

// AppendZeros adds n blocks of zeros.
func (b *IndexBuilder) AppendZeros(n int64) {
	if n > 0 {
		b.extend(n, -1)
	}
}

func (b *IndexBuilder) extend(n int64, ids int) {
	if last := len(b.x.runs) - 1; last >= 0 && (b.x.runs[last].ids < 0) == (ids < 0) {
		b.x.runs[last].count += n
	} else {
		b.x.runs = append(b.x.runs, indexRun{first: b.blocks, count: n, ids: ids})
	}
	b.blocks += n
}

// Index ends the building; the builder must not be used again. Error: index-invalid where the blocks do not add up to the size.
func (b *IndexBuilder) Index() (*DiskIndex, error) {
	if b.x.size < 0 || b.x.size > maxDiskSize || b.blocks != blocksOf(b.x.size) {
		return nil, Errorf(IndexInvalid, "%d blocks for a disk of %d bytes", b.blocks, b.x.size)
	}
	return &b.x, nil
}
