package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/testenv/faults"
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

// underway is a copy that has got going over a slow link from beijing to sydney.
type underway struct {
	number, operation string
	version           int
	before            int64 // bytes that had come over the link
}

// copying starts a template in two regions over a slow link, and returns once so
// many bytes of the copy have passed.
func copying(t *testing.T, w *World, size, passed int) underway {
	t.Helper()
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(7, size))
	link := w.Region("beijing").Transfer
	link.Slow(int64(size) / 2)
	mark := link.Passed(int64(passed))
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	await(t, w.Context(), "the copy does not get going", mark)
	return underway{number, operation, 1, 0}
}

// replacing is copying, of a second version of which every byte is new.
func replacing(t *testing.T, w *World, size, passed int) underway {
	t.Helper()
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(7, size))
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	w.Done(operation)
	w.Region("beijing").WriteDisk(env, "web/root", Disk(8, size), 0)
	link := w.Region("beijing").Transfer
	before := link.Down()
	link.Slow(int64(size) / 2)
	mark := link.Passed(int64(passed))
	operation = w.Replace(number, env)
	await(t, w.Context(), "the copy does not get going", mark)
	return underway{number, operation, 2, before}
}

// copiedOnce demands that the version is held in both regions, that hardly a
// byte was fetched twice, that no address was taken twice, and that nothing is
// left over.
func copiedOnce(t *testing.T, w *World, c underway, size int) {
	t.Helper()
	w.Region("beijing").Transfer.Slow(0)
	w.Done(c.operation)
	w.Verified(c.number, c.version, "beijing", "sydney")
	if got, most := w.Region("beijing").Transfer.Down()-c.before, int64(size)*11/10; got > most || got < int64(size) {
		t.Errorf("%d bytes came over the link for %d bytes of incompressible disk: want no more than %d", got, size, most)
	}
	orders, done := map[string]bool{}, 0
	for _, f := range w.Facts(1, "work.ordered", "work.done") {
		if f.Type == "work.ordered" && f.Data["kind"] == "copy" && strings.Contains(f.Subject, ".sydney.") {
			orders[f.Subject] = true
		}
		if f.Type == "work.done" && orders[f.Subject] {
			done++
		}
	}
	if done != c.version {
		t.Errorf("the copies of %d versions were reported done %d times", c.version, done)
	}
	asBefore(t, w)
}

// asBefore demands, of a world with one environment in beijing and one template
// in beijing and sydney, that no lease is lost or taken twice and that no host
// has anything that no order owns.
func asBefore(t *testing.T, w *World) {
	t.Helper()
	w.Rest()
	if p := w.PoolOf("sydney"); p.Reserved != 1 || p.Bound != 0 {
		t.Errorf("one instance holds one address: %+v", p)
	}
	if p := w.PoolOf("beijing"); p.Reserved != 1 || p.Bound != 1 {
		t.Errorf("one instance and one environment hold an address each: %+v", p)
	}
	w.Clean()
}

// TestCopyAgentKilledGoesOn: capability 100, R10: what was fetched before a kill
// is not fetched again.
func TestCopyAgentKilledGoesOn(t *testing.T) {
	t.Parallel()
	const size = 24 * mib
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
	c := copying(t, w, size, size/2)
	w.Region("sydney").Process.Kill()
	w.Region("sydney").Start()
	copiedOnce(t, w, c, size)
}

// TestCopyLinkCutGoesOn: the link breaks at 60 % of a first copy, and of a
// replacement's, and comes back.
func TestCopyLinkCutGoesOn(t *testing.T) {
	t.Parallel()
	const size = 24 * mib
	for name, begin := range map[string]func(*testing.T, *World, int, int) underway{"copy": copying, "replace": replacing} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
			c := begin(t, w, size, size*6/10)
			w.Region("beijing").Transfer.Cut()
			// The agent notices, and its next try fails as well, before the link is back.
			refused := w.Region("beijing").Transfer.Refused(2)
			await(t, w.Context(), "nobody tries the link again", refused)
			w.Region("beijing").Transfer.Heal()
			copiedOnce(t, w, c, size)
		})
	}
}

