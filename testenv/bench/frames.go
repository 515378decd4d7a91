package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	frameType  = 0x88b5 // IEEE 802, local experimental EtherType 1: nothing else is counted
	frameBurst = 32     // frames for one call, where several go together
	// frameWindow is how many frames a generator has on their way at most, as TCP would: they fit into every queue between
	// it and the sink, so that nobody works for frames that are dropped then.
	frameWindow = 512
	// frameLost is how long nothing may arrive until what is on its way is taken for lost.
	frameLost = 50 * time.Millisecond
	// quiet is how long an end waits for a frame.
	quiet = 100 * time.Millisecond
)

// end is a machine's end of its cable: blocking system calls, the same number of them on every kind of network.
type end interface {
	// load prepares what send sends in one call.
	load(frame []byte, times int)
	send() error
	// receive waits for frames of the size that was loaded, and gives how many came; after a while 0.
	receive() (int, error)
	Close() error
}

// addressOf is the MAC of a machine of the benchmark.
func addressOf(n int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0xbe, byte(n)} }

var everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func frameOf(to, from net.HardwareAddr, size int) []byte {
	f := make([]byte, size)
	copy(f, to)
	copy(f[6:], from)
	binary.BigEndian.PutUint16(f[12:], frameType)
	return f
}

// stream is an end as QEMU has it: a unix socket, on which each frame comes after its length.
type stream struct {
	fd    int
	burst []byte
	each  int // bytes of a frame and its length
	rest  int // bytes of a frame that has come in part
	buf   []byte
}

// listenStreams makes the sockets of so many machines, and gives a function that waits for who connects to them.
func listenStreams(dir string, count int) (paths []string, accept func() ([]end, error), err error) {
	var all []*net.UnixListener
	for i := range count {
		path := filepath.Join(dir, fmt.Sprint(i))
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return nil, nil, err
		}
		all, paths = append(all, l), append(paths, path)
	}
	return paths, func() (ends []end, err error) {
		for _, l := range all {
			if err := l.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				return nil, err
			}
			conn, err := l.AcceptUnix()
			if err != nil {
				return nil, err
			}
			f, err := conn.File() // a descriptor of its own
			if err := errors.Join(err, conn.Close(), l.Close()); err != nil {
				return nil, err
			}
			fd, err := unix.Dup(int(f.Fd())) // blocking
			if err = errors.Join(err, f.Close()); err == nil {
				err = waits(fd)
			}
			if err != nil {
				return nil, err
			}
			ends = append(ends, &stream{fd: fd, buf: make([]byte, 256<<10)})
		}
		return ends, nil
	}, nil
}

// waits bounds how long a system call blocks.
func waits(fd int) error {
	t := unix.NsecToTimeval(quiet.Nanoseconds())
	return errors.Join(unix.SetNonblock(fd, false), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &t))
}

func (s *stream) load(frame []byte, times int) {
	one := append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
	s.burst, s.each = nil, len(one)
	for range times {
		s.burst = append(s.burst, one...)
	}
}

func (s *stream) send() error {
	for sent, tries := 0, 0; sent < len(s.burst); {
		n, err := unix.Write(s.fd, s.burst[sent:])
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN { // nobody reads; half a frame must not stay
			if tries++; tries > 100 {
				return errors.New("nobody reads what a machine sends")
			}
			continue
		}
		if err != nil {
			return err
		}
		sent += n
	}
	return nil
}

func (s *stream) receive() (int, error) {
	n, err := unix.Read(s.fd, s.buf)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return 0, nil
	case err != nil:
		return 0, err
	case n == 0:
		return 0, errors.New("the network hung up")
	}
	n += s.rest
	s.rest = n % s.each
	return n / s.each, nil
}

func (s *stream) Close() error { return unix.Close(s.fd) }

// packet is an end as the kernel has it: a packet socket on one side of a veth pair (packet(7)). What comes is read from a
// ring that it shares with the kernel, which wakes the reader for a block of frames and not for each: the fastest way there is.
type packet struct {
	fd    int
	burst []message
	ring  []byte
	next  int // block
}

const (
	ringBlock  = 64 << 10 // bytes
	ringBlocks = 64
	ringWait   = 1 // milliseconds until a block is handed over that is not full
)

// message is struct mmsghdr (sendmmsg(2)).
type message struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

// openPacket opens an interface of a network namespace.
func openPacket(namespace, device string) (p *packet, err error) {
	own, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer own.Close()
	there, err := netns.GetFromName(namespace)
	if err != nil {
		return nil, err
	}
	defer there.Close()
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		runtime.LockOSThread()
		if err = netns.Set(there); err == nil {
			p, err = openPacketHere(device)
		}
		if back := netns.Set(own); back != nil {
			err = errors.Join(err, back) // and the thread, which is elsewhere, ends with this
			return
		}
		// It goes on: processes that it has started would end with it (PR_SET_PDEATHSIG).
		runtime.UnlockOSThread()
	}()
	<-opened
	return p, err
}

