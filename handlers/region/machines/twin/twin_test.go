package twin_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/twin"
)

func TestConformance(t *testing.T) {
	machinestest.Run(t, func(t testing.TB) machinestest.Host {
		// A socket's path is short, and a test's folder is not.
		dir, err := os.MkdirTemp("", "twin")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return &host{Host: twin.NewHost(1 << 30), dir: dir}
	})
}

type host struct {
	*twin.Host
	dir     string
	sockets int
}

func (h *host) Open(t testing.TB, disks machines.Disks) machines.Driver {
	t.Helper()
	d, err := h.Host.Open(disks)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (h *host) KillProcess(t testing.TB, pid int) {
	if !h.Host.KillProcess(pid) {
		t.Errorf("there is no process %d", pid)
	}
}

func (h *host) Forget(_ testing.TB, id machines.ID) { h.Host.Forget(id) }
func (h *host) Processes(testing.TB) int            { return len(h.PIDs()) }
func (h *host) Socket(testing.TB) string {
	h.sockets++
	return filepath.Join(h.dir, fmt.Sprintf("nic%d", h.sockets))
}
