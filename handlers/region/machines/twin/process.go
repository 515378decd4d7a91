package twin

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

const (
	// tick is what the guest counts: 65536 of them are an hour on a PC.
	tick = time.Hour / 65536
	// pageSize is the part of the memory that the guest uses.
	pageSize = 4096
	// maxKeys is how many keys wait for the guest.
	maxKeys    = 1024
	floodLines = 0x2000
)

// guest is the memory of a machine: it is what is captured.
type guest struct {
	Booted  bool
	Polite  bool // heeds the power button
	Setting bool // the next key is the mark
	Mark    byte
	Count   uint32
	Keys    []byte // that wait
}

// process is a machine. Everything in it is guarded by the host.
type process struct {
	host    *Host
	pid     int
	spec    machines.Spec
	started time.Time
	nics    []net.Listener

	guest
	dead    bool
	running bool
	since   time.Time // running
	busy    bool      // with the disk, and the host is not locked
	button  bool
	disks   map[string]nbd.Device // nil: nobody serves them
}

// run is the guest's processor.
func (p *process) run() {
	p.host.mu.Lock()
	defer p.host.mu.Unlock()
	for {
		switch {
		case p.dead:
			return
		case p.running && !p.Booted && len(p.spec.Disks) > 0:
			sector := make([]byte, 512)
			if err := p.disk(func(d nbd.Device) error { return readFull(d, sector, 0) }); err == nil && sector[510] == 0x55 && sector[511] == 0xaa {
				p.Booted, p.Mark = true, '-'
				p.say("ready\r\n")
			} else if p.running {
				p.running = false // nothing to boot from: the firmware waits for ever
			}
		case p.running && p.Booted && p.button && p.Polite:
			p.die(machines.EndGuest, "")
		case p.running && p.Booted && len(p.Keys) > 0:
			if p.step(p.Keys[0]) && len(p.Keys) > 0 {
				p.Keys = p.Keys[1:]
			}
		default:
			p.host.changed.Wait()
		}
	}
}

// step answers a key; false where it was stopped while it waited for the disk, and must be done again.
func (p *process) step(key byte) bool {
	if p.Setting {
		p.Setting, p.Mark = false, key
		p.answer('m', p.count(), p.Mark)
		return true
	}
	switch key {
	case 'm':
		p.Setting = true
	case 'c':
		p.answer('c', p.count(), p.Mark)
	case 'a':
		p.Polite = true
		p.answer('a', p.count(), p.Mark)
	case 's':
		p.die(machines.EndGuest, "")
	case 'p':
		p.die(machines.EndCrashed, "the guest's kernel panicked")
	case 'f':
		for i := range uint32(floodLines) {
			p.answer('f', i, p.Mark)
		}
	case 'w', 'r':
		sector := make([]byte, 512)
		binary.LittleEndian.PutUint32(sector, p.count())
		sector[4] = p.Mark
		err := p.disk(func(d nbd.Device) error {
			if key == 'r' {
				return readFull(d, sector, 512)
			}
			_, err := d.WriteAt(sector, 512)
			return err
		})
		switch {
		case errors.Is(err, errStopped):
			return false
		case err != nil:
			p.answer('e', p.count(), p.Mark)
		default:
			p.answer(key, binary.LittleEndian.Uint32(sector), sector[4])
		}
	}
	return true
}

var errStopped = errors.New("the processor stands still")

// disk does something with the first disk: it waits while nobody serves it, and the host is not locked meanwhile.
func (p *process) disk(do func(nbd.Device) error) error {
	for p.disks == nil && p.running && !p.dead {
		p.host.changed.Wait()
	}
	if p.dead || !p.running {
		return errStopped
	}
	d := p.disks[p.spec.Disks[0].Name]
	p.busy = true
	p.host.mu.Unlock()
	err := do(d)
	p.host.mu.Lock()
	p.busy = false
	p.host.changed.Broadcast()
	return err
}

func readFull(d nbd.Device, b []byte, off int64) error {
	if n, err := d.ReadAt(b, off); n < len(b) {
		return errors.Join(io.ErrUnexpectedEOF, err)
	}
	return nil
}

