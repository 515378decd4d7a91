package testenv

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/testenv/faults"
)

// ending runs this test's own binary as the program, with steps that end it.
type ending struct{ root string }

func (e ending) dir(name string) faults.Dir { return faults.Dir(filepath.Join(e.root, name)) }

// Command is this binary.
func (e ending) Command(name string) (string, []string) {
	return os.Args[0], []string{faults.Env + "=" + string(e.dir(name))}
}

// phases are what is done to a template while every step of it ends its process.
func phases() []string { return []string{"create", "save", "replace", "cancel", "delete"} }

// TestFailureMatrix: capability 100: an environment is made, saved and copied,
// replaced, a replacement is cancelled, everything is deleted; and in each of
// these phases every change that an agent makes, every command that it sends and
// every event that the control plane appends ends its process once before it and
// once after it. In the end everything is finished or as before.
func TestFailureMatrix(t *testing.T) {
	t.Parallel()
	kind := ending{t.TempDir()}
	w := New(t, kind, Options{Regions: []string{"beijing", "sydney"}, Timeout: 5 * time.Minute})
	w.Pools(8)
	processes := append(w.Regions(), "server")
	arm := func(phase string) {
		t.Helper()
		for _, p := range processes {
			if err := kind.dir(p).Arm(phase); err != nil {
				t.Fatal(err)
			}
		}
	}
	arm("")
	stop := w.Supervise()
	defer stop()
	start := time.Now()
	rest := func(phase string) {
		t.Helper()
		arm("")
		w.Rest()
		w.Clean()
		t.Logf("%s: %s", phase, time.Since(start).Round(100*time.Millisecond))
	}

	arm("create")
	env := w.Create("shop", "beijing", Disk(1, 512<<10))
	rest("create")
	arm("save")
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	w.Done(operation)
	rest("save")
	w.Verified(number, 1, "beijing", "sydney")

	w.Region("beijing").WriteDisk(env, "web/root", Disk(2, 128<<10), 0)
	arm("replace")
	w.Done(w.Replace(number, env))
	rest("replace")
	w.Verified(number, 2, "beijing", "sydney")

	// A replacement that cannot finish, because no chunk comes through, is cancelled.
	w.Region("beijing").WriteDisk(env, "web/root", Disk(3, 128<<10), 0)
	w.Region("beijing").Transfer.Black()
	operation = w.Replace(number, env)
	w.Until(number, "version 3 is not saved", func(at Where) bool {
		return slices.ContainsFunc(at.Regions, func(r WhereRegion) bool { return r.Version == 3 && r.Region == "beijing" && r.Verified })
	})
	arm("cancel")
	if err := w.Client().Do(w.Context(), "POST", "/v1/operations/"+operation+"/cancel", struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	o, err := w.Client().Finished(w.Context(), operation)
	if err != nil || o.State == "succeeded" {
		t.Errorf("the cancelled replacement: %v: %s", err, JSON(o))
	}
	w.Region("beijing").Transfer.Heal()
	rest("cancel")
	w.Verified(number, 2, "beijing", "sydney")

	arm("delete")
	for _, path := range []string{"/v1/templates/" + number, "/v1/environments/" + env} {
		var a accepted
		if err := w.Client().Do(w.Context(), "DELETE", path, struct{}{}, &a); err != nil {
			t.Fatal(err)
		}
		w.Done(a.Operation)
	}
	rest("delete")
	for _, r := range w.Regions() {
		if p := w.PoolOf(r); p.Free != p.Size {
			t.Errorf("nothing is left, and yet addresses of %s are held: %+v", r, p)
		}
	}
	stop()
	covered(t, kind, processes)
}

// Rest waits until no region has work to do.
func (w *World) Rest() {
	w.t.Helper()
	for after := uint64(0); ; after++ {
		var open struct {
			Position uint64
			Items    []map[string]any
		}
		if err := w.Client().Get(w.ctx, "/v1/work?state=open&after="+strconv.FormatUint(after, 10), &open); err != nil {
			w.t.Fatalf("there is work left: %v: %s", err, JSON(open.Items))
		}
		if len(open.Items) == 0 {
			return
		}
		after = open.Position
	}
}

// covered demands that every step has ended a process.
func covered(t *testing.T, kind ending, processes []string) {
	t.Helper()
	hit := map[string]int{}
	for _, p := range processes {
		spent, err := kind.dir(p).Spent()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range spent {
			_, step, _ := strings.Cut(s, "/")
			hit[step]++
		}
	}
	total := 0
	for _, n := range hit {
		total += n
	}
	t.Logf("%d steps ended a process, %d times in all", len(hit), total)
	reasons := unreached()
	for _, change := range changes(t) {
		why, excused := reasons[change]
		for _, step := range []string{faults.Before(change), faults.After(change)} {
			if hit[step] == 0 && !excused {
				t.Errorf("no run has ended at %s: extend the scenario, or say in unreached why it cannot be", step)
			}
			if hit[step] > 0 && excused {
				t.Errorf("%s is reached, though it is said not to be: %s", step, why)
			}
		}
		delete(reasons, change)
	}
	for change := range reasons {
		t.Errorf("unreached names %s, which there is not", change)
	}
}

// changes lists what can be ended at, from the code.
func changes(t *testing.T) []string {
	t.Helper()
	out := []string{"documents.Put"}
	for _, port := range []struct {
		name string
		of   reflect.Type
	}{{"store", reflect.TypeFor[chunks.Writer]()}, {"session", reflect.TypeFor[chunks.Session]()}} {
		for i := range port.of.NumMethod() {
			out = append(out, port.name+"."+port.of.Method(i).Name)
		}
	}
	for _, c := range region.Changes() {
		out = append(out, "host."+string(c))
	}
	for _, verb := range verbs(t) {
		out = append(out, "command."+verb)
	}
	for _, d := range events.NewRegistry().Definitions() {
		out = append(out, "append."+string(d.Type))
	}
	return out
}

// verbs reads from the agent's source which commands it sends.
func verbs(t *testing.T) []string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	dir := filepath.Join(root, "handlers", "region")
	packages, err := parser.ParseDir(token.NewFileSet(), dir, func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		ast.Inspect(p, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || s.Sel.Name != "command" && s.Sel.Name != "Command" {
				return true
			}
			for _, a := range call.Args {
				if l, ok := a.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if verb, err := strconv.Unquote(l.Value); err == nil {
						found[verb] = true
					}
				}
			}
			return true
		})
	}
	if len(found) < 5 {
		t.Fatalf("the agent's commands are not found in %s: %v", dir, found)
	}
	return slices.Sorted(maps.Keys(found))
}

var _ = context.Background
var _ = fmt.Sprint

// unreached says of each change that this scenario does not make why not.
func unreached() map[string]string {
	return map[string]string{}
}
