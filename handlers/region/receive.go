package region

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// received says whether everything that the order waits for has come in, or
// will not come any more.
func (j *job) received() bool {
	if _, err := j.established(); err == nil {
		return true
	}
	if !j.Order.Until.IsZero() && !time.Now().Before(j.Order.Until) {
		return true
	}
	for _, d := range j.Order.Disks {
		if !j.agent.uploads.complete(j.Work, d.Name) {
			return false
		}
	}
	return true
}

// receive takes an environment's uploaded disks into the chunk store.
func (j *job) receive(ctx context.Context) (events.Result, error) {
	if g, err := j.established(); err == nil {
		// An earlier try was ended between this and its report, and its uploads are
		// gone perhaps.
		digest, err := j.put(ctx, g)
		if err != nil {
			return events.Result{}, err
		}
		return events.Result{Graph: digest, Bytes: total(j.Order.Disks)}, j.dropWork(ctx)
	} else if !os.IsNotExist(err) {
		return events.Result{}, err
	}
	for _, d := range j.Order.Disks {
		if !j.agent.uploads.complete(j.Work, d.Name) {
			return events.Result{}, fail("upload-expired", "create the environment again",
				"disk %s had not come in by %s", d.Name, j.Order.Until.Format(time.RFC3339))
		}
	}
	g, err := j.graph(ctx, j.Order.Graph)
	if err != nil {
		return events.Result{}, err
	}
	if err := j.agent.store.Hold(ctx, string(j.Work), time.Now().Add(holdTime)); err != nil {
		return events.Result{}, ended(err)
	}
	session, err := j.agent.store.Begin(ctx, string(j.Work))
	if err != nil {
		return events.Result{}, ended(err)
	}
	defer session.Close()
	result := events.Result{}
	for _, d := range j.Order.Disks {
		f, err := os.Open(j.agent.uploads.path(j.Work, d.Name))
		if err != nil {
			return events.Result{}, err
		}
		got, err := chunks.Ingest(ctx, session, chunks.IngestRequest{Source: f, Size: d.Bytes, Progress: func(p chunks.Progress) {
			j.progress(Progress{Step: "storing", Done: result.Bytes + p.Done, Total: total(j.Order.Disks)})
		}})
		f.Close()
		if err != nil {
			return events.Result{}, ended(err)
		}
		result.Bytes += d.Bytes
		result.Stored += got.StoredBytes
		setDigest(&g, d.Name, events.Digest(got.Digest))
	}
	if err := j.establish(ctx, g); err != nil {
		return events.Result{}, err
	}
	if result.Graph, err = j.put(ctx, g); err != nil {
		return events.Result{}, err
	}
	return result, j.dropWork(ctx)
}

// established gives the environment if this order has made it to the end. An
// error that is os.ErrNotExist: it has not.
func (j *job) established() (graph.Graph, error) {
	made, err := j.agent.madeBy(j.Order.Environment, j.Work)
	if err != nil {
		return graph.Graph{}, err
	}
	if !made {
		return graph.Graph{}, os.ErrNotExist
	}
	return j.agent.environmentGraph(j.Order.Environment)
}

// madeBy says whether the order makes the environment, or has made it, out of
// disks that are all in the chunk store.
func (a *Agent) madeBy(id events.EnvironmentID, w events.WorkID) (bool, error) {
	order, err := os.ReadFile(a.environmentPath(id, "order"))
	if os.IsNotExist(err) {
		return false, nil
	}
	return orderOf(order) == w, err
}

// establish makes the environment out of disks that are in the chunk store:
// protected, written down, open as block devices.
func (j *job) establish(ctx context.Context, g graph.Graph) error {
	id := j.Order.Environment
	if err := j.agent.protect(ctx, id, j.Work, indexesOf(g)); err != nil {
		return ended(err)
	}
	if err := os.MkdirAll(j.agent.environmentPath(id), 0o700); err != nil {
		return err
	}
	done := j.agent.around(KeepOrder)
	if err := writeDurably(j.agent.environmentPath(id, "order"), []byte(j.Work+"\n")); err != nil {
		return err
	}
	done()
	if err := j.agent.devices.create(ctx, id, g); err != nil {
		return err
	}
	return j.agent.keepGraph(id, g)
}

// keepGraph writes down what the environment consists of. The file being there
// says that the environment is complete.
func (a *Agent) keepGraph(id events.EnvironmentID, g graph.Graph) error {
	raw, _, err := documents.Canonical(g)
	if err != nil {
		return err
	}
	defer a.around(KeepGraph)()
	return writeDurably(a.environmentPath(id, "graph.json"), raw)
}

func total(disks []events.DiskWanted) (n int64) {
	for _, d := range disks {
		n += d.Bytes
	}
	return n
}

func (j *job) undoReceive(ctx context.Context) error {
	if err := j.dropWork(ctx); err != nil {
		return err
	}
	return j.discardAll(ctx)
}

// graph reads a graph document.
func (j *job) graph(ctx context.Context, d events.Digest) (g graph.Graph, err error) {
	raw, err := j.agent.cfg.Documents.Get(ctx, d)
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		return g, fail("document-damaged", "", "graph %s: %v", d, err)
	}
	return g, nil
}

// put stores a document on the bus.
func (j *job) put(ctx context.Context, v any) (events.Digest, error) {
	raw, _, err := documents.Canonical(v)
	if err != nil {
		return "", fail("document-invalid", "", "%v", err)
	}
	return j.agent.cfg.Documents.Put(ctx, raw)
}

func setDigest(g *graph.Graph, disk string, d events.Digest) {
	for i := range g.Nodes {
		for k := range g.Nodes[i].Items {
			if g.Nodes[i].ID+"/"+g.Nodes[i].Items[k].Name == disk {
				g.Nodes[i].Items[k].Digest = d
			}
		}
	}
}
