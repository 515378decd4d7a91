package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// profile is how an emulator is kept from the host. What a host allows is found out by running a guest in it.
type profile struct {
	namespaces bool // its own of users, networks, processes, IPC and names
	ownUser    bool // a user of its own for each machine; only root can
	chroot     bool // no files but its disks' socket
	runAs      bool // the emulator itself changes to the user, after the chroot: root without user namespaces
	grouped    bool // a cgroup of its own, with limits
	gid        uint32
	unlimited  string // why limits cannot be set; found out by the probe
}

// profiles gives those to try, the strictest first.
func (d *Driver) profiles(a Acceleration) []profile {
	root := os.Geteuid() == 0
	gid := uint32(0)
	if root && a == KVM { // the machine's user must reach the device
		if info, err := os.Stat("/dev/kvm"); err == nil {
			gid = info.Sys().(*syscall.Stat_t).Gid
		}
	}
	all := []profile{{namespaces: true, chroot: true}, {}}
	if root {
		all = []profile{
			{namespaces: true, ownUser: true, chroot: true, gid: gid},
			{runAs: true, ownUser: true, chroot: true, gid: gid},
			{ownUser: true, gid: gid},
		}
	}
	all = all[min(d.cfg.lenient, len(all)-1):]
	if _, err := d.cgroup(); err != nil {
		return all
	}
	var both []profile // a group that cannot be used takes no other isolation away
	for _, p := range all {
		grouped := p
		grouped.grouped = true
		both = append(both, grouped, p)
	}
	return both
}

// names says what keeps a machine from the host, for Capabilities.
func (p profile) names(cgroup string, why error) []string {
	var out []string
	add := func(yes bool, names ...string) {
		if yes {
			out = append(out, names...)
		}
	}
	add(p.ownUser, "own-user")
	add(p.namespaces, "user-namespace", "network-namespace", "pid-namespace", "ipc-namespace", "uts-namespace")
	add(p.chroot, "chroot")
	add(true, "seccomp")
	add(p.unlimited == "", "rlimits", "oom-score")
	add(p.unlimited != "", "no limits: "+p.unlimited)
	add(p.grouped, "cgroup")
	switch {
	case why != nil:
		out = append(out, "no cgroup: "+why.Error())
	case !p.grouped:
		out = append(out, "no cgroup: no guest runs in one below "+cgroup)
	}
	add(!p.namespaces, "no user namespace")
	add(!p.chroot, "no chroot")
	return out
}

// command makes an emulator that will run in a jail, a folder, as this user. The files are its descriptors from 3 on.
func (e *emulator) command(p profile, uid uint32, jail *os.File, log *os.File, arguments []string, files []*os.File) *exec.Cmd {
	own := []string{"-nodefaults", "-no-user-config", "-display", "none"}
	sandbox := "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
	if p.runAs {
		sandbox = strings.Replace(sandbox, "elevateprivileges=deny", "elevateprivileges=allow", 1) // it gives privileges up, after the filter is there
	}
	own = append(own, "-sandbox", sandbox)
	// QEMU 8.1 and 9.1 moved these to -run-with; what was there before is removed some day.
	switch {
	case p.chroot && e.runsWith("chroot="):
		own = append(own, "-run-with", "chroot=.")
	case p.chroot:
		own = append(own, "-chroot", ".")
	}
	switch user := fmt.Sprintf("%d:%d", uid, p.group(uid)); {
	case p.runAs && e.runsWith("user="):
		own = append(own, "-run-with", "user="+user)
	case p.runAs:
		own = append(own, "-runas", user)
	}
	cmd := exec.Command(e.path, append(own, arguments...)...)
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, files
	// The jail is the working directory before it is the root, so that names in it are the same before and after. It is
	// entered through its descriptor: the machine's user need not reach the folders above.
	cmd.Dir = "/proc/self/fd/" + strconv.Itoa(int(jail.Fd()))
	attr := &syscall.SysProcAttr{Setsid: true} // and no parent-death signal: it outlives the agent
	switch {
	case p.namespaces:
		attr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWUTS
		hostUID, hostGID := os.Geteuid(), os.Getegid()
		if p.ownUser {
			hostUID, hostGID = int(uid), int(p.group(uid))
		}
		// Not root in there either: it gets the one capability that it needs, and that only over its own namespaces.
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: insideID, HostID: hostUID, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: insideID, HostID: hostGID, Size: 1}}
		attr.GidMappingsEnableSetgroups = p.ownUser
		attr.Credential = &syscall.Credential{Uid: insideID, Gid: insideID, NoSetGroups: !p.ownUser}
		attr.AmbientCaps = []uintptr{unix.CAP_SYS_CHROOT}
	case p.ownUser && !p.runAs:
		attr.Credential = &syscall.Credential{Uid: uid, Gid: p.group(uid)}
	}
	cmd.SysProcAttr = attr
	return cmd
}

