package testenv

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// listedInstance is a line of template instances.
type listedInstance struct {
	Region    string `json:"region"`
	State     string `json:"state"`
	RemovedAt string `json:"removed_at"`
	Cause     struct {
		Code string `json:"code"`
	} `json:"cause"`
}

// TestDeleteEverywhere: capability 12: a template is deleted while one of its
// three regions cannot be reached: the others hold none of its bytes any more, that
// region is shown with its removal pending, and finishes when it is back.
func TestDeleteEverywhere(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{})
	w.Pools(8)
	content := Disk(21, 2*mib)
	env := w.Create("shop", "beijing", content)
	number, operation := w.Save(env, "Shop", "beijing", "chicago", "sydney")
	w.Done(operation)
	w.run(tombolo.Path, nil, "env", "delete", env, "--yes") // the region would keep its bytes for it
	before := w.Verified(number, 1, "beijing", "chicago", "sydney")
	needles := [][]byte{needle(content, 0), needle(content, 13), needle(content, 31)}
	holds := func(region string) (n int) {
		for _, needle := range needles {
			n += len(stored(t, w.Region(region).Dir, needle))
		}
		return n
	}
	for _, r := range w.Regions() {
		if holds(r) == 0 {
			t.Fatalf("%s does not hold what it is said to hold", r)
		}
	}

	w.Region("sydney").Process.Kill()
	r := w.CLI(tombolo.Path, "template", "delete", number, "--yes", "--timeout", "3s", "-q", "-o", "json")
	if r.Exit != 7 {
		t.Fatalf("deleted while a region is away: exit %d: %s%s", r.Exit, r.Out, r.Err)
	}
	w.Until(number, "the regions that are there do not finish", func(at Where) bool { return len(at.Regions) == 1 })
	for _, r := range []string{"beijing", "chicago"} {
		if holds(r) > 0 {
			t.Errorf("%s still holds bytes of what is deleted", r)
		}
	}

	// The one that is away is shown, with what it waits for, and since when.
	var at struct {
		Deleted string `json:"deleted_at"`
		Regions []listedInstance
	}
	w.run(tombolo.Path, &at, "where", number)
	if len(at.Regions) != 1 || at.Regions[0].Region != "sydney" || at.Regions[0].State != "removing" || at.Regions[0].Cause.Code != "pending-removal" || at.Deleted == "" {
		t.Errorf("while sydney is away: %s", JSON(at))
	}
	states := w.instances(tombolo.Path, number)
	if len(states) != 3 || states["beijing"].State != "removed" || states["beijing"].RemovedAt == "" || states["sydney"].RemovedAt != "" {
		t.Errorf("the index: %s", JSON(states))
	}
	if r := w.CLI(tombolo.Path, "template", "instantiate", number, "--region", "sydney", "-q", "-o", "json"); r.Exit != 3 {
		t.Errorf("what is deleted can be used: exit %d: %s%s", r.Exit, r.Out, r.Err)
	}
	if holds("sydney") == 0 {
		t.Error("sydney holds nothing, though its agent does not run")
	}

	// It comes back and finishes, without being asked again.
	var deletion struct{ Items []Operation }
	w.run(tombolo.Path, &deletion, "operation", "ls")
	i := slices.IndexFunc(deletion.Items, func(o Operation) bool { return string(o.Template) == number && !o.Ended })
	if i < 0 {
		t.Fatalf("the deletion is not among the operations: %s", JSON(deletion))
	}
	w.Region("sydney").Start()
	w.run(tombolo.Path, nil, "operation", "wait", string(deletion.Items[i].ID))
	if holds("sydney") > 0 {
		t.Error("sydney still holds bytes of what is deleted")
	}
	for region, i := range w.instances(tombolo.Path, number) {
		if i.State != "removed" || i.RemovedAt == "" {
			t.Errorf("%s is %s", region, JSON(i))
		}
	}
	r = w.CLI(tombolo.Path, "where", number, "-o", "json")
	if r.Exit != 3 || !strings.Contains(r.Err, "was deleted at "+at.Deleted) || !strings.Contains(r.Err, "template-deleted") {
		t.Errorf("where after the deletion at %s: exit %d: %s", at.Deleted, r.Exit, r.Err)
	}

	// As of before it is as it was.
	var then Where
	w.run(tombolo.Path, &then, "where", number, "--as-of", strconv.FormatUint(before.Position, 10))
	if JSON(then.Regions) != JSON(before.Regions) || then.Active != 1 {
		t.Errorf("as of %d it was %s, and is now said to have been %s", before.Position, JSON(before), JSON(then))
	}
	for _, r := range w.Regions() {
		if p := w.PoolOf(r); p.Free != p.Size {
			t.Errorf("nothing is left, and yet addresses of %s are held: %+v", r, p)
		}
	}
	w.Clean()
}

// instances are those that a template ever had, by region.
func (w *World) instances(tombolo, number string) map[string]listedInstance {
	w.t.Helper()
	var raw json.RawMessage
	w.run(tombolo, &raw, "template", "instances", number)
	var all struct{ Items []listedInstance }
	if err := json.Unmarshal(raw, &all); err != nil {
		w.t.Fatal(err)
	}
	out := map[string]listedInstance{}
	for _, i := range all.Items {
		out[i.Region] = i
	}
	return out
}
