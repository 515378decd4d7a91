package lint

import (
	"os/exec"
	"strings"
	"testing"
)

// rule is one thing that holds for the whole tree; check gives what breaks it.
type rule struct {
	name  string
	check func(tree) []string
	cure  string
}

var rules = []rule{
	{"import-directions", importDirections,
		"move the code to the layer it belongs to, or pass the value in; the table `layers` in testenv/lint/imports_test.go is the picture, and changing it is a decision (docs/decisions)"},
	{"library-owners", libraryOwners,
		"ask the owning package for what you need, and give it a function if it has none; the table `owners` is in testenv/lint/imports_test.go"},
	{"top-level", topLevelEntries,
		"put it into the folder of its subject, or ignore it in .gitignore if a program made it; a new folder in the root is a decision (docs/decisions)"},
	{"long-files", longFiles,
		"split it by subject; 600 lines are the end of what one file can be about"},
	{"gofmt", unformatted,
		"run `make fmt`"},
	{"package-comments", undocumented,
		"write a comment above the package clause that says what the package is for and why it is one"},
	{"sleeps", sleeps,
		"wait for what you mean: a position, an event, a channel; a time-out is a case of a select"},
	{"home-paths", homePaths,
		"use a path relative to the repository, t.TempDir(), or a place that exists on every machine"},
	{"open-marks", openMarks,
		"do it now, or open an issue and say in a sentence what is not there yet"},
	{"capabilities", capabilityRows,
		"correct the row, or write the test it names"},
	{"links", brokenLinks,
		"correct the path (relative to the document), or add the file"},
}

func TestRules(t *testing.T) {
	here := load(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			if found := r.check(here); len(found) > 0 {
				t.Errorf("%s\ncure: %s", strings.Join(found, "\n"), r.cure)
			}
		})
	}
}

// TestRulesCatch shows each rule the fault it is for: a rule that can find nothing guards nothing.
func TestRulesCatch(t *testing.T) {
	table := func(third string) string {
		return "| n | name | how to see it | test |\n|---|---|---|---|\n| 1 | one | here | " + third + " |\n"
	}
	cases := []struct{ rule, path, text, want string }{
		{"import-directions", "events/a.go", "package events\nimport _ \"github.com/x/y\"", "events must not import github.com/x/y"},
		{"import-directions", "events/journal/a.go", "package journal\nimport _ \"" + module + "/aggregates\"", "must not import"},
		{"import-directions", "aggregates/pool/a.go", "package pool\nimport _ \"" + module + "/aggregates/region\"", "must not import"},
		{"import-directions", "aggregates/pool/a.go", "package pool\nimport _ \"" + module + "/events/journal\"", "must not import"},
		{"import-directions", "aggregates/pool/a.go", "package pool\nimport _ \"context\"", "must not import context"},
		{"import-directions", "aggregates/pool/a.go", "package pool\nimport clock \"time\"\nvar now = clock.Now()", "must not read the clock (time.Now)"},
		{"import-directions", "handlers/api/a.go", "package api\nimport _ \"" + module + "/testenv/images\"", "must not import"},
		{"import-directions", "cmd/tombolo/a.go", "package main\nimport _ \"" + module + "/testenv/bench\"", "must not import"},
		{"import-directions", "extra/a.go", "package extra", "belongs to no layer"},
		{"library-owners", "handlers/api/a.go", "package api\nimport _ \"github.com/cockroachdb/pebble/v2\"", "only projections/... may import"},
		{"library-owners", "projections/a.go", "package projections\nimport _ \"github.com/nats-io/nats.go\"", "only events/journal/..."},
		{"library-owners", "aggregates/a.go", "package aggregates\nimport _ \"github.com/google/cel-go/cel\"", "only policies/..."},
		{"top-level", "notes/a.md", "", "notes"},
		{"long-files", "events/a.go", "package events\n" + strings.Repeat("\n", maxLines), "601 lines"},
		{"gofmt", "events/a.go", "package events\nvar  a int\n", "events/a.go"},
		{"package-comments", "events/a.go", "package events\n", "has no comment"},
		{"package-comments", "events/a.go", "// Events are facts.\npackage events\n", "does not begin with"},
		{"sleeps", "events/a_test.go", "package events\nimport \"time\"\nfunc f() { time.Sleep(1) }", "time.Sleep"},
		{"sleeps", "testenv/a.go", "package testenv\nimport \"time\"\nfunc f() { <-time.After(1) }", "<-time.After"},
		{"home-paths", "docs/a.md", "see /ho" + "me/ann/notes", "docs/a.md:1"},
		{"open-marks", "docs/a.md", "first\nFIX" + "ME: second", "docs/a.md:2"},
		{"capabilities", capabilitiesFile, table("not yet"), "has 1 rows, not 125"},
		{"capabilities", capabilitiesFile, table("not yet"), "one column says"},
		{"capabilities", capabilitiesFile, table("TestOne"), "is not `path/to/pkg TestName`"},
		{"capabilities", capabilitiesFile, table("events TestOne"), "runs no TestOne in events"},
		{"links", "docs/a.md", "see [this](../missing.md#part)", "../missing.md"},
	}
	for _, r := range rules {
		shown := false
		for _, c := range cases {
			if c.rule != r.name {
				continue
			}
			shown = true
			faulty, err := newTree(map[string]string{c.path: c.text})
			if err != nil {
				t.Fatal(err)
			}
			if found := strings.Join(r.check(faulty), "\n"); !strings.Contains(found, c.want) {
				t.Errorf("%s does not catch %q in %s: it said %q, which lacks %q", r.name, c.text, c.path, found, c.want)
			}
		}
		if !shown {
			t.Errorf("no case shows that %s catches anything\ncure: add a line to the table of TestRulesCatch", r.name)
		}
	}
}

