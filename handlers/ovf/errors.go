package ovf

import "fmt"

// The codes of this package's errors. A disk that cannot be read has a code of handlers/region/disks.
const (
	// The archive.
	CodeArchiveDamaged   = "ova-damaged"          // not a tar archive, or one that ends too early
	CodeEntryName        = "ova-entry-name"       // absolute, outside of the package, or not a file name at all
	CodeEntryType        = "ova-entry-type"       // a link, a device, a sparse file: only plain files are taken
	CodeEntryTwice       = "ova-entry-twice"      // two files of one name
	CodeTooManyEntries   = "ova-too-many-entries" // more files than Limits.Entries
	CodeEntryTooLarge    = "ova-entry-too-large"  // a file larger than the archive, or than Limits allow
	CodeNoDescriptor     = "ova-no-descriptor"    // no .ovf in the folder or archive
	CodeManyDescriptors  = "ova-many-descriptors" // more than one .ovf: which one is meant?
	CodeExpandsTooMuch   = "ova-expands-too-much" // a compressed file that unpacks to more than its disk can be
	CodeCompression      = "ovf-compression-unsupported"
	CodeFileMissing      = "ovf-file-missing"      // named by the descriptor or the manifest, and not there
	CodeFileChanged      = "ovf-file-changed"      // not the file that was verified any more
	CodeFileSize         = "ovf-file-size-differs" // not as long as the descriptor says
	CodeHref             = "ovf-href-forbidden"    // a reference that leads out of the package
	CodeDiskSize         = "ovf-disk-size-differs" // an image larger than the disk that the descriptor promises
	CodeManifest         = "ovf-manifest-malformed"
	CodeDigest           = "ovf-digest-mismatch"
	CodeNotListed        = "ovf-not-in-manifest"
	CodeCertificate      = "ovf-certificate-malformed"
	CodeSignature        = "ovf-signature-invalid"
	CodeSignerUntrusted  = "ovf-signer-untrusted"  // the signature is right, and nobody vouches for the signer
	CodeDescriptorSize   = "ovf-too-large"         // the descriptor is longer, deeper or fuller than Limits allow
	CodeXML              = "ovf-xml-malformed"     // not XML
	CodeXMLForbidden     = "ovf-xml-forbidden"     // a document type declaration: entities are never expanded
	CodeNotEnvelope      = "ovf-not-an-envelope"   // XML, but no OVF descriptor of a known version
	CodeInvalid          = "ovf-invalid"           // contradicts DSP0243
	CodeSectionRequired  = "ovf-section-required"  // ovf:required, and not understood here
	CodeHardwareRequired = "ovf-hardware-required" // a device that is required, and not known here
	CodeParentDisk       = "ovf-parent-disk"       // a delta of another disk
	// Writing.
	CodeExists         = "ovf-exists"             // the target is there already
	CodeNotExportable  = "ovf-not-exportable"     // the graph or its disks do not fit into a package
	CodeSignerUnusable = "ovf-signer-unsupported" // a key that OVF tools cannot check
)

// The codes of findings: what was taken in with a reservation.
const (
	FoundSectionIgnored = "ovf-section-not-applied"
	FoundDeviceIgnored  = "ovf-device-not-applied"
	FoundDiskAbsent     = "ovf-disk-absent"
	FoundDiskShared     = "ovf-disk-shared"
	FoundCapacity       = "ovf-capacity-differs"
	FoundFormat         = "ovf-format-unknown"
	FoundNetwork        = "ovf-network-undeclared"
	FoundStartup        = "ovf-startup-unknown-id"
	FoundPassword       = "ovf-password-dropped"
	FoundNoManifest     = "ovf-no-manifest"
	FoundWeakDigest     = "ovf-weak-digest"
	FoundExtrasStale    = "ovf-graph-section-stale"
	FoundOldFormat      = "ovf-old-format"
)

// Error is a refusal with a stable code and a text that says what to do about it.
type Error struct {
	Code    string
	Message string
	Err     error // the cause, if there is one
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return e.Code + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Err }

func refuse(code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func refuseFor(cause error, code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Err: cause}
}
