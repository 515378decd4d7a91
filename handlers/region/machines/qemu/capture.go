package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qmp"
)

// RAM is a shared file, so a migration need not carry it: with x-ignore-shared its stream is the devices' state alone, less
// than a megabyte for a machine of this hardware.

const (
	// maxDevices bounds what an emulator sends as its devices' state, the display's memory included.
	maxDevices = 256 << 20
	// stateFD is the name of the stream's descriptor.
	stateFD = "state"
)

// migration is what query-migrate answers.
type migration struct {
	Status string `json:"status"`
	Error  string `json:"error-desc"`
}

type capability struct {
	Name  string `json:"capability"`
	State bool   `json:"state"`
}

// withoutRAM prepares the emulator for a stream of devices only.
func (m *machine) withoutRAM(ctx context.Context) error {
	set := func(name string) error {
		return m.do(ctx, "migrate-set-capabilities", map[string][]capability{"capabilities": {{name, true}}}, nil)
	}
	if err := set("events"); err != nil && qmp.CodeOf(err) != qmp.Refused { // they only save time
		return err
	}
	return set("x-ignore-shared")
}

// migrated waits until the migration has come to its end. Errors: machine-failed, the context's.
func (m *machine) migrated(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond) // beside the events, of which one may be lost with a connection
	defer tick.Stop()
	for {
		var now migration
		if err := m.do(ctx, "query-migrate", nil, &now); err != nil {
			return err
		}
		switch now.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return machines.Errorf(machines.MachineFailed, "%s: its migration %s: %s", m.id, now.Status, now.Error)
		}
		select {
		case <-m.moved:
		case <-tick.C:
		case <-m.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resume loads the devices' state; RAM is there. Errors: memory-incompatible, the context's.
func (m *machine) resume(ctx context.Context, devices []byte) error {
	err := m.withoutRAM(ctx)
	if err == nil {
		err = m.load(ctx, devices)
	}
	if err != nil && ctx.Err() == nil {
		// An emulator that cannot read a stream ends and says why.
		return machines.Wrap(machines.MemoryIncompatible, err, "%s: the emulator does not take the devices' state", m.id)
	}
	return err
}

func (m *machine) load(ctx context.Context, devices []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	sent := make(chan struct{})
	defer func() { <-sent }()
	go func() {
		defer close(sent)
		defer w.Close()
		_, _ = w.Write(devices) // one that reads no further says why
	}()
	defer w.SetWriteDeadline(time.Unix(1, 0))
	if err := m.do(ctx, "getfd", map[string]string{"fdname": stateFD}, nil, r); err != nil {
		return err
	}
	r.Close()
	if err := m.do(ctx, "migrate-incoming", map[string]string{"uri": "fd:" + stateFD}, nil); err != nil {
		return err
	}
	return m.migrated(ctx)
}

// Capture implements machines.Writer.
func (d *Driver) Capture(ctx context.Context, epoch int, id machines.ID) (*machines.Capture, error) {
	ctx, leave, err := d.write(ctx, epoch)
	if err != nil {
		return nil, err
	}
	defer leave()
	give, err := d.take(ctx, id)
	if err != nil {
		return nil, err
	}
	defer give()
	m, err := d.get(id)
	if err != nil {
		return nil, err
	}
	var now struct {
		Status string `json:"status"`
	}
	if err := m.do(ctx, "query-status", nil, &now); err != nil {
		return nil, err
	}
	if now.Status == "running" {
		return nil, machines.Errorf(machines.MachineNotPaused, "%s runs", id)
	}
	m.mu.Lock()
	ram, size, hardware := m.ram, m.record.Spec.Memory, m.record.Hardware
	m.mu.Unlock()
	if ram == nil {
		return nil, machines.Errorf(machines.MachineFailed, "%s: its RAM cannot be read", id)
	}
	if _, available, err := hostMemory(); err != nil || blocks(ram) > available {
		return nil, errors.Join(machines.Errorf(machines.MemoryShort, "%s: a copy of its memory takes %d MiB, and the host has %d", id, blocks(ram)>>20, available>>20), err)
	}
	// Both at once: the processors and devices stand still, and the guests of an environment wait for this.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type copied struct {
		file    *os.File
		extents []machines.Extent
		err     error
	}
	copying := make(chan copied, 1)
	go func() {
		f, extents, err := copyRAM(ctx, ram, size)
		copying <- copied{f, extents, err}
	}()
	devices, err := m.devices(ctx, now.Status)
	if err != nil {
		cancel()
	}
	c := <-copying
	if err == nil && c.err != nil {
		err = machines.Wrap(machines.MachineFailed, c.err, "copy the RAM of %s", id)
	}
	if err != nil {
		if c.file != nil {
			err = errors.Join(err, c.file.Close())
		}
		return nil, err
	}
	return &machines.Capture{
		Memory: machines.Memory{Hardware: hardware, RAM: c.file, Extents: c.extents, Devices: devices},
		Close:  c.file.Close,
	}, nil
}

// captured is the state of a machine that has not run since its devices' state was taken; it cannot be taken twice.
const captured = "postmigrate"

// devices takes the devices' state, or what was taken before.
func (m *machine) devices(ctx context.Context, status string) ([]byte, error) {
	path := filepath.Join(m.driver.folderOf(m.id), devicesFile)
	if status == captured {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, machines.Wrap(machines.MachineFailed, err, "%s: its memory was taken, and then lost; it must run before it is taken again", m.id)
		}
		return b, nil
	}
	b, err := m.unload(ctx)
	if err != nil {
		if ctx.Err() != nil { // it goes on as if nothing was
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
			defer cancel()
			err = errors.Join(err, m.do(undo, "migrate_cancel", nil, nil))
		}
		return nil, err
	}
	if err := replace(path, b, false); err != nil {
		return nil, machines.Wrap(machines.MachineFailed, err, "keep the devices' state of %s", m.id)
	}
	return b, nil
}

func (m *machine) unload(ctx context.Context) ([]byte, error) {
	if err := m.withoutRAM(ctx); err != nil {
		return nil, err
	}
	if err := m.do(ctx, "migrate-set-parameters", map[string]int64{"max-bandwidth": 16 << 30}, nil); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, machines.Wrap(machines.MachineFailed, err, "%s: its devices' state", m.id)
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })()
	err = m.do(ctx, "getfd", map[string]string{"fdname": stateFD}, nil, w)
	w.Close()
	if err != nil {
		return nil, err
	}
	if err := m.do(ctx, "migrate", map[string]string{"uri": "fd:" + stateFD}, nil); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxDevices+1))
	if len(b) > maxDevices {
		err = fmt.Errorf("more than %d bytes", maxDevices)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, machines.Wrap(machines.MachineFailed, err, "%s: its devices' state", m.id)
	}
	return b, m.migrated(ctx)
}
