package chunks

import (
	"errors"
	"fmt"
)

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

// Error is a failure with a stable code; Err is its cause where there is one.
type Error struct {
	Code    Code
	Message string
	Err     error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error without a cause.
func Errorf(code Code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an Error from its cause.
func Wrap(code Code, err error, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Err: err}
}

// CodeOf gives the outermost code in err's chain, or "" where there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
