package ovf

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/sync/errgroup"
)

// The layout of a streamOptimized VMDK: "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and "Stream-Optimized
// Compressed Sparse Extents".
const (
	vmdkSector     = 512
	vmdkGrain      = 64 << 10
	vmdkPerTable   = 512 // grains of a grain table
	vmdkOverhead   = 128 // sectors before the first grain: header and descriptor
	vmdkFlags      = 1 | 1<<16 | 1<<17
	vmdkGDAtEnd    = ^uint64(0)
	vmdkMaxSectors = 1<<32 - 1 // grains are found by 32 bits

	markerEnd       = 0
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
)

// writeStreamOptimized writes a disk as a VMDK that is made to be read once, front to back. The same disk gives the same
// bytes. Grains of zeros, and what is in no extent, are not stored.
func writeStreamOptimized(ctx context.Context, to io.Writer, disk Source) error {
	w := &vmdkWriter{to: to, sectors: (disk.Size() + vmdkSector - 1) / vmdkSector}
	tables := (disk.Size() + vmdkGrain*vmdkPerTable - 1) / (vmdkGrain * vmdkPerTable)
	w.directory = make([]uint32, tables)
	if err := w.begin(); err != nil {
		return err
	}
	batch := newGrains(runtime.GOMAXPROCS(0) * 16)
	last := int64(-1) // the last grain that was read
	for e, err := range disk.Extents(ctx) {
		if err != nil {
			return err
		}
		for g := max(e.Offset/vmdkGrain, last+1); g*vmdkGrain < e.Offset+e.Length; g++ {
			last = g
			if batch.add(g) {
				if err := w.flush(ctx, disk, batch); err != nil {
					return err
				}
			}
		}
	}
	if err := w.flush(ctx, disk, batch); err != nil {
		return err
	}
	return w.end()
}

type vmdkWriter struct {
	to        io.Writer
	at        int64 // in sectors
	sectors   int64
	directory []uint32
	table     int64 // the grain table that is being filled, and where its grains are
	entries   []uint32
}

// put writes a block and fills its last sector with zeros.
func (w *vmdkWriter) put(b []byte) error {
	if rest := len(b) % vmdkSector; rest > 0 {
		b = append(b[:len(b):len(b)], make([]byte, vmdkSector-rest)...)
	}
	if _, err := w.to.Write(b); err != nil {
		return err
	}
	if w.at += int64(len(b) / vmdkSector); w.at > vmdkMaxSectors {
		return refuse(CodeNotExportable, "the disk needs more than the 2 TiB that a VMDK holds: export it as qcow2 or raw")
	}
	return nil
}

func (w *vmdkWriter) header(directory uint64) []byte {
	b := make([]byte, vmdkSector)
	le := binary.LittleEndian
	copy(b, "KDMV")
	le.PutUint32(b[4:], 3)
	le.PutUint32(b[8:], vmdkFlags)
	le.PutUint64(b[12:], uint64(w.sectors))
	le.PutUint64(b[20:], vmdkGrain/vmdkSector)
	le.PutUint64(b[28:], 1) // the descriptor
	le.PutUint64(b[36:], 1)
	le.PutUint32(b[44:], vmdkPerTable)
	le.PutUint64(b[56:], directory)
	le.PutUint64(b[64:], vmdkOverhead)
	copy(b[73:], "\n \r\n") // shows damage by a transfer as text
	le.PutUint16(b[77:], 1) // deflate
	return b
}

func (w *vmdkWriter) begin() error {
	cylinders := min(w.sectors/(255*63), 65535)
	descriptor := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n"+
		"RDONLY %d SPARSE \"disk.vmdk\"\n\nddb.virtualHWVersion = \"4\"\nddb.adapterType = \"lsilogic\"\n"+
		"ddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\n", w.sectors, cylinders)
	head := make([]byte, vmdkOverhead*vmdkSector)
	copy(head, w.header(vmdkGDAtEnd))
	copy(head[vmdkSector:2*vmdkSector], descriptor)
	return w.put(head)
}

