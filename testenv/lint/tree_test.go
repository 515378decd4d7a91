package lint

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

// root is where the module begins, seen from this package: go test runs a test in its folder.
const root = "../.."

// module is the module's path; imports below it are our own packages.
const module = "github.com/tombolo-vdc/tombolo"

// tree is the repository as the rules see it: every text file that git does not ignore, by path.
type tree struct {
	fset  *token.FileSet
	files []file
}

// file is one text file; syntax is nil unless it is Go.
type file struct {
	path   string // from the root, with slashes
	text   string
	syntax *ast.File
}

func (f file) dir() string      { return path.Dir(f.path) }
func (f file) isTest() bool     { return strings.HasSuffix(f.path, "_test.go") }
func (f file) isTestdata() bool { return strings.Contains("/"+f.path, "/testdata/") }
func (f file) line(offset int) string {
	return fmt.Sprintf("%s:%d", f.path, 1+strings.Count(f.text[:offset], "\n"))
}

// under tells whether the file is in dir or below it.
func (f file) under(dir string) bool { return strings.HasPrefix(f.path, dir+"/") }

// goFiles are the parsed files; what lies in testdata is input for tests, not part of the program.
func (t tree) goFiles() []file {
	var out []file
	for _, f := range t.files {
		if f.syntax != nil {
			out = append(out, f)
		}
	}
	return out
}

func (t tree) at(f file, p token.Pos) string {
	return fmt.Sprintf("%s:%d", f.path, t.fset.Position(p).Line)
}

func (t tree) has(name string) bool {
	for _, f := range t.files {
		if f.path == name || f.under(name) {
			return true
		}
	}
	return false
}

// newTree parses what is Go among texts, which maps paths to contents.
func newTree(texts map[string]string) (tree, error) {
	t := tree{fset: token.NewFileSet()}
	for name, text := range texts {
		f := file{path: name, text: text}
		if strings.HasSuffix(name, ".go") && !f.isTestdata() {
			syntax, err := parser.ParseFile(t.fset, name, text, parser.ParseComments)
			if err != nil {
				return tree{}, err
			}
			f.syntax = syntax
		}
		t.files = append(t.files, f)
	}
	sort.Slice(t.files, func(i, j int) bool { return t.files[i].path < t.files[j].path })
	return t, nil
}

// load reads the working tree. It opens each file itself, because the test cache knows a test's
// inputs only by the files that the test opens: asking another program would answer from yesterday.
func load(tb testing.TB) tree {
	tb.Helper()
	ignore, err := os.ReadFile(filepath.Join(root, ".gitignore"))
	if err != nil {
		tb.Fatal(err)
	}
	texts := map[string]string{}
	err = filepath.WalkDir(root, func(full string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		switch {
		case name == ".git" || ignored(string(ignore), name):
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case !entry.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(full)
		if err == nil && bytes.IndexByte(data, 0) < 0 {
			texts[name] = string(data)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	t, err := newTree(texts)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// ignored understands the patterns that our .gitignore uses: a leading slash binds to the root, a
// trailing one marks a folder, * matches within a name. Negation is not among them.
func ignored(patterns, name string) bool {
	for _, pattern := range strings.Fields(patterns) {
		pattern = strings.TrimSuffix(pattern, "/")
		subject := path.Base(name)
		if bound, ok := strings.CutPrefix(pattern, "/"); ok {
			pattern, subject = bound, name
		}
		if ok, err := path.Match(pattern, subject); ok && err == nil {
			return true
		}
	}
	return false
}
