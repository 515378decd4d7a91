package chunks

import (
	"context"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultCacheBytes is the size of a Cache where none is asked for.
const DefaultCacheBytes = 256 << 20

// Cache holds decompressed chunks, the least recently used of which make room. Its memory lies outside of Go's heap, so
// the bound is hard: the collector does not double it. It is safe for concurrent use.
type Cache struct {
	reader Reader
	arena  []byte
	shards []cacheShard
	codecs sync.Pool

	mu     sync.Mutex
	closed bool
	disks  sync.WaitGroup
}

// cacheShard is a list of slots, least recently used at tail, with a lock of its own.
type cacheShard struct {
	mu         sync.Mutex
	slots      []cacheSlot
	byID       map[ID]int32
	loading    map[ID]chan struct{}
	head, tail int32 // most and least recently used; -1 when empty
	used       int
}

type cacheSlot struct {
	id         ID
	prev, next int32
	length     int
	data       []byte
}

type cacheCodec struct {
	codec *Codec
	buf   []byte
}

// NewCache makes a cache of at most maxBytes (0: DefaultCacheBytes; at least one block) over a store. Close it after its disks.
func NewCache(r Reader, maxBytes int64) (*Cache, error) {
	if maxBytes == 0 {
		maxBytes = DefaultCacheBytes
	}
	slots := int(maxBytes / BlockSize)
	if slots < 1 {
		return nil, Errorf(RangeInvalid, "a cache of %d bytes holds no block", maxBytes)
	}
	arena, err := unix.Mmap(-1, 0, slots*BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, Wrap(RangeInvalid, err, "reserve %d bytes for the cache", maxBytes)
	}
	c := &Cache{reader: r, arena: arena, shards: make([]cacheShard, min(16, slots))}
	c.codecs.New = func() any { return &cacheCodec{codec: NewCodec(), buf: make([]byte, MaxRecordSize)} }
	for i := range c.shards {
		c.shards[i] = cacheShard{byID: map[ID]int32{}, loading: map[ID]chan struct{}{}, head: -1, tail: -1}
	}
	for i := range slots {
		sh := &c.shards[i%len(c.shards)]
		sh.slots = append(sh.slots, cacheSlot{data: arena[i*BlockSize : (i+1)*BlockSize]})
	}
	return c, nil
}

// Close waits for open disks to be closed and gives the memory back.
func (c *Cache) Close() error {
	c.mu.Lock()
	was := c.closed
	c.closed = true
	c.mu.Unlock()
	if was {
		return nil
	}
	c.disks.Wait()
	return unix.Munmap(c.arena)
}

// Open opens a disk for reading; its chunks stay in the store until the disk is closed. Errors: those of Reader.Acquire; store-closed.
func (c *Cache) Open(ctx context.Context, d Digest) (*Disk, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, Errorf(StoreClosed, "the cache is closed")
	}
	c.disks.Add(1)
	c.mu.Unlock()
	x, release, err := c.reader.Acquire(ctx, d)
	if err != nil {
		c.disks.Done()
		return nil, err
	}
	return &Disk{cache: c, index: x, release: release}, nil
}

// Disk reads a stored disk. It is safe for concurrent use.
type Disk struct {
	cache   *Cache
	index   *DiskIndex
	release func()

	mu     sync.RWMutex
	closed bool
}

// Size is the disk's length in bytes.
func (d *Disk) Size() int64 { return d.index.size }

// Index is the disk's content.
func (d *Disk) Index() *DiskIndex { return d.index }

// Close ends the reading. It waits for reads in progress and may be called more than once.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.closed = true
		d.release()
		d.cache.disks.Done()
	}
	return nil
}

// ReadAt is io.ReaderAt. Every byte was checked against its chunk's hash. Errors besides io.EOF: chunk-missing, chunk-damaged, store-closed.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	switch {
	case d.closed:
		return 0, Errorf(StoreClosed, "the disk is closed")
	case off < 0:
		return 0, Errorf(RangeInvalid, "offset %d", off)
	}
	n := 0
	for n < len(p) && off < d.index.size {
		block, within := off/BlockSize, int(off%BlockSize)
		want := p[n:min(len(p), n+d.index.BlockLen(block)-within)]
		if id := d.index.At(block); id.IsZero() {
			clear(want)
		} else if err := d.cache.read(id, want, within); err != nil {
			return n, err
		}
		n += len(want)
		off += int64(len(want))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// read copies a part of a chunk to p, through the cache. Concurrent readers of one chunk load it once.
func (c *Cache) read(id ID, p []byte, within int) error {
	sh := &c.shards[int(id[0])%len(c.shards)]
	for {
		sh.mu.Lock()
		if i, ok := sh.byID[id]; ok {
			defer sh.mu.Unlock()
			sh.toFront(i)
			return copyPart(id, p, sh.slots[i].data[:sh.slots[i].length], within)
		}
		wait, busy := sh.loading[id]
		if !busy {
			break
		}
		sh.mu.Unlock()
		<-wait
	}
	done := make(chan struct{})
	sh.loading[id] = done
	sh.mu.Unlock()

	k := c.codecs.Get().(*cacheCodec)
	defer c.codecs.Put(k)
	// io.ReaderAt has no context; the read is one chunk long.
	rec, err := c.reader.ReadRecord(context.Background(), id, k.buf)
	var raw []byte
	if err == nil {
		raw, err = k.codec.Open(rec)
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	delete(sh.loading, id)
	close(done)
	if err != nil {
		return err
	}
	sh.insert(id, raw)
	return copyPart(id, p, raw, within)
}

func copyPart(id ID, p, raw []byte, within int) error {
	if within+len(p) > len(raw) {
		return Errorf(ChunkDamaged, "chunk %s has %d bytes, the index wants %d", id, len(raw), within+len(p))
	}
	copy(p, raw[within:])
	return nil
}

func (sh *cacheShard) insert(id ID, raw []byte) {
	var i int32
	if sh.used < len(sh.slots) {
		i = int32(sh.used)
		sh.used++
	} else {
		i = sh.tail
		sh.unlink(i)
		delete(sh.byID, sh.slots[i].id)
	}
	sl := &sh.slots[i]
	sl.id, sl.length = id, copy(sl.data, raw)
	sh.byID[id] = i
	sh.link(i)
}

func (sh *cacheShard) toFront(i int32) {
	if sh.head != i {
		sh.unlink(i)
		sh.link(i)
	}
}

func (sh *cacheShard) link(i int32) {
	sh.slots[i].prev, sh.slots[i].next = -1, sh.head
	if sh.head >= 0 {
		sh.slots[sh.head].prev = i
	} else {
		sh.tail = i
	}
	sh.head = i
}

func (sh *cacheShard) unlink(i int32) {
	prev, next := sh.slots[i].prev, sh.slots[i].next
	if prev >= 0 {
		sh.slots[prev].next = next
	} else {
		sh.head = next
	}
	if next >= 0 {
		sh.slots[next].prev = prev
	} else {
		sh.tail = prev
	}
}
