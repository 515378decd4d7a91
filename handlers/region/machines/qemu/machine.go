package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/console"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qmp"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// machine is one with a folder: its process lives, or has ended.
type machine struct {
	driver  *Driver
	id      machines.ID
	looking sync.Mutex // one look at the emulator's state at a time, so that the last one is what is told

	mu      sync.Mutex
	record  record
	state   machines.State
	silent  string // why the monitor does not answer
	monitor *qmp.Client
	line    *console.Line
	serial  net.Conn
	proc    *process
	ram     *os.File
	disks   *nbd.Server
	socket  *shared // of the disks
	// Start has not come to its end, or Kill has begun: what happens is theirs to tell.
	starting, killing bool
	let               context.CancelFunc // lets go of the process
	gone              chan struct{}      // closed when the process has ended and that is stored
	changed           chan struct{}      // of one: the guest's state did
	moved             chan struct{}      // of one: a migration's state did
	handing           chan struct{}      // of one: who hands the emulator a file by a name
}

func (d *Driver) newMachine(r record) *machine {
	m := &machine{driver: d, id: r.Spec.ID, record: r, state: machines.Ended, gone: make(chan struct{}), changed: make(chan struct{}, 1), moved: make(chan struct{}, 1), handing: make(chan struct{}, 1)}
	m.line = console.NewLine(readHistory(d.folderOf(m.id)))
	return m
}

// find makes the machines that have a folder, and follows those that run.
func (d *Driver) find() error {
	records, err := d.folders()
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for id, r := range records {
		m := d.newMachine(r)
		d.all[id] = m
		p, err := openProcess(r.Process)
		if err != nil {
			m.ended(m.left(""))
			continue
		}
		ram, err := ramOf(p.PID, r.Spec.Memory)
		if err != nil {
			d.cfg.Log.Warn("a machine's RAM", "machine", id.String(), "error", err)
		}
		m.follow(p, ram)
		all.Go(func() {
			ctx, cancel := context.WithTimeout(d.ctx, 2*time.Second)
			defer cancel()
			m.answers(ctx)
		})
	}
	all.Wait()
	strays, err := d.strays()
	for _, s := range strays {
		d.board.Tell(s)
	}
	return err
}

// follow keeps an eye on the process: its end, its monitor, its console.
func (m *machine) follow(p *process, ram *os.File) {
	ctx, let := context.WithCancel(m.driver.ctx)
	m.mu.Lock()
	m.proc, m.ram, m.let = p, ram, let
	m.state = machines.Paused
	m.mu.Unlock()
	m.driver.work.Go(func() {
		defer let() // and nobody follows it any more
		how, err := p.wait(ctx)
		if err == nil {
			m.ended(m.left(how))
		}
	})
	m.driver.work.Go(func() { m.converse(ctx) })
	m.driver.work.Go(func() { m.listen(ctx) })
}

// left says in words how a process ended that was not asked to.
func (m *machine) left(how string) string {
	var parts []string
	m.mu.Lock()
	r := m.record
	m.mu.Unlock()
	if !r.Ready {
		parts = append(parts, "its start was broken off")
	}
	if how == "" && r.Process.Boot != "" && r.Process.Boot != bootID() {
		how = "the host was started again"
	} else if how == "" {
		how = "the process ended while no agent was there"
	}
	if words := m.driver.lastWords(m.id); words != "" {
		how += ": " + words
	}
	return strings.Join(append(parts, how), "; ")
}

// ended takes note that the process is gone.
func (m *machine) ended(text string) {
	m.mu.Lock()
	m.state = machines.Ended
	if m.record.End == "" {
		m.record.End, m.record.Text = machines.EndCrashed, text
	}
	r, quiet := m.record, m.starting || m.killing
	if m.monitor != nil {
		m.monitor.Close()
	}
	if m.ram != nil { // its memory is the host's again
		m.ram.Close()
		m.ram = nil
	}
	m.line.Close()
	m.mu.Unlock()
	m.stopServing(true)
	if !quiet {
		if r.Spec.Memory > 0 { // else nothing was stored
			if err := m.driver.store(r); err != nil {
				m.driver.cfg.Log.Warn("store how a machine ended", "machine", m.id.String(), "error", err)
			}
		}
		m.tell()
	}
	close(m.gone)
}

func (m *machine) tell() { m.driver.board.Tell(m.status()) }

