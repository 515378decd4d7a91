package nbd

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"time"
)

// negotiationTime is what a client has to choose an export.
const negotiationTime = 30 * time.Second

// negotiation is the handshake of one connection (proto.md, "Fixed newstyle negotiation").
type negotiation struct {
	server     *Server
	conn       net.Conn
	in         io.Reader
	noZeroes   bool
	structured bool
	contextOf  *served // the export for which the client chose base:allocation
}

// run gives the chosen export, or nil where the client went in good order.
func (n *negotiation) run() (*served, error) {
	if err := n.conn.SetDeadline(time.Now().Add(negotiationTime)); err != nil {
		return nil, err
	}
	// No byte of the transmission phase follows before our answer, so what the reader holds at the end is nothing.
	n.in = bufio.NewReader(n.conn)
	hello := binary.BigEndian.AppendUint64(nil, magicInit)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := n.conn.Write(hello); err != nil {
		return nil, err
	}
	var b [16]byte
	if _, err := io.ReadFull(n.in, b[:4]); err != nil {
		return nil, err
	}
	flags := binary.BigEndian.Uint32(b[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, errorf(ProtocolViolated, "client flags %#x", flags)
	}
	n.noZeroes = flags&flagNoZeroes != 0
	for {
		if _, err := io.ReadFull(n.in, b[:]); err != nil {
			return nil, err
		}
		option, length := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
		if binary.BigEndian.Uint64(b[:]) != magicOption || length > maxOptionSkipped {
			return nil, errorf(ProtocolViolated, "option %d of %d bytes", option, length)
		}
		if length > maxOption {
			if _, err := io.CopyN(io.Discard, n.in, int64(length)); err != nil {
				return nil, err
			}
			if option == optExportName {
				return nil, errorf(ProtocolViolated, "a name of %d bytes", length)
			}
			if err := n.reply(option, repErrTooBig, nil); err != nil {
				return nil, err
			}
			continue
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(n.in, data); err != nil {
			return nil, err
		}
		e, ended, err := n.option(option, data)
		if err != nil || ended {
			return e, err
		}
	}
}

// option answers one option; ended says that the negotiation is over.
func (n *negotiation) option(option uint32, data []byte) (e *served, ended bool, err error) {
	switch option {
	case optExportName:
		return n.exportName(string(data))
	case optAbort:
		return nil, true, n.reply(option, repAck, nil)
	case optList:
		if len(data) > 0 {
			return nil, false, n.reply(option, repErrInvalid, nil)
		}
		for _, name := range n.server.Exports() {
			if err := n.reply(option, repServer, appendString(nil, name)); err != nil {
				return nil, false, err
			}
		}
		return nil, false, n.reply(option, repAck, nil)
	case optStructuredReply:
		if len(data) > 0 {
			return nil, false, n.reply(option, repErrInvalid, nil)
		}
		n.structured = true
		return nil, false, n.reply(option, repAck, nil)
	case optInfo, optGo:
		e, err := n.info(option, data)
		if err != nil || e == nil || option == optInfo {
			return nil, false, err
		}
		return e, true, n.conn.SetDeadline(time.Time{})
	case optListMetaContext, optSetMetaContext:
		return nil, false, n.metaContext(option, data)
	default:
		return nil, false, n.reply(option, repErrUnsup, nil)
	}
}

// exportName is the old way to choose: there is no answer that says no, so an unknown name ends the connection.
func (n *negotiation) exportName(name string) (*served, bool, error) {
	e := n.server.export(name)
	if e == nil {
		return nil, true, errorf(ExportUnknown, "%q", name)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(e.Device.Size()))
	b = binary.BigEndian.AppendUint16(b, n.flags(e))
	if !n.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	if _, err := n.conn.Write(b); err != nil {
		return nil, true, err
	}
	return e, true, n.conn.SetDeadline(time.Time{})
}

func (n *negotiation) flags(e *served) uint16 {
	flags := uint16(hasFlags | sendFlush | canMultiConn)
	if n.structured {
		flags |= sendDF
	}
	if e.ReadOnly {
		return flags | readOnly
	}
	return flags | sendFUA | sendTrim | sendWriteZeroes | sendFastZero
}

// info answers NBD_OPT_INFO and NBD_OPT_GO; nil where the answer was an error.
func (n *negotiation) info(option uint32, data []byte) (*served, error) {
	name, rest, ok := cutString(data)
	if !ok || len(name) > maxName || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return nil, n.reply(option, repErrInvalid, nil)
	}
	e := n.server.export(name)
	if e == nil {
		return nil, n.reply(option, repErrUnknown, nil)
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Device.Size()))
	b = binary.BigEndian.AppendUint16(b, n.flags(e))
	if err := n.reply(option, repInfo, b); err != nil {
		return nil, err
	}
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		b := binary.BigEndian.AppendUint16(nil, binary.BigEndian.Uint16(rest))
		switch binary.BigEndian.Uint16(rest) {
		case infoName:
			b = append(b, e.Name...)
		case infoDescription:
			if e.Description == "" {
				continue
			}
			b = append(b, e.Description...)
		case infoBlockSize:
			// Any length is served; less than 4 KiB costs a read before the first write.
			b = binary.BigEndian.AppendUint32(b, 1)
			b = binary.BigEndian.AppendUint32(b, 4096)
			b = binary.BigEndian.AppendUint32(b, MaxRequest)
		default:
			continue
		}
		if err := n.reply(option, repInfo, b); err != nil {
			return nil, err
		}
	}
	return e, n.reply(option, repAck, nil)
}

// metaContext answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT (proto.md, "Metadata querying").
func (n *negotiation) metaContext(option uint32, data []byte) error {
	if option == optSetMetaContext {
		n.contextOf = nil
	}
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 || !n.structured {
		return n.reply(option, repErrInvalid, nil)
	}
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	wanted := count == 0 && option == optListMetaContext
	for range count {
		var query string
		if query, rest, ok = cutString(rest); !ok {
			return n.reply(option, repErrInvalid, nil)
		}
		wanted = wanted || query == metaContext || query == "base:" && option == optListMetaContext
	}
	if len(rest) > 0 {
		return n.reply(option, repErrInvalid, nil)
	}
	e := n.server.export(name)
	if e == nil {
		return n.reply(option, repErrUnknown, nil)
	}
	if _, maps := e.Device.(Mapper); maps && wanted {
		id := uint32(0)
		if option == optSetMetaContext {
			n.contextOf, id = e, metaContextID
		}
		if err := n.reply(option, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), metaContext...)); err != nil {
			return err
		}
	}
	return n.reply(option, repAck, nil)
}

func (n *negotiation) reply(option, kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := n.conn.Write(append(b, data...))
	return err
}

// appendString appends a string behind its length in 4 bytes.
func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return "", nil, false
	}
	n := 4 + int(binary.BigEndian.Uint32(b))
	return string(b[4:n]), b[n:], true
}
