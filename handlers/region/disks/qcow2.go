package disks

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
)

// The format is described in QEMU's docs/interop/qcow2.txt; the section is named beside what is taken from it.
const (
	qcowMagic = "QFI\xFB"

	// Header, incompatible features.
	qcowDirty       = 1 << 0 // only reference counts are affected, and those are not read
	qcowCorrupt     = 1 << 1
	qcowExternal    = 1 << 2
	qcowCompression = 1 << 3
	qcowExtendedL2  = 1 << 4

	qcowOffset     = 0x00FF_FFFF_FFFF_FE00 // bits 9 to 55 of an entry of either table
	qcowCompressed = 1 << 62
	qcowZero       = 1 << 0

	compressionZlib = 0
	compressionZstd = 1

	tableCacheBytes   = 4 << 20
	clusterCacheBytes = 4 << 20
)

var be = binary.BigEndian

type qcow2 struct {
	file        file
	size        int64
	version     uint32
	clusterBits uint32
	compression byte
	l1          []uint64
	tables      *cache[[]byte]
	clusters    *cache[[]byte]
}

func openQCOW2(f file, head []byte, maxSize int64) (source, int64, error) {
	if !bytes.HasPrefix(head, []byte(qcowMagic)) {
		return nil, 0, refuse(CodeUnknown, "this is not a qcow2 image")
	}
	if len(head) < 72 {
		return nil, 0, refuse(CodeTruncated, "the header ends after %d bytes", len(head))
	}
	q := &qcow2{file: f, version: be.Uint32(head[4:]), clusterBits: be.Uint32(head[20:])}
	size := be.Uint64(head[24:])
	switch {
	case q.version != 2 && q.version != 3:
		return nil, 0, refuse(CodeUnsupported, "qcow2 of version %d: versions 2 and 3 are read", q.version)
	case be.Uint64(head[8:]) != 0:
		return nil, 0, refuse(CodeBacking, "the image is a difference to a backing file: flatten it with qemu-img convert")
	case be.Uint32(head[32:]) != 0:
		return nil, 0, refuse(CodeEncrypted, "the image is encrypted: decrypt it with qemu-img convert")
	case q.clusterBits < 9 || q.clusterBits > 21:
		return nil, 0, refuse(CodeDamaged, "clusters of 2^%d bytes", q.clusterBits)
	case size > uint64(maxSize):
		return nil, 0, refuse(CodeTooLarge, "the disk has %d bytes, %d are allowed", size, maxSize)
	}
	q.size = int64(size)
	if q.version == 3 {
		if err := q.features(head); err != nil {
			return nil, 0, err
		}
	}
	if err := q.readL1(be.Uint32(head[36:]), be.Uint64(head[40:])); err != nil {
		return nil, 0, err
	}
	q.tables = newCache[[]byte](max(2, tableCacheBytes>>q.clusterBits))
	q.clusters = newCache[[]byte](max(2, clusterCacheBytes>>q.clusterBits))
	return q, q.size, nil
}

// features reads what only headers of version 3 have.
func (q *qcow2) features(head []byte) error {
	if len(head) < 112 {
		return refuse(CodeTruncated, "the header ends after %d bytes", len(head))
	}
	set, length := be.Uint64(head[72:]), be.Uint32(head[100:])
	switch {
	case set&qcowCorrupt != 0:
		return refuse(CodeDamaged, "the image is marked as corrupt: repair it with qemu-img check -r all")
	case set&qcowExternal != 0:
		return refuse(CodeUnsupported, "the data is in another file: make one file of it with qemu-img convert")
	case set&^(qcowDirty|qcowCompression) != 0:
		return refuse(CodeUnsupported, "the image has features %#x that are not read: write it anew with qemu-img convert", set)
	case length < 104:
		return refuse(CodeDamaged, "a header of %d bytes", length)
	case set&qcowCompression != 0 && length > 104:
		q.compression = head[104]
	}
	if q.compression > compressionZstd {
		return refuse(CodeUnsupported, "clusters compressed by method %d", q.compression)
	}
	return nil
}

