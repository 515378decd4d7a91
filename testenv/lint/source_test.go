package lint

import (
	"fmt"
	"go/ast"
	"go/format"
	"path"
	"regexp"
	"slices"
	"strings"
)

// maxLines is where a file has stopped being one subject.
const maxLines = 600

// topLevel is everything the repository's root may hold besides folders and files beginning with a dot.
var topLevel = []string{
	"events", "aggregates", "projections", "handlers", "policies", "cmd", "testenv", "docs",
	"go.mod", "go.sum", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile",
}

var (
	written   = []string{".go", ".js", ".sh", ".cel", ".css", ".html"}
	generated = regexp.MustCompile(`(?m)^\W{0,4} ?Code generated .* DO NOT EDIT\.`)
	homePath  = regexp.MustCompile(`(^|[^\w.~-])/(root|home|Users)/[\w.]`)
	// Spelled apart, so that the rule does not find itself.
	openMark = regexp.MustCompile(`\b(` + "TO" + "DO|FIX" + `ME)\b`)
)

// topLevelEntries reports what does not belong in the root.
func topLevelEntries(t tree) []string {
	var out []string
	for _, f := range t.files {
		first, _, _ := strings.Cut(f.path, "/")
		if !strings.HasPrefix(first, ".") && !slices.Contains(topLevel, first) && !slices.Contains(out, first) {
			out = append(out, first)
		}
	}
	return out
}

// longFiles reports files, written by hand, of more than maxLines lines.
func longFiles(t tree) []string {
	var out []string
	for _, f := range t.files {
		n := strings.Count(f.text, "\n")
		if n > maxLines && slices.Contains(written, path.Ext(f.path)) && !f.isTestdata() && !generated.MatchString(f.text) {
			out = append(out, fmt.Sprintf("%s has %d lines", f.path, n))
		}
	}
	return out
}

// unformatted reports Go files that gofmt would change.
func unformatted(t tree) []string {
	var out []string
	for _, f := range t.goFiles() {
		if formatted, err := format.Source([]byte(f.text)); err != nil || string(formatted) != f.text {
			out = append(out, f.path)
		}
	}
	return out
}

// undocumented reports packages without a package comment, and comments that do not begin as Go's do.
func undocumented(t tree) []string {
	documented, first := map[string]bool{}, map[string]string{}
	var out []string
	for _, f := range t.goFiles() {
		if f.isTest() {
			continue
		}
		name, doc := f.syntax.Name.Name, f.syntax.Doc.Text()
		if first[f.dir()] == "" {
			first[f.dir()] = f.path
		}
		documented[f.dir()] = documented[f.dir()] || doc != ""
		if doc != "" && name != "main" && !strings.HasPrefix(doc, "Package "+name+" ") {
			out = append(out, fmt.Sprintf("%s: the package comment does not begin with \"Package %s \"", f.path, name))
		}
	}
	for dir, f := range first {
		if !documented[dir] {
			out = append(out, f+": the package has no comment")
		}
	}
	slices.Sort(out)
	return out
}

// sleeps reports tests that wait for time to pass: time.Sleep, and <-time.After as a statement of its own.
func sleeps(t tree) []string {
	var out []string
	for _, f := range t.goFiles() {
		if !f.isTest() && !f.under("testenv") {
			continue
		}
		for _, call := range selections(f, "time", []string{"Sleep"}) {
			out = append(out, t.at(f, call.Pos())+": time.Sleep")
		}
		after := selections(f, "time", []string{"After"})
		timeouts := map[ast.Stmt]bool{} // cases of a select: waiting at most so long is what After is for
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CommClause:
				timeouts[n.Comm] = true
			case *ast.ExprStmt:
				if receive, ok := n.X.(*ast.UnaryExpr); ok && !timeouts[n] {
					if call, ok := receive.X.(*ast.CallExpr); ok && slices.ContainsFunc(after, func(a *ast.SelectorExpr) bool { return call.Fun == a }) {
						out = append(out, t.at(f, n.Pos())+": <-time.After")
					}
				}
			}
			return true
		})
	}
	return out
}

// homePaths reports absolute paths of somebody's home folder.
func homePaths(t tree) []string { return findAll(t, homePath) }

// openMarks reports notes to do something later.
func openMarks(t tree) []string { return findAll(t, openMark) }

func findAll(t tree, pattern *regexp.Regexp) []string {
	var out []string
	for _, f := range t.files {
		for _, at := range pattern.FindAllStringIndex(f.text, -1) {
			out = append(out, f.line(at[0])+": "+strings.TrimSpace(f.text[at[0]:at[1]]))
		}
	}
	return out
}
