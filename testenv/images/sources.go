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
// of file data: the directories of the first source are dealt out, the largest first, to whoever has least; the other
// sources fill up whoever has less than an equal share.
func Plan(sources []Tree, total int64, labels ...string) ([]Spec, error) {
	if len(sources) == 0 || len(labels) == 0 {
		return nil, &Error{Code: CodeSource, Message: "a plan needs a label and a tree"}
	}
	specs, load := make([]Spec, len(labels)), make([]int64, len(labels))
	for i, label := range labels {
		specs[i] = Spec{Label: label, MinBytes: (total + int64(len(labels)) - 1) / int64(len(labels))}
		// Machines do not all begin with the same tree: their disks would be the same.
		rest := sources[1:]
		for j := range rest {
			specs[i].More = append(specs[i].More, rest[(i+j)%len(rest)])
		}
	}
	type part struct {
		tree  Tree
		bytes int64
	}
	entries, err := os.ReadDir(sources[0].Source)
	if err != nil {
		return nil, &Error{Code: CodeSource, Message: "the tree cannot be opened", Err: err}
	}
	var parts []part
	for _, e := range entries {
		if e.IsDir() {
			t := Tree{Source: filepath.Join(sources[0].Source, e.Name()), At: filepath.Join(sources[0].At, e.Name())}
			parts = append(parts, part{t, treeBytes(t.Source)})
		}
	}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(b.bytes, a.bytes) })
	for _, p := range parts {
		least := slices.Index(load, slices.Min(load))
		specs[least].Trees = append(specs[least].Trees, p.tree)
		load[least] += p.bytes
	}
	return specs, nil
}

// treeBytes is an estimate: what cannot be read counts nothing.
func treeBytes(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}
