package edge

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Buffers are taken when there is something to read: thousands of idle connections hold none.
var copyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// errAborted says that one side broke off.
var errAborted = errors.New("broken off")

// inside is a connection of the stack to a machine.
type inside struct {
	ep    tcpip.Endpoint
	queue *waiter.Queue
}

// wait blocks until try no longer asks for it, the context ends or the endpoint breaks.
func (i inside) wait(ctx context.Context, events waiter.EventMask, try func() (again bool)) error {
	if !try() {
		return nil
	}
	entry, notify := waiter.NewChannelEntry(events)
	i.queue.EventRegister(&entry)
	defer i.queue.EventUnregister(&entry)
	for try() {
		select {
		case <-notify:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// read waits for bytes and hands them on. end: the machine sends no more.
func (i inside) read(ctx context.Context, use func([]byte) error) (end bool, err error) {
	var failed tcpip.Error
	var used error
	err = i.wait(ctx, waiter.ReadableEvents|waiter.EventHUp|waiter.EventErr, func() bool {
		buf := copyBuffers.Get().(*[64 << 10]byte)
		defer copyBuffers.Put(buf)
		w := tcpip.SliceWriter(buf[:])
		var got tcpip.ReadResult
		if got, failed = i.ep.Read(&w, tcpip.ReadOptions{}); failed == nil {
			used = use(buf[:got.Count])
			i.ep.ModerateRecvBuf(got.Count)
			return false
		}
		_, again := failed.(*tcpip.ErrWouldBlock)
		return again
	})
	switch failed.(type) {
	case nil:
		return false, errors.Join(err, used)
	case *tcpip.ErrClosedForReceive:
		return true, nil
	}
	return false, errors.Join(err, errAborted)
}

// write sends all of b.
func (i inside) write(ctx context.Context, b []byte) error {
	r := bytes.NewReader(b)
	var failed tcpip.Error
	err := i.wait(ctx, waiter.WritableEvents|waiter.EventHUp|waiter.EventErr, func() bool {
		for r.Len() > 0 {
			if _, failed = i.ep.Write(r, tcpip.WriteOptions{}); failed != nil {
				_, again := failed.(*tcpip.ErrWouldBlock)
				return again
			}
		}
		return false
	})
	if err == nil && failed != nil {
		return errAborted
	}
	return err
}

// outside is a connection of the host.
type outside struct {
	conn interface {
		net.Conn
		syscall.Conn
	}
	raw syscall.RawConn
}

func newOutside(conn net.Conn) (outside, error) {
	o, ok := conn.(interface {
		net.Conn
		syscall.Conn
	})
	if !ok {
		return outside{}, errors.ErrUnsupported
	}
	raw, err := o.SyscallConn()
	return outside{o, raw}, err
}

// read waits for bytes and hands them on; n is 0 at the end of a stream, or for an empty datagram.
func (o outside) read(use func([]byte) error) (n int, err error) {
	var failed, used error
	err = o.raw.Read(func(fd uintptr) bool {
		buf := copyBuffers.Get().(*[64 << 10]byte)
		defer copyBuffers.Put(buf)
		for {
			n, failed = unix.Read(int(fd), buf[:])
			if !errors.Is(failed, unix.EINTR) {
				break
			}
		}
		if errors.Is(failed, unix.EAGAIN) {
			return false
		}
		if failed == nil && n >= 0 {
			used = use(buf[:n])
		}
		return true
	})
	return max(n, 0), errors.Join(err, failed, used)
}

// splice carries a TCP connection's bytes both ways until both sides have ended, and passes each side's end on. When one
// side breaks off, or the context ends, both are reset.
func (e *Edge) splice(ctx context.Context, in inside, conn *net.TCPConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, err := newOutside(conn)
	if err != nil {
		in.ep.Abort()
		refuse(conn)
		return
	}
	var broken atomic.Bool
	abort := func() {
		broken.Store(true)
		cancel()
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() {
		for {
			n, err := out.read(func(b []byte) error { return in.write(ctx, b) })
			e.counts.InBytes.Add(uint64(n))
			if err != nil {
				abort()
				return
			}
			if n == 0 {
				_ = in.ep.Shutdown(tcpip.ShutdownWrite)
				return
			}
		}
	})
	for {
		end, err := in.read(ctx, func(b []byte) error {
			e.counts.OutBytes.Add(uint64(len(b)))
			_, err := conn.Write(b)
			return err
		})
		if err != nil {
			abort()
			break
		}
		if end {
			if tcp.EndpointState(in.ep.State()) == tcp.StateError { // broken off, and somebody has read the error
				abort()
				break
			}
			_ = conn.CloseWrite()
			break
		}
	}
	both.Wait()
	if broken.Load() || ctx.Err() != nil {
		refuse(conn)
		in.ep.Abort()
		return
	}
	conn.Close()
	in.ep.Close()
}
