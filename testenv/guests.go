package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coder/websocket"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
)

// guestMemory is what the machines of tests get, in MiB: enough for a BIOS and a
// guest of one sector.
const guestMemory = 16

// Emulated runs the real program with machines that are emulated: they are the
// same on every host.
type Emulated struct {
	Kind
	Env []string // more of the program's environment
}

// Command is the program's, with an accelerator.
func (e Emulated) Command(name string) (string, []string) {
	command, env := e.Kind.Command(name)
	return command, append(append(env, "TOMBOLO_ACCELERATOR=tcg"), e.Env...)
}

// bootDisk is a disk of so many bytes that boots the guest of package
// machinestest; behind its first two sectors is content of this seed.
func bootDisk(t testing.TB, seed uint64, size int) []byte {
	t.Helper()
	out := Disk(seed, size)
	guest := machinestest.NewDisks().Of(machines.ID{Environment: "any", Machine: "any"})
	if _, err := guest.ReadAt(out[:1024], 0); err != nil {
		t.Fatal(err)
	}
	return out
}

// OneEnvironment is an environment as it is shown, with its machines.
type OneEnvironment struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	State    string        `json:"state"`
	Position uint64        `json:"position"`
	Machines []api.Machine `json:"machines"`
}

// machine is one of them.
func (e OneEnvironment) machine(name string) api.Machine {
	if i := slices.IndexFunc(e.Machines, func(m api.Machine) bool { return m.ID == name }); i >= 0 {
		return e.Machines[i]
	}
	return api.Machine{}
}

// Seen waits until a machine is seen in a state, and gives it.
func (w *World) Seen(environment, machine, state string) api.Machine {
	w.t.Helper()
	return w.SeenSo(environment, machine, state, func(m api.Machine) bool { return m.Observed == state })
}

// SeenSo waits until what is seen of a machine fulfils a condition.
func (w *World) SeenSo(environment, machine, what string, fulfilled func(api.Machine) bool) api.Machine {
	w.t.Helper()
	var e OneEnvironment
	for after := uint64(0); ; after = e.Position + 1 {
		if err := w.Client().Get(w.ctx, fmt.Sprintf("/v1/environments/%s?after=%d", environment, after), &e); err != nil {
			w.t.Fatalf("%s is not %s: %v: %s", machine, what, err, JSON(e.Machines))
		}
		if m := e.machine(machine); fulfilled(m) {
			return m
		}
	}
}

// BoundPools gives each region eight public addresses, which are bound on this
// host's loopback, where no other world of this host binds any.
func (w *World) BoundPools() {
	w.t.Helper()
	_, text, err := net.SplitHostPort(w.HTTP.Address())
	if err != nil {
		w.t.Fatal(err)
	}
	own, err := strconv.Atoi(text) // a port that nobody else has
	if err != nil {
		w.t.Fatal(err)
	}
	for i, r := range w.Regions() {
		body := map[string]any{"region": r, "type": "public-address", "prefix": fmt.Sprintf("203.0.%d.0/29", 112+i),
			"bind": fmt.Sprintf("127.%d.%d.%d/29", 64+8*i+own>>13, own>>5&0xff, own<<3&0xff), "port_offset": 8000}
		if err := w.Client().Do(w.ctx, "POST", "/v1/pools", body, nil); err != nil {
			w.t.Fatalf("pool of %s: %v", r, err)
		}
	}
}

// Power brings machines of an environment, or all of them, to a power state, and
// gives the operation.
func (w *World) Power(environment, power string, names ...string) string {
	w.t.Helper()
	return w.must("POST", "/v1/environments/"+environment+"/power", map[string]any{"power": power, "machines": names}).Operation
}

// Console joins a machine's serial line, where the guest of package machinestest
// answers.
func (a *Agent) Console(t testing.TB, environment, machine string) *machinestest.Guest {
	t.Helper()
	return machinestest.Join(t, consoles{a: a, t: t}, machines.ID{Environment: environment, Machine: machine})
}

// consoles are a region's, as its agent serves them.
type consoles struct {
	machines.Reader
	a *Agent
	t testing.TB
}

// Console asks the agent, again while it is being started.
func (c consoles) Console(_ context.Context, id machines.ID) (io.ReadWriteCloser, error) {
	w := c.a.world
	for {
		asked := c.a.Client()
		socket, resp, err := websocket.Dial(w.ctx, asked.base+"/v1/environments/"+id.Environment+"/machines/"+id.Machine+"/console",
			&websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + asked.token}}})
		if err == nil {
			return websocket.NetConn(w.ctx, socket, websocket.MessageBinary), nil
		}
		if resp != nil && resp.StatusCode >= 400 && resp.StatusCode < 500 {
			return nil, err
		}
		if perr := pause(w.ctx); perr != nil {
			return nil, err
		}
	}
}

// Processes are those of the region's machines and of its networks, as the host
// shows them: what outlives the agent.
func (a *Agent) Processes(t testing.TB) (guests, networks []int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	// As package qemu says: machines are named by the folder that they are of.
	sum := sha256.Sum256([]byte(filepath.Join(a.Dir, "machines")))
	guest := "\x00guest=tombolo/" + hex.EncodeToString(sum[:8]) + "/"
	network := "\x00" + filepath.Join(a.Dir, "networks") + "\x00"
	for _, path := range lines {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		switch line := string(b); {
		case strings.Contains(line, guest):
			guests = append(guests, pid)
		case strings.Contains(line, network):
			networks = append(networks, pid)
		}
	}
	return guests, networks
}

// kill ends processes of a region at once.
func kill(t testing.TB, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Errorf("kill %d: %v", pid, err)
		}
	}
}

// Left demands that nothing of an environment is left on the region's host: no
// process, no socket, no folder.
func (a *Agent) Left(t testing.TB, environment string) {
	t.Helper()
	err := filepath.WalkDir(a.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), environment) {
			t.Errorf("%s: of the environment that was deleted, %s is left", a.Region, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), "/"+environment+"/") {
			t.Errorf("%s: of the environment that was deleted, a process is left: %s %q", a.Region, path, b)
		}
	}
}

// listens says whether somebody takes connections at a TCP address.
func listens(address string) bool {
	c, err := net.Dial("tcp", address)
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}
