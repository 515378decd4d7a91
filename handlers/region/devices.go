package region

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/region/volumes"
)

// devices are the disks of the region's environments: volumes, each an export of
// one NBD server on a unix socket of the region.
type devices struct {
	agent  *Agent
	host   *volumes.Host
	server *nbd.Server
	socket string
}

// Export is the name of a disk's block device on the region's socket:
// "<environment>/<node>/<disk>".
func Export(id events.EnvironmentID, disk string) string {
	return volumes.ExportName(string(id), disk)
}

func (a *Agent) environmentPath(id events.EnvironmentID, parts ...string) string {
	return filepath.Join(append([]string{a.cfg.Dir, "environments", string(id)}, parts...)...)
}

func newDevices(a *Agent) (*devices, error) {
	socket, err := nbd.SocketPath(a.cfg.Dir, "nbd.sock")
	if err != nil {
		return nil, err
	}
	server := nbd.NewServer()
	return &devices{a, volumes.NewHost(filepath.Join(a.cfg.Dir, "volumes"), a.cache, server), server, socket}, nil
}

// Devices is the unix socket on which the environments' disks are served.
func (a *Agent) Devices() string { return a.devices.socket }

// openAll opens the disks of all environments that are complete, as they were.
func (d *devices) openAll(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(d.agent.cfg.Dir, "environments"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		_, err := os.Stat(d.agent.environmentPath(events.EnvironmentID(e.Name()), "graph.json"))
		if os.IsNotExist(err) {
			continue // it was not finished; its order is open still, or the janitor finds it
		}
		if err == nil {
			err = d.host.Open(ctx, e.Name())
		}
		if err != nil {
			// One environment that is damaged must not keep the others from working.
			d.agent.cfg.Log.Error("the disks of an environment cannot be opened", "environment", e.Name(), "error", err)
		}
	}
	return nil
}

// create makes the environment's volumes over the disks' indexes and serves them.
func (d *devices) create(ctx context.Context, id events.EnvironmentID, g graph.Graph) error {
	var disks []volumes.Disk
	for _, disk := range g.Disks() {
		disks = append(disks, volumes.Disk{Name: disk.Name(), Base: chunks.Digest(disk.Digest), Size: disk.Size})
	}
	done := d.agent.around(CreateVolumes)
	if err := d.host.Create(ctx, string(id), disks); err != nil {
		return err
	}
	done()
	return nil
}

// of gives the open volumes of an environment, in the order of the graph.
func (d *devices) of(id events.EnvironmentID, g graph.Graph) ([]*volumes.Volume, error) {
	open := d.host.Volumes(string(id))
	var out []*volumes.Volume
	for _, disk := range g.Disks() {
		v := open[disk.Name()]
		if v == nil {
			return nil, fail("disk-not-open", "restart the region's agent, and look at its log", "disk %s of environment %s is not open", disk.Name(), id)
		}
		out = append(out, v)
	}
	return out, nil
}

func (d *devices) close() error { return errors.Join(d.server.Close(), d.host.Close()) }

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

// indexesOf lists the digests of all that is stored of the graph, disks and
// memory, in its order.
func indexesOf(g graph.Graph) []chunks.Digest {
	var out []chunks.Digest
	for _, d := range g.Stored() {
		out = append(out, chunks.Digest(d.Digest))
	}
	return out
}
