package testenv

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// TestReplaceReadersNeverSeeAMix: capability 27: eight readers, each a process,
// poll all regions while a template is replaced 250 times, or a thousand times
// (make soak), and agents are killed at random. The lower position never has the higher version, equal
// positions agree, no answer is a mix, and a region that cannot reach a position
// says that it is behind. TOMBOLO_SEED repeats a run's kills.
func TestReplaceReadersNeverSeeAMix(t *testing.T) {
	t.Parallel()
	replacements, timeout := 250, 20*time.Minute
	if os.Getenv("TOMBOLO_SOAK") != "" {
		replacements, timeout = 1000, time.Hour
	}
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("TOMBOLO_SEED"); given != "" {
		n, err := strconv.ParseUint(given, 10, 64)
		if err != nil {
			t.Fatalf("TOMBOLO_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("TOMBOLO_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 27))
	w := New(t, realProgram(t), Options{Timeout: timeout, Durable: true})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(1, 64<<10))
	number, operation := w.Save(env, "Shop", "beijing", "chicago", "sydney")
	w.Done(operation)
	stop := w.Supervise()
	defer stop()
	r := w.read(t, 8, number)

	start, kills := time.Now(), 0
	for n := range replacements {
		var a accepted
		if err := w.Client().Do(w.Context(), "POST", "/v1/templates/"+number+"/replace", map[string]any{"environment": env, "policy": "all"}, &a); err != nil {
			t.Fatal(err)
		}
		if random.IntN(10) == 0 {
			// After any of the replacement's some thirty events.
			after := a.Sequence + random.Uint64N(30)
			if err := w.Client().Get(w.Context(), fmt.Sprintf("/v1/regions?after=%d", after), nil); err != nil {
				t.Fatal(err)
			}
			w.Agents[w.Regions()[random.IntN(3)]].process().Kill()
			kills++
		}
		w.Done(a.Operation)
		if n == replacements/2 {
			w.fallBehind(t, number, r)
		}
	}
	t.Logf("%d replacements, %d kills of agents, in %s", replacements, kills, time.Since(start).Round(time.Second))
	w.Verified(number, replacements+1, "beijing", "chicago", "sydney")
	for i := range r.files {
		for r.linesOf(i, fmt.Sprintf(`"active":%d,`, replacements+1)) == 0 {
			if err := pause(w.Context()); err != nil {
				t.Fatalf("reader %d does not see the last version: %v", i, err)
			}
		}
	}
	r.end()
	stop()
	consistent(t, r.histories(), w.Regions(), replacements+1)
	for region, bound := range map[string]int{"beijing": 1, "chicago": 0, "sydney": 0} {
		if p := w.PoolOf(region); p.Reserved != 1 || p.Bound != bound {
			t.Errorf("one instance holds one address: %+v", p)
		}
	}
	w.Clean()
}