func openPacketHere(device string) (*packet, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	kind := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, frameType)) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(kind))
	if err != nil {
		return nil, err
	}
	const room = 8 << 20
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: kind, Ifindex: link.Index}), waits(fd),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, room),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	p := &packet{fd: fd}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3),
		unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{Block_size: ringBlock, Block_nr: ringBlocks, Frame_size: 2048, Frame_nr: ringBlocks * ringBlock / 2048, Retire_blk_tov: ringWait}))
	if err == nil {
		p.ring, err = unix.Mmap(fd, 0, ringBlock*ringBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return p, nil
}

func messageOf(b []byte) (m message) {
	v := &unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	m.header.Iov = v
	m.header.SetIovlen(1)
	return m
}

func (p *packet) load(frame []byte, times int) {
	p.burst = nil
	for range times {
		p.burst = append(p.burst, messageOf(frame))
	}
}

func (p *packet) send() error {
	for sent := 0; sent < len(p.burst); {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(p.fd), uintptr(unsafe.Pointer(&p.burst[sent])), uintptr(len(p.burst)-sent), 0, 0, 0)
		switch errno {
		case 0:
			sent += int(n)
		case unix.ENOBUFS, unix.EAGAIN, unix.EINTR:
		default:
			return errno
		}
	}
	return nil
}

// receive takes the blocks that the kernel has handed over (struct tpacket_block_desc: the status is at 8, the frames at 12).
func (p *packet) receive() (int, error) {
	for waited, got := false, 0; ; {
		block := p.ring[p.next*ringBlock:]
		status := (*atomic.Uint32)(unsafe.Pointer(&block[8]))
		switch {
		case status.Load()&unix.TP_STATUS_USER != 0:
			got += int(binary.NativeEndian.Uint32(block[12:]))
			status.Store(unix.TP_STATUS_KERNEL)
			p.next = (p.next + 1) % ringBlocks
		case got > 0 || waited:
			return got, nil
		default:
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(quiet.Milliseconds())); err != nil && err != unix.EINTR {
				return 0, err
			}
			waited = true
		}
	}
}

func (p *packet) Close() error { return errors.Join(unix.Munmap(p.ring), unix.Close(p.fd)) }

// flow is what a round sends: from the first end to the second, and now and then to the third.
type flow struct {
	ends  []end
	size  int  // of a frame, bytes
	burst int  // frames for one call
	side  bool // every 32nd call goes to the third end, which is read
	stuck bool // or not read: its machine is paused
}

// introduce has all ends be heard, and takes what they hear then.
func introduce(ends []end) error {
	for i, e := range ends {
		e.load(frameOf(everybody, addressOf(i), 64), 1)
		if err := e.send(); err != nil {
			return err
		}
	}
	for _, e := range ends {
		for {
			n, err := e.receive()
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
		}
	}
	return nil
}

// pump sends for a while, and gives how many frames arrived in a second.
func (f flow) pump(ctx context.Context, d time.Duration) (float64, error) {
	from, to := f.ends[0], f.ends[1]
	from.load(frameOf(addressOf(1), addressOf(0), f.size), f.burst)
	to.load(frameOf(addressOf(0), addressOf(1), f.size), 1)
	var (
		arrived atomic.Int64
		stop    atomic.Bool
		moved   = make(chan struct{}, 1)
		all     sync.WaitGroup
		mu      sync.Mutex
		failed  error
	)
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failed = errors.Join(failed, err)
		stop.Store(true)
	}
	read := func(e end, each func(int)) {
		for {
			n, err := e.receive()
			if err != nil {
				fail(err)
			}
			if stop.Load() && n == 0 || err != nil {
				return // and what was on its way has come
			}
			each(n)
		}
	}
	all.Go(func() {
		read(to, func(n int) {
			arrived.Add(int64(n))
			select {
			case moved <- struct{}{}:
			default:
			}
		})
	})
	if f.side && !f.stuck {
		f.ends[2].load(frameOf(addressOf(0), addressOf(2), f.size), 1)
		all.Go(func() { read(f.ends[2], func(int) {}) })
	}
	all.Go(func() {
		if err := f.generate(from, &arrived, &stop, moved); err != nil {
			fail(err)
		}
	})
	pass(ctx, d/10) // until it runs evenly
	began, before := time.Now(), arrived.Load()
	pass(ctx, d)
	got, took := arrived.Load()-before, time.Since(began)
	stop.Store(true)
	all.Wait()
	return float64(got) / took.Seconds(), errors.Join(failed, ctx.Err())
}

// pass lets time go by: a round lasts so long.
func pass(ctx context.Context, d time.Duration) {
	round, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-round.Done()
}

// generate sends as long as the window lets it.
func (f flow) generate(from end, arrived *atomic.Int64, stop *atomic.Bool, moved <-chan struct{}) error {
	lost := time.NewTimer(frameLost)
	defer lost.Stop()
	main, side := frameOf(addressOf(1), addressOf(0), f.size), frameOf(addressOf(2), addressOf(0), f.size)
	sent := int64(0)
	for call := 1; !stop.Load(); call++ {
		if f.side && call%32 == 0 {
			from.load(side, f.burst)
			if err := from.send(); err != nil {
				return err
			}
			from.load(main, f.burst)
		}
		for sent+int64(f.burst)-arrived.Load() > frameWindow && !stop.Load() {
			lost.Reset(frameLost)
			select {
			case <-moved:
			case <-lost.C:
				sent = arrived.Load()
			}
		}
		if err := from.send(); err != nil {
			return err
		}
		sent += int64(f.burst)
	}
	return nil
}

func closeEnds(ends []end) error {
	var errs []error
	for _, e := range ends {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
