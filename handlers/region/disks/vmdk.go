package disks

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"io"
	"math"
	"regexp"
)

// The format is described in VMware's "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and
// "Stream-Optimized Compressed Sparse Extents".
const (
	vmdkMagic = "KDMV"

	vmdkZeroGrains = 1 << 2 // a grain table entry of 1 is a grain of zeros
	vmdkCompressed = 1 << 16
	vmdkMarkers    = 1 << 17

	vmdkAtEnd = math.MaxUint64 // the grain directory is named by the footer

	maxGrain      = 2 << 20
	maxGrainTable = 512 // entries, as QEMU limits it
	maxDescriptor = 1 << 20
)

var le = binary.LittleEndian

type vmdk struct {
	file       file
	size       int64
	grain      int64
	perTable   int64
	zeroGrains bool
	compressed bool
	directory  []uint32
	tables     *cache[[]byte]
	grains     *cache[[]byte]
}

func openVMDK(f file, head []byte, maxSize int64) (source, int64, error) {
	if !bytes.HasPrefix(head, []byte(vmdkMagic)) {
		return nil, 0, refuse(CodeUnknown, "this is not a VMDK image of one file")
	}
	if len(head) < sector {
		return nil, 0, refuse(CodeTruncated, "the header ends after %d bytes", len(head))
	}
	if err := checkDescriptor(f, head); err != nil {
		return nil, 0, err
	}
	if le.Uint64(head[56:]) == vmdkAtEnd {
		// The end is a marker, the footer, which is a header with all offsets, and a marker of the end.
		footer, err := f.section(f.size-2*sector, sector)
		if err != nil {
			return nil, 0, err
		}
		if !bytes.HasPrefix(footer, []byte(vmdkMagic)) || le.Uint64(footer[56:]) == vmdkAtEnd {
			return nil, 0, refuse(CodeTruncated, "the footer is missing: the file was not received whole")
		}
		head = footer
	}
	flags, capacity, grain := le.Uint32(head[8:]), le.Uint64(head[12:]), le.Uint64(head[20:])
	v := &vmdk{file: f, perTable: int64(le.Uint32(head[44:])), zeroGrains: flags&vmdkZeroGrains != 0, compressed: flags&vmdkCompressed != 0}
	switch {
	case le.Uint32(head[4:]) < 1 || le.Uint32(head[4:]) > 3:
		return nil, 0, refuse(CodeUnsupported, "VMDK of version %d", le.Uint32(head[4:]))
	case v.compressed && (flags&vmdkMarkers == 0 || le.Uint16(head[77:]) != 1):
		return nil, 0, refuse(CodeUnsupported, "grains compressed by method %d", le.Uint16(head[77:]))
	case grain == 0 || grain > maxGrain/sector || grain&(grain-1) != 0:
		return nil, 0, refuse(CodeDamaged, "grains of %d sectors", grain)
	case v.perTable == 0 || v.perTable > maxGrainTable:
		return nil, 0, refuse(CodeDamaged, "grain tables of %d entries", v.perTable)
	case capacity > uint64(maxSize)/sector:
		return nil, 0, refuse(CodeTooLarge, "the disk has %d sectors, %d bytes are allowed", capacity, maxSize)
	}
	v.size, v.grain = int64(capacity)*sector, int64(grain)*sector
	if err := v.readDirectory(le.Uint64(head[56:])); err != nil {
		return nil, 0, err
	}
	v.tables = newCache[[]byte](tableCacheBytes / (4 * maxGrainTable))
	v.grains = newCache[[]byte](int(max(2, clusterCacheBytes/v.grain)))
	return v, v.size, nil
}

var (
	descriptorParent = regexp.MustCompile(`(?m)^\s*parentCID\s*=\s*([0-9a-fA-F]+)`)
	descriptorType   = regexp.MustCompile(`(?m)^\s*createType\s*=\s*"([^"]*)"`)
	descriptorExtent = regexp.MustCompile(`(?m)^\s*(RW|RDONLY|NOACCESS)\s+[0-9]+\s`)
)

