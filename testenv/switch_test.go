package testenv

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// soak is whether the long variants are wanted (make soak).
func soak() bool { return os.Getenv("TOMBOLO_SOAK") != "" }

// seen is one answer to "which version?".
type seen struct {
	reader   string
	position uint64
	active   int
	answer   string
}

// TestReplaceReadersNeverSeeAMix: capability 27: readers of every region and of
// the control plane, each asking for what it knows of already, while versions are
// replaced and agents are killed: the lower position never has the higher
// version, equal positions agree, and no answer is a mix.
func TestReplaceReadersNeverSeeAMix(t *testing.T) {
	t.Parallel()
	replaces, timeout := 8, 2*time.Minute
	if soak() {
		replaces, timeout = 1000, time.Hour
	}
	w := New(t, realProgram(t), Options{Timeout: timeout})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(1, 64<<10))
	number, operation := w.Save(env, "Shop", "beijing", "chicago", "sydney")
	w.Done(operation)
	stop := w.Supervise()
	defer stop()

	var mu sync.Mutex
	var all []seen
	done := make(chan struct{})
	var readers sync.WaitGroup
	read := func(name string, client func() *Client) {
		readers.Go(func() {
			after := uint64(0)
			for {
				select {
				case <-done:
					return
				default:
				}
				var raw map[string]any
				err := client().Once(w.Context(), "GET", "/v1/templates/"+number+"/where?after="+strconv.FormatUint(after, 10), nil, &raw)
				if err != nil {
					if w.Context().Err() != nil || pause(w.Context()) != nil {
						return
					}
					continue
				}
				delete(raw, "lag") // of the moment, not of the answer
				position, _ := raw["position"].(float64)
				active, _ := raw["active_version"].(float64)
				answer, err := json.Marshal(raw)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, seen{name, uint64(position), int(active), string(answer)})
				mu.Unlock()
				after = uint64(position)
			}
		})
	}
	for i := range 8 {
		if i%4 == 3 {
			read(fmt.Sprintf("reader %d of the control plane", i), w.Client)
			continue
		}
		region := w.Agents[w.Regions()[i%4]]
		read(fmt.Sprintf("reader %d of %s", i, region.Region), region.Client)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for n := range replaces {
		o := w.Replace(number, env)
		if n%3 == 1 {
			w.Agents[w.Regions()[random.IntN(3)]].process().Kill()
		}
		w.Done(o)
	}
	close(done)
	readers.Wait()
	stop()
	consistent(t, all, replaces+1)
	w.Verified(number, replaces+1, "beijing", "chicago", "sydney")
}

// consistent holds all answers of all readers against each other.
func consistent(t *testing.T, all []seen, last int) {
	t.Helper()
	t.Logf("%d answers", len(all))
	at := map[string]seen{}
	for _, s := range all { // in each reader's own order
		if before := at[s.reader]; s.position < before.position || s.active < before.active {
			t.Fatalf("%s saw position %d, version %d, after position %d, version %d", s.reader, s.position, s.active, before.position, before.active)
		}
		at[s.reader] = s
		var answer Where
		if err := json.Unmarshal([]byte(s.answer), &answer); err != nil {
			t.Fatal(err)
		}
		for _, r := range answer.Regions {
			if r.Active != (r.Version == answer.Active) {
				t.Fatalf("%s saw a mix: %s", s.reader, s.answer)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b seen) int { return int(a.position) - int(b.position) })
	versions := map[int]bool{}
	for i, s := range all {
		versions[s.active] = true
		if i == 0 {
			continue
		}
		before := all[i-1]
		if s.active < before.active {
			t.Fatalf("at position %d %s saw version %d, at position %d %s saw version %d", before.position, before.reader, before.active, s.position, s.reader, s.active)
		}
		if s.position == before.position && s.answer != before.answer {
			t.Fatalf("two answers at position %d:\n%s: %s\n%s: %s", s.position, before.reader, before.answer, s.reader, s.answer)
		}
	}
	if len(versions) < last/2 {
		t.Errorf("the readers saw %d versions of %d", len(versions), last)
	}
}