// takeOver has another agent, over a copy of a paused one's directory, take its
// region. The one that was paused is given, still so.
func takeOver(t *testing.T, w *World, region string) *Process {
	t.Helper()
	a := w.Region(region)
	sleeper := a.Process
	second := filepath.Join(w.Dir, region+"-2")
	if out, err := exec.Command("cp", "-a", a.Dir, second).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, own := range []string{"agent-id", "nbd.sock"} {
		if err := os.Remove(filepath.Join(second, own)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	// Another agent is refused, and says who it is.
	refused := a.Launch(second)
	if code := refused.Exit(w.Context()); code != 1 || !strings.Contains(refused.Log(), "region-owned-by-another-agent") {
		t.Fatalf("exit %d: %s", code, refused.Log())
	}
	id, err := os.ReadFile(filepath.Join(second, "agent-id"))
	if err != nil {
		t.Fatal(err)
	}
	if r := w.CLI(realProgram(t).Path, "region", "takeover", region, "--agent", strings.TrimSpace(string(id))); r.Exit != 0 {
		t.Fatalf("takeover: %+v", r)
	}
	a.Launch(second)
	a.Ready()
	return sleeper
}

// wakesInVain lets the one that was taken over go on, and demands that it ends
// and changes nothing.
func wakesInVain(t *testing.T, w *World, sleeper *Process, number string, version int) {
	t.Helper()
	before := w.Verified(number, version, "beijing", "sydney")
	sleeper.Resume()
	if code := sleeper.Exit(w.Context()); code != 1 || !strings.Contains(sleeper.Log(), "stale-epoch") {
		t.Fatalf("the one that was taken over: exit %d: %s", code, sleeper.Log())
	}
	after := w.Verified(number, version, "beijing", "sydney")
	if JSON(before.Regions) != JSON(after.Regions) {
		t.Errorf("the one that woke up changed something:\n%s\n%s", JSON(before), JSON(after))
	}
	asBefore(t, w)
}

// TestCopyPausedPastTakeover: an agent stands still in the middle of a copy,
// another one takes its region over and finishes, and the first wakes up.
func TestCopyPausedPastTakeover(t *testing.T) {
	t.Parallel()
	const size = 12 * mib
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
	c := copying(t, w, size, size/2)
	w.Region("sydney").Process.Pause()
	sleeper := takeOver(t, w, "sydney")
	w.Region("beijing").Transfer.Slow(0)
	w.Done(c.operation)
	wakesInVain(t, w, sleeper, c.number, 1)
}

// TestPausedPastTakeover: capability 100: the same where the step at which the
// agent stands still is chosen, of a save and of a replacement.
func TestPausedPastTakeover(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, region, step string
		version            int
	}{
		{"save", "beijing", faults.After("store.Publish"), 1},
		{"replace source", "beijing", faults.Before("host.rebase-volumes"), 2},
		{"replace target", "sydney", faults.Before("command.report-done"), 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			kind := ending{t.TempDir()}
			w := New(t, kind, Options{Regions: []string{"beijing", "sydney"}})
			w.Pools(8)
			env := w.Create("shop", "beijing", Disk(9, mib))
			act := func() (number, operation string) { return w.Save(env, "Shop", "beijing", "sydney") }
			if c.version == 2 {
				number, operation := act()
				w.Done(operation)
				w.Rest()
				w.Region("beijing").WriteDisk(env, "web/root", Disk(10, mib), 0)
				act = func() (string, string) { return number, w.Replace(number, env) }
			}
			if err := kind.dir(c.region).Pause(c.step); err != nil {
				t.Fatal(err)
			}
			number, operation := act()
			for !kind.dir(c.region).Paused() {
				if err := pause(w.Context()); err != nil {
					t.Fatalf("nobody comes to %s: %v", c.step, err)
				}
			}
			sleeper := takeOver(t, w, c.region)
			w.Done(operation)
			wakesInVain(t, w, sleeper, number, c.version)
		})
	}
}

// TestCopyRegionUnreachable: R12, R27: a region that cannot be reached is
// pending, keeps nobody else waiting, and gets its copy when it is back; a
// replacement under "all" waits for it.
func TestCopyRegionUnreachable(t *testing.T) {
	t.Parallel()
	w := New(t, realProgram(t), Options{})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(3, mib))
	w.Region("sydney").Bus.Cut()
	number, operation := w.Save(env, "Shop", "beijing", "chicago", "sydney")
	of := func(at Where, region string, version int) WhereRegion {
		for _, r := range at.Regions {
			if r.Region == region && r.Version == version {
				return r
			}
		}
		return WhereRegion{}
	}
	at := w.Until(number, "chicago has no copy", func(at Where) bool { return of(at, "chicago", 1).Verified })
	if s := of(at, "sydney", 1); !s.Wanted || s.Observed || s.Verified || at.Active != 1 {
		t.Errorf("sydney cannot be reached: %s", JSON(at))
	}
	w.Region("sydney").Bus.Heal()
	w.Done(operation)
	w.Verified(number, 1, "beijing", "chicago", "sydney")

	w.Region("sydney").Bus.Black()
	w.Region("beijing").WriteDisk(env, "web/root", Disk(4, 64<<10), 128<<10)
	operation = w.Replace(number, env)
	at = w.Until(number, "chicago has no copy of version 2", func(at Where) bool { return of(at, "chicago", 2).Verified })
	if at.Active != 1 {
		t.Errorf("the reference moved before sydney had version 2: %s", JSON(at))
	}
	w.Region("sydney").Bus.Heal()
	w.Done(operation)
	w.Verified(number, 2, "beijing", "chicago", "sydney")
	w.Clean()
}

// TestServerRestartsUnderAgents: agents and their work go on when the control
// plane is killed and comes back, and its clients find their operation.
func TestServerRestartsUnderAgents(t *testing.T) {
	t.Parallel()
	const size = 12 * mib
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
	c := copying(t, w, size, size/2)
	w.Server.Kill()
	w.StartServer()
	copiedOnce(t, w, c, size)
}
