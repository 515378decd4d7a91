package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/testenv/guest"
	"github.com/tombolo-vdc/tombolo/testenv/process"
)

// act is a part of the story.
type act struct {
	title string
	play  func(*demo, context.Context) error
}

func acts() []act {
	return []act{
		{"The program, and a small Linux: Debian's cloud kernel and busybox on a disk that a BIOS boots", (*demo).prepare},
		{"Two regions in one process, each with public addresses of its own", (*demo).regions},
		{"Three machines on a network of their own, behind an edge in Beijing", (*demo).create},
		{"The web machine answers at Beijing's address, and finds the others by name", (*demo).reach},
		{"All of it is saved while it runs, with its memory, and kept in both regions", (*demo).save},
		{"In Sydney it goes on from where it was: the same boot, the counter goes on, at an address of Sydney's", (*demo).instantiate},
		{"Suspended, no process is left of it; resumed, it goes on", (*demo).suspend},
		{"A machine's serial line, and its screen", (*demo).look},
		{"What the edge lets in is declared; the difference is shown before it is made", (*demo).edge},
		{"A machine is killed, and the policy has it started again", (*demo).kill},
		{"Deleted, nothing is left", (*demo).remove},
	}
}

func (d *demo) prepare(ctx context.Context) (err error) {
	began := time.Now()
	if d.binary, err = process.Build(ctx, d.dir); err != nil {
		return err
	}
	d.note("tombolo is built (%.1f s).", time.Since(began).Seconds())
	began = time.Now()
	image, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		return err
	}
	d.note("guest.raw: %d MiB, Linux %s (%.1f s; kept for the next time in %s).", image.Size>>20, image.Kernel, time.Since(began).Seconds(), filepath.Dir(image.Path))
	return image.CopyTo(filepath.Join(d.dir, "guest.raw"))
}

func (d *demo) regions(ctx context.Context) (err error) {
	flags := []string{"--regions", "beijing,sydney", "--accelerator", d.accelerator}
	fmt.Fprintf(d.out, "$ tombolo up --data data %s &\n\n", strings.Join(flags, " "))
	if d.server, err = process.Up(ctx, d.binary, filepath.Join(d.dir, "data"), flags...); err != nil {
		return err
	}
	for _, p := range [][2]string{{"beijing", "203.0.113.80/28"}, {"sydney", "198.51.100.80/28"}} {
		if err := d.show(ctx, "pool", "add", "--region", p[0], "--type", "public-address", p[1], "--bind", "auto"); err != nil {
			return err
		}
	}
	d.note("--bind auto: an address is really bound in 127.0.0.0/8, port 80 as 8080, which needs no privilege.")
	fmt.Fprintln(d.out)
	return d.show(ctx, "region", "host", "beijing")
}

// shop is the environment.
const shop = `name: Shop
networks:
- {name: lan, subnet: 10.10.0.0/24}
machines:
- name: web
  memory_mib: 128
  depends_on: [app, db]
  disks: [{name: root, file: guest.raw}]
  interfaces: [{network: lan, address: 10.10.0.10, public_address: auto, open: [tcp/80]}]
- {name: app, memory_mib: 128, disks: [{name: root, file: guest.raw}], interfaces: [{network: lan}]}
- {name: db, memory_mib: 128, disks: [{name: root, file: guest.raw}], interfaces: [{network: lan}]}
`

func (d *demo) create(ctx context.Context) error {
	if err := d.file("shop.yaml", shop); err != nil {
		return err
	}
	if err := d.show(ctx, "env", "create", "-f", "shop.yaml", "--region", "beijing", "--wait"); err != nil {
		return err
	}
	m, err := d.machine(ctx, "shop", "web")
	if err != nil {
		return err
	}
	d.beijing, err = reached(m, 80)
	return err
}

// machine gives what is shown of one machine.
func (d *demo) machine(ctx context.Context, env, name string) (m api.Machine, err error) {
	var e struct{ Machines []api.Machine }
	if err := d.ask(ctx, &e, "env", "show", env); err != nil {
		return m, err
	}
	for _, m := range e.Machines {
		if m.ID == name {
			return m, nil
		}
	}
	return m, fmt.Errorf("%s has no machine %s", env, name)
}