// insideID is a machine's user and group within its namespace.
const insideID = 1000

// group is the machine's: of the same number as its user, or the one that may use the accelerator.
func (p profile) group(uid uint32) uint32 {
	if p.gid != 0 {
		return p.gid
	}
	return uid
}

// prepare lets a machine's user enter its jail, which stays the agent's.
func (p profile) prepare(jail string) error {
	if !p.ownUser {
		return nil
	}
	return os.Chmod(jail, 0o711)
}

const (
	// maxFile bounds a file that an emulator writes: its log, and a screenshot.
	maxFile = 16 << 20
	// maxOpen bounds its descriptors.
	maxOpen = 1024
	// overhead is what an emulator may map beyond its guest's memory: code, buffers of translated code, stacks of threads,
	// the display. An idle one has 0.6 GiB mapped, and uses 20 MiB of it.
	overhead = 4 << 30
	// oomScore lets the kernel choose a machine before the agent when memory is short.
	oomScore = 500
)

// limitProcess bounds what a process can take from the host. Nothing of the guest has run yet.
func limitProcess(pid int, memory int64) error {
	var errs []error
	for _, l := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"core", unix.RLIMIT_CORE, 0}, {"fsize", unix.RLIMIT_FSIZE, maxFile}, {"nofile", unix.RLIMIT_NOFILE, maxOpen},
		{"as", unix.RLIMIT_AS, uint64(memory) + overhead},
	} {
		limit := unix.Rlimit{Cur: l.value, Max: l.value}
		var now unix.Rlimit
		if err := unix.Prlimit(pid, l.resource, nil, &now); err == nil && now.Max < l.value {
			continue // the host is stricter
		}
		if err := unix.Prlimit(pid, l.resource, &limit, nil); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.name, err))
		}
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(oomScore)), 0); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the host does not let the agent set them (%s)", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// probeOnce runs the probe's guest, and finds out whether it can be limited.
func (d *Driver) probeOnce(ctx context.Context, e *emulator, a Acceleration, p *profile, limit time.Duration) error {
	dir, err := os.MkdirTemp(d.cfg.Dir, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := p.prepare(dir); err != nil {
		return err
	}
	jail, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer jail.Close()
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	disk, err := anonymous("probe", 1<<20) // the BIOS does not boot from one sector
	if err != nil {
		return err
	}
	defer disk.Close()
	if _, err := disk.WriteAt(probeGuest(), 0); err != nil {
		return err
	}
	cmd := e.command(*p, d.cfg.FirstUID, jail, log, append(e.board(a, 1),
		"-m", "16M", "-device", "isa-debug-exit,iobase=0xf4",
		"-blockdev", `{"driver":"raw","node-name":"probe","read-only":true,"file":{"driver":"file","filename":"/proc/self/fd/3","read-only":true,"locking":"off"}}`,
		"-device", "virtio-blk-pci,drive=probe,bootindex=0"), []*os.File{disk})
	if p.grouped {
		spec := machines.Spec{ID: machines.ID{Environment: "probe", Machine: "probe"}, CPUs: 1, Memory: 16 << 20}
		defer func() {
			if err := d.leaveGroup(spec.ID); err != nil {
				d.cfg.Log.Warn("the cgroup of the probe", "error", err)
			}
		}()
		group, err := d.joinGroup(spec)
		if err != nil {
			return fmt.Errorf("its cgroup: %w", err)
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	// One that is killed in the middle of it leaves no guest behind.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := limitProcess(cmd.Process.Pid, 16<<20); err != nil {
		p.unlimited = err.Error()
	}
	timeout := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	err = cmd.Wait()
	intime := timeout.Stop()
	if !stop() {
		return ctx.Err()
	}
	if code := cmd.ProcessState.ExitCode(); code == 2*probeByte+1 {
		return nil
	} else if !intime {
		return fmt.Errorf("the guest did nothing for %s: %w", limit, context.DeadlineExceeded)
	}
	return fmt.Errorf("%w: %s", errors.Join(err, errProbe), bytes.TrimSpace(tail(filepath.Join(dir, logFile), maxWords)))
}

var errProbe = errors.New("the emulator ended before the guest ran")
