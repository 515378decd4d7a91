// Package qmp speaks the QEMU Machine Protocol (QEMU, docs/interop/qmp-spec) to one emulator: commands with their replies,
// events, and files that go along with a command.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// Code is a stable, searchable name for a kind of failure.
type Code string

// The codes of monitors.
const (
	Closed  Code = "monitor-closed"  // the connection has ended: the emulator is gone, or Close was called
	Garbled Code = "monitor-garbled" // what came is not the protocol; the connection was closed
	Refused Code = "monitor-refused" // the emulator's answer to a command is an error; the cause is a Refusal
)

// CodeOf gives the outermost of these codes in err's chain, or "" where there is none.
func CodeOf(err error) Code { return fault.CodeOf[Code](err) }

// Refusal is an error that the emulator answered (qmp-spec, "error").
type Refusal struct {
	Command     string
	Class       string // "GenericError", "CommandNotFound", "DeviceNotFound", …
	Description string // for people
}

func (r Refusal) Error() string { return r.Command + ": " + r.Description }

// Event is what the emulator said unasked (qmp-spec, "asynchronous events").
type Event struct {
	Name string
	Time time.Time
	Data json.RawMessage
}

const (
	// maxMessage bounds one message; the longest that an emulator sends is its schema with 200 KiB.
	maxMessage = 4 << 20
	// writeTime is how long a command may take to be sent; an emulator reads them at once.
	writeTime = 10 * time.Second
)

// Client is a connection to an emulator's monitor. It is safe for concurrent use.
type Client struct {
	conn    *net.UnixConn
	version string
	each    func(Event)

	write sync.Mutex

	mu      sync.Mutex
	last    uint64                   // id
	waiting map[uint64]chan<- answer // each takes one
	err     error                    // why it ended
	done    chan struct{}            // closed when it has ended
}

type answer struct {
	value json.RawMessage
	err   *refusal
}

type refusal struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// message is anything that an emulator sends.
type message struct {
	Greeting *struct {
		Version struct {
			QEMU struct{ Major, Minor, Micro int } `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	ID        *uint64         `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *refusal        `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Connect greets the emulator at the other end of conn, which is the client's from now on, also after an error. Each event
// is given to each, one after the other; it must not wait for a command. Errors: monitor-closed, monitor-garbled,
// monitor-refused, the context's.
func Connect(ctx context.Context, conn *net.UnixConn, each func(Event)) (*Client, error) {
	c := &Client{conn: conn, each: each, waiting: map[uint64]chan<- answer{}, done: make(chan struct{})}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, maxMessage)
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	var hello message
	err := scan(in, &hello)
	if err == nil && hello.Greeting == nil {
		err = fault.New(Garbled, "the first message is no greeting")
	}
	if err != nil || !stop() {
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	v := hello.Greeting.Version.QEMU
	c.version = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	go c.read(in)
	if err := c.Do(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// scan reads one message; the error has a code.
func scan(in *bufio.Scanner, m *message) error {
	switch {
	case in.Scan():
	case errors.Is(in.Err(), bufio.ErrTooLong):
		return fault.New(Garbled, "a message is longer than %d bytes", maxMessage)
	case in.Err() != nil:
		return fault.Wrap(Closed, in.Err(), "read from the monitor")
	default:
		return fault.Wrap(Closed, io.EOF, "read from the monitor")
	}
	if err := json.Unmarshal(in.Bytes(), m); err != nil {
		return fault.Wrap(Garbled, err, "a message of %d bytes", len(in.Bytes()))
	}
	return nil
}

// Version is the emulator's, "7.2.22".
func (c *Client) Version() string { return c.version }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection; commands that wait get monitor-closed.
func (c *Client) Close() error {
	c.end(fault.New(Closed, "the connection to the monitor was closed"))
	return nil
}

func (c *Client) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.conn.Close()
		close(c.done)
	}
}

// read takes messages until the connection ends.
func (c *Client) read(in *bufio.Scanner) {
	for {
		var m message
		if err := scan(in, &m); err != nil {
			c.end(err)
			return
		}
		switch {
		case m.Event != "":
			if c.each != nil {
				c.each(Event{Name: m.Event, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000), Data: m.Data})
			}
		case m.ID != nil && (m.Return != nil || m.Error != nil):
			c.mu.Lock()
			waiting := c.waiting[*m.ID] // nil where nobody waits any more
			delete(c.waiting, *m.ID)
			c.mu.Unlock()
			if waiting != nil {
				waiting <- answer{value: m.Return, err: m.Error}
			}
		default:
			c.end(fault.New(Garbled, "a message that is neither an event nor the reply to a command"))
			return
		}
	}
}

// Do sends a command with its arguments (nil: none), and files for commands that take some (getfd, add-fd), which stay the
// caller's. The reply goes into reply, unless that is nil. When the context ends the emulator may still do it. Errors:
// monitor-refused, monitor-closed, monitor-garbled, the context's.
func (c *Client) Do(ctx context.Context, command string, arguments, reply any, files ...*os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	got := make(chan answer, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.last++
	id := c.last
	c.waiting[id] = got
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err := c.send(id, command, arguments, files); err != nil {
		return err
	}
	select {
	case a := <-got:
		return a.into(command, reply)
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
	}
	select {
	case a := <-got: // it was answered before the end
		return a.into(command, reply)
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (a answer) into(command string, reply any) error {
	if a.err != nil {
		return fault.Wrap(Refused, Refusal{command, a.err.Class, a.err.Desc}, "the emulator refuses")
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(a.value, reply); err != nil {
		return fault.Wrap(Garbled, err, "the reply to %s", command)
	}
	return nil
}

// send writes a command whole, or ends the connection: what follows half of one would not be understood.
func (c *Client) send(id uint64, command string, arguments any, files []*os.File) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return fault.Wrap(Garbled, err, "the arguments of %s", command)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	c.write.Lock()
	defer c.write.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(writeTime))
	line = append(line, '\n')
	n, _, err := c.conn.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) { // the files went with the first part
		_, err = c.conn.Write(line[n:])
	}
	if err != nil {
		c.end(fault.Wrap(Closed, err, "write to the monitor"))
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	}
	return nil
}
