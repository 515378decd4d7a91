package testenv

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/projections"
)

// TestReadsRebuilt: capability 101, 104: the read models of the control plane and
// of a region are thrown away and built again from the journal: every answer, now
// and as of then, is as before.
func TestReadsRebuilt(t *testing.T) {
	t.Parallel()
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(1, 256<<10))
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	w.Done(operation)
	first := w.Verified(number, 1, "beijing", "sydney")
	between := time.Now().UTC()
	w.Done(w.Replace(number, env))
	w.Verified(number, 2, "beijing", "sydney")
	w.Rest()

	position := w.Position()
	queries := []string{
		fmt.Sprintf("/where?as-of=%d", position),
		fmt.Sprintf("/where?as-of=%d", first.Position),
		"/where?as-of=" + url.QueryEscape(between.Format(time.RFC3339Nano)),
		fmt.Sprintf("/instances?as-of=%d", position),
		fmt.Sprintf("?as-of=%d", position),
	}
	ask := func(c *Client) (out []string) {
		for _, q := range queries {
			var raw map[string]any
			if err := c.Get(w.Context(), "/v1/templates/"+number+q, &raw); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
			delete(raw, "lag")
			out = append(out, JSON(raw))
		}
		return out
	}
	before := ask(w.Client())
	if at, err := w.Client().Where(w.Context(), number, "?as-of="+url.QueryEscape(between.Format(time.RFC3339Nano))); err != nil || at.Active != 1 {
		t.Errorf("at %s version 1 was active: %v %s", between, err, JSON(at))
	}

	sydney := w.Region("sydney")
	sydney.Process.Kill()
	w.Server.Kill()
	for _, dir := range []string{w.serverDir(), sydney.Dir} {
		if err := os.RemoveAll(filepath.Join(dir, "reads")); err != nil {
			t.Fatal(err)
		}
	}
	w.StartServer()
	sydney.Start()
	for name, c := range map[string]*Client{"the control plane, rebuilt": w.Client(), "sydney, rebuilt": sydney.Client(), "beijing": w.Region("beijing").Client()} {
		for i, got := range ask(c) {
			if got != before[i] {
				t.Errorf("%s answers %s with\n%s\nand before it was\n%s", name, queries[i], got, before[i])
			}
		}
	}
	// What was decided stands, and work goes on.
	w.Done(w.Replace(number, env))
	w.Verified(number, 3, "beijing", "sydney")
	sameDigests(t, w)
}

// sameDigests ends everything and demands that the read models of all processes
// have the same content at the same position.
func sameDigests(t *testing.T, w *World) {
	t.Helper()
	position := w.Position()
	dirs := []string{w.serverDir()}
	for _, r := range w.Regions() {
		a := w.Region(r)
		if err := a.Client().Get(w.Context(), fmt.Sprintf("/v1/regions?after=%d", position), nil); err != nil {
			t.Fatal(err)
		}
		a.Process.Interrupt()
		if code := a.Process.Exit(w.Context()); code != 0 {
			t.Errorf("the agent of %s ended with %d", r, code)
		}
		dirs = append(dirs, a.Dir)
	}
	w.Server.Interrupt()
	if code := w.Server.Exit(w.Context()); code != 0 {
		t.Errorf("the server ended with %d", code)
	}
	digests := map[string]string{}
	for _, dir := range dirs {
		store, err := projections.Open(filepath.Join(dir, "reads"), projections.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		feed, err := store.Feed(projections.All()...)
		if err != nil {
			t.Fatal(err)
		}
		view, err := feed.AsOf(position)
		if err != nil {
			t.Fatal(err)
		}
		defer view.Close()
		for _, p := range projections.All() {
			digest, err := view.Digest(p.Name())
			if err != nil {
				t.Fatal(err)
			}
			if before, ok := digests[p.Name()]; ok && before != string(digest) {
				t.Errorf("%s at position %d is %s in %s and %s elsewhere", p.Name(), position, digest, dir, before)
			}
			digests[p.Name()] = string(digest)
		}
	}
}
