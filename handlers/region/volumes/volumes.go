// Package volumes keeps the disks of a region's environments: each is an immutable base, which is a disk index in the
// region's chunk store, and a writable overlay in a folder. A volume is open at once whatever its size, because nothing
// is copied; the stored bytes of the base never change.
//
//	volume.json   size, base and layers, with a format number; written beside, made durable and renamed
//	LOCK          held (flock) while the volume is open
//	NNNNNNNN.data the bytes of a layer, sparse, at their own offsets
//	NNNNNNNN.log  which blocks of 4 KiB the layer holds (log.go)
//
// Commonly there is one layer, the top, where writes go. Freeze puts an empty one above it, so that what is below stands
// still while it is saved; Rebase then makes what was saved the base, and the frozen layer goes. A save that did not end
// leaves the frozen layer, which the next Freeze folds into the top. Each step leaves the bytes that the volume reads as
// they are, so a crash between any two of them does too.
//
// A write that was answered survives the end of the process, even by SIGKILL; one that was flushed survives a power cut.
package volumes

import "github.com/tombolo-vdc/tombolo/handlers/fault"

// BlockSize is the granularity in bytes of the overlay.
const BlockSize = 4096

// Code is a stable, searchable name for a kind of failure.
type Code string

// The codes of volumes.
const (
	VolumeExists        Code = "volume-exists"         // the folder holds a volume with another base or size
	VolumeMissing       Code = "volume-missing"        // the folder holds no volume
	VolumeInUse         Code = "volume-in-use"         // another process, or another part of this one, has it open
	VolumeFormatUnknown Code = "volume-format-unknown" // written by a later program
	VolumeDamaged       Code = "volume-damaged"        // the description or the log of a layer cannot be trusted
	VolumeFull          Code = "volume-full"           // the disk beneath is full: reads and rewrites go on, the write works once there is room
	VolumeFailed        Code = "volume-failed"         // an fsync failed: reads go on, writes need the volume to be opened again
	VolumeClosed        Code = "volume-closed"
	VolumeBusy          Code = "volume-busy"     // it is being saved already
	VolumeInvalid       Code = "volume-invalid"  // a size, name or base that no volume can have
	RangeInvalid        Code = "range-invalid"   // outside of the volume
	BaseUnreadable      Code = "base-unreadable" // the cause says why: chunk-missing, index-missing, …
	IOFailed            Code = "io-failed"       // the cause says why
)

// CodeOf gives the outermost of these codes in err's chain, or "" where there is none.
func CodeOf(err error) Code { return fault.CodeOf[Code](err) }

func errorf(code Code, format string, args ...any) error { return fault.New(code, format, args...) }

func wrap(code Code, err error, format string, args ...any) error {
	return fault.Wrap(code, err, format, args...)
}