func (m *machine) status() machines.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.record
	s := machines.Status{ID: m.id, Owner: r.Spec.Owner, Epoch: r.Spec.Epoch, State: m.state, Started: r.Started, Memory: r.Spec.Memory}
	switch {
	case m.state == machines.Ended:
		s.End, s.Text = r.End, r.Text
	default:
		s.PID, s.Text = r.Process.PID, m.silent
		s.Used = r.Process.used()
		if m.ram != nil {
			s.Used += blocks(m.ram)
		}
	}
	return s
}

// lookTime is how long an emulator may take to say how it is. Its main loop waits for its disks' requests at times.
const lookTime = time.Minute

// again is the time between tries to reach an emulator that lives.
const again = 100 * time.Millisecond

// converse keeps a connection to the monitor for as long as the process lives.
func (m *machine) converse(ctx context.Context) {
	for ctx.Err() == nil {
		c, err := m.connect(ctx)
		m.mu.Lock()
		m.monitor, m.silent = c, ""
		if err != nil {
			m.silent = "its monitor does not answer: " + err.Error()
		}
		m.mu.Unlock()
		if err == nil {
			for open := true; open; {
				m.look(ctx)
				select {
				case <-m.changed:
				case <-c.Done():
					open = false
				case <-ctx.Done():
					c.Close()
					open = false
				}
			}
			m.mu.Lock()
			m.monitor = nil
			m.mu.Unlock()
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
}

func (m *machine) connect(ctx context.Context) (*qmp.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := dialAt(ctx, m.driver.folderOf(m.id), monitorSocket)
	if err != nil {
		return nil, err
	}
	return qmp.Connect(ctx, conn, func(e qmp.Event) {
		switch e.Name {
		case "STOP", "RESUME", "SHUTDOWN", "GUEST_PANICKED":
			select {
			case m.changed <- struct{}{}:
			default: // it will look anyway
			}
		case "MIGRATION":
			select {
			case m.moved <- struct{}{}:
			default: // it will look anyway
			}
		}
	})
}

// answers gives the monitor, and waits for it if need be. Errors: machine-failed, the context's.
func (m *machine) answers(ctx context.Context) (*qmp.Client, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		m.mu.Lock()
		c, text := m.monitor, m.silent
		m.mu.Unlock()
		if c != nil {
			return c, nil
		}
		select {
		case <-tick.C:
		case <-m.gone:
			m.mu.Lock()
			defer m.mu.Unlock()
			return nil, machines.Errorf(machines.MachineFailed, "%s has ended: %s", m.id, m.record.Text)
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), fmt.Errorf("%s: its monitor does not answer (%s)", m.id, text))
		}
	}
}

// do is a command to the emulator. Errors: machine-failed, the context's.
func (m *machine) do(ctx context.Context, command string, arguments, reply any, files ...*os.File) error {
	c, err := m.answers(ctx)
	if err != nil {
		return err
	}
	err = c.Do(ctx, command, arguments, reply, files...)
	if qmp.CodeOf(err) == "" { // nil, or the context's
		return err
	}
	return machines.Wrap(machines.MachineFailed, err, "%s", m.id)
}

// look asks the emulator for the state, and tells. A guest that will never run again ends here.
func (m *machine) look(ctx context.Context) {
	m.looking.Lock()
	defer m.looking.Unlock()
	m.mu.Lock()
	c := m.monitor
	m.mu.Unlock()
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var now struct {
		Status string `json:"status"`
	}
	if err := c.Do(ctx, "query-status", nil, &now); err != nil {
		c.Close() // converse connects again and looks again
		return
	}
	end, text := machines.End(""), ""
	state := machines.Paused
	switch now.Status {
	case "running":
		state = machines.Running
	case "shutdown":
		end = machines.EndGuest
	case "guest-panicked":
		end, text = machines.EndCrashed, "the guest's kernel panicked"
	case "internal-error":
		end, text = machines.EndCrashed, "the accelerator cannot run the guest on: "+m.driver.lastWords(m.id)
	}
	if end != "" {
		m.finish(ctx, c, end, text)
		return
	}
	m.mu.Lock()
	ended := m.state == machines.Ended
	if !ended {
		m.state = state
	}
	quiet := m.starting || m.killing
	m.mu.Unlock()
	if !ended && !quiet {
		m.tell()
	}
}