// fallBehind cuts a region off the control plane until a reader was told by it
// that it is behind what the reader knows from others.
func (w *World) fallBehind(t *testing.T, number string, r *readers) {
	t.Helper()
	link := w.Region("chicago").Bus
	link.Cut()
	defer link.Heal()
	before := r.lines(`"region":"chicago"`, `"code":"behind"`)
	// Something that the other regions hear of.
	for _, protected := range []bool{true, false} {
		if err := w.Client().Do(w.Context(), "POST", "/v1/templates/"+number+"/protect", map[string]bool{"protected": protected}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for r.lines(`"region":"chicago"`, `"code":"behind"`) == before {
		if err := pause(w.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// consistent holds all answers of all readers against each other.
func consistent(t *testing.T, histories [][]seen, regions []string, last int) {
	t.Helper()
	var all []seen
	refused := map[string]int{}
	for i, history := range histories {
		position, active := uint64(0), 0
		answered := map[string]int{}
		for _, s := range history { // in the reader's own order
			if s.Code != "" {
				refused[s.Code]++
				continue
			}
			if s.Position < position || s.Position < s.After || s.Active < active {
				t.Fatalf("reader %d was told position %d, version %d by %s, after position %d, version %d", i, s.Position, s.Active, s.Region, position, active)
			}
			position, active = s.Position, s.Active
			answered[s.Region]++
			if s.Answer != nil {
				unmixed(t, s)
			}
			all = append(all, s)
		}
		for _, region := range regions {
			if answered[region] == 0 {
				t.Errorf("reader %d had no answer of %s", i, region)
			}
		}
		if active != last {
			t.Errorf("reader %d saw version %d at the end, not %d", i, active, last)
		}
	}
	t.Logf("%d answers, and besides %v", len(all), refused)
	for code := range refused {
		if code != unreachable && code != "behind" {
			t.Errorf("regions refused %d times with %s", refused[code], code)
		}
	}
	if refused["behind"] == 0 || refused[unreachable] == 0 {
		t.Errorf("no region was ever behind, or none was ever away: %v", refused)
	}
	slices.SortStableFunc(all, func(a, b seen) int { return int(a.Position) - int(b.Position) })
	versions := map[int]bool{}
	for i, s := range all {
		versions[s.Active] = true
		if i == 0 {
			continue
		}
		before := all[i-1]
		if s.Active < before.Active {
			t.Fatalf("at position %d %s said version %d, at position %d %s said version %d", before.Position, before.Region, before.Active, s.Position, s.Region, s.Active)
		}
		if s.Position == before.Position && s.Digest != before.Digest {
			t.Fatalf("%s and %s answered position %d differently: %s and %s", before.Region, s.Region, s.Position, before.Digest, s.Digest)
		}
	}
	if len(versions) < last/2 {
		t.Errorf("the readers saw %d versions of %d", len(versions), last)
	}
}

// unmixed demands that an answer is of one version: what it says of each region's
// copy fits the version that it says is active, in every region.
func unmixed(t *testing.T, s seen) {
	t.Helper()
	var answer Where
	if err := json.Unmarshal(s.Answer, &answer); err != nil {
		t.Fatal(err)
	}
	digests := map[int]string{}
	holders := map[string]bool{}
	for _, r := range answer.Regions {
		if r.Active != (r.Version == answer.Active) {
			t.Fatalf("%s gave a mix: %s", s.Region, s.Answer)
		}
		if before, ok := digests[r.Version]; ok && r.Digest != "" && before != r.Digest {
			t.Fatalf("%s gave one version with two contents: %s", s.Region, s.Answer)
		}
		if r.Digest != "" {
			digests[r.Version] = r.Digest
		}
		if r.Active && r.Verified {
			holders[r.Region] = true
		}
	}
	// Under "all", what is active is held by all.
	if len(holders) != 3 {
		t.Fatalf("%s said that version %d is active where not all hold it: %s", s.Region, answer.Active, s.Answer)
	}
}

// TestReplaceFailureOfOneCopyLeavesAllOld: capability 27: where one region cannot
// take the new version, every region goes on with the old one; once it can, all
// move.
func TestReplaceFailureOfOneCopyLeavesAllOld(t *testing.T) {
	t.Parallel()
	kind := ending{t.TempDir()}
	w := New(t, kind, Options{})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(1, 256<<10))
	number, operation := w.Save(env, "Shop", "beijing", "chicago", "sydney")
	w.Done(operation)
	w.Region("beijing").WriteDisk(env, "web/root", Disk(2, 64<<10), 0)
	if err := kind.dir("sydney").Fail("store.Publish", chunks.StoreFull); err != nil {
		t.Fatal(err)
	}
	operation = w.Replace(number, env)
	o, err := w.Client().Finished(w.Context(), operation)
	if err != nil || o.State != "partly-succeeded" {
		t.Fatalf("a replacement that one region cannot take: %v %s", err, JSON(o))
	}
	w.Until(number, "chicago has no copy of version 2", func(at Where) bool {
		return slices.ContainsFunc(at.Regions, func(r WhereRegion) bool { return r.Region == "chicago" && r.Version == 2 && r.Verified })
	})
	position := w.Position()
	for _, region := range w.Regions() {
		at, err := w.Region(region).Client().Where(w.Context(), number, fmt.Sprintf("?after=%d", position))
		if err != nil {
			t.Fatal(err)
		}
		old := 0
		for _, r := range at.Regions {
			if r.Version == 1 && r.Active && r.Verified {
				old++
			}
		}
		if at.Active != 1 || old != 3 {
			t.Errorf("%s does not have version 1 everywhere: %s", region, JSON(at))
		}
	}
	if err := kind.dir("sydney").Mend("store.Publish"); err != nil {
		t.Fatal(err)
	}
	if err := w.Client().Do(w.Context(), "POST", "/v1/operations/"+operation+"/retry", struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	if o, err := w.Client().Await(w.Context(), operation, func(o Operation) bool { return o.State == "succeeded" }); err != nil {
		t.Fatalf("%v: %s", err, JSON(o))
	}
	w.Verified(number, 2, "beijing", "chicago", "sydney")
	w.Clean()
}
