// Package nbd serves and uses block devices over the Network Block Device protocol on a unix socket, as the protocol's
// document says it (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, "proto.md" below): fixed newstyle
// negotiation, many exports by name, simple and structured replies, and the context "base:allocation", by which copying
// programs skip what is zero.
package nbd

import (
	"fmt"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// MaxRequest is the greatest length in bytes of a read or write (proto.md, "Block size constraints"). Trimming and
// zeroing are bounded by the 32 bits of the length only.
const MaxRequest = 32 << 20

// proto.md, "Newstyle negotiation".
const (
	magicInit        = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      = 0x49484156454f5054 // "IHAVEOPT"
	magicOptionReply = 0x0003e889045565a9

	flagFixedNewstyle = 1 << 0 // the server's and the client's bits are the same
	flagNoZeroes      = 1 << 1

	// maxOption is what an option's data may be long; a longer one is answered with an error, and one beyond
	// maxOptionSkipped with the end of the connection.
	maxOption        = 16 << 10
	maxOptionSkipped = 1 << 20
	maxName          = 4096 // proto.md, "Values": strings
)

// proto.md, "Option types".
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// proto.md, "Option reply types".
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrUnsup    = 1<<31 + 1
	repErrInvalid  = 1<<31 + 3
	repErrUnknown  = 1<<31 + 6
	repErrTooBig   = 1<<31 + 9

	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// proto.md, "Transmission flags".
const (
	hasFlags        = 1 << 0
	readOnly        = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	sendTrim        = 1 << 5
	sendWriteZeroes = 1 << 6
	sendDF          = 1 << 7
	canMultiConn    = 1 << 8
	sendFastZero    = 1 << 11
)

// proto.md, "Transmission phase".
const (
	magicRequest         = 0x25609513
	magicSimpleReply     = 0x67446698
	magicStructuredReply = 0x668e33ef

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	flagFUA      = 1 << 0
	flagNoHole   = 1 << 1
	flagDF       = 1 << 2
	flagReqOne   = 1 << 3
	flagFastZero = 1 << 4

	replyDone        = 1 << 0
	replyOffsetData  = 1
	replyBlockStatus = 5
	replyError       = 1<<15 + 1

	requestSize         = 28
	simpleReplySize     = 16
	structuredReplySize = 20

	metaContext   = "base:allocation"
	metaContextID = 1
	stateHole     = 1 << 0
	stateZero     = 1 << 1
)

// Errno is an error as the protocol tells it (proto.md, "Error values").
type Errno uint32

// The values that are in use here.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "cannot allocate memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left on device"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is shutting down"
	}
	return fmt.Sprintf("NBD error %d", uint32(e))
}

// Code is a stable, searchable name for a kind of failure.
type Code string

// The codes of exports and connections.
const (
	ExportUnknown    Code = "export-unknown"
	ExportExists     Code = "export-exists"
	ExportInvalid    Code = "export-invalid"
	SocketInUse      Code = "socket-in-use"       // another process serves on it
	SocketPathLong   Code = "socket-path-long"    // unix(7) has room for 107 bytes
	SocketUnusable   Code = "socket-unusable"     // the cause says why
	ProtocolViolated Code = "protocol-violated"   // the other side does not keep to the protocol
	Disconnected     Code = "device-disconnected" // whether requests on their way were done is not known
	RequestRefused   Code = "request-refused"     // the cause is an Errno
	RangeInvalid     Code = "range-invalid"
)

// CodeOf gives the outermost of these codes in err's chain, or "" where there is none.
func CodeOf(err error) Code { return fault.CodeOf[Code](err) }

func errorf(code Code, format string, args ...any) error { return fault.New(code, format, args...) }

func wrap(code Code, err error, format string, args ...any) error {
	return fault.Wrap(code, err, format, args...)
}
