// Package qemu runs machines with QEMU, one process each, with the least privilege that the host allows.
//
// All that the driver knows is in its folder, and the processes themselves say whose they are on their command line, so an
// agent that was killed and started again finds everything:
//
//	lock, epoch                      one driver at a time; the highest epoch that was seen
//	machines/<environment>@<machine>/
//	    machine.json                 the specification, the process, how it ended
//	    monitor, serial              sockets on which the emulator listens; this folder is 0700
//	    console, console.old         what the machine said last
//	    log                          the emulator's last words
//	    devices                      the devices' state of the last capture
//	    jail/nbd                     the machine's disks; the emulator's root is jail
//
// The emulator is the server of each socket, so that agent and network may come again after they went; the agent is the
// server of disks alone, whose requests wait meanwhile. RAM is an anonymous file that the emulator inherits: it is read and
// filled without the emulator.
package qemu

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/board"
)

// Acceleration says what runs the guests' code.
type Acceleration string

// The choices. Whatever is chosen is probed by running a guest.
const (
	Auto Acceleration = "auto" // kvm where it works, else tcg
	KVM  Acceleration = "kvm"
	TCG  Acceleration = "tcg"
	None Acceleration = "none" // no machines on this host
)

// Config is what a driver needs.
type Config struct {
	Dir          string         // the driver's own; made where it is not there
	Disks        machines.Disks // of machines
	Acceleration Acceleration   // empty: auto
	Emulator     string         // the program; empty: qemu-system-x86_64 where PATH or Debian has it
	MemoryLimit  int64          // of all machines together, bytes; 0: three quarters of the host's
	FirstUID     uint32         // of the range of users that root gives machines, 65536 of them; 0: 1900000000
	Cgroup       string         // a folder of cgroup v2 to make machines' groups in; empty: beside the agent's own, where it is delegated
	Log          *slog.Logger   // nil: nothing

	lenient int // how many of the strictest profiles are passed over
}

const (
	defaultUID = 1_900_000_000 // above what Linux distributions give people, services and containers
	uidRange   = 1 << 16
)

// Driver is a machines.Driver.
type Driver struct {
	cfg   Config
	tag   string // begins the names of this driver's processes
	lock  *os.File
	board *board.Board

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	probing chan struct{} // of one: who probes
	mu      sync.Mutex
	host    *hostFacts // nil: not probed yet
	epoch   int
	all     map[machines.ID]*machine
	turns   map[machines.ID]*turn
	closed  bool
}

var _ machines.Driver = (*Driver)(nil)

// Open makes a driver over a folder, and finds the machines that run already. Their disks are served from Adopt on. Close
// it. Errors: machines-unavailable where another process has the folder, or it cannot be used.
func Open(cfg Config) (*Driver, error) {
	if cfg.Acceleration == "" {
		cfg.Acceleration = Auto
	}
	if cfg.FirstUID == 0 {
		cfg.FirstUID = defaultUID
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, machinesDir), 0o700)
	}
	if err != nil {
		return nil, machines.Wrap(machines.Unavailable, err, "the folder of machines")
	}
	cfg.Dir = dir
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, machines.Wrap(machines.Unavailable, err, "the folder of machines")
	}
	if err := takeLock(lock); err != nil {
		lock.Close()
		return nil, machines.Wrap(machines.Unavailable, err, "another process has the machines of %s", dir)
	}
	d := &Driver{cfg: cfg, tag: tagOf(dir), lock: lock, board: board.New(), probing: make(chan struct{}, 1), all: map[machines.ID]*machine{}, turns: map[machines.ID]*turn{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	if d.epoch, err = readEpoch(dir); err == nil {
		err = d.find()
	}
	if err != nil {
		return nil, errors.Join(machines.Wrap(machines.Unavailable, err, "read %s", dir), d.Close())
	}
	d.work.Go(d.trimLogs)
	return d, nil
}

// lockTime is how long a process that an agent was about to start when it was killed may have its lock.
const lockTime = 3 * time.Second

func takeLock(lock *os.File) error {
	for end := time.Now().Add(lockTime); ; time.Sleep(10 * time.Millisecond) {
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// Close implements machines.Driver: the machines go on running, and wait when they need their disks.
func (d *Driver) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	all := d.list()
	d.mu.Unlock()
	d.cancel()
	for _, m := range all {
		m.hangUp() // what waits for it comes to its end
	}
	d.work.Wait()
	for _, m := range d.known() {
		m.letGo()
	}
	return d.lock.Close()
}

// list gives the machines; d.mu is held.
func (d *Driver) list() []*machine {
	all := make([]*machine, 0, len(d.all))
	for _, m := range d.all {
		all = append(all, m)
	}
	return all
}

func (d *Driver) known() []*machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list()
}

func (d *Driver) machine(id machines.ID) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[id]
}

// enter lets a reader in: it works with the context that it gets, which ends with the driver too, and then leaves.
func (d *Driver) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, nil, machines.Errorf(machines.Unavailable, "the driver is closed")
	}
	d.work.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.ctx, cancel)
	return ctx, func() { stop(); cancel(); d.work.Done() }, nil
}

// write lets an agent's writer in, and remembers its epoch before it acts. Errors: stale-epoch, machines-unavailable.
func (d *Driver) write(ctx context.Context, epoch int) (_ context.Context, leave func(), err error) {
	ctx, leave, err = d.enter(ctx)
	if err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case epoch < d.epoch:
		err = machines.Errorf(machines.StaleEpoch, "epoch %d; %d has been here", epoch, d.epoch)
	case epoch > d.epoch:
		if err = writeEpoch(d.cfg.Dir, epoch); err != nil {
			err = machines.Wrap(machines.Unavailable, err, "remember epoch %d", epoch)
		}
	}
	if err != nil {
		leave()
		return nil, nil, err
	}
	d.epoch = epoch
	return ctx, leave, nil
}

func unknown(id machines.ID) error {
	return machines.Errorf(machines.MachineUnknown, "there is no machine %s", id)
}

// turn is who changes a machine, whether it is there or not.
type turn struct {
	taken chan struct{} // of one
	users int           // who has it or waits; guarded by the driver
}

// take waits for the turn to change these machines, and gives it back when it is called.
func (d *Driver) take(ctx context.Context, ids ...machines.ID) (give func(), err error) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b machines.ID) int { return cmp.Compare(a.String(), b.String()) }) // all in one order, so that none waits in a circle
	var gives []func()
	give = func() {
		for _, g := range gives {
			g()
		}
	}
	for _, id := range slices.Compact(ids) {
		d.mu.Lock()
		t := d.turns[id]
		if t == nil {
			t = &turn{taken: make(chan struct{}, 1)}
			d.turns[id] = t
		}
		t.users++
		d.mu.Unlock()
		leave := func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if t.users--; t.users == 0 {
				delete(d.turns, id)
			}
		}
		select {
		case t.taken <- struct{}{}:
			gives = append(gives, func() { <-t.taken; leave() })
		case <-ctx.Done():
			leave()
			give()
			return nil, ctx.Err()
		}
	}
	return give, nil
}
