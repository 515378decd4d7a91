package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// Start implements machines.Writer.
func (d *Driver) Start(ctx context.Context, s machines.Spec, memory *machines.Memory) error {
	ctx, leave, err := d.write(ctx, s.Epoch)
	if err != nil {
		return err
	}
	defer leave()
	if err := s.Check(); err != nil {
		return err
	}
	h, err := d.available(ctx)
	if err != nil {
		return err
	}
	if memory != nil {
		if err := errors.Join(h.capabilities.Hardware.Resumes(memory.Hardware), memory.Check(s.Memory)); err != nil {
			return err
		}
	}
	give, err := d.take(ctx, s.ID)
	if err != nil {
		return err
	}
	defer give()
	if m := d.machine(s.ID); m != nil {
		m.mu.Lock()
		lives, old := m.state != machines.Ended && m.record.Ready, m.record.Spec
		m.mu.Unlock()
		if lives && !old.Same(s) {
			return machines.Errorf(machines.MachineExists, "%s runs with another specification", s.ID)
		} else if lives {
			return nil
		}
	}
	// What an ended one left, or a Start that was broken off, or a process that nobody knows.
	if err := d.remove(ctx, s.ID, true); err != nil {
		return err
	}
	m, err := d.reserve(h, s)
	if err == nil {
		err = d.begin(ctx, m, h, memory)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
		defer cancel()
		err = errors.Join(err, d.remove(undo, s.ID, false))
		d.board.Tell(machines.Status{ID: s.ID, State: machines.Ended, End: machines.EndKilled}) // where an ended one was before
		return err
	}
	m.mu.Lock()
	m.starting = false
	m.mu.Unlock()
	m.tell()
	return nil
}

// removeTime is how long a process may take to go when it is killed.
const removeTime = 30 * time.Second

// reserve takes memory and a user for a machine, or says that there is not enough.
func (d *Driver) reserve(h *hostFacts, s machines.Spec) (*machine, error) {
	total, available, err := hostMemory()
	if err != nil {
		return nil, machines.Wrap(machines.Unavailable, err, "how much memory the host has")
	}
	limit := d.cfg.MemoryLimit
	if limit == 0 {
		limit = total / 4 * 3
	}
	m := d.newMachine(record{Spec: s, Hardware: h.capabilities.Hardware})
	m.starting = true
	d.mu.Lock()
	defer d.mu.Unlock()
	var promised, open int64 // to all machines; and of it what they have not taken yet
	uids := map[uint32]bool{}
	for _, other := range d.all {
		status := other.status()
		other.mu.Lock()
		starting, uid := other.starting, other.record.UID
		other.mu.Unlock()
		if status.State != machines.Ended || starting {
			promised += status.Memory
			open += max(0, status.Memory-status.Used)
		}
		uids[uid] = true
	}
	switch {
	case promised+s.Memory > limit:
		return nil, machines.Errorf(machines.MemoryShort, "%s asks for %d MiB; the region's machines have %d of the %d MiB that they may have", s.ID, s.Memory>>20, promised>>20, limit>>20)
	case open+s.Memory > available:
		return nil, machines.Errorf(machines.MemoryShort, "%s asks for %d MiB; the host has %d MiB, of which %d are promised to other machines", s.ID, s.Memory>>20, available>>20, open>>20)
	}
	if h.profile.ownUser {
		// From a place of the folder's own, so that two drivers on a host give different users.
		n := d.offset()
		for uids[d.cfg.FirstUID+n] {
			n = (n + 1) % uidRange
		}
		m.record.UID = d.cfg.FirstUID + n
	}
	d.all[s.ID] = m
	return m, nil
}

