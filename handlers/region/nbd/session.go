package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sync/semaphore"
)

const (
	// maxInFlight is how many requests of a connection are worked on at once.
	maxInFlight = 64
	// pooled is the length of the buffers that are kept for the next request; longer ones are rare.
	pooled = 256 << 10
	// maxExtents bounds a block status reply.
	maxExtents = 1024
)

// session is the transmission phase of one connection. Requests are answered in the order in which they are done. A
// client that does not read its replies holds up itself: memory is bounded per connection, and nothing is shared.
type session struct {
	export     *served
	conn       net.Conn
	in         *bufio.Reader
	structured bool
	mapper     Mapper // nil unless the client chose base:allocation

	inFlight *semaphore.Weighted // requests, weighed with their bytes
	work     sync.WaitGroup
	bufs     sync.Pool

	replyMu sync.Mutex
}

// request is a header as it comes (proto.md, "Request message").
type request struct {
	flags, command uint16
	cookie         uint64
	offset         uint64
	length         uint32
}

// weight of a request: its share of what a connection may have in flight.
const baseWeight = MaxRequest / maxInFlight

func newSession(e *served, c net.Conn, structured, allocation bool) *session {
	s := &session{export: e, conn: c, in: bufio.NewReaderSize(c, 64<<10), structured: structured, inFlight: semaphore.NewWeighted(MaxRequest + baseWeight)}
	if allocation {
		s.mapper, _ = e.Device.(Mapper)
	}
	s.bufs.New = func() any { b := make([]byte, pooled); return &b }
	return s
}

func (s *session) run() {
	// A reply that cannot be sent closes the connection, which ends this loop.
	defer s.work.Wait()
	defer s.conn.Close()
	var h [requestSize]byte
	for {
		if _, err := io.ReadFull(s.in, h[:]); err != nil {
			return
		}
		r := request{
			flags:   binary.BigEndian.Uint16(h[4:]),
			command: binary.BigEndian.Uint16(h[6:]),
			cookie:  binary.BigEndian.Uint64(h[8:]),
			offset:  binary.BigEndian.Uint64(h[16:]),
			length:  binary.BigEndian.Uint32(h[24:]),
		}
		if binary.BigEndian.Uint32(h[:]) != magicRequest || r.command == cmdDisc {
			// Requests in progress are done and answered before the connection ends (proto.md, "Terminating the
			// transmission phase").
			s.work.Wait()
			return
		}
		if !s.take(r) {
			return
		}
	}
}

// take reads a request's payload and starts the work; false ends the connection.
func (s *session) take(r request) bool {
	var bytes int64
	if r.command == cmdRead || r.command == cmdWrite {
		bytes = int64(r.length)
	}
	if bytes > MaxRequest {
		if r.command == cmdWrite {
			return false // what follows cannot be told from a payload that nobody will read
		}
		return s.replyError(r, EINVAL) == nil
	}
	weight := baseWeight + bytes
	// What is waited for ends by itself, or when the connection is closed and its replies fail.
	if err := s.inFlight.Acquire(context.Background(), weight); err != nil {
		return false
	}
	var buf []byte
	var kept *[]byte
	switch {
	case bytes > pooled:
		buf = make([]byte, bytes)
	case bytes > 0:
		kept = s.bufs.Get().(*[]byte)
		buf = (*kept)[:bytes]
	}
	if r.command == cmdWrite {
		if _, err := io.ReadFull(s.in, buf); err != nil {
			return false
		}
	}
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		defer s.inFlight.Release(weight)
		if err := s.answer(r, buf); err != nil {
			s.conn.Close()
		}
		if kept != nil {
			s.bufs.Put(kept)
		}
	}()
	return true
}

// answer does a request and replies; the error is one of the connection.
func (s *session) answer(r request, buf []byte) error {
	if e := s.refuse(r); e != 0 {
		return s.replyError(r, e)
	}
	d := s.export.Device
	off, n := int64(r.offset), int64(r.length)
	var err error
	switch r.command {
	case cmdRead:
		if got, err := d.ReadAt(buf, off); got < len(buf) {
			return s.replyError(r, errnoOf(err))
		}
		return s.replyData(r, buf)
	case cmdBlockStatus:
		return s.blockStatus(r)
	case cmdWrite:
		_, err = d.WriteAt(buf, off)
	case cmdTrim:
		err = d.Trim(off, n)
	case cmdWriteZeroes:
		err = d.WriteZeroes(off, n, r.flags&flagNoHole != 0)
	}
	if err == nil && (r.command == cmdFlush || r.flags&flagFUA != 0 && !s.export.ReadOnly) {
		err = d.Flush()
	}
	if err != nil {
		return s.replyError(r, errnoOf(err))
	}
	return s.send(simpleReply(r.cookie, 0), nil)
}

