package events

import "time"

// PowerSet: the power state that one machine, several or all are to be in.
type PowerSet struct {
	inEnvironment
	Machine   string      `json:"machine,omitempty"`  // node id; without Machines too: all machines
	Machines  []string    `json:"machines,omitempty"` // several
	Power     string      `json:"power"`
	Operation OperationID `json:"operation,omitempty"` // that brings them there; none in events of before machines ran
	Cold      bool        `json:"cold,omitempty"`      // boot where stored memory does not fit the host's hardware
	Timeout   int         `json:"timeout,omitempty"`   // seconds that a guest has to shut down; 0: the agent's
}

// EventType is the wire name.
func (PowerSet) EventType() Type { return "environment.power-set" }

// Names lists the machines that it is about; none means all.
func (e PowerSet) Names() []string {
	if e.Machine != "" {
		return []string{e.Machine}
	}
	return e.Machines
}

// MachinesObserved: what the region's agent saw become of machines.
type MachinesObserved struct {
	inEnvironment
	Epoch     int            `json:"epoch"`
	At        time.Time      `json:"at"`
	Machines  []MachineState `json:"machines"`
	Operation OperationID    `json:"operation,omitempty"` // that starts those again which are to be
}

// EventType is the wire name.
func (MachinesObserved) EventType() Type { return "environment.machines-observed" }

// MachineState is a machine as its region's agent sees it.
type MachineState struct {
	Machine     string   `json:"machine"` // node id
	Power       string   `json:"power"`   // running, suspended, stopped, powered-off or failed
	Cause       *Cause   `json:"cause,omitempty"`
	Accelerator string   `json:"accelerator,omitempty"` // that it runs on: "kvm", "tcg"
	Declared    string   `json:"declared,omitempty"`    // what it is declared to be from here on: its guest decided so
	Deaths      int      `json:"deaths,omitempty"`      // of it within the window of the restart policy, this one too
	Restart     *Verdict `json:"restart,omitempty"`     // whether it is started again
}

// MachineFailed is the observed state of a machine that has ended by itself, or
// did not come to be; the cause says why.
const MachineFailed = "failed"

// The causes of observed states that decisions depend on.
const (
	CauseGuestShutdown = "guest-shutdown" // the guest switched itself off
	CauseCrashed       = "crashed"        // the machine's process ended, and nobody had asked for it
	CauseRegionStopped = "region-stopped" // it was suspended because its region's agent was told to end
)

// Verdict is a policy's decision, as it was taken.
type Verdict struct {
	Policy  string `json:"policy"`
	Digest  Digest `json:"digest"` // of the policy's source
	Allowed bool   `json:"allowed"`
	Why     string `json:"why"`
}

// EdgeSet: the settings of the environment's edge, in place of all earlier ones.
type EdgeSet struct {
	inEnvironment
	Rules       []EdgeRule    `json:"rules,omitempty"`
	SourcePorts string        `json:"source_ports,omitempty"`
	Open        []EdgeOpening `json:"open,omitempty"` // a public address that is not named lets nothing in
	Operation   OperationID   `json:"operation"`
}

// EventType is the wire name.
func (EdgeSet) EventType() Type { return "environment.edge-set" }
