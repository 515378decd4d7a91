package testenv

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
)

// shop describes an environment of one machine that boots, for the command line.
func (w *World) shop(name string) string { return w.shopOf(name, guestMemory) }

// shopOf is shop with so many MiB of memory.
func (w *World) shopOf(name string, memory int) string {
	w.t.Helper()
	if _, err := os.Stat(filepath.Join(w.Dir, "boot.img")); err != nil {
		w.File("boot.img", bootDisk(w.t, 1, mib))
	}
	return filepath.Base(w.File(name+".yaml", fmt.Appendf(nil, `name: %s
networks: [{name: lan, subnet: 10.0.0.0/24}]
machines:
  - name: web
    memory_mib: %d
    disks: [{name: root, file: boot.img}]
    interfaces: [{network: lan, address: 10.0.0.2, public_address: auto, open: [tcp/80]}]
`, name, memory)))
}

// boot makes an environment of one machine, and gives its id.
func (w *World) boot(tombolo Real, name, region string) string {
	w.t.Helper()
	var made struct{ ID string }
	w.run(tombolo.Path, &made, "env", "create", "--region", region, "-f", w.shop(name))
	w.Seen(made.ID, "web", "running")
	return made.ID
}

// refused runs the command line, and demands how it ends.
func (w *World) refused(binary string, exit int, code string, args ...string) Ran {
	w.t.Helper()
	r := w.CLI(binary, append(args, "-q", "-o", "json", "--no-input")...)
	if r.Exit != exit || !slices.Contains(r.codes(), code) {
		w.t.Errorf("tombolo %s: exit %d with %v, want %d with %s\n%s", strings.Join(args, " "), r.Exit, r.codes(), exit, code, r.Err)
	}
	return r
}

// environment is one as it is shown, by its name or id.
func (w *World) environment(ref string) (e OneEnvironment) {
	w.t.Helper()
	if err := w.Client().Get(w.ctx, "/v1/environments/"+ref, &e); err != nil {
		w.t.Fatal(err)
	}
	return e
}

// TestNoQEMU: a region without QEMU says so, and what to install. It takes in an
// environment, whose machines are off and say why; to start them is refused.
func TestNoQEMU(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		t.Fatal(err)
	}
	n := newNamespace(t, tombolo.Path, "m", "mount --bind /dev/null '"+path+"'")
	w := New(t, Emulated{Kind: Real{n.script}, Env: []string{"TOMBOLO_ACCELERATOR=auto"}}, Options{Regions: []string{"beijing"}})
	w.BoundPools()
	var host struct {
		Machines struct {
			Available bool
			Why       string
		}
	}
	w.run(tombolo.Path, &host, "region", "host", "beijing")
	if host.Machines.Available || !strings.Contains(host.Machines.Why, "qemu-system-x86") {
		t.Errorf("the host is said to be %+v", host)
	}
	w.run(tombolo.Path, nil, "env", "create", "--region", "beijing", "-f", w.shop("shop"))
	off := func(m api.Machine) bool {
		return m.Observed == "powered-off" && m.Cause != nil && m.Cause.Code == "machines-unavailable" && strings.Contains(m.Cause.Text+m.Cause.Next, "qemu-system-x86")
	}
	w.SeenSo("shop", "web", "off, and says why", off)
	r := w.refused(tombolo.Path, 9, "machines-unavailable", "env", "start", "shop")
	if !strings.Contains(r.Err, "qemu-system-x86") {
		t.Errorf("it is not said what to install: %s", r.Err)
	}
	w.SeenSo("shop", "web", "off, and says why", off)
	env := w.environment("shop").ID
	w.run(tombolo.Path, nil, "env", "delete", "shop", "--yes")
	w.Clean()
	w.Region("beijing").Left(t, env)
}

