package segment

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The bounds of what waits for one machine. What comes when they are reached is dropped, and counted.
const (
	QueueFrames = 4096
	QueueBytes  = 1 << 20
)

const readSize = 256 << 10 // holds several of the longest frames, and what a unix socket holds

// Memory is held only while bytes are on their way: most ports of most environments are idle.
var (
	readBuffers  = sync.Pool{New: func() any { return new([readSize]byte) }}
	queueBuffers = sync.Pool{New: func() any { b := make([]byte, 0, QueueBytes); return &b }}
)

// link is one connection to a machine.
type link struct {
	conn   *net.UnixConn
	raw    syscall.RawConn
	counts *Counts

	mu       sync.Mutex
	closed   bool
	draining bool    // a goroutine writes; nobody else does
	queue    *[]byte // what it writes next; nil: nothing
	waiting  amount  // in queue
	flying   amount  // being written
	try      []byte  // what tryWrite writes
	wrote    int
	tryOnce  func(fd uintptr) bool // tryWrite's, made once
}

// amount is of frames; bytes count prefixes.
type amount struct{ frames, bytes int }

func newLink(conn *net.UnixConn, counts *Counts) (*link, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	// More room lets writer and reader alternate less; the kernel grants what it allows.
	_ = conn.SetWriteBuffer(QueueBytes)
	l := &link{conn: conn, raw: raw, counts: counts}
	l.tryOnce = func(fd uintptr) bool {
		l.wrote = 0
		for l.wrote < len(l.try) {
			n, err := ignoringInterrupts(func() (int, error) { return unix.Write(int(fd), l.try[l.wrote:]) })
			if err != nil || n == 0 {
				break // full, or broken: the reader of this connection sees that too
			}
			l.wrote += n
		}
		return true
	}
	return l, nil
}

func ignoringInterrupts(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// receive hands what comes to input, which says how much it used, until the connection ends (nil) or input finds garbage.
func (l *link) receive(input func([]byte) (int, error)) (garbage error) {
	var (
		buf  *[readSize]byte
		fill int
		got  int
		fail error
	)
	defer func() {
		if buf != nil {
			readBuffers.Put(buf)
		}
	}()
	once := func(fd uintptr) bool {
		if buf == nil {
			buf = readBuffers.Get().(*[readSize]byte)
		}
		got, fail = ignoringInterrupts(func() (int, error) { return unix.Read(int(fd), buf[fill:]) })
		if errors.Is(fail, unix.EAGAIN) {
			if fill == 0 {
				readBuffers.Put(buf)
				buf = nil
			}
			return false
		}
		return true
	}
	for {
		if err := l.raw.Read(once); err != nil || fail != nil || got == 0 {
			return nil
		}
		fill += got
		used, err := input(buf[:fill])
		if err != nil {
			return err
		}
		fill = copy(buf[:], buf[used:fill])
	}
}

// send writes frames at once where nothing waits before them, and queues what the socket does not take.
func (l *link) send(run []byte, frames int, bounded bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		l.counts.OutDropped.Add(uint64(frames))
		return
	}
	if !l.draining {
		l.try = run
		if err := l.raw.Write(l.tryOnce); err != nil {
			l.wrote = 0
		}
		l.try = nil
		if l.wrote == len(run) {
			l.sent(amount{frames, len(run)})
			return
		}
		done, at := amount{}, 0
		for {
			n := prefix + int(binary.BigEndian.Uint32(run[at:]))
			if at+n > l.wrote {
				if l.wrote > at { // the rest of a frame that is half on its way must follow, whatever waits
					l.append(run[l.wrote:at+n], amount{1, n})
					at, frames = at+n, frames-1
				}
				break
			}
			at, done = at+n, amount{done.frames + 1, at + n}
		}
		l.sent(done)
		run, frames = run[at:], frames-done.frames
	}
	l.enqueue(run, frames, bounded)
	if !l.draining && l.queue != nil {
		l.draining = true
		go l.drain()
	}
}

// enqueue queues as many of the frames as there is room for.
func (l *link) enqueue(run []byte, frames int, bounded bool) {
	roomFrames, roomBytes := QueueFrames-l.waiting.frames-l.flying.frames, QueueBytes-l.waiting.bytes-l.flying.bytes
	if !bounded || frames <= roomFrames && len(run) <= roomBytes {
		l.append(run, amount{frames, len(run)})
		return
	}
	fit, at := 0, 0
	for fit < min(frames, roomFrames) {
		n := prefix + int(binary.BigEndian.Uint32(run[at:]))
		if at+n > roomBytes {
			break
		}
		at, fit = at+n, fit+1
	}
	l.append(run[:at], amount{fit, at})
	l.counts.OutDropped.Add(uint64(frames - fit))
}

func (l *link) append(b []byte, a amount) {
	if len(b) == 0 {
		return
	}
	if l.queue == nil {
		l.queue = queueBuffers.Get().(*[]byte)
	}
	*l.queue = append(*l.queue, b...)
	l.waiting.frames += a.frames
	l.waiting.bytes += a.bytes
}

func (l *link) sent(a amount) {
	l.counts.OutFrames.Add(uint64(a.frames))
	l.counts.OutBytes.Add(uint64(a.bytes - prefix*a.frames))
}

// drain writes the queue until it is empty.
func (l *link) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.queue != nil && !l.closed {
		batch := l.queue
		l.queue, l.flying, l.waiting = nil, l.waiting, amount{}
		l.mu.Unlock()
		_, err := l.conn.Write(*batch)
		if cap(*batch) == QueueBytes {
			*batch = (*batch)[:0]
			queueBuffers.Put(batch)
		}
		l.mu.Lock()
		if err != nil {
			l.counts.OutDropped.Add(uint64(l.flying.frames))
			break
		}
		l.sent(l.flying)
		l.flying = amount{}
	}
	l.draining = false
}

// close drops what waits.
func (l *link) close() {
	l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.counts.OutDropped.Add(uint64(l.waiting.frames))
	l.queue, l.waiting = nil, amount{}
}
