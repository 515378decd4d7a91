package region

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// guests are the machines and networks of the region's environments: the two
// ports, and what the agent must know to hold them to the environments' graphs.
// What is really there is only ever asked of the ports.
type guests struct {
	agent    *Agent
	machines machines.Driver    // nil: the region runs none
	networks networks.Substrate // nil: the region makes none

	// wiring is held by who changes a network and what is written down of it: a
	// network that is lost is applied again as it was written down last, or not at all.
	wiring sync.Mutex

	mu   sync.Mutex
	busy map[machines.ID]int // in the hands of a job, which reports what becomes of it
	// looked is what is looked at, reported and cleaned up behind, until the channel
	// is closed: a job that started one again in the middle of it would lose it.
	looked map[machines.ID]chan struct{}
	look   chan struct{} // something may have changed by itself

	pools []networks.Pool // as the networks were told last; of run
}

func openGuests(ctx context.Context, a *Agent) (g *guests, err error) {
	g = &guests{agent: a, busy: map[machines.ID]int{}, looked: map[machines.ID]chan struct{}{}, look: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if a.cfg.Machines != nil {
		if g.machines, err = a.cfg.Machines(filepath.Join(a.cfg.Dir, "machines"), g.disk); err != nil {
			return nil, err
		}
	}
	if a.cfg.Networks != nil {
		if g.networks, err = a.cfg.Networks(filepath.Join(a.cfg.Dir, "networks"), g.wake); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *guests) close() error {
	var errs []error
	if g.machines != nil {
		errs = append(errs, g.machines.Close())
	}
	if g.networks != nil {
		errs = append(errs, g.networks.Close())
	}
	return errors.Join(errs...)
}

// disk gives a machine's disk to the driver.
func (g *guests) disk(id machines.ID, disk string) (nbd.Device, error) {
	v := g.agent.devices.host.Volumes(id.Environment)[id.Machine+"/"+disk]
	if v == nil {
		return nil, fail("disk-not-open", "restart the region's agent, and look at its log", "disk %s of machine %s is not open", disk, id)
	}
	return v, nil
}

// wake has the guests looked at.
func (g *guests) wake() {
	select {
	case g.look <- struct{}{}:
	default:
	}
}

// take marks machines as in the hands of a job until the result is called.
func (g *guests) take(ids ...machines.ID) (release func()) {
	for !g.tryTake(ids) {
	}
	return func() {
		g.mu.Lock()
		for _, id := range ids {
			if g.busy[id]--; g.busy[id] == 0 {
				delete(g.busy, id)
			}
		}
		g.mu.Unlock()
		g.wake()
	}
}

// tryTake waits where one of the machines is looked at, and then takes none.
func (g *guests) tryTake(ids []machines.ID) bool {
	g.mu.Lock()
	for _, id := range ids {
		if done := g.looked[id]; done != nil {
			g.mu.Unlock()
			<-done
			return false
		}
	}
	defer g.mu.Unlock()
	for _, id := range ids {
		g.busy[id]++
	}
	return true
}

// lookAt keeps jobs from a machine until the result is called; false: it is in
// the hands of one.
func (g *guests) lookAt(id machines.ID) (release func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.busy[id] > 0 {
		return nil, false
	}
	done := make(chan struct{})
	g.looked[id] = done
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.looked, id)
		close(done)
	}, true
}

// available says why the region cannot run machines.
func (g *guests) available(ctx context.Context) error {
	if g.machines == nil {
		return machines.Errorf(machines.Unavailable, "%s runs no machines, as its agent was told", g.agent.cfg.Region)
	}
	can, err := g.machines.Capabilities(ctx)
	if err == nil && !can.Available {
		err = machines.Errorf(machines.Unavailable, "%s", can.Why)
	}
	return err
}

func machineID(env events.EnvironmentID, node string) machines.ID {
	return machines.ID{Environment: string(env), Machine: node}
}

// machineNodes are the machines of a graph, those first that others depend on.
func machineNodes(g graph.Graph) []graph.Node {
	var out []graph.Node
	for _, id := range g.Order() {
		if n, ok := g.Node(id); ok && n.Type == graph.Machine {
			out = append(out, n)
		}
	}
	return out
}

// specOf is the machine as the driver makes it; its interfaces are plugged in
// where the networks say.
func (j *job) specOf(ctx context.Context, env events.EnvironmentID, n graph.Node, net graph.Networking) (s machines.Spec, ports []networks.PortID, err error) {
	s = machines.Spec{ID: machineID(env, n.ID), Owner: string(j.Work), Epoch: j.epoch, CPUs: n.CPUs(), Memory: n.MemoryBytes()}
	for _, i := range n.Items {
		if i.Kind == graph.Disk {
			s.Disks = append(s.Disks, machines.Disk{Name: i.Name, Size: i.Size})
		}
	}
	for _, f := range net.Of(n.ID) {
		port := networks.PortID{Environment: string(env), Machine: n.ID, Interface: f.Index}
		at, err := j.agent.guests.networks.Attachment(ctx, j.epoch, port)
		if err != nil {
			return s, nil, err
		}
		nic := machines.NIC{MAC: f.MAC, Socket: at.Socket}
		if at.Tap != "" {
			nic.Tap = &machines.Tap{Name: at.Tap, Namespace: at.Namespace}
		}
		s.NICs, ports = append(s.NICs, nic), append(ports, port)
	}
	return s, ports, nil
}

