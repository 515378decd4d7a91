package chunks_test

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

func wantCode(t *testing.T, err error, code chunks.Code) {
	t.Helper()
	if chunks.CodeOf(err) != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
}

func encode(t *testing.T, x *chunks.DiskIndex) []byte {
	t.Helper()
	var b bytes.Buffer
	d, err := x.Encode(&b)
	if err != nil || d != chunks.DigestOf(b.Bytes()) || d != x.Digest() {
		t.Fatalf("digest %s, %v", d, err)
	}
	return b.Bytes()
}

func TestIndexGolden(t *testing.T) {
	// Rewrite this only with a new version of the format: regions hold these bytes.
	const golden = "54444953" + "4b495801" + // TDISKIX, version 1
		"00010000" + "0000000000980005" + // block size, size: 152 blocks and 5 bytes
		"ac02" + // 150 blocks of zeros
		"05" + // 2 blocks of data
		"0100000000000000000000000000000000000000000000000000000000000000" +
		"0200000000000000000000000000000000000000000000000000000000000000" +
		"02" // one block of zeros, 5 bytes of it
	b := chunks.NewIndexBuilder(152*chunks.BlockSize + 5)
	b.AppendZeros(100)
	for range 50 {
		b.Append(chunks.ZeroID)
	}
	b.Append(chunks.ID{1})
	b.Append(chunks.ID{2})
	b.AppendZeros(1)
	x, err := b.Index()
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(encode(t, x)); got != golden {
		t.Fatalf("got  %s\nwant %s", got, golden)
	}
	if x.At(149) != chunks.ZeroID || x.At(150) != (chunks.ID{1}) || x.At(151) != (chunks.ID{2}) || x.At(152) != chunks.ZeroID ||
		x.BlockLen(0) != chunks.BlockSize || x.BlockLen(152) != 5 || x.Blocks() != 153 || x.DataBlocks() != 2 {
		t.Fatal("the index says something else than was appended")
	}
}

func TestIndexRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		size := rnd.Int64N(200 * chunks.BlockSize)
		b := chunks.NewIndexBuilder(size)
		var want []chunks.ID
		for n := (size + chunks.BlockSize - 1) / chunks.BlockSize; int64(len(want)) < n; {
			id := chunks.ID{byte(rnd.IntN(3))}
			want = append(want, id)
			b.Append(id)
		}
		x, err := b.Index()
		if err != nil {
			t.Fatal(err)
		}
		raw := encode(t, x)
		got, d, err := chunks.DecodeIndex(bytes.NewReader(raw))
		if err != nil || d != x.Digest() || got.Size() != size {
			t.Fatalf("decode: %v", err)
		}
		for i, id := range want {
			if got.At(int64(i)) != id {
				t.Fatalf("block %d of %d bytes is %s", i, size, got.At(int64(i)))
			}
		}
		for range 10 {
			cut := rnd.IntN(len(raw))
			_, _, err := chunks.DecodeIndex(bytes.NewReader(raw[:cut]))
			wantCode(t, err, chunks.IndexInvalid)
		}
	}
}

// TestIndexOneForm refuses every other way to say the same, and claims of more than there is.
func TestIndexOneForm(t *testing.T) {
	const head = "544449534b495801" + "00010000"
	id := hex.EncodeToString(bytes.Repeat([]byte{7}, 32))
	for name, text := range map[string]string{
		"empty":                   "",
		"other magic":             "544449534b495901" + "00010000" + "0000000000000000",
		"later version":           "544449534b495802" + "00010000" + "0000000000000000",
		"other block size":        "544449534b495801" + "00020000" + "0000000000000000",
		"negative size":           head + "ffffffffffffffff",
		"too large":               head + "0200000000000000" + "02",
		"bytes behind":            head + "0000000000000000" + "00",
		"run of none":             head + "0000000000000001" + "00",
		"run too long":            head + "0000000000000001" + "04",
		"two runs of zeros":       head + "0000000000020000" + "02" + "02",
		"two runs of data":        head + "0000000000020000" + "03" + id + "03" + id,
		"zeros as data":           head + "0000000000000001" + "03" + hex.EncodeToString(make([]byte, 32)),
		"long form of a length":   head + "0000000000000001" + "8200",
		"length without end":      head + "0000000000000001" + "ffffffffffffffffffff01",
		"more data than is there": head + "0000ffffffffffff" + "ffffffff1f",
	} {
		raw, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := chunks.DecodeIndex(bytes.NewReader(raw)); chunks.CodeOf(err) != chunks.IndexInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := chunks.NewIndexBuilder(5)
	_, err := b.Index()
	wantCode(t, err, chunks.IndexInvalid)
}

func FuzzDecodeIndex(f *testing.F) {
	b := chunks.NewIndexBuilder(3 * chunks.BlockSize)
	b.Append(chunks.ID{1})
	b.AppendZeros(2)
	x, err := b.Index()
	if err != nil {
		f.Fatal(err)
	}
	var buf bytes.Buffer
	if _, err := x.Encode(&buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		x, d, err := chunks.DecodeIndex(bytes.NewReader(raw))
		if err == nil && (!bytes.Equal(encode(t, x), raw) || d != chunks.DigestOf(raw)) {
			t.Fatal("accepted, but not the canonical form")
		}
	})
}

func TestRecord(t *testing.T) {
	codec := chunks.NewCodec()
	rnd := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, chunks.BlockSize)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for name, raw := range map[string][]byte{
		"one byte": {1}, "text": bytes.Repeat([]byte("template"), 8192), "noise": noise, "short noise": noise[:100],
		"nearly zero": append(make([]byte, chunks.BlockSize-1), 1),
	} {
		rec := codec.Seal(chunks.NewBlock(raw)).Record()
		stored := append(rec.AppendHeader(nil), rec.Payload...)
		if (rec.Encoding == chunks.Plain) != (name == "noise" || name == "short noise" || name == "one byte") || len(stored) != rec.Size() {
			t.Errorf("%s: encoding %d, %d bytes", name, rec.Encoding, len(stored))
		}
		h, err := chunks.ParseRecordHeader(stored)
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.Record(stored[chunks.RecordHeaderSize:])
		if err != nil {
			t.Fatal(err)
		}
		if back, err := codec.Open(got); err != nil || !bytes.Equal(back, raw) {
			t.Fatalf("%s: %v", name, err)
		}
		// Every bit of the stored form is guarded.
		for i := range min(len(stored), 300) {
			bad := bytes.Clone(stored)
			bad[i] ^= 1 << (i % 8)
			h, err := chunks.ParseRecordHeader(bad)
			if err == nil {
				_, err = h.Record(bad[chunks.RecordHeaderSize:])
			}
			wantCode(t, err, chunks.RecordInvalid)
		}
	}
	// A record with right checksums and a wrong hash, and one that grows beyond a block.
	lie := codec.Seal(chunks.NewBlock([]byte("truth"))).Record()
	lie.Payload = []byte("wrong")
	_, err := codec.Verify(lie)
	wantCode(t, err, chunks.ChunkDamaged)
	bomb := codec.Seal(chunks.NewBlock(append(make([]byte, 100*chunks.BlockSize), 1))).Record()
	_, err = codec.Verify(bomb)
	wantCode(t, err, chunks.ChunkDamaged)
}
