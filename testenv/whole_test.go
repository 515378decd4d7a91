package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/testenv/faults"
)

// mortal runs one process as this test's own binary, with steps that end it; the
// others are the real program.
type mortal struct {
	Real
	name string
	dir  faults.Dir
}

// Command is this binary for the one that is mortal.
func (m mortal) Command(name string) (string, []string) {
	if name != m.name {
		return m.Real.Command(name)
	}
	return os.Args[0], []string{faults.Env + "=" + string(m.dir)}
}

const (
	largeMachines = 200
	largeNetworks = 5
	largeDisks    = 20
	largeDisk     = 128 << 10
)

// large is a data center as a person writes it down: 200 machines in 5 networks,
// 20 of them with a disk, and a VPN gateway.
func large(w *World) (file string) {
	var b strings.Builder
	b.WriteString("name: Large\nnetworks:\n")
	for n := range largeNetworks {
		fmt.Fprintf(&b, "  - {name: net-%d, subnet: 10.0.%d.0/24}\n", n, n)
	}
	b.WriteString("vpn_gateways:\n  - {name: office, network: net-0, endpoint: auto, address_of: m-000, peer: vpn.example.com}\nmachines:\n")
	for n := range largeMachines {
		fmt.Fprintf(&b, "  - name: m-%03d\n    cpus: 1\n    interfaces: [{network: net-%d, address: 10.0.%d.%d", n, n%largeNetworks, n%largeNetworks, 10+n/largeNetworks)
		if n == 0 {
			b.WriteString(", public_address: auto")
		}
		b.WriteString("}]\n")
		if n < largeDisks {
			fmt.Fprintf(&b, "    disks: [{name: root, file: disk-%d.img}]\n", n)
			w.File(fmt.Sprintf("disk-%d.img", n), Disk(uint64(100+n), largeDisk))
		}
	}
	w.File("large.yaml", []byte(b.String()))
	return "large.yaml"
}

// run is the command line, which has to succeed; what it prints is read as JSON.
func (w *World) run(binary string, into any, args ...string) {
	w.t.Helper()
	r := w.CLI(binary, append(args, "-q", "-o", "json")...)
	if r.Exit != 0 {
		w.t.Fatalf("tombolo %s: exit %d: %s", strings.Join(args, " "), r.Exit, r.Err)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(r.Out), into); err != nil {
			w.t.Fatalf("tombolo %s: %v: %s", strings.Join(args, " "), err, r.Out)
		}
	}
}

// shown is what template show prints.
type shown struct {
	ID       string
	Version  int
	State    string
	Position uint64
	Content  *graph.Graph
}

// watchSave looks at a template again and again until the context ends: no
// version is listed before a region has verified it, and no content.
func watchSave(t *testing.T, w *World, ctx context.Context, number string) (unsaved int) {
	for ctx.Err() == nil {
		var at shown
		if err := w.Client().Once(ctx, "GET", "/v1/templates/"+number, nil, &at); err != nil {
			continue // the context has ended, or the server is busy
		}
		then, err := w.Client().Where(ctx, number, fmt.Sprintf("?as-of=%d", at.Position))
		if err != nil {
			continue
		}
		var listed struct{ Items []shown }
		if err := w.Client().Once(ctx, "GET", fmt.Sprintf("/v1/templates?as-of=%d", at.Position), nil, &listed); err != nil {
			continue
		}
		saved := slices.ContainsFunc(then.Regions, func(r WhereRegion) bool { return r.Verified })
		if !saved {
			unsaved++
			if len(listed.Items) > 0 || at.Version != 0 || at.Content != nil || at.State != "creating" || then.Active != 0 {
				t.Errorf("listed before it was saved: %s version %d, content %v: %s", at.State, at.Version, at.Content != nil, JSON(then))
			}
		}
	}
	return unsaved
}

