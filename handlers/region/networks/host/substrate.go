package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// Config says where the process is and how it is started.
type Config struct {
	Dir     string   // the process's own; made where it is not there
	Command []string // a program that calls Run for Dir, with file 3 as started
	Version string   // of this program
	Log     *slog.Logger
	// Lost is called when the process is gone that had networks: apply them again, which starts another one.
	Lost func()
}

// Substrate is the agent's end: a networks.Substrate whose networks outlive it. The process is started by the first call that
// changes something; without one there are no networks.
type Substrate struct {
	cfg    Config
	socket string
	client *http.Client
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	watch  sync.WaitGroup

	starting sync.Mutex // held by whoever looks for the process and starts it
	running  bool       // as far as is known
	pools    []networks.Pool
}

var _ networks.Substrate = (*Substrate)(nil)

// Open finds the process that serves the directory, if there is one.
func Open(ctx context.Context, c Config) (*Substrate, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	socket, err := nbd.SocketPath(c.Dir, socketName)
	if err != nil {
		return nil, err
	}
	s := &Substrate{cfg: c, socket: socket}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var d net.Dialer
	s.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", socket)
	}}}
	s.starting.Lock()
	defer s.starting.Unlock()
	if err := s.find(ctx); err != nil { // the next call that changes something looks again, and says so
		c.Log.Error("the networks' process cannot be asked", "error", err)
	}
	return s, nil
}

// absent says that an error means: no process serves the socket.
func absent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// find looks for a process that runs; one that speaks another protocol is asked to stop. starting is held.
func (s *Substrate) find(ctx context.Context) error {
	patience, cancel := context.WithTimeout(ctx, helloPatience)
	defer cancel()
	said, err := ask[nothing, hello](patience, s.client, pathHello, nothing{})
	switch {
	case absent(err):
		return nil
	case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF): // it is ending
		return nbd.WaitUnserved(patience, s.socket)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		s.cfg.Log.Error("the networks' process does not answer and is ended: connections through edges break")
		return s.end(ctx)
	case err != nil:
		return fmt.Errorf("ask the region's host process: %w", err)
	case said.Protocol != Protocol:
		s.cfg.Log.Warn("the networks' process is of another version and is replaced: connections through edges break", "version", said.Version)
		return s.stop(ctx)
	}
	s.running = true
	s.watch.Go(s.whileRunning)
	return nil
}

// whileRunning waits for the process's end.
func (s *Substrate) whileRunning() {
	_, _ = ask[nothing, nothing](s.ctx, s.client, pathAlive, nothing{}) // whatever it says, it is over
	if s.ctx.Err() != nil {
		return
	}
	s.starting.Lock()
	s.running = false
	s.starting.Unlock()
	s.cfg.Log.Warn("the networks' process is gone: connections through edges are broken")
	if s.cfg.Lost != nil {
		s.cfg.Lost()
	}
}

// there says whether the process runs.
func (s *Substrate) there() bool {
	s.starting.Lock()
	defer s.starting.Unlock()
	return s.running
}

// ensure starts the process where none runs.
func (s *Substrate) ensure(ctx context.Context) error {
	s.starting.Lock()
	defer s.starting.Unlock()
	if s.running {
		return nil
	}
	if err := s.find(ctx); err != nil || s.running {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.find(ctx); err != nil {
		return err
	}
	_, err := ask[[]networks.Pool, nothing](ctx, s.client, pathPools, s.pools)
	return err
}

// start runs the command in a session of its own, so that nothing that ends this process ends it, and waits until it can be
// asked.
func (s *Substrate) start(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	logPath := filepath.Join(s.cfg.Dir, "host.log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	cmd := exec.Command(s.cfg.Command[0], s.cfg.Command[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	if err := errors.Join(err, w.Close(), out.Close()); err != nil {
		return fmt.Errorf("start the networks' process: %w", err)
	}
	go func() { _ = cmd.Wait() }() // its end is told by the socket
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(r, int64(len(ready))))
	if err == nil && string(said) == ready {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	last, _ := os.ReadFile(logPath)
	return fmt.Errorf("the networks' process did not start: %s", strings.TrimSpace(string(last[max(0, len(last)-500):])))
}

// stop asks the process to end, and waits for it. starting is held.
func (s *Substrate) stop(ctx context.Context) error {
	if _, err := ask[nothing, nothing](ctx, s.client, pathStop, nothing{}); err != nil && !absent(err) {
		return err
	}
	s.client.CloseIdleConnections()
	// The lock is let go of when the process has let go of everything else.
	return nbd.WaitUnserved(ctx, s.socket)
}

// end kills a process that does not answer. starting is held.
func (s *Substrate) end(ctx context.Context) error {
	raw, err := os.ReadFile(filepath.Join(s.cfg.Dir, pidName))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return err
	}
	// Another process may have the number by now.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(line), s.cfg.Dir) {
		return fmt.Errorf("process %d, which has the networks of %s, does not answer and cannot be told from others", pid, s.cfg.Dir)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	s.client.CloseIdleConnections()
	return nbd.WaitUnserved(ctx, s.socket)
}

