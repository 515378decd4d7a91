package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/testenv/images"
)

// demo is the main job end to end, on the real program, with real disks: the
// same commands that a person would type, and what they answer.
type demo struct {
	*app
	dir     string
	number  string
	context contexts.Context
	file    string // of the context
	program *program.Program
}

func (a *app) demoCommand() *cobra.Command {
	d := &demo{app: a}
	var keep bool
	c := a.verb("demo", "Show the main job end to end, on real disks of this machine", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		return a.demo(ctx, d, keep)
	})
	c.Flags().StringVar(&d.number, "number", "73291467", "the template's number, eight digits")
	c.Flags().StringVar(&d.dir, "data", "", "folder to work in, which must not be there yet (default: a fresh one among the system's temporary files)")
	c.Flags().BoolVar(&keep, "keep", false, "leave the folder when it ends; `tombolo up --data FOLDER/data` goes on from there")
	return c
}

func (a *app) demo(ctx context.Context, d *demo, keep bool) (err error) {
	switch {
	case d.dir == "":
		if d.dir, err = os.MkdirTemp("", "tombolo-demo-"); err != nil {
			return err
		}
	default:
		if err := os.Mkdir(d.dir, 0o700); err != nil {
			return fail(exitError, "demo-folder", "the demo's folder cannot be made: %v", err).withNext("choose one that is not there yet")
		}
	}
	defer func() {
		if !keep {
			err = errors.Join(err, os.RemoveAll(d.dir))
		}
	}()
	began := time.Now()
	d.tell("1", "Three disks are made of real file trees of this machine, as ext4 file systems")
	if err := d.buildDisks(ctx); err != nil {
		return err
	}
	d.tell("2", "The bus, the control plane and three regions start in this process")
	stop, err := d.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, step := range []func(context.Context) error{d.pools, d.environment, d.template, d.replace, d.instantiate} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.tell("", "Done in %s. Nothing is left behind%s.", time.Since(began).Round(100*time.Millisecond),
		map[bool]string{true: " but " + d.dir + ", as you asked", false: ""}[keep])
	return nil
}

func (d *demo) tell(n, format string, args ...any) {
	if n != "" {
		n += ". "
	}
	fmt.Fprintf(d.out, "\n%s%s\n\n", n, fmt.Sprintf(format, args...))
}

func (d *demo) note(format string, args ...any) {
	fmt.Fprintf(d.out, "   %s\n", fmt.Sprintf(format, args...))
}

// demoBytes is how much file data the disks hold, at least.
const demoBytes = 256 << 20

// machines of the environment; each has one disk.
func machines() []string { return []string{"web", "app", "db"} }

func (d *demo) image(machine string, version int) string {
	return filepath.Join(d.dir, fmt.Sprintf("%s-v%d.img", machine, version))
}

func (d *demo) buildDisks(ctx context.Context) error {
	sources := images.Sources(ctx)
	specs, err := images.Plan(sources, demoBytes, machines()...)
	if err != nil {
		return err
	}
	for _, s := range specs {
		r, err := images.Build(ctx, s, d.image(s.Label, 1))
		if err != nil {
			return err
		}
		var from []string
		for _, t := range sources {
			files := 0
			for _, o := range r.Origins {
				if o.Source == t.Source || strings.HasPrefix(o.Source, t.Source+string(filepath.Separator)) {
					files += o.Files
				}
			}
			if files > 0 {
				from = append(from, fmt.Sprintf("%d files of %s", files, t.Source))
			}
		}
		d.note("%-4s %6s of data in %s: %s", s.Label, mebibytes(r.Bytes), r.Elapsed.Round(10*time.Millisecond), strings.Join(from, ", "))
	}
	return nil
}

func mebibytes(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

// start runs the whole server on free ports.
func (d *demo) start(ctx context.Context) (stop func() error, err error) {
	data := filepath.Join(d.dir, "data")
	d.program, err = program.New(ctx, program.Config{Dir: data, HTTP: "127.0.0.1:0", NATS: "127.0.0.1:0", Regions: program.DefaultRegions(),
		Guests:  program.Guests{Accelerator: "none"}, // its disks hold files, and nothing that boots
		Version: version(), Log: slog.New(slog.NewTextHandler(d.err, &slog.HandlerOptions{Level: slog.LevelError}))})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.program.Run(ctx) }()
	stop = func() error {
		cancel()
		return errors.Join(<-ended, d.program.Close())
	}
	if err := d.program.Ready(ctx); err != nil {
		return nil, errors.Join(err, stop())
	}
	at := d.program.Addresses()
	d.context, d.file = d.program.Administrator(), at.Context
	d.note("HTTP %s   NATS %s", at.HTTP, at.NATS)
	return stop, d.show(ctx, "region", "ls")
}

// show runs a command line, prints it and what it answers.
func (d *demo) show(ctx context.Context, args ...string) error {
	_, err := d.run(ctx, d.out, exitOK, args...)
	return err
}

// ask is show for an answer that is looked at rather than read.
func (d *demo) ask(ctx context.Context, to any, args ...string) error {
	out, err := d.run(ctx, nil, exitOK, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, to)
}

// command prints a command line whose answer is told in other words.
func (d *demo) command(args ...string) { fmt.Fprintf(d.out, "$ tombolo %s\n\n", quoted(args)) }

