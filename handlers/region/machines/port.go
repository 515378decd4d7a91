// Package machines is the port to what runs a region's machines. A Driver has real processes on the agent's host; what it
// makes carries its owner and can be listed from the host alone, also by an agent that was killed and started again.
//
// A machine's process outlives the agent. Its disks are block devices that the agent serves: while no agent is there their
// requests wait, and no guest sees an error. Its network interfaces are attachments of the networks port.
package machines

import (
	"context"
	"io"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// Code is a stable, searchable name for a kind of failure.
type Code string

// The codes of machines.
const (
	Unavailable        Code = "machines-unavailable" // this host cannot run machines; the text says what is missing
	MachineUnknown     Code = "machine-unknown"      // there is no such process
	MachineExists      Code = "machine-exists"       // it is there with another specification
	MachineInvalid     Code = "machine-invalid"      // a specification that no machine can have
	MemoryShort        Code = "memory-short"         // more memory is asked for than the host, or the region's limit, has left
	MachineFailed      Code = "machine-failed"       // the process did not start, does not answer, or ended; the text has its last words
	MachineNotPaused   Code = "machine-not-paused"   // only a paused machine's memory can be taken
	MemoryIncompatible Code = "memory-incompatible"  // the memory was taken on other hardware than this host gives
	StopTimedOut       Code = "stop-timed-out"       // the guest did not shut down in time; it goes on running
	StaleEpoch         Code = "stale-epoch"          // an agent that has lost the region
)

// CodeOf gives the outermost of these codes in err's chain, or "" where there is none.
func CodeOf(err error) Code { return fault.CodeOf[Code](err) }

// Errorf makes an error with a code.
func Errorf(code Code, format string, args ...any) error { return fault.New(code, format, args...) }

// Wrap makes an error with a code and a cause.
func Wrap(code Code, err error, format string, args ...any) error {
	return fault.Wrap(code, err, format, args...)
}

// ID names a machine of a region: the environment and the node of its graph, both tokens (letters, digits, '.', '_', '-'; the
// first a letter or a digit; at most 100 bytes).
type ID struct {
	Environment string `json:"environment"`
	Machine     string `json:"machine"`
}

// String is "<environment>/<machine>".
func (id ID) String() string { return id.Environment + "/" + id.Machine }

// Spec is what a machine consists of.
type Spec struct {
	ID     ID     `json:"id"`
	Owner  string `json:"owner"` // the work order that it was started for
	Epoch  int    `json:"epoch"` // of the agent that started it
	CPUs   int    `json:"cpus"`
	Memory int64  `json:"memory"` // bytes; a multiple of 1 MiB
	Disks  []Disk `json:"disks,omitempty"`
	NICs   []NIC  `json:"nics,omitempty"`
}

// Disk is a block device of the machine; the first is booted from.
type Disk struct {
	Name string `json:"name"` // unique in the machine
	Size int64  `json:"size"` // bytes
}

// NIC is a network interface. The machine listens on Socket (a unix socket) and speaks Ethernet frames, each after its
// length in 4 bytes, big-endian; whoever connects is the network, and may come again after it went. Or it uses Tap.
type NIC struct {
	MAC    string `json:"mac"`
	Socket string `json:"socket,omitempty"`
	Tap    *Tap   `json:"tap,omitempty"`
}

// Tap is a tap device of the kernel.
type Tap struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"` // path of the network namespace that it is in; empty: the agent's
}

// Hardware is what a guest sees of the driver and of the host. Memory taken on one goes on only on the same.
type Hardware struct {
	Accelerator string `json:"accelerator"` // "kvm", "tcg"
	Machine     string `json:"machine"`     // a versioned machine type: "pc-q35-7.2"
	CPU         string `json:"cpu"`         // a fixed model
	Emulator    string `json:"emulator"`    // and its version; a later one resumes what an earlier one took
}

// Memory is the RAM and the devices' state of a machine that stands still.
type Memory struct {
	Hardware Hardware
	RAM      io.ReaderAt // Spec.Memory bytes
	Extents  []Extent    // of RAM where it may differ from zeros, in order; nil: everywhere
	Devices  []byte      // in the emulator's own format
}

// Extent is a range of bytes of RAM.
type Extent struct{ Offset, Length int64 }

// Capture is memory that was taken; Close lets go of it.
type Capture struct {
	Memory
	Close func() error
}

// State is that of a process.
type State string

// The states of a process. There is none for a machine that is off: it has no process.
const (
	Paused  State = "paused" // it has its memory, and its processors stand still
	Running State = "running"
	Ended   State = "ended" // the process is gone; what it leaves is removed by Kill
)

// End says why a process ended.
type End string

// The ends.
const (
	EndGuest   End = "guest-shutdown" // the guest switched itself off
	EndKilled  End = "killed"         // by Kill; the last that Watch tells of a machine, which is not there any more
	EndCrashed End = "crashed"        // anything else: the process died, or the guest's kernel said that it cannot go on
)

