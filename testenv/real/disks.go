package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is one of the three, with what is installed on it for each version.
type machine struct {
	name   string
	mib    int
	first  []string
	second []string
}

func machines() []machine {
	return []machine{
		{"web", 1536, []string{"nginx-light", "openssl", "ca-certificates", "curl"}, []string{"libnginx-mod-http-geoip", "php-fpm", "brotli"}},
		{"app", 1536, []string{"python3", "python3-venv", "git", "redis-server"}, []string{"python3-requests", "python3-yaml", "supervisor"}},
		{"db", 1536, []string{"postgresql", "postgresql-contrib"}, []string{"pgbouncer", "prometheus-postgres-exporter"}},
	}
}

// source is a line of the machine's own package sources.
type source struct{ url, release string }

// sources are those of this machine: of its own release without updates, and all of it.
func sources(ctx context.Context) (base, all []source, err error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("ask apt for this machine's sources: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || !strings.Contains(fields[0], "debian") || strings.Contains(fields[1], "backports") {
			continue
		}
		s := source{fields[0], fields[1]}
		if slices.Contains(all, s) {
			continue
		}
		all = append(all, s)
		if !strings.Contains(s.release, "-") {
			base = append(base, s)
		}
	}
	if len(base) == 0 {
		return nil, nil, errors.New("this machine's package sources name no Debian release")
	}
	return base[:1], all, nil
}

func list(sources []source) string {
	var b strings.Builder
	for _, s := range sources {
		fmt.Fprintf(&b, "deb %s %s main\n", s.url, s.release)
	}
	return b.String()
}

// base makes the tree that all machines begin with: Debian as it was released, without updates, with its cloud kernel,
// and DHCP by systemd.
func (r *real) base(ctx context.Context) error {
	base, _, err := sources(ctx)
	if err != nil {
		return err
	}
	return run(ctx, nil, "mmdebstrap", "--variant=minbase", "--include=systemd-sysv,systemd-resolved,iproute2,openssh-server,linux-image-cloud-amd64,zstd", base[0].release, r.path("base.tar"), "deb "+base[0].url+" "+base[0].release+" main")
}

// install makes version 1 of a machine's disk.
func (r *real) install(ctx context.Context, m machine) error {
	image := r.image(m, 1)
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(m.mib)<<20), f.Close()); err != nil {
		return err
	}
	if err := run(ctx, nil, "mkfs.ext4", "-q", "-F", "-L", m.name, image); err != nil {
		return err
	}
	return r.mounted(ctx, image, func(root string) error {
		if err := run(ctx, nil, "tar", "-xpf", r.path("base.tar"), "-C", root, "--numeric-owner"); err != nil {
			return err
		}
		if err := bootable(ctx, root, m); err != nil {
			return err
		}
		if err := apt(ctx, root, []string{"update"}); err != nil {
			return err
		}
		return apt(ctx, root, append([]string{"install"}, m.first...))
	})
}

// upgrade makes version 2 of version 1 as its administrator would: updates, and more packages.
func (r *real) upgrade(ctx context.Context, m machine) error {
	image := r.image(m, 2)
	if err := run(ctx, nil, "cp", "--sparse=always", r.image(m, 1), image); err != nil {
		return err
	}
	_, all, err := sources(ctx)
	if err != nil {
		return err
	}
	return r.mounted(ctx, image, func(root string) error {
		if err := os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), []byte(list(all)), 0o644); err != nil {
			return err
		}
		if err := apt(ctx, root, []string{"update"}); err != nil {
			return err
		}
		if err := apt(ctx, root, []string{"upgrade"}); err != nil {
			return err
		}
		return apt(ctx, root, append([]string{"install"}, m.second...))
	})
}

// apt runs inside a tree: no service is started, and the resolver is this machine's meanwhile.
func apt(ctx context.Context, root string, args []string) (err error) {
	resolver := filepath.Join(root, "etc/resolv.conf")
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return err
	}
	// The machine's own is a link to what systemd-resolved writes once it runs.
	link, err := os.Readlink(resolver)
	if err != nil {
		return err
	}
	if err := os.Remove(resolver); err != nil {
		return err
	}
	noStart := filepath.Join(root, "usr/sbin/policy-rc.d")
	if err := errors.Join(os.WriteFile(resolver, text, 0o644), os.WriteFile(noStart, []byte("#!/bin/sh\nexit 101\n"), 0o755)); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.Remove(noStart), os.Remove(resolver), os.Symlink(link, resolver))
	}()
	all := append([]string{root, "apt-get", "-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-confold"}, args...)
	if err := run(ctx, []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}, "chroot", all...); err != nil {
		return err
	}
	return run(ctx, nil, "chroot", root, "apt-get", "clean")
}

// mounted has an image's file system worked on, and checks it afterwards.
func (r *real) mounted(ctx context.Context, image string, work func(root string) error) (err error) {
	root, err := os.MkdirTemp(r.dir, "root-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(root)) }()
	if err := run(ctx, nil, "mount", "-o", "loop", image, root); err != nil {
		return err
	}
	proc := filepath.Join(root, "proc")
	defer func() {
		// Even where the work was interrupted: a mount must not stay.
		if m := unix.Unmount(proc, 0); m != nil && !errors.Is(m, unix.EINVAL) && !errors.Is(m, unix.ENOENT) {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", proc, m))
		}
		err = errors.Join(err, run(context.WithoutCancel(ctx), nil, "umount", root))
		if err == nil {
			err = run(ctx, nil, "e2fsck", "-fn", image)
		}
	}()
	if err := os.MkdirAll(proc, 0o755); err != nil {
		return err
	}
	if err := run(ctx, nil, "mount", "-t", "proc", "proc", proc); err != nil {
		return err
	}
	return work(root)
}

func run(ctx context.Context, env []string, name string, args ...string) error {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), env...)
	if out, err := c.CombinedOutput(); err != nil {
		text := string(out)
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, text[max(0, len(text)-3000):])
	}
	return nil
}
