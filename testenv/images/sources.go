package images

import (
	"cmp"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Sources are the file trees of this machine that make good disks, the best first: Go's own source tree, the module
// cache, and what the system has. Only directories that exist are given.
func Sources(ctx context.Context) []Tree {
	candidates := []Tree{{Source: os.Getenv("GOROOT"), At: "usr/local/go"}}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The go command knows both; where it is missing, the usual places are looked at.
	if out, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOMODCACHE").Output(); err == nil {
		lines := strings.Split(string(out), "\n")
		candidates = append(candidates, Tree{Source: lines[0], At: "usr/local/go"})
		if len(lines) > 1 {
			candidates = append(candidates, Tree{Source: lines[1], At: "srv/modules"})
		}
	}
	candidates = append(candidates, Tree{Source: "/usr/local/go", At: "usr/local/go"},
		Tree{Source: "/usr/share", At: "usr/share"}, Tree{Source: "/usr/lib", At: "usr/lib"})
	var found []Tree
	for _, t := range candidates {
		taken := slices.ContainsFunc(found, func(f Tree) bool { return f.At == t.At })
		if info, err := os.Stat(t.Source); t.Source != "" && !taken && err == nil && info.IsDir() {
			found = append(found, t)
		}
	}
	return found
}

// Plan divides sources among machines, one Spec for each label, so that all disks together hold at least total bytes
// of file data and about as many files each: the directories of the first source are dealt out, the fullest first, to
// whoever has fewest files; the other sources fill up whoever has less than an equal share of the bytes. A directory
// that holds too much to be dealt out fairly is taken apart, without the files that stand beside its directories.
func Plan(sources []Tree, total int64, labels ...string) ([]Spec, error) {
	if len(sources) == 0 || len(labels) == 0 {
		return nil, &Error{Code: CodeSource, Text: "a plan needs a label and a tree"}
	}
	specs, load := make([]Spec, len(labels)), make([]int, len(labels))
	for i, label := range labels {
		specs[i] = Spec{Label: label, MinBytes: (total + int64(len(labels)) - 1) / int64(len(labels))}
		// Machines do not all begin with the same tree: their disks would be the same.
		rest := sources[1:]
		for j := range rest {
			specs[i].More = append(specs[i].More, rest[(i+j)%len(rest)])
		}
	}
	parts, err := directories(sources[0])
	if err != nil {
		return nil, &Error{Code: CodeSource, Text: "the tree cannot be opened", Err: err}
	}
	all := 0
	for _, p := range parts {
		all += p.files
	}
	for i := 0; i < len(parts); i++ {
		if parts[i].files <= all/(2*len(labels)) {
			continue
		}
		if inner, err := directories(parts[i].tree); err == nil && len(inner) > 1 {
			parts = append(parts, inner...)
			parts[i].files = 0
		}
	}
	parts = slices.DeleteFunc(parts, func(p part) bool { return p.files == 0 })
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(b.files, a.files) })
	for _, p := range parts {
		least := slices.Index(load, slices.Min(load))
		specs[least].Trees = append(specs[least].Trees, p.tree)
		load[least] += p.files
	}
	return specs, nil
}

// part is a directory that goes to one machine.
type part struct {
	tree  Tree
	files int
}

// directories are those that stand in a tree, with the files below each. What cannot be read counts nothing.
func directories(t Tree) ([]part, error) {
	entries, err := os.ReadDir(t.Source)
	var parts []part
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		p := part{tree: Tree{Source: filepath.Join(t.Source, e.Name()), At: filepath.Join(t.At, e.Name())}}
		_ = filepath.WalkDir(p.tree.Source, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				p.files++
			}
			return nil
		})
		parts = append(parts, p)
	}
	return parts, err
}
