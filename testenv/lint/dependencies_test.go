package lint

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/dependencies.txt from go.mod, and docs/events.md from the code")

const dependenciesFile = "docs/dependencies.md"

// requirements is what go.mod names, sorted: all of it, and what our own code or a tool line asks for.
type requirements struct{ all, direct []string }

func readRequirements(t *testing.T) requirements {
	t.Helper()
	load(t) // opens go.mod, so that the test cache knows of it
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = root
	data, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
		Tool []struct{ Path string }
	}
	if err := json.Unmarshal(data, &mod); err != nil {
		t.Fatal(err)
	}
	var r requirements
	for _, m := range mod.Require {
		r.all = append(r.all, m.Path)
		isTool := false // go mod tidy calls a tool's module indirect, but a line of go.mod asks for it by name
		for _, tool := range mod.Tool {
			isTool = isTool || strings.HasPrefix(tool.Path+"/", m.Path+"/")
		}
		if !m.Indirect || isTool {
			r.direct = append(r.direct, m.Path)
		}
	}
	slices.Sort(r.all)
	slices.Sort(r.direct)
	return r
}

// missing is what is in want and not in have.
func missing(want, have []string) []string {
	return slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(have, s) })
}

func TestDependenciesExplained(t *testing.T) {
	direct := readRequirements(t).direct
	text, err := os.ReadFile(filepath.Join(root, dependenciesFile))
	if err != nil {
		t.Fatal(err)
	}
	var explained []string
	for _, row := range rows(string(text)) {
		if len(row) != 3 || slices.Contains(row, "") {
			t.Errorf("%s: not `| module | why it is here | alternatives weighed |`: %q", dependenciesFile, row)
			continue
		}
		explained = append(explained, strings.Trim(row[0], "`"))
	}
	for _, m := range missing(direct, explained) {
		t.Errorf("%s has no row for %s\ncure: say why it is here and what else was weighed, or do without it", dependenciesFile, m)
	}
	for _, m := range missing(explained, direct) {
		t.Errorf("%s explains %s, which go.mod does not ask for directly\ncure: delete the row", dependenciesFile, m)
	}
}

func TestDependenciesGolden(t *testing.T) {
	const golden = "testdata/dependencies.txt"
	all := readRequirements(t).all
	if *update {
		if err := os.WriteFile(golden, []byte(strings.Join(all, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	known := strings.Fields(string(data))
	var changes []string
	for _, m := range missing(all, known) {
		changes = append(changes, fmt.Sprintf("+ %s", m))
	}
	for _, m := range missing(known, all) {
		changes = append(changes, fmt.Sprintf("- %s", m))
	}
	if len(changes) > 0 {
		t.Errorf("the modules that go.mod names have changed:\n%s\n"+
			"cure: ask yourself whether each new one is wanted, for whoever builds Tombolo has to trust it (`go mod why -m MODULE` says who needs it); if it is:\n"+
			"  go test ./testenv/lint -run DependenciesGolden -update", strings.Join(changes, "\n"))
	}
}