// refusedByGuests turns what the ports answer into permanent failures where
// another try by itself would give the same answer.
func refusedByGuests(err error) error {
	next := map[string]string{
		string(machines.Unavailable):        "install QEMU (Debian: qemu-system-x86) on the region's host, or instantiate it in another region",
		string(machines.MachineInvalid):     "change the machine's size or disks",
		string(machines.MemoryShort):        "stop other machines, or ask for less memory",
		string(machines.MachineFailed):      "look at its console and at its disks, then start it again",
		string(machines.MemoryIncompatible): "start it with --cold: it boots, and what was in its memory is lost",
		string(machines.StopTimedOut):       "tombolo env poweroff ends it at once",
		string(networks.NetworkInvalid):     "change the environment's networks",
		string(networks.AddressConflict):    "give the machines different addresses",
		string(networks.DuplicateMAC):       "give the interfaces different MACs",
		string(networks.BindFailed):         "free the address on the region's host, or add the range to the pool with another --bind",
		string(networks.Unsupported):        "run the region's agent with the other kind of networks",
	}
	known, ok := errors.AsType[fault.Known](err)
	if !ok {
		return err
	}
	code, text, said := known.Tell()
	if to, permanent := next[code]; permanent {
		if said != "" {
			to = said
		}
		return fail(code, to, "%s", text)
	}
	return err
}

// within gives a context that ends after a time though the other one ends
// before: for what must not stop in the middle.
func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), d)
}

// reversed is the machines in the order in which they are ended.
func reversed(nodes []graph.Node) []graph.Node {
	out := slices.Clone(nodes)
	slices.Reverse(out)
	return out
}

// discard takes an environment's machines and network away.
func (g *guests) discard(ctx context.Context, env events.EnvironmentID) error {
	if g.machines != nil {
		all, err := g.machines.List(ctx)
		if err != nil {
			return err
		}
		for _, s := range all {
			if s.ID.Environment != string(env) {
				continue
			}
			done := g.agent.around(KillMachine)
			if err := g.machines.Kill(ctx, g.epoch(), s.ID); err != nil {
				return err
			}
			done()
		}
	}
	return g.agent.disconnect(ctx, g.epoch(), env)
}

// inventory lists the machines and networks that are really there, each with the
// order that made its environment: where there is no such environment, nobody's.
func (g *guests) inventory(ctx context.Context) ([]Effect, error) {
	var out []Effect
	add := func(kind, name string, env events.EnvironmentID) error {
		owner, err := os.ReadFile(g.agent.environmentPath(env, "order"))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		out = append(out, Effect{kind, name, orderOf(owner)})
		return nil
	}
	if g.machines != nil {
		all, err := g.machines.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			if err := add("machine", s.ID.String(), events.EnvironmentID(s.ID.Environment)); err != nil {
				return nil, err
			}
		}
	}
	if g.networks != nil {
		all, err := g.networks.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, n := range all {
			if err := add("network", n.Environment, events.EnvironmentID(n.Environment)); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// resting begins the owner of what is stored by rest: no order's.
const resting = "rest-"

// rested lets go of what the end of an agent that was killed in it has stored and
// not used.
func (g *guests) rested(ctx context.Context) error {
	holds, err := g.agent.store.Holds(ctx)
	if err != nil {
		return err
	}
	for _, h := range holds {
		if strings.HasPrefix(h.Owner, resting) {
			err = errors.Join(err, dropHold(ctx, g.agent, h.Owner))
		}
	}
	return err
}

// restPatience bounds how long the end of an agent may take for its machines.
const restPatience = 10 * time.Minute

// rest suspends what runs, and takes networks down that nobody is plugged into
// then, because the agent is told to end. What cannot be suspended goes on
// running. The next agent finds out from the store, and lets them go on.
func (g *guests) rest(told context.Context) error {
	if g.machines == nil || g.agent.cfg.LeaveRunning {
		return nil
	}
	ctx, cancel := within(told, restPatience)
	defer cancel()
	environments, err := g.environments()
	if err != nil {
		return err
	}
	var errs []error
	for _, env := range environments {
		if err := g.restEnvironment(ctx, env); err != nil {
			g.agent.cfg.Log.Error("the machines of an environment could not be suspended, and go on running", "environment", env, "error", err)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (g *guests) restEnvironment(ctx context.Context, env events.EnvironmentID) error {
	content, err := g.agent.environmentGraph(env)
	if err != nil {
		return err
	}
	var live []graph.Node
	for _, n := range machineNodes(content) {
		s, err := g.machines.Status(ctx, machineID(env, n.ID))
		if err == nil && s.State == machines.Running {
			live = append(live, n)
		}
	}
	if len(live) > 0 {
		if _, err := g.agent.suspendAll(ctx, env, content, live, resting+string(env), g.epoch(), nil); err != nil {
			return err
		}
		for _, n := range live {
			done := g.agent.around(KillMachine)
			if err := g.machines.Kill(ctx, g.epoch(), machineID(env, n.ID)); err != nil {
				return err
			}
			done()
		}
	}
	if g.networks == nil {
		return nil
	}
	return g.networks.Remove(ctx, g.epoch(), string(env))
}