// TestTemplateIsACompleteEnvironment: capability 1.
func TestTemplateIsACompleteEnvironment(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	kind := mortal{tombolo, "beijing", faults.Dir(filepath.Join(t.TempDir(), "faults"))}
	arm := func(phase string) {
		t.Helper()
		if err := kind.dir.Arm(phase); err != nil {
			t.Fatal(err)
		}
	}
	arm("")
	w := New(t, kind, Options{Regions: []string{"beijing", "sydney"}})
	w.Pools(8)
	for i, r := range w.Regions() {
		body := map[string]any{"region": r, "type": "vpn-endpoint", "prefix": fmt.Sprintf("198.51.%d.0/29", 100+i)}
		if err := w.Client().Do(w.Context(), "POST", "/v1/pools", body, nil); err != nil {
			t.Fatal(err)
		}
	}
	var env struct{ ID string }
	w.run(tombolo.Path, &env, "env", "create", "-f", large(w), "--region", "beijing")
	stop := w.Supervise()
	defer stop()

	// Killed after each kind of change that the save makes, and started again.
	for _, change := range []string{"store.Hold", "store.Release", "store.Begin", "store.Publish", "session.Touch", "session.Put", "session.Attach", "session.Close",
		"documents.Put", "command.start", "command.report-done", "command.start-epoch", "command.report-verified"} {
		if err := kind.dir.Spend("save", faults.Before(change)); err != nil {
			t.Fatal(err)
		}
	}
	arm("save")
	number, operation := w.Save(env.ID, "Large", "beijing")
	watch, enough := context.WithCancel(w.Context())
	var unsaved int
	var watching sync.WaitGroup
	watching.Go(func() { unsaved = watchSave(t, w, watch, number) })
	w.Done(operation)
	enough()
	watching.Wait()
	arm("")
	killed := w.killed(kind.dir, "save/")
	t.Logf("killed %d times; asked %d times before it was saved", killed, unsaved)
	if killed < 8 || unsaved == 0 {
		t.Errorf("the agent was killed %d times in the save, and it was looked %d times before its end", killed, unsaved)
	}
	w.Rest()
	complete(t, w, tombolo.Path, number)
	smallEvents(t, w)
	stop()

	// One that is given up after a kill in its middle leaves nothing at all.
	w.Region("beijing").WriteDisk(env.ID, "m-003/root", Disk(1, largeDisk), 0)
	arm("given-up")
	given, operation := w.Save(env.ID, "Given up", "beijing")
	await(t, w.Context(), "the agent is not killed", w.Region("beijing").Process.Ended())
	arm("")
	if err := w.Client().Do(w.Context(), "POST", "/v1/operations/"+operation+"/cancel", struct{}{}, nil); err != nil {
		t.Fatal(err)
	}
	w.Region("beijing").Start()
	if o, err := w.Client().Finished(w.Context(), operation); err != nil || o.State != "cancelled" {
		t.Fatalf("the save that was given up: %v: %s", err, JSON(o))
	}
	w.Rest()
	var listed struct{ Items []shown }
	w.run(tombolo.Path, &listed, "template", "ls")
	if len(listed.Items) != 1 || listed.Items[0].ID != number {
		t.Errorf("listed is %s", JSON(listed))
	}
	if r := w.CLI(tombolo.Path, "where", given, "-q", "-o", "json"); r.Exit != 3 {
		t.Errorf("where %s: exit %d: %s%s", given, r.Exit, r.Out, r.Err)
	}
	w.Clean()

	immutable(t, w, tombolo.Path, env.ID, number)
	tampered(t, w, tombolo.Path, env.ID, number)
}

// killed counts the kills of a phase.
func (w *World) killed(dir faults.Dir, phase string) (n int) {
	w.t.Helper()
	spent, err := dir.Spent()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range spent {
		if strings.HasPrefix(s, phase) {
			n++
		}
	}
	return n
}

// complete: the template lists every machine, network and gateway of what was
// saved, with the links between them, and people see them.
func complete(t *testing.T, w *World, tombolo, number string) {
	t.Helper()
	var at shown
	w.run(tombolo, &at, "template", "show", number)
	if at.Content == nil || at.Version != 1 || at.State != "available" {
		t.Fatalf("saved is %s", JSON(at))
	}
	var source struct{ Content graph.Graph }
	w.run(tombolo, &source, "env", "show", "large")
	count := map[graph.NodeType]int{}
	for _, n := range at.Content.Nodes {
		count[n.Type]++
		if _, ok := source.Content.Node(n.ID); !ok {
			t.Errorf("%s is saved and was not there", n.ID)
		}
	}
	if count[graph.Machine] != largeMachines || count[graph.Network] != largeNetworks || count[graph.Subnet] != largeNetworks || count[graph.VPNGateway] != 1 ||
		len(at.Content.Nodes) != len(source.Content.Nodes) || JSON(at.Content.Edges) != JSON(source.Content.Edges) {
		t.Errorf("saved are %v and %d links, there were %d nodes and %d links", count, len(at.Content.Edges), len(source.Content.Nodes), len(source.Content.Edges))
	}
	disks := at.Content.Disks()
	if len(disks) != largeDisks || slices.ContainsFunc(disks, func(d graph.DiskRef) bool { return d.Digest == "" || d.Size != largeDisk }) {
		t.Errorf("saved are the disks %s", JSON(disks))
	}
	seen := w.CLI(tombolo, "template", "show", number)
	for _, n := range source.Content.Nodes {
		if !strings.Contains(seen.Out, "\n"+n.ID+" ") {
			t.Errorf("template show does not say %s", n.ID)
		}
	}
}

// smallEvents: however large a data center is, no event is: graphs go by digest.
func smallEvents(t *testing.T, w *World) {
	t.Helper()
	for _, f := range w.Facts(1) {
		b, err := json.Marshal(f.Data)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 16<<10 {
			t.Errorf("%s at %d has %d bytes", f.Type, f.Sequence, len(b))
		}
	}
}

