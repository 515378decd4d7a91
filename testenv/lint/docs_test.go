package lint

import (
	"fmt"
	"go/ast"
	"go/build/constraint"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	capabilitiesFile = "docs/capabilities.md"
	capabilityCount  = 125
	notYet           = "not yet"
)

var (
	markdownLink = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	scheme       = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)
	// testName is how a row names a test: the package's folder from the root, a blank, the function.
	testName = regexp.MustCompile("^`?([a-z][a-z0-9_/-]*) (Test[A-Z]\\w*)`?$")
)

// rows gives the cells of the table rows of a Markdown text, without heads and rules.
func rows(text string) [][]string {
	var out [][]string
	table := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			table = 0
			continue
		}
		if table++; table <= 2 {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		out = append(out, cells)
	}
	return out
}

// capabilityRows reports rows that are missing or malformed, and tests they name that do not exist.
func capabilityRows(t tree) []string {
	var out []string
	i := slices.IndexFunc(t.files, func(f file) bool { return f.path == capabilitiesFile })
	if i < 0 {
		return []string{capabilitiesFile + " is missing"}
	}
	table := rows(t.files[i].text)
	if len(table) != capabilityCount {
		out = append(out, fmt.Sprintf("%s has %d rows, not %d", capabilitiesFile, len(table), capabilityCount))
	}
	tests := testFunctions(t)
	for i, row := range table {
		if len(row) != 4 || row[0] != strconv.Itoa(i+1) || slices.Contains(row, "") {
			out = append(out, fmt.Sprintf("%s: row %d is not `| %d | name | how to see it | test |`: %q", capabilitiesFile, i+1, i+1, row))
			continue
		}
		if (row[2] == notYet) != (row[3] == notYet) {
			out = append(out, fmt.Sprintf("%s: row %d: one column says %q and the other does not", capabilitiesFile, i+1, notYet))
		}
		if row[3] == notYet {
			continue
		}
		for name := range strings.SplitSeq(row[3], ";") {
			parts := testName.FindStringSubmatch(strings.TrimSpace(name))
			if parts == nil {
				out = append(out, fmt.Sprintf("%s: row %d: %q is not `path/to/pkg TestName`", capabilitiesFile, i+1, name))
			} else if !tests[parts[1]+" "+parts[2]] {
				out = append(out, fmt.Sprintf("%s: row %d: go test ./... runs no %s in %s", capabilitiesFile, i+1, parts[2], parts[1]))
			}
		}
	}
	return out
}

// testFunctions is the set of "folder TestName" that a plain go test ./... on Linux runs: a file behind
// another build constraint does not count, for it never ran where the project is tested.
func testFunctions(t tree) map[string]bool {
	out := map[string]bool{}
	for _, f := range t.goFiles() {
		if !f.isTest() || !built(f) {
			continue
		}
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				out[f.dir()+" "+fn.Name.Name] = true
			}
		}
	}
	return out
}

func built(f file) bool {
	for _, group := range f.syntax.Comments {
		for _, c := range group.List {
			if expr, err := constraint.Parse(c.Text); err == nil && c.Pos() < f.syntax.Package {
				return expr.Eval(func(tag string) bool { return slices.Contains([]string{"linux", "unix", "amd64"}, tag) })
			}
		}
	}
	return true
}

// brokenLinks reports links between documents that lead nowhere.
func brokenLinks(t tree) []string {
	var out []string
	for _, f := range t.files {
		if path.Ext(f.path) != ".md" || f.isTestdata() {
			continue
		}
		for _, at := range markdownLink.FindAllStringSubmatchIndex(f.text, -1) {
			link := f.text[at[2]:at[3]]
			target, _, _ := strings.Cut(link, "#")
			if scheme.MatchString(link) || target == "" {
				continue
			}
			if strings.HasPrefix(target, "/") || !t.has(path.Join(f.dir(), target)) {
				out = append(out, f.line(at[2])+": "+link)
			}
		}
	}
	return out
}