// Stop ends the process, and with it the networks.
func (s *Substrate) Stop(ctx context.Context) error {
	s.cancel()
	s.watch.Wait()
	s.starting.Lock()
	defer s.starting.Unlock()
	return s.stop(ctx)
}

// Close lets go of the process, which goes on where it has any network.
func (s *Substrate) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), endPatience)
	defer cancel()
	all, err := s.List(ctx)
	if err == nil && len(all) == 0 {
		return s.Stop(ctx)
	}
	s.cancel()
	s.watch.Wait()
	s.client.CloseIdleConnections()
	return err
}

// endPatience bounds how long an end of the process is waited for.
const endPatience = 10 * time.Second

// read asks for what is there; without a process there is nothing.
func read[In, Out any](ctx context.Context, s *Substrate, path string, in In) (out Out, err error) {
	if !s.there() {
		return out, nil
	}
	return ask[In, Out](ctx, s.client, path, in)
}

// change asks for a change, and starts the process where none runs.
func change[In, Out any](ctx context.Context, s *Substrate, path string, in In) (out Out, err error) {
	if err := s.ensure(ctx); err != nil {
		return out, err
	}
	return ask[In, Out](ctx, s.client, path, in)
}

// Capabilities see networks.Reader.
func (s *Substrate) Capabilities(ctx context.Context) (networks.Capabilities, error) {
	c, err := change[nothing, networks.Capabilities](ctx, s, pathCan, nothing{})
	c.Outlives = true
	return c, err
}

// List see networks.Reader.
func (s *Substrate) List(ctx context.Context) ([]networks.Network, error) {
	return read[nothing, []networks.Network](ctx, s, pathList, nothing{})
}

// Network see networks.Reader.
func (s *Substrate) Network(ctx context.Context, environment string) (networks.Network, error) {
	if !s.there() {
		return networks.Network{}, networks.Errorf(networks.NetworkUnknown, "environment %s has no network here", environment)
	}
	return ask[ofEnvironment, networks.Network](ctx, s.client, pathNetwork, ofEnvironment{Environment: environment})
}

// Counters see networks.Reader.
func (s *Substrate) Counters(ctx context.Context) ([]networks.Counters, []networks.EdgeCounters, error) {
	c, err := read[nothing, counted](ctx, s, pathCounters, nothing{})
	return c.Ports, c.Edges, err
}

// SetPools see networks.Writer. A process that is started later is told, too.
func (s *Substrate) SetPools(ctx context.Context, pools []networks.Pool) error {
	s.starting.Lock()
	s.pools = pools
	s.starting.Unlock()
	_, err := read[[]networks.Pool, nothing](ctx, s, pathPools, pools)
	return err
}

// Apply see networks.Writer.
func (s *Substrate) Apply(ctx context.Context, n networks.Network) error {
	_, err := change[networks.Network, nothing](ctx, s, pathApply, n)
	return err
}

// Remove see networks.Writer.
func (s *Substrate) Remove(ctx context.Context, epoch int, environment string) error {
	_, err := read[ofEnvironment, nothing](ctx, s, pathRemove, ofEnvironment{epoch, environment})
	return err
}

// Attachment see networks.Writer.
func (s *Substrate) Attachment(ctx context.Context, epoch int, p networks.PortID) (networks.Attachment, error) {
	return change[ofPort, networks.Attachment](ctx, s, pathAttachment, ofPort{epoch, p})
}

// Plug see networks.Writer.
func (s *Substrate) Plug(ctx context.Context, epoch int, p networks.PortID) error {
	return s.port(ctx, pathPlug, epoch, p)
}

// Unplug see networks.Writer.
func (s *Substrate) Unplug(ctx context.Context, epoch int, p networks.PortID) error {
	return s.port(ctx, pathUnplug, epoch, p)
}

// Park see networks.Writer.
func (s *Substrate) Park(ctx context.Context, epoch int, p networks.PortID) error {
	return s.port(ctx, pathPark, epoch, p)
}

// Release see networks.Writer.
func (s *Substrate) Release(ctx context.Context, epoch int, p networks.PortID) error {
	return s.port(ctx, pathRelease, epoch, p)
}

func (s *Substrate) port(ctx context.Context, path string, epoch int, p networks.PortID) error {
	_, err := change[ofPort, nothing](ctx, s, path, ofPort{epoch, p})
	return err
}
