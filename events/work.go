package events

import "time"

// KindWork: one external effect asked of one region.
const KindWork Kind = "work"

// WorkEvent is a fact about a work order.
type WorkEvent interface {
	Event
	ofWork()
}

type inWork struct{}

func (inWork) ofWork() {}

// WorkKind names a kind of work; each has one effect, an undo and a way to find it.
type WorkKind string

// The kinds of work.
const (
	WorkReceive WorkKind = "receive" // take an environment's disks from uploads
	WorkSave    WorkKind = "save"    // fix an environment's disks as a version's content
	WorkCopy    WorkKind = "copy"    // come to hold a manifest's chunks, verified
	WorkRemove  WorkKind = "remove"  // let go of an instance's chunks
	WorkClone   WorkKind = "clone"   // make an environment's disks from an instance
	WorkDiscard WorkKind = "discard" // let go of an environment's machines, network and disks
	WorkConnect WorkKind = "connect" // make an environment's network be as its graph, edge and map say
	WorkPower   WorkKind = "power"   // bring an environment's machines to a power state
)

// Order is what the work is about; each kind reads the fields it needs.
type Order struct {
	Environment EnvironmentID `json:"environment,omitempty"`
	Template    TemplateID    `json:"template,omitempty"`
	Version     int           `json:"version,omitempty"`
	Instance    InstanceID    `json:"instance,omitempty"`
	Manifest    Digest        `json:"manifest,omitempty"` // of a manifest (save: none yet)
	Graph       Digest        `json:"graph,omitempty"`    // of an environment's graph
	Disks       []DiskWanted  `json:"disks,omitempty"`
	Until       time.Time     `json:"until,omitzero"`

	Power   []MachinePower `json:"power,omitempty"`   // power: what is to be so; empty: all machines as they are declared
	Cold    bool           `json:"cold,omitempty"`    // power: boot where stored memory does not fit the host's hardware
	Timeout int            `json:"timeout,omitempty"` // power: seconds that a guest has to shut down; 0: the agent's
	Memory  bool           `json:"memory,omitempty"`  // save: with the memory of running machines
}

// MachinePower is the power state that a machine is to be in.
type MachinePower struct {
	Machine string `json:"machine,omitempty"` // node id; empty: all machines
	Power   string `json:"power"`
}

// WorkOrdered: the region is asked to do it.
type WorkOrdered struct {
	inWork
	Kind      WorkKind    `json:"kind"`
	Order     Order       `json:"order"`
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (WorkOrdered) EventType() Type { return "work.ordered" }

// WorkStarted: an agent has taken it up.
type WorkStarted struct {
	inWork
	Epoch   int `json:"epoch"`
	Attempt int `json:"attempt"`
}

// EventType is the wire name.
func (WorkStarted) EventType() Type { return "work.started" }

// Result is what came of a piece of work.
type Result struct {
	Manifest  Digest        `json:"manifest,omitempty"`
	Graph     Digest        `json:"graph,omitempty"`
	Bytes     int64         `json:"bytes,omitempty"`    // as machines see them
	Received  int64         `json:"received,omitempty"` // from other regions
	Stored    int64         `json:"stored,omitempty"`   // new to the store
	Freed     int64         `json:"freed,omitempty"`
	Location  string        `json:"location,omitempty"`
	PauseMS   int64         `json:"pause_ms,omitempty"` // milliseconds that machines stood still
	Resources []ResourceRef `json:"resources,omitempty"`
}

// WorkDone: the effect is there.
type WorkDone struct {
	inWork
	Epoch  int    `json:"epoch"`
	Result Result `json:"result"`
}

// EventType is the wire name.
func (WorkDone) EventType() Type { return "work.done" }

// WorkFailed: the effect is not there and will not come by itself.
type WorkFailed struct {
	inWork
	Epoch int   `json:"epoch"`
	Cause Cause `json:"cause"`
}

// EventType is the wire name.
func (WorkFailed) EventType() Type { return "work.failed" }

// WorkUndoOrdered: whatever there is of the effect is to go, started or not.
type WorkUndoOrdered struct {
	inWork
	Why Cause `json:"why"`
}

// EventType is the wire name.
func (WorkUndoOrdered) EventType() Type { return "work.undo-ordered" }

// WorkUndone: nothing of the effect is left.
type WorkUndone struct {
	inWork
	Epoch int `json:"epoch"`
}

// EventType is the wire name.
func (WorkUndone) EventType() Type { return "work.undone" }

// WorkStuck: the undo did not work either; a person must look.
type WorkStuck struct {
	inWork
	Epoch int   `json:"epoch"`
	Cause Cause `json:"cause"`
}

// EventType is the wire name.
func (WorkStuck) EventType() Type { return "work.stuck" }

// WorkRetried: a failed or stuck order is open again.
type WorkRetried struct{ inWork }

// EventType is the wire name.
func (WorkRetried) EventType() Type { return "work.retried" }

// WorkWrittenOff: nobody will do it any more; its region is lost.
type WorkWrittenOff struct {
	inWork
	Why Cause `json:"why"`
}

// EventType is the wire name.
func (WorkWrittenOff) EventType() Type { return "work.written-off" }
