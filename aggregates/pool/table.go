package pool

import (
	"hash/fnv"
	"iter"
)

// table is a map that never changes: with and without give a new one that
// shares all but O(log n) nodes with the old. A pool may have a million leases
// and its older states may still be read while newer ones are made, so copying
// a Go map for each event is too dear and changing it in place is wrong.
//
// It is a treap: a search tree by key that is a heap by rank, a hash of the
// key, which keeps it balanced without drawing at random.
type table[V any] struct{ root *node[V] }

type node[V any] struct {
	key         string
	rank        uint64
	value       V
	left, right *node[V]
}

func (t table[V]) get(key string) (v V, ok bool) {
	for n := t.root; n != nil; {
		switch {
		case key < n.key:
			n = n.left
		case key > n.key:
			n = n.right
		default:
			return n.value, true
		}
	}
	return v, false
}

func (t table[V]) with(key string, v V) table[V] {
	return table[V]{insert(t.root, &node[V]{key: key, rank: rank(key), value: v})}
}

func (t table[V]) without(key string) table[V] { return table[V]{remove(t.root, key)} }

// all runs over the table in the order of its keys.
func (t table[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) { walk(t.root, yield) }
}

func walk[V any](n *node[V], yield func(string, V) bool) bool {
	return n == nil || walk(n.left, yield) && yield(n.key, n.value) && walk(n.right, yield)
}

func insert[V any](n, added *node[V]) *node[V] {
	if n == nil {
		return added
	}
	c := *n
	switch {
	case added.key < n.key:
		c.left = insert(n.left, added)
		if up := c.left; up.rank > c.rank { // up is a copy of our own: insert copies the path
			c.left, up.right = up.right, &c
			return up
		}
	case added.key > n.key:
		c.right = insert(n.right, added)
		if up := c.right; up.rank > c.rank {
			c.right, up.left = up.left, &c
			return up
		}
	default:
		c.value = added.value
	}
	return &c
}

func remove[V any](n *node[V], key string) *node[V] {
	if n == nil {
		return nil
	}
	c := *n
	switch {
	case key < n.key:
		c.left = remove(n.left, key)
	case key > n.key:
		c.right = remove(n.right, key)
	default:
		return merge(n.left, n.right)
	}
	return &c
}

// merge joins two trees of which every key of a is below every key of b.
func merge[V any](a, b *node[V]) *node[V] {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.rank > b.rank:
		c := *a
		c.right = merge(a.right, b)
		return &c
	default:
		c := *b
		c.left = merge(a, b.left)
		return &c
	}
}

func rank(key string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	// FNV leaves neighbours ("10.0.0.1", "10.0.0.2") close together; spread them.
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	return x ^ x>>33
}