// flush packs the grains of a batch side by side, and writes them in order.
func (w *vmdkWriter) flush(ctx context.Context, disk Source, batch *grains) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range batch.used {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			packer := <-batch.packers
			defer func() { batch.packers <- packer }()
			return batch.list[i].pack(disk, packer)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i := range batch.used {
		if g := &batch.list[i]; g.packed.Len() > 0 {
			if err := w.grain(g); err != nil {
				return err
			}
		}
	}
	batch.used = 0
	return nil
}

func (w *vmdkWriter) grain(g *grain) error {
	if table := g.number / vmdkPerTable; w.entries == nil || table != w.table {
		if err := w.endTable(); err != nil {
			return err
		}
		w.table, w.entries = table, make([]uint32, vmdkPerTable)
	}
	w.entries[g.number%vmdkPerTable] = uint32(w.at)
	b := g.packed.Bytes()
	binary.LittleEndian.PutUint64(b, uint64(g.number*vmdkGrain/vmdkSector))
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-grainHead))
	return w.put(b)
}

func (w *vmdkWriter) endTable() error {
	if w.entries == nil {
		return nil
	}
	if err := w.marker(markerTable, vmdkPerTable*4/vmdkSector); err != nil {
		return err
	}
	w.directory[w.table] = uint32(w.at)
	return w.put(words(w.entries))
}

func (w *vmdkWriter) marker(kind uint32, sectors uint64) error {
	b := make([]byte, vmdkSector)
	binary.LittleEndian.PutUint64(b, sectors)
	binary.LittleEndian.PutUint32(b[12:], kind)
	return w.put(b)
}

func (w *vmdkWriter) end() error {
	if err := w.endTable(); err != nil {
		return err
	}
	directory := words(w.directory)
	if err := w.marker(markerDirectory, uint64((len(directory)+vmdkSector-1)/vmdkSector)); err != nil {
		return err
	}
	at := uint64(w.at)
	if err := w.put(directory); err != nil {
		return err
	}
	if err := w.marker(markerFooter, 1); err != nil {
		return err
	}
	if err := w.put(w.header(at)); err != nil {
		return err
	}
	return w.marker(markerEnd, 0)
}

func words(values []uint32) []byte {
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

const grainHead = 12 // of the marker before a grain's compressed data: where it belongs, how long it is

// grain is one grain on its way: what was read of the disk, and the marker with the packed data.
type grain struct {
	number int64
	raw    []byte
	packed bytes.Buffer
}

// pack reads and compresses the grain; one of zeros stays empty.
func (g *grain) pack(disk Source, packer *zlib.Writer) error {
	g.packed.Reset()
	at := g.number * vmdkGrain
	want := min(vmdkGrain, disk.Size()-at)
	if n, err := disk.ReadAt(g.raw[:want], at); int64(n) < want {
		return fmt.Errorf("read %d of %d bytes at %d: %w", n, want, at, err)
	}
	clear(g.raw[want:])
	if allZero(g.raw) {
		return nil
	}
	g.packed.Write(make([]byte, grainHead))
	packer.Reset(&g.packed)
	if _, err := packer.Write(g.raw); err != nil {
		return err
	}
	return packer.Close()
}

// grains are packed together.
type grains struct {
	list    []grain
	used    int
	packers chan *zlib.Writer
}

func newGrains(n int) *grains {
	b := &grains{list: make([]grain, n), packers: make(chan *zlib.Writer, runtime.GOMAXPROCS(0))}
	for i := range b.list {
		b.list[i].raw = make([]byte, vmdkGrain)
	}
	for range cap(b.packers) {
		b.packers <- zlib.NewWriter(io.Discard)
	}
	return b
}

// add takes one more grain and says whether the batch is full.
func (b *grains) add(number int64) bool {
	b.list[b.used].number = number
	b.used++
	return b.used == len(b.list)
}
