package chunks

import "github.com/tombolo-vdc/tombolo/handlers/fault"

// Code is a stable, searchable name for a kind of failure.
type Code string

// The codes of the chunk store and of transfers.
const (
	StoreInUse         Code = "store-in-use"         // another process has the store open
	StoreFormatUnknown Code = "store-format-unknown" // the folder is no store, or one of a later format
	StoreFull          Code = "store-full"           // the disk or the quota is full; reads go on, writes go on when there is room
	StoreWriteFailed   Code = "store-write-failed"   // an fsync failed: reads go on, writes need the store to be opened again
	StoreDamaged       Code = "store-damaged"        // a root, hold or index cannot be read: nothing is collected
	StoreClosed        Code = "store-closed"
	ChunkMissing       Code = "chunk-missing"
	ChunkDamaged       Code = "chunk-damaged" // stored or received bytes do not match their id or checksum
	RecordInvalid      Code = "record-invalid"
	IndexMissing       Code = "index-missing"
	IndexInvalid       Code = "index-invalid" // not a disk index, a later version of it, or not in canonical form
	DigestInvalid      Code = "digest-invalid"
	DigestMismatch     Code = "digest-mismatch"
	RootConflict       Code = "root-conflict" // the name is published with another content or owner
	RootInvalid        Code = "root-invalid"
	HoldUnknown        Code = "hold-unknown"
	HoldInvalid        Code = "hold-invalid"
	DiskChanged        Code = "disk-changed" // the source changed while it was read
	DiskUnreadable     Code = "disk-unreadable"
	RangeInvalid       Code = "range-invalid"
	ExportFailed       Code = "export-failed"
)

// Errorf makes an error without a cause.
func Errorf(code Code, format string, args ...any) error { return fault.New(code, format, args...) }

// Wrap makes an error from its cause.
func Wrap(code Code, err error, format string, args ...any) error {
	return fault.Wrap(code, err, format, args...)
}

// CodeOf gives the outermost of these codes in err's chain, or "" where there is none.
func CodeOf(err error) Code { return fault.CodeOf[Code](err) }
