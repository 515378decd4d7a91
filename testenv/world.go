// Package testenv starts the real program for tests: the control plane and
// regions' agents as processes of their own, with links between them that can be
// cut, slowed and counted. It waits for positions and events, never for time.
package testenv

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// Kind makes the processes of a world.
type Kind interface {
	// Command gives the program, and the environment it needs, that is run with
	// the arguments of the command line.
	Command(name string) (program string, env []string)
}

// Real runs cmd/tombolo as it is.
type Real struct{ Path string }

// Command is the binary.
func (r Real) Command(string) (string, []string) { return r.Path, nil }

// Options of New.
type Options struct {
	Regions []string            // whose agents are started; beijing, sydney, chicago if empty
	Flags   map[string][]string // more flags: of the server under "", of agents under their region
	Timeout time.Duration       // of the whole test; 2 minutes if 0
	Durable bool                // every event is on the disk before it is acknowledged
	Dir     string              // the world's folder; one of the test's if empty
}

// World is an installation of the real program.
type World struct {
	t       testing.TB
	ctx     context.Context
	kind    Kind
	options Options
	home    string // of the command line
	written atomic.Uint64
	mu      sync.Mutex // guards what a restart changes

	cleanups []func()

	Dir    string
	HTTP   *Link // to the control plane
	NATS   *Link // of the server; agents have links of their own to it
	Server *Process
	Admin  contexts.Context
	Agents map[string]*Agent
}

// Agent is one region's agent as a process.
type Agent struct {
	world     *World
	Region    string
	Dir       string
	Enrolment string
	Transfer  *Link // from other regions to this one
	Bus       *Link // from this one to the control plane
	Process   *Process
	At        AgentAddresses

	ticket string // the administrator's, to ask this region
}

// AgentAddresses is what an agent says when it is ready.
type AgentAddresses struct {
	Region   string `json:"region"`
	Agent    string `json:"agent"`
	HTTP     string `json:"http"`
	Transfer string `json:"transfer"`
	Listen   struct {
		HTTP     string `json:"http"`
		Transfer string `json:"transfer"`
	} `json:"listen"`
}

// New starts a world: the server, then an agent for each region.
func New(t testing.TB, kind Kind, o Options) *World {
	t.Helper()
	if len(o.Regions) == 0 {
		o.Regions = []string{"beijing", "sydney", "chicago"}
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Minute
	}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.Timeout)
	t.Cleanup(cancel)
	w := &World{t: t, ctx: ctx, kind: kind, options: o, Dir: o.Dir, Agents: map[string]*Agent{}}
	t.Cleanup(w.close)
	w.home = filepath.Join(w.Dir, "home")
	w.HTTP, w.NATS = w.link(""), w.link("")
	w.StartServer()
	for _, r := range o.Regions {
		w.AddRegion(r)
	}
	return w
}

// cleanup is t.Cleanup, but for the world, which tells what is going on before
// anything of it ends.
func (w *World) cleanup(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cleanups = append(w.cleanups, f)
}

func (w *World) close() {
	if w.t.Failed() {
		w.tell()
	}
	for _, f := range slices.Backward(w.cleanups) {
		f()
	}
	for _, a := range w.Agents { // what outlives an agent
		guests, networks := a.Processes(w.t)
		kill(w.t, append(guests, networks...))
	}
}

// tell shows what is going on, and how the logs of all processes end.
func (w *World) tell() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, path := range []string{"/v1/operations", "/v1/work?state=open", "/v1/handlers", "/readyz?verbose"} {
		var answer json.RawMessage
		err := w.Client().Once(ctx, "GET", path, nil, &answer)
		w.t.Logf("%s: %s %v", path, answer, err)
	}
	facts, err := w.facts(ctx, 1)
	for _, f := range facts[max(0, len(facts)-25):] {
		w.t.Logf("%d %s %s %s", f.Sequence, f.Type, f.Subject, strings.ReplaceAll(JSON(f.Data), "\n", ""))
	}
	if err != nil {
		w.t.Log(err)
	}
	logs, err := filepath.Glob(filepath.Join(w.Dir, "*.log"))
	if err != nil {
		w.t.Error(err)
	}
	for _, l := range logs {
		w.t.Logf("%s:\n%s", filepath.Base(l), (&Process{log: l}).Log())
	}
}

