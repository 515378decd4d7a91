// Command real makes three real Debian machines' disks, saves them as a template through the command line, keeps it in
// three regions, replaces it by a version with updates and more packages, proves that what the regions hold is what was
// saved, and boots what two of them hold. It writes the tables of docs/real-disks.md. It needs root, mmdebstrap, and a Debian mirror in apt's sources.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := try(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "real:", err)
		os.Exit(1)
	}
}

// real is one run.
type real struct {
	dir    string
	docs   string
	server *process.Server

	accelerator string
}

const mib = 1 << 20

func (r *real) path(name string) string { return filepath.Join(r.dir, name) }

func (r *real) image(m machine, version int) string {
	return r.path(fmt.Sprintf("%s-v%d.raw", m.name, version))
}

func try(ctx context.Context) (err error) {
	r := &real{}
	flag.StringVar(&r.docs, "docs", "docs/real-disks.md", "the document whose tables are written; empty: none")
	scratch := flag.String("scratch", "", "a folder with 12 GiB of room (default: the system's for temporary files)")
	only := flag.String("images", "", "a folder with images of an earlier run (web-v1.raw …), which are used and left")
	flag.StringVar(&r.accelerator, "accelerator", "auto", "what boots the disks: auto, kvm or tcg")
	keep := flag.Bool("keep", false, "leave the images where they are, and say where")
	flag.Parse()
	if os.Getuid() != 0 && *only == "" {
		return errors.New("root is needed: the disks are mounted to install packages on them (or name a folder with -images)")
	}
	for _, tool := range []string{"mmdebstrap", "extlinux", "mkfs.ext4", "e2fsck", "cmp", "apt-get", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed: `make real` installs it where it can", tool)
		}
	}
	if r.dir, err = os.MkdirTemp(*scratch, "tombolo-real-"); err != nil {
		return err
	}
	if *keep {
		say("everything stays in %s", r.dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	}
	if *only != "" {
		for _, m := range machines() {
			for v := 1; v <= 2; v++ {
				if err := os.Link(filepath.Join(*only, filepath.Base(r.image(m, v))), r.image(m, v)); err != nil {
					return err
				}
			}
		}
	} else if err := r.disks(ctx); err != nil {
		return err
	}
	if err := r.template(ctx); err != nil {
		return err
	}
	return r.chunkSizes(ctx)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (r *real) disks(ctx context.Context) error {
	say("making the tree that all three begin with")
	if err := r.base(ctx); err != nil {
		return err
	}
	for _, m := range machines() {
		say("installing %s: %s", m.name, strings.Join(m.first, " "))
		if err := r.install(ctx, m); err != nil {
			return err
		}
		say("upgrading %s: %s", m.name, strings.Join(m.second, " "))
		if err := r.upgrade(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// held is what `tombolo where` says of one region.
type held struct {
	Region   string `json:"region"`
	Version  int    `json:"version"`
	Verified bool   `json:"verified"`
	Digest   string `json:"digest"`
	Bytes    int64  `json:"bytes"`
	Received int64  `json:"received"`
}

func regions() []string { return []string{"beijing", "sydney", "chicago"} }

// template makes the environment and its template, replaces it, and compares what every region holds.
func (r *real) template(ctx context.Context) (err error) {
	binary, err := process.Build(ctx, r.dir)
	if err != nil {
		return err
	}
	if r.server, err = process.Up(ctx, binary, r.path("data"), "--regions", strings.Join(regions(), ","), "--accelerator", r.accelerator); err != nil {
		return err
	}
	defer func() {
		_, derr := r.server.Down()
		err = errors.Join(err, derr)
	}()
	for i, region := range regions() {
		if _, err := r.server.CLI(ctx, nil, "pool", "add", "--region", region, "--type", "public-address", fmt.Sprintf("203.0.113.%d/28", 16*i), "--bind", "auto"); err != nil {
			return err
		}
	}
	t := &report.Table{Name: "real", Head: []string{"version", "step", "seconds", "beijing", "sydney", "chicago"}}
	boots := &report.Table{Name: "boots", Head: []string{"version", "region", "machine", "answers at", "`template instantiate`, seconds", "`env start` to its answer, seconds",
		"its uptime then", "kernel", "packages", "db is", "accelerator"}}
	var reference string
	for version := 1; version <= 2; version++ {
		var env struct {
			ID string `json:"id"`
		}
		file := r.path(fmt.Sprintf("shop-v%d.yaml", version))
		if err := os.WriteFile(file, []byte(r.spec(version)), 0o600); err != nil {
			return err
		}
		say("creating the environment of version %d", version)
		took, err := r.server.CLI(ctx, &env, "env", "create", "-f", file, "--region", "beijing", "--wait", "--timeout", "15m")
		if err != nil {
			return err
		}
		t.Add(version, "`env create`", took.Seconds(), "", "", "")
		args := []string{"template", "create", "--from-env", env.ID, "--name", "Shop", "--regions", strings.Join(regions(), ",")}
		if version == 2 {
			args = []string{"template", "replace", reference, "--from-env", env.ID}
		}
		var made struct {
			ID string `json:"id"`
		}
		if took, err = r.server.CLI(ctx, &made, append(args, "--wait", "--timeout", "15m")...); err != nil {
			return err
		}
		if version == 1 {
			reference = made.ID
		}
		where, err := r.where(ctx, reference, version)
		if err != nil {
			return err
		}
		t.Add(version, "`template "+args[1]+"`: MiB from other regions", took.Seconds(), received(where[0]), received(where[1]), received(where[2]))
		t.Add(version, "digest", "", short(where[0].Digest), short(where[1].Digest), short(where[2].Digest))
		if err := r.compare(ctx, t, reference, version); err != nil {
			return err
		}
		if err := r.boot(ctx, boots, reference, version); err != nil {
			return err
		}
	}
	t.Note("%s", r.describe())
	t.Note("Measured on %s by `make real`. Bytes are those at the receiver's socket, TLS and all, as `tombolo where` tells them.", time.Now().UTC().Format("2006-01-02"))
	boots.Note("Three machines boot at once on this host, after a region's copy was made an environment there; the answer is each machine's own, over HTTP, through the edge. Machines were asked one after another, so that a figure is the most that one can have taken.")
	return errors.Join(r.write(t), r.write(boots))
}

func received(h held) string { return report.Number(float64(h.Received) / mib) }

func short(digest string) string { return "`" + digest[:min(len(digest), 19)] + "…`" }

// spec is the environment's file.
func (r *real) spec(version int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "name: Shop %d\nnetworks:\n  - {name: lan, subnet: 10.10.0.0/24}\nmachines:\n", version)
	for _, m := range machines() {
		open := []string{fmt.Sprintf("tcp/%d", answerPort)}
		if m.name == "web" {
			open = append(open, "tcp/80")
		}
		// Off: what is saved is to be the image, to the byte.
		fmt.Fprintf(&b, "  - name: %s\n    power: powered-off\n    memory_mib: 384\n    disks: [{name: root, file: %s}]\n    interfaces: [{network: lan, address: %s, public_address: auto, open: [%s]}]\n",
			m.name, filepath.Base(r.image(m, version)), address(m.name), strings.Join(open, ", "))
	}
	return b.String()
}

// where demands that every region has verified the version and that all digests are equal.
func (r *real) where(ctx context.Context, reference string, version int) ([]held, error) {
	var answer struct {
		Active  int    `json:"active_version"`
		Regions []held `json:"regions"`
	}
	if _, err := r.server.CLI(ctx, &answer, "where", reference); err != nil {
		return nil, err
	}
	if answer.Active != version {
		return nil, fmt.Errorf("version %d is active, not %d", answer.Active, version)
	}
	var out []held
	for _, region := range regions() {
		found := false
		for _, h := range answer.Regions {
			if h.Region != region || h.Version != version {
				continue
			}
			if !h.Verified || len(out) > 0 && h.Digest != out[0].Digest {
				return nil, fmt.Errorf("%s has not verified version %d, or has another digest: %+v", region, version, h)
			}
			out, found = append(out, h), true
		}
		if !found {
			return nil, fmt.Errorf("%s holds no version %d", region, version)
		}
	}
	return out, nil
}

// compare exports the version from every region and holds each disk against its image, byte by byte, and against e2fsck.
func (r *real) compare(ctx context.Context, t *report.Table, reference string, version int) error {
	var seconds float64
	result := map[string]string{}
	for _, region := range regions() {
		to := r.path("export")
		took, err := r.server.CLI(ctx, nil, "template", "export", reference, "--region", region, "--to", to)
		if err != nil {
			return err
		}
		seconds += took.Seconds()
		for _, m := range machines() {
			disk, err := exported(to, m)
			if err != nil {
				return err
			}
			if err := run(ctx, nil, "cmp", disk, r.image(m, version)); err != nil {
				return fmt.Errorf("%s, version %d, from %s is not what was saved: %w", m.name, version, region, err)
			}
			if err := run(ctx, nil, "e2fsck", "-fn", disk); err != nil {
				return err
			}
		}
		result[region] = "identical, clean"
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	t.Add(version, "`template export`, `cmp`, `e2fsck -fn`", seconds, result["beijing"], result["sydney"], result["chicago"])
	return nil
}

// exported finds a machine's disk among the files of an export.
func exported(dir string, m machine) (string, error) {
	found := ""
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		rel, rerr := filepath.Rel(dir, path)
		if rerr == nil && err == nil && e.Type().IsRegular() && strings.HasPrefix(rel, m.name) && (strings.HasSuffix(path, ".raw") || strings.HasSuffix(path, ".img")) {
			found = path
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("the export has no disk of %s", m.name)
	}
	return found, err
}

// describe says what the disks hold.
func (r *real) describe() string {
	var b strings.Builder
	b.WriteString("The disks: ")
	for i, m := range machines() {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s (%d MiB, %d used, then %d): %s, then upgrades and %s", m.name, m.mib, used(r.image(m, 1)), used(r.image(m, 2)), strings.Join(m.first, " "), strings.Join(m.second, " "))
	}
	return b.String() + "."
}

// used is what a sparse image takes, in MiB.
func used(path string) int64 {
	var s syscall.Stat_t
	if err := syscall.Stat(path, &s); err != nil {
		return 0
	}
	return s.Blocks * 512 / mib
}

func (r *real) write(t *report.Table) error {
	t.Print(os.Stdout)
	if r.docs == "" {
		return nil
	}
	return t.Write(r.docs)
}
