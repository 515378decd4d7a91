package projections

import (
	"bytes"
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"
)

// Key names a row within its table: one or more parts, compared one after the
// other, byte by byte. Numbers go in with [Number].
type Key []string

// Number gives n as a part whose order is the order of numbers: its digits
// after a letter that says how many there are (7 is "a7", 42 is "b42").
func Number(n uint64) string {
	digits := []byte{'a'}
	digits = appendDecimal(digits, n)
	digits[0] += byte(len(digits) - 2)
	return string(digits)
}

func appendDecimal(dst []byte, n uint64) []byte {
	if n >= 10 {
		dst = appendDecimal(dst, n/10)
	}
	return append(dst, byte('0'+n%10))
}

// The first byte of every key.
const (
	areaCurrent = 'c'
	areaHistory = 'h'
	areaMeta    = 'm'
)

// The bytes below these never occur unescaped in a part.
const (
	keyEnd    = 0x00
	partStart = 0x01
	escape    = 0x02
	pastParts = 0x02 // greater than keyEnd and partStart, so it bounds a key and its extensions
)

const (
	spaceLen = 4
	headLen  = 1 + spaceLen // area and space
	seqLen   = 8
	maxSpace = 1<<28 - 1
)

// appendHead appends area and space.
func appendHead(dst []byte, area byte, space uint32) []byte {
	return append(dst, area, 0x80|byte(space>>21), 0x80|byte(space>>14), 0x80|byte(space>>7), 0x80|byte(space))
}

// appendPart appends one part, escaped.
func appendPart(dst []byte, part string) []byte {
	plain := 0
	for plain < len(part) && part[plain] > escape {
		plain++
	}
	dst = append(dst, part[:plain]...)
	for i := plain; i < len(part); i++ {
		if c := part[i]; c <= escape {
			dst = append(dst, escape, c+1)
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

// appendParts appends parts, each with the byte that starts it.
func appendParts(dst []byte, parts []string) []byte {
	for _, p := range parts {
		dst = appendPart(append(dst, partStart), p)
	}
	return dst
}

// metaKey is the key of one of the store's own records.
func metaKey(name string, parts ...string) []byte {
	return append(appendParts(appendPart([]byte{areaMeta}, name), parts), keyEnd)
}

// appendSequence appends the suffix under which a row is stored as of seq.
func appendSequence(dst []byte, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(dst, ^seq)
}

// sequenceOf reads the suffix of a history key.
func sequenceOf(suffix []byte) (uint64, bool) {
	if len(suffix) != seqLen {
		return 0, false
	}
	return ^binary.BigEndian.Uint64(suffix), true
}

// split gives the length of a key without its sequence.
func split(key []byte) int {
	if i := bytes.IndexByte(key, keyEnd); i >= 0 {
		return i + 1
	}
	return len(key)
}

// after gives the smallest bound beyond every version of the complete key.
func after(key []byte) []byte {
	next := bytes.Clone(key)
	next[len(next)-1] = partStart
	return next
}

// newComparer orders keys byte by byte and tells Pebble where a history key's
// sequence begins. Its name is part of the on-disk format.
func newComparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "tombolo.projections.1"
	c.Split = split
	c.ImmediateSuccessor = func(dst, prefix []byte) []byte {
		dst = append(dst, prefix...)
		if n := len(prefix); n > 0 && prefix[n-1] == keyEnd {
			dst[len(dst)-1] = partStart
			return dst
		}
		return append(dst, keyEnd)
	}
	return &c
}
