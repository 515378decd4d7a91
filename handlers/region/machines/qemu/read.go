package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// blocks is how much memory an anonymous file has.
func blocks(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

// List implements machines.Reader.
func (d *Driver) List(ctx context.Context) ([]machines.Status, error) {
	_, leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	out, err := d.strays()
	if err != nil {
		return nil, err
	}
	for _, m := range d.known() {
		out = append(out, m.status())
	}
	slices.SortFunc(out, func(a, b machines.Status) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return out, nil
}

// strays are machines that have a process and nothing else.
func (d *Driver) strays() ([]machines.Status, error) {
	found, err := d.scan()
	if err != nil {
		return nil, machines.Wrap(machines.Unavailable, err, "look at the host's processes")
	}
	var out []machines.Status
	seen := map[machines.ID]bool{}
	for _, r := range found {
		if d.machine(r.id) == nil && !seen[r.id] {
			seen[r.id] = true
			out = append(out, machines.Status{ID: r.id, Owner: r.owner, Epoch: r.epoch, State: machines.Running, PID: r.PID,
				Text: "the driver knows nothing about it but its process", Started: r.started(), Used: r.used()})
		}
	}
	return out, nil
}

// Status implements machines.Reader.
func (d *Driver) Status(ctx context.Context, id machines.ID) (machines.Status, error) {
	_, leave, err := d.enter(ctx)
	if err != nil {
		return machines.Status{}, err
	}
	defer leave()
	if m := d.machine(id); m != nil {
		return m.status(), nil
	}
	strays, err := d.strays()
	if err != nil {
		return machines.Status{}, err
	}
	for _, s := range strays {
		if s.ID == id {
			return s, nil
		}
	}
	return machines.Status{}, unknown(id)
}

// Watch implements machines.Reader.
func (d *Driver) Watch(ctx context.Context, each func(machines.Status)) error {
	return d.board.Watch(ctx, each)
}

// get gives a machine. Error: machine-unknown.
func (d *Driver) get(id machines.ID) (*machine, error) {
	if m := d.machine(id); m != nil {
		return m, nil
	}
	return nil, unknown(id)
}

// Console implements machines.Reader.
func (d *Driver) Console(ctx context.Context, id machines.ID) (io.ReadWriteCloser, error) {
	_, leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	m, err := d.get(id)
	if err != nil {
		return nil, err
	}
	return m.line.Join(keyboard{m}), nil
}

// keyboard is what is typed on a serial line.
type keyboard struct{ m *machine }

// typeTime is how long a guest that does not listen holds up who types.
const typeTime = 10 * time.Second

func (k keyboard) Write(b []byte) (int, error) {
	end := time.Now().Add(typeTime)
	conn, err := k.m.typewriter(end)
	if err != nil {
		return 0, err
	}
	if err := conn.SetWriteDeadline(end); err != nil {
		return 0, err
	}
	return conn.Write(b)
}

// typewriter gives the connection to the serial line, which a new agent does not have at once.
func (m *machine) typewriter(end time.Time) (net.Conn, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		m.mu.Lock()
		conn := m.serial
		m.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		select {
		case <-m.gone:
			return nil, io.ErrClosedPipe
		case <-m.driver.ctx.Done():
			return nil, io.ErrClosedPipe
		case now := <-tick.C:
			if now.After(end) {
				return nil, os.ErrDeadlineExceeded
			}
		}
	}
}

// Display implements machines.Reader.
func (d *Driver) Display(ctx context.Context, id machines.ID) (io.ReadWriteCloser, error) {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	m, err := d.get(id)
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, machines.Wrap(machines.MachineFailed, err, "a connection to the screen of %s", id)
	}
	here, there := os.NewFile(uintptr(fds[0]), "display"), os.NewFile(uintptr(fds[1]), "display")
	defer here.Close()
	defer there.Close()
	const name = "display" // each getfd takes the place of the one before, which add_client has used up
	release, err := m.handOver(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := m.do(ctx, "getfd", map[string]string{"fdname": name}, nil, there); err != nil {
		return nil, err
	}
	if err := m.do(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": name, "skipauth": true}, nil); err != nil {
		return nil, err
	}
	c, err := net.FileConn(here)
	if err != nil {
		return nil, machines.Wrap(machines.MachineFailed, err, "a connection to the screen of %s", id)
	}
	return c, nil
}

// handOver waits until nobody else hands a file over and uses it.
func (m *machine) handOver(ctx context.Context) (release func(), err error) {
	select {
	case m.handing <- struct{}{}:
		return func() { <-m.handing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Screenshot implements machines.Reader.
func (d *Driver) Screenshot(ctx context.Context, id machines.ID) ([]byte, error) {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	m, err := d.get(id)
	if err != nil {
		return nil, err
	}
	// The emulator opens no files, so it gets one; it asks for one that is only written.
	fd, err := unix.MemfdCreate("screenshot", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, machines.Wrap(machines.MachineFailed, err, "a screenshot of %s", id)
	}
	f := os.NewFile(uintptr(fd), "screenshot")
	defer f.Close()
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return nil, machines.Wrap(machines.MachineFailed, err, "a screenshot of %s", id)
	}
	defer w.Close()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := m.do(ctx, "add-fd", nil, &set, w); err != nil {
		return nil, err
	}
	err = m.do(ctx, "screendump", map[string]string{"filename": fmt.Sprintf("/dev/fdset/%d", set.ID), "format": "png"}, nil)
	err = errors.Join(err, m.do(ctx, "remove-fd", map[string]int{"fdset-id": set.ID}, nil))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, 0, maxFile))
}
