package projections

import "hash/maphash"

// knownKeys is a Bloom filter of the keys that a space got since it was empty:
// most rows that a fold asks for in vain need not be looked for in Pebble. It
// may know too many keys, never too few.
type knownKeys struct {
	seed  maphash.Seed
	words []uint64
}

func newKnownKeys(bytes int) *knownKeys {
	return &knownKeys{maphash.MakeSeed(), make([]uint64, bytes/8+1)}
}

func (k *knownKeys) add(key []byte) {
	word, mask := k.place(key)
	k.words[word] |= mask
}

func (k *knownKeys) has(key []byte) bool {
	word, mask := k.place(key)
	return k.words[word]&mask == mask
}

// place gives the word that is a key's, and its bits in it.
func (k *knownKeys) place(key []byte) (word, mask uint64) {
	h := maphash.Bytes(k.seed, key)
	return (h >> 24) % uint64(len(k.words)), 1<<(h&63) | 1<<(h>>6&63) | 1<<(h>>12&63) | 1<<(h>>18&63)
}
