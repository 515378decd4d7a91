package machinestest

import (
	"io"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// DiskSize is that of the suite's disks, in bytes.
const DiskSize = 1 << 20

// Disks are devices in memory. They outlive drivers, and are what a machine boots the suite's guest from.
type Disks struct {
	mu sync.Mutex
	m  map[machines.ID]*Disk
}

// NewDisks makes a set without disks; each is made when it is first asked for.
func NewDisks() *Disks { return &Disks{m: map[machines.ID]*Disk{}} }

// Of gives a machine's one disk.
func (d *Disks) Of(id machines.ID) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m[id] == nil {
		d.m[id] = newDisk()
	}
	return d.m[id]
}

// Device is a machines.Disks: each machine has one disk, "root".
func (d *Disks) Device(id machines.ID, disk string) (nbd.Device, error) {
	if disk != "root" {
		return nil, machines.Errorf(machines.MachineInvalid, "%s has no disk %s", id, disk)
	}
	return d.Of(id), nil
}

// Disk is an nbd.Device in memory.
type Disk struct {
	mu     sync.Mutex
	bytes  []byte
	failed error
	writes int
}

func newDisk() *Disk {
	d := &Disk{bytes: make([]byte, DiskSize)}
	copy(d.bytes, program)
	d.bytes[510], d.bytes[511] = 0x55, 0xaa // what a BIOS boots
	return d
}

// Fail lets all that follows fail, or with nil work again.
func (d *Disk) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed = err
}

// Stored gives what the guest's key w wrote last, and how often it did.
func (d *Disk) Stored() (Answer, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bytes[512:]
	return Answer{Count: uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24, Mark: b[4]}, d.writes
}

// Clone gives a disk with the same content.
func (d *Disks) Clone(from, to machines.ID) {
	source := d.Of(from)
	source.mu.Lock()
	b := append([]byte{}, source.bytes...)
	source.mu.Unlock()
	target := d.Of(to)
	target.mu.Lock()
	defer target.mu.Unlock()
	target.bytes = b
}

// Size implements nbd.Device.
func (d *Disk) Size() int64 { return int64(len(d.bytes)) }

// ReadAt implements nbd.Device.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed != nil {
		return 0, d.failed
	}
	n := copy(p, d.bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements nbd.Device.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed != nil {
		return 0, d.failed
	}
	d.writes++
	return copy(d.bytes[off:], p), nil
}

// Flush implements nbd.Device.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

// Trim implements nbd.Device.
func (d *Disk) Trim(off, n int64) error { return nil }

// WriteZeroes implements nbd.Device.
func (d *Disk) WriteZeroes(off, n int64, _ bool) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}
