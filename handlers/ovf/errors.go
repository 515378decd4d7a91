package ovf

import "github.com/tombolo-vdc/tombolo/handlers/fault"

// Code is a stable, searchable name for a kind of refusal.
type Code string

// The codes of this package's errors. A disk that cannot be read has a code of handlers/region/disks.
const (
	// The archive.
	CodeArchiveDamaged   Code = "ova-damaged"          // not a tar archive, or one that ends too early
	CodeEntryName        Code = "ova-entry-name"       // absolute, outside of the package, or not a file name at all
	CodeEntryType        Code = "ova-entry-type"       // a link, a device, a sparse file: only plain files are taken
	CodeEntryTwice       Code = "ova-entry-twice"      // two files of one name
	CodeTooManyEntries   Code = "ova-too-many-entries" // more files than Limits.Entries
	CodeEntryTooLarge    Code = "ova-entry-too-large"  // a file larger than the archive, or than Limits allow
	CodeNoDescriptor     Code = "ova-no-descriptor"    // no .ovf in the folder or archive
	CodeManyDescriptors  Code = "ova-many-descriptors" // more than one .ovf: which one is meant?
	CodeExpandsTooMuch   Code = "ova-expands-too-much" // a compressed file that unpacks to more than its disk can be
	CodeCompression      Code = "ovf-compression-unsupported"
	CodeFileMissing      Code = "ovf-file-missing"      // named by the descriptor or the manifest, and not there
	CodeFileChanged      Code = "ovf-file-changed"      // not the file that was verified any more
	CodeFileSize         Code = "ovf-file-size-differs" // not as long as the descriptor says
	CodeHref             Code = "ovf-href-forbidden"    // a reference that leads out of the package
	CodeDiskSize         Code = "ovf-disk-size-differs" // an image larger than the disk that the descriptor promises
	CodeManifest         Code = "ovf-manifest-malformed"
	CodeDigest           Code = "ovf-digest-mismatch"
	CodeNotListed        Code = "ovf-not-in-manifest"
	CodeCertificate      Code = "ovf-certificate-malformed"
	CodeSignature        Code = "ovf-signature-invalid"
	CodeSignerUntrusted  Code = "ovf-signer-untrusted"  // the signature is right, and nobody vouches for the signer
	CodeDescriptorSize   Code = "ovf-too-large"         // the descriptor is longer, deeper or fuller than Limits allow
	CodeXML              Code = "ovf-xml-malformed"     // not XML
	CodeXMLForbidden     Code = "ovf-xml-forbidden"     // a document type declaration: entities are never expanded
	CodeNotEnvelope      Code = "ovf-not-an-envelope"   // XML, but no OVF descriptor of a known version
	CodeInvalid          Code = "ovf-invalid"           // contradicts DSP0243
	CodeSectionRequired  Code = "ovf-section-required"  // ovf:required, and not understood here
	CodeHardwareRequired Code = "ovf-hardware-required" // a device that is required, and not known here
	CodeParentDisk       Code = "ovf-parent-disk"       // a delta of another disk
	// Writing.
	CodeExists         Code = "ovf-exists"             // the target is there already
	CodeNotExportable  Code = "ovf-not-exportable"     // the graph or its disks do not fit into a package
	CodeSignerUnusable Code = "ovf-signer-unsupported" // a key that OVF tools cannot check
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
	FoundMAC            = "ovf-mac-not-kept"
	FoundOldFormat      = "ovf-old-format"
)

// Error is a refusal with a stable code and a text that says what to do about it.
type Error = fault.Error[Code]

func refuse(code Code, format string, args ...any) error { return fault.New(code, format, args...) }

func refuseFor(cause error, code Code, format string, args ...any) error {
	return fault.Wrap(code, cause, format, args...)
}
