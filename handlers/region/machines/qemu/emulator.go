package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// The hardware that guests see is fixed, so that a machine's memory goes on in another region.
const (
	// newestMachine is the newest machine type that is used: that of the oldest QEMU that the driver works with, so that
	// memory goes from any host to any other.
	newestMachine = "pc-q35-7.2"
	// processor is the oldest that has all of x86-64-v2, which is what distributions ask for; QEMU's TCG has all that it
	// promises, and so has every host with KVM. Enforced: a host that lacks something does not pretend.
	processor = "Nehalem-v1"
	// oldestEmulator is the first whose network backend is a stream socket.
	oldestEmulator = "7.2"
	// install is what to do about a missing emulator.
	install = "install QEMU 7.2 or newer (Debian, Ubuntu: qemu-system-x86; Fedora: qemu-system-x86-core)"
)

// emulator is a QEMU program and what it can do.
type emulator struct {
	path    string
	version string // "7.2.22"
	machine string // the type
	help    []byte
}

var versionLine = regexp.MustCompile(`version (\d+)\.(\d+)\.(\d+)`)

// findEmulator looks for the program and asks what it is. The error is a text for people.
func findEmulator(ctx context.Context, program string) (*emulator, error) {
	names := []string{program}
	if program == "" {
		names = []string{"qemu-system-x86_64", "/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"}
	}
	e := &emulator{}
	for _, n := range names {
		if path, err := exec.LookPath(n); err == nil {
			e.path = path
			break
		}
	}
	if e.path == "" {
		return nil, fmt.Errorf("there is no %s: %s", names[0], install)
	}
	said, err := e.ask(ctx, "-version")
	if err != nil {
		return nil, err
	}
	v := versionLine.FindSubmatch(said)
	if v == nil {
		return nil, fmt.Errorf("%s does not say its version: %s", e.path, install)
	}
	major, _ := strconv.Atoi(string(v[1])) // digits, and few of them
	minor, _ := strconv.Atoi(string(v[2]))
	if e.version = fmt.Sprintf("%s.%s.%s", v[1], v[2], v[3]); major < 7 || major == 7 && minor < 2 {
		return nil, fmt.Errorf("%s is QEMU %s, older than %s: %s", e.path, e.version, oldestEmulator, install)
	}
	if e.help, err = e.ask(ctx, "-help"); err != nil {
		return nil, err
	}
	types, err := e.ask(ctx, "-machine", "help")
	if err != nil {
		return nil, err
	}
	e.machine = newestOf(types)
	if e.machine == "" {
		return nil, fmt.Errorf("QEMU %s has no machine type up to %s any more", e.version, newestMachine)
	}
	return e, nil
}

// runsWith says whether the option -run-with has this.
func (e *emulator) runsWith(what string) bool {
	_, rest, ok := bytes.Cut(e.help, []byte("\n-run-with"))
	described, _, _ := bytes.Cut(rest, []byte("\n-"))
	return ok && bytes.Contains(described, []byte(what))
}

// newestOf gives the newest machine type that the driver uses, of those that an emulator has.
func newestOf(types []byte) string {
	const q35 = "pc-q35-"
	version := func(name string) []int {
		var n []int
		for _, part := range strings.Split(strings.TrimPrefix(name, q35), ".") {
			i, err := strconv.Atoi(part)
			if err != nil {
				return nil
			}
			n = append(n, i)
		}
		return n
	}
	best, limit := "", version(newestMachine)
	for line := range bytes.Lines(types) {
		name, _, _ := strings.Cut(string(line), " ")
		v := version(name)
		if !strings.HasPrefix(name, q35) || v == nil || slices.Compare(v, limit) > 0 {
			continue
		}
		if best == "" || slices.Compare(v, version(best)) > 0 {
			best = name
		}
	}
	return best
}

// ask runs the emulator for what it says about itself.
func (e *emulator) ask(ctx context.Context, arguments ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, e.path, arguments...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", e.path, strings.Join(arguments, " "), err)
	}
	return out, nil
}

