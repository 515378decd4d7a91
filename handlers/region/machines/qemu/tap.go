package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// openTap attaches to a tap device that is there, in its network namespace.
func openTap(t machines.Tap) (*os.File, error) {
	if t.Namespace == "" {
		return attachTap(t.Name)
	}
	type opened struct {
		file *os.File
		err  error
	}
	out := make(chan opened)
	go func() {
		// The thread ends with this goroutine: it is in another namespace for good.
		runtime.LockOSThread()
		ns, err := os.Open(t.Namespace)
		if err != nil {
			out <- opened{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			out <- opened{nil, fmt.Errorf("enter %s: %w", t.Namespace, err)}
			return
		}
		f, err := attachTap(t.Name)
		out <- opened{f, err}
	}()
	o := <-out
	return o.file, o.err
}

func attachTap(name string) (*os.File, error) {
	if _, err := net.InterfaceByName(name); err != nil { // else one would be made
		return nil, fmt.Errorf("the tap %s: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	request, err := unix.NewIfreq(name)
	if err == nil {
		// With a header for offloads, which the emulator finds out.
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to the tap %s: %w", name, err), f.Close())
	}
	return f, nil
}