func (w *World) link(target string) *Link {
	w.t.Helper()
	return newLink(w.t, w.cleanup, target)
}

// Context ends when the test has taken too long.
func (w *World) Context() context.Context { return w.ctx }

// StartServer starts the control plane, again after it has ended; agents and
// clients find it where it was.
func (w *World) StartServer() {
	w.t.Helper()
	if err := w.startServer(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *World) serverDir() string { return filepath.Join(w.Dir, "server") }

func (w *World) launchServer() (*Process, error) {
	sync := "lazy"
	if w.options.Durable {
		sync = "always"
	}
	args := append([]string{"server", "--data", w.serverDir(), "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0", "--sync", sync,
		"-o", "json", "--regions", join(w.options.Regions)}, w.options.Flags[""]...)
	command, env := w.kind.Command("server")
	p, err := start(w.t, w.cleanup, "the server", w.Dir+"/server.log", append(env, "HOME="+w.home), command, args...)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.Server = p
	w.mu.Unlock()
	return p, nil
}

// LaunchServer starts the control plane and does not wait until it is ready: it
// may never be.
func (w *World) LaunchServer() {
	w.t.Helper()
	if _, err := w.launchServer(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *World) startServer() error {
	p, err := w.launchServer()
	if err != nil {
		return err
	}
	var at program.Addresses
	if err := p.Ready(w.ctx, &at); err != nil {
		return err
	}
	w.HTTP.To(hostPort(at.HTTP))
	w.NATS.To(hostPort(at.NATS))
	admin, err := contexts.Read(at.Context)
	if err != nil {
		return err
	}
	admin.HTTP = "http://" + w.HTTP.Address()
	w.mu.Lock()
	w.Admin = admin
	w.mu.Unlock()
	return admin.Write(w.contextFile())
}

func (w *World) contextFile() string { return filepath.Join(w.Dir, "context.json") }

// AddRegion enrols a region's agent and starts it.
func (w *World) AddRegion(region string) *Agent {
	w.t.Helper()
	a := &Agent{world: w, Region: region, Dir: filepath.Join(w.Dir, region), Enrolment: filepath.Join(w.Dir, region+".enrolment.json"),
		Transfer: w.link(""), Bus: w.link(w.NATS.Address())}
	w.Agents[region] = a
	e, err := w.enrol(region)
	if err != nil {
		w.t.Fatal(err)
	}
	e.NATS = "nats://" + a.Bus.Address()
	if err := e.Write(a.Enrolment); err != nil {
		w.t.Fatal(err)
	}
	a.Start()
	var got struct{ Ticket string }
	if err := w.Client().Do(w.ctx, "POST", "/v1/regions/"+region+"/ticket", struct{}{}, &got); err != nil {
		w.t.Fatal(err)
	}
	a.ticket = got.Ticket
	return a
}

func (w *World) enrol(region string) (program.Enrolment, error) {
	var e program.Enrolment
	err := w.Client().Do(w.ctx, "POST", "/v1/regions/"+region+"/enrol", struct{}{}, &e)
	return e, err
}

// Start starts the agent, again after it has ended.
func (a *Agent) Start() {
	a.world.t.Helper()
	if err := a.start(a.Dir); err != nil {
		a.world.t.Fatal(err)
	}
}

func (a *Agent) start(dir string) error {
	if _, err := a.launch(dir); err != nil {
		return err
	}
	return a.ready()
}

// Launch starts the agent's process over a data directory and does not wait.
func (a *Agent) Launch(dir string) *Process {
	a.world.t.Helper()
	p, err := a.launch(dir)
	if err != nil {
		a.world.t.Fatal(err)
	}
	return p
}

func (a *Agent) launch(dir string) (*Process, error) {
	w := a.world
	args := append([]string{"agent", "run", "--data", dir, "--enrolment", a.Enrolment, "-o", "json", "-v",
		"--transfer-advertise", a.Transfer.Address()}, w.options.Flags[a.Region]...)
	command, env := w.kind.Command(a.Region)
	p, err := start(w.t, w.cleanup, "the agent of "+a.Region, w.Dir+"/"+filepath.Base(dir)+".log", append(env, "HOME="+w.home), command, args...)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	a.Process = p
	w.mu.Unlock()
	return p, nil
}

func (a *Agent) ready() error {
	var at AgentAddresses
	if err := a.process().Ready(a.world.ctx, &at); err != nil {
		return err
	}
	a.world.mu.Lock()
	a.At = at
	a.world.mu.Unlock()
	a.Transfer.To(at.Listen.Transfer)
	return nil
}

func (a *Agent) process() *Process {
	a.world.mu.Lock()
	defer a.world.mu.Unlock()
	return a.Process
}

// Supervise starts the server and the agents again whenever they end, as an
// init system would, until the function that it gives is called.
func (w *World) Supervise() (stop func()) {
	ctx, cancel := context.WithCancel(w.ctx)
	var all sync.WaitGroup
	keep := func(name string, current func() *Process, again func() error) {
		all.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-current().Ended():
				}
				// It may end again before it is ready: that is what is tried.
				if err := again(); err != nil && current().cmd.ProcessState == nil && ctx.Err() == nil {
					w.t.Errorf("%s cannot be started again: %v", name, err)
					return
				}
			}
		})
	}
	keep("the server", func() *Process {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.Server
	}, w.startServer)
	for _, a := range w.Agents {
		keep("the agent of "+a.Region, a.process, func() error { return a.start(a.Dir) })
	}
	return func() {
		cancel()
		all.Wait()
	}
}

