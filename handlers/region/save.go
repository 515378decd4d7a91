package region

import (
	"context"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// save fixes the environment's disks as the content of a version: a root that
// names their indexes, and the manifest on the bus.
func (j *job) save(ctx context.Context) (events.Result, error) {
	id := j.Order.Environment
	g, err := j.environmentGraph(id)
	if err != nil {
		return events.Result{}, err
	}
	m := graph.Manifest{Format: graph.ManifestFormat, Environment: id, Region: j.Region, Depth: graph.ConfigurationData, Graph: g, Order: g.Order()}
	root := chunks.Root{Name: savedRoot(j), Owner: string(j.Work)}
	for _, d := range g.Disks() {
		root.Indexes = append(root.Indexes, chunks.Digest(d.Digest))
	}
	if len(root.Indexes) > 0 {
		if err := j.publish(ctx, root); err != nil {
			return events.Result{}, ended(err)
		}
	}
	digest, err := j.put(ctx, m)
	if err != nil {
		return events.Result{}, err
	}
	result := events.Result{Manifest: digest, Bytes: m.Bytes()}
	for _, r := range g.Resources() {
		result.Resources = append(result.Resources, events.ResourceRef{ID: r.ID, Type: string(r.Type), Value: r.Value, LeansOn: r.LeansOn})
	}
	return result, nil
}

func (j *job) undoSave(ctx context.Context) error {
	if err := j.unpublish(ctx, savedRoot(j)); err != nil {
		return err
	}
	_, err := j.collect(ctx)
	return err
}
