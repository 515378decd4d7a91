package testenv

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// TestOffHost: what does not listen on loopback is reached by TLS alone: the bus,
// the control plane's HTTP and the regions', with certificates of the
// installation's own authority, which contexts and enrolments carry along.
func TestOffHost(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	const address = "10.77.0.1"
	n := newNamespace(t, tombolo.Path, "n", "ip link set lo up && ip addr add "+address+"/32 dev lo")
	w := &World{t: t, ctx: t.Context(), Dir: t.TempDir()}
	run := func(name string, args ...string) *Process {
		t.Helper()
		p, err := start(t, t.Cleanup, name, filepath.Join(w.Dir, name+".log"), []string{"HOME=" + w.Dir}, n.script, args...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	server := run("server", "server", "--data", filepath.Join(w.Dir, "server"), "--sync", "lazy", "--http", address+":0", "--nats", address+":0", "--regions", "beijing,sydney", "-o", "json")
	var at struct{ HTTP, NATS string }
	if err := server.Ready(w.ctx, &at); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(at.HTTP, "https://"+address) || !strings.HasPrefix(at.NATS, "tls://"+address) {
		t.Errorf("reached at %+v", at)
	}
	admin := filepath.Join(w.Dir, "server", "context.json")
	ok := func(args ...string) string {
		t.Helper()
		r := w.CLI(n.script, append([]string{"--context", admin}, args...)...)
		if r.Exit != 0 {
			t.Fatalf("tombolo %s: exit %d: %s", strings.Join(args, " "), r.Exit, r.Err)
		}
		return r.Out
	}
	for _, region := range []string{"beijing", "sydney"} {
		enrolment := filepath.Join(w.Dir, region+".json")
		ok("agent", "enroll", "--region", region, "-o", enrolment)
		var here AgentAddresses
		if err := run(region, "agent", "run", "--data", filepath.Join(w.Dir, region), "--enrolment", enrolment, "--http-listen", address+":0", "--transfer-listen", address+":0", "-o", "json").Ready(w.ctx, &here); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(here.HTTP, "https://"+address) {
			t.Errorf("%s is reached at %+v", region, here)
		}
	}
	w.File("disk.img", Disk(1, mib))
	w.File("shop.yaml", []byte(machine+"  - {name: web, disks: [{name: root, file: disk.img}]}\n"))
	ok("env", "create", "-f", "shop.yaml", "--region", "beijing")
	ok("template", "create", "--from-env", "shop", "--name", "Shop", "--regions", "beijing,sydney")
	ok("env", "export", "shop", "--to", filepath.Join(w.Dir, "out"))
	ok("orphans", "ls")
	if where := ok("where", "shop", "-o", "json"); strings.Count(where, `"verified": true`) != 2 {
		t.Errorf("not held in both regions: %s", where)
	}

	// The same for everything in one process.
	if err := run("up", "up", "--data", filepath.Join(w.Dir, "up"), "--sync", "lazy", "--http", "0.0.0.0:0", "--nats", "127.0.0.1:0", "--advertise", address, "--regions", "beijing", "-o", "json").Ready(w.ctx, &at); err != nil {
		t.Fatal(err)
	}
	ok("--context", filepath.Join(w.Dir, "up", "context.json"), "env", "create", "-f", "shop.yaml", "--region", "beijing")
	if region := ok("--context", filepath.Join(w.Dir, "up", "context.json"), "region", "show", "beijing", "-o", "json"); !strings.Contains(region, `"transfer": "`+address+`:`) {
		t.Errorf("regions on other hosts do not reach it: %s", region)
	}

	// Whom another authority vouches for is not believed, and nobody answers in clear.
	c, err := contexts.Read(admin)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*contexts.Context){
		"another authority": func(c *contexts.Context) {
			other, err := trust.OpenAuthority(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			c.Authority = string(other.PEM())
		},
		"none":     func(c *contexts.Context) { c.Authority = "" },
		"in clear": func(c *contexts.Context) { c.HTTP = strings.Replace(c.HTTP, "https:", "http:", 1) },
	} {
		wrong := c
		change(&wrong)
		b, err := json.Marshal(wrong)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "context.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if r := w.CLI(n.script, "--context", file, "region", "ls", "-o", "json"); r.Exit != 1 || r.Out != "" {
			t.Errorf("%s: exit %d, %s%s", name, r.Exit, r.Out, r.Err)
		}
	}
}