// Ready waits until a launched agent owns its region.
func (a *Agent) Ready() {
	a.world.t.Helper()
	if err := a.ready(); err != nil {
		a.world.t.Fatal(err)
	}
}

// WriteDisk writes to a disk of an environment as a machine would: through the
// region's block device, flushed.
func (a *Agent) WriteDisk(environment, disk string, data []byte, off int64) {
	a.world.t.Helper()
	if err := a.writeDisk(environment, disk, data, off); err != nil {
		a.world.t.Fatalf("write to %s of %s: %v", disk, environment, err)
	}
}

func (a *Agent) writeDisk(environment, disk string, data []byte, off int64) error {
	return a.device(environment, disk, func(device *nbd.Client) error {
		if _, err := device.WriteAt(data, off); err != nil {
			return err
		}
		return device.Flush()
	})
}

func (a *Agent) readDisk(environment, disk string) (content []byte, err error) {
	return content, a.device(environment, disk, func(device *nbd.Client) error {
		content = make([]byte, device.Size())
		_, err := device.ReadAt(content, 0)
		return err
	})
}

// device opens a disk of an environment as a machine would.
func (a *Agent) device(environment, disk string, use func(*nbd.Client) error) error {
	socket, err := nbd.SocketPath(a.Dir, "nbd.sock")
	if err != nil {
		return err
	}
	device, err := nbd.Dial(a.world.ctx, socket, environment+"/"+disk)
	if err != nil {
		return err
	}
	defer device.Close()
	return use(device)
}

// Region gives a region's agent.
func (w *World) Region(name string) *Agent {
	w.t.Helper()
	a := w.Agents[name]
	if a == nil {
		w.t.Fatalf("there is no agent of %s", name)
	}
	return a
}

// Regions are the names of the regions, sorted.
func (w *World) Regions() []string {
	var out []string
	for r := range w.Agents {
		out = append(out, r)
	}
	slices.Sort(out)
	return out
}

// File writes a file into the world's folder and gives its path.
func (w *World) File(name string, content []byte) string {
	w.t.Helper()
	path := filepath.Join(w.Dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// JSON is a value as JSON, for messages.
func JSON(v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}
