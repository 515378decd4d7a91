package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// board is the part of a command line that says what computer it is.
func (e *emulator) board(a Acceleration, cpus int) []string {
	accel := string(a)
	if a == TCG {
		// Translated code takes as much memory as it is given; QEMU's own default is 1 GiB.
		accel += ",tb-size=128"
	}
	return []string{
		"-machine", e.machine + ",usb=off,vmport=off,smm=off,sata=off,smbus=off,dump-guest-core=off",
		"-accel", accel,
		"-cpu", processor + ",enforce=on",
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", cpus, cpus),
	}
}

// inherited are the emulator's descriptors: the first four are always there.
type inherited struct {
	monitor, serial *os.File
	ram             *os.File
	disks           *os.File   // the socket on which the agent serves them; see serve
	nics            []*os.File // a listening socket or a tap each
}

const (
	monitorFD = 3 + iota
	serialFD
	ramFD
	disksFD
	firstNIC
)

func (i inherited) files() []*os.File {
	return append([]*os.File{i.monitor, i.serial, i.ram, i.disks}, i.nics...)
}

// The slots of devices on the PCI root are fixed: memory goes on only with each device where it was.
const (
	slotDisplay = 1
	slotRandom  = 2
	slotDisk    = 3
	slotNIC     = 23 // after all disks that a machine can have; 31 is the chipset's
)

// device is a device for the command line, in JSON: names and paths in it need no quoting.
type device struct {
	Driver    string  `json:"driver"`
	ID        string  `json:"id"`
	Addr      string  `json:"addr,omitempty"`
	Drive     string  `json:"drive,omitempty"`
	Serial    string  `json:"serial,omitempty"`
	BootIndex *int    `json:"bootindex,omitempty"`
	WError    string  `json:"werror,omitempty"`
	RError    string  `json:"rerror,omitempty"`
	Netdev    string  `json:"netdev,omitempty"`
	MAC       string  `json:"mac,omitempty"`
	ROM       *string `json:"romfile,omitempty"`
}

// block is a block device for the command line.
type block struct {
	Driver       string  `json:"driver"`
	Node         string  `json:"node-name,omitempty"`
	Discard      string  `json:"discard,omitempty"`
	DetectZeroes string  `json:"detect-zeroes,omitempty"`
	File         *block  `json:"file,omitempty"`
	Server       *server `json:"server,omitempty"`
	Export       string  `json:"export,omitempty"`
	Reconnect    int     `json:"reconnect-delay,omitempty"`
}

type server struct {
	Type string `json:"type"`
	Path string `json:"path"`
}

// reconnect is how long a request waits for an agent that is away, in seconds; then the guest sees an error.
const reconnect = 3600

// arguments is a machine's command line, without what keeps it from the host.
func (d *Driver) arguments(h *hostFacts, s machines.Spec, incoming bool) ([]string, error) {
	mib := strconv.FormatInt(s.Memory>>20, 10)
	args := []string{"-name", d.nameOf(s)}
	args = append(args, h.emulator.board(Acceleration(h.capabilities.Hardware.Accelerator), s.CPUs)...)
	args = append(args,
		"-S",
		"-m", mib+"M",
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%sM,mem-path=/proc/self/fd/%d,share=on", mib, ramFD),
		"-machine", "memory-backend=ram",
		"-rtc", "base=utc",
		// A guest that switches itself off, or panics, stays until the driver has taken note: also if there is no agent then.
		"-action", "shutdown=pause,panic=pause,reboot=reset",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d,server=on,wait=off", monitorFD), "-mon", "chardev=monitor,mode=control",
		// Somebody is connected already, so this waits for nobody: what the guest says first is heard.
		"-chardev", fmt.Sprintf("socket,id=serial,fd=%d,server=on,wait=on", serialFD), "-device", "isa-serial,id=serial0,chardev=serial",
		"-device", "pvpanic",
		"-vnc", "none",
	)
	if incoming {
		args = append(args, "-incoming", "defer")
	}
	add := func(option string, v any) error {
		b, err := json.Marshal(v)
		args = append(args, option, string(b))
		return err
	}
	devices := []device{{Driver: "VGA", ID: "display", Addr: slot(slotDisplay)}, {Driver: "virtio-rng-pci", ID: "random", Addr: slot(slotRandom)}}
	for i, disk := range s.Disks {
		node := fmt.Sprintf("disk%d", i)
		if err := add("-blockdev", block{
			Driver: "raw", Node: node, Discard: "unmap", DetectZeroes: "unmap", // zeros cost nothing in a region
			File: &block{Driver: "nbd", Server: &server{"unix", disksSocket}, Export: disk.Name, Reconnect: reconnect},
		}); err != nil {
			return nil, err
		}
		dev := device{Driver: "virtio-blk-pci", ID: "d" + node, Addr: slot(slotDisk + i), Drive: node,
			Serial: disk.Name[:min(len(disk.Name), 20)], // VIRTIO_BLK_ID_BYTES
			WError: "report", RError: "report"}          // the guest is told, and goes on
		if i == 0 {
			dev.BootIndex = new(int)
		}
		devices = append(devices, dev)
	}
	for i, n := range s.NICs {
		id := fmt.Sprintf("net%d", i)
		if n.Tap != nil {
			args = append(args, "-netdev", fmt.Sprintf("tap,id=%s,fd=%d,vhost=off", id, firstNIC+i))
		} else {
			args = append(args, "-netdev", fmt.Sprintf("stream,id=%s,server=on,addr.type=fd,addr.str=%d", id, firstNIC+i))
		}
		devices = append(devices, device{Driver: "virtio-net-pci", ID: "d" + id, Addr: slot(slotNIC + i), Netdev: id, MAC: n.MAC, ROM: new(string)})
	}
	for _, dev := range devices {
		if err := add("-device", dev); err != nil {
			return nil, err
		}
	}
	return args, nil
}

func slot(n int) string { return fmt.Sprintf("0x%x", n) }
