package aggregates_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
)

// ignored are the events that change nothing of what decisions need, with the
// reason. Every other event must have a case in its aggregate's Fold.
var ignored = map[events.Type]string{}

// TestEveryEventIsFolded reads the Fold of each aggregate package and compares
// its cases with the registry: an event that is declared and not folded would
// be a fact that decisions do not know of.
func TestEveryEventIsFolded(t *testing.T) {
	byKind := map[events.Kind][]events.Definition{}
	for _, d := range events.NewRegistry().Definitions() {
		byKind[d.Kind] = append(byKind[d.Kind], d)
	}
	for _, kind := range []events.Kind{events.KindPool, events.KindName, events.KindNumber, events.KindRegion, events.KindAccount,
		events.KindTemplate, events.KindInstance, events.KindWork, events.KindEnvironment, events.KindOperation} {
		if _, err := os.Stat(string(kind)); err != nil {
			t.Errorf("the kind %s has no package: %v", kind, err)
		}
	}
	for kind, definitions := range byKind {
		if _, err := os.Stat(string(kind)); err != nil {
			continue // the package does not exist; those that must are above
		}
		cases := folded(t, string(kind))
		for _, d := range definitions {
			name, reason := reflect.TypeOf(d.Zero).Name(), ignored[d.Type]
			switch has := slices.Contains(cases, name); {
			case !has && reason == "":
				t.Errorf("%s is not folded: give it a case in aggregates/%s, or say in `ignored` why decisions need not know of it", d.Type, kind)
			case has && reason != "":
				t.Errorf("%s is folded: take it out of `ignored`", d.Type)
			}
		}
		if len(cases) != len(slices.Compact(slices.Sorted(slices.Values(cases)))) {
			t.Errorf("aggregates/%s folds an event in two cases", kind)
		}
	}
	for typ := range ignored {
		if !slices.ContainsFunc(events.NewRegistry().Definitions(), func(d events.Definition) bool { return d.Type == typ }) {
			t.Errorf("`ignored` lists %s, which is no event", typ)
		}
	}
}

// folded lists the names of the event types that the cases of the package's
// methods Fold name.
func folded(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv == nil || f.Name.Name != "Fold" {
				continue
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				c, ok := n.(*ast.CaseClause)
				if !ok {
					return true
				}
				for _, e := range c.List {
					if s, ok := e.(*ast.SelectorExpr); ok {
						if pkg, ok := s.X.(*ast.Ident); ok && pkg.Name == "events" {
							names = append(names, s.Sel.Name)
						}
					}
				}
				return true
			})
		}
	}
	return names
}