// immutable: what becomes of the environment, and what is written in one that was
// made of the template, does not change the version.
func immutable(t *testing.T, w *World, tombolo, env, number string) {
	t.Helper()
	beijing := w.Region("beijing")
	var before, after shown
	w.run(tombolo, &before, "template", "show", number)
	w.run(tombolo, nil, "env", "stop", env)
	beijing.WriteDisk(env, "m-001/root", Disk(3, 64<<10), 0)
	var made struct{ Environment string }
	w.run(tombolo, &made, "template", "instantiate", number, "--region", "beijing", "--name", "Written")
	beijing.WriteDisk(made.Environment, "m-001/root", Disk(4, 64<<10), 0)
	w.run(tombolo, nil, "env", "delete", made.Environment, "--yes")
	w.run(tombolo, &made, "template", "instantiate", number, "--region", "beijing", "--name", "Fresh")
	if got := beijing.ReadDisk(made.Environment, "m-001/root", largeDisk); !bytes.Equal(got, Disk(101, largeDisk)) {
		t.Error("the version has other bytes than were saved")
	}
	w.run(tombolo, nil, "env", "delete", made.Environment, "--yes")
	w.run(tombolo, &after, "template", "show", number)
	if before.Content == nil || JSON(before.Content) != JSON(after.Content) {
		t.Error("the version consists of something else than before")
	}
	for _, method := range []string{"PUT", "PATCH"} {
		if err := w.Client().Once(w.Context(), method, "/v1/templates/"+number, map[string]any{"content": nil}, nil); err == nil {
			t.Errorf("%s of a version is accepted", method)
		}
	}
}

// tampered: one byte that is changed where a region has stored it is found. While
// another region holds it, it is made whole; then nothing is made of it.
func tampered(t *testing.T, w *World, tombolo, env, number string) {
	t.Helper()
	w.run(tombolo, nil, "env", "delete", env, "--yes")
	beijing := w.Region("beijing")
	w.run(tombolo, nil, "template", "regions", number, "--add", "sydney")
	var found struct{ Damaged, Missing int }
	w.run(tombolo, &found, "region", "scrub", "beijing")
	if found.Damaged+found.Missing > 0 {
		t.Fatalf("damaged before it was tampered with: %s", JSON(found))
	}
	beijing.Process.Kill() // or its cache would still have it
	flip(t, beijing.Dir, needle(Disk(105, largeDisk), 1))
	beijing.Start()
	w.run(tombolo, &found, "region", "scrub", "beijing")
	if found.Damaged == 0 {
		t.Error("a scrub does not find the byte that was changed")
	}
	if len(w.Facts(1, "instance.copy-damaged")) != 1 {
		t.Error("nobody is told")
	}
	w.Verified(number, 1, "beijing", "sydney")
	w.run(tombolo, &found, "region", "scrub", "beijing")
	if found.Damaged+found.Missing > 0 {
		t.Errorf("it was not made whole: %s", JSON(found))
	}

	w.run(tombolo, nil, "template", "regions", number, "--remove", "sydney")
	beijing.Process.Kill()
	flip(t, beijing.Dir, needle(Disk(107, largeDisk), 0))
	beijing.Start()
	w.run(tombolo, &found, "region", "scrub", "beijing")
	w.Until(number, "the damage is not shown", func(at Where) bool {
		return len(at.Regions) == 1 && !at.Regions[0].Verified && at.Regions[0].State != "ready"
	})
	r := w.CLI(tombolo, "template", "instantiate", number, "--region", "beijing", "--yes", "-q", "-o", "json")
	if r.Exit != 4 {
		t.Errorf("an environment is made of what was tampered with: exit %d: %s%s", r.Exit, r.Out, r.Err)
	}
}

// needle is a part of a disk's content as a store has it: what does not compress
// is stored as it is.
func needle(content []byte, chunk int) []byte { return content[chunk*64<<10+1000:][:64] }

// stored finds where the packs of a region's store have a needle.
func stored(t *testing.T, dir string, needle []byte) (at map[string][]int64) {
	t.Helper()
	at = map[string][]int64{}
	err := filepath.WalkDir(filepath.Join(dir, "chunks"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		for from := 0; err == nil; {
			i := bytes.Index(content[from:], needle)
			if i < 0 {
				break
			}
			at[path] = append(at[path], int64(from+i))
			from += i + 1
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// flip changes one bit of a stored chunk.
func flip(t *testing.T, dir string, needle []byte) {
	t.Helper()
	found := stored(t, dir, needle)
	if len(found) == 0 {
		t.Fatalf("%s does not hold the bytes that are to be changed", dir)
	}
	for path, places := range found {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, off := range places {
			if _, err := f.WriteAt([]byte{needle[0] ^ 1}, off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// ReadDisk reads the start of a disk of an environment as a machine would.
func (a *Agent) ReadDisk(environment, disk string, n int) []byte {
	a.world.t.Helper()
	socket, err := nbd.SocketPath(a.Dir, "nbd.sock")
	if err != nil {
		a.world.t.Fatal(err)
	}
	device, err := nbd.Dial(a.world.ctx, socket, environment+"/"+disk)
	if err != nil {
		a.world.t.Fatalf("open %s of %s: %v", disk, environment, err)
	}
	defer device.Close()
	out := make([]byte, n)
	if _, err := device.ReadAt(out, 0); err != nil {
		a.world.t.Fatalf("read %s of %s: %v", disk, environment, err)
	}
	return out
}