// run executes a command line of this program, as a person would, and expects
// an exit code. What it prints is shown on out, under the command.
func (d *demo) run(ctx context.Context, out io.Writer, want int, args ...string) ([]byte, error) {
	if out != nil {
		fmt.Fprintf(out, "$ tombolo %s\n", quoted(args))
	}
	var stdout, stderr bytes.Buffer
	code := execute(ctx, append([]string{"--context", d.file, "-q", "--no-input"}, args...), streams{strings.NewReader(""), &stdout, &stderr}, d.env)
	if out != nil {
		for _, text := range []string{stdout.String(), stderr.String()} {
			for line := range strings.Lines(text) {
				fmt.Fprint(out, "  ", line)
			}
		}
		fmt.Fprintln(out)
	}
	if code != want {
		return nil, fail(exitError, "demo-failed", "tombolo %s ended with exit %d, not %d: %s", quoted(args), code, want, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

func quoted(args []string) string {
	out := slices.Clone(args)
	for i, a := range out {
		if strings.ContainsAny(a, " '\"") {
			out[i] = "'" + a + "'"
		}
	}
	return strings.Join(out, " ")
}

func (d *demo) pools(ctx context.Context) error {
	d.tell("3", "Each region has public addresses and VPN endpoints of its own (documentation ranges, RFC 5737)")
	for _, p := range [][3]string{
		{"beijing", "198.51.100.0/28", "vpn-1.beijing.example"},
		{"sydney", "203.0.113.0/28", "vpn-1.sydney.example"},
		{"chicago", "192.0.2.0/28", "vpn-1.chicago.example"},
	} {
		for _, args := range [][]string{
			{"pool", "add", "--region", p[0], "--type", "public-address", p[1], "--bind", "auto"},
			{"pool", "add", "--region", p[0], "--type", "vpn-endpoint", "--value", p[2] + "," + strings.Replace(p[2], "1", "2", 1)},
		} {
			fmt.Fprintf(d.out, "$ tombolo %s\n", quoted(args))
			if _, err := d.run(ctx, nil, exitOK, args...); err != nil {
				return err
			}
		}
	}
	fmt.Fprintln(d.out)
	return d.show(ctx, "pool", "ls")
}

const demoEnvironment = `name: Ajax demo
networks:
  - {name: front, subnet: 10.10.0.0/24}
machines:
  - name: db
    disks: [{name: root, file: db-v1.img}]
    interfaces: [{network: front, address: 10.10.0.30}]
  - name: app
    depends_on: [db]
    disks: [{name: root, file: app-v1.img}]
    interfaces: [{network: front, address: 10.10.0.20}]
  - name: web
    depends_on: [app]
    disks: [{name: root, file: web-v1.img}]
    interfaces: [{network: front, address: 10.10.0.10, public_address: auto}]
vpn_gateways:
  - {name: office, network: front, endpoint: auto, address_of: web, peer: office.example}
`

func (d *demo) environment(ctx context.Context) error {
	d.tell("4", "An environment of three machines, a network and a VPN gateway is made in Beijing; its disks are sent there")
	file := filepath.Join(d.dir, "ajax.yaml")
	if err := os.WriteFile(file, []byte(demoEnvironment), 0o600); err != nil {
		return err
	}
	if err := d.show(ctx, "env", "create", "-f", file, "--region", "beijing", "--wait"); err != nil {
		return err
	}
	for _, m := range machines() {
		if err := os.Rename(d.image(m, 1), d.image(m, 0)); err != nil { // what was sent is the environment's now
			return err
		}
	}
	return nil
}

func (d *demo) template(ctx context.Context) error {
	d.tell("5", "It is saved as template %s and kept, verified, in three regions, each with its own addresses", d.number)
	if err := d.show(ctx, "template", "create", "--from-env", "ajax-demo", "--name", "Ajax Sales Demo", "--number", d.number,
		"--regions", "beijing,sydney,chicago", "--wait"); err != nil {
		return err
	}
	if err := d.show(ctx, "where", d.number); err != nil {
		return err
	}
	if err := d.received(ctx); err != nil {
		return err
	}
	if err := d.show(ctx, "template", "diff", d.number, "--between", "sydney,chicago"); err != nil {
		return err
	}
	return d.show(ctx, "pool", "ls")
}

// whereAnswer is what the demo looks at of `where -o json`.
type whereAnswer struct {
	Position      uint64 `json:"position"`
	ActiveVersion int    `json:"active_version"`
	Regions       []struct {
		Region   events.RegionID `json:"region"`
		Version  int             `json:"version"`
		Digest   events.Digest   `json:"digest"`
		Bytes    int64           `json:"bytes"`
		Received int64           `json:"received"`
		Verified bool            `json:"verified"`
	} `json:"regions"`
}

// received tells what crossed between regions, as counted at the sockets.
func (d *demo) received(ctx context.Context) error {
	var w whereAnswer
	if err := d.ask(ctx, &w, "where", d.number); err != nil {
		return err
	}
	digests := map[events.Digest]bool{}
	for _, r := range w.Regions {
		if r.Version != w.ActiveVersion {
			continue
		}
		d.note("%-8s version %d: %s of disks, %.1f MiB came from other regions", r.Region, r.Version, mebibytes(r.Bytes), float64(r.Received)/(1<<20))
		digests[r.Digest] = true
	}
	if len(digests) != 1 {
		return fail(exitError, "demo-failed", "the regions hold %d different contents", len(digests))
	}
	d.note("The content's digest is the same in all regions.")
	fmt.Fprintln(d.out)
	return nil
}
