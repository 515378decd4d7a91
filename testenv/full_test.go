package testenv

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// small runs the real program, and one of its processes on a small disk of its
// own: a tmpfs in a mount namespace, over the process's data directory.
type small struct {
	Real
	scripts string
	name    string
	dir     string
	bytes   int
}

// Command is the program, or for the process on the small disk a script that
// makes the disk first.
func (s *small) Command(name string) (string, []string) {
	if name != s.name {
		return s.Real.Command(name)
	}
	script := filepath.Join(s.scripts, name)
	namespace := "-m"
	if os.Geteuid() != 0 {
		namespace = "-Urm"
	}
	text := fmt.Sprintf("#!/bin/sh\nmkdir -p '%[1]s'\nexec unshare %[2]s sh -c 'mount -t tmpfs -o size=%[3]d tmpfs \"$0\" && exec \"$@\"' '%[1]s' '%[4]s' \"$@\"\n",
		s.dir, namespace, s.bytes, s.Path)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		return script, nil // which then cannot be started, and says why
	}
	return script, nil
}

// TestFullDiskOfARegion: a disk that does not fit is refused with a code; nothing
// of it stays, what is there stays whole, and what fits is taken afterwards.
func TestFullDiskOfARegion(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	dir := t.TempDir()
	kind := &small{Real: tombolo, scripts: t.TempDir(), name: "beijing", dir: filepath.Join(dir, "beijing"), bytes: 192 * mib}
	w := New(t, kind, Options{Regions: []string{"beijing"}, Dir: dir})
	w.Pools(8)
	for _, c := range []struct {
		name string
		size int
		exit int
	}{
		{"larger-than-the-disk", 256 * mib, 1},            // refused while it is sent
		{"larger-than-what-chunks-may-take", 64 * mib, 8}, // taken, and then undone
		{"small", mib, 0},
	} {
		w.File("disk.img", bytes.Repeat([]byte{'x'}, c.size))
		w.File("env.yaml", []byte("name: "+c.name+"\nmachines:\n  - {name: web, disks: [{name: root, file: disk.img}]}\n"))
		r := w.CLI(tombolo.Path, "env", "create", "-f", "env.yaml", "--region", "beijing", "-q", "-o", "json")
		if r.Exit != c.exit || c.exit != 0 && !slices.Contains(r.codes(), "store-full") {
			t.Errorf("%s: exit %d: %s", c.name, r.Exit, r.Err)
		}
		w.Rest()
	}
	var all struct {
		Items []struct{ Name, State string }
	}
	if err := w.Client().Get(w.Context(), "/v1/environments", &all); err != nil {
		t.Fatal(err)
	}
	for _, e := range all.Items {
		if e.State != "failed" && e.Name != "small" {
			t.Errorf("environment %s is %s", e.Name, e.State)
		}
	}
	w.Clean()
}
