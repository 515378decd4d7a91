package qemu_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qemu"
)

func TestConformance(t *testing.T) {
	machinestest.Run(t, func(t testing.TB) machinestest.Host { return newHost(t) })
}

// host is a folder of this machine, deep enough that no socket's path would fit.
type host struct {
	dir     string
	sockets string
	count   int
	driver  machines.Driver
}

func newHost(t testing.TB) *host {
	t.Helper()
	sockets, err := os.MkdirTemp("", "nics")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	return &host{dir: filepath.Join(t.TempDir(), strings.Repeat("deep/", 20), "machines"), sockets: sockets}
}

func (h *host) config(t testing.TB, disks machines.Disks) qemu.Config {
	return qemu.Config{Dir: h.dir, Disks: disks, Acceleration: qemu.TCG, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
}

func (h *host) Open(t testing.TB, disks machines.Disks) machines.Driver {
	t.Helper()
	d, err := qemu.Open(h.config(t, disks))
	if err != nil {
		t.Fatal(err)
	}
	h.driver = d
	return d
}

// testLog shows what the driver logs where the test fails.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (h *host) KillProcess(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func (h *host) folder(id machines.ID) string {
	return filepath.Join(h.dir, "machines", id.Environment+"@"+id.Machine)
}

func (h *host) Forget(t testing.TB, id machines.ID) {
	t.Helper()
	if err := os.RemoveAll(h.folder(id)); err != nil {
		t.Fatal(err)
	}
}

func (h *host) Processes(t testing.TB) int {
	t.Helper()
	return len(h.processes(t))
}

// processes looks at the host's processes itself: those of this folder's driver have its sockets' machines in their names.
func (h *host) processes(t testing.TB) []int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	tag := "\x00guest=" + qemu.Tag(h.dir)
	var out []int
	for _, path := range lines {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), tag) {
			var pid int
			if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err != nil {
				t.Fatal(err)
			}
			out = append(out, pid)
		}
	}
	return out
}

func (h *host) Socket(testing.TB) string {
	h.count++
	return filepath.Join(h.sockets, fmt.Sprintf("nic%d", h.count))
}

func background() context.Context { return context.Background() }
