package region

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/projections"
)

// connect makes the environment's network be as its graph, its edge and its map
// say at the order's position, and plugs in the machines that run.
func (j *job) connect(ctx context.Context) (events.Result, error) {
	g, err := j.content()
	if err != nil {
		return events.Result{}, err
	}
	if g, err = j.withEdge(ctx, j.Order.Environment, g); err != nil {
		return events.Result{}, err
	}
	return events.Result{}, j.applyNetwork(ctx, g)
}

// content is the graph of the order's environment.
func (j *job) content() (graph.Graph, error) {
	g, err := j.agent.environmentGraph(j.Order.Environment)
	if os.IsNotExist(err) {
		return g, fail("environment-unknown", "", "%s holds nothing of environment %s", j.Region, j.Order.Environment)
	}
	return g, err
}

// applyNetwork makes the environment's graph this one, and its network what the
// graph says.
func (j *job) applyNetwork(ctx context.Context, g graph.Graph) error {
	env := j.Order.Environment
	if j.agent.guests.networks == nil {
		return nil // its machines cannot run here either; the graph is kept as it is
	}
	n, err := j.network(ctx, env, g)
	if err != nil {
		return err
	}
	if err := networks.Validate(n); err != nil {
		return refusedByGuests(err)
	}
	if err := j.agent.keepGraph(env, g); err != nil {
		return err
	}
	j.agent.guests.wiring.Lock()
	defer j.agent.guests.wiring.Unlock()
	done := j.agent.around(ApplyNetwork)
	if err := j.agent.guests.networks.Apply(ctx, n); err != nil {
		return refusedByGuests(err)
	}
	done()
	// Written down after it worked: it is applied again when the process that has it is lost.
	if err := j.agent.keepNetwork(n); err != nil {
		return err
	}
	return j.agent.guests.plugAll(ctx, j.epoch, n)
}

// withEdge puts the edge as it was set last into the graph.
func (j *job) withEdge(ctx context.Context, env events.EnvironmentID, g graph.Graph) (graph.Graph, error) {
	view, err := j.asOfOrder(ctx, "environments")
	if err != nil {
		return g, err
	}
	defer view.Close()
	row, set, err := projections.Environments{}.Edge(view, env)
	if err != nil || !set {
		return g, err
	}
	return g.WithEdge(row.Event()), nil
}

// declared is what the journal says of the environment at the order's position.
func (j *job) declared(ctx context.Context, env events.EnvironmentID) (row projections.EnvironmentRow, err error) {
	view, err := j.asOfOrder(ctx, "environments")
	if err != nil {
		return row, err
	}
	defer view.Close()
	row, _, err = projections.Environments{}.Environment(view, env)
	return row, err
}

// asOfOrder is the agent's projections as they were when the order was given:
// what was decided later is another order's.
func (j *job) asOfOrder(ctx context.Context, names ...string) (*projections.View, error) {
	if err := j.agent.feed.WaitFor(ctx, j.Sequence, names...); err != nil {
		return nil, err
	}
	return j.agent.feed.AsOf(j.Sequence, names...)
}

// undoConnect takes back the network of an environment that will not come to be.
// That of one that is there stays: what was set of its edge is set.
func (j *job) undoConnect(ctx context.Context) error {
	if j.Order.Graph == "" {
		return nil
	}
	return j.agent.disconnect(ctx, j.epoch, j.Order.Environment)
}

