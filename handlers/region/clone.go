package region

import (
	"context"
	"os"
	"path/filepath"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

func (a *Agent) environmentPath(id events.EnvironmentID, parts ...string) string {
	return filepath.Join(append([]string{a.cfg.Dir, "environments", string(id)}, parts...)...)
}

// clone makes an environment of an instance that the region holds: its disks
// are the instance's, shared chunk by chunk; nothing is copied.
func (j *job) clone(ctx context.Context) (events.Result, error) {
	m, _, err := j.manifest(ctx)
	if err != nil {
		return events.Result{}, err
	}
	root := chunks.Root{Name: environmentRoot(j.Order.Environment), Owner: string(j.Work)}
	for _, d := range m.Graph.Disks() {
		root.Indexes = append(root.Indexes, chunks.Digest(d.Digest))
	}
	if len(root.Indexes) > 0 {
		if err := j.publish(ctx, root); err != nil {
			return events.Result{}, ended(err)
		}
	}
	if err := j.keepEnvironment(m.Graph); err != nil {
		return events.Result{}, err
	}
	digest, err := j.put(ctx, m.Graph)
	return events.Result{Graph: digest, Bytes: m.Bytes()}, err
}

// discard lets go of an environment's disks.
func (j *job) discard(ctx context.Context) (events.Result, error) {
	freed, err := j.dropEnvironment(ctx)
	return events.Result{Freed: freed}, err
}

func (j *job) discardAll(ctx context.Context) error {
	_, err := j.dropEnvironment(ctx)
	return err
}

func (j *job) dropEnvironment(ctx context.Context) (freed int64, err error) {
	if err := os.RemoveAll(j.agent.environmentPath(j.Order.Environment)); err != nil {
		return 0, err
	}
	if _, err := j.agent.store.Unpublish(ctx, environmentRoot(j.Order.Environment)); err != nil {
		return 0, err
	}
	return j.collect(ctx)
}