// reached is where a machine is reached from the outside.
func reached(m api.Machine, port int) (string, error) {
	for _, p := range m.Public {
		for _, o := range p.Open {
			if int(o.Port) == port && o.At != "" {
				return "http://" + o.At, nil
			}
		}
	}
	return "", fmt.Errorf("%s is reached nowhere at port %d", m.ID, port)
}

func (d *demo) reach(ctx context.Context) (err error) {
	if _, err = d.answer(ctx, d.beijing+"/"); err != nil {
		return err
	}
	for _, peer := range []string{"app", "db"} {
		if err := d.peer(ctx, d.beijing, peer); err != nil {
			return err
		}
	}
	_, err = d.curl(ctx, d.beijing+"/write?text=written-in-Beijing")
	return err
}

// peer has the web machine ask another one by its name.
func (d *demo) peer(ctx context.Context, web, name string) error {
	a, err := d.answer(ctx, web+"/peer?url=http://"+name+"/")
	if err == nil && a.Hostname != name {
		err = fmt.Errorf("%s was asked, and %s answers", name, a.Hostname)
	}
	return err
}

func (d *demo) save(ctx context.Context) (err error) {
	if d.before, err = d.answer(ctx, d.beijing+"/"); err != nil {
		return err
	}
	if err := d.show(ctx, "env", "save", "shop", "--new", "Shop", "--memory", "--regions", "beijing,sydney", "--wait"); err != nil {
		return err
	}
	// The fact that the work was done carries how long the machines stood still.
	out, err := d.tombolo(ctx, "events", "--type", "work.done", "--region", "beijing", "-o", "json")
	if err != nil {
		return err
	}
	pause := 0
	for line := range strings.Lines(string(out)) {
		var done struct {
			Data struct {
				Result struct {
					Pause int `json:"pause_ms"`
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &done); err != nil {
			return err
		}
		pause = max(pause, done.Data.Result.Pause)
	}
	if pause == 0 {
		return errors.New("the save does not say how long the machines stood still")
	}
	d.note("The three machines stood still together for %d ms (pause_ms of `tombolo events --type work.done -o json`).", pause)
	fmt.Fprintln(d.out)
	if err := d.show(ctx, "where", "shop"); err != nil {
		return err
	}
	after, err := d.answer(ctx, d.beijing+"/")
	if err != nil {
		return err
	}
	return wentOn(d.before, after)
}

func (d *demo) instantiate(ctx context.Context) (err error) {
	if err := d.show(ctx, "template", "instantiate", "shop", "--region", "sydney", "--name", "shop-in-sydney", "--wait"); err != nil {
		return err
	}
	if err := d.show(ctx, "env", "show", "shop-in-sydney"); err != nil {
		return err
	}
	m, err := d.machine(ctx, "shop-in-sydney", "web")
	if err != nil {
		return err
	}
	if d.sydney, err = reached(m, 80); err != nil {
		return err
	}
	there, err := d.answer(ctx, d.sydney+"/")
	if err == nil {
		err = wentOn(d.before, there)
	}
	if err != nil {
		return err
	}
	d.note("The same boot %s: its counter was %d when it was saved, and is %d.", there.BootID, d.before.Counter.Value, there.Counter.Value)
	fmt.Fprintln(d.out)
	if text, err := d.curl(ctx, d.sydney+"/read"); err != nil || strings.TrimSpace(text) != "written-in-Beijing" {
		return errors.Join(err, fmt.Errorf("the disk in Sydney has %q", text))
	}
	return d.peer(ctx, d.sydney, "db")
}

func (d *demo) suspend(ctx context.Context) (err error) {
	if d.before, err = d.answer(ctx, d.beijing+"/"); err != nil {
		return err
	}
	if err := d.show(ctx, "env", "suspend", "shop", "--wait"); err != nil {
		return err
	}
	if err := d.show(ctx, "region", "host", "beijing"); err != nil {
		return err
	}
	if running, err := d.running(ctx, "beijing"); err != nil || len(running) > 0 {
		return errors.Join(err, fmt.Errorf("%d machines run in Beijing", len(running)))
	}
	if err := d.show(ctx, "env", "resume", "shop", "--wait"); err != nil {
		return err
	}
	after, err := d.answer(ctx, d.beijing+"/")
	if err != nil {
		return err
	}
	return wentOn(d.before, after)
}

// running is what a region's host says that runs there.
func (d *demo) running(ctx context.Context, region string) ([]machines.Status, error) {
	var host struct{ Running []machines.Status }
	err := d.ask(ctx, &host, "region", "host", region)
	return host.Running, err
}

func (d *demo) look(ctx context.Context) error {
	if err := d.typed(ctx, "shop", "db", "echo $(hostname) runs Linux $(uname -r) for $(cut -d. -f1 /proc/uptime) s", "db runs Linux"); err != nil {
		return err
	}
	if err := d.show(ctx, "env", "screenshot", "shop", "--vm", "web", "--file", "web.png"); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(d.dir, "web.png"))
	if err != nil {
		return err
	}
	defer f.Close()
	picture, err := png.Decode(f)
	if err != nil {
		return err
	}
	d.note("%s: a picture of %d by %d.", f.Name(), picture.Bounds().Dx(), picture.Bounds().Dy())
	return nil
}

const (
	openMore = "open:\n- {resource: web.public, ports: [tcp/80, \"tcp/8081:80\"]}\nrules:\n- {action: deny, from: [outside], to: [db]}\n"
	openLess = "open:\n- {resource: web.public, ports: [tcp/80]}\n"
)

func (d *demo) edge(ctx context.Context) error {
	if err := d.file("more.yaml", openMore); err != nil {
		return err
	}
	for _, args := range [][]string{{"--dry-run"}, nil} {
		if err := d.show(ctx, append([]string{"env", "edge", "apply", "shop", "-f", "more.yaml"}, args...)...); err != nil {
			return err
		}
	}
	m, err := d.machine(ctx, "shop", "web")
	if err != nil {
		return err
	}
	second, err := reached(m, 8081)
	if err != nil {
		return err
	}
	if _, err := d.answer(ctx, second+"/"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "less.yaml"), []byte(openLess), 0o644); err != nil {
		return err
	}
	if err := d.show(ctx, "env", "edge", "apply", "shop", "-f", "less.yaml"); err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", strings.TrimPrefix(second, "http://"), 5*time.Second)
	if err == nil {
		return errors.Join(fmt.Errorf("%s is open still", second), c.Close())
	}
	d.note("%s is closed again.", second)
	return nil
}

