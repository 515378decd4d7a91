package lint

import (
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
)

//go:generate go test . -run TestEventsDocument -update

const eventsFile = "docs/events.md"

// readers is who names an event in a type switch or a type assertion, and who makes one, by the event's Go name.
type readers struct{ made, folded, read, told, others map[string][]string }

// eventReaders finds them in the tree. The interface of a kind (events.WorkEvent) stands for all of its events where
// a file names none of them.
func eventReaders(t tree, kinds map[string]events.Kind) readers {
	r := readers{map[string][]string{}, map[string][]string{}, map[string][]string{}, map[string][]string{}, map[string][]string{}}
	interfaces := map[string]events.Kind{}
	for _, k := range kinds {
		interfaces[strings.ToUpper(string(k)[:1])+string(k)[1:]+"Event"] = k
	}
	aggregates := map[string][]file{}
	for _, f := range t.goFiles() {
		if f.isTest() || f.under("testenv") || f.under("events") {
			continue
		}
		to, who := r.others, f.path
		switch {
		case strings.HasPrefix(f.path, "aggregates/"):
			to, who = r.folded, path.Base(f.dir())
		case f.dir() == "projections":
			to, who = r.read, strings.TrimSuffix(path.Base(f.path), ".go")
		case f.dir() == "handlers/processes":
			to, who = r.told, strings.TrimSuffix(path.Base(f.path), ".go")
		}
		named := map[string]bool{}
		for _, name := range namedTypes(f) {
			named[name] = true
		}
		for name := range maps.Clone(named) {
			kind, ok := interfaces[name]
			if !ok || slices.ContainsFunc(slices.Collect(maps.Keys(named)), func(n string) bool { return kinds[n] == kind }) {
				continue
			}
			for e, k := range kinds {
				if k == kind {
					named[e] = true
				}
			}
		}
		for name := range named {
			if kinds[name] != "" && !slices.Contains(to[name], who) {
				to[name] = append(to[name], who)
			}
		}
		if f.under("aggregates") {
			aggregates[f.dir()] = append(aggregates[f.dir()], f)
		}
	}
	for _, folder := range aggregates {
		for name, who := range made(folder) {
			if kinds[name] != "" {
				r.made[name] = append(r.made[name], who...)
			}
		}
	}
	for _, m := range []map[string][]string{r.made, r.folded, r.read, r.told, r.others} {
		for _, names := range m {
			slices.Sort(names)
		}
	}
	return r
}

// namedTypes are the types of package events in a file's type switches and type assertions.
func namedTypes(f file) []string {
	var out []string
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.TypeSwitchStmt:
			for _, clause := range n.Body.List {
				for _, expr := range clause.(*ast.CaseClause).List {
					out = append(out, eventName(expr))
				}
			}
		case *ast.TypeAssertExpr:
			out = append(out, eventName(n.Type))
		}
		return true
	})
	return out
}

// eventName is X of events.X; else empty.
func eventName(expr ast.Expr) string {
	if s, ok := expr.(*ast.SelectorExpr); ok {
		if id, ok := s.X.(*ast.Ident); ok && id.Name == "events" {
			return s.Sel.Name
		}
	}
	return ""
}

// made gives the commands of an aggregate's files whose decision makes each event: itself, by a function of the
// aggregate that it calls, or by being the event (it embeds it).
func made(folder []file) map[string][]string {
	out, helpers, decides := map[string][]string{}, map[string][]string{}, map[string]*ast.FuncDecl{}
	add := func(to map[string][]string, event, who string) {
		if event != "" && !slices.Contains(to[event], who) {
			to[event] = append(to[event], who)
		}
	}
	for _, f := range folder {
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			switch {
			case !ok || fn.Body == nil:
			case fn.Name.Name == "Decide" && fn.Recv != nil:
				decides[fn.Recv.List[0].Type.(*ast.Ident).Name] = fn
			default:
				ast.Inspect(fn.Body, func(n ast.Node) bool {
					if lit, ok := n.(*ast.CompositeLit); ok {
						add(helpers, fn.Name.Name, eventName(lit.Type))
					}
					return true
				})
			}
		}
	}
	for _, f := range folder {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || decides[spec.Name.Name] == nil {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				for _, field := range s.Fields.List {
					if len(field.Names) == 0 {
						add(out, eventName(field.Type), spec.Name.Name)
					}
				}
			}
			return true
		})
	}
	for command, fn := range decides {
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				add(out, eventName(n.Type), command)
			case *ast.CallExpr:
				name := ""
				switch called := n.Fun.(type) {
				case *ast.SelectorExpr:
					name = called.Sel.Name
				case *ast.Ident:
					name = called.Name
				}
				for _, event := range helpers[name] {
					add(out, event, command)
				}
			}
			return true
		})
	}
	return out
}

// workKinds are the rows of the agents' table of what they can do: kind, do, undo.
func workKinds(t tree) [][3]string {
	var out [][3]string
	for _, f := range t.goFiles() {
		if f.path != "handlers/region/kinds.go" {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			pair, ok := n.(*ast.KeyValueExpr)
			if !ok || !strings.HasPrefix(eventName(pair.Key), "Work") {
				return true
			}
			row := [3]string{eventName(pair.Key)}
			for _, field := range pair.Value.(*ast.CompositeLit).Elts {
				kv := field.(*ast.KeyValueExpr)
				name := ""
				switch v := kv.Value.(type) {
				case *ast.SelectorExpr:
					name = v.Sel.Name
				case *ast.Ident:
					name = v.Name
				}
				switch kv.Key.(*ast.Ident).Name {
				case "do":
					row[1] = name
				case "undo":
					row[2] = name
				}
			}
			out = append(out, row)
			return false
		})
	}
	return out
}

