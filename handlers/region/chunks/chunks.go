// Package chunks is the port of a region's chunk store: disks are kept as fixed, aligned blocks of 64 KiB, addressed by
// the SHA-256 of their raw bytes, compressed, and shared between versions, templates and snapshots (DESIGN.md section 5).
//
// The package holds the vocabulary (ID, DiskIndex, Record), the contract of an implementation (Reader, Writer, Session)
// and all that can be built on the contract alone: Ingest, Cache (reading), Verify, Scrub, Export. Package packs keeps
// chunks in a folder; package chunkstest holds the suite that every implementation passes, and a twin in memory.
//
// A chunk becomes durable in this order: record, index of records, directory, root. What no root, hold, session or open
// disk names may be collected.
package chunks

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// BlockSize is the length in bytes of every block of a disk but the last, which may be shorter.
const BlockSize = 64 << 10

// ID names a chunk: the SHA-256 of its raw bytes. The zero value, ZeroID, names a block of zeros of any length.
type ID [sha256.Size]byte

// ZeroID names a block that holds only zeros, whatever its length. It is never stored or sent, and always present.
var ZeroID ID

// Identify gives the ID of a block's raw bytes.
func Identify(raw []byte) ID {
	if isZero(raw) {
		return ZeroID
	}
	return sha256.Sum256(raw)
}

// IsZero says whether the id names a block of zeros.
func (id ID) IsZero() bool { return id == ID{} }

// String gives the id as 64 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// isZero compares the block with itself shifted by one byte, which runs at the speed of memory.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}

// Digest names a document by its content: "sha256:" and 64 lower-case hexadecimal digits.
type Digest string

// DigestOf gives the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return digestOfSum(sum[:])
}

func digestOfSum(sum []byte) Digest { return Digest("sha256:" + hex.EncodeToString(sum)) }

// ParseDigest checks the spelling of s. Error: digest-invalid.
func ParseDigest(s string) (Digest, error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	if raw, err := hex.DecodeString(h); !ok || err != nil || len(raw) != sha256.Size || strings.ToLower(h) != h {
		return "", Errorf(DigestInvalid, "%q is not sha256:<64 lower-case hexadecimal digits>", s)
	}
	return Digest(s), nil
}

// Hex gives the digest without its algorithm: a name for a file.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Extent is a range of bytes of a disk.
type Extent struct{ Offset, Length int64 }

// Progress tells how far a long task is, in bytes of the disk or store it works on.
type Progress struct{ Done, Total int64 }
