// Package projections keeps the read models: rows folded from the journal that
// answer questions, as of now and as of any earlier position.
//
// A [Store] is one Pebble database in one data directory. A [Feed] folds a set
// of projections in stream order; their rows and the position are one batch. A
// [Consumer] is the same for a handler that keeps its own rows. A [View] reads
// everything at one position.
//
// A projection is one file: its row structs, its tables with their keys, Apply,
// and the questions it answers. regions.go is the pattern.
//
// # Keys on disk
//
//	c <space> <table> 01 <part> 01 <part> … 00            current row          → the row (codec.go)
//	h <space> <table> 01 <part> 01 <part> … 00 <^seq>     row as of a sequence → 01 and the row, or 00 for a deletion
//	m <name> 01 <part> … 00                               the store's own records (meta.go)
//
// A space is four bytes (128 | seven bits each) that stand for one projection in
// one shape, or one consumer. An index is a table too, named <table>.<index>:
// its parts are the indexed ones followed by the row's key, its value is how many
// bytes at its end those are. In parts the bytes 00, 01 and 02 become 02 01, 02 02
// and 02 03, so that the order of keys is the order of their parts, 00 ends a key
// and nothing else, and a key is a prefix of no other. The suffix is the
// sequence's complement, big endian: the newest comes first, and Pebble's Split
// and bloom filters see all versions of a row as one.
//
// # Durability
//
// Batches are not synced one by one: after a power cut the store is at an
// earlier position, with exactly the rows of that position, and folds on from
// there. The journal is the truth; nothing here is.
package projections