// hostile makes images that want the host's files.
func hostile(t *testing.T, w *World) map[string]string {
	t.Helper()
	out := map[string]string{}
	qemu := func(name string, args ...string) string {
		t.Helper()
		path := filepath.Join(w.Dir, name)
		c := exec.CommandContext(w.Context(), "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path)...)
		c.Dir = w.Dir
		if said, err := c.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, said)
		}
		return name
	}
	out["a host's file beneath"] = qemu("beneath.qcow2", "-u", "-F", "raw", "-b", "/etc/passwd", "-o", "size=1M")
	out["a device beneath, by a description"] = qemu("json.qcow2", "-u", "-F", "raw", "-b", `json:{"driver":"raw","file":{"driver":"host_device","filename":"/dev/sda"}}`, "-o", "size=1M")
	qemu("middle.qcow2", "-u", "-F", "raw", "-b", "/etc/passwd", "-o", "size=1M")
	out["a host's file beneath what is beneath"] = qemu("nested.qcow2", "-u", "-F", "qcow2", "-b", "middle.qcow2", "-o", "size=1M")
	w.File("outside.raw", make([]byte, mib))
	out["its data in another file"] = qemu("outside.qcow2", "-o", "data_file=outside.raw,data_file_raw=on,size=1M")
	return out
}

// TestGuestsRefused: what no machine or network can be is refused before anything
// is made; what only the host cannot give fails with its code, and what was made
// until then is as it is shown.
func TestGuestsRefused(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, Emulated{Kind: tombolo}, Options{Regions: []string{"beijing"}})
	w.BoundPools()
	w.File("good.img", Disk(1, mib))
	position := w.Position()
	disk := func(file, format string) string {
		return filepath.Base(w.File(strings.ReplaceAll(file, ".", "-")+".yaml",
			[]byte("name: bad\nmachines: [{name: web, disks: [{name: root, file: "+file+", format: "+format+"}]}]\n")))
	}
	for what, file := range hostile(t, w) {
		want := "disk-has-backing-file"
		if strings.HasPrefix(file, "outside") {
			want = "disk-format-unsupported"
		}
		t.Log(what)
		w.refused(tombolo.Path, 1, want, "env", "create", "--region", "beijing", "-f", disk(file, "qcow2"))
		// The same, where the name says nothing of the format.
		if err := os.Rename(filepath.Join(w.Dir, file), filepath.Join(w.Dir, file+".img")); err != nil {
			t.Fatal(err)
		}
		w.refused(tombolo.Path, 1, want, "env", "import", file+".img", "--region", "beijing")
	}
	w.refused(tombolo.Path, 1, "disk-format-unknown", "env", "create", "--region", "beijing", "-f", disk("good.img", "qcow2"))
	two := func(name, first, second string) string {
		return filepath.Base(w.File(name, []byte("name: bad\nnetworks: [{name: lan, subnet: 10.0.0.0/24}]\nmachines:\n"+
			"  - {name: a, interfaces: [{network: lan, "+first+"}]}\n  - {name: b, interfaces: [{network: lan, "+second+"}]}\n")))
	}
	for _, c := range []struct{ code, first, second string }{
		{"address-conflict", "address: 10.0.0.2", "address: 10.0.0.2"},
		{"address-conflict", "address: 10.0.0.1", "address: 10.0.0.2"}, // the gateway's
		{"duplicate-mac", "mac: '52:54:00:00:00:01'", "mac: '52:54:00:00:00:01'"},
		{"address-outside-subnet", "address: 10.9.0.2", "address: 10.0.0.2"},
		{"address-outside-subnet", "address: 10.0.0.255", "address: 10.0.0.2"},
	} {
		w.refused(tombolo.Path, 1, c.code, "env", "create", "--region", "beijing", "-f", two("two.yaml", c.first, c.second))
	}
	if now := w.Position(); now != position {
		t.Errorf("something was done: %s", JSON(w.Facts(position+1)))
	}

	// More memory than any host has: everything is there but the machine, which says why.
	w.refused(tombolo.Path, 9, "memory-short", "env", "create", "--region", "beijing", "-f", w.shopOf("large", 4<<20))
	short := func(m api.Machine) bool {
		return m.Observed == "powered-off" && m.Cause != nil && m.Cause.Code == "memory-short"
	}
	w.SeenSo("large", "web", "off, and says why", short)
	w.refused(tombolo.Path, 9, "memory-short", "env", "start", "large")
	if guests, _ := w.Region("beijing").Processes(t); len(guests) != 0 {
		t.Errorf("%d machines' processes are left of the attempt", len(guests))
	}
	env := w.environment("large").ID
	w.run(tombolo.Path, nil, "env", "delete", "large", "--yes")
	w.Clean()
	w.Region("beijing").Left(t, env)
}

