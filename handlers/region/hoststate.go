package region

import (
	"context"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// HostState is what a region's host can do and does now, as its drivers see it.
type HostState struct {
	Machines MachinesHere            `json:"machines"`
	Networks NetworksHere            `json:"networks"`
	Running  []machines.Status       `json:"running"`
	Ports    []networks.Counters     `json:"ports"`
	Edges    []networks.EdgeCounters `json:"edges"`
}

// What a region's drivers can do; named apart, as the interface's schemas are.
type (
	MachinesHere machines.Capabilities
	NetworksHere networks.Capabilities
)

// HostState asks the drivers. The first time it may take as long as a guest needs
// to be started.
func (a *Agent) HostState(ctx context.Context) (HostState, error) {
	out, err := a.HostLoad(ctx)
	if err != nil {
		return out, err
	}
	out.Machines.Why, out.Networks.Why = "the agent was told to run none", "the agent was told to make none"
	if a.guests.machines != nil {
		can, err := a.guests.machines.Capabilities(ctx)
		if err != nil {
			return out, err
		}
		out.Machines = MachinesHere(can)
	}
	if a.guests.networks != nil {
		can, err := a.guests.networks.Capabilities(ctx)
		if err != nil {
			return out, err
		}
		out.Networks = NetworksHere(can)
	}
	return out, nil
}

// HostLoad is HostState without what the host can do: it starts nothing.
func (a *Agent) HostLoad(ctx context.Context) (out HostState, err error) {
	out.Running, out.Ports, out.Edges = []machines.Status{}, []networks.Counters{}, []networks.EdgeCounters{}
	if a.guests.machines != nil {
		running, err := a.guests.machines.List(ctx)
		if err != nil {
			return out, err
		}
		out.Running = append(out.Running, running...)
	}
	if a.guests.networks != nil {
		ports, edges, err := a.guests.networks.Counters(ctx)
		if err != nil {
			return out, err
		}
		out.Ports, out.Edges = append(out.Ports, ports...), append(out.Edges, edges...)
	}
	return out, nil
}
