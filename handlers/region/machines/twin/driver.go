package twin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"image"
	"image/png"
	"io"
	"net"
	"slices"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/board"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/console"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// Driver is a machines.Driver over a Host.
type Driver struct {
	host  *Host
	disks machines.Disks
	board *board.Board
}

var _ machines.Driver = (*Driver)(nil)

func newDriver(h *Host, disks machines.Disks) *Driver {
	return &Driver{host: h, disks: disks, board: board.New()}
}

// Close implements machines.Driver: the machines run on, and wait when they need their disks.
func (d *Driver) Close() error {
	h := d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.attached != d {
		return nil
	}
	h.attached = nil
	for _, p := range h.procs {
		p.disks = nil
		for p.busy {
			h.changed.Wait()
		}
	}
	for _, r := range h.records {
		history := r.line.History()
		r.line.Close()
		r.line = console.NewLine(history)
		if r.end != "" {
			r.line.Close()
		}
	}
	return nil
}

// enter locks the host for a reader.
func (d *Driver) enter(ctx context.Context) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.host.mu.Lock()
	if d.host.attached != d {
		d.host.mu.Unlock()
		return nil, machines.Errorf(machines.Unavailable, "the driver is closed")
	}
	return d.host.mu.Unlock, nil
}

// write locks the host for an agent's writer.
func (d *Driver) write(ctx context.Context, epoch int) (unlock func(), err error) {
	unlock, err = d.enter(ctx)
	if err != nil {
		return nil, err
	}
	if epoch < d.host.epoch {
		unlock()
		return nil, machines.Errorf(machines.StaleEpoch, "epoch %d; %d has been here", epoch, d.host.epoch)
	}
	d.host.epoch = epoch
	return unlock, nil
}

func unknown(id machines.ID) error {
	return machines.Errorf(machines.MachineUnknown, "there is no machine %s", id)
}

// living gives the process of a machine that has one. Errors: machine-unknown, machine-failed.
func (d *Driver) living(id machines.ID) (*process, error) {
	p := d.host.proc(id)
	switch {
	case p == nil:
		return nil, unknown(id)
	case p.dead:
		return nil, machines.Errorf(machines.MachineFailed, "%s has ended: %s", id, d.host.records[id].text)
	}
	return p, nil
}

// Capabilities implements machines.Reader.
func (d *Driver) Capabilities(ctx context.Context) (machines.Capabilities, error) {
	return machines.Capabilities{Available: true, Hardware: d.host.hardware, Probe: "a goroutine ran"}, ctx.Err()
}

