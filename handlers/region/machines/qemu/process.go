package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// processID names one process for ever: a number is given to another process later, but not with the same start.
type processID struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot, proc(5)
	Boot  string `json:"boot,omitempty"`  // of the kernel
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without it a number and a start must do
	return strings.TrimSpace(string(b))
}

// startOf reads when a process started; it is an error where there is none, or only what is left of one.
func startOf(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name is in parentheses and may contain anything.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("proc(5): stat of %d has %d fields", pid, len(fields))
	}
	if state := fields[0]; state == "Z" || state == "X" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// process is one that lives, or did when it was opened.
type process struct {
	processID
	fd     *os.File      // pidfd_open(2)
	reaped chan struct{} // of the agent's own child: closed when it has ended and was reaped; else nil
	state  string        // then: how it ended
}

// openProcess gives the process, if it is still that one.
func openProcess(id processID) (*process, error) {
	if id.PID <= 0 || id.Boot != bootID() {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	p := &process{processID: id, fd: os.NewFile(uintptr(fd), "process")}
	// What the number names cannot change any more from here on.
	if start, err := startOf(id.PID); err != nil || start != id.Start {
		return nil, errors.Join(os.ErrProcessDone, p.fd.Close())
	}
	return p, nil
}

// ofChild is the process of a command that was started. It is reaped when it ends, also after the driver was closed.
func ofChild(cmd *exec.Cmd) (*process, error) {
	pid := cmd.Process.Pid
	start, err := startOf(pid)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	p := &process{processID: processID{PID: pid, Start: start, Boot: bootID()}, fd: os.NewFile(uintptr(fd), "process"), reaped: make(chan struct{})}
	go func() {
		defer close(p.reaped)
		_ = cmd.Wait() // what it says is in the state
		p.state = cmd.ProcessState.String()
	}()
	return p, nil
}

// wait gives how the process ended, as far as can be known: only a parent is told.
func (p *process) wait(ctx context.Context) (string, error) {
	if p.reaped != nil {
		select {
		case <-p.reaped:
			return p.state, nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	return "", err
}

// kill ends it at once. One that has ended: nothing.
func (p *process) kill() error {
	conn, err := p.fd.SyscallConn()
	if err == nil {
		var kerr error
		err = errors.Join(conn.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }), kerr)
	}
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// descriptor takes a copy of a descriptor of the process (pidfd_getfd(2)), which may be anything by now.
func (p *process) descriptor(n int) (*os.File, error) {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return nil, err
	}
	var got int
	var gerr error
	err = conn.Control(func(fd uintptr) { got, gerr = unix.PidfdGetfd(int(fd), n, 0) })
	if err = errors.Join(err, gerr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(got), "descriptor"), nil
}

// used is how much memory the process really takes, without its RAM, bytes.
func (p processID) used() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return 0
	}
	return kib(b, "RssAnon:") + kib(b, "RssFile:")
}

// kib reads a line "name   12 kB", in bytes.
func kib(b []byte, name string) int64 {
	_, rest, _ := bytes.Cut(b, []byte("\n"+name))
	f := bytes.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(string(f[0]), 10, 64)
	return n << 10
}

// hostMemory reads proc(5), meminfo: all of the host's, and what new processes can have, bytes.
func hostMemory() (total, available int64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	b = append([]byte{'\n'}, b...)
	return kib(b, "MemTotal:"), kib(b, "MemAvailable:"), nil
}

// A process says whose it is on its command line:
// -name guest=tombolo/<folder>/<environment>/<machine>/<epoch>/<owner>, so that it is found when its folder is gone.

func tagOf(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "guest=tombolo/" + hex.EncodeToString(sum[:8]) + "/"
}

// offset is where in the range of users this driver begins.
func (d *Driver) offset() uint32 {
	sum := sha256.Sum256([]byte(d.cfg.Dir))
	return uint32(sum[0])<<8 | uint32(sum[1])
}

func (d *Driver) nameOf(s machines.Spec) string {
	return fmt.Sprintf("%s%s/%s/%d/%s", d.tag, s.ID.Environment, s.ID.Machine, s.Epoch, url.PathEscape(s.Owner))
}

// running is a process of this driver as the host shows it.
type running struct {
	processID
	id    machines.ID
	owner string
	epoch int
}

// scan finds this driver's processes on the host.
func (d *Driver) scan() ([]running, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var out []running
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, after, ok := strings.Cut(string(b), "\x00-name\x00"+d.tag)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(after, "\x00")
		parts := strings.Split(name, "/")
		if len(parts) != 4 {
			continue
		}
		r := running{id: machines.ID{Environment: parts[0], Machine: parts[1]}}
		r.PID, _ = strconv.Atoi(filepath.Base(filepath.Dir(path)))
		r.epoch, _ = strconv.Atoi(parts[2])
		r.owner, _ = url.PathUnescape(parts[3])
		r.Boot = bootID()
		if r.Start, err = startOf(r.PID); err != nil || !d.mine(r.PID) {
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

// mine says whether a process runs as the agent or as one of its machines' users; others may write anything on their
// command lines.
func (d *Driver) mine(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte("\nUid:"))
	f := bytes.Fields(rest)
	if len(f) < 4 {
		return false
	}
	uid, err := strconv.ParseUint(string(f[1]), 10, 32)
	return err == nil && (int(uid) == os.Geteuid() || os.Geteuid() == 0 && uid >= uint64(d.cfg.FirstUID) && uid < uint64(d.cfg.FirstUID)+uidRange)
}

// started is the wall time of a start in clock ticks since boot.
func (p processID) started() time.Time {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	_, rest, _ := strings.Cut(string(b), "\nbtime ")
	line, _, _ := strings.Cut(rest, "\n")
	boot, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		return time.Time{}
	}
	const ticks = 100 // a second: USER_HZ, the same on every Linux for x86-64
	return time.Unix(boot+int64(p.Start/ticks), int64(p.Start%ticks)*int64(time.Second/ticks))
}

// end kills a process that the driver has no machine for, and waits until it is gone.
func (r running) end(ctx context.Context) error {
	p, err := openProcess(r.processID)
	if err != nil {
		return nil // gone
	}
	defer p.fd.Close()
	if err := p.kill(); err != nil {
		return err
	}
	_, err = p.wait(ctx)
	return err
}
