package testenv

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Process is a running program of its own. It ends with the test at the latest.
type Process struct {
	t     testing.TB
	name  string
	cmd   *exec.Cmd
	log   string
	line  chan []byte   // its first line on stdout; closed without one
	ended chan struct{} // closed when it has ended
}

// start starts a program whose stderr goes to a file.
func start(t testing.TB, cleanup func(func()), name, log string, env []string, command string, args ...string) (*Process, error) {
	p := &Process{t: t, name: name, log: log, line: make(chan []byte, 1), ended: make(chan struct{})}
	p.cmd = exec.Command(command, args...)
	// Machines run in the tests that are about them.
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), "TOMBOLO_ACCELERATOR=none"}, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	talk, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = talk
	// A process that dies with its parent dies with the thread that started it:
	// that thread must stay as long as the process.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		lines := bufio.NewScanner(out)
		if lines.Scan() {
			p.line <- bytes.Clone(lines.Bytes())
		}
		close(p.line)
		for lines.Scan() {
		}
		_ = p.cmd.Wait() // its code is asked for by Exit
		_ = talk.Close()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cleanup(p.end)
	return p, nil
}

// end kills what is still there.
func (p *Process) end() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// Ready reads the first line, which a program prints when it can be used.
func (p *Process) Ready(ctx context.Context, into any) error {
	select {
	case line, ok := <-p.line:
		if !ok {
			<-p.ended
			return fmt.Errorf("%s ended before it was ready:\n%s", p.name, p.Log())
		}
		return json.Unmarshal(line, into)
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w\n%s", p.name, ctx.Err(), p.Log())
	}
}

// Kill ends it at once, as a power cut would, and waits for its end.
func (p *Process) Kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
	<-p.ended
}

// Pause stops it without its knowing; Resume lets it go on.
func (p *Process) Pause() { p.signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Process) Resume() { p.signal(syscall.SIGCONT) }

// Interrupt asks it to end, as ctrl-C does.
func (p *Process) Interrupt() { p.signal(syscall.SIGINT) }

func (p *Process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// Ended is closed when the process has ended; Exit is then its code, -1 when a
// signal ended it.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Exit waits for the end and gives the exit code.
func (p *Process) Exit(ctx context.Context) int {
	p.t.Helper()
	await(p.t, ctx, p.name+" did not end", p.ended)
	return p.cmd.ProcessState.ExitCode()
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log is what it has said on stderr.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// Binary is the real program, built once for a test run.
type Binary struct {
	once sync.Once
	path string
	err  error
}

// Build builds cmd/tombolo into the folder.
func (b *Binary) Build(dir string) (string, error) {
	b.once.Do(func() {
		root, err := moduleRoot()
		if err != nil {
			b.err = err
			return
		}
		// Read the sources, so that the go command knows that the result of this
		// test depends on a program that it does not import.
		if b.err = readSources(filepath.Join(root, "cmd", "tombolo")); b.err != nil {
			return
		}
		b.path = filepath.Join(dir, "tombolo")
		c := exec.Command("go", "build", "-o", b.path, "./cmd/tombolo")
		c.Dir = root
		if out, err := c.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build cmd/tombolo: %w\n%s", err, out)
		}
	})
	return b.path, b.err
}

func readSources(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, err := os.ReadFile(f); err != nil {
			return err
		}
	}
	return nil
}

// moduleRoot is the folder with go.mod, upwards from here.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("there is no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}
