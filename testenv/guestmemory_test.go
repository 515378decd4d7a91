package testenv

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
)

// Where tests write into the RAM of a guest of one sector, which uses none of it.
const (
	unusedRAM     = 2 * mib
	unusedRAMSize = 8 * mib
)

// ram opens the RAM of the region's one machine, as its driver does.
func (a *Agent) ram(t *testing.T) *os.File {
	t.Helper()
	guests, _ := a.Processes(t)
	if len(guests) != 1 {
		t.Fatalf("%s has %d machines' processes, want one", a.Region, len(guests))
	}
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", guests[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue // a socket
		}
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() == guestMemory*mib {
			t.Cleanup(func() { f.Close() })
			return f
		}
		f.Close()
	}
	t.Fatalf("the RAM of process %d is not among %v", guests[0], paths)
	return nil
}

// TestSuspendOnFullDisk: a region whose disk is full cannot suspend: the machine
// runs on, and the command says why. With room, it can.
func TestSuspendOnFullDisk(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	dir := t.TempDir()
	kind := smallDisk(t, tombolo, "beijing", filepath.Join(dir, "beijing"), 192*mib)
	w := New(t, Emulated{Kind: kind}, Options{Regions: []string{"beijing"}, Dir: dir})
	w.BoundPools()
	a := w.Region("beijing")
	env := w.boot(tombolo, "shop", "beijing")
	count := a.Console(t, env, "web").Ask("mx").Count
	if _, err := a.ram(t).WriteAt(Disk(3, unusedRAMSize), unusedRAM); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(kind.root, a.Dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 56*mib), 0o600); err != nil { // the store leaves 144 MiB alone
		t.Fatal(err)
	}
	r := w.CLI(tombolo.Path, "env", "suspend", "shop", "-q", "-o", "json")
	if r.Exit != 9 || !slices.Contains(r.codes(), "store-full") {
		t.Errorf("exit %d: %s%s", r.Exit, r.Out, r.Err)
	}
	w.Seen(env, "web", "running")
	count = goesOn(t, a.Console(t, env, "web"), count, 'x')
	w.Rest()
	w.Clean()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	w.run(tombolo.Path, nil, "env", "suspend", "shop")
	w.Seen(env, "web", "suspended")
	w.run(tombolo.Path, nil, "env", "resume", "shop")
	w.Seen(env, "web", "running")
	goesOn(t, a.Console(t, env, "web"), count, 'x')
	w.Clean()
}

// TestMemoryOverABrokenLink: a memory that is copied to another region while the
// link breaks is fetched on, not again; it is verified with the same digest, and a
// machine goes on from it there.
func TestMemoryOverABrokenLink(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, Emulated{Kind: tombolo}, Options{Regions: []string{"beijing", "sydney"}})
	w.BoundPools()
	here, there := w.Region("beijing"), w.Region("sydney")
	env := w.boot(tombolo, "shop", "beijing")
	count := here.Console(t, env, "web").Ask("mx").Count
	content := Disk(3, unusedRAMSize)
	if _, err := here.ram(t).WriteAt(content, unusedRAM); err != nil {
		t.Fatal(err)
	}
	here.Transfer.Slow(unusedRAMSize / 2)
	mark := here.Transfer.Passed(unusedRAMSize * 6 / 10)
	saved := w.must("POST", "/v1/templates", map[string]any{"environment": env, "name": "Shop", "regions": []string{"beijing", "sydney"}, "memory": true})
	await(t, w.Context(), "the copy does not get going", mark)
	here.Transfer.Cut()
	await(t, w.Context(), "nobody tries the link again", here.Transfer.Refused(2))
	here.Transfer.Slow(0)
	here.Transfer.Heal()
	w.Done(saved.Operation)
	w.Verified(saved.ID, 1, "beijing", "sydney")
	if got, most := here.Transfer.Down(), int64(unusedRAMSize+2*mib)*11/10; got > most || got < unusedRAMSize {
		t.Errorf("%d bytes came over the link, want no more than %d", got, most)
	}
	w.run(tombolo.Path, nil, "template", "instantiate", saved.ID, "--region", "sydney", "--name", "clone")
	clone := w.environment("clone").ID
	w.Seen(clone, "web", "running")
	goesOn(t, there.Console(t, clone, "web"), count, 'x')
	got := make([]byte, unusedRAMSize)
	if _, err := there.ram(t).ReadAt(got, unusedRAM); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the memory that came to sydney differs: %v", err)
	}
	w.Clean()
}