// Status is what the host shows of a machine.
type Status struct {
	ID      ID        `json:"id"`
	Owner   string    `json:"owner"`
	Epoch   int       `json:"epoch"`
	State   State     `json:"state"`
	End     End       `json:"end,omitempty"`  // of an ended one
	Text    string    `json:"text,omitempty"` // last words of one that crashed
	PID     int       `json:"pid,omitempty"`
	Started time.Time `json:"started,omitzero"`
	Memory  int64     `json:"memory,omitempty"` // bytes that the guest was promised
	Used    int64     `json:"used,omitempty"`   // bytes that the process really takes
}

// Capabilities says what the driver can do on this host.
type Capabilities struct {
	Available bool     `json:"available"`
	Why       string   `json:"why,omitempty"` // not available
	Hardware  Hardware `json:"hardware"`
	Probe     string   `json:"probe,omitempty"` // how the accelerator was found to work, or not
	Isolation []string `json:"isolation"`       // what keeps a machine from the host: "user-namespace", "seccomp", …
}

// Reader is the part of a driver that changes nothing. All methods are safe for concurrent use.
type Reader interface {
	// Capabilities probes at the first call, by running a guest, and remembers.
	Capabilities(ctx context.Context) (Capabilities, error)
	// List gives all machines that the host shows, by its processes and by what they left: also those that nobody remembers.
	List(ctx context.Context) ([]Status, error)
	// Status gives one. Error: machine-unknown.
	Status(ctx context.Context, id ID) (Status, error)
	// Watch calls each, in order, with every change of state that the driver sees, until the context ends; first with
	// the states as they are. A slow one holds up nobody else. It gives the context's error.
	Watch(ctx context.Context, each func(Status)) error
	// Console joins the machine's serial line: what it said last comes first, at most ConsoleHistory bytes, also what an
	// earlier agent heard. Several may join; who reads slower than the machine speaks misses what is older than the history.
	// Reading from one that has ended gives the history and then io.EOF. Error: machine-unknown.
	Console(ctx context.Context, id ID) (io.ReadWriteCloser, error)
	// Display opens a connection that speaks RFB 3.8 (RFC 6143). Errors: machine-unknown, machine-failed.
	Display(ctx context.Context, id ID) (io.ReadWriteCloser, error)
	// Screenshot gives the screen as a PNG. Errors: machine-unknown, machine-failed.
	Screenshot(ctx context.Context, id ID) ([]byte, error)
}

// ConsoleHistory is how much of what a machine said on its serial line is kept, in bytes.
const ConsoleHistory = 64 << 10

// Writer is the part of a driver that changes the host. Every method may be called again after any crash, and done twice is
// done once. A call of an agent with an older epoch than one seen is refused: stale-epoch.
type Writer interface {
	// Start makes the process with its processors standing still: with memory nil as after power-on, else as it was when
	// the memory was taken. One that is there with the same specification (owner and epoch aside) is left as it is; what an
	// ended one, or a Start that was broken off, left is removed first.
	// Errors: machines-unavailable, machine-exists, machine-invalid, memory-short, machine-failed, memory-incompatible. After
	// an error nothing of it is left.
	Start(ctx context.Context, s Spec, m *Memory) error
	// Adopt is called before any other method that changes something: a machine may wait for its disks, and answers to nothing
	// meanwhile. It serves the disks of machines that run already and were started by an agent that is gone, and ends processes of
	// machines that the driver has with another process. A disk that cannot be served is in the error; the others are.
	Adopt(ctx context.Context, epoch int) error
	// Continue lets the processors run, Pause stops them: of all the machines as near to the same moment as can be. When
	// Pause has returned, all that guests wrote before has reached their disks. An error leaves them as they were.
	// Errors: machine-unknown, machine-failed.
	Continue(ctx context.Context, epoch int, ids ...ID) error
	Pause(ctx context.Context, epoch int, ids ...ID) error
	// Capture takes the memory of a paused machine, which may continue at once when it has returned, or be killed.
	// Taken again, without Continue between, it is the same. Errors: machine-not-paused, machine-unknown, machine-failed,
	// memory-short where the host has no room for a copy.
	Capture(ctx context.Context, epoch int, id ID) (*Capture, error)
	// Stop asks the guest to shut down, and waits until the process has ended; what it leaves is removed by Kill. Errors:
	// stop-timed-out when the context ends before, machine-unknown, machine-failed when it ended otherwise.
	Stop(ctx context.Context, epoch int, id ID) error
	// Kill ends the process at once and removes everything of the machine from the host, also of one that has ended. One
	// that is not there: nothing.
	Kill(ctx context.Context, epoch int, id ID) error
}

// Driver runs machines.
type Driver interface {
	Reader
	Writer
	// Close lets go of the machines, which go on running.
	Close() error
}

// Disks gives the device of a machine's disk; the driver serves it to this machine alone, and does not close it.
type Disks func(id ID, disk string) (nbd.Device, error)