// orderers are the files that name a work kind, but for the agents' own.
func orderers(t tree, kind string) []string {
	var out []string
	for _, f := range t.goFiles() {
		if f.isTest() || !f.under("handlers") || f.under("handlers/region") {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && eventName(s) == kind && !slices.Contains(out, f.path) {
				out = append(out, f.path)
			}
			return true
		})
	}
	slices.Sort(out)
	return out
}

// eventsDocument is the text of docs/events.md.
func eventsDocument(t tree, registry *events.Registry) string {
	kinds := map[string]events.Kind{}
	for _, d := range registry.Definitions() {
		kinds[reflect.TypeOf(d.Zero).Name()] = d.Kind
	}
	who := eventReaders(t, kinds)
	var b strings.Builder
	b.WriteString(`# Events

Who makes each event, and who wants it. This page is made from the code by a test in ` + "`testenv/lint`" + `, which fails when it is
not current; ` + "`go test ./testenv/lint -run EventsDocument -update`" + ` writes it. What is in an event: ` + "`tombolo events schema TYPE`" + `, and
[the schemas](../events/asyncapi/schemas).

"Made by" are the commands whose decision gives the event, "folded by" is the aggregate whose state it changes. "Read models",
"processes" and "others" name it in a type switch; read models that look at the attributes of all events alike are not listed.
`)
	list := func(names []string) string {
		if len(names) == 0 {
			return "-"
		}
		return strings.Join(names, ", ")
	}
	kind := events.Kind("")
	for _, d := range registry.Definitions() {
		if d.Kind != kind {
			kind = d.Kind
			fmt.Fprintf(&b, "\n## %s\n| event | made by | folded by | read models | processes | others |\n|---|---|---|---|---|---|\n", kind)
		}
		name := reflect.TypeOf(d.Zero).Name()
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", d.Type, list(who.made[name]), list(who.folded[name]), list(who.read[name]), list(who.told[name]), list(who.others[name]))
	}
	b.WriteString(`
## What agents do
An agent names no events: it reads its region's open orders from the read model ` + "`workorders`" + `, and for each kind of work it has one
effect and one way back.

| kind of work | effect | undone by | ordered in |
|---|---|---|---|
`)
	for _, k := range workKinds(t) {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", k[0], k[1], k[2], list(orderers(t, k[0])))
	}
	return b.String()
}

// TestEventsDocument: docs/events.md is current, and no event is forgotten by its aggregate or made by nobody.
func TestEventsDocument(t *testing.T) {
	here, registry := load(t), events.NewRegistry()
	text := eventsDocument(here, registry)
	if *update {
		if err := os.WriteFile(filepath.Join(root, eventsFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(filepath.Join(root, eventsFile))
	if err != nil || string(committed) != text {
		t.Errorf("%s is not what the code says now (%v)\ncure: go test ./testenv/lint -run EventsDocument -update", eventsFile, err)
	}
	kinds := map[string]events.Kind{}
	for _, d := range registry.Definitions() {
		kinds[reflect.TypeOf(d.Zero).Name()] = d.Kind
	}
	who := eventReaders(here, kinds)
	for name, kind := range kinds {
		if len(who.made[name]) == 0 {
			t.Errorf("no decision gives %s\ncure: make it in an aggregate's Decide, or delete the event if it was never released", name)
		}
		if !slices.Equal(who.folded[name], []string{string(kind)}) {
			t.Errorf("%s is folded by %v, not by %s\ncure: give it a case in aggregates/%s", name, who.folded[name], kind, kind)
		}
	}
	if len(workKinds(here)) == 0 {
		t.Error("the agents' table of work kinds was not found")
	}
}

// TestEventReaders shows the reader of sources what it is to find.
func TestEventReaders(t *testing.T) {
	const header = "package x\nimport \"" + module + "/events\"\n"
	here, err := newTree(map[string]string{
		"aggregates/work/work.go": header + "type Order struct { events.WorkOrdered }\nfunc (c Order) Decide() any { if c.ok { return events.WorkDone{} }; return events.Result{} }\n" +
			"func (c Fail) Decide() any { return c.failed() }\nfunc (c Fail) failed() any { return events.WorkFailed{} }\nfunc fold(e any) { switch e.(type) { case events.WorkDone, events.WorkFailed: } }",
		"projections/orders.go":            header + "func apply(e any) { if _, ok := e.(events.WorkEvent); ok { } }",
		"projections/narrow.go":            header + "func apply(e any) { switch e.(type) { case events.WorkEvent: switch e.(type) { case events.WorkFailed: } } }",
		"handlers/processes/placing.go":    header + "func apply(e any) { _, _ = e.(events.WorkDone) }",
		"cmd/tombolo/other.go":             header + "func apply(e any) { switch e := e.(type) { case *events.WorkDone: _ = e; case events.WorkDone: } }",
		"handlers/processes/place_test.go": header + "func apply(e any) { _, _ = e.(events.WorkFailed) }",
	})
	if err != nil {
		t.Fatal(err)
	}
	// EpochStarted is of another kind than what anybody names.
	got := eventReaders(here, map[string]events.Kind{"EpochStarted": "region", "WorkDone": "work", "WorkFailed": "work", "WorkOrdered": "work"})
	want := readers{
		made:   map[string][]string{"WorkDone": {"Order"}, "WorkFailed": {"Fail"}, "WorkOrdered": {"Order"}},
		folded: map[string][]string{"WorkDone": {"work"}, "WorkFailed": {"work"}},
		read:   map[string][]string{"WorkDone": {"orders"}, "WorkFailed": {"narrow", "orders"}, "WorkOrdered": {"orders"}},
		told:   map[string][]string{"WorkDone": {"placing"}},
		others: map[string][]string{"WorkDone": {"cmd/tombolo/other.go"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
