package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespaces is where namespaces have names, for people too: `ip netns` shows them.
const namespaces = "/run/netns"

// ensureNamespace gives the namespace of that name, a new one if there is none. What a killed process left without a
// namespace behind its name is made anew.
func ensureNamespace(name string) (netns.NsHandle, error) {
	path := filepath.Join(namespaces, name)
	if ns, err := openNamespace(path); err == nil {
		return ns, nil
	} else if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return netns.None(), err
	}
	var ns netns.NsHandle
	err := onThread(func() (err error) {
		ns, err = netns.NewNamed(name)
		return err
	})
	return ns, err
}

// openNamespace opens one. Error: the name is nobody's, or a file without a namespace behind it.
func openNamespace(path string) (netns.NsHandle, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return netns.None(), err
	}
	if s.Type != unix.NSFS_MAGIC {
		return netns.None(), fmt.Errorf("%s is no namespace: %w", path, fs.ErrNotExist)
	}
	return netns.GetFromPath(path)
}

// deleteNamespace takes the name away; the namespace goes when nobody is in it.
func deleteNamespace(name string) error {
	path := filepath.Join(namespaces, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// onThread runs do on a thread of its own, which ends with it: whatever namespace it went to, no other work is there.
func onThread(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- do()
	}()
	return <-done
}

// inside runs do in a namespace. Sockets that it opens and programs that it starts stay there.
func inside(ns netns.NsHandle, do func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return do()
	})
}

// sysctl sets values of the namespace that the thread is in, as "path value".
func sysctl(settings ...string) error {
	for _, s := range settings {
		name, value, _ := strings.Cut(s, " ")
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// nft has the program apply rules, all or none, in the namespace that the thread is in. The thread must be one of its own:
// the program ends with it, so that nothing changes the host after this process was killed.
func nft(ctx context.Context, rules string) error {
	c := exec.CommandContext(ctx, "nft", "-f", "-")
	c.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	c.Stdin = strings.NewReader(rules)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// newTap makes a tap that stays without a process; it has the header that carries offloads.
func newTap(name string) error {
	f, err := openTap(name, unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1), f.Close())
}

// openTap opens a tap, a new one if there is none, which goes when it is closed.
func openTap(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tap %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}
