package volumes

import (
	"encoding/binary"
	"hash/crc32"
)

// The log of a layer says which blocks the layer holds. It is a sequence of records, each with its own checksum, which
// covers the record's place in the file as well (integers big-endian):
//
//	4 bytes  CRC-32C of the offset in 8 bytes and all that follows
//	2 bytes  length of the payload
//	1 byte   kind
//	payload
//
// Kinds:
//
//	opened   1 byte format (1), 16 bytes boot id: the records that follow were written under that boot
//	blocks   runs of blocks: varint first block less the end of the run before, uvarint count<<1|zeroed
//	commit   8 bytes offset: the bytes of the blocks that are told before it are durable, and so are the records
//
// What is told behind the last commit's offset counts only while the boot is the same: then the bytes of the data file
// are there whether they were synced or not. After another boot these records are dropped, so that a block reads as it
// did when it was last flushed, or as what was written since, but never as bytes that nobody wrote.
const (
	logFormat    = 1
	recordHeader = 7
	maxPayload   = 1<<16 - 1
)

type kind byte

const (
	kindOpened kind = 1
	kindBlocks kind = 2
	kindCommit kind = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendRecord appends a record that is to lie at offset off.
func appendRecord(b []byte, off int64, k kind, payload []byte) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, byte(k))
	b = append(b, payload...)
	binary.BigEndian.PutUint32(b[at:], recordSum(off, b[at+4:]))
	return b
}

func recordSum(off int64, rest []byte) uint32 {
	var place [8]byte
	binary.BigEndian.PutUint64(place[:], uint64(off))
	return crc32.Update(crc32.Checksum(place[:], castagnoli), castagnoli, rest)
}

// readRecord reads the record at offset off of a log; ok is false where there is none that is whole.
func readRecord(log []byte, off int64) (k kind, payload []byte, next int64, ok bool) {
	b := log[off:]
	if len(b) < recordHeader {
		return 0, nil, 0, false
	}
	n := recordHeader + int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < n || binary.BigEndian.Uint32(b) != recordSum(off, b[4:n]) {
		return 0, nil, 0, false
	}
	return kind(b[6]), b[recordHeader:n], off + int64(n), true
}

func openedPayload(boot bootID) []byte { return append([]byte{logFormat}, boot[:]...) }

func commitPayload(upto int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(upto)) }

// appendSpan adds a run to a payload whose last run ended at end.
func appendSpan(payload []byte, s span, end int64) []byte {
	payload = binary.AppendVarint(payload, s.first-end)
	zero := uint64(0)
	if s.state == zeroed {
		zero = 1
	}
	return binary.AppendUvarint(payload, uint64(s.end-s.first)<<1|zero)
}

// maxSpan bounds what appendSpan adds.
const maxSpan = 2 * binary.MaxVarintLen64

// readSpans applies a payload to a map; false where it says what no map of that size can.
func readSpans(payload []byte, m *blockMap) bool {
	end := int64(0)
	for len(payload) > 0 {
		gap, n := binary.Varint(payload)
		if n <= 0 {
			return false
		}
		payload = payload[n:]
		count, n := binary.Uvarint(payload)
		if n <= 0 {
			return false
		}
		payload = payload[n:]
		first := end + gap
		if count>>1 > uint64(m.blocks) || first < 0 || first > m.blocks-int64(count>>1) {
			return false
		}
		s := written
		if count&1 == 1 {
			s = zeroed
		}
		end = first + int64(count>>1)
		m.set(first, end, s)
	}
	return true
}

// replayed is what a log says.
type replayed struct {
	end       int64 // of the whole records
	told      int64 // end of the last record of blocks
	committed int64 // what the last commit tells to be durable
	stale     bool  // records were dropped, or another boot wrote the log: it has to be written anew
	blank     bool  // the log holds nothing
}

// replay applies a log to an empty map. What lies behind the last whole record was torn by a crash and never promised:
// a commit counts once its log was synced, and at most one commit is on its way at any time. Where more than one whole
// commit follows, the log was damaged later. Errors: volume-damaged, volume-format-unknown.
func replay(log []byte, boot bootID, m *blockMap) (r replayed, err error) {
	type blocksAt struct {
		end     int64
		payload []byte
	}
	var told []blocksAt
	var wrote bootID
	for r.end < int64(len(log)) {
		k, payload, next, ok := readRecord(log, r.end)
		if !ok {
			break
		}
		switch k {
		case kindOpened:
			if len(payload) == 0 || payload[0] != logFormat {
				return r, errorf(VolumeFormatUnknown, "the log is of a format other than %d", logFormat)
			}
			copy(wrote[:], payload[1:])
		case kindBlocks:
			told = append(told, blocksAt{next, payload})
			r.told = next
		case kindCommit:
			if len(payload) != 8 {
				return r, errorf(VolumeDamaged, "commit of %d bytes at %d", len(payload), r.end)
			}
			r.committed = int64(binary.BigEndian.Uint64(payload))
		default:
			return r, errorf(VolumeFormatUnknown, "record of kind %d at %d", k, r.end)
		}
		r.end = next
	}
	r.blank = r.end == 0
	if n := commitsAfter(log, r.end+1); n > 1 {
		return r, errorf(VolumeDamaged, "no whole record at %d, and %d commits behind it", r.end, n)
	}
	same := wrote == boot
	r.stale = !r.blank && !same
	for _, t := range told {
		if t.end > r.committed && !same {
			break
		}
		if !readSpans(t.payload, m) {
			return r, errorf(VolumeDamaged, "the record that ends at %d tells of blocks outside of the volume", t.end)
		}
	}
	return r, nil
}

// commitsAfter counts the whole commits in what follows a place where no whole record is.
func commitsAfter(log []byte, off int64) (n int) {
	for ; off+recordHeader+8 <= int64(len(log)); off++ {
		if kind(log[off+6]) != kindCommit || log[off+4] != 0 || log[off+5] != 8 {
			continue
		}
		if _, _, _, ok := readRecord(log, off); ok {
			n++
		}
	}
	return n
}