// readL1 reads the first-level table. Every second-level table takes a cluster of its own in the file, so an image
// cannot name more of them than it has clusters, and walking it takes time in proportion to the file.
func (q *qcow2) readL1(entries uint32, at uint64) error {
	covers := int64(1) << (2*q.clusterBits - 3) // one table of cluster size, 8 bytes for each cluster
	need := (q.size + covers - 1) / covers
	switch {
	case need > maxTable/8:
		return refuse(CodeTooLarge, "a first-level table of %d entries", need)
	case int64(entries) < need:
		return refuse(CodeDamaged, "a first-level table of %d entries, %d are needed", entries, need)
	case at > uint64(q.file.size):
		return refuse(CodeTruncated, "the first-level table is at %d, the file has %d bytes", at, q.file.size)
	}
	b, err := q.file.section(int64(at), need*8)
	if err != nil {
		return err
	}
	q.l1 = make([]uint64, need)
	used := int64(0)
	for i := range q.l1 {
		if q.l1[i] = be.Uint64(b[8*i:]) & qcowOffset; q.l1[i] != 0 {
			used++
		}
	}
	if used > q.file.size>>q.clusterBits {
		return refuse(CodeDamaged, "%d second-level tables in a file of %d bytes", used, q.file.size)
	}
	return nil
}

func (q *qcow2) find(offset int64) (location, int64, error) {
	cluster := int64(1) << q.clusterBits
	perTable := cluster / 8
	index := offset >> q.clusterBits
	within := offset & (cluster - 1)
	table := int64(q.l1[index/perTable])
	if table == 0 {
		return location{}, perTable*cluster - offset%(perTable*cluster), nil
	}
	if table&(cluster-1) != 0 {
		return location{}, 0, refuse(CodeDamaged, "a second-level table at %d, within a cluster", table)
	}
	entries, err := q.tables.get(table, func() ([]byte, error) { return q.file.section(table, cluster) })
	if err != nil {
		return location{}, 0, err
	}
	rest := cluster - within
	entry := be.Uint64(entries[index%perTable*8:])
	if entry&qcowCompressed != 0 {
		where, err := q.compressedAt(entry)
		return where, rest, err
	}
	at := int64(entry & qcowOffset)
	if at == 0 || q.version == 3 && entry&qcowZero != 0 {
		return location{}, rest, nil
	}
	if at&(cluster-1) != 0 {
		return location{}, 0, refuse(CodeDamaged, "a cluster at %d, which is within another", at)
	}
	// The disk's last cluster may be cut where the disk ends.
	if need := min(cluster, q.size-(offset-within)); at > q.file.size-need {
		return location{}, 0, refuse(CodeTruncated, "a cluster at %d, the file has %d bytes", at, q.file.size)
	}
	return location{present: true, at: at + within}, rest, nil
}

// compressedAt decodes a compressed cluster descriptor (section "L2 table").
func (q *qcow2) compressedAt(entry uint64) (location, error) {
	split := 62 - (q.clusterBits - 8)
	at := int64(entry & (1<<split - 1))
	sectors := int64(entry>>split&(1<<(62-split)-1)) + 1
	length := sectors*sector - at%sector
	if at >= q.file.size {
		return location{}, refuse(CodeTruncated, "a compressed cluster at %d, the file has %d bytes", at, q.file.size)
	}
	// The last sector is counted whole, though the file may end within it.
	return location{present: true, compressed: true, at: at, length: min(length, q.file.size-at)}, nil
}

func (q *qcow2) read(p []byte, offset int64, where location) error {
	if !where.compressed {
		return q.file.fill(p, where.at)
	}
	data, err := q.clusters.get(where.at, func() ([]byte, error) { return q.inflate(where) })
	if err != nil {
		return err
	}
	copy(p, data[offset&(1<<q.clusterBits-1):])
	return nil
}

func (q *qcow2) inflate(where location) ([]byte, error) {
	packed, err := q.file.section(where.at, where.length)
	if err != nil {
		return nil, err
	}
	data := make([]byte, 1<<q.clusterBits)
	if q.compression == compressionZstd {
		d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return data, unpack(d, data)
	}
	return data, unpack(flate.NewReader(bytes.NewReader(packed)), data)
}

func unpack(from io.Reader, data []byte) error {
	if _, err := io.ReadFull(from, data); err != nil {
		return &Error{Code: CodeDamaged, Text: "compressed data that does not unpack", Err: err}
	}
	return nil
}
