package qemu

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qmp"
)

// Adopt implements machines.Writer.
func (d *Driver) Adopt(ctx context.Context, epoch int) error {
	ctx, leave, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	defer leave()
	found, err := d.scan()
	if err != nil {
		return err
	}
	if len(d.known()) == 0 && len(found) == 0 {
		return nil // also where there is no emulator
	}
	h, err := d.available(ctx)
	if err != nil {
		return err
	}
	var errs []error
	own := map[int]bool{}
	for _, m := range d.known() {
		errs = append(errs, d.adopt(ctx, m, h.profile))
		m.mu.Lock()
		own[m.record.Process.PID] = true
		m.mu.Unlock()
	}
	for _, r := range found {
		if m := d.machine(r.id); m == nil || own[r.PID] {
			continue
		}
		give, err := d.take(ctx, r.id) // not in the middle of a Start
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if m := d.machine(r.id); m != nil && m.status().PID != r.PID {
			errs = append(errs, r.end(ctx))
		}
		give()
	}
	return errors.Join(errs...)
}

// adopt serves the disks of one that lives.
func (d *Driver) adopt(ctx context.Context, m *machine, p profile) error {
	give, err := d.take(ctx, m.id)
	if err != nil {
		return err
	}
	defer give()
	m.mu.Lock()
	wants := m.disks == nil && m.state != machines.Ended && m.record.Ready
	m.mu.Unlock()
	if !wants || d.machine(m.id) != m {
		return nil
	}
	disks, err := m.exports()
	if err != nil {
		return err
	}
	l, err := m.listenAgain(p)
	if err == nil {
		err = m.serve(disks, l)
	}
	if err != nil {
		return machines.Wrap(machines.MachineFailed, err, "serve the disks of %s", m.id)
	}
	return nil
}

// Continue implements machines.Writer.
func (d *Driver) Continue(ctx context.Context, epoch int, ids ...machines.ID) error {
	return d.each(ctx, epoch, ids, "cont", "stop", machines.Paused)
}

// Pause implements machines.Writer.
func (d *Driver) Pause(ctx context.Context, epoch int, ids ...machines.ID) error {
	return d.each(ctx, epoch, ids, "stop", "cont", machines.Running)
}

// each gives all machines a command at the same time; when one refuses, those that were in the state before get it back.
func (d *Driver) each(ctx context.Context, epoch int, ids []machines.ID, command, back string, before machines.State) error {
	ctx, leave, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	defer leave()
	give, err := d.take(ctx, ids...)
	if err != nil {
		return err
	}
	defer give()
	all := map[machines.ID]*machine{}
	states := map[machines.ID]machines.State{}
	for _, id := range ids {
		m, err := d.get(id)
		if err != nil {
			return err
		}
		if _, err := m.answers(ctx); err != nil { // and has not ended
			return err
		}
		all[id], states[id] = m, m.status().State
	}
	errs := d.together(ctx, all, command)
	if errs != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
		defer cancel()
		for id := range all {
			if states[id] != before {
				delete(all, id)
			}
		}
		errs = errors.Join(errs, d.together(undo, all, back))
	}
	return errs
}

func (d *Driver) together(ctx context.Context, all map[machines.ID]*machine, command string) error {
	var mu sync.Mutex
	var errs []error
	var done sync.WaitGroup
	for _, m := range all {
		done.Go(func() {
			if err := m.do(ctx, command, nil, nil); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	done.Wait()
	for _, m := range all {
		m.look(context.WithoutCancel(ctx))
	}
	return errors.Join(errs...)
}

// button is how often a guest is asked: one that is starting does not hear it the first time.
const button = 5 * time.Second

// Stop implements machines.Writer.
func (d *Driver) Stop(ctx context.Context, epoch int, id machines.ID) error {
	ctx, leave, err := d.write(ctx, epoch)
	if err != nil {
		return err
	}
	defer leave()
	m, err := d.get(id)
	if err != nil {
		return err
	}
	ask := time.NewTicker(button)
	defer ask.Stop()
	for {
		select {
		case <-m.gone:
			s := m.status()
			if s.End == machines.EndCrashed {
				return machines.Errorf(machines.MachineFailed, "%s ended otherwise: %s", id, s.Text)
			}
			return nil
		default:
		}
		// One whose monitor has just closed is about to end, or will answer again.
		if err := m.do(ctx, "system_powerdown", nil, nil); qmp.CodeOf(err) == qmp.Refused {
			return err
		}
		select {
		case <-m.gone:
		case <-ask.C:
		case <-ctx.Done():
			return machines.Wrap(machines.StopTimedOut, ctx.Err(), "%s goes on running", id)
		}
	}
}
