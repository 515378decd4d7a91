package testenv

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
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

// lateSteps is how long what is still on its way may take to end its process
// once everything is done.
const lateSteps = 2 * time.Minute

// ofMachines are the changes that TestFailureMatrixOfMachines comes to, and a
// region that runs no machines does not.
func ofMachines() []string {
	out := []string{"append." + string(events.EdgeSet{}.EventType())}
	for _, c := range []region.Change{region.StartMachine, region.ContinueMachines, region.PauseMachines, region.KillMachine} {
		out = append(out, "host."+string(c))
	}
	return out
}

// covered demands that every step of these changes has ended a process.
func (m *matrix) covered(all []string) {
	m.t.Helper()
	late := time.NewTimer(lateSteps)
	defer late.Stop()
	for {
		hit := m.hit()
		var missing []string
		for _, change := range all {
			for _, step := range []string{faults.Before(change), faults.After(change)} {
				if hit[step] == 0 {
					missing = append(missing, step)
				}
			}
		}
		if len(missing) == 0 {
			total := 0
			for _, n := range hit {
				total += n
			}
			m.t.Logf("%d steps ended a process, %d times in all", len(hit), total)
			return
		}
		select {
		case <-late.C:
			m.t.Errorf("no run has ended at %s: extend the scenario", strings.Join(missing, ", "))
			return
		default:
		}
		if err := pause(m.Context()); err != nil {
			m.t.Fatal(err)
		}
	}
}

// hit counts, for each step, how often it has ended a process.
func (m *matrix) hit() map[string]int {
	m.t.Helper()
	out := map[string]int{}
	for _, p := range m.processes {
		spent, err := m.kind.dir(p).Spent()
		if err != nil {
			m.t.Fatal(err)
		}
		for _, s := range spent {
			_, step, _ := strings.Cut(s, "/")
			out[step]++
		}
	}
	return out
}

// once demands that nothing has happened twice: no command has led to the same
// event again, and what can happen to an aggregate once has.
func (m *matrix) once() {
	m.t.Helper()
	// What can happen to an aggregate once.
	single := []string{"template.created", "template.deletion-accepted", "template.deleted", "environment.declared", "environment.created",
		"environment.deletion-accepted", "environment.deleted", "work.ordered", "work.done", "work.undo-ordered", "work.undone"}
	seen := map[string]uint64{}
	for _, f := range m.Facts(1) {
		// An event's id derives from its command's.
		keys := []string{"event " + f.ID}
		if slices.Contains(single, f.Type) {
			keys = append(keys, f.Type+" of "+f.Subject)
		}
		if f.Type == "template.version-saved" || f.Type == "template.version-activated" {
			keys = append(keys, f.Type+" of "+f.Subject+" "+JSON(f.Data["version"]))
		}
		for _, k := range keys {
			if before := seen[k]; before != 0 {
				m.t.Errorf("%s happened twice: at %d, and as %s at %d", k, before, f.Type, f.Sequence)
			}
			seen[k] = f.Sequence
		}
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
	files, err := filepath.Glob(filepath.Join(root, "handlers", "region", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains([]string{"command", "Command", "report"}, s.Sel.Name) {
				return true
			}
			for _, a := range call.Args {
				if l, ok := a.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if verb, err := strconv.Unquote(l.Value); err == nil && verb != "" { // "" is no operation
						found[verb] = true
					}
				}
			}
			return true
		})
	}
	if len(found) < 5 {
		t.Fatalf("the agent's commands are not found: %v", found)
	}
	return slices.Sorted(maps.Keys(found))
}
