package lint

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strconv"
	"strings"
)

// layer says what the packages in dir may import. A pattern is a folder from the root; with /... it
// means the folders below as well. The first layer that matches a package is the one that counts.
type layer struct {
	dir     string
	may     []string // packages of this module
	std     bool     // the standard library and nothing of others
	pure    bool     // std, and of it only what computes: see pureStd
	because string
}

// layers is the picture of the README as a table: imports point one way only.
var layers = []layer{
	{dir: "events", std: true,
		because: "the vocabulary outlives every library: it is declared with the standard library alone"},
	{dir: "events/...", may: []string{"events/..."},
		because: "facts know nothing of those who decide on them or read them"},
	{dir: "aggregates", may: []string{"events"}, pure: true,
		because: "a decision is a pure function of state, command and Facts{Now, Actor}"},
	{dir: "aggregates/given", may: []string{"events", "aggregates"}, std: true,
		because: "it serves the tests of every aggregate and may know none of them"},
	{dir: "aggregates/...", may: []string{"events", "aggregates"}, pure: true,
		because: "a decision is a pure function; what spans aggregates is a process in handlers/processes"},
	{dir: "policies/...", may: []string{"events/...", "policies/..."},
		because: "a policy judges its input and nothing else; handlers/commands brings the input"},
	{dir: "projections/...", may: []string{"events/...", "projections/..."},
		because: "a read model folds facts; it neither decides nor reacts"},
	{dir: "handlers/...", may: []string{"events/...", "aggregates/...", "policies/...", "projections/...", "handlers/..."},
		because: "handlers react to facts with commands; programs are composed above them, in cmd"},
	{dir: "cmd/tombolo/...", may: []string{"events/...", "aggregates/...", "policies/...", "projections/...", "handlers/...", "cmd/...", "testenv/images"},
		because: "the program must not need its test environment; only `demo` builds real disks with testenv/images"},
	{dir: "testenv/...", may: []string{"..."},
		because: "tests may look at everything"},
}

// testsMayImport is what a _test.go file may import on top of its layer.
var testsMayImport = []string{"aggregates/given", "testenv/..."}

// owner says which packages may import a library of others; testenv may import all of them.
type owner struct {
	library string
	dirs    []string
	because string
}

var owners = []owner{
	{"github.com/google/cel-go", []string{"policies/..."},
		"there is one CEL environment, compiled, cost-limited and versioned in one place"},
	{"github.com/cockroachdb/pebble", []string{"projections/..."},
		"rows and the position they stand for are one batch, and projections is where that is kept"},
	{"github.com/nats-io", []string{"events/journal/...", "handlers/bus/...", "handlers/commands/...", "handlers/documents/...", "cmd/..."},
		"facts go through events/journal, commands through handlers/commands, everything else about the bus through handlers/bus"},
}

// pureStd is the part of the standard library that a decision may use. What is missing has a clock,
// randomness, concurrency or the outside world in it, or nobody has needed it yet.
var pureStd = []string{
	"bytes", "cmp", "crypto/sha256", "encoding", "encoding/base32", "encoding/base64", "encoding/binary", "encoding/hex",
	"encoding/json", "errors", "fmt", "hash", "hash/fnv", "iter", "maps", "math", "math/bits", "net/netip", "net/url",
	"path", "reflect", "regexp", "slices", "sort", "strconv", "strings", "time", "unicode", "unicode/utf8",
}

// clock is what package time has that is not arithmetic.
var clock = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}

func matches(pattern, dir string) bool {
	base, below := strings.CutSuffix(pattern, "...")
	base = strings.TrimSuffix(base, "/")
	return dir == base || below && (base == "" || strings.HasPrefix(dir, base+"/"))
}

func anyMatches(patterns []string, dir string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, dir) })
}

func layerOf(dir string) (layer, bool) {
	i := slices.IndexFunc(layers, func(l layer) bool { return matches(l.dir, dir) })
	if i < 0 {
		return layer{}, false
	}
	return layers[i], true
}

// importDirections reports every import that points against the layers.
func importDirections(t tree) []string {
	var out []string
	for _, f := range t.goFiles() {
		l, ok := layerOf(f.dir())
		if !ok {
			out = append(out, fmt.Sprintf("%s: the folder %s belongs to no layer", f.path, f.dir()))
			continue
		}
		may := append([]string{f.dir()}, l.may...)
		if f.isTest() {
			may = append(may, testsMayImport...)
		}
		for _, spec := range f.syntax.Imports {
			target := importPath(spec)
			own, isOwn := strings.CutPrefix(target, module+"/")
			var wrong bool
			switch {
			case isOwn:
				wrong = !anyMatches(may, own)
			case f.isTest():
			case isStd(target):
				wrong = l.pure && !slices.Contains(pureStd, target)
			default:
				wrong = l.pure || l.std
			}
			if wrong {
				out = append(out, fmt.Sprintf("%s: %s must not import %s: %s", t.at(f, spec.Pos()), l.dir, target, l.because))
			}
		}
		if l.pure && !f.isTest() {
			for _, call := range selections(f, "time", clock) {
				out = append(out, fmt.Sprintf("%s: %s must not read the clock (time.%s): %s", t.at(f, call.Pos()), l.dir, call.Sel.Name, l.because))
			}
		}
	}
	return out
}

// outside says that the file tests its package from without: what it imports
// is no part of the package.
func outside(f file) bool { return strings.HasSuffix(f.syntax.Name.Name, "_test") }

// libraryOwners reports imports of a library outside the packages that own it.
func libraryOwners(t tree) []string {
	var out []string
	for _, f := range t.goFiles() {
		for _, spec := range f.syntax.Imports {
			target := importPath(spec)
			for _, o := range owners {
				within := target == o.library || strings.HasPrefix(target, o.library+"/")
				if within && !anyMatches(o.dirs, f.dir()) && !f.under("testenv") && !outside(f) {
					out = append(out, fmt.Sprintf("%s: only %s may import %s: %s",
						t.at(f, spec.Pos()), strings.Join(o.dirs, ", "), o.library, o.because))
				}
			}
		}
	}
	return out
}

// selections finds uses such as time.Now, under whatever name the file imports the package.
func selections(f file, pkg string, names []string) []*ast.SelectorExpr {
	local := ""
	for _, spec := range f.syntax.Imports {
		if importPath(spec) == pkg {
			local = path.Base(pkg)
			if spec.Name != nil {
				local = spec.Name.Name
			}
		}
	}
	var out []*ast.SelectorExpr
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(names, sel.Sel.Name) {
			if id, ok := sel.X.(*ast.Ident); ok && local != "" && id.Name == local {
				out = append(out, sel)
			}
		}
		return true
	})
	return out
}

// importPath is the path that an import names; the parser has checked that it is a string.
func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return p
}

// isStd tells the standard library by the rule the go command uses: no dot in the first element.
func isStd(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}
