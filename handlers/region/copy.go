package region

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/transfer"
	"github.com/tombolo-vdc/tombolo/projections"
)

// copy makes the region hold a manifest's disks. One that fails for good keeps
// nothing: its instance's retry, and its removal, are orders of their own.
func (j *job) copy(ctx context.Context) (events.Result, error) {
	result, err := j.fetch(ctx)
	var p *permanent
	if errors.As(err, &p) {
		_, released := j.agent.store.Release(ctx, string(j.Work))
		return result, errors.Join(err, released)
	}
	return result, err
}

// fetch pulls the chunks that lack from regions that have verified them, reads
// everything back, and only then publishes it.
func (j *job) fetch(ctx context.Context) (events.Result, error) {
	m, raw, err := j.manifest(ctx)
	if err != nil {
		return events.Result{}, err
	}
	result := events.Result{Manifest: j.Order.Manifest, Bytes: m.Bytes(), Location: j.slot()}
	root := chunks.Root{Name: instanceRoot(j), Owner: string(j.Work), Indexes: indexesOf(m.Graph)}
	if len(root.Indexes) > 0 {
		if err := j.pull(ctx, root.Indexes, &result); err != nil {
			return events.Result{}, err
		}
		var checked int64
		for _, d := range root.Indexes {
			var size int64
			v, err := chunks.Verify(ctx, j.agent.store, d, func(p chunks.Progress) {
				size = p.Total
				j.progress(Progress{Step: "verifying", Done: checked + p.Done, Total: result.Bytes})
			})
			if err != nil {
				return events.Result{}, ended(err)
			}
			if v.Err() != nil {
				// What is damaged is dropped, so that the next try fetches it again.
				_, err := j.agent.store.Quarantine(ctx, v.Damaged)
				return events.Result{}, errors.Join(v.Err(), err)
			}
			checked += size
		}
	}
	if err := j.keepManifest(raw); err != nil {
		return events.Result{}, err
	}
	if len(root.Indexes) > 0 {
		if err := j.publish(ctx, root); err != nil {
			return events.Result{}, ended(err)
		}
		if err := j.agent.ready.keep(ctx, root); err != nil {
			return events.Result{}, ended(err)
		}
	}
	return result, j.dropWork(ctx)
}

func (j *job) pull(ctx context.Context, indexes []chunks.Digest, result *events.Result) error {
	sources, err := j.sources()
	if err != nil {
		return err
	}
	if err := j.agent.store.Hold(ctx, string(j.Work), time.Now().Add(holdTime)); err != nil {
		return ended(err)
	}
	for _, source := range sources {
		if err := j.agent.links.SetCap(transfer.Link{From: source.Region, To: string(j.Region)}, j.agent.cfg.LinkBytesPerSecond); err != nil {
			return err
		}
	}
	got, err := j.agent.puller.Pull(ctx, transfer.PullRequest{Owner: string(j.Work), Indexes: indexes, Sources: sources, Progress: func(p transfer.Progress) {
		j.progress(Progress{Step: "copying", Done: p.BytesDone, Total: p.BytesTotal, Rate: p.Rate, Left: p.Left})
	}})
	result.Received, result.Stored = got.SocketBytes, got.StoredBytes
	return ended(err)
}

// sources lists the regions that have verified the version, nearest first.
func (j *job) sources() ([]transfer.Source, error) {
	view, err := j.agent.feed.Now("catalogue", "regions")
	if err != nil {
		return nil, err
	}
	defer view.Close()
	instances, err := projections.Catalogue{}.Instances(view, j.Account, j.Order.Template)
	if err != nil {
		return nil, err
	}
	here, _, err := projections.Regions{}.Region(view, j.Region)
	if err != nil {
		return nil, err
	}
	var holders []projections.RegionRow
	for _, i := range instances {
		if i.Version != j.Order.Version || !i.Verified || i.Region == j.Region {
			continue
		}
		row, ok, err := projections.Regions{}.Region(view, i.Region)
		if err != nil {
			return nil, err
		}
		if ok && row.Transfer != "" {
			holders = append(holders, row)
		}
	}
	slices.SortFunc(holders, func(x, y projections.RegionRow) int {
		return cmp.Compare(distance(here.Profile, x.Profile), distance(here.Profile, y.Profile))
	})
	var out []transfer.Source
	for _, h := range holders {
		out = append(out, transfer.Source{Region: string(h.Region), URL: "https://" + h.Transfer})
	}
	return out, nil
}

// distance is the angle between two places on the globe, in radians.
func distance(a, b events.RegionProfile) float64 {
	const degree = math.Pi / 180
	dLat, dLon := (b.Latitude-a.Latitude)*degree, (b.Longitude-a.Longitude)*degree
	h := math.Pow(math.Sin(dLat/2), 2) + math.Cos(a.Latitude*degree)*math.Cos(b.Latitude*degree)*math.Pow(math.Sin(dLon/2), 2)
	return 2 * math.Asin(math.Min(1, math.Sqrt(h)))
}

// manifest reads the manifest, from the region itself where it is held already.
func (j *job) manifest(ctx context.Context) (m graph.Manifest, raw []byte, err error) {
	return j.agent.manifest(ctx, j.slot(), j.Order.Manifest)
}

func (a *Agent) manifest(ctx context.Context, slot string, d events.Digest) (m graph.Manifest, raw []byte, err error) {
	raw, err = os.ReadFile(a.manifestPath(slot))
	if err != nil || events.DigestOf(raw) != d {
		if raw, err = a.cfg.Documents.Get(ctx, d); err != nil {
			return m, nil, err
		}
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, nil, fail("manifest-damaged", "", "manifest %s: %v", d, err)
	}
	if m.Format != graph.ManifestFormat {
		return m, nil, fail("manifest-format-unknown", "update the region's agent", "manifest %s is of form %d, this agent reads %d", d, m.Format, graph.ManifestFormat)
	}
	return m, raw, nil
}

func (j *job) keepManifest(raw []byte) error {
	defer j.agent.around(KeepManifest)()
	return writeDurably(j.agent.manifestPath(j.slot()), raw)
}

// manifestPath is of the instance and not of the digest: versions that were saved
// of the same unchanged environment have one manifest, and the removal of one of
// them must leave the others theirs.
func (a *Agent) manifestPath(slot string) string {
	return filepath.Join(a.cfg.Dir, "manifests", slot+".json")
}

func (j *job) undoCopy(ctx context.Context) error {
	if err := j.dropWork(ctx); err != nil {
		return err
	}
	j.agent.ready.forget(instanceRoot(j))
	if err := j.unpublish(ctx, instanceRoot(j)); err != nil {
		return err
	}
	_, err := j.collect(ctx)
	return err
}

// remove lets go of a version: of the instance, and of what its save kept here.
func (j *job) remove(ctx context.Context) (events.Result, error) {
	j.agent.ready.forget(instanceRoot(j))
	for _, name := range []string{instanceRoot(j), savedRoot(j)} {
		if _, err := j.agent.store.Unpublish(ctx, name); err != nil {
			return events.Result{}, ended(err)
		}
	}
	freed, err := j.collect(ctx)
	if err != nil {
		return events.Result{}, ended(err)
	}
	defer j.agent.around(RemoveManifest)()
	if err := os.Remove(j.agent.manifestPath(j.slot())); err != nil && !os.IsNotExist(err) {
		return events.Result{}, err
	}
	return events.Result{Freed: freed}, nil
}