// begin makes the process. What it leaves after an error is removed by its caller.
func (d *Driver) begin(ctx context.Context, m *machine, h *hostFacts, memory *machines.Memory) error {
	s := m.record.Spec
	failed := func(err error, what string) error {
		if err == nil || machines.CodeOf(err) != "" {
			return err
		}
		return machines.Wrap(machines.MachineFailed, err, "%s: %s", s.ID, what)
	}
	dir := d.folderOf(s.ID)
	jail := filepath.Join(dir, jailDir)
	err := os.MkdirAll(jail, 0o700)
	if err == nil {
		err = errors.Join(h.profile.prepare(jail), d.store(m.record))
	}
	if err != nil {
		return failed(err, "make its folder")
	}
	disks, err := m.exports()
	if err != nil {
		return err
	}
	files, socket, err := m.inherit(ctx, h.profile, dir)
	defer files.close()
	if err != nil {
		return failed(err, "make what it is connected to")
	}
	if memory != nil {
		if err := fillRAM(ctx, m.ram, memory, s.Memory); err != nil {
			return failed(errors.Join(err, socket.Close()), "fill its memory")
		}
	}
	if err := d.spawn(m, h, dir, files, memory != nil); err != nil {
		return failed(errors.Join(err, socket.Close()), "start its process")
	}
	if err := m.serve(disks, socket); err != nil {
		return failed(err, "serve its disks")
	}
	if _, err := m.answers(ctx); err != nil {
		return failed(err, "reach its monitor")
	}
	if err := files.widen(); err != nil {
		return failed(err, "widen its sockets")
	}
	files.close() // only the emulator has them now: connections end with it
	if memory != nil {
		if err := m.resume(ctx, memory.Devices); err != nil {
			return failed(err, "resume")
		}
	}
	m.mu.Lock()
	m.record.Ready = true
	r := m.record
	m.mu.Unlock()
	return failed(d.store(r), "store it")
}

