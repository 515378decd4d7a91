package region

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/region/volumes"
)

// devices are the disks of the region's environments: open volumes, each an
// export of one NBD server on a unix socket of the region.
type devices struct {
	agent  *Agent
	server *nbd.Server
	socket string

	mu   sync.Mutex
	open map[string]*volumes.Volume // by export
}

// Export is the name of a disk's block device on the region's socket:
// "<environment>/<node>/<disk>".
func Export(id events.EnvironmentID, disk string) string { return string(id) + "/" + disk }

func (a *Agent) environmentPath(id events.EnvironmentID, parts ...string) string {
	return filepath.Join(append([]string{a.cfg.Dir, "environments", string(id)}, parts...)...)
}

// volumePath is the folder of a disk ("<node>/<item>").
func (a *Agent) volumePath(id events.EnvironmentID, disk string) string {
	return a.environmentPath(id, "disks", strings.ReplaceAll(disk, "/", "."))
}

func newDevices(a *Agent) (*devices, error) {
	socket, err := nbd.SocketPath(a.cfg.Dir, "nbd.sock")
	if err != nil {
		return nil, err
	}
	return &devices{agent: a, server: nbd.NewServer(), socket: socket, open: map[string]*volumes.Volume{}}, nil
}

// Devices is the unix socket on which the environments' disks are served.
func (a *Agent) Devices() string { return a.devices.socket }

// openAll opens the disks of all environments that are there, as they were.
func (d *devices) openAll(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(d.agent.cfg.Dir, "environments"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		id := events.EnvironmentID(e.Name())
		g, err := d.agent.environmentGraph(id)
		if os.IsNotExist(err) {
			continue // it was not finished; its order is open still, or the janitor finds it
		}
		if err == nil {
			err = d.openEnvironment(ctx, id, g)
		}
		if err != nil {
			// One environment that is damaged must not keep the others from working.
			d.agent.cfg.Log.Error("the disks of an environment cannot be opened", "environment", id, "error", err)
		}
	}
	return nil
}

// openEnvironment opens and serves the environment's disks; those that are open
// stay so.
func (d *devices) openEnvironment(ctx context.Context, id events.EnvironmentID, g graph.Graph) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, disk := range g.Disks() {
		name := Export(id, disk.Name())
		if d.open[name] != nil {
			continue
		}
		v, err := volumes.Open(ctx, d.agent.volumePath(id, disk.Name()), d.agent.cache)
		if err != nil {
			return err
		}
		if err := d.server.Add(nbd.Export{Name: name, Description: disk.Name(), Device: v}); err != nil {
			return errors.Join(err, v.Close())
		}
		d.open[name] = v
	}
	return nil
}

// create makes the environment's volumes over the disks' indexes and serves them.
func (d *devices) create(ctx context.Context, id events.EnvironmentID, g graph.Graph) error {
	for _, disk := range g.Disks() {
		path := d.agent.volumePath(id, disk.Name())
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		done := d.agent.around(CreateVolumes)
		if err := volumes.Create(path, chunks.Digest(disk.Digest), disk.Size); err != nil {
			return err
		}
		done()
	}
	return d.openEnvironment(ctx, id, g)
}

// of gives the open volumes of an environment, in the order of the graph.
func (d *devices) of(id events.EnvironmentID, g graph.Graph) ([]*volumes.Volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*volumes.Volume
	for _, disk := range g.Disks() {
		v := d.open[Export(id, disk.Name())]
		if v == nil {
			return nil, fail("disk-not-open", "restart the region's agent, and look at its log", "disk %s of environment %s is not open", disk.Name(), id)
		}
		out = append(out, v)
	}
	return out, nil
}

// drop closes the environment's disks; whoever uses them is disconnected.
func (d *devices) drop(id events.EnvironmentID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for name, v := range d.open {
		if strings.HasPrefix(name, string(id)+"/") {
			d.server.Remove(name)
			errs = append(errs, v.Close())
			delete(d.open, name)
		}
	}
	return errors.Join(errs...)
}

func (d *devices) close() error {
	errs := []error{d.server.Close()}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range d.open {
		errs = append(errs, v.Close())
	}
	d.open = nil
	return errors.Join(errs...)
}

// environmentGraph is the graph of an environment of this region as it was kept
// last, with the digests of its disks' bases. An error that is os.ErrNotExist:
// there is no such environment, or it was never finished.
func (a *Agent) environmentGraph(id events.EnvironmentID) (g graph.Graph, err error) {
	raw, err := os.ReadFile(a.environmentPath(id, "graph.json"))
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		return g, fail("environment-damaged", "", "%s: %v", a.environmentPath(id, "graph.json"), err)
	}
	return g, nil
}

// protect publishes the bases of an environment's disks; release, later, lets go
// of those they replace: at no moment is a base in use without a root.
func (a *Agent) protect(ctx context.Context, id events.EnvironmentID, owner events.WorkID, indexes []chunks.Digest) error {
	if len(indexes) == 0 {
		return nil
	}
	name := environmentRoots(id) + events.DigestOf([]byte(joined(indexes))).Hex()[:16]
	return a.store.Publish(ctx, chunks.Root{Name: name, Owner: string(owner), Indexes: indexes})
}

// release lets go of the bases of an environment but for those in keep.
func (a *Agent) release(ctx context.Context, id events.EnvironmentID, keep []chunks.Digest) error {
	roots, err := a.store.Roots(ctx)
	if err != nil {
		return err
	}
	for _, r := range roots {
		if !strings.HasPrefix(r.Name, environmentRoots(id)) || slices.Equal(r.Indexes, keep) {
			continue
		}
		if _, err := a.store.Unpublish(ctx, r.Name); err != nil {
			return err
		}
	}
	return nil
}

// environmentRoots begins the names of an environment's roots: one for each
// state of its bases; more than one only while a save goes on.
func environmentRoots(id events.EnvironmentID) string { return "environment/" + string(id) + "/" }

func joined(indexes []chunks.Digest) string {
	var b strings.Builder
	for _, d := range indexes {
		b.WriteString(string(d) + "\n")
	}
	return b.String()
}

// indexesOf lists the disks' digests, in the order of the graph.
func indexesOf(g graph.Graph) []chunks.Digest {
	var out []chunks.Digest
	for _, d := range g.Disks() {
		out = append(out, chunks.Digest(d.Digest))
	}
	return out
}
