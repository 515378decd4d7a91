package machines

import (
	"bytes"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The limits of a specification.
const (
	maxToken = 100     // bytes of an identifier or a disk's name
	maxCPUs  = 255     // more need an x2APIC, which the fixed processor model does not have
	maxRAM   = 4 << 40 // bytes
	maxDisks = 20      // the PCI root has 32 slots
	maxNICs  = 8
)

// Check says what is wrong with a specification. Error: machine-invalid.
func (s Spec) Check() error {
	switch {
	case !isToken(s.ID.Environment) || !isToken(s.ID.Machine):
		return Errorf(MachineInvalid, "the name %q", s.ID)
	case s.Owner == "" || len(s.Owner) > 2*maxToken:
		return Errorf(MachineInvalid, "%s: the owner %q", s.ID, s.Owner)
	case s.CPUs < 1 || s.CPUs > maxCPUs:
		return Errorf(MachineInvalid, "%s: %d processors; 1 to %d can be had", s.ID, s.CPUs, maxCPUs)
	case s.Memory < 1<<20 || s.Memory%(1<<20) != 0 || s.Memory > maxRAM:
		return Errorf(MachineInvalid, "%s: %d bytes of memory; it is counted in MiB, up to 4 TiB", s.ID, s.Memory)
	case len(s.Disks) > maxDisks || len(s.NICs) > maxNICs:
		return Errorf(MachineInvalid, "%s: %d disks and %d interfaces; %d and %d fit", s.ID, len(s.Disks), len(s.NICs), maxDisks, maxNICs)
	}
	disks := map[string]bool{}
	for _, d := range s.Disks {
		switch {
		case d.Name == "" || len(d.Name) > maxToken || strings.ContainsFunc(d.Name, func(r rune) bool { return r < ' ' || r == 0x7f }) || disks[d.Name]:
			return Errorf(MachineInvalid, "%s: the disk name %q is not one, or there twice", s.ID, d.Name)
		case d.Size < 512 || d.Size%512 != 0:
			return Errorf(MachineInvalid, "%s: disk %s has %d bytes, which are not whole sectors of 512", s.ID, d.Name, d.Size)
		}
		disks[d.Name] = true
	}
	seen := map[string]bool{}
	for _, n := range s.NICs {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) || seen[mac.String()] {
			return Errorf(MachineInvalid, "%s: the MAC %q is not one of a station, or there twice", s.ID, n.MAC)
		}
		seen[mac.String()] = true
		switch {
		case (n.Socket == "") == (n.Tap == nil):
			return Errorf(MachineInvalid, "%s: interface %s has not one socket or one tap", s.ID, n.MAC)
		case n.Tap != nil && (n.Tap.Name == "" || len(n.Tap.Name) > 15): // IFNAMSIZ, netdevice(7)
			return Errorf(MachineInvalid, "%s: the tap %q", s.ID, n.Tap.Name)
		case n.Tap == nil && (!filepath.IsAbs(n.Socket) || seen[n.Socket]):
			return Errorf(MachineInvalid, "%s: the socket %q is no absolute path, or there twice", s.ID, n.Socket)
		}
		seen[n.Socket] = n.Tap == nil
	}
	return nil
}

func isToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

// Same says whether two specifications are of the same machine, whoever asks for it.
func (s Spec) Same(o Spec) bool {
	return s.ID == o.ID && s.CPUs == o.CPUs && s.Memory == o.Memory && slices.Equal(s.Disks, o.Disks) &&
		slices.EqualFunc(s.NICs, o.NICs, func(a, b NIC) bool {
			return strings.EqualFold(a.MAC, b.MAC) && a.Socket == b.Socket && (a.Tap == nil) == (b.Tap == nil) && (a.Tap == nil || *a.Tap == *b.Tap)
		})
}

// Resumes says whether memory that was taken on other hardware goes on here. Error: memory-incompatible.
func (h Hardware) Resumes(taken Hardware) error {
	switch {
	case taken.Accelerator != h.Accelerator:
		return Errorf(MemoryIncompatible, "it was taken with the accelerator %s, and this host runs %s", taken.Accelerator, h.Accelerator)
	case taken.Machine != h.Machine || taken.CPU != h.CPU:
		return Errorf(MemoryIncompatible, "it was taken on a %s with %s, and this host has a %s with %s", taken.Machine, taken.CPU, h.Machine, h.CPU)
	case older(h.Emulator, taken.Emulator):
		return Errorf(MemoryIncompatible, "it was taken by emulator %s, and this host has the older %s", taken.Emulator, h.Emulator)
	}
	return nil
}

// older compares versions by their first two numbers: within one of those the format is the same.
func older(a, b string) bool {
	x, y := release(a), release(b)
	return x[0] < y[0] || x[0] == y[0] && x[1] < y[1]
}

func release(v string) (n [2]int) {
	for i, part := range strings.SplitN(v, ".", 3) {
		if i < 2 {
			n[i], _ = strconv.Atoi(part)
		}
	}
	return n
}

// Check says what is wrong with memory for a machine of this size. Errors: memory-incompatible.
func (m Memory) Check(size int64) error {
	if m.RAM == nil || len(m.Devices) == 0 {
		return Errorf(MemoryIncompatible, "there is no RAM or no state of devices in it")
	}
	end := int64(0)
	for _, e := range m.Extents {
		if e.Offset < end || e.Length <= 0 || e.Length > size-e.Offset {
			return Errorf(MemoryIncompatible, "the extent of %d bytes at %d is not one of %d bytes, or out of order", e.Length, e.Offset, size)
		}
		end = e.Offset + e.Length
	}
	return nil
}
