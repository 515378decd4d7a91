package chunks

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
)

// Encoding is how a record's payload is written.
type Encoding uint8

// The encodings of version 1.
const (
	Plain Encoding = 0 // the raw bytes: compression did not make them smaller
	Zstd  Encoding = 1 // one zstd frame, RFC 8878
)

// RecordHeaderSize is the length of a record before its payload.
const RecordHeaderSize = 56

// MaxRecordSize bounds an encoded record.
const MaxRecordSize = RecordHeaderSize + BlockSize

// Record is one chunk as it is stored and sent. Its form, version 1 (integers big-endian):
//
//	4 bytes   "TCR1"
//	4 bytes   length of the raw bytes, 1 to 65536
//	4 bytes   length of the payload, 1 to the raw length
//	1 byte    encoding, 3 bytes zero
//	32 bytes  id
//	4 bytes   CRC-32C of the payload
//	4 bytes   CRC-32C of the 52 bytes before
//	payload
//
// The checksums find torn writes and rot without decompressing; only Codec.Verify proves that a record is what it says.
type Record struct {
	ID       ID
	RawLen   int
	Encoding Encoding
	Payload  []byte
}

const recordMagic = "TCR1"

// Size is the length of the encoded record.
func (r Record) Size() int { return RecordHeaderSize + len(r.Payload) }

// AppendHeader appends the record's header to b.
func (r Record) AppendHeader(b []byte) []byte {
	table := crc32.MakeTable(crc32.Castagnoli)
	start := len(b)
	b = append(b, recordMagic...)
	b = binary.BigEndian.AppendUint32(b, uint32(r.RawLen))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Payload)))
	b = append(b, byte(r.Encoding), 0, 0, 0)
	b = append(b, r.ID[:]...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(r.Payload, table))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], table))
}

// RecordHeader is what the header says of the record that follows.
type RecordHeader struct {
	ID         ID
	RawLen     int
	PayloadLen int
	Encoding   Encoding
	payloadCRC uint32
}

// ParseRecordHeader checks the first RecordHeaderSize bytes of b. Error: record-invalid.
func ParseRecordHeader(b []byte) (RecordHeader, error) {
	if len(b) < RecordHeaderSize || string(b[:4]) != recordMagic ||
		binary.BigEndian.Uint32(b[52:]) != crc32.Checksum(b[:52], crc32.MakeTable(crc32.Castagnoli)) {
		return RecordHeader{}, Errorf(RecordInvalid, "no intact record header")
	}
	h := RecordHeader{
		ID:         ID(b[16:48]),
		Encoding:   Encoding(b[12]),
		payloadCRC: binary.BigEndian.Uint32(b[48:]),
	}
	raw, payload := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if raw == 0 || raw > BlockSize || payload == 0 || payload > raw || h.Encoding > Zstd || h.ID.IsZero() ||
		h.Encoding == Plain && payload != raw || b[13]|b[14]|b[15] != 0 {
		return RecordHeader{}, Errorf(RecordInvalid, "record header out of bounds: raw %d, payload %d, encoding %d", raw, payload, h.Encoding)
	}
	h.RawLen, h.PayloadLen = int(raw), int(payload)
	return h, nil
}

// Size is the length of the whole record.
func (h RecordHeader) Size() int { return RecordHeaderSize + h.PayloadLen }

// Record joins the header and its payload, which it keeps. Error: record-invalid where the payload is torn.
func (h RecordHeader) Record(payload []byte) (Record, error) {
	if len(payload) != h.PayloadLen || crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)) != h.payloadCRC {
		return Record{}, Errorf(RecordInvalid, "payload of chunk %s does not match its checksum", h.ID)
	}
	return Record{ID: h.ID, RawLen: h.RawLen, Encoding: h.Encoding, Payload: payload}, nil
}

// Block is raw bytes and their id.
type Block struct {
	id  ID
	raw []byte
}

// NewBlock hashes raw, which it keeps.
func NewBlock(raw []byte) Block { return Block{id: Identify(raw), raw: raw} }

// ID names the block.
func (b Block) ID() ID { return b.id }

// Sealed is a record that is known to hold the bytes its id names. Only a Codec makes one, so a store needs no second look.
type Sealed struct{ rec Record }

// Record gives the record; for the zero Sealed its id is ZeroID.
func (s Sealed) Record() Record { return s.rec }

// Codec compresses, decompresses and checks blocks. It reuses its buffers: what a method gives is valid until the next
// call. It is for one goroutine at a time.
type Codec struct {
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	comp []byte
	raw  []byte
}

// NewCodec makes a codec; it holds about 1 MiB.
func NewCodec() *Codec {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(BlockSize), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		panic("chunks: the zstd encoder refused constant options: " + err.Error())
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(BlockSize))
	if err != nil {
		panic("chunks: the zstd decoder refused constant options: " + err.Error())
	}
	return &Codec{enc: enc, dec: dec, raw: make([]byte, 0, BlockSize), comp: make([]byte, 0, BlockSize+1024)}
}

// Seal compresses a block of 1 to BlockSize bytes that are not all zero.
func (c *Codec) Seal(b Block) Sealed {
	r := Record{ID: b.id, RawLen: len(b.raw), Encoding: Zstd}
	c.comp = c.enc.EncodeAll(b.raw, c.comp[:0])
	r.Payload = c.comp
	// A gain below 1/32 is not worth a decompression at every read.
	if len(c.comp) >= len(b.raw)-len(b.raw)/32 {
		r.Encoding, r.Payload = Plain, b.raw
	}
	return Sealed{rec: r}
}

// Open gives the raw bytes of a record after checking length and SHA-256. Error: chunk-damaged.
func (c *Codec) Open(r Record) ([]byte, error) {
	raw := r.Payload
	if r.Encoding == Zstd {
		var err error
		if raw, err = c.dec.DecodeAll(r.Payload, c.raw[:0]); err != nil {
			return nil, Wrap(ChunkDamaged, err, "chunk %s does not decompress", r.ID)
		}
	}
	if len(raw) != r.RawLen || len(raw) > BlockSize || sha256.Sum256(raw) != r.ID {
		return nil, Errorf(ChunkDamaged, "chunk %s holds other bytes", r.ID)
	}
	return raw, nil
}

// Verify is Open for those who want to store the record as it is. Error: chunk-damaged.
func (c *Codec) Verify(r Record) (Sealed, error) {
	if _, err := c.Open(r); err != nil {
		return Sealed{}, err
	}
	return Sealed{rec: r}, nil
}