// TestRulesAllow shows what the rules must leave alone, where a careless rule would not.
func TestRulesAllow(t *testing.T) {
	fine, err := newTree(map[string]string{
		"aggregates/pool/pool.go": "// Package pool is a pool.\npackage pool\n\nimport (\n\t\"time\"\n\n\t\"" + module + "/aggregates\"\n\t\"" + module + "/events\"\n)\n\n" +
			"var _, _, _ = aggregates.X, events.X, time.Second\n",
		"aggregates/pool/pool_test.go": "package pool_test\n\nimport (\n\t_ \"context\"\n\n\t_ \"" + module + "/aggregates/given\"\n\t_ \"" + module + "/aggregates/pool\"\n)\n",
		"handlers/a_test.go":           "package handlers\n\nimport \"time\"\n\nfunc f() {\n\tselect {\n\tcase <-time.After(time.Second):\n\t}\n}\n",
		"cmd/tombolo/main.go":          "// Tombolo keeps.\npackage main\n\nimport _ \"" + module + "/testenv/images\"\n",
		"testenv/bench/bench.go":       "// Package bench measures.\npackage bench\n\nimport (\n\t_ \"github.com/cockroachdb/pebble/v2\"\n\n\t_ \"" + module + "/cmd/tombolo/x\"\n)\n",
		"docs/a.md":                    "[a](../docs/a.md#x), [site](https://go.dev/dl), [below](#x), ../home/x, https://example.com/home/x",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if r.name == "capabilities" {
			continue // needs its document, which TestRules reads
		}
		if found := r.check(fine); len(found) > 0 {
			t.Errorf("%s refuses what is fine: %q", r.name, found)
		}
	}
}

func TestIgnored(t *testing.T) {
	const patterns = "/tombolo\n/demo-*/\n*.test\nnode_modules/\n"
	for name, want := range map[string]bool{
		"tombolo": true, "cmd/tombolo": false, "demo-7": true, "docs/demo-7": false, "events/events.test": true,
		"docs/js/node_modules": true, "README.md": false,
	} {
		if got := ignored(patterns, name); got != want {
			t.Errorf("ignored(%q) = %v", name, got)
		}
	}
}

// TestPrograms runs the checkers that others wrote. They keep caches of their own; that this package
// also reads every file of the tree (load) is what makes the test cache notice a change.
func TestPrograms(t *testing.T) {
	load(t)
	for _, args := range [][]string{
		{"go", "vet", "./..."},
		{"go", "tool", "staticcheck", "./..."},
	} {
		t.Run(strings.Join(args[:len(args)-1], " "), func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s\ncure: do what it says; `//lint:ignore CHECK why` above the line where it is wrong", strings.Join(args, " "), err, out)
			}
		})
	}
}
