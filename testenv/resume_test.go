package testenv

import (
	"testing"
)

const mib = 1 << 20

// TestCopyLife is the main job over processes: made, saved, held verified in
// three regions, replaced after a machine has written, deleted.
func TestCopyLife(t *testing.T) {
	t.Parallel()
	w := New(t, realProgram(t), Options{})
	w.Pools(16)
	env := w.Create("shop", "beijing", Disk(1, 4*mib))
	number, operation := w.Save(env, "Shop", "beijing", "chicago", "sydney")
	w.Done(operation)
	w.Verified(number, 1, "beijing", "chicago", "sydney")
	w.Region("beijing").WriteDisk(env, "web/root", Disk(2, 1*mib), 2*mib)
	w.Done(w.Replace(number, env))
	w.Verified(number, 2, "beijing", "chicago", "sydney")
	w.Clean()
}
