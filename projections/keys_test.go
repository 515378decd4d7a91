package projections

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

func TestComparer(t *testing.T) {
	var prefixes, suffixes [][]byte
	for _, k := range []Key{{"a"}, {"a", "b"}, {"ab"}, {"a\x00b", "\x01\x02"}, {""}, {"", ""}} {
		prefixes = append(prefixes, append(tableID{projection: "p", name: "table"}.newKey(k), keyEnd))
	}
	for i := range prefixes {
		setHead(prefixes[i], areaHistory, 300+uint32(i))
	}
	for _, seq := range []uint64{0, 1, 255, 256, 1 << 40, 1<<64 - 1} {
		suffixes = append(suffixes, appendSequence(nil, seq))
	}
	c := newComparer()
	if err := pebble.CheckComparer(c, prefixes, suffixes); err != nil {
		t.Fatal(err)
	}
	for _, p := range prefixes {
		next := c.ImmediateSuccessor(nil, p)
		last := appendSequence(bytes.Clone(p), 0)
		if c.Compare(next, last) <= 0 || c.Split(next) != len(next) {
			t.Errorf("%q does not follow all versions of %q", next, p)
		}
	}
}

// Keys sort as their parts do, none is a prefix of another, and none but the
// end byte ends them, whatever bytes are in the parts.
func TestKeyOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	alphabet := "\x00\x01\x02\x03a\xff"
	var keys []Key
	for range 600 {
		k := make(Key, 1+rng.IntN(3))
		for i := range k {
			for range rng.IntN(4) {
				k[i] += string(alphabet[rng.IntN(len(alphabet))])
			}
		}
		keys = append(keys, k)
	}
	encode := func(k Key) []byte { return append(tableID{projection: "p", name: "t"}.newKey(k), keyEnd)[headLen:] }
	for _, a := range keys {
		if n := split(encode(a)); n != len(encode(a)) {
			t.Fatalf("%q: split at %d", a, n)
		}
		for _, b := range keys {
			ea, eb := encode(a), encode(b)
			if got, want := bytes.Compare(ea, eb), slices.Compare(a, b); got != want {
				t.Fatalf("%q and %q compare as %d, encoded as %d", a, b, want, got)
			}
			if !slices.Equal(a, b) && bytes.HasPrefix(ea, eb) {
				t.Fatalf("%q is a prefix of %q", eb, ea)
			}
		}
	}
	numbers := []uint64{0, 1, 9, 10, 42, 99, 100, 12345678, 1<<64 - 1}
	for i := range numbers[1:] {
		if Number(numbers[i]) >= Number(numbers[i+1]) {
			t.Errorf("%q is not before %q", Number(numbers[i]), Number(numbers[i+1]))
		}
	}
}