// TestPublicAddressTaken: a public address whose port another program has on the
// region's host makes no environment; when the port is free, it is made. Of one
// that is there, the edge stays as it was.
func TestPublicAddressTaken(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing"}})
	w.BoundPools()
	at := ""
	env := w.boundShop(tombolo, &at)
	w.run(tombolo.Path, nil, "env", "delete", env, "--yes")
	if listens(at) {
		t.Errorf("%s is still bound though the environment was deleted", at)
	}
	taken, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	w.refused(tombolo.Path, 8, "bind-failed", "env", "create", "--region", "beijing", "-f", w.shop("shop"))
	if p := w.PoolOf("beijing"); p.Free != p.Size {
		t.Errorf("leases are left: %+v", p)
	}
	w.Clean()
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	again := ""
	env = w.boundShop(tombolo, &again)
	if again != at || !listens(at) {
		t.Errorf("bound at %s, want %s, where somebody listens", again, at)
	}

	// The edge of one that is there: it goes on as it was, also when the wish is given up.
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	if taken, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(number+1))); err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	set := w.must("PUT", "/v1/environments/"+env+"/edge", map[string]any{"open": []any{map[string]any{"resource": "web.public", "ports": []string{"tcp/80", "tcp/81"}}}})
	if o, err := w.Client().Finished(w.Context(), set.Operation); err != nil || o.Cause == nil || o.Cause.Code != "bind-failed" {
		t.Errorf("the edge with a port that is taken: %v %s", err, JSON(o))
	}
	if !listens(at) {
		t.Errorf("%s is bound no longer because another port was taken", at)
	}
	w.must("POST", "/v1/operations/"+set.Operation+"/cancel", struct{}{})
	w.Happened(set.Sequence, "work.undone")
	w.Rest()
	if !listens(at) {
		t.Errorf("%s is bound no longer because a wish for another port was given up", at)
	}
	w.Clean()
}

// boundShop makes an environment, and says where its port is bound.
func (w *World) boundShop(tombolo Real, at *string) (id string) {
	w.t.Helper()
	var made struct{ ID string }
	w.run(tombolo.Path, &made, "env", "create", "--region", "beijing", "-f", w.shop("shop"))
	for _, p := range w.environment(made.ID).machine("web").Public {
		for _, o := range p.Open {
			*at = o.At
		}
	}
	return made.ID
}

// goesOn demands that a guest runs on: that its clock does, from a count, and
// that it has its mark.
func goesOn(t *testing.T, g *machinestest.Guest, from uint32, mark byte) (count uint32) {
	t.Helper()
	a := g.Ask("c")
	for a.Count <= from && a.Mark == mark { // a tick is 55 ms
		a = g.Ask("c")
	}
	if a.Mark != mark {
		t.Fatalf("the guest has the mark %q, want %q", a.Mark, mark)
	}
	return a.Count
}

