package networkstest

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// tapWire is a tap device of the kernel, opened as QEMU opens it.
type tapWire struct {
	file *os.File
	mu   sync.Mutex
	buf  []byte
}

// openTap opens the device in its namespace. The thread that went there ends with the goroutine that it is locked to.
func openTap(at networks.Attachment) (wire, error) {
	type result struct {
		w   wire
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread()
		w, err := openTapHere(at)
		done <- result{w, err}
	}()
	r := <-done
	return r.w, r.err
}

func openTapHere(at networks.Attachment) (wire, error) {
	if at.Namespace != "" {
		ns, err := os.Open(at.Namespace)
		if err != nil {
			return nil, err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("entering %s: %w", at.Namespace, err)
		}
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(at.Tap)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tap %s: %w", at.Tap, err)
	}
	return &tapWire{file: os.NewFile(uintptr(fd), at.Tap), buf: make([]byte, 1<<16)}, nil
}

func (w *tapWire) Close() error { return w.file.Close() }

func (w *tapWire) send(frames ...[]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range frames {
		if _, err := w.file.Write(f); err != nil {
			return err
		}
	}
	return nil
}

func (w *tapWire) receive() ([]byte, error) {
	n, err := w.file.Read(w.buf)
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), w.buf[:n]...), nil
}