// disconnect takes an environment's network away.
func (a *Agent) disconnect(ctx context.Context, epoch int, env events.EnvironmentID) error {
	if a.guests.networks == nil {
		return nil
	}
	a.guests.wiring.Lock()
	defer a.guests.wiring.Unlock()
	done := a.around(RemoveNetwork)
	if err := a.guests.networks.Remove(ctx, epoch, string(env)); err != nil {
		return err
	}
	done()
	err := os.Remove(a.environmentPath(env, networkFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// networkFile keeps an environment's network as it was applied last.
const networkFile = "network.json"

func (a *Agent) keepNetwork(n networks.Network) error {
	raw, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return writeDurably(a.environmentPath(events.EnvironmentID(n.Environment), networkFile), raw)
}

// keptNetwork is the network of an environment as it was applied last; false
// where there is none.
func (a *Agent) keptNetwork(env events.EnvironmentID) (n networks.Network, ok bool, err error) {
	raw, err := os.ReadFile(a.environmentPath(env, networkFile))
	if errors.Is(err, os.ErrNotExist) {
		return n, false, nil
	}
	if err != nil {
		return n, false, err
	}
	return n, true, json.Unmarshal(raw, &n)
}

// networkingOf is what a graph says of networks. What does not hang together was
// refused at the door; a graph from elsewhere is refused here.
func networkingOf(g graph.Graph) (graph.Networking, error) {
	net, findings := g.Networking()
	if len(findings) > 0 {
		return net, fail(findings[0].Code, "change the environment's networks", "%s: %s", findings[0].Path, findings[0].Text)
	}
	return net, nil
}

// network is what the substrate is asked for.
func (j *job) network(ctx context.Context, env events.EnvironmentID, g graph.Graph) (n networks.Network, err error) {
	net, err := networkingOf(g)
	if err != nil {
		return n, err
	}
	n = networks.Network{Environment: string(env), Owner: string(j.Work), Epoch: j.epoch}
	for _, s := range net.Segments {
		segment := networks.Segment{ID: s.ID, Subnet: s.Subnet, DHCP: s.DHCP, DNS: s.DHCP, MTU: s.MTU}
		if !s.Isolated {
			segment.Gateway = s.Gateway
		}
		for _, f := range s.Interfaces {
			segment.Ports = append(segment.Ports, networks.Port{Machine: f.Machine, Interface: f.Index, MAC: f.MAC, Address: f.Address})
		}
		n.Segments = append(n.Segments, segment)
	}
	for _, r := range net.Rules {
		rule := networks.Rule{Allow: r.Allow, Protocol: networks.Protocol(r.Protocol), From: r.From, To: r.To}
		for _, p := range r.Ports {
			rule.Ports = append(rule.Ports, networks.PortRange{First: p.First, Last: p.Last})
		}
		n.Edge.Rules = append(n.Edge.Rules, rule)
	}
	n.Edge.SourcePorts = networks.PortRange{First: net.SourcePorts.First, Last: net.SourcePorts.Last}
	if len(net.Publics) == 0 {
		return n, nil
	}
	view, err := j.asOfOrder(ctx, "environments", "pools")
	if err != nil {
		return n, err
	}
	defer view.Close()
	substitutions, _, err := projections.Environments{}.Map(view, env)
	if err != nil {
		return n, err
	}
	for _, p := range net.Publics {
		value := ""
		for _, s := range substitutions {
			if s.Resource == p.Resource {
				value = s.To
			}
		}
		public, err := j.public(view, value)
		if err != nil {
			return n, err
		}
		public.Target = p.Target
		for _, o := range p.Open {
			public.Open = append(public.Open, networks.Forward{Protocol: networks.Protocol(o.Protocol), Port: o.Port, Last: o.Last, To: o.To})
		}
		n.Edge.Publics = append(n.Edge.Publics, public)
	}
	return n, nil
}

// public is a public address of this region, and where the region binds it.
func (j *job) public(view *projections.View, value string) (out networks.Public, err error) {
	if out.Address, err = netip.ParseAddr(value); err != nil {
		return out, fail("bad-address", "look at the environment's map", "%q is not an address", value)
	}
	bound, offset, ok, err := projections.Pools{}.Place(view, j.Region, events.PoolID(graph.PublicAddress), value)
	if err != nil {
		return out, err
	}
	if !ok {
		return out, fail("address-not-in-pool", "look at the environment's map", "the region has no pool with %s", value)
	}
	if out.PortOffset = offset; bound != value {
		out.Bind, err = netip.ParseAddr(bound)
	}
	return out, err
}

// plugAll plugs in the machines of a network that have a process.
func (g *guests) plugAll(ctx context.Context, epoch int, n networks.Network) error {
	if g.machines == nil {
		return nil
	}
	for _, s := range n.Segments {
		for _, p := range s.Ports {
			if _, err := g.machines.Status(ctx, machineID(events.EnvironmentID(n.Environment), p.Machine)); err != nil {
				continue // no process: it is plugged in when it starts
			}
			if err := g.networks.Plug(ctx, epoch, networks.PortID{Environment: n.Environment, Machine: p.Machine, Interface: p.Interface}); err != nil {
				return err
			}
		}
	}
	return nil
}
