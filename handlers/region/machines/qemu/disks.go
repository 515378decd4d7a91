package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// The emulator connects to its disks at a name in its jail. The socket behind it must not go with the agent: a client that
// is refused tries again after 1, 2, 4, 8 and then every 16 seconds, and so long would guests wait for an agent that is back.
// So the emulator inherits the listening socket too, without ever using it: a connection is made at once and waits there,
// and the next agent takes the socket from the process.

// exports makes the server of the machine's disks. Error: machine-invalid.
func (m *machine) exports() (*nbd.Server, error) {
	m.mu.Lock()
	s := m.record.Spec
	m.mu.Unlock()
	server := nbd.NewServer()
	for _, disk := range s.Disks {
		dev, err := m.driver.cfg.Disks(s.ID, disk.Name)
		if err == nil && dev.Size() != disk.Size {
			err = fmt.Errorf("it has %d bytes, not %d", dev.Size(), disk.Size)
		}
		if err == nil {
			err = server.Add(nbd.Export{Name: disk.Name, Device: dev})
		}
		if err != nil {
			return nil, machines.Wrap(machines.MachineInvalid, err, "%s: its disk %s", s.ID, disk.Name)
		}
	}
	return server, nil
}

// serve offers the disks on a socket that the emulator has too.
func (m *machine) serve(server *nbd.Server, l *shared) error {
	if err := l.unblock(); err != nil {
		return errors.Join(err, l.Close())
	}
	m.mu.Lock()
	m.disks, m.socket = server, l
	m.mu.Unlock()
	go func() { // and nobody waits for its end: see shared
		if err := server.Serve(l); err != nil {
			m.driver.cfg.Log.Warn("serve a machine's disks", "machine", m.id.String(), "error", err)
		}
	}()
	return nil
}

// shared is a listening socket that the emulator has too. Whether Accept may block is a property of the socket and not of
// who has it, so a hostile emulator can make Accept, and Close with it, hang.
type shared struct{ *net.UnixListener }

// unblock makes Accept leave the waiting to the runtime: starting a process makes what it inherits block.
func (s *shared) unblock() error {
	return s.control(func(fd int) error { return unix.SetNonblock(fd, true) })
}

// shut ends an Accept that hangs; nobody can connect any more.
func (s *shared) shut() error {
	return s.control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
}

func (s *shared) control(do func(fd int) error) error {
	conn, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(conn.Control(func(fd uintptr) { err = do(int(fd)) }), err)
}

// Close does not wait for an Accept that hangs, and may be called again.
func (s *shared) Close() error {
	closed := make(chan error, 1)
	go func() { closed <- s.UnixListener.Close() }()
	select {
	case err := <-closed:
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	case <-time.After(time.Second):
		return errors.New("the socket of a machine's disks hangs")
	}
}

// listenForDisks makes the socket in the jail.
func (m *machine) listenForDisks(p profile) (*shared, error) {
	jail := m.driver.jailOf(m.id)
	l, err := listenAt(jail, disksSocket)
	if err != nil {
		return nil, err
	}
	if p.ownUser && m.record.UID != 0 {
		err = os.Lchown(filepath.Join(jail, disksSocket), int(m.record.UID), int(p.group(m.record.UID)))
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &shared{l}, nil
}

// listenAgain takes the socket from the process, or makes another one where the process shows something else.
func (m *machine) listenAgain(p profile) (*shared, error) {
	l, err := m.inheritedSocket()
	if err != nil {
		m.driver.cfg.Log.Warn("the socket of a machine's disks; it will be back in 16 seconds at most", "machine", m.id.String(), "error", err)
		return m.listenForDisks(p)
	}
	return l, nil
}

func (m *machine) inheritedSocket() (*shared, error) {
	f, err := m.proc.descriptor(disksFD)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Whoever can connect to it reaches the disks of this machine only: it need not be the one that was handed over.
	listens, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens != 1 {
		return nil, errors.Join(errors.New("it is no socket that listens"), err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(errors.New("it is no unix socket"), l.Close())
	}
	return &shared{u}, nil
}
