package qemu_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qemu"
)

// The variable that makes this test's program an agent that starts a machine in this folder, and stays.
const agentDir = "TOMBOLO_TEST_AGENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(agentDir); dir != "" {
		agent(dir)
	}
	os.Exit(m.Run())
}

func agent(dir string) {
	d, err := qemu.Open(qemu.Config{Dir: dir, Disks: machinestest.NewDisks().Device, Acceleration: qemu.TCG})
	if err == nil {
		err = d.Start(context.Background(), machinestest.Spec("web"), nil)
	}
	if err == nil {
		err = d.Continue(context.Background(), machinestest.Spec("web").Epoch, machinestest.Spec("web").ID)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed
}

// startAgent runs an agent as a process of its own.
func (h *host) startAgent(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentDir+"="+h.dir)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

type stored struct {
	Ready   bool `json:"ready"`
	Process struct {
		PID int `json:"pid"`
	} `json:"process"`
}

func (h *host) stored(id machines.ID) (s stored) {
	if b, err := os.ReadFile(filepath.Join(h.folder(id), "machine.json")); err == nil {
		_ = json.Unmarshal(b, &s) // not there yet
	}
	return s
}

// An agent that is killed in the middle of Start leaves what List shows, and what Kill or the next Start removes.
func TestKilledWhileStarting(t *testing.T) {
	s := machinestest.Spec("web")
	there := func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	}
	for name, reached := range map[string]func(*host) bool{
		"folder":  func(h *host) bool { return there(h.folder(s.ID)) },
		"sockets": func(h *host) bool { return there(filepath.Join(h.folder(s.ID), "serial")) },
		"process": func(h *host) bool { return len(h.processes(t)) > 0 },
		"known":   func(h *host) bool { return h.stored(s.ID).Process.PID != 0 },
		"ready":   func(h *host) bool { return h.stored(s.ID).Ready },
	} {
		for _, cure := range []string{"kill", "start"} {
			t.Run(name+", "+cure, func(t *testing.T) {
				h := newHost(t)
				agent := h.startAgent(t)
				for end := time.Now().Add(30 * time.Second); !reached(h); {
					if time.Now().After(end) {
						t.Error("never reached")
						break
					}
				}
				if err := agent.Process.Kill(); err != nil {
					t.Error(err)
				}
				_ = agent.Wait() // killed
				disks := machinestest.NewDisks()
				d := h.Open(t, disks.Device)
				t.Cleanup(func() { h.end(t) })
				list, err := d.List(t.Context())
				if err != nil || len(list) != 1 || list[0].ID != s.ID {
					t.Fatalf("%+v, %v", list, err)
				}
				if err := d.Adopt(t.Context(), s.Epoch); err != nil {
					t.Fatal(err)
				}
				if cure == "kill" {
					if err := d.Kill(t.Context(), s.Epoch, s.ID); err != nil {
						t.Fatal(err)
					}
					list, err := d.List(t.Context())
					if err != nil || len(list) != 0 || len(h.processes(t)) != 0 || there(h.folder(s.ID)) {
						t.Fatalf("%+v, %v, %v", list, err, h.processes(t))
					}
					return
				}
				if err := d.Start(t.Context(), s, nil); err != nil {
					t.Fatal(err)
				}
				if err := d.Continue(t.Context(), s.Epoch, s.ID); err != nil {
					t.Fatal(err)
				}
				machinestest.Join(t, d, s.ID).Await("ready")
				if n := len(h.processes(t)); n != 1 {
					t.Errorf("%d processes", n)
				}
			})
		}
	}
}

// An agent that is killed leaves its machines running, as somebody else's children, and the next one has them.
func TestKilledAgent(t *testing.T) {
	h, s := newHost(t), machinestest.Spec("web")
	agent := h.startAgent(t)
	for len(h.processes(t)) == 0 || !h.stored(s.ID).Ready {
	}
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait() // killed
	disks := machinestest.NewDisks()
	d := h.Open(t, disks.Device)
	t.Cleanup(func() { h.end(t) })
	if err := d.Adopt(t.Context(), s.Epoch); err != nil {
		t.Fatal(err)
	}
	if err := d.Continue(t.Context(), s.Epoch, s.ID); err != nil {
		t.Fatal(err)
	}
	g := machinestest.Join(t, d, s.ID)
	a := g.Ask("mQ")
	if a := g.Ask("w"); a.Mark != 'Q' {
		t.Errorf("%+v", a)
	}
	if got, _ := disks.Of(s.ID).Stored(); got.Mark != 'Q' {
		t.Errorf("%+v", got)
	}
	// Its RAM is read from the process.
	if err := d.Pause(t.Context(), s.Epoch, s.ID); err != nil {
		t.Fatal(err)
	}
	c, err := d.Capture(t.Context(), s.Epoch, s.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// And its end is noticed, though it is nobody's child here.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	pid := h.processes(t)[0]
	var end machines.Status
	err = d.Watch(ctx, func(got machines.Status) {
		switch got.State {
		case machines.Paused:
			h.KillProcess(t, pid)
		case machines.Ended:
			end = got
			cancel()
		}
	})
	if end.End != machines.EndCrashed {
		t.Fatalf("%+v, %v", end, err)
	}
	if err := d.Start(t.Context(), s, &c.Memory); err != nil {
		t.Fatal(err)
	}
	if err := d.Continue(t.Context(), s.Epoch, s.ID); err != nil {
		t.Fatal(err)
	}
	g = machinestest.Join(t, d, s.ID)
	g.Await("w ")
	if b := g.Ask("c"); b.Mark != 'Q' || b.Count < a.Count {
		t.Errorf("%+v, %+v", a, b)
	}
}
