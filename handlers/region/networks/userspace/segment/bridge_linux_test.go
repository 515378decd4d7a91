package segment

import (
	"encoding/binary"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethTest is for experiments: where br_netfilter is loaded, the kernel drops what calls itself IPv4 and is not.
const ethTest = 0x88b6

// BenchmarkBridge moves the same frames as BenchmarkSegment between two generators through what the kernel has: a bridge with
// two pairs of veth, without offloads, in a namespace of its own. It needs root and iproute2.
func BenchmarkBridge(b *testing.B) {
	for _, size := range []string{"1514", "64"} {
		for _, batch := range []int{1, 32} {
			b.Run("frame="+size+"/write="+map[int]string{1: "1", 32: "32"}[batch], func(b *testing.B) {
				from, to := bridged(b)
				floodBridge(b, from, to, map[string]int{"1514": 1514, "64": 64}[size], batch)
			})
		}
	}
}

// bridged makes the bridge, and sockets at both of its ends. The thread that went into the namespace ends with this goroutine.
func bridged(b *testing.B) (from, to int) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Skipf("a network namespace of its own: %v", err)
	}
	for _, line := range []string{
		"ip link add bridge type bridge forward_delay 0 mcast_snooping 0",
		"ip link add end-a type veth peer name port-a", "ip link add end-b type veth peer name port-b",
		"ip link set port-a master bridge", "ip link set port-b master bridge",
		"ip link set bridge up", "ip link set port-a up", "ip link set port-b up",
		"ip link set end-a address 02:00:00:00:00:01 up", "ip link set end-b address 02:00:00:00:00:02 up",
	} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			b.Skipf("%s: %v: %s", line, err, out)
		}
	}
	open := func(name string) int {
		in, err := net.InterfaceByName(name)
		if err != nil {
			b.Fatal(err)
		}
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			b.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: in.Index}); err != nil {
			b.Fatal(err)
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			b.Fatal(err)
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100000}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	from, to = open("end-a"), open("end-b")
	// The bridge learns where b is, and lets frames through a little after it was told to.
	for range 100 {
		_, _ = unix.Write(to, frame(broadcast, macB, 0x1234, 60, 0))
		_, _ = unix.Write(from, frame(macB, macA, ethTest, 60, 0))
		if receive(to, messages(1, 2048, nil)) == 1 {
			return from, to
		}
	}
	b.Fatal("the bridge carries nothing")
	return 0, 0
}

type mmsg struct {
	head unix.Msghdr
	size uint32
	_    uint32
}

// messages makes n messages for sendmmsg(2) and recvmmsg(2), each with a buffer of its own.
func messages(n, size int, fill []byte) []mmsg {
	out := make([]mmsg, n)
	for i := range out {
		buf := make([]byte, size)
		copy(buf, fill)
		out[i].head.Iov = &unix.Iovec{Base: &buf[0]}
		out[i].head.Iov.SetLen(size)
		out[i].head.SetIovlen(1)
	}
	return out
}

func many(call uintptr, fd int, m []mmsg, flags uintptr) int {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), flags, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// receive waits for frames, though not for ever, and counts those that a generator has sent.
func receive(fd int, in []mmsg) (frames int) {
	for i := range in[:many(unix.SYS_RECVMMSG, fd, in, unix.MSG_WAITFORONE)] {
		if f := unsafe.Slice(in[i].head.Iov.Base, 14); binary.BigEndian.Uint16(f[12:]) == ethTest {
			frames++
		}
	}
	return frames
}

func floodBridge(b *testing.B, from, to, size, batch int) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	sent := frame(macB, macA, ethTest, size, 0)
	b.ResetTimer()
	go func() {
		defer close(stopped)
		out := messages(batch, size, sent)
		for {
			select {
			case <-stop:
				return
			default:
				if batch == 1 {
					_, _ = unix.Write(from, sent)
				} else {
					many(unix.SYS_SENDMMSG, from, out, 0)
				}
			}
		}
	}()
	in := messages(64, 2048, nil)
	for got, vain := 0, 0; got < b.N; {
		n := receive(to, in)
		if got += n; n == 0 {
			if vain++; vain > 100 {
				b.Fatal("nothing arrives any more")
			}
		}
	}
	b.StopTimer()
	close(stop)
	<-stopped
	b.ReportMetric(float64(b.N)*float64(size)*8/float64(b.Elapsed().Nanoseconds()), "Gbit/s")
}
