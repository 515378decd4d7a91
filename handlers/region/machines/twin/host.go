// Package twin is a driver whose machines are goroutines of a Host in memory: no emulator, no process, the same contract.
// Its guest is that of package machinestest: it boots where the first disk has a boot sector, and answers on the console.
package twin

import (
	"slices"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/console"
)

// Host is what outlives drivers: processes, and what a driver stored about them. The zero value is not one; see NewHost.
type Host struct {
	hardware machines.Hardware
	limit    int64 // of all machines' memory, bytes

	mu       sync.Mutex
	changed  sync.Cond // broadcast on every change
	procs    map[int]*process
	records  map[machines.ID]*record
	epoch    int
	lastPID  int
	attached *Driver // the one driver that is open, or nil
}

// record is a driver's directory of a machine.
type record struct {
	spec machines.Spec
	proc *process
	line *console.Line
	end  machines.End // of the process, when it has ended
	text string
}

// NewHost makes a host with room for machines of so many bytes of memory together.
func NewHost(memory int64) *Host {
	h := &Host{
		hardware: machines.Hardware{Accelerator: "twin", Machine: "twin-1", CPU: "twin", Emulator: "1.0"},
		limit:    memory, procs: map[int]*process{}, records: map[machines.ID]*record{},
	}
	h.changed.L = &h.mu
	return h
}

// Open makes a driver over the host; one at a time.
func (h *Host) Open(disks machines.Disks) (*Driver, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.attached != nil {
		return nil, machines.Errorf(machines.Unavailable, "another driver has this host")
	}
	d := newDriver(h, disks)
	h.attached = d
	for _, r := range h.records {
		d.board.Tell(r.status())
	}
	for _, p := range h.procs {
		if h.records[p.spec.ID] == nil {
			d.board.Tell(p.status())
		}
	}
	return d, nil
}

// KillProcess ends a process as kill -9 does. It says whether there was one.
func (h *Host) KillProcess(pid int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.procs[pid]
	if p != nil {
		p.die(machines.EndCrashed, "signal: killed")
	}
	return p != nil
}

// Forget removes what was stored about a machine; its process goes on.
func (h *Host) Forget(id machines.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.records[id]; r != nil {
		r.line.Close()
		delete(h.records, id)
	}
}

// PIDs gives the processes, sorted.
func (h *Host) PIDs() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	pids := make([]int, 0, len(h.procs))
	for pid := range h.procs {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// proc gives a machine's process, also of a machine without a record.
func (h *Host) proc(id machines.ID) *process {
	if r := h.records[id]; r != nil {
		return r.proc
	}
	for _, p := range h.procs {
		if p.spec.ID == id {
			return p
		}
	}
	return nil
}

// tell puts a machine's state up, if anybody looks.
func (h *Host) tell(s machines.Status) {
	h.changed.Broadcast()
	if h.attached != nil {
		h.attached.board.Tell(s)
	}
}

// status is that of the record's process, or of what it left.
func (r *record) status() machines.Status {
	s := r.proc.status()
	s.Owner, s.Epoch = r.spec.Owner, r.spec.Epoch
	if r.end != "" {
		s.State, s.End, s.Text, s.PID, s.Used = machines.Ended, r.end, r.text, 0, 0
	}
	return s
}

func (p *process) status() machines.Status {
	s := machines.Status{ID: p.spec.ID, Owner: p.spec.Owner, Epoch: p.spec.Epoch, State: machines.Paused, PID: p.pid,
		Started: p.started, Memory: p.spec.Memory, Used: pageSize}
	if p.running {
		s.State = machines.Running
	}
	return s
}

// begin makes a process that stands still.
func (h *Host) begin(s machines.Spec, g guest) (*process, error) {
	h.lastPID++
	p := &process{host: h, pid: h.lastPID, spec: s, started: time.Now(), guest: g}
	if err := p.listen(); err != nil {
		return nil, err
	}
	h.procs[p.pid] = p
	go p.run()
	return p, nil
}
