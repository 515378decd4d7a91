package qemu_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qemu"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qmp"
)

// open makes a host with a driver; the test's end kills all machines.
func open(t *testing.T, change func(*qemu.Config)) (*host, *qemu.Driver, *machinestest.Disks) {
	t.Helper()
	h, disks := newHost(t), machinestest.NewDisks()
	cfg := h.config(t, disks.Device)
	if change != nil {
		change(&cfg)
	}
	d, err := qemu.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.driver = d
	t.Cleanup(func() { h.end(t) })
	return h, d, disks
}

// end kills the machines of the driver that is open last.
func (h *host) end(t testing.TB) {
	ctx := t.Context()
	if ctx.Err() != nil {
		ctx = background()
	}
	list, err := h.driver.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, s := range list {
		if err := h.driver.Kill(ctx, 1<<30, s.ID); err != nil {
			t.Error(err)
		}
	}
	if err := h.driver.Close(); err != nil {
		t.Error(err)
	}
	if left := h.processes(t); len(left) != 0 {
		t.Errorf("processes %v are left", left)
	}
}

func boot(t testing.TB, d machines.Driver, s machines.Spec) *machinestest.Guest {
	t.Helper()
	if err := d.Start(t.Context(), s, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.Continue(t.Context(), s.Epoch, s.ID); err != nil {
		t.Fatal(err)
	}
	g := machinestest.Join(t, d, s.ID)
	g.Await("ready")
	return g
}

// What a broken-out emulator could reach.
func TestIsolation(t *testing.T) {
	h, d, _ := open(t, nil)
	s := machinestest.Spec("web")
	s.NICs = []machines.NIC{{MAC: "52:54:00:12:34:56", Socket: h.Socket(t)}}
	boot(t, d, s)
	c, err := d.Capabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"user-namespace", "network-namespace", "pid-namespace", "ipc-namespace", "uts-namespace", "chroot", "seccomp", "rlimits", "oom-score"} {
		if !slices.Contains(c.Isolation, name) {
			t.Errorf("no %s: %q", name, c.Isolation)
		}
	}
	pid := h.processes(t)[0]
	proc := fmt.Sprintf("/proc/%d/", pid)
	status := readFile(t, proc+"status")
	if got := field(status, "Seccomp:"); got != "2" {
		t.Errorf("seccomp is %s", got)
	}
	if got := field(status, "CapEff:"); got != "0000000000040000" { // CAP_SYS_CHROOT of its own namespace
		t.Errorf("capabilities %s", got)
	}
	if uid := field(status, "Uid:"); os.Geteuid() == 0 && uid == "0" {
		t.Error("it runs as root")
	}
	if os.Geteuid() == 0 && field(status, "Groups:") != "" {
		t.Errorf("groups %s", field(status, "Groups:"))
	}
	for _, ns := range []string{"user", "net", "pid", "ipc", "uts"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if its, err := os.Readlink(proc + "ns/" + ns); err != nil || its == own {
			t.Errorf("%s namespace: %v, %s", ns, err, its)
		}
	}
	if devices := strings.Count(readFile(t, proc+"net/dev"), ":"); devices != 1 {
		t.Errorf("%d network devices", devices)
	}
	root, err := os.Readlink(proc + "root")
	if err != nil || root != filepath.Join(h.folder(s.ID), "jail") {
		t.Errorf("its root is %s, %v", root, err)
	}
	if inside, err := os.ReadDir(root); err != nil || len(inside) != 1 || inside[0].Name() != "nbd" {
		t.Errorf("its root has %v, %v", inside, err)
	}
	if env := readFile(t, proc+"environ"); env != "" {
		t.Errorf("its environment is %q", env)
	}
	limits := readFile(t, proc+"limits")
	for _, line := range []string{"Max core file size        0                    0", "Max file size             16777216             16777216", "Max open files            1024                 1024"} {
		if !strings.Contains(limits, line) {
			t.Errorf("no limit %q", line)
		}
	}
	if got := readFile(t, proc+"oom_score_adj"); got != "500\n" {
		t.Errorf("oom_score_adj %q", got)
	}
	// It has no file open but its log and its memory.
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(proc + "fd/" + fd.Name())
		if err != nil || to == "/dev/null" || to == filepath.Join(h.folder(s.ID), "log") || strings.HasPrefix(to, "/memfd:ram") ||
			strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "pipe:") {
			continue
		}
		t.Errorf("it has %s open", to)
	}
	// Nobody else reaches its monitor, nor takes its place.
	for path, want := range map[string]os.FileMode{h.folder(s.ID): os.ModeDir | 0o700, filepath.Join(h.folder(s.ID), "monitor"): os.ModeSocket | 0o600,
		filepath.Join(h.folder(s.ID), "serial"): os.ModeSocket | 0o600, filepath.Join(h.folder(s.ID), "machine.json"): 0o600} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != want {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// field gives the first value of a line in /proc/PID/status.
func field(status, name string) string {
	_, rest, _ := strings.Cut(status, "\n"+name)
	line, _, _ := strings.Cut(rest, "\n")
	if f := strings.Fields(line); len(f) > 0 {
		return f[0]
	}
	return ""
}

// Two machines run as two users, where root starts them.
func TestUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		return // there is one user only
	}
	h, d, _ := open(t, nil)
	users := map[string]bool{}
	for _, name := range []string{"web", "app", "db"} {
		if err := d.Start(t.Context(), machinestest.Spec(name), nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range h.processes(t) {
		users[field(readFile(t, fmt.Sprintf("/proc/%d/status", pid)), "Uid:")] = true
	}
	if len(users) != 3 || users["0"] {
		t.Errorf("users %v", users)
	}
}

// A guest that switches itself off while no agent is there has not crashed.
func TestGuestEndsWhileAway(t *testing.T) {
	h, d, disks := open(t, nil)
	s := machinestest.Spec("web")
	boot(t, d, s)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	down := make(chan struct{})
	conn, err := qemu.DialAt(t.Context(), h.folder(s.ID), "monitor")
	if err != nil {
		t.Fatal(err)
	}
	monitor, err := qmp.Connect(t.Context(), conn, func(e qmp.Event) {
		if e.Name == "SHUTDOWN" {
			close(down)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	serial, err := qemu.DialAt(t.Context(), h.folder(s.ID), "serial")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := serial.Write([]byte("s")); err != nil {
		t.Fatal(err)
	}
	<-down
	monitor.Close()
	serial.Close()
	if n := len(h.processes(t)); n != 1 {
		t.Errorf("%d processes", n)
	}
	d2 := h.Open(t, disks.Device)
	if err := d2.Adopt(t.Context(), s.Epoch); err != nil { // it flushes its disks first
		t.Fatal(err)
	}
	if err := d2.Stop(t.Context(), s.Epoch, s.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := d2.Status(t.Context(), s.ID); err != nil || got.End != machines.EndGuest || len(h.processes(t)) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestUnavailable(t *testing.T) {
	old := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho QEMU emulator version 5.2.0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*qemu.Config)
		why    string
	}{
		"no emulator":    {func(c *qemu.Config) { c.Emulator = "/nowhere/qemu" }, "install QEMU"},
		"old":            {func(c *qemu.Config) { c.Emulator = old }, "older than 7.2"},
		"no emulator2":   {func(c *qemu.Config) { c.Emulator = "/bin/true" }, "install QEMU"},
		"off":            {func(c *qemu.Config) { c.Acceleration = qemu.None }, "switched off"},
		"no accelerator": {func(c *qemu.Config) { c.Acceleration = "hax" }, "hax"},
	} {
		t.Run(name, func(t *testing.T) {
			_, d, _ := open(t, c.change)
			got, err := d.Capabilities(t.Context())
			if err != nil || got.Available || !strings.Contains(got.Why, c.why) {
				t.Errorf("%+v, %v", got, err)
			}
			if err := d.Start(t.Context(), machinestest.Spec("web"), nil); machines.CodeOf(err) != machines.Unavailable || !strings.Contains(err.Error(), c.why) {
				t.Errorf("%v", err)
			}
			if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
}

// Whatever the host's KVM is like, the driver says in seconds whether it can be used, and auto has an answer.
func TestAcceleration(t *testing.T) {
	_, d, _ := open(t, func(c *qemu.Config) { c.Acceleration = qemu.Auto })
	c, err := d.Capabilities(t.Context())
	if err != nil || !c.Available || !strings.Contains(c.Probe, "kvm: ") || !strings.Contains(c.Probe, c.Hardware.Accelerator+": a guest ran") {
		t.Errorf("%+v, %v", c, err)
	}
	t.Log(c.Probe)
}

func TestMemoryLimit(t *testing.T) {
	_, d, _ := open(t, func(c *qemu.Config) { c.MemoryLimit = 100 << 20 })
	for _, name := range []string{"m1", "m2", "m3"} {
		if err := d.Start(t.Context(), machinestest.Spec(name), nil); err != nil {
			t.Fatal(err)
		}
	}
	s := machinestest.Spec("m4")
	if err := d.Start(t.Context(), s, nil); machines.CodeOf(err) != machines.MemoryShort {
		t.Fatal(err)
	}
	if err := d.Kill(t.Context(), 3, machinestest.Spec("m2").ID); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), s, nil); err != nil {
		t.Fatal(err)
	}
}

func TestOneDriver(t *testing.T) {
	h, _, disks := open(t, nil)
	if _, err := qemu.Open(h.config(t, disks.Device)); machines.CodeOf(err) != machines.Unavailable {
		t.Error(err)
	}
}

// The console on disk stays small, and is whole across files.
func TestConsoleOnDisk(t *testing.T) {
	h, d, disks := open(t, nil)
	s := machinestest.Spec("web")
	g := boot(t, d, s)
	g.Type("ff")
	g.Await("f 00001fff")
	g.Await("f 00001fff")
	c, err := d.Console(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	before := make([]byte, machines.ConsoleHistory)
	if _, err := io.ReadFull(c, before); err != nil {
		t.Fatal(err)
	}
	g.Ask("c") // the rest is stored before this is
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, name := range []string{"console", "console.old"} {
		info, err := os.Stat(filepath.Join(h.folder(s.ID), name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 4*machines.ConsoleHistory {
		t.Errorf("%d bytes", size)
	}
	d2 := h.Open(t, disks.Device)
	c2, err := d2.Console(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	after := make([]byte, machines.ConsoleHistory)
	if _, err := io.ReadFull(c2, after); err != nil {
		t.Fatal(err)
	}
	// Where the two histories overlap they are the same.
	line := []byte("f 00001ffe -\r\nf 00001fff -\r\n")
	if i := bytes.LastIndex(after, line); i < machines.ConsoleHistory/2 || !bytes.HasSuffix(before, after[i-20000:i+len(line)]) {
		t.Errorf("the last lines at %d", i)
	}
}

// A host that does not allow all that the driver wants: what is left is said, and everything works.
func TestLessIsolation(t *testing.T) {
	for n, lost := range []string{"", "user-namespace", "chroot"} {
		_, d, _ := open(t, func(c *qemu.Config) { c.Lenient(n) })
		c, err := d.Capabilities(t.Context())
		if err != nil || !c.Available || slices.Contains(c.Isolation, lost) || lost != "" && !slices.ContainsFunc(c.Isolation, func(s string) bool {
			return strings.HasPrefix(s, "no ") && strings.Contains(s, strings.Split(lost, "-")[0])
		}) {
			t.Fatalf("%d: %+v, %v", n, c, err)
		}
		t.Log(c.Isolation)
		s := machinestest.Spec("web")
		g := boot(t, d, s)
		g.Ask("mQ")
		g.Ask("w")
		if err := d.Pause(t.Context(), s.Epoch, s.ID); err != nil {
			t.Fatal(err)
		}
		memory, err := d.Capture(t.Context(), s.Epoch, s.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Kill(t.Context(), s.Epoch, s.ID); err != nil {
			t.Fatal(err)
		}
		if err := d.Start(t.Context(), s, &memory.Memory); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(memory.Close(), d.Continue(t.Context(), s.Epoch, s.ID)); err != nil {
			t.Fatal(err)
		}
		if a := machinestest.Join(t, d, s.ID).Ask("r"); a.Mark != 'Q' {
			t.Errorf("%+v", a)
		}
	}
}

// A cgroup that turns out to be none takes nothing else away.
func TestNoCgroup(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("cpu memory pids\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, d, _ := open(t, func(c *qemu.Config) { c.Cgroup = dir })
	c, err := d.Capabilities(t.Context())
	if err != nil || !c.Available || slices.Contains(c.Isolation, "cgroup") || !slices.Contains(c.Isolation, "chroot") || !slices.Contains(c.Isolation, "no cgroup: no guest runs in one below "+dir) {
		t.Fatalf("%+v, %v", c, err)
	}
	boot(t, d, machinestest.Spec("web")).Ask("c")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestMachineType(t *testing.T) {
	for list, want := range map[string]string{
		"pc-q35-8.0  x\npc-q35-7.2  x\npc-q35-7.1  x\npc-i440fx-7.2 x\n": "pc-q35-7.2",
		"pc-q35-10.1 x\npc-q35-6.2 x\npc-q35-4.0.1 x\nq35 alias\n":       "pc-q35-6.2",
		"pc-q35-4.0 x\npc-q35-4.0.1 x\n":                                 "pc-q35-4.0.1",
		"pc-q35-10.0 x\npc-q35-rhel9.0 x\n":                              "",
	} {
		if got := qemu.Newest(list); got != want {
			t.Errorf("%q: %s, not %s", list, got, want)
		}
	}
}

// A tap of another network namespace is plugged in by its descriptor.
func TestTap(t *testing.T) {
	if os.Geteuid() != 0 {
		return // taps are the kernel's network, which only root has
	}
	_, d, _ := open(t, nil)
	name := fmt.Sprintf("tombolo-test-%d", os.Getpid())
	ip := func(arguments ...string) string {
		t.Helper()
		out, err := exec.Command("ip", arguments...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %q: %v: %s", arguments, err, out)
		}
		return string(out)
	}
	ip("netns", "add", name)
	t.Cleanup(func() { ip("netns", "delete", name) })
	ip("-n", name, "tuntap", "add", "tap7", "mode", "tap", "vnet_hdr")
	ip("-n", name, "link", "set", "tap7", "up")
	s := machinestest.Spec("web")
	s.NICs = []machines.NIC{{MAC: "52:54:00:12:34:56", Tap: &machines.Tap{Name: "tap8", Namespace: "/run/netns/" + name}}}
	if err := d.Start(t.Context(), s, nil); machines.CodeOf(err) != machines.MachineFailed || !strings.Contains(err.Error(), "tap8") {
		t.Errorf("a tap that is not there: %v", err)
	}
	s.NICs[0].Tap.Name = "tap7"
	if out := ip("-n", name, "link", "show", "tap7"); !strings.Contains(out, "NO-CARRIER") {
		t.Errorf("before: %s", out)
	}
	boot(t, d, s).Ask("c")
	if out := ip("-n", name, "link", "show", "tap7"); !strings.Contains(out, "LOWER_UP") {
		t.Errorf("nobody is at the tap: %s", out)
	}
}