// spawn starts the process, and stores which it is.
func (d *Driver) spawn(m *machine, h *hostFacts, dir string, files *inherited, incoming bool) error {
	s := m.record.Spec
	arguments, err := d.arguments(h, s, incoming)
	if err != nil {
		return err
	}
	jail, err := os.Open(filepath.Join(dir, jailDir))
	if err != nil {
		return err
	}
	defer jail.Close()
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := h.emulator.command(h.profile, m.record.UID, jail, log, arguments, files.files())
	if h.profile.grouped {
		group, err := d.joinGroup(s)
		if err != nil {
			return fmt.Errorf("its cgroup: %w", err)
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p, err := ofChild(cmd)
	if err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	m.mu.Lock()
	m.record.Process, m.record.Started = p.processID, time.Now().Round(0)
	r, ram := m.record, m.ram
	m.mu.Unlock()
	m.follow(p, ram)
	err = limitProcess(p.PID, s.Memory)
	if err != nil && h.profile.unlimited != "" {
		err = nil // as said in Capabilities
	}
	return errors.Join(err, d.store(r))
}

// inherit makes what the emulator gets as descriptors, and the agent's side of the disks. The files that are there must be
// closed also after an error.
func (m *machine) inherit(ctx context.Context, p profile, dir string) (i *inherited, disks *shared, err error) {
	i = &inherited{}
	s := m.record.Spec
	socket := func(dir, name string) (*os.File, error) {
		l, err := listenAt(dir, name)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return l.File()
	}
	if i.monitor, err = socket(dir, monitorSocket); err != nil {
		return i, nil, err
	}
	if i.serial, err = socket(dir, serialSocket); err != nil {
		return i, nil, err
	}
	if m.serial, err = dialAt(ctx, dir, serialSocket); err != nil {
		return i, nil, err
	}
	if m.ram, err = anonymous("ram", s.Memory); err != nil {
		return i, nil, err
	}
	i.ram = m.ram
	for _, n := range s.NICs {
		var f *os.File
		if n.Tap != nil {
			f, err = openTap(*n.Tap)
		} else {
			f, err = socket(filepath.Dir(n.Socket), filepath.Base(n.Socket))
		}
		if err != nil {
			return i, nil, fmt.Errorf("the interface %s: %w", n.MAC, err)
		}
		i.nics = append(i.nics, f)
	}
	if disks, err = m.listenForDisks(p); err != nil {
		return i, nil, err
	}
	if i.disks, err = disks.File(); err != nil {
		return i, nil, errors.Join(err, disks.Close())
	}
	return i, disks, nil
}

// backlog is how many connections wait at a socket. An emulator lets one wait, and refuses others: a network that comes and
// goes quickly would be turned away.
const backlog = 16

// widen is called when the emulator has said what it wants.
func (i *inherited) widen() error {
	var errs []error
	for _, f := range append([]*os.File{i.monitor, i.serial}, i.nics...) {
		if err := unix.Listen(int(f.Fd()), backlog); err != nil && !errors.Is(err, unix.ENOTSOCK) { // a tap
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// close lets go of all but RAM. It may be called again.
func (i *inherited) close() {
	for _, f := range append([]*os.File{i.monitor, i.serial, i.disks}, i.nics...) {
		if f != nil {
			f.Close()
		}
	}
	i.monitor, i.serial, i.disks, i.nics = nil, nil, nil, nil
}

// remove ends all processes of a machine and takes away what is left of it, but the console if that is to be kept.
func (d *Driver) remove(ctx context.Context, id machines.ID, keepConsole bool) error {
	m := d.machine(id)
	if m != nil {
		m.mu.Lock()
		m.killing = true
		p, nics, serial, ram := m.proc, m.record.Spec.NICs, m.serial, m.ram
		m.mu.Unlock()
		if p != nil {
			if err := p.kill(); err != nil {
				return machines.Wrap(machines.MachineFailed, err, "kill %s", id)
			}
			if _, err := p.wait(ctx); err != nil {
				return err
			}
			select {
			case <-m.gone:
			case <-d.ctx.Done(): // nobody takes note any more
			}
			p.fd.Close()
		} else { // it never had one
			if serial != nil {
				serial.Close()
			}
			if ram != nil {
				ram.Close()
			}
		}
		m.stopServing(true)
		for _, n := range nics {
			if info, err := os.Lstat(n.Socket); n.Tap == nil && err == nil && info.Mode().Type() == fs.ModeSocket {
				if err := os.Remove(n.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return machines.Wrap(machines.MachineFailed, err, "remove the network socket of %s", id)
				}
			}
		}
		m.line.Close()
	}
	found, err := d.scan()
	if err != nil {
		return machines.Wrap(machines.Unavailable, err, "look at the host's processes")
	}
	for _, r := range found {
		if r.id != id {
			continue
		}
		if err := r.end(ctx); err != nil {
			return machines.Wrap(machines.MachineFailed, err, "kill process %d of %s", r.PID, id)
		}
	}
	if err := errors.Join(d.leaveGroup(id), d.clear(id, keepConsole)); err != nil {
		return machines.Wrap(machines.MachineFailed, err, "remove what is left of %s", id)
	}
	d.mu.Lock()
	delete(d.all, id)
	d.mu.Unlock()
	return nil
}

// clear removes a machine's folder.
func (d *Driver) clear(id machines.ID, keepConsole bool) error {
	dir := d.folderOf(id)
	if !keepConsole {
		return os.RemoveAll(dir)
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != consoleFile && e.Name() != consoleOld {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// Kill implements machines.Writer.
func (d *Driver) Kill(ctx context.Context, epoch int, id machines.ID) error {
	ctx, leave, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	defer leave()
	if m := d.machine(id); m != nil { // at once, whatever else is going on with it
		m.mu.Lock()
		m.killing = true
		p := m.proc
		m.mu.Unlock()
		if p != nil {
			if err := p.kill(); err != nil {
				return machines.Wrap(machines.MachineFailed, err, "kill %s", id)
			}
		}
	}
	give, err := d.take(ctx, id)
	if err != nil {
		return err
	}
	defer give()
	if err := d.remove(ctx, id, false); err != nil {
		return err
	}
	d.board.Tell(machines.Status{ID: id, State: machines.Ended, End: machines.EndKilled})
	return nil
}
