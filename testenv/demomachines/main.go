// Command demomachines shows machines and networks that really run, on the real program and by the command lines that a
// person would type: three machines run behind an edge in Beijing, are saved with their memory while they run, and go on
// in Sydney at an address of Sydney's. It works in a fresh folder, tells what it does, removes what it made and ends by
// itself, with exit 0 where everything was as it is told. `make demo-machines` runs it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.accelerator, "accelerator", "auto", "what runs the machines: auto, kvm or tcg")
	flag.BoolVar(&o.keep, "keep", false, "leave the folder when it ends, and say where it is")
	flag.Parse()
	if err := perform(ctx, os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "demo-machines:", err)
		os.Exit(1)
	}
}

type options struct {
	accelerator string
	keep        bool
}

// tools are the programs that it uses, and what each is for.
var tools = [...]struct{ program, Debian, why string }{
	{"qemu-system-x86_64", "qemu-system-x86", "runs machines"},
	{"curl", "curl", "asks them over HTTP"},
	{"mkfs.ext4", "e2fsprogs", "makes the disk of the guest"},
	{"apt-get", "apt", "downloads the packages that the guest is made of"},
	{"go", "golang, or https://go.dev/dl/", "builds the program"},
}

// missing says plainly what is not installed here.
func missing(look func(string) (string, error)) error {
	var lines, debian []string
	for _, t := range tools {
		if _, err := look(t.program); err != nil {
			lines = append(lines, fmt.Sprintf("  %s, which %s (Debian: %s)", t.program, t.why, t.Debian))
			debian = append(debian, t.Debian)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("these programs are not installed here:\n%s\nOn Debian, as root: apt-get install --no-install-recommends %s",
		strings.Join(lines, "\n"), strings.Join(debian, " "))
}

// perform is the whole demo.
func perform(ctx context.Context, out io.Writer, o options) (err error) {
	if err := missing(exec.LookPath); err != nil {
		return err
	}
	began := time.Now()
	d := &demo{out: out, accelerator: o.accelerator}
	if d.dir, err = os.MkdirTemp("", "tombolo-machines-"); err != nil {
		return err
	}
	defer func() {
		if !o.keep {
			err = errors.Join(err, os.RemoveAll(d.dir))
		}
	}()
	defer func() { err = errors.Join(err, d.end(), sweep(d.dir)) }()
	for i, a := range acts() {
		fmt.Fprintf(out, "\n%d. %s\n\n", i+1, a.title)
		if err := a.play(d, ctx); err != nil {
			return fmt.Errorf("%d. %s: %w", i+1, a.title, err)
		}
	}
	fmt.Fprintf(out, "\nDone in %s. %s\n", time.Since(began).Round(100*time.Millisecond), left(o.keep, d.dir))
	return nil
}

func left(keep bool, dir string) string {
	if keep {
		return "The folder " + dir + " is left, as you asked: tombolo up --data " + filepath.Join(dir, "data") + " goes on from there."
	}
	return "Nothing is left: no machine, no process, no file."
}

// sweep kills what a program that could not end in order has left, so that the folder can go.
func sweep(dir string) error {
	pids, err := processes(dir)
	for _, pid := range pids {
		if kill := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(kill, syscall.ESRCH) {
			err = errors.Join(err, kill, fmt.Errorf("process %d was left and is killed", pid))
		}
	}
	return err
}

// processes are those whose command line names the folder, or that work in it, as machines do.
func processes(dir string) (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline") // it may have ended, or be another user's
		works, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		if bytes.Contains(line, []byte(dir)) || strings.HasPrefix(works, dir) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
