package region

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// A machine's memory, in an environment's own graph, means that the machine is
// suspended at exactly the disks that it has now; it is gone from there before it
// runs a single instruction more (docs/decisions/0012).

// hasMemory says that the node is of a machine whose memory is stored.
func hasMemory(n graph.Node) bool {
	return slices.ContainsFunc(n.Items, func(i graph.Item) bool { return i.Kind == graph.Memory })
}

// withoutMemory gives the graph without the memory of these machines.
func withoutMemory(g graph.Graph, names ...string) graph.Graph {
	return changeNodes(g, func(n *graph.Node) {
		if !slices.Contains(names, n.ID) || !hasMemory(*n) {
			return
		}
		n.Items = slices.DeleteFunc(slices.Clone(n.Items), func(i graph.Item) bool { return i.Kind == graph.Memory })
		for _, p := range []string{graph.PropertyMemoryAccelerator, graph.PropertyMemoryMachine, graph.PropertyMemoryCPU, graph.PropertyMemoryEmulator} {
			delete(n.Properties, p)
		}
	})
}

// changeNodes gives a copy of the graph whose nodes each has changed.
func changeNodes(g graph.Graph, each func(*graph.Node)) graph.Graph {
	out := graph.Graph{Nodes: slices.Clone(g.Nodes), Edges: g.Edges}
	for i := range out.Nodes {
		n := &out.Nodes[i]
		n.Properties = maps.Clone(n.Properties)
		each(n)
	}
	return out
}

// storeMemory puts what was captured into the chunk store, under the session's
// hold, and gives the graph that tells of it.
func (a *Agent) storeMemory(ctx context.Context, session chunks.Session, g graph.Graph, captured map[string]*machines.Capture, progress func(chunks.Progress)) (out graph.Graph, stored int64, err error) {
	items := map[string][]graph.Item{}
	for _, n := range g.Nodes {
		c := captured[n.ID]
		if c == nil {
			continue
		}
		ram := chunks.IngestRequest{Source: c.RAM, Size: n.MemoryBytes(), Progress: progress}
		for _, e := range c.Extents {
			ram.Extents = append(ram.Extents, chunks.Extent{Offset: e.Offset, Length: e.Length})
		}
		for _, part := range []struct {
			name string
			q    chunks.IngestRequest
		}{{graph.MemoryRAM, ram}, {graph.MemoryDevices, chunks.IngestRequest{Source: bytes.NewReader(c.Devices), Size: int64(len(c.Devices))}}} {
			got, err := chunks.Ingest(ctx, session, part.q)
			if err != nil {
				return g, 0, err
			}
			stored += got.StoredBytes
			items[n.ID] = append(items[n.ID], graph.Item{Name: part.name, Class: graph.ConfigurationData, Kind: graph.Memory, Size: part.q.Size, Digest: events.Digest(got.Digest)})
		}
	}
	return changeNodes(withoutMemory(g, slices.Collect(maps.Keys(captured))...), func(n *graph.Node) {
		c := captured[n.ID]
		if c == nil {
			return
		}
		n.Items = append(slices.Clone(n.Items), items[n.ID]...)
		if n.Properties == nil {
			n.Properties = map[string]string{}
		}
		n.Properties[graph.PropertyMemoryAccelerator], n.Properties[graph.PropertyMemoryMachine] = c.Hardware.Accelerator, c.Hardware.Machine
		n.Properties[graph.PropertyMemoryCPU], n.Properties[graph.PropertyMemoryEmulator] = c.Hardware.CPU, c.Hardware.Emulator
	}), stored, nil
}

// maxDevices is the most that the state of a machine's devices may take, in
// bytes: far above what any emulator writes.
const maxDevices = 256 << 20

// openMemory gives the stored memory of a machine; close lets go of it.
func (a *Agent) openMemory(ctx context.Context, n graph.Node) (m *machines.Memory, close func(), err error) {
	var open []*chunks.Disk
	close = func() { closeAll(open) }
	defer func() {
		if err != nil {
			close()
		}
	}()
	m = &machines.Memory{Hardware: machines.Hardware{Accelerator: n.Properties[graph.PropertyMemoryAccelerator], Machine: n.Properties[graph.PropertyMemoryMachine],
		CPU: n.Properties[graph.PropertyMemoryCPU], Emulator: n.Properties[graph.PropertyMemoryEmulator]}}
	for _, i := range n.Items {
		if i.Kind != graph.Memory {
			continue
		}
		d, err := a.cache.Open(ctx, chunks.Digest(i.Digest))
		if err != nil {
			return nil, nil, err
		}
		open = append(open, d)
		if i.Name == graph.MemoryRAM && d.Size() != n.MemoryBytes() || i.Name == graph.MemoryDevices && d.Size() > maxDevices {
			return nil, nil, fail("memory-damaged", "start it cold", "the %s of machine %s has %d bytes", i.Name, n.ID, d.Size())
		}
		switch i.Name {
		case graph.MemoryRAM:
			m.RAM = d
			for run := range d.Index().Runs() {
				if run.IDs != nil {
					m.Extents = append(m.Extents, machines.Extent{Offset: run.First * chunks.BlockSize, Length: min(run.Count*chunks.BlockSize, d.Size()-run.First*chunks.BlockSize)})
				}
			}
		case graph.MemoryDevices:
			m.Devices = make([]byte, d.Size())
			if _, err := d.ReadAt(m.Devices, 0); err != nil && !errors.Is(err, io.EOF) {
				return nil, nil, err
			}
		}
	}
	if m.RAM == nil || m.Devices == nil {
		return nil, nil, fail("memory-damaged", "start it cold", "the memory of machine %s is not complete", n.ID)
	}
	return m, close, nil
}