// checkDescriptor reads the embedded text that says what the file is.
func checkDescriptor(f file, head []byte) error {
	at, length := le.Uint64(head[28:]), le.Uint64(head[36:])
	switch {
	case at == 0 || length == 0:
		return refuse(CodeUnsupported, "the file is one part of a disk of several: join them with qemu-img convert")
	case length > maxDescriptor/sector:
		return refuse(CodeTooLarge, "a descriptor of %d sectors", length)
	case at > uint64(f.size)/sector:
		return refuse(CodeTruncated, "the descriptor is at sector %d, the file has %d bytes", at, f.size)
	}
	text, err := f.section(int64(at)*sector, int64(length)*sector)
	if err != nil {
		return err
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	if parent := descriptorParent.FindSubmatch(text); parent != nil && !bytes.EqualFold(parent[1], []byte("ffffffff")) {
		return refuse(CodeBacking, "the image is a difference to a parent disk: flatten it with qemu-img convert")
	}
	kind := descriptorType.FindSubmatch(text)
	if kind == nil {
		return refuse(CodeUnsupported, "the descriptor names no type: the file is one part of a disk of several")
	}
	if k := string(kind[1]); k != "monolithicSparse" && k != "streamOptimized" {
		return refuse(CodeUnsupported, "VMDK of type %q: monolithicSparse and streamOptimized are read", k)
	}
	if n := len(descriptorExtent.FindAll(text, 2)); n != 1 {
		return refuse(CodeUnsupported, "the disk is not made of one part: join it with qemu-img convert")
	}
	return nil
}

// readDirectory reads the grain directory. As with qcow2, tables that the file has no room for are refused.
func (v *vmdk) readDirectory(at uint64) error {
	covers := v.grain * v.perTable
	need := (v.size + covers - 1) / covers
	switch {
	case need > maxTable/4:
		return refuse(CodeTooLarge, "a grain directory of %d entries", need)
	case at > uint64(v.file.size)/sector:
		return refuse(CodeTruncated, "the grain directory is at sector %d, the file has %d bytes", at, v.file.size)
	}
	b, err := v.file.section(int64(at)*sector, need*4)
	if err != nil {
		return err
	}
	v.directory = make([]uint32, need)
	used := int64(0)
	for i := range v.directory {
		if v.directory[i] = le.Uint32(b[4*i:]); v.directory[i] != 0 {
			used++
		}
	}
	if used > v.file.size/(4*v.perTable) {
		return refuse(CodeDamaged, "%d grain tables in a file of %d bytes", used, v.file.size)
	}
	return nil
}

func (v *vmdk) find(offset int64) (location, int64, error) {
	covers := v.grain * v.perTable
	index, within := offset/v.grain, offset%v.grain
	table := int64(v.directory[offset/covers]) * sector
	if table == 0 {
		return location{}, covers - offset%covers, nil
	}
	entries, err := v.tables.get(table, func() ([]byte, error) { return v.file.section(table, v.perTable*4) })
	if err != nil {
		return location{}, 0, err
	}
	entry, rest := le.Uint32(entries[index%v.perTable*4:]), v.grain-within
	if entry == 0 || entry == 1 && v.zeroGrains {
		return location{}, rest, nil
	}
	at := int64(entry) * sector
	if v.compressed {
		if at > v.file.size-sector {
			return location{}, 0, refuse(CodeTruncated, "a grain at %d, the file has %d bytes", at, v.file.size)
		}
		return location{present: true, compressed: true, at: at}, rest, nil
	}
	if need := min(v.grain, v.size-(offset-within)); at > v.file.size-need {
		return location{}, 0, refuse(CodeTruncated, "a grain at %d, the file has %d bytes", at, v.file.size)
	}
	return location{present: true, at: at + within}, rest, nil
}

func (v *vmdk) read(p []byte, offset int64, where location) error {
	if !where.compressed {
		return v.file.fill(p, where.at)
	}
	start := offset - offset%v.grain
	data, err := v.grains.get(start, func() ([]byte, error) { return v.inflate(where.at, start) })
	if err != nil {
		return err
	}
	copy(p, data[offset-start:])
	return nil
}

// inflate unpacks the grain behind the marker at a place in the file; the marker says which grain it is.
func (v *vmdk) inflate(at, offset int64) ([]byte, error) {
	const markerSize = 12
	marker, err := v.file.section(at, markerSize)
	if err != nil {
		return nil, err
	}
	length := int64(le.Uint32(marker[8:]))
	if le.Uint64(marker) != uint64(offset/sector) || length == 0 || length > 2*v.grain+sector {
		return nil, refuse(CodeDamaged, "the marker at %d is not of the grain at %d", at, offset)
	}
	packed, err := v.file.section(at+markerSize, length)
	if err != nil {
		return nil, err
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, &Error{Code: CodeDamaged, Text: "compressed data that does not unpack", Err: err}
	}
	data := make([]byte, v.grain)
	if n, err := io.ReadFull(z, data); int64(n) < min(v.grain, v.size-offset) {
		return nil, &Error{Code: CodeDamaged, Text: "compressed data that does not unpack", Err: err}
	}
	return data, nil
}
