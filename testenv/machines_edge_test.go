package testenv

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/handlers/api"
)

const plant = `name: Plant
networks:
- {name: lan, subnet: 10.10.0.0/24}
- {name: dmz, subnet: 10.30.0.0/24}
- {name: back, subnet: 10.20.0.0/24, isolated: true}
machines:
- {name: web, memory_mib: 128, disks: [{name: root, file: guest.raw}],
   interfaces: [{network: lan, public_address: auto, open: [tcp/80]}]}
- {name: app, memory_mib: 128, disks: [{name: root, file: guest.raw}],
   interfaces: [{network: dmz, address: 10.30.0.9}, {network: back, address: 10.20.0.9}]}
- {name: db, memory_mib: 128, disks: [{name: root, file: guest.raw}], interfaces: [{network: back, address: 10.20.0.7}]}
vapps:
- {name: inner, machines: [app]}
edge:
  source_ports: 30000-30099
`

// fails asks a machine for something that it cannot have.
func (s *site) fails(what, target string) {
	s.t.Helper()
	client := &http.Client{Timeout: 30 * time.Second}
	resp, err := client.Get(target)
	if err != nil {
		s.t.Errorf("%s: %v", what, err)
		return
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusBadGateway {
		s.t.Errorf("%s: %s: %s (%v)", what, resp.Status, b, err)
	}
}

func peer(web, target string) string { return web + "/peer?url=" + url.QueryEscape(target) }

// TestEdgeAndSaves has an environment of three networks: what reaches what, and
// how that is changed and changed back; what is saved of it while it runs, and
// what becomes of that; and single machines that come and go.
func TestEdgeAndSaves(t *testing.T) {
	s := newSite(t, plant, "--regions", "beijing,sydney")
	s.file("single.yaml", "name: single\nmachines:\n- {name: web, memory_mib: 128, disks: [{name: root, file: guest.raw}]}\n")
	s.up()
	s.ok("pool", "add", "--region", "beijing", "--type", "public-address", "203.0.113.32/28", "--bind", "auto")
	s.ok("pool", "add", "--region", "sydney", "--type", "public-address", "198.51.100.32/28", "--bind", "auto")
	s.ok("env", "create", "-f", "shop.yaml", "--region", "beijing")
	web := s.reached("plant")
	s.answer(web)
	app := s.answer(peer(web, "http://10.30.0.9/"))
	if len(app.Interfaces) != 2 || app.Hostname != "app" {
		t.Errorf("app, in another segment, says %+v", app)
	}
	s.fails("an isolated segment is reached", peer(web, "http://10.20.0.7/"))
	if b := s.get(peer(web, peer("http://10.30.0.9", "http://10.20.0.7/"))); !strings.Contains(string(b), `"hostname":"db"`) {
		t.Errorf("within the isolated segment: %s", b)
	}
	s.get(web + "/ping?host=10.10.0.1")
	s.get(web + "/ping?host=app")
	var port int
	if _, err := fmt.Sscanf(s.httpPort(), "%d", &port); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"10.10.0.1", "127.0.0.1", "169.254.169.254"} {
		s.fails("the host's own services are reached", peer(web, fmt.Sprintf("http://%s:%d/livez", host, port)))
	}
	figures := s.metrics("beijing")
	for _, want := range []string{`tombolo_port_frames_total{direction="in"`, `tombolo_edge_connections_opened_total{`, `tombolo_machine_memory_bytes{`} {
		if !strings.Contains(figures, want) {
			t.Errorf("the region's figures have no %s", want)
		}
	}
	t.Run("rules", func(t *testing.T) { s.rules(t, web) })
	t.Run("save", func(t *testing.T) { s.saves(t, web) })
	t.Run("single", func(t *testing.T) { s.single(t) })
	s.ok("env", "delete", "plant", "--yes")
	s.down()
	if left := s.processes(); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

func (s *site) file(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// metrics asks a region's agent for its figures, by a ticket.
func (s *site) metrics(region string) string {
	s.t.Helper()
	admin, err := contexts.Read(filepath.Join(s.dir, "data", "context.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	ask := &Client{admin.HTTP, admin.Token, http.DefaultClient, new(atomic.Uint64)}
	var got struct{ Ticket string }
	var at api.OneRegion
	if err := errors.Join(ask.Do(s.ctx, "POST", "/v1/regions/"+region+"/ticket", struct{}{}, &got), ask.Get(s.ctx, "/v1/regions/"+region, &at)); err != nil {
		s.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://"+at.HTTP+"/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+got.Ticket)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("the figures of %s: %s: %s (%v)", region, resp.Status, b, err)
	}
	return string(b)
}

// httpPort is the port of the control plane.
func (s *site) httpPort() string {
	s.t.Helper()
	var c struct{ HTTP string }
	s.json(&c, "context", "show")
	_, port, err := net.SplitHostPort(hostPort(c.HTTP))
	if err != nil {
		s.t.Fatalf("%+v: %v", c, err)
	}
	return port
}

// rules changes the edge under machines that run, and changes it back.
func (s *site) rules(t *testing.T, web string) {
	before := s.ok("env", "edge", "show", "plant", "-o", "yaml")
	s.file("before.yaml", before)
	s.file("closed.yaml", "source_ports: 30000-30099\nrules:\n- {action: deny, protocol: tcp, from: [lan], to: [inner], ports: [\"80\"]}\nopen:\n- {resource: web.public, ports: [tcp/80, \"tcp/8081:80\"]}\n")
	planned := s.ok("env", "edge", "apply", "plant", "-f", "closed.yaml", "--dry-run")
	if !strings.Contains(planned, "deny") || !strings.Contains(planned, "8081") {
		t.Errorf("what would change: %s", planned)
	}
	s.answer(peer(web, "http://10.30.0.9/")) // nothing has
	s.ok("env", "edge", "apply", "plant", "-f", "closed.yaml")
	s.fails("a rule for its vApp denies it", peer(web, "http://10.30.0.9/"))
	var at string
	for _, o := range s.machine("plant", "web").Public[0].Open {
		if o.Port == 8081 {
			at = "http://" + o.At
		}
	}
	if a := s.answer(at); a.Hostname != "web" {
		t.Errorf("the second port leads to %+v", a)
	}
	s.ok("env", "edge", "apply", "plant", "-f", "before.yaml")
	if after := s.ok("env", "edge", "show", "plant", "-o", "yaml"); settings(after) != settings(before) {
		t.Errorf("changed back it is\n%s\nand was\n%s", after, before)
	}
	s.answer(peer(web, "http://10.30.0.9/"))
	if _, err := net.DialTimeout("tcp", strings.TrimPrefix(at, "http://"), 5*time.Second); err == nil {
		t.Errorf("%s is open still", at)
	}
}

// settings leaves out of a read what says when it was so.
func settings(read string) string {
	var out []string
	for line := range strings.Lines(read) {
		if word, _, _ := strings.Cut(line, ":"); !slices.Contains([]string{"position", "lag", "revision", "set_at"}, strings.TrimSpace(word)) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// saves has the environment saved while it runs and writes, disks only.
func (s *site) saves(t *testing.T, web string) {
	s.get(web + "/write?text=kept")
	before := s.answer(web)
	s.ok("env", "save", "plant", "--new", "Plant", "--regions", "beijing,sydney")
	after := s.answer(web)
	wentOn(t, "while its disks were saved", before, after)
	if pauses := s.ok("events", "--type", "work.done", "-o", "json"); !strings.Contains(pauses, `"pause_ms"`) {
		t.Error("nothing says how long the machines stood still")
	}
	s.get(web + "/write?text=later")

	r := s.run("template", "instantiate", "plant", "--region", "sydney", "--name", "copy", "--dry-run", "-o", "json")
	if r.Exit != 0 || !strings.Contains(r.Out, `"boot"`) || strings.Contains(r.Out, `"resume"`) {
		t.Errorf("the plan of an instantiation: %s%s", r.Out, r.Err)
	}
	s.ok("template", "instantiate", "plant", "--region", "sydney", "--name", "copy")
	there := s.reached("copy")
	copied := s.answer(there)
	if copied.BootID == before.BootID || copied.Counter.Value == 0 {
		t.Errorf("it was saved without memory, as %+v, and its copy is %+v", after, copied)
	}
	if text := string(s.get(there + "/read")); text != "kept\n" {
		t.Errorf("the copy's disk says %q", text)
	}
	if text := string(s.get(web + "/read")); text != "kept\nlater\n" {
		t.Errorf("the original's disk says %q", text)
	}
	// One environment reaches the other by its public address, from its own.
	public := s.machine("copy", "web").Public[0].Address
	if a := s.answer(peer(web, "http://"+public+"/")); a.BootID != copied.BootID {
		t.Errorf("from Beijing, %s is %+v", public, a)
	}
	s.ok("env", "delete", "copy", "--yes")
	s.fails("a deleted environment is reached", peer(web, "http://"+public+"/"))
	s.ok("template", "delete", "plant", "--yes")
}

// single has one machine come and go: what says that it is there does not come
// before it can be seen.
func (s *site) single(t *testing.T) {
	s.ok("env", "create", "-f", "single.yaml", "--region", "sydney")
	s.ok("env", "screenshot", "single", "--file", "single.png")
	if m := s.machine("single", "web"); m.Observed != "running" {
		t.Errorf("it is %+v", m)
	}
	var host struct{ Running []struct{ State string } }
	if s.json(&host, "region", "host", "sydney"); len(host.Running) != 1 || host.Running[0].State != "running" {
		t.Errorf("the region's host runs %+v", host)
	}
	s.ok("env", "stop", "single")
	s.until("single", "web", func(m api.Machine) bool { return m.Observed == "stopped" })
	if r := s.run("env", "screenshot", "single"); r.Exit == 0 || !strings.Contains(r.Err, "machine-unknown") {
		t.Errorf("a machine that is off is seen: %+v", r)
	}
	s.ok("env", "delete", "single", "--yes")
	if s.json(&host, "region", "host", "sydney"); len(host.Running) != 0 {
		t.Errorf("deleted, the host runs %+v", host)
	}
}