// List implements machines.Reader.
func (d *Driver) List(ctx context.Context) ([]machines.Status, error) {
	unlock, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var out []machines.Status
	for _, r := range d.host.records {
		out = append(out, r.status())
	}
	for _, p := range d.host.procs {
		if d.host.records[p.spec.ID] == nil {
			out = append(out, p.status())
		}
	}
	slices.SortFunc(out, func(a, b machines.Status) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return out, nil
}

// Status implements machines.Reader.
func (d *Driver) Status(ctx context.Context, id machines.ID) (machines.Status, error) {
	unlock, err := d.enter(ctx)
	if err != nil {
		return machines.Status{}, err
	}
	defer unlock()
	if r := d.host.records[id]; r != nil {
		return r.status(), nil
	}
	if p := d.host.proc(id); p != nil {
		return p.status(), nil
	}
	return machines.Status{}, unknown(id)
}

// Watch implements machines.Reader.
func (d *Driver) Watch(ctx context.Context, each func(machines.Status)) error {
	return d.board.Watch(ctx, each)
}

// Console implements machines.Reader.
func (d *Driver) Console(ctx context.Context, id machines.ID) (io.ReadWriteCloser, error) {
	unlock, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r := d.host.records[id]
	if r == nil {
		return nil, unknown(id)
	}
	return r.line.Join(keyboard{d, r.proc}), nil
}

// keyboard is what is typed on a serial line.
type keyboard struct {
	driver *Driver
	proc   *process
}

func (k keyboard) Write(b []byte) (int, error) {
	unlock, err := k.driver.enter(context.Background())
	if err != nil {
		return 0, err
	}
	defer unlock()
	if k.proc.dead {
		return 0, io.ErrClosedPipe
	}
	b = b[:min(len(b), maxKeys-len(k.proc.Keys))]
	k.proc.Keys = append(k.proc.Keys, b...)
	k.driver.host.changed.Broadcast()
	return len(b), nil
}

// Display implements machines.Reader: it greets, and shows nothing.
func (d *Driver) Display(ctx context.Context, id machines.ID) (io.ReadWriteCloser, error) {
	unlock, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := d.living(id); err != nil {
		return nil, err
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		if _, err := io.WriteString(there, "RFB 003.008\n"); err == nil {
			_, _ = io.Copy(io.Discard, there) // until the viewer goes
		}
	}()
	return here, nil
}

// Screenshot implements machines.Reader.
func (d *Driver) Screenshot(ctx context.Context, id machines.ID) ([]byte, error) {
	unlock, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := d.living(id); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = png.Encode(&b, image.NewGray(image.Rect(0, 0, 720, 400)))
	return b.Bytes(), err
}

// devices asks for all of a machine's disks; the host is not locked.
func (d *Driver) devices(s machines.Spec) (map[string]nbd.Device, error) {
	out := map[string]nbd.Device{}
	for _, disk := range s.Disks {
		dev, err := d.disks(s.ID, disk.Name)
		if err != nil {
			return nil, machines.Wrap(machines.MachineInvalid, err, "%s: its disk %s", s.ID, disk.Name)
		}
		if dev.Size() != disk.Size {
			return nil, machines.Errorf(machines.MachineInvalid, "%s: its disk %s has %d bytes, not %d", s.ID, disk.Name, dev.Size(), disk.Size)
		}
		out[disk.Name] = dev
	}
	return out, nil
}

// Start implements machines.Writer.
func (d *Driver) Start(ctx context.Context, s machines.Spec, m *machines.Memory) error {
	unlock, err := d.write(ctx, s.Epoch)
	if err != nil {
		return err
	}
	unlock()
	if err := s.Check(); err != nil {
		return err
	}
	var g guest
	if m != nil {
		if err := errors.Join(d.host.hardware.Resumes(m.Hardware), m.Check(s.Memory)); err != nil {
			return err
		}
		if g, err = resume(s, m); err != nil {
			return err
		}
	}
	disks, err := d.devices(s)
	if err != nil {
		return err
	}
	unlock, err = d.write(ctx, s.Epoch)
	if err != nil {
		return err
	}
	defer unlock()
	h := d.host
	old := h.records[s.ID]
	if old != nil && old.end == "" {
		if !old.spec.Same(s) {
			return machines.Errorf(machines.MachineExists, "%s runs with another specification", s.ID)
		}
		return nil
	}
	used := s.Memory
	for _, p := range h.procs {
		if p.spec.ID != s.ID {
			used += p.spec.Memory
		}
	}
	if used > h.limit {
		return machines.Errorf(machines.MemoryShort, "%s asks for %d bytes, and with all machines it would be %d of %d", s.ID, s.Memory, used, h.limit)
	}
	d.remove(s.ID)
	p, err := h.begin(s, g)
	if err != nil {
		return err
	}
	p.disks = disks
	var history []byte
	if old != nil {
		history = old.line.History()
	}
	r := &record{spec: s, proc: p, line: console.NewLine(history)}
	h.records[s.ID] = r
	h.tell(r.status())
	return nil
}

// Adopt implements machines.Writer.
func (d *Driver) Adopt(ctx context.Context, epoch int) error {
	unlock, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	var specs []machines.Spec
	for _, r := range d.host.records {
		specs = append(specs, r.spec)
	}
	unlock()
	var errs []error
	for _, s := range specs {
		disks, err := d.devices(s)
		errs = append(errs, err)
		unlock, lerr := d.write(ctx, epoch)
		if lerr != nil {
			return errors.Join(append(errs, lerr)...)
		}
		if r := d.host.records[s.ID]; err == nil && r != nil && r.spec.Same(s) {
			r.proc.disks = disks
			d.host.changed.Broadcast()
		}
		unlock()
	}
	return errors.Join(errs...)
}

// each does something with processes of several machines, or with none.
func (d *Driver) each(ctx context.Context, epoch int, ids []machines.ID, do func(*process)) error {
	unlock, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	defer unlock()
	var all []*process
	for _, id := range ids {
		p, err := d.living(id)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	for _, p := range all {
		do(p)
		d.host.tell(p.status())
	}
	return nil
}

// Continue implements machines.Writer.
func (d *Driver) Continue(ctx context.Context, epoch int, ids ...machines.ID) error {
	return d.each(ctx, epoch, ids, (*process).proceed)
}

// Pause implements machines.Writer.
func (d *Driver) Pause(ctx context.Context, epoch int, ids ...machines.ID) error {
	return d.each(ctx, epoch, ids, (*process).halt)
}

// Capture implements machines.Writer.
func (d *Driver) Capture(ctx context.Context, epoch int, id machines.ID) (*machines.Capture, error) {
	unlock, err := d.write(ctx, epoch)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, err := d.living(id)
	if err != nil {
		return nil, err
	}
	if p.running || p.busy {
		return nil, machines.Errorf(machines.MachineNotPaused, "%s runs", id)
	}
	page, devices := p.ram()
	return &machines.Capture{
		Memory: machines.Memory{Hardware: d.host.hardware, RAM: bytes.NewReader(page), Extents: []machines.Extent{{Length: pageSize}}, Devices: devices},
		Close:  func() error { return nil },
	}, nil
}

// Stop implements machines.Writer.
func (d *Driver) Stop(ctx context.Context, epoch int, id machines.ID) error {
	unlock, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	defer unlock()
	p := d.host.proc(id)
	if p == nil {
		return unknown(id)
	}
	defer context.AfterFunc(ctx, func() { // wakes up the wait below
		d.host.mu.Lock()
		defer d.host.mu.Unlock()
		d.host.changed.Broadcast()
	})()
	p.button = true
	d.host.changed.Broadcast()
	for !p.dead {
		if err := ctx.Err(); err != nil {
			p.button = false
			return machines.Wrap(machines.StopTimedOut, err, "%s goes on running", id)
		}
		d.host.changed.Wait()
	}
	if r := d.host.records[id]; r != nil && r.end == machines.EndCrashed {
		return machines.Errorf(machines.MachineFailed, "%s ended otherwise: %s", id, r.text)
	}
	return nil
}

// Kill implements machines.Writer.
func (d *Driver) Kill(ctx context.Context, epoch int, id machines.ID) error {
	unlock, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	defer unlock()
	d.remove(id)
	d.board.Tell(machines.Status{ID: id, State: machines.Ended, End: machines.EndKilled})
	return nil
}

// remove ends a machine's processes, and takes away what is stored of it.
func (d *Driver) remove(id machines.ID) {
	for _, p := range d.host.procs {
		if p.spec.ID == id {
			p.die(machines.EndKilled, "")
			for p.busy {
				d.host.changed.Wait()
			}
		}
	}
	if r := d.host.records[id]; r != nil {
		r.line.Close()
		delete(d.host.records, id)
	}
}
