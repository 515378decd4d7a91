package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// small runs the real program, and one of its processes with a small disk of its
// own: a tmpfs in a mount namespace that outlives the process.
type small struct {
	Real
	*namespace
	name string // of the process
}

// smallDisk makes a disk of so many bytes at dir, for one process.
func smallDisk(t *testing.T, tombolo Real, name, dir string, bytes int) *small {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &small{tombolo, newNamespace(t, tombolo.Path, "m", fmt.Sprintf("mount -t tmpfs -o size=%d tmpfs '%s'", bytes, dir)), name}
}

// Command is the program, and for the process on the small disk the script.
func (s *small) Command(name string) (string, []string) {
	command, env := s.Real.Command(name)
	if name == s.name {
		command = s.script
	}
	return command, env
}

// TestFullDiskOfARegion: a disk that does not fit is refused with a code; nothing
// of it stays, what is there stays whole, and what fits is taken afterwards.
func TestFullDiskOfARegion(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	dir := t.TempDir()
	kind := smallDisk(t, tombolo, "beijing", filepath.Join(dir, "beijing"), 192*mib)
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

// TestFullDiskOfTheControlPlane: when the disk under the journal has no byte left,
// commands are refused with a code and the program ends with one; what it had
// accepted is there when it has room and is started again, and a command whose
// outcome was unknown can be sent again.
func TestFullDiskOfTheControlPlane(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	dir := t.TempDir()
	data := filepath.Join(dir, "server", "bus")
	kind := smallDisk(t, tombolo, "server", data, 256*mib)
	w := New(t, kind, Options{Regions: []string{"beijing"}, Dir: dir, Durable: true})
	w.Pools(8)
	ballast := filepath.Join(kind.root, data, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for block := bytes.Repeat([]byte{'x'}, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	add := func(i int) error {
		body := map[string]any{"region": "beijing", "type": "public-address", "prefix": fmt.Sprintf("10.0.%d.0/28", i)}
		return w.Client().Once(w.Context(), "POST", "/v1/pools", body, nil)
	}
	accepted := 0
	for err = add(0); err == nil && accepted < 255; err = add(accepted) { // what is left of a block of the disk
		accepted++
	}
	if err == nil {
		t.Fatal("the disk never was full")
	}
	if code := w.Server.Exit(w.Context()); code != 1 || !strings.Contains(w.Server.Log(), `"code":"bus-disk-failed"`) {
		t.Fatalf("exit %d: %s", code, w.Server.Log())
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	w.StartServer()
	if err := add(accepted); err != nil {
		t.Errorf("sent again: %v", err)
	}
	if p := w.PoolOf("beijing"); p.Size != 8+16*(accepted+1) {
		t.Errorf("%d ranges of 16 addresses were added to 8, the pool has %d", accepted+1, p.Size)
	}
	w.Clean()
}
