// Package process runs programs for measurements: in a network namespace, with the peak of their memory, and the real
// program, `tombolo up`, with its command line.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a program that runs, with everything that it started.
type Process struct {
	cmd    *exec.Cmd
	errors bytes.Buffer
	stop   chan struct{}
	done   sync.WaitGroup
	peak   int64
	err    error
	waited bool
}

// Command is what to run. Netns is the network namespace, that of this process where empty.
type Command struct {
	Args   []string
	Netns  string
	Dir    string
	Env    []string // added to a small environment: PATH, HOME and TMPDIR
	Stdout *os.File
}

// Start starts it.
func Start(c Command) (*Process, error) {
	args := c.Args
	if c.Netns != "" {
		args = append([]string{"ip", "netns", "exec", c.Netns}, args...)
	}
	p := &Process{cmd: exec.Command(args[0], args[1:]...), stop: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stderr = c.Dir, &p.errors
	if c.Stdout != nil {
		p.cmd.Stdout = c.Stdout
	}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "TMPDIR=" + os.TempDir()}, c.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(c.Args[0]), err)
	}
	p.done.Go(p.watch)
	return p, nil
}

// Run runs it to its end and gives how long it took.
func Run(ctx context.Context, c Command) (time.Duration, *Process, error) {
	began := time.Now()
	p, err := Start(c)
	if err != nil {
		return 0, nil, err
	}
	stop := context.AfterFunc(ctx, func() { p.signal(syscall.SIGKILL) })
	defer stop()
	err = p.Wait()
	took := time.Since(began)
	return took, p, err
}

// Wait waits for its end. The error carries what it wrote to stderr.
func (p *Process) Wait() error {
	if p.waited {
		return p.err
	}
	p.waited = true
	err := p.cmd.Wait()
	close(p.stop)
	p.done.Wait()
	if err != nil {
		text := p.errors.String()
		p.err = fmt.Errorf("%s: %w\n%s", strings.Join(p.cmd.Args, " "), err, text[max(0, len(text)-2000):])
	}
	return p.err
}

// End interrupts it, waits, and kills it where that takes longer than the patience.
func (p *Process) End(patience time.Duration) error {
	p.signal(syscall.SIGTERM)
	timer := time.AfterFunc(patience, func() { p.signal(syscall.SIGKILL) })
	defer timer.Stop()
	err := p.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && (status.Signaled() && status.Signal() == syscall.SIGTERM || status.ExitStatus() == rsyncInterrupted) {
			return nil
		}
	}
	return err
}

// rsyncInterrupted is what rsync exits with after SIGTERM (rsync(1), EXIT VALUES).
const rsyncInterrupted = 20

func (p *Process) signal(s syscall.Signal) {
	// The group may be gone; then there is nobody to tell.
	_ = syscall.Kill(-p.cmd.Process.Pid, s)
}

// Peak is the most resident memory, in bytes, that it and all that it started had together, as looked at every 50 ms:
// the sum of the peaks of those alive at once.
func (p *Process) Peak() int64 { return p.peak }

// Errors is what it wrote to stderr until its end.
func (p *Process) Errors() string { return p.errors.String() }

func (p *Process) watch() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		p.peak = max(p.peak, groupMemory(p.cmd.Process.Pid))
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
	}
}

// groupMemory adds up the peaks of the processes of a group. The kernel's VmHWM is the program's own; rusage would
// carry the peak of the process that started it.
func groupMemory(group int) (sum int64) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid < group {
			continue
		}
		if pid != group {
			stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
			_, rest, ok := strings.Cut(string(stat), ") ")
			fields := strings.Fields(rest) // state, parent, group
			if err != nil || !ok || len(fields) < 3 || fields[2] != strconv.Itoa(group) {
				continue
			}
		}
		sum += Memory(pid, "VmHWM")
	}
	return sum
}

// Memory reads a figure of /proc/PID/status, in bytes: VmRSS is what is resident, VmHWM its peak. 0 where the process
// is gone.
func Memory(pid int, what string) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, what+":"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}