// TestUpEndsAndComesBack: ctrl-C suspends what runs, and the next start lets it go
// on; with --leave-running it stays, and is found again. Either way the guest is
// the same one, and has what it wrote to its disk.
func TestUpEndsAndComesBack(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	w := &World{t: t, ctx: ctx, Dir: t.TempDir(), Agents: map[string]*Agent{}}
	t.Cleanup(w.close)
	w.HTTP = w.link("")
	w.home = filepath.Join(w.Dir, "home")
	a := &Agent{world: w, Region: "beijing", Dir: filepath.Join(w.Dir, "up", "regions", "beijing")}
	w.Agents[a.Region] = a
	up := func(flags ...string) *Process {
		t.Helper()
		p, err := start(t, w.cleanup, "up", filepath.Join(w.Dir, "up.log"), []string{"HOME=" + w.home, "TOMBOLO_ACCELERATOR=tcg"}, tombolo.Path,
			append([]string{"up", "--data", filepath.Join(w.Dir, "up"), "--sync", "lazy", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0", "--regions", "beijing", "-o", "json"}, flags...)...)
		if err != nil {
			t.Fatal(err)
		}
		var at struct{ HTTP, Context string }
		if err := p.Ready(w.ctx, &at); err != nil {
			t.Fatal(err)
		}
		w.HTTP.To(hostPort(at.HTTP))
		if w.Admin, err = contexts.Read(at.Context); err != nil {
			t.Fatal(err)
		}
		here := w.Admin
		here.HTTP = "http://" + w.HTTP.Address()
		if err := here.Write(w.contextFile()); err != nil {
			t.Fatal(err)
		}
		return p
	}
	down := func(p *Process, guests, networks int) {
		t.Helper()
		p.Interrupt()
		if code := p.Exit(w.ctx); code != 0 {
			t.Fatalf("exit %d: %s", code, p.Log())
		}
		if g, n := a.Processes(t); len(g) != guests || len(n) != networks {
			t.Fatalf("%d machines and %d networks' processes go on, want %d and %d: %s", len(g), len(n), guests, networks, p.Log())
		}
	}
	p := up()
	w.BoundPools()
	env := w.boot(tombolo, "shop", "beijing")
	line := w.typed(tombolo, "shop")
	line.Ask("mx")
	written := line.Ask("w")
	position := w.Position()
	down(p, 0, 0)

	p = up("--leave-running")
	w.Happened(position, "work.done") // it was started again
	w.Seen(env, "web", "running")
	count := goesOn(t, w.typed(tombolo, "shop"), written.Count, 'x')
	if got := w.typed(tombolo, "shop").Ask("r"); got.Count != written.Count {
		t.Errorf("the disk has the count %d, %d was written", got.Count, written.Count)
	}
	before, _ := a.Processes(t)
	down(p, 1, 1)

	up()
	goesOn(t, w.typed(tombolo, "shop"), count, 'x')
	if got := w.typed(tombolo, "shop").Ask("r"); got.Count != written.Count {
		t.Errorf("the disk has the count %d, %d was written", got.Count, written.Count)
	}
	if after, _ := a.Processes(t); !slices.Equal(before, after) {
		t.Errorf("the machine's process was %v, and is %v", before, after)
	}
}

// typed joins the console of an environment's one machine by the command line.
func (w *World) typed(tombolo Real, env string) *machinestest.Guest {
	w.t.Helper()
	return machinestest.Join(w.t, commandLine{w: w, program: tombolo.Path}, machines.ID{Environment: env})
}

// commandLine reads consoles with the command line.
type commandLine struct {
	machines.Reader
	w       *World
	program string
}

// Console is the machine's, as a person sees it whose input is no terminal.
func (c commandLine) Console(_ context.Context, id machines.ID) (io.ReadWriteCloser, error) {
	cmd := exec.CommandContext(c.w.ctx, c.program, "env", "console", id.Environment)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.w.home, "TOMBOLO_CONTEXT=" + c.w.contextFile()}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &conversation{Reader: out, Writer: in, cmd: cmd}, nil
}

// conversation is with a program that is ended when it is over.
type conversation struct {
	io.Reader
	io.Writer
	cmd *exec.Cmd
}

// Close ends the program.
func (c *conversation) Close() error {
	err := c.cmd.Process.Kill()
	_ = c.cmd.Wait() // it was killed
	return err
}