// hostFacts is what was found out about this host by running a guest.
type hostFacts struct {
	emulator     *emulator
	profile      profile
	capabilities machines.Capabilities
}

// Capabilities implements machines.Reader.
func (d *Driver) Capabilities(ctx context.Context) (machines.Capabilities, error) {
	ctx, leave, err := d.enter(ctx)
	if err != nil {
		return machines.Capabilities{}, err
	}
	defer leave()
	h, err := d.probe(ctx)
	if err != nil {
		return machines.Capabilities{}, err
	}
	return h.capabilities, nil
}

// available is the host, or why it cannot run machines. Error: machines-unavailable.
func (d *Driver) available(ctx context.Context) (*hostFacts, error) {
	h, err := d.probe(ctx)
	if err != nil {
		return nil, err
	}
	if !h.capabilities.Available {
		return nil, machines.Errorf(machines.Unavailable, "%s", h.capabilities.Why)
	}
	return h, nil
}

// probe finds out what the host can do, once.
func (d *Driver) probe(ctx context.Context) (*hostFacts, error) {
	select {
	case d.probing <- struct{}{}:
		defer func() { <-d.probing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d.mu.Lock()
	h := d.host
	d.mu.Unlock()
	if h != nil {
		return h, nil
	}
	h = d.look(ctx)
	if err := ctx.Err(); err != nil {
		return nil, err // it is no fact about the host
	}
	d.mu.Lock()
	d.host = h
	d.mu.Unlock()
	d.cfg.Log.Info("machines", "available", h.capabilities.Available, "why", h.capabilities.Why, "hardware", h.capabilities.Hardware,
		"probe", h.capabilities.Probe, "isolation", h.capabilities.Isolation)
	return h, nil
}

func (d *Driver) look(ctx context.Context) *hostFacts {
	h := &hostFacts{}
	c := &h.capabilities
	if d.cfg.Acceleration == None {
		c.Why = "machines are switched off (acceleration none)"
		return h
	}
	e, err := findEmulator(ctx, d.cfg.Emulator)
	if err != nil {
		c.Why = err.Error()
		return h
	}
	h.emulator = e
	try := []Acceleration{d.cfg.Acceleration}
	if d.cfg.Acceleration == Auto {
		try = []Acceleration{KVM, TCG}
	}
	var tried []string
	for _, a := range try {
		p, took, err := d.runGuest(ctx, e, a)
		if err != nil {
			tried = append(tried, fmt.Sprintf("%s: %v", a, err))
			continue
		}
		tried = append(tried, fmt.Sprintf("%s: a guest ran, in %d ms", a, took.Milliseconds()))
		h.profile = p
		c.Available = true
		c.Hardware = machines.Hardware{Accelerator: string(a), Machine: e.machine, CPU: processor, Emulator: e.version}
		c.Isolation = p.names(d.cgroup())
		break
	}
	c.Probe = strings.Join(tried, "; ")
	if !c.Available {
		c.Why = "no guest runs: " + c.Probe
	}
	return h
}

// probeGuest is a boot sector, 16 bits: out 0xf4 (isa-debug-exit), then hlt. The emulator then exits with 2*probeByte+1.
const probeByte = 0x31

func probeGuest() []byte {
	sector := make([]byte, 512)
	copy(sector, []byte{
		0xba, 0xf4, 0x00, // mov dx, 0xf4
		0xb0, probeByte, // mov al, probeByte
		0xee, // out dx, al
		0xf4, // hlt
	})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// runGuest finds the strictest profile in which a guest runs, and says how long that took.
func (d *Driver) runGuest(ctx context.Context, e *emulator, a Acceleration) (profile, time.Duration, error) {
	limit := 30 * time.Second // a slow machine emulates
	if a == KVM {
		limit = 5 * time.Second // hangs where nested virtualization is broken
	}
	var errs []error
	for _, p := range d.profiles(a) {
		began := time.Now()
		err := d.probeOnce(ctx, e, a, &p, limit)
		if err == nil {
			return p, time.Since(began), nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
			break // less isolation does not help against that
		}
	}
	return profile{}, 0, errs[len(errs)-1] // the last has the least in its way
}