// TestMachinesEnd: a machine whose process is killed is seen in seconds and
// started again, three times in ten minutes; after that it is left failed, and
// shown. A guest that switches itself off is stopped, and not started again. A
// second agent is refused while machines run, and they go on.
func TestMachinesEnd(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, Emulated{Kind: tombolo}, Options{Regions: []string{"beijing"}})
	w.BoundPools()
	a := w.Region("beijing")
	env := w.boot(tombolo, "shop", "beijing")
	line := a.Console(t, env, "web")
	count, written := line.Ask("mx").Count, line.Ask("w").Count

	w.refused(tombolo.Path, 1, "agent-dir-in-use", "agent", "run", "--data", a.Dir, "--enrolment", a.Enrolment)
	w.refused(tombolo.Path, 1, "region-owned-by-another-agent", "agent", "run", "--data", filepath.Join(w.Dir, "second"), "--enrolment", a.Enrolment)
	goesOn(t, a.Console(t, env, "web"), count, 'x')

	for deaths := 1; deaths <= 4; deaths++ {
		guests, _ := a.Processes(t)
		if len(guests) != 1 {
			t.Fatalf("%d machines' processes, want one", len(guests))
		}
		kill(t, guests)
		died := w.SeenSo(env, "web", "seen to have died", func(m api.Machine) bool { return m.Deaths == deaths })
		if deaths < 4 {
			w.SeenSo(env, "web", "started again", func(m api.Machine) bool { return m.Deaths == deaths && m.Observed == "running" })
			if got := a.Console(t, env, "web").Ask("r"); got.Count != written {
				t.Errorf("the disk has the count %d, %d was written", got.Count, written)
			}
			continue
		}
		if died.Observed != "failed" || died.Cause == nil || died.Cause.Code != "crashed" || died.Restart == nil || died.Restart.Allowed {
			t.Errorf("after the fourth death: %s", JSON(died))
		}
	}
	w.Rest()
	if guests, _ := a.Processes(t); len(guests) != 0 {
		t.Errorf("it was started again a fourth time")
	}
	if r := w.CLI(tombolo.Path, "env", "show", "shop"); r.Exit != 0 || !strings.Contains(r.Out, "failed") || !strings.Contains(r.Out, "killed") {
		t.Errorf("env show does not say what became of it: %s%s", r.Out, r.Err)
	}

	w.run(tombolo.Path, nil, "env", "start", "shop")
	w.Seen(env, "web", "running")
	a.Console(t, env, "web").Type("s")
	off := w.Seen(env, "web", "stopped")
	if off.Cause == nil || off.Cause.Code != "guest-shutdown" || off.Declared != "stopped" || off.Restart != nil && off.Restart.Allowed {
		t.Errorf("the guest switched itself off: %s", JSON(off))
	}
	w.Rest()
	if guests, _ := a.Processes(t); len(guests) != 0 {
		t.Errorf("it was started again behind its back")
	}
	w.run(tombolo.Path, nil, "env", "delete", "shop", "--yes")
	w.Clean()
	a.Left(t, env)
}

// TestMemoryOfOtherHardware: memory that was taken on another processor is not
// resumed: the machine stays suspended and says so; with consent it boots cold.
func TestMemoryOfOtherHardware(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, Emulated{Kind: tombolo}, Options{Regions: []string{"beijing"}})
	w.BoundPools()
	a := w.Region("beijing")
	env := w.boot(tombolo, "shop", "beijing")
	a.Console(t, env, "web").Ask("mx")
	w.run(tombolo.Path, nil, "env", "suspend", "shop")
	w.Seen(env, "web", "suspended")
	a.Process.Kill()
	path := filepath.Join(a.Dir, "environments", env, "graph.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var stored struct {
		Nodes []struct{ Properties map[string]string }
	}
	if err := json.Unmarshal(text, &stored); err != nil {
		t.Fatal(err)
	}
	cpu := ""
	for _, n := range stored.Nodes {
		cpu += n.Properties["memory-cpu"]
	}
	changed := strings.Replace(string(text), `"memory-cpu":"`+cpu+`"`, `"memory-cpu":"EPYC-v4"`, 1)
	if cpu == "" || changed == string(text) {
		t.Fatalf("no processor in %s", text)
	}
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Start()
	r := w.refused(tombolo.Path, 9, "memory-incompatible", "env", "resume", "shop")
	if !strings.Contains(r.Err, "--cold") {
		t.Errorf("it is not said what to do: %s", r.Err)
	}
	w.SeenSo(env, "web", "suspended, and says why", func(m api.Machine) bool {
		return m.Observed == "suspended" && m.Cause != nil && m.Cause.Code == "memory-incompatible"
	})
	if guests, _ := a.Processes(t); len(guests) != 0 {
		t.Errorf("%d machines' processes are left of the attempt", len(guests))
	}
	w.run(tombolo.Path, nil, "env", "start", "shop", "--cold")
	w.Seen(env, "web", "running")
	if got := a.Console(t, env, "web").Ask("c"); got.Mark != '-' {
		t.Errorf("the guest has the mark %q though it was booted", got.Mark)
	}
	w.run(tombolo.Path, nil, "env", "delete", "shop", "--yes")
	w.Clean()
	a.Left(t, env)
}
