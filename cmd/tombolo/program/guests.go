package program

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qemu"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/host"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/kernel"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace"
)

// Guests says how regions run machines and networks.
type Guests struct {
	Accelerator  string // Accelerators; empty: the first
	Networks     string // NetworkKinds; empty: the first
	LeaveRunning bool   // machines go on when the agent is told to end
	// Host is the command that runs HostProcess, with the kind of networks and a
	// directory after it; empty: networks are in this process, and end with it.
	Host []string
}

// Accelerators are what machines may be run by: whatever is found to work, or one
// of them, or none, and then no machine runs.
func Accelerators() []string { return []string{"auto", "kvm", "tcg", "none"} }

// NetworkKinds are what segments and edges are made of: processes of ours, which
// need no privilege, or the kernel, which needs root.
func NetworkKinds() []string { return []string{"user", "kernel"} }

func (g *Guests) check() error {
	for _, choice := range []struct {
		name  string
		value *string
		from  []string
	}{{"accelerator", &g.Accelerator, Accelerators()}, {"networks", &g.Networks, NetworkKinds()}} {
		if *choice.value == "" {
			*choice.value = choice.from[0]
		}
		if !slices.Contains(choice.from, *choice.value) {
			return &Error{Code: choice.name + "-unknown", Text: fmt.Sprintf("%q is none of %v", *choice.value, choice.from), Next: "--" + choice.name + " " + choice.from[0]}
		}
	}
	return nil
}

// compose puts the drivers into an agent's configuration.
func (g Guests) compose(c *region.Config, version string) {
	c.LeaveRunning = g.LeaveRunning
	if g.Accelerator != "none" {
		c.Machines = func(dir string, disks machines.Disks) (machines.Driver, error) {
			return qemu.Open(qemu.Config{Dir: dir, Acceleration: qemu.Acceleration(g.Accelerator), Disks: disks, Log: c.Log})
		}
	}
	c.Networks = func(dir string, lost func()) (networks.Substrate, error) {
		if len(g.Host) == 0 {
			return openNetworks(g.Networks, dir, c.Log)
		}
		return host.Open(context.Background(), host.Config{Dir: dir, Command: append(slices.Clone(g.Host), g.Networks, dir), Version: version, Log: c.Log, Lost: lost})
	}
}

func openNetworks(kind, dir string, log *slog.Logger) (networks.Substrate, error) {
	if kind == "kernel" {
		return kernel.New(kernel.Config{Dir: dir, Routed: true, Log: log})
	}
	return userspace.New(userspace.Config{Dir: dir, Log: log})
}

// HostProcess is a region's host process: it has the networks of the directory
// until it is told to end. It says on file 3, if that is there, when it can be
// asked.
func HostProcess(ctx context.Context, kind, dir, version string, log *slog.Logger) error {
	started := os.NewFile(3, "started")
	if _, err := started.Stat(); err != nil {
		return host.Run(ctx, dir, version, func(dir string) (networks.Substrate, error) { return openNetworks(kind, dir, log) }, nil)
	}
	return host.Run(ctx, dir, version, func(dir string) (networks.Substrate, error) { return openNetworks(kind, dir, log) }, started)
}
