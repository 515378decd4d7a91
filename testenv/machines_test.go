package testenv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/testenv/guest"
)

// site is `tombolo up` of an ordinary user, with regions that run machines, and
// the command line beside it.
type site struct {
	t        testing.TB
	ctx      context.Context
	dir      string
	tombolo  string
	as       []string // what runs a command as that user
	flags    []string // of up
	process  *Process
	cleanups []func()
}

// ordinary is the user who runs a site where the tests run as root.
const ordinary = "1907"

// newSite prepares a site whose folder has a guest's disk and this file.
func newSite(t testing.TB, file string, flags ...string) *site {
	t.Helper()
	s := newRootSite(t, file, flags...)
	if os.Getuid() == 0 {
		if out, err := exec.Command("chown", "-R", ordinary+":"+ordinary, s.dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		s.as = []string{"setpriv", "--reuid=" + ordinary, "--regid=" + ordinary, "--clear-groups", "--inh-caps=-all"}
	}
	return s
}

// newRootSite is newSite, of the user that the tests run as.
func newRootSite(t testing.TB, file string, flags ...string) *site {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "site") // not the test's own, which others may not enter
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, ctx: ctx, dir: dir, tombolo: filepath.Join(dir, "tombolo"), flags: flags}
	t.Cleanup(s.close)
	image, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for to, from := range map[string]string{"tombolo": realProgram(t).Path, "guest.raw": image.Path} {
		if out, err := exec.Command("cp", "--sparse=always", from, filepath.Join(dir, to)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// close ends what is still there, and says how it was when the test has failed.
func (s *site) close() {
	if s.t.Failed() && s.process != nil {
		s.t.Logf("%s\n%s", s.process.Log(), s.run("events").Out)
	}
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
	for _, pid := range s.processes() {
		p, err := os.FindProcess(pid)
		if err == nil {
			_ = p.Kill()
		}
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Error(err)
	}
}

// processes are those whose command line names the site's folder.
func (s *site) processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && bytes.Contains(line, []byte(s.dir)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *site) env() []string {
	return []string{"HOME=" + s.dir, "XDG_CONFIG_HOME=" + filepath.Join(s.dir, "config"), "TOMBOLO_CONTEXT=" + filepath.Join(s.dir, "data", "context.json")}
}

// up starts the program, which goes on where it was.
func (s *site) up() {
	s.t.Helper()
	command := append(append(slices.Clone(s.as), s.tombolo, "up", "--data", filepath.Join(s.dir, "data"), "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0",
		"--sync", "lazy", "--accelerator", "tcg", "-o", "json"), s.flags...)
	p, err := start(s.t, func(f func()) { s.cleanups = append(s.cleanups, f) }, "tombolo up", filepath.Join(s.dir, "up.log"), s.env(), command[0], command[1:]...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.process = p
	if err := p.Ready(s.ctx, new(struct{})); err != nil {
		s.t.Fatal(err)
	}
}

// down ends it as ctrl-C does.
func (s *site) down() {
	s.t.Helper()
	s.process.Interrupt()
	if code := s.process.Exit(s.ctx); code != 0 {
		s.t.Fatalf("up ended with %d:\n%s", code, s.process.Log())
	}
}

// run runs the command line.
func (s *site) run(args ...string) Ran {
	s.t.Helper()
	command := append(append(slices.Clone(s.as), s.tombolo, "-q"), args...)
	c := exec.CommandContext(s.ctx, command[0], command[1:]...)
	c.Dir, c.Env = s.dir, append([]string{"PATH=" + os.Getenv("PATH")}, s.env()...)
	var out, talk strings.Builder
	c.Stdout, c.Stderr = &out, &talk
	if err := c.Run(); c.ProcessState == nil {
		s.t.Fatalf("tombolo %s: %v", strings.Join(args, " "), err)
	}
	return Ran{c.ProcessState.ExitCode(), out.String(), talk.String()}
}

// ok runs the command line and demands exit 0.
func (s *site) ok(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.Exit != 0 {
		s.t.Fatalf("tombolo %s: exit %d: %s%s", strings.Join(args, " "), r.Exit, r.Out, r.Err)
	}
	return r.Out
}

// json runs the command line and reads its answer.
func (s *site) json(into any, args ...string) {
	s.t.Helper()
	out := s.ok(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		s.t.Fatalf("tombolo %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// shownMachines is an environment with its machines.
type shownMachines struct {
	ID       string
	Machines []api.Machine
}

// machine gives what is shown of one machine.
func (s *site) machine(env, name string) api.Machine {
	s.t.Helper()
	var e shownMachines
	s.json(&e, "env", "show", env)
	for _, m := range e.Machines {
		if m.ID == name {
			return m
		}
	}
	s.t.Fatalf("%s has no machine %s: %+v", env, name, e)
	return api.Machine{}
}

// reached is where an environment's web machine is reached from the outside.
func (s *site) reached(env string) string {
	s.t.Helper()
	for _, p := range s.machine(env, "web").Public {
		for _, o := range p.Open {
			return "http://" + o.At
		}
	}
	s.t.Fatalf("the web machine of %s is reached nowhere", env)
	return ""
}

// get asks a machine over HTTP until it answers.
func (s *site) get(url string) []byte {
	s.t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		resp, err := client.Get(url)
		if err == nil {
			b, rerr := io.ReadAll(resp.Body)
			resp.Body.Close()
			if rerr == nil && resp.StatusCode == http.StatusOK {
				return b
			}
			err = fmt.Errorf("%s: %s %v", resp.Status, b, rerr)
		}
		if pause(s.ctx) != nil {
			s.t.Fatalf("%s does not answer: %v", url, err)
		}
	}
}

// answer asks a guest what it is.
func (s *site) answer(url string) (a guest.Answer) {
	s.t.Helper()
	b := s.get(url)
	if err := json.Unmarshal(b, &a); err != nil {
		s.t.Fatalf("%s: %v: %s", url, err, b)
	}
	return a
}

// until shows a machine until it is as it should be.
func (s *site) until(env, name string, is func(api.Machine) bool) api.Machine {
	s.t.Helper()
	for {
		m := s.machine(env, name)
		if is(m) {
			return m
		}
		if pause(s.ctx) != nil {
			s.t.Fatalf("machine %s stays %+v", name, m)
		}
	}
}

// wentOn demands that a guest lived on, without a boot, from one answer to another.
func wentOn(t testing.TB, what string, before, after guest.Answer) {
	t.Helper()
	b, a := before, after
	if a.BootID != b.BootID || a.Uptime < b.Uptime || a.Counter.Value < b.Counter.Value || a.Counter.PID != b.Counter.PID || !a.Counter.Open ||
		a.Hostname != b.Hostname || fmt.Sprint(a.Interfaces) != fmt.Sprint(b.Interfaces) {
		t.Errorf("%s: it was %+v and is %+v", what, b, a)
	}
}

const shop = `name: Shop
networks:
- {name: lan, subnet: 10.10.0.0/24}
machines:
- {name: web, memory_mib: 128, disks: [{name: root, file: guest.raw}], depends_on: [app],
   interfaces: [{network: lan, address: 10.10.0.10, public_address: auto, open: [tcp/80]}]}
- {name: app, memory_mib: 128, disks: [{name: root, file: guest.raw}], depends_on: [db], interfaces: [{network: lan}]}
- {name: db, memory_mib: 128, disks: [{name: root, file: guest.raw}], interfaces: [{network: lan}]}
vapps:
- {name: back, machines: [app, db]}
`

// TestMachinesRunInEveryRegion is the story of real machines on a real network:
// three of them run behind an edge in Beijing, are saved with their memory while
// they run, and go on in Sydney from where they were, reached at Sydney's address.
func TestMachinesRunInEveryRegion(t *testing.T) {
	s := newSite(t, shop, "--regions", "beijing,sydney")
	s.up()
	s.ok("pool", "add", "--region", "beijing", "--type", "public-address", "203.0.113.16/28", "--bind", "auto")
	s.ok("pool", "add", "--region", "sydney", "--type", "public-address", "198.51.100.16/28", "--bind", "auto")
	s.ok("env", "create", "-f", "shop.yaml", "--region", "beijing")
	beijing := s.reached("shop")
	web := s.answer(beijing)
	if web.Hostname != "web" || len(web.Interfaces) != 1 || !slices.Contains(web.Interfaces[0].Addresses, "10.10.0.10/24") || !web.Counter.Open {
		t.Fatalf("the web machine says %+v", web)
	}
	for _, peer := range []string{"app", "db"} { // by name, through the segment
		if a := s.answer(beijing + "/peer?url=http://" + peer + "/"); a.Hostname != peer {
			t.Errorf("%s says %+v", peer, a)
		}
	}
	s.get(beijing + "/write?text=before")

	s.ok("env", "save", "shop", "--new", "Shop", "--memory", "--regions", "beijing,sydney")
	saved := s.answer(beijing)
	wentOn(t, "while it was saved", web, saved)
	var made struct {
		Environment string
		Bytes       int64 `json:"bytes_between_regions"`
	}
	s.json(&made, "template", "instantiate", "shop", "--region", "sydney", "--name", "there")
	if made.Bytes != 0 {
		t.Errorf("%d bytes crossed between regions", made.Bytes)
	}
	sydney := s.reached("there")
	if sydney == beijing || !strings.HasPrefix(sydney, "http://127.51.100.") {
		t.Errorf("it is reached at %s in Sydney, and at %s in Beijing", sydney, beijing)
	}
	there := s.answer(sydney)
	wentOn(t, "in Sydney", web, there)
	if string(s.get(sydney+"/read")) != "before\n" {
		t.Error("what was written before is not on Sydney's disk")
	}
	s.get(sydney + "/write?text=sydney")
	if a := s.answer(sydney + "/peer?url=http://db/"); a.Hostname != "db" {
		t.Errorf("the web machine in Sydney finds %+v", a)
	}
	if string(s.get(beijing+"/read")) != "before\n" {
		t.Error("what was written in Sydney is seen in Beijing")
	}
	t.Run("power", func(t *testing.T) { s.power(t, beijing) })
	t.Run("console", func(t *testing.T) { s.consoles(t) })
	t.Run("the agent ends", func(t *testing.T) { s.outlives(t, beijing) })
	t.Run("without its template", func(t *testing.T) {
		before := s.answer(sydney)
		s.ok("template", "delete", "shop", "--yes")
		s.ok("env", "suspend", "there")
		s.ok("env", "resume", "there")
		wentOn(t, "without its template", before, s.answer(sydney))
	})

	s.ok("env", "delete", "shop", "--yes")
	s.ok("env", "delete", "there", "--yes")
	var orphans struct{ Items []any }
	if s.json(&orphans, "orphans", "ls"); len(orphans.Items) > 0 {
		t.Errorf("orphans: %v", orphans.Items)
	}
	s.down()
	if left := s.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

// power has machines suspended, resumed, stopped, started, powered off, alone
// and as a vApp.
func (s *site) power(t *testing.T, web string) {
	before := s.answer(web)
	s.ok("env", "suspend", "shop")
	if m := s.machine("shop", "web"); m.Observed != "suspended" || m.Declared != "suspended" {
		t.Errorf("after suspend: %+v", m)
	}
	s.ok("env", "resume", "shop")
	after := s.answer(web)
	wentOn(t, "after suspend and resume", before, after)

	db := s.answer(web + "/peer?url=http://db/")
	s.ok("env", "stop", "shop", "--vapp", "back")
	for name, want := range map[string]string{"web": "running", "app": "stopped", "db": "stopped"} {
		if m := s.machine("shop", name); m.Observed != want || m.Declared != want {
			t.Errorf("after the stop of the vApp %s is %+v", name, m)
		}
	}
	s.ok("env", "start", "shop", "--vapp", "back")
	again := s.answer(web + "/peer?url=http://db/")
	if again.BootID == db.BootID || again.Counter.Value < db.Counter.Value {
		t.Errorf("stopped and started, db was %+v and is %+v: another boot, and the same disk, are expected", db, again)
	}
	s.ok("env", "poweroff", "shop", "--vm", "app")
	if m := s.machine("shop", "app"); m.Observed != "powered-off" {
		t.Errorf("after poweroff: %+v", m)
	}
	s.ok("env", "start", "shop")
	if m := s.machine("shop", "app"); m.Observed != "running" || m.Accelerator != "tcg" {
		t.Errorf("after start: %+v", m)
	}
	s.answer(web + "/peer?url=http://app/")
}

// consoles joins a machine's serial line and takes what is on its screen.
func (s *site) consoles(t *testing.T) {
	s.ok("env", "screenshot", "shop", "--vm", "web", "--file", "web.png")
	f, err := os.Open(filepath.Join(s.dir, "web.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if picture, err := png.Decode(f); err != nil || picture.Bounds().Dx() < 320 {
		t.Errorf("the screenshot: %v", err)
	}
	for _, name := range []string{"web", "db"} {
		command := append(append(slices.Clone(s.as), s.tombolo, "-q"), "env", "console", "shop", "--vm", name)
		c := exec.CommandContext(s.ctx, command[0], command[1:]...)
		c.Dir, c.Env = s.dir, append([]string{"PATH=" + os.Getenv("PATH")}, s.env()...)
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(in, "\necho this is $(hostname) $((6*7))\n"); err != nil {
			t.Fatal(err)
		}
		lines, seen := bufio.NewScanner(out), false
		for !seen && lines.Scan() {
			seen = strings.Contains(lines.Text(), "this is "+name+" 42")
		}
		if !seen {
			t.Errorf("the console of %s: %v", name, lines.Err())
		}
		if err := c.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		_ = c.Wait() // it was interrupted
	}
}

// outlives has the program killed, and ended, under machines that run.
func (s *site) outlives(t *testing.T, web string) {
	resp, err := http.Get(web + "/ticks") // stays open
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ticks := bufio.NewScanner(resp.Body)
	tick := func() {
		t.Helper()
		if !ticks.Scan() {
			t.Fatalf("the open connection ended: %v", ticks.Err())
		}
	}
	tick()
	before := s.answer(web)
	s.process.Kill()
	tick()
	wentOn(t, "while there was no agent", before, s.answer(web))
	s.up()
	tick()
	s.get(web + "/write?text=after")
	wentOn(t, "with the next agent", before, s.answer(web))
	tick()
	resp.Body.Close()

	before = s.answer(web)
	s.down()
	if left := s.processes(); len(left) > 0 {
		t.Errorf("told to end, the program leaves processes: %v", left)
	}
	s.up()
	s.until("shop", "web", func(m api.Machine) bool { return m.Observed == "running" })
	wentOn(t, "after the end and the next start", before, s.answer(web))
}

// TestMachinesOnTheKernelsNetworks is the same on bridges, taps and nftables, for
// what those do: it needs root.
func TestMachinesOnTheKernelsNetworks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("networks of the kernel need root")
	}
	s := newRootSite(t, shop, "--regions", "beijing,sydney", "--networks", "kernel")
	s.up()
	s.ok("pool", "add", "--region", "beijing", "--type", "public-address", "203.0.113.48/28")
	s.ok("pool", "add", "--region", "sydney", "--type", "public-address", "198.51.100.48/28")
	s.ok("env", "create", "-f", "shop.yaml", "--region", "beijing")
	beijing := s.reached("shop")
	if beijing != "http://203.0.113.48:80" {
		t.Errorf("in Beijing it is reached at %s", beijing)
	}
	before := s.answer(beijing)
	if a := s.answer(beijing + "/peer?url=http://db/"); a.Hostname != "db" {
		t.Errorf("db says %+v", a)
	}
	s.ok("env", "save", "shop", "--new", "Shop", "--memory", "--regions", "beijing,sydney")
	s.ok("template", "instantiate", "shop", "--region", "sydney", "--name", "there")
	sydney := s.reached("there")
	if sydney != "http://198.51.100.48:80" {
		t.Errorf("in Sydney it is reached at %s", sydney)
	}
	wentOn(t, "in Sydney", before, s.answer(sydney))
	wentOn(t, "in Beijing", before, s.answer(beijing))
	s.process.Kill() // what the kernel has stays
	s.answer(sydney)
	s.up()
	wentOn(t, "with the next agent", before, s.answer(sydney))
	s.ok("env", "suspend", "there")
	s.ok("env", "resume", "there")
	wentOn(t, "after suspend and resume", before, s.answer(sydney))
	s.ok("env", "delete", "shop", "--yes")
	s.ok("env", "delete", "there", "--yes")
	for _, region := range []string{"beijing", "sydney"} { // as the kernel shows it
		var host struct{ Running, Ports, Edges []any }
		if s.json(&host, "region", "host", region); len(host.Running)+len(host.Ports)+len(host.Edges) > 0 {
			t.Errorf("%s has %+v", region, host)
		}
	}
	s.down()
	if left := s.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}
