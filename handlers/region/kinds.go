package region

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// kind is one kind of work: one effect, how it is undone, and whether an order
// can be begun yet. Do and undo may be called any number of times, after any
// crash; done twice is done once. Both clean up behind a failed one.
type kind struct {
	do    func(j *job, ctx context.Context) (events.Result, error)
	undo  func(j *job, ctx context.Context) error
	ready func(j *job) bool // nil: always
	// inTurn is work that has its environment to itself: in the order of the journal
	// among its like. ends is work after which there is no environment: what is in
	// turn gives way to it.
	inTurn, ends bool
}

// alone says that the work has its environment to itself while it is performed.
func (k kind) alone() bool { return k.inTurn || k.ends }

// kinds is the table of what an agent can do. The effects that each leaves
// carry the order's id, and are listed by Inventory (janitor.go).
func kinds() map[events.WorkKind]kind {
	return map[events.WorkKind]kind{
		events.WorkReceive: {do: (*job).receive, undo: (*job).undoReceive, ready: (*job).received},
		events.WorkSave:    {do: (*job).save, undo: (*job).undoSave, inTurn: true},
		events.WorkCopy:    {do: (*job).copy, undo: (*job).undoCopy},
		events.WorkRemove:  {do: (*job).remove, undo: nothing},
		events.WorkClone:   {do: (*job).clone, undo: (*job).discardAll},
		events.WorkDiscard: {do: (*job).discard, undo: nothing, ends: true},
		events.WorkConnect: {do: (*job).connect, undo: (*job).undoConnect, inTurn: true},
		events.WorkPower:   {do: (*job).power, undo: (*job).undoPower, inTurn: true},
	}
}

// nothing undoes what has no way back: what is removed is removed.
func nothing(*job, context.Context) error { return nil }

// The names of a version's roots in the chunk store: what its save keeps until
// the instance is there, and the instance. The owner is the order.
func savedRoot(j *job) string    { return "saved/" + j.slot() }
func instanceRoot(j *job) string { return instanceRoots + j.slot() }

const instanceRoots = "instance/"

func (j *job) slot() string { return slot(j.Order.Template, j.Order.Version) }

// slot is the direct location of a version in a region: "73291467@2".
func slot(t events.TemplateID, version int) string {
	return string(t) + "@" + strconv.Itoa(version)
}

// holdTime is how long a hold outlives the last sign of its work.
const holdTime = 7 * 24 * time.Hour

// ended turns what the chunk store answers into permanent failures where
// another try by itself would give the same answer.
func ended(err error) error {
	switch chunks.CodeOf(err) {
	case chunks.StoreFull:
		return fail("store-full", "make room on the region's disk, then retry", "%v", err)
	case chunks.StoreWriteFailed, chunks.StoreDamaged:
		return fail(string(chunks.CodeOf(err)), "look at the region's disk, restart its agent, then retry", "%v", err)
	case chunks.DiskChanged:
		return fail("disk-changed", "send the disk again when nobody writes to it", "%v", err)
	}
	return err
}

// publish makes the root, in place of one of an earlier order for the same name.
func (j *job) publish(ctx context.Context, root chunks.Root) error {
	err := j.agent.store.Publish(ctx, root)
	if chunks.CodeOf(err) != chunks.RootConflict {
		return err
	}
	if _, err := j.agent.store.Unpublish(ctx, root.Name); err != nil {
		return err
	}
	return j.agent.store.Publish(ctx, root)
}

// unpublish forgets the root if this order made it.
func (j *job) unpublish(ctx context.Context, name string) error {
	root, ok, err := j.root(ctx, name)
	if err != nil || !ok || root.Owner != string(j.Work) {
		return err
	}
	_, err = j.agent.store.Unpublish(ctx, name)
	return err
}

func (j *job) root(ctx context.Context, name string) (chunks.Root, bool, error) {
	roots, err := j.agent.store.Roots(ctx)
	if err != nil {
		return chunks.Root{}, false, err
	}
	for _, r := range roots {
		if r.Name == name {
			return r, true, nil
		}
	}
	return chunks.Root{}, false, nil
}

// collect frees what nothing protects any more.
func (j *job) collect(ctx context.Context) (freed int64, err error) {
	got, err := j.agent.store.Collect(ctx, chunks.CollectRequest{Now: time.Now()})
	return got.BytesFreed, err
}

// dropWork lets go of what the order keeps while it is under way.
func (j *job) dropWork(ctx context.Context) error {
	_, err := j.agent.store.Release(ctx, string(j.Work))
	return errors.Join(err, j.agent.uploads.drop(j.Work))
}

func now() time.Time { return time.Now() }
