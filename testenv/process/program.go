package process

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
)

// Build builds the real program into the folder and gives its path.
func Build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "tombolo")
	c := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/tombolo-vdc/tombolo/cmd/tombolo")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return path, nil
}

// Server is `tombolo up`, running.
type Server struct {
	program.Addresses
	Ready   time.Duration // from its start to the first 200 of /readyz
	binary  string
	process *Process
	config  string
}

// Up starts the whole program, its regions included, on a data directory and free ports, and waits until /readyz
// answers 200.
func Up(ctx context.Context, binary, dir string, flags ...string) (*Server, error) {
	return serve(ctx, binary, "up", dir, flags)
}

// Control starts the control plane alone, whose regions' agents run elsewhere if at all, as Up does.
func Control(ctx context.Context, binary, dir string, flags ...string) (*Server, error) {
	return serve(ctx, binary, "server", dir, flags)
}

func serve(ctx context.Context, binary, verb, dir string, flags []string) (_ *Server, err error) {
	s := &Server{binary: binary, config: dir + ".config"}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	began := time.Now()
	s.process, err = Start(Command{Args: append([]string{binary, verb, "--data", dir, "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0", "-q", "-o", "json"}, flags...),
		Env: []string{"XDG_CONFIG_HOME=" + s.config, "TOMBOLO_ACCELERATOR=none"}, Stdout: w})
	w.Close()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.process.signal(9) })
	defer stop()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &s.Addresses)
	}
	if err != nil {
		_ = s.process.End(10 * time.Second)
		return nil, fmt.Errorf("tombolo %s said nothing: %w\n%s", verb, err, s.process.Errors())
	}
	for {
		resp, err := http.Get(s.HTTP + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.Ready = time.Since(began)
	return s, nil
}

// Context is the credentials that it wrote, of its administrator or, by name, of another user.
func (s *Server) Context(name string) (contexts.Context, error) {
	if name == "" {
		return contexts.Read(s.Addresses.Context)
	}
	return contexts.Read(filepath.Join(s.Dir, "contexts", name+".json"))
}

// PID is the process's.
func (s *Server) PID() int { return s.process.cmd.Process.Pid }

// Down ends it as ctrl-C does and gives the peak of its memory.
func (s *Server) Down() (peak int64, err error) {
	err = s.process.End(time.Minute)
	return s.process.Peak(), err
}

// CLI runs a command of the command line against it, decodes what it answers as JSON into the value, unless that is nil,
// and gives how long it took.
func (s *Server) CLI(ctx context.Context, into any, args ...string) (time.Duration, error) {
	c := exec.CommandContext(ctx, s.binary, append(args, "--context", s.Addresses.Context, "-o", "json", "-q")...)
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "XDG_CONFIG_HOME=" + s.config}
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	began := time.Now()
	err := c.Run()
	took := time.Since(began)
	if err != nil {
		return took, fmt.Errorf("tombolo %v: %w\n%s%s", args, err, out.String(), errs.String())
	}
	if into == nil {
		return took, nil
	}
	if err := json.NewDecoder(&out).Decode(into); err != nil && err != io.EOF {
		return took, fmt.Errorf("tombolo %v: %w", args, err)
	}
	return took, nil
}