// refuse checks a request against the protocol and the export.
func (s *session) refuse(r request) Errno {
	allowed := uint16(flagFUA) // meaningless for some, but valid for all (proto.md, "Command flags")
	writes := false
	switch r.command {
	case cmdRead:
		if s.structured {
			allowed |= flagDF
		}
	case cmdWrite, cmdTrim:
		writes = true
	case cmdWriteZeroes:
		writes = true
		allowed |= flagNoHole | flagFastZero
	case cmdFlush:
		if r.offset != 0 || r.length != 0 {
			return EINVAL
		}
	case cmdBlockStatus:
		allowed |= flagReqOne
		if s.mapper == nil || r.length == 0 {
			return EINVAL
		}
	default:
		return EINVAL
	}
	size := uint64(s.export.Device.Size())
	switch {
	case r.flags&^allowed != 0:
		return EINVAL
	case writes && s.export.ReadOnly:
		return EPERM
	case r.offset > size || uint64(r.length) > size-r.offset:
		if writes {
			return ENOSPC
		}
		return EINVAL
	case r.flags&flagNoHole != 0 && r.flags&flagFastZero != 0:
		return ENOTSUP // taking room is not fast
	}
	return 0
}

// blockStatus tells where the device is zero (proto.md, "base:allocation").
func (s *session) blockStatus(r request) error {
	body := binary.BigEndian.AppendUint32(nil, metaContextID)
	limit := maxExtents
	if r.flags&flagReqOne != 0 {
		limit = 1
	}
	off, end := int64(r.offset), int64(r.offset)+int64(r.length)
	for range limit {
		if off == end {
			break
		}
		hole, n, err := s.mapper.Extent(off, end-off)
		if err != nil {
			return s.replyError(r, errnoOf(err))
		}
		flags := uint32(0)
		if hole {
			flags = stateHole | stateZero
		}
		body = binary.BigEndian.AppendUint32(body, uint32(n))
		body = binary.BigEndian.AppendUint32(body, flags)
		off += n
	}
	return s.send(structuredReply(r.cookie, replyBlockStatus, len(body)), body)
}

// replyData answers a read, with one chunk where replies are structured.
func (s *session) replyData(r request, data []byte) error {
	if !s.structured {
		return s.send(simpleReply(r.cookie, 0), data)
	}
	if len(data) == 0 { // a chunk of data must hold some
		return s.send(structuredReply(r.cookie, 0, 0), nil)
	}
	h := structuredReply(r.cookie, replyOffsetData, 8+len(data))
	return s.send(binary.BigEndian.AppendUint64(h, r.offset), data)
}

func (s *session) replyError(r request, e Errno) error {
	// Whatever has structured replies must have them for errors too; other commands may have simple ones.
	if s.structured && (r.command == cmdRead || r.command == cmdBlockStatus) {
		body := binary.BigEndian.AppendUint32(nil, uint32(e))
		return s.send(structuredReply(r.cookie, replyError, 6), binary.BigEndian.AppendUint16(body, 0))
	}
	return s.send(simpleReply(r.cookie, e), nil)
}

func simpleReply(cookie uint64, e Errno) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, simpleReplySize), magicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// structuredReply is the header of the only chunk of a reply.
func structuredReply(cookie uint64, kind uint16, length int) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, structuredReplySize+8), magicStructuredReply)
	b = binary.BigEndian.AppendUint16(b, replyDone)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

func (s *session) send(header, data []byte) error {
	s.replyMu.Lock()
	defer s.replyMu.Unlock()
	if len(data) == 0 {
		_, err := s.conn.Write(header)
		return err
	}
	bufs := net.Buffers{header, data}
	_, err := bufs.WriteTo(s.conn)
	return err
}

// errnoOf tells a device's error in the protocol's few words.
func errnoOf(err error) Errno {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return ENOSPC
	case errors.Is(err, syscall.ENOMEM):
		return ENOMEM
	default:
		return EIO
	}
}
