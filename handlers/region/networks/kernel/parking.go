package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// parking keeps frames for a port whose machine is on its way. It is a tap of its own on the segment, which the segment is
// told has the machine's MAC, and goes with the process: then the segment looks for the machine again by itself.
type parking struct {
	tap   *os.File
	name  string
	mac   net.HardwareAddr
	ended sync.WaitGroup

	mu     sync.Mutex
	buf    []byte
	frames [][]byte // the oldest first
}

// parkingQueue is how many frames the kernel keeps for a parking until they are read.
const parkingQueue = 1 << 16

// Park keeps frames for the port's MAC until Release. Error: network-unknown.
func (s *Substrate) Park(_ context.Context, epoch int, id networks.PortID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, name, err := s.port(epoch, id)
	if err != nil || s.parked[id] != nil {
		return err
	}
	return at.enter(func(ns netns.NsHandle, h *netlink.Handle) error {
		mac, err := net.ParseMAC(s.planned(id).MAC)
		if err != nil {
			return err
		}
		p := &parking{name: parkingPrefix + name[1:], mac: mac, buf: make([]byte, 1<<17)}
		if err := inside(ns, func() (err error) { p.tap, err = openTap(p.name, unix.IFF_NO_PI); return err }); err != nil {
			return err
		}
		if err := p.join(h, name); err != nil {
			return errors.Join(err, p.tap.Close())
		}
		s.parked[id] = p
		p.ended.Go(p.read)
		return nil
	})
}

// join puts the parking on the segment that a port is on, as the place of the MAC.
func (p *parking) join(h *netlink.Handle, port string) error {
	at, err := h.LinkByName(port)
	if err != nil {
		return err
	}
	bridge, err := h.LinkByIndex(at.Attrs().MasterIndex)
	if err != nil {
		return err
	}
	link, err := h.LinkByName(p.name)
	if err != nil {
		return err
	}
	for _, do := range []func() error{
		func() error { return h.LinkSetMTU(link, at.Attrs().MTU) },
		func() error { return h.LinkSetTxQLen(link, parkingQueue) },
		func() error { return h.LinkSetMaster(link, bridge) },
		func() error { return h.LinkSetLearning(link, false) }, // what it sends is others'
		func() error { return h.LinkSetUp(link) },
		// It stays here, even where the machine itself still says something.
		func() error { return h.NeighSet(p.place(link, netlink.NUD_NOARP, netlink.NTF_STICKY)) },
	} {
		if err := do(); err != nil {
			return fmt.Errorf("parking %s: %w", p.name, err)
		}
	}
	return nil
}

// place is an entry of a segment's table: the MAC is at a link.
func (p *parking) place(link netlink.Link, state, flags int) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, State: state, Flags: netlink.NTF_MASTER | flags, HardwareAddr: p.mac}
}

// read takes frames until the tap is closed.
func (p *parking) read() {
	raw, err := p.tap.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.drain(int(fd))
		return false // until it is closed
	})
}

// drain takes what is there; p.mu is held.
func (p *parking) drain(fd int) {
	for {
		n, err := unix.Read(fd, p.buf)
		if err != nil || n == 0 {
			return
		}
		if n >= 14 && string(p.buf[:6]) == string(p.mac) {
			p.frames = append(p.frames, append([]byte(nil), p.buf[:n]...))
		}
		if over := len(p.frames) - networks.ParkedFrames; over > 0 {
			p.frames = append(p.frames[:0], p.frames[over:]...)
		}
	}
}

// count is how many frames wait.
func (p *parking) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if raw, err := p.tap.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { p.drain(int(fd)) })
	}
	return len(p.frames)
}

// Release sends the frames on to the port, if a machine is plugged in there, or else to wherever its MAC is then. Error:
// network-unknown.
func (s *Substrate) Release(_ context.Context, epoch int, id networks.PortID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, name, err := s.port(epoch, id)
	if err != nil || s.parked[id] == nil {
		return err
	}
	p := s.parked[id]
	err = at.enter(func(_ netns.NsHandle, h *netlink.Handle) error {
		link, err := h.LinkByName(p.name)
		if err != nil {
			return err
		}
		port, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if err := h.NeighDel(p.place(link, netlink.NUD_NOARP, 0)); err != nil {
			return err
		}
		if port.Attrs().OperState == netlink.OperUp {
			err = h.NeighSet(p.place(port, netlink.NUD_REACHABLE, 0))
		}
		p.count() // what came meanwhile
		for _, f := range p.frames {
			if _, failed := p.tap.Write(f); failed != nil {
				return errors.Join(err, failed)
			}
		}
		return err
	})
	return errors.Join(err, s.endParking(id))
}

// endParking lets go of what is parked; s.mu is held.
func (s *Substrate) endParking(id networks.PortID) error {
	p := s.parked[id]
	delete(s.parked, id)
	err := p.tap.Close()
	p.ended.Wait()
	return err
}

// endParkings lets go of what is parked in an environment for ports that it does not have; s.mu is held.
func (s *Substrate) endParkings(environment string) (err error) {
	for id := range s.parked {
		if id.Environment == environment && s.planned(id).MAC == "" {
			err = errors.Join(err, s.endParking(id))
		}
	}
	return err
}

// planned gives a port as it was asked for; s.mu is held.
func (s *Substrate) planned(id networks.PortID) networks.Port {
	for _, segment := range s.known[s.place(id.Environment).id].Network.Segments {
		for _, p := range segment.Ports {
			if p.Machine == id.Machine && p.Interface == id.Interface {
				return p
			}
		}
	}
	return networks.Port{}
}
