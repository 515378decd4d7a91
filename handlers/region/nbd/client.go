package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// Client uses an export over one connection. It is safe for concurrent use; requests are on their way at the same time.
type Client struct {
	conn     net.Conn
	in       *bufio.Reader
	size     int64
	flags    uint16
	maxBytes int64

	sendMu sync.Mutex // one request at a time goes out whole

	mu      sync.Mutex
	cookie  uint64
	pending map[uint64]pending
	failed  error
	done    chan struct{} // the reader has ended
}

// pending is a request that waits for its reply.
type pending struct {
	data  []byte // where a read's bytes go
	reply chan error
}

// Dial connects to the export of that name on a unix socket. Errors: device-disconnected (nobody serves there),
// export-unknown, protocol-violated.
func Dial(ctx context.Context, socket, export string) (*Client, error) {
	c, err := negotiate(ctx, socket)
	if err != nil {
		return nil, err
	}
	stop := c.closeWith(ctx)
	err = c.choose(export)
	if !stop() || err != nil {
		return nil, errors.Join(err, context.Cause(ctx), c.conn.Close())
	}
	go c.receive()
	return c, nil
}

// List gives the names of the exports on a unix socket. Errors: those of Dial.
func List(ctx context.Context, socket string) (names []string, err error) {
	c, err := negotiate(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer c.conn.Close()
	defer c.closeWith(ctx)()
	if err := c.option(optList, nil); err != nil {
		return nil, err
	}
	for {
		kind, data, err := c.optionReply(optList)
		switch {
		case err != nil:
			return nil, err
		case kind == repAck:
			return names, c.option(optAbort, nil)
		case kind != repServer:
			return nil, errorf(ProtocolViolated, "listing is answered with %#x", kind)
		}
		name, _, ok := cutString(data)
		if !ok {
			return nil, errorf(ProtocolViolated, "a list entry of %d bytes", len(data))
		}
		names = append(names, name)
	}
}

// closeWith closes the connection when ctx ends; stop says whether it had not.
func (c *Client) closeWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.conn.Close() })
}

func negotiate(ctx context.Context, socket string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, wrap(Disconnected, err, "connect to %s", socket)
	}
	c := &Client{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), maxBytes: MaxRequest, pending: map[uint64]pending{}, done: make(chan struct{})}
	defer c.closeWith(ctx)()
	if err := c.hello(); err != nil {
		return nil, errors.Join(err, context.Cause(ctx), conn.Close())
	}
	return c, nil
}

