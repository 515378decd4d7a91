package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// The packages that a guest is made of. What a machine has installed is of no matter: a busybox there may be one that needs
// libraries, a kernel another one than Debian's.
const (
	kernelPackage = "linux-image-cloud-amd64" // empty: it names the newest kernel by depending on it
	busybox       = "busybox-static"
)

// tools are the packages whose programs and files build the disk.
func tools() []string { return []string{"syslinux", "syslinux-common", "mtools"} }

// packages are Debian's packages, unpacked over each other.
type packages struct {
	root     string
	kernel   string // the name after "vmlinuz-"
	versions string // names of the packages' files
}

// path gives a file of the packages.
func (p packages) path(name string) string { return filepath.Join(p.root, name) }

// command is a program of the packages, which finds the others of them before the machine's own.
func (p packages) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	bin := p.path("usr/bin")
	c := exec.CommandContext(ctx, filepath.Join(bin, name), args...)
	c.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"), "MTOOLS_SKIP_CHECK=1")
	return c
}

// apt is this machine's apt, with lists of its own or the machine's.
type apt struct{ options []string }

func (a apt) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, program, append(slices.Clone(a.options), args...)...)
	c.Env = append(os.Environ(), "LC_ALL=C")
	return c
}

// fresh is how long what apt named once is taken to be the newest: asking takes a second, and many tests ask.
const fresh = 12 * time.Hour

// fetch has the newest packages that apt can name unpacked in the cache.
func fetch(ctx context.Context, cache string) (packages, error) {
	answer := filepath.Join(cache, "newest")
	if info, err := os.Stat(answer); err == nil && time.Since(info.ModTime()) < fresh {
		text, err := os.ReadFile(answer)
		if err != nil {
			return packages{}, err
		}
		kernel, versions, _ := strings.Cut(string(text), " ")
		p := packages{root: unpacked(cache, versions), kernel: kernel, versions: versions}
		if _, err := os.Stat(p.root); err == nil {
			return p, nil
		}
	}
	p, err := ask(ctx, cache)
	if err != nil {
		return packages{}, err
	}
	return p, os.WriteFile(answer, []byte(p.kernel+" "+p.versions), 0o644)
}

func unpacked(cache, versions string) string {
	sum := sha256.Sum256([]byte(versions))
	return filepath.Join(cache, fmt.Sprintf("packages-%x", sum[:8]))
}

func ask(ctx context.Context, cache string) (packages, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return packages{}, fault.Wrap(CodePackages, err, "the guest is made of Debian's packages, and there is no apt-get here")
	}
	p, err := fetchBy(ctx, cache, apt{})
	if err == nil || ctx.Err() != nil {
		return p, err
	}
	// The machine's package lists are missing or older than what the mirrors have: lists of our own need no root.
	own, ownErr := ownLists(ctx, cache)
	if ownErr != nil {
		return packages{}, errors.Join(err, ownErr)
	}
	return fetchBy(ctx, cache, own)
}

// ownLists makes apt use lists in the cache, and brings them up to date.
func ownLists(ctx context.Context, cache string) (apt, error) {
	dir := filepath.Join(cache, "apt")
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return apt{}, err
		}
	}
	a := apt{[]string{"-o", "Dir::State=" + dir, "-o", "Dir::State::lists=" + dir + "/lists", "-o", "Dir::Cache=" + dir,
		"-o", "APT::Sandbox::User="}} // the user for downloads cannot write here
	if out, err := a.command(ctx, "apt-get", "-qq", "update").CombinedOutput(); err != nil {
		return apt{}, fault.Wrap(CodePackages, err, "apt-get update: %s", lastOf(out))
	}
	return a, nil
}

func fetchBy(ctx context.Context, cache string, a apt) (packages, error) {
	out, err := a.command(ctx, "apt-cache", "--no-recommends", "--no-suggests", "depends", kernelPackage).CombinedOutput()
	if err != nil {
		return packages{}, fault.Wrap(CodePackages, err, "apt-cache depends %s: %s", kernelPackage, lastOf(out))
	}
	_, kernel, found := strings.Cut(string(out), "Depends: linux-image-")
	if !found {
		return packages{}, fault.New(CodePackages, "%s depends on no kernel: %s", kernelPackage, lastOf(out))
	}
	kernel, _, _ = strings.Cut(kernel, "\n")
	names := append([]string{"linux-image-" + kernel, busybox}, tools()...)
	// What would be downloaded, as 'URL' file size hash: the file's name has the version.
	out, err = a.command(ctx, "apt-get", append([]string{"download", "--print-uris"}, names...)...).Output()
	if err != nil {
		return packages{}, fault.Wrap(CodePackages, err, "apt-get download --print-uris: %s", lastOf(out))
	}
	var files []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) >= 3 && strings.HasPrefix(line, "'") {
			files = append(files, fields[1])
		}
	}
	if len(files) != len(names) {
		return packages{}, fault.New(CodePackages, "apt-get finds %d of %s", len(files), strings.Join(names, ", "))
	}
	slices.Sort(files)
	p := packages{kernel: kernel, versions: strings.Join(files, " ")}
	p.root = unpacked(cache, p.versions)
	if _, err := os.Stat(p.root); err == nil {
		return p, nil
	}
	return p, unpack(ctx, a, names, p.root)
}

// unpack downloads packages and unpacks them into root, which appears whole or not at all.
func unpack(ctx context.Context, a apt, names []string, root string) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(root), ".packages-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	c := a.command(ctx, "apt-get", append([]string{"-qq", "-o", "APT::Sandbox::User=", "download"}, names...)...)
	c.Dir = work
	if out, err := c.CombinedOutput(); err != nil {
		return fault.Wrap(CodePackages, err, "apt-get download: %s", lastOf(out))
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, tree).CombinedOutput(); err != nil {
			return fault.Wrap(CodePackages, err, "dpkg-deb -x %s: %s", filepath.Base(deb), lastOf(out))
		}
	}
	return os.Rename(tree, root)
}

// lastOf is the end of what a program said.
func lastOf(out []byte) string {
	out = bytes.TrimSpace(out)
	return string(out[max(0, len(out)-1000):])
}

// run has a program do its work and gives what it said where it failed.
func run(c *exec.Cmd) error {
	if out, err := c.CombinedOutput(); err != nil {
		return fault.Wrap(CodeBuild, err, "%s: %s", fmt.Sprint(c.Args), lastOf(out))
	}
	return nil
}
