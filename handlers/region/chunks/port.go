package chunks

import (
	"context"
	"time"
)

// Root is a published set of disks: the unit that is kept, listed and removed.
type Root struct {
	Name    string   `json:"name"`    // unique in the store, for example "template/73291467@2"
	Owner   string   `json:"owner"`   // who answers for it, for example the id of the work order; the janitor compares it with the journal
	Indexes []Digest `json:"indexes"` // at least one disk
}

// Hold is a lease of an upload or copy in progress.
type Hold struct {
	Owner   string    `json:"owner"`
	Until   time.Time `json:"until"`   // the first Collect after it forgets the hold
	Indexes []Digest  `json:"indexes"` // what Session.Attach added
}

// Stats is the size of a store.
type Stats struct {
	Roots        int
	Holds        int
	LogicalBytes int64 // sum of the sizes of the disks of all roots
	StoredBytes  int64 // bytes on the disk, garbage included
	Chunks       int   // chunks present, garbage included
}

// Reader is the part of a store that changes nothing. All methods are safe for concurrent use.
type Reader interface {
	// Has says for each id whether the chunk is present; ZeroID always is. It is advice: a chunk that nothing protects
	// may be collected the next moment (Session.Touch protects).
	Has(ctx context.Context, ids []ID) ([]bool, error)

	// ReadRecord gives a chunk as stored, its checksums checked but not its hash (Codec.Open does that). The payload
	// may lie in buf, which grows where it is too small. Errors: chunk-missing; chunk-damaged. A repeat after either
	// helps only when the chunk was stored again.
	ReadRecord(ctx context.Context, id ID, buf []byte) (Record, error)

	// Index reads a disk index and checks its digest. Errors: index-missing; store-damaged.
	Index(ctx context.Context, d Digest) (*DiskIndex, error)

	// Acquire is Index, and keeps the disk's chunks from collection until release, which may be called more than once.
	// It does not outlive the process. Errors: those of Index.
	Acquire(ctx context.Context, d Digest) (x *DiskIndex, release func(), err error)

	// Roots and Holds list all, sorted by name and owner.
	Roots(ctx context.Context) ([]Root, error)
	Holds(ctx context.Context) ([]Hold, error)

	// List calls each with batches of the ids of all chunks present, about in the order in which they are stored. A
	// chunk that comes, goes or moves meanwhile may be left out or told twice. It ends with each's first error.
	List(ctx context.Context, each func([]ID) error) error

	Stats(ctx context.Context) (Stats, error)
}

// Writer is the part of a store that changes it. All methods are safe for concurrent use. Every method may answer
// store-full (the same call works once there is room), store-write-failed or store-closed.
type Writer interface {
	// Hold makes a lease or sets the end of the one that the owner has; its indexes stay. A repeat does nothing. Error: hold-invalid.
	Hold(ctx context.Context, owner string, until time.Time) error

	// Release ends a lease at once and says whether there was one.
	Release(ctx context.Context, owner string) (existed bool, err error)

	// Begin opens a session under the owner's hold. Error: hold-unknown.
	Begin(ctx context.Context, owner string) (Session, error)

	// Publish makes a root, after all chunks of its disks are found present and made durable: after a crash the root is
	// there whole or not at all. A repeat with the same content does nothing. Errors: root-invalid; root-conflict (the
	// name has other content or another owner: unpublish it first); index-missing; chunk-missing.
	Publish(ctx context.Context, r Root) error

	// Unpublish forgets a root, durably, and says whether there was one; its chunks go with the next Collect.
	Unpublish(ctx context.Context, name string) (existed bool, err error)

	// Quarantine looks at each chunk again and drops those whose bytes are damaged, so that they count as missing and
	// can be stored again; it gives the dropped ones. Good and unknown chunks stay as they are.
	Quarantine(ctx context.Context, ids []ID) (dropped []ID, err error)

	// Collect takes away what nothing protects: not a root, not a hold that lasts at r.Now, not an open session, not an
	// acquired disk. While a session is open it may also keep what others stored or touched since that session began. It
	// runs beside all other methods. A cancelled or failed Collect leaves a good store; repeat it.
	// Error: store-damaged (a root, hold or index cannot be read: then nothing is taken).
	Collect(ctx context.Context, r CollectRequest) (CollectResult, error)
}

// Session stores chunks. What it stored or touched is protected until Close, and from Attach on by the hold. Its
// methods are safe for concurrent use. Errors besides those named: those of Writer.
type Session interface {
	// Touch says for each id whether the chunk is present, and protects those that are.
	Touch(ctx context.Context, ids []ID) ([]bool, error)

	// Put stores a chunk and gives the bytes it took, 0 where it was present already. The record's bytes are free again
	// when Put returns. It is durable only after Attach or Publish. Error: record-invalid (the zero Sealed).
	Put(ctx context.Context, s Sealed) (stored int64, err error)

	// Attach makes all chunks so far and the index durable and puts the index under the hold, whether or not its chunks
	// are all present: an upload attaches at its end, a copy at its start (so that what it fetched survives a restart)
	// and again at its end. A repeat does nothing new. Error: hold-unknown (released or collected since).
	Attach(ctx context.Context, x *DiskIndex) (Digest, error)

	// Close ends the protection. It may be called more than once.
	Close()
}

// Store is both parts.
type Store interface {
	Reader
	Writer
	// Close makes all durable and frees the store for another process.
	Close() error
}

// CollectRequest says what to collect.
type CollectRequest struct {
	Now time.Time // holds that end before are forgotten
	// MinGarbage is the share of a pack, 0 to 1, that must be garbage before the pack is written anew. 0 takes
	// everything away (a removal that promises that the bytes are gone); 0.3 is a good value for housekeeping.
	MinGarbage float64
}

// CollectResult says what was collected.
type CollectResult struct {
	BytesFreed     int64
	ChunksRemoved  int
	IndexesRemoved int
	HoldsExpired   []string
	Damaged        []ID // chunks in use that could not be moved because their bytes are damaged; they count as missing now
}