func (c *Client) hello() error {
	var b [18]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return wrap(Disconnected, err, "read the greeting")
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if binary.BigEndian.Uint64(b[:]) != magicInit || binary.BigEndian.Uint64(b[8:]) != magicOption || flags&flagFixedNewstyle == 0 {
		return errorf(ProtocolViolated, "the server does not speak fixed newstyle")
	}
	_, err := c.conn.Write(binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
	if err != nil {
		return wrap(Disconnected, err, "answer the greeting")
	}
	return nil
}

func (c *Client) option(option uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	if _, err := c.conn.Write(append(b, data...)); err != nil {
		return wrap(Disconnected, err, "send option %d", option)
	}
	return nil
}

func (c *Client) optionReply(option uint32) (kind uint32, data []byte, err error) {
	var b [20]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return 0, nil, wrap(Disconnected, err, "wait for the answer to option %d", option)
	}
	n := binary.BigEndian.Uint32(b[16:])
	if binary.BigEndian.Uint64(b[:]) != magicOptionReply || binary.BigEndian.Uint32(b[8:]) != option || n > maxOption {
		return 0, nil, errorf(ProtocolViolated, "the answer to option %d is not one", option)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(c.in, data); err != nil {
		return 0, nil, wrap(Disconnected, err, "wait for the answer to option %d", option)
	}
	return binary.BigEndian.Uint32(b[12:]), data, nil
}

// choose enters the transmission phase by NBD_OPT_GO.
func (c *Client) choose(export string) error {
	b := appendString(nil, export)
	b = binary.BigEndian.AppendUint16(b, 1)
	if err := c.option(optGo, binary.BigEndian.AppendUint16(b, infoBlockSize)); err != nil {
		return err
	}
	known := false
	for {
		kind, data, err := c.optionReply(optGo)
		switch {
		case err != nil:
			return err
		case kind == repErrUnknown:
			return errorf(ExportUnknown, "there is no export %q", export)
		case kind == repAck && known:
			return nil
		case kind != repInfo || len(data) < 2:
			return errorf(ProtocolViolated, "choosing an export is answered with %#x", kind)
		}
		switch info := binary.BigEndian.Uint16(data); {
		case info == infoExport && len(data) == 12:
			c.size = int64(binary.BigEndian.Uint64(data[2:]))
			c.flags = binary.BigEndian.Uint16(data[10:])
			known = c.size >= 0
		case info == infoBlockSize && len(data) == 14:
			c.maxBytes = min(MaxRequest, max(1, int64(binary.BigEndian.Uint32(data[10:]))))
		}
	}
}

// receive gives replies to those who wait, until the connection ends.
func (c *Client) receive() {
	defer close(c.done)
	var err error
	for err == nil {
		err = c.receiveOne()
	}
	if CodeOf(err) == "" {
		err = wrap(Disconnected, err, "the device's server is gone")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed = err
	for _, p := range c.pending {
		p.reply <- err
	}
	c.pending = nil
	c.conn.Close()
}

func (c *Client) receiveOne() error {
	var b [simpleReplySize]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return err
	}
	cookie := binary.BigEndian.Uint64(b[8:])
	c.mu.Lock()
	p, ok := c.pending[cookie]
	c.mu.Unlock()
	if binary.BigEndian.Uint32(b[:]) != magicSimpleReply || !ok {
		return errorf(ProtocolViolated, "a reply that nobody waits for")
	}
	var err error
	if e := Errno(binary.BigEndian.Uint32(b[4:])); e != 0 {
		err = wrap(RequestRefused, e, "the device")
	} else if _, rerr := io.ReadFull(c.in, p.data); rerr != nil {
		return rerr // the request is pending still, and fails with the others
	}
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	p.reply <- err
	return nil
}

// do sends a request and waits for its reply.
func (c *Client) do(command, flags uint16, off, n int64, out, in []byte) error {
	p := pending{data: in, reply: make(chan error, 1)}
	c.mu.Lock()
	if c.failed != nil {
		defer c.mu.Unlock()
		return c.failed
	}
	c.cookie++
	cookie := c.cookie
	c.pending[cookie] = p
	c.mu.Unlock()

	b := binary.BigEndian.AppendUint32(make([]byte, 0, requestSize), magicRequest)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	bufs := net.Buffers{b, out}
	c.sendMu.Lock()
	_, err := bufs.WriteTo(c.conn)
	c.sendMu.Unlock()
	if err != nil {
		c.conn.Close() // a request that went out in part ends the connection; the reader tells everybody
	}
	return <-p.reply
}

// Size is the device's length in bytes.
func (c *Client) Size() int64 { return c.size }

// ReadOnly says whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.flags&readOnly != 0 }

// inRange checks a request before it is sent.
func (c *Client) inRange(off, n int64) error {
	if off < 0 || n < 0 || off > c.size || n > c.size-off {
		return errorf(RangeInvalid, "%d bytes at %d of a device of %d bytes", n, off, c.size)
	}
	return nil
}

// ReadAt is io.ReaderAt. Errors besides io.EOF: request-refused, device-disconnected, range-invalid.
func (c *Client) ReadAt(p []byte, off int64) (n int, err error) {
	want := p[:max(0, min(int64(len(p)), c.size-off))]
	if err := c.inRange(off, int64(len(want))); err != nil {
		return 0, err
	}
	for len(want) > 0 {
		part := want[:min(int64(len(want)), c.maxBytes)]
		if err := c.do(cmdRead, 0, off+int64(n), int64(len(part)), nil, part); err != nil {
			return n, err
		}
		want, n = want[len(part):], n+len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt is io.WriterAt. Errors: those of ReadAt.
func (c *Client) WriteAt(p []byte, off int64) (n int, err error) {
	if err := c.inRange(off, int64(len(p))); err != nil {
		return 0, err
	}
	for n < len(p) {
		part := p[n:min(int64(len(p)), int64(n)+c.maxBytes)]
		if err := c.do(cmdWrite, 0, off+int64(n), int64(len(part)), part, nil); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// Flush makes durable what was answered before. Errors: request-refused, device-disconnected.
func (c *Client) Flush() error { return c.do(cmdFlush, 0, 0, 0, nil, nil) }

// Trim says that bytes are needed no more. Errors: those of ReadAt.
func (c *Client) Trim(off, n int64) error { return c.each(cmdTrim, 0, off, n) }

// WriteZeroes makes bytes zeros; allocate asks that they take room all the same. Errors: those of ReadAt.
func (c *Client) WriteZeroes(off, n int64, allocate bool) error {
	if allocate {
		return c.each(cmdWriteZeroes, flagNoHole, off, n)
	}
	return c.each(cmdWriteZeroes, 0, off, n)
}

// each sends a command without payload in parts that its length has room for.
func (c *Client) each(command, flags uint16, off, n int64) error {
	if err := c.inRange(off, n); err != nil {
		return err
	}
	for n > 0 {
		part := min(n, 1<<30)
		if err := c.do(command, flags, off, part, nil, nil); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// Close says goodbye and waits until the connection has ended. What was not flushed is as durable as the device makes it.
func (c *Client) Close() error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, requestSize), magicRequest)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, cmdDisc)
	c.sendMu.Lock()
	_, err := c.conn.Write(b[:requestSize])
	c.sendMu.Unlock()
	if err != nil {
		c.conn.Close()
	}
	<-c.done
	return nil
}
