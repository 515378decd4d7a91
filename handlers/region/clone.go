package region

import (
	"context"
	"os"

	"github.com/tombolo-vdc/tombolo/events"
)

// clone makes an environment of an instance that the region holds: its disks
// are the instance's, shared chunk by chunk; nothing is copied.
func (j *job) clone(ctx context.Context) (events.Result, error) {
	m, _, err := j.manifest(ctx)
	if err != nil {
		return events.Result{}, err
	}
	if err := j.establish(ctx, m.Graph); err != nil {
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
	if err := j.agent.dropEnvironment(ctx, j.Order.Environment); err != nil {
		return 0, err
	}
	return j.collect(ctx)
}

// dropEnvironment takes away what there is of an environment; the last to go is
// the folder that names its order.
func (a *Agent) dropEnvironment(ctx context.Context, id events.EnvironmentID) error {
	if err := os.RemoveAll(a.environmentPath(id, "graph.json")); err != nil {
		return err
	}
	if err := a.guests.discard(ctx, id); err != nil {
		return err
	}
	done := a.around(RemoveEnvironment)
	if err := a.devices.host.Discard(string(id)); err != nil {
		return err
	}
	if err := a.release(ctx, id, nil); err != nil {
		return err
	}
	if err := os.RemoveAll(a.environmentPath(id)); err != nil {
		return err
	}
	done()
	return nil
}