// finish stores why the guest has ended, and then ends the emulator.
func (m *machine) finish(ctx context.Context, c *qmp.Client, end machines.End, text string) {
	m.mu.Lock()
	first := m.record.End == "" && m.state != machines.Ended && !m.starting && !m.killing
	if first {
		m.record.End, m.record.Text = end, text
	}
	r, p := m.record, m.proc
	m.mu.Unlock()
	if !first {
		return
	}
	if err := m.driver.store(r); err != nil {
		m.driver.cfg.Log.Warn("store how a guest ended", "machine", m.id.String(), "error", err)
	}
	_ = c.Do(ctx, "quit", nil, nil) // its disks are flushed; it may be gone before it answers
	m.driver.work.Go(func() {
		select {
		case <-m.gone:
		case <-m.driver.ctx.Done():
		case <-time.After(10 * time.Second):
			if err := p.kill(); err != nil {
				m.driver.cfg.Log.Warn("end an emulator that does not quit", "machine", m.id.String(), "error", err)
			}
		}
	})
}

// hangUp leaves the process alone: who reads its console comes to the end, its disks are served no more.
func (m *machine) hangUp() {
	m.mu.Lock()
	let := m.let
	m.mu.Unlock()
	m.line.Close()
	if let != nil {
		let()
	}
	m.stopServing(false)
}

// stopServing disconnects the disks; for good, if the process is gone.
func (m *machine) stopServing(forGood bool) {
	m.mu.Lock()
	disks, socket := m.disks, m.socket
	m.disks, m.socket = nil, nil
	m.mu.Unlock()
	if disks == nil {
		return
	}
	var err error
	if forGood {
		err = socket.shut()
	}
	if err := errors.Join(err, disks.Close(), socket.Close()); err != nil {
		m.driver.cfg.Log.Warn("stop serving a machine's disks", "machine", m.id.String(), "error", err)
	}
}

// letGo closes what is open of a process that nobody follows any more.
func (m *machine) letGo() {
	m.hangUp()
	if m.ram != nil {
		m.ram.Close()
	}
	if m.proc != nil {
		m.proc.fd.Close()
	}
}

// The console on disk: two files in turn, of which the older has history at least when the other is short.
const (
	consoleFile = "console"
	consoleOld  = "console.old"
)

func readHistory(dir string) []byte {
	return append(tail(filepath.Join(dir, consoleOld), machines.ConsoleHistory), tail(filepath.Join(dir, consoleFile), machines.ConsoleHistory)...)
}

// listen hears what the machine says on its serial line, always: a guest never waits for a reader.
func (m *machine) listen(ctx context.Context) {
	dir := m.driver.folderOf(m.id)
	for ctx.Err() == nil {
		m.mu.Lock()
		conn := m.serial // of Start
		m.mu.Unlock()
		if conn == nil {
			c, err := dialAt(ctx, dir, serialSocket)
			if err == nil {
				conn = c
			}
		}
		if conn != nil {
			m.mu.Lock()
			m.serial = conn
			m.mu.Unlock()
			if err := m.hear(ctx, conn, dir); err != nil && ctx.Err() == nil {
				m.driver.cfg.Log.Warn("a machine's console", "machine", m.id.String(), "error", err)
			}
			m.mu.Lock()
			m.serial = nil
			m.mu.Unlock()
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
}

// hear takes what comes on one connection, until its end. What cannot be stored is heard all the same.
func (m *machine) hear(ctx context.Context, conn net.Conn, dir string) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	f, err := openTape(dir)
	buf := make([]byte, 32<<10)
	for {
		n, rerr := conn.Read(buf)
		m.line.Say(buf[:n])
		if err == nil {
			err = f.write(buf[:n])
		}
		if rerr != nil { // its end, or the emulator's
			return errors.Join(err, f.Close())
		}
	}
}

// tape is the console on disk.
type tape struct {
	*os.File
	dir  string
	size int64
}

func openTape(dir string) (*tape, error) {
	f, err := os.OpenFile(filepath.Join(dir, consoleFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return &tape{}, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	return &tape{File: f, dir: dir, size: size}, err
}

// write begins a new file when the old one has a history's length.
func (t *tape) write(b []byte) error {
	if t.size >= machines.ConsoleHistory {
		path := filepath.Join(t.dir, consoleFile)
		if err := os.Rename(path, filepath.Join(t.dir, consoleOld)); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		old := t.File
		t.File, t.size = f, 0
		if err := old.Close(); err != nil {
			return err
		}
	}
	n, err := t.Write(b)
	t.size += int64(n)
	return err
}

// Close may be called without a file.
func (t *tape) Close() error {
	if t.File == nil {
		return nil
	}
	return t.File.Close()
}