func (d *demo) kill(ctx context.Context) error {
	before, err := d.machine(ctx, "shop", "app")
	if err != nil {
		return err
	}
	running, err := d.running(ctx, "beijing")
	if err != nil {
		return err
	}
	pid := 0
	for _, m := range running {
		if m.ID.Machine == "app" {
			pid = m.PID
		}
	}
	if pid == 0 {
		return errors.New("app does not run in Beijing")
	}
	d.note("app is process %d (tombolo region host beijing).", pid)
	fmt.Fprintf(d.out, "\n$ kill -KILL %s\n\n", strconv.Itoa(pid))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	died, told := time.Now(), false
	if err := until(ctx, func() error {
		m, err := d.machine(ctx, "shop", "app")
		if err == nil && m.Observed == "failed" && m.Cause != nil && m.Restart != nil && !told {
			told = true
			d.note("app has %s: %s\n   the policy restart: %s", m.Observed, m.Cause.Text, m.Restart.Why)
		}
		if err == nil && (m.Since == before.Since || m.Observed != "running") {
			err = fmt.Errorf("app is %s since %v", m.Observed, m.Since)
		}
		return err
	}); err != nil {
		return err
	}
	d.note("It runs again %.1f s after its death.", time.Since(died).Seconds())
	fmt.Fprintln(d.out)
	return d.peer(ctx, d.beijing, "app")
}

func (d *demo) remove(ctx context.Context) error {
	for _, args := range [][]string{{"env", "delete", "shop", "--yes", "--wait"}, {"env", "delete", "shop-in-sydney", "--yes", "--wait"},
		{"template", "delete", "shop", "--yes", "--wait"}, {"orphans", "ls"}, {"pool", "ls"}} {
		if err := d.show(ctx, args...); err != nil {
			return err
		}
	}
	for _, region := range []string{"beijing", "sydney"} {
		if running, err := d.running(ctx, region); err != nil || len(running) > 0 {
			return errors.Join(err, fmt.Errorf("%d machines run in %s", len(running), region))
		}
	}
	if err := d.end(); err != nil {
		return err
	}
	if pids, err := processes(d.dir); err != nil || len(pids) > 0 {
		return errors.Join(err, fmt.Errorf("processes are left: %v", pids))
	}
	d.note("The program has ended, and no process of it is left.")
	return nil
}
