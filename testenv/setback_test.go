package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestServerSetBackUnderAnAgent: an agent that runs on while the control plane is
// restored from a backup, and grows past where the agent is, ends with what to
// do as soon as it is connected again, and folds nothing of the other journal.
func TestServerSetBackUnderAnAgent(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing"}})
	beijing := w.Region("beijing")
	ok := func(args ...string) {
		t.Helper()
		if r := w.CLI(tombolo.Path, args...); r.Exit != 0 {
			t.Fatalf("tombolo %s: exit %d: %s", strings.Join(args, " "), r.Exit, r.Err)
		}
	}
	add := func(name string, n int) {
		t.Helper()
		for i := range n {
			region := fmt.Sprintf("%s-%d", name, i)
			if err := w.Client().Do(w.Context(), "POST", "/v1/regions", map[string]any{"region": region, "profile": map[string]any{"name": region, "latitude": 0, "longitude": 0}}, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	backup := filepath.Join(w.Dir, "backup")
	ok("server", "backup", "--to", backup)
	add("lost", 3)
	before := w.Position()
	if err := beijing.Client().Get(w.Context(), fmt.Sprintf("/v1/regions?after=%d", before), nil); err != nil {
		t.Fatal(err)
	}

	beijing.Bus.Cut()
	w.Server.Interrupt()
	if code := w.Server.Exit(w.Context()); code != 0 {
		t.Fatalf("the server ended with %d", code)
	}
	if err := os.Rename(w.serverDir(), w.serverDir()+"-lost"); err != nil {
		t.Fatal(err)
	}
	ok("server", "restore", "--from", backup, "--data", w.serverDir())
	w.StartServer()
	add("since", 8)
	if now := w.Position(); now <= before {
		t.Fatalf("the restored journal is at %d, and has to be beyond %d", now, before)
	}
	beijing.Bus.Heal()
	if code := beijing.Process.Exit(w.Context()); code != 1 || !strings.Contains(beijing.Process.Log(), "journal-set-back") {
		t.Errorf("exit %d: %s", code, beijing.Process.Log())
	}

	// Without what it had folded, it goes on in the restored installation.
	if err := os.RemoveAll(filepath.Join(beijing.Dir, "reads")); err != nil {
		t.Fatal(err)
	}
	beijing.Start()
	var regions struct{ Items []struct{ Region string } }
	if err := beijing.Client().Get(w.Context(), fmt.Sprintf("/v1/regions?after=%d", w.Position()), &regions); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range regions.Items {
		names = append(names, r.Region)
	}
	if all := strings.Join(names, " "); len(names) != 9 || strings.Contains(all, "lost") {
		t.Errorf("the regions are %s", all)
	}
}
