package testenv

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events/graph"
)

// TestTwentyEnvironmentsEqualTheSavedState: capability 3: a save gives a number,
// version 1 and one copy, in the environment's region; what is made of it, twenty
// times and in two regions, is what was saved in everything but what is bound to
// a region.
func TestTwentyEnvironmentsEqualTheSavedState(t *testing.T) {
	t.Parallel()
	const size = 512 << 10
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing", "sydney"}})
	w.Pools(32)
	content := Disk(51, size)
	env := w.Create("shop", "beijing", content)
	var saved struct {
		ID      string
		Version int
		Regions []string
	}
	w.run(tombolo.Path, &saved, "template", "create", "--from-env", "shop", "--name", "Shop")
	if len(saved.ID) != 8 || saved.Version != 1 || !slices.Equal(saved.Regions, []string{"beijing"}) {
		t.Fatalf("saved is %s", JSON(saved))
	}
	if at := w.instances(tombolo.Path, saved.ID); len(at) != 1 || at["beijing"].State != "ready" {
		t.Fatalf("saved is held so: %s", JSON(at))
	}
	var template shown
	w.run(tombolo.Path, &template, "template", "show", saved.ID)
	w.Region("beijing").WriteDisk(env, "web/root", Disk(52, size), 0) // what comes later is no part of it
	w.run(tombolo.Path, nil, "template", "regions", saved.ID, "--add", "sydney")

	var mu sync.Mutex
	regionOf := map[string]string{}
	var all sync.WaitGroup
	for i := range 20 {
		region := []string{"beijing", "sydney"}[i%2]
		all.Go(func() {
			r := w.CLI(tombolo.Path, "template", "instantiate", saved.ID, "--region", region, "--name", fmt.Sprintf("copy-%d", i), "-q", "-o", "jsonpath=$.environment")
			if r.Exit != 0 {
				t.Errorf("copy %d: exit %d: %s", i, r.Exit, r.Err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			regionOf[strings.TrimSpace(r.Out)] = region
		})
	}
	all.Wait()
	addresses := map[string]bool{}
	for id, region := range regionOf {
		var made struct {
			Content *graph.Graph
			Map     []struct{ Resource, To string }
		}
		w.run(tombolo.Path, &made, "env", "show", id)
		if len(made.Map) != 1 || made.Map[0].Resource != "web.public" || addresses[made.Map[0].To] {
			t.Errorf("%s has the map %s", id, JSON(made.Map))
			continue
		}
		addresses[made.Map[0].To] = true
		if JSON(made.Content) != JSON(template.Content) {
			t.Errorf("%s consists of %s, saved was %s", id, JSON(made.Content), JSON(template.Content))
		}
		if !bytes.Equal(w.Region(region).ReadDisk(id, "web/root", size), content) {
			t.Errorf("the disk of %s is not the one that was saved", id)
		}
	}
	if len(regionOf) != 20 || len(addresses) != 20 {
		t.Errorf("%d environments with %d addresses", len(regionOf), len(addresses))
	}
}

// TestRemovedRegionHoldsNothing: capabilities 8, 9: a region that is added holds
// the bytes; one that is removed holds none, gives its address back, and the
// template stays what it is elsewhere.
func TestRemovedRegionHoldsNothing(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{})
	w.Pools(8)
	content := Disk(61, 2*mib)
	env := w.Create("shop", "beijing", content)
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	w.Done(operation)
	holds := func(region string) int { return len(stored(t, w.Region(region).Dir, needle(content, 17))) }
	if holds("sydney") == 0 || holds("chicago") != 0 {
		t.Error("sydney alone is to hold it besides beijing")
	}
	w.run(tombolo.Path, nil, "template", "regions", number, "--set", "beijing,chicago")
	at := w.Verified(number, 1, "beijing", "chicago")
	if holds("chicago") == 0 {
		t.Error("chicago was added, and does not hold the bytes")
	}
	if holds("sydney") != 0 {
		t.Error("sydney was removed, and holds the bytes")
	}
	if i := w.instances(tombolo.Path, number)["sydney"]; i.State != "removed" || i.RemovedAt == "" || slices.ContainsFunc(at.Regions, func(r WhereRegion) bool { return r.Region == "sydney" }) {
		t.Errorf("sydney is %s", JSON(i))
	}
	if p := w.PoolOf("sydney"); p.Free != p.Size {
		t.Errorf("sydney keeps an address: %+v", p)
	}
	var m made
	w.run(tombolo.Path, &m, "template", "instantiate", number, "--region", "chicago", "--name", "Elsewhere")
	if m.Bytes != 0 || !bytes.Equal(w.Region("chicago").ReadDisk(m.Environment, "web/root", len(content)), content) {
		t.Errorf("in chicago it is another one: %s", JSON(m))
	}
}

// TestCopiesInParallel: capability 16: the copies to three regions take hardly
// longer than the longest of them; when one region is killed the others finish;
// and what they hold is what copies one after the other give.
func TestCopiesInParallel(t *testing.T) {
	t.Parallel()
	const size = 12 * mib
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing", "chicago", "sydney", "tokyo"}})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(71, size))
	others := []string{"chicago", "sydney", "tokyo"}
	w.Region("beijing").Transfer.Slow(mib) // seconds, beside which the regions' starts do not count
	number, operation := w.Save(env, "Shop", w.Regions()...)
	w.Done(operation)
	together := w.Verified(number, 1, w.Regions()...)
	w.Region("beijing").Transfer.Slow(0)
	wall, longest := w.copyTimes(operation)
	t.Logf("three copies of %d bytes: %s, the longest %s", size, wall, longest)
	if wall*10 > longest*13 {
		t.Errorf("three copies took %s, the longest %s", wall, longest)
	}

	// One after the other: the same content.
	sequential, operation := w.Save(env, "One by one", "beijing")
	w.Done(operation)
	for _, r := range others {
		w.run(tombolo.Path, nil, "template", "regions", sequential, "--add", r)
	}
	one := w.Verified(sequential, 1, w.Regions()...)
	for i := range one.Regions {
		if one.Regions[i].Digest != together.Regions[i].Digest {
			t.Errorf("one after the other %s, together %s", JSON(one.Regions[i]), JSON(together.Regions[i]))
		}
	}

	// One of three is killed in the middle: the others finish without it.
	w.Region("beijing").WriteDisk(env, "web/root", Disk(72, size), 0)
	w.Region("beijing").Transfer.Slow(2 * mib)
	begun := w.Region("beijing").Transfer.Passed(size / 2)
	operation = w.Replace(number, env)
	await(t, w.Context(), "no copy begins", begun)
	w.Region("tokyo").Process.Kill()
	w.Until(number, "the others do not finish", func(at Where) bool {
		n := 0
		for _, r := range at.Regions {
			if r.Version == 2 && r.Verified && slices.Contains(others[:2], r.Region) {
				n++
			}
		}
		return n == 2
	})
	w.Region("beijing").Transfer.Slow(0)
	w.Region("tokyo").Start()
	w.Done(operation)
	w.Verified(number, 2, w.Regions()...)
	w.Clean()
}

// copyTimes are how long an operation's copies took from the first start to the
// last end, and the longest of them, by the times that the journal stored.
func (w *World) copyTimes(operation string) (wall, longest time.Duration) {
	w.t.Helper()
	var o Operation
	if err := w.Client().Get(w.ctx, "/v1/operations/"+operation, &o); err != nil {
		w.t.Fatal(err)
	}
	started, first, last := map[string]time.Time{}, time.Time{}, time.Time{}
	copies := map[string]bool{}
	for _, f := range w.Facts(1, "work.*") {
		if f.Data["operation"] == operation && f.Data["kind"] == "copy" {
			copies[f.Subject] = true
		}
		switch at := f.Stored; {
		case !copies[f.Subject] || strings.Contains(f.Subject, ".beijing."):
		case f.Type == "work.started":
			started[f.Subject] = at
			if first.IsZero() {
				first = at
			}
		case f.Type == "work.done":
			longest = max(longest, at.Sub(started[f.Subject]))
			last = at
		}
	}
	if len(started) != 3 {
		w.t.Fatalf("%d copies were started", len(started))
	}
	return last.Sub(first), longest
}