func (p *process) answer(key byte, count uint32, mark byte) {
	p.say(fmt.Sprintf("%c %08x %c\r\n", key, count, mark))
}

// say is what nobody hears where there is no record, as with a serial line that nobody is connected to.
func (p *process) say(s string) {
	if r := p.host.records[p.spec.ID]; r != nil && r.proc == p && p.host.attached != nil {
		r.line.Say([]byte(s))
	}
}

// count is the guest's time: it passes while the machine runs.
func (p *process) count() uint32 {
	if !p.running {
		return p.Count
	}
	return p.Count + uint32(time.Since(p.since)/tick)
}

// proceed and halt change the state; done twice is done once.
func (p *process) proceed() {
	if !p.running {
		p.running, p.since = true, time.Now()
	}
}

func (p *process) halt() {
	p.Count = p.count()
	p.running = false
	for p.busy { // what the guest wrote before reaches the disk
		p.host.changed.Wait()
	}
}

// die ends the process, and says why in what the driver stored.
func (p *process) die(end machines.End, text string) {
	if p.dead {
		return
	}
	p.dead, p.running = true, false
	for _, l := range p.nics {
		l.Close()
	}
	delete(p.host.procs, p.pid)
	if r := p.host.records[p.spec.ID]; r != nil && r.proc == p {
		r.end, r.text = end, text
		r.line.Close()
		p.host.tell(r.status())
	}
	p.host.changed.Broadcast()
}

// ram gives the memory's one page, and the devices' state that fits to it.
func (p *process) ram() (page, devices []byte) {
	page = make([]byte, pageSize)
	b, err := json.Marshal(p.guest)
	if err != nil || len(b) > pageSize {
		panic(fmt.Sprint("a guest does not fit into its page: ", err))
	}
	copy(page, b)
	return page, devicesOf(p.spec)
}

func devicesOf(s machines.Spec) []byte {
	return fmt.Appendf(nil, "twin: %d processors, %d bytes, %d disks, %d interfaces", s.CPUs, s.Memory, len(s.Disks), len(s.NICs))
}

// resume reads a guest back. Errors: memory-incompatible, machine-failed.
func resume(s machines.Spec, m *machines.Memory) (guest, error) {
	var g guest
	if !bytes.Equal(m.Devices, devicesOf(s)) {
		return g, machines.Errorf(machines.MemoryIncompatible, "%s: the devices' state is of another machine", s.ID)
	}
	extents := m.Extents
	if extents == nil {
		extents = []machines.Extent{{Length: s.Memory}}
	}
	page := make([]byte, pageSize)
	piece := make([]byte, 1<<20)
	for _, e := range extents {
		for at, end := e.Offset, e.Offset+e.Length; at < end; at += int64(len(piece)) {
			b := piece[:min(int64(len(piece)), end-at)]
			if n, err := m.RAM.ReadAt(b, at); n < len(b) {
				return g, machines.Wrap(machines.MachineFailed, errors.Join(io.ErrUnexpectedEOF, err), "read the memory of %s", s.ID)
			}
			if at < pageSize {
				copy(page[at:], b)
			}
		}
	}
	if err := json.Unmarshal(bytes.TrimRight(page, "\x00"), &g); err != nil {
		return g, machines.Wrap(machines.MemoryIncompatible, err, "the memory of %s", s.ID)
	}
	return g, nil
}

// listen makes the interfaces' sockets. Frames go nowhere: the guest has no network.
func (p *process) listen() error {
	for _, n := range p.spec.NICs {
		if n.Socket == "" {
			continue
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.Socket, Net: "unix"})
		if err == nil {
			p.nics = append(p.nics, l)
			err = os.Chmod(n.Socket, 0o600)
		}
		if err != nil {
			for _, l := range p.nics {
				l.Close()
			}
			return machines.Wrap(machines.MachineFailed, err, "%s: listen for its network", p.spec.ID)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // until the network goes
					defer c.Close()
					_, _ = io.Copy(io.Discard, c)
				}()
			}
		}()
	}
	return nil
}
