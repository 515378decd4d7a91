package host

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace"
)

// hostEnv has the test's own binary be a region's host process.
const hostEnv = "TOMBOLO_TEST_HOST"

func TestMain(m *testing.M) {
	if os.Getenv(hostEnv) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := Run(ctx, os.Args[1], "test", func(dir string) (networks.Substrate, error) {
		return userspace.New(userspace.Config{Dir: dir})
	}, os.NewFile(3, "started"))
	if err != nil {
		slog.Error("the host ends", "error", err)
		os.Exit(1)
	}
}

type agent struct {
	*Substrate
	lost chan struct{}
}

// open is an agent that comes up.
func open(t *testing.T, dir string) agent {
	t.Helper()
	t.Setenv(hostEnv, "1")
	a := agent{lost: make(chan struct{}, 1)}
	var err error
	a.Substrate, err = Open(t.Context(), Config{Dir: dir, Command: []string{os.Args[0], dir}, Version: "test", Log: slog.New(slog.DiscardHandler), Lost: func() { a.lost <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func network() networks.Network {
	return networks.Network{Environment: "e1", Owner: "order", Epoch: 1, Segments: []networks.Segment{{ID: "lan",
		Subnet: netip.MustParsePrefix("10.10.0.0/24"), Gateway: netip.MustParseAddr("10.10.0.1"), DHCP: true,
		Ports: []networks.Port{{Machine: "web", MAC: "52:54:00:00:00:01", Address: netip.MustParseAddr("10.10.0.2")}}}}}
}

// has says what the host has, from the host.
func (a agent) has(t *testing.T) int {
	t.Helper()
	all, err := a.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func (a agent) pid(t *testing.T) int {
	t.Helper()
	said, err := ask[nothing, hello](t.Context(), a.client, pathHello, nothing{})
	if err != nil {
		t.Fatal(err)
	}
	return said.PID
}

func (a agent) apply(t *testing.T) {
	t.Helper()
	if err := a.Apply(t.Context(), network()); err != nil {
		t.Fatal(err)
	}
}

// TestHostOutlivesItsAgent is the life of a region's host process.
func TestHostOutlivesItsAgent(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	if first.has(t) != 0 {
		t.Error("networks before any was made")
	}
	first.apply(t)
	pid := first.pid(t)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := open(t, dir)
	if second.has(t) != 1 || second.pid(t) != pid {
		t.Error("the next agent finds another process, or no network")
	}
	// Killed, the agent is told, and the next call starts another one.
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-second.lost:
	case <-time.After(time.Minute):
		t.Fatal("nobody is told that the networks are gone")
	}
	if second.has(t) != 0 {
		t.Error("the networks of a process that is gone")
	}
	second.apply(t)
	pid = second.pid(t)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	// One that hangs is ended by the next agent, and keeps nobody from anything.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	third := open(t, dir)
	third.apply(t)
	if third.pid(t) == pid {
		t.Error("the process that hangs is still there")
	}
	// Without a network the process has nothing to be there for.
	if err := third.Remove(t.Context(), 1, "e1"); err != nil {
		t.Fatal(err)
	}
	pid = third.pid(t)
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	if fourth := open(t, dir); fourth.there() {
		t.Errorf("process %d is there without a network", pid)
	}
}

// TestErrorsKeepTheirCodes: what the substrate answers is the same through the process.
func TestErrorsKeepTheirCodes(t *testing.T) {
	a := open(t, t.TempDir())
	t.Cleanup(func() {
		if err := a.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	bad := network()
	bad.Segments[0].Ports = append(bad.Segments[0].Ports, bad.Segments[0].Ports[0])
	bad.Segments[0].Ports[1].Machine = "app"
	if err := a.Apply(t.Context(), bad); networks.CodeOf(err) != networks.DuplicateMAC && networks.CodeOf(err) != networks.AddressConflict {
		t.Errorf("two ports with one MAC: %v", err)
	}
	a.apply(t)
	older := network()
	older.Epoch = 0
	if err := a.Apply(t.Context(), older); networks.CodeOf(err) != networks.StaleEpoch {
		t.Errorf("an older epoch: %v", err)
	}
	if _, err := a.Network(t.Context(), "e2"); networks.CodeOf(err) != networks.NetworkUnknown {
		t.Errorf("a network that is not there: %v", err)
	}
}
