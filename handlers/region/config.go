// Package region is the region's agent: it owns the region's chunk store and
// environments, follows the journal for the work that is ordered of its region,
// performs it, and says what came of it. It appends nothing: it commands.
package region

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Commander sends the agent's commands to the control plane. An answer that is
// a refusal is an *aggregates.Refusal.
type Commander interface {
	// Command has one command executed and gives the sequence of its event, or
	// of the aggregate's last one when there was nothing to do. What follows from
	// it is recorded as the operation's, if there is one.
	Command(ctx context.Context, operation events.OperationID, account events.AccountID, kind events.Kind, verb string, id events.CommandID, body any) (uint64, error)
}

// Progress is how far a piece of work is. It goes to whoever watches, never
// into the journal.
type Progress struct {
	Account   events.AccountID   `json:"account,omitempty"`
	Region    events.RegionID    `json:"region"`
	Work      events.WorkID      `json:"work,omitempty"`
	Kind      events.WorkKind    `json:"kind,omitempty"`
	Operation events.OperationID `json:"operation,omitempty"`
	Step      string             `json:"step"`        // "copying", "verifying", "waiting"
	Done      int64              `json:"bytes_done"`  // bytes
	Total     int64              `json:"bytes_total"` // bytes; 0: not known yet
	Rate      float64            `json:"bytes_per_second"`
	Left      time.Duration      `json:"time_left_ns"` // 0: not known
	Text      string             `json:"text,omitempty"`
}

// Config is what an agent needs.
type Config struct {
	Dir    string // its data directory; nobody else may use it
	Region events.RegionID

	Journal   journal.Journal // followed, never written
	Commander Commander
	Documents documents.Store
	Progress  func(Progress)
	Log       *slog.Logger

	Certificate tls.Certificate // names the region: URI tombolo://region/<id>
	Authority   *x509.CertPool  // who may have signed other regions' certificates

	TransferListen string // host:port where other regions pull chunks; port 0 picks one
	HTTPListen     string // host:port where people ask and send uploads; port 0 picks one
	// The same as others reach them, where that differs from where the agent
	// listens: on all interfaces, or behind something that forwards. Port 0 stands
	// for the one that was picked.
	TransferAdvertise, HTTPAdvertise string
	// HTTP makes the handler of everything that people may ask the region;
	// uploads are added by the agent.
	HTTP func(a *Agent) http.Handler
	// Authorize checks the ticket of an upload to the environment, or of an export
	// where that is empty, and gives the account of who shows it. Errors:
	// *trust.Error, or why they may not.
	Authorize func(r *http.Request, feed *projections.Feed, environment events.EnvironmentID) (events.AccountID, error)

	// Machines opens what runs the region's machines, in a directory of its own that
	// it may make; nil: the region runs none. Networks opens what makes its networks,
	// and calls lost when they are gone without anybody having asked; nil: none.
	Machines func(dir string, disks machines.Disks) (machines.Driver, error)
	Networks func(dir string, lost func()) (networks.Substrate, error)

	// LeaveRunning: when Run is told to end, machines go on running, to be adopted by
	// the next agent of this directory.
	LeaveRunning bool

	LinkBytesPerSecond int64 // cap for what each link brings in; 0: none
	CacheBytes         int64 // memory for decompressed chunks; 0: the default
	Slots              int   // pieces of work at once; 0: DefaultSlots

	Grace      time.Duration // how long something is an orphan before it is reaped; 0: DefaultGrace
	ScrubEvery time.Duration // how often everything in the store is read back; 0: DefaultScrubEvery

	// For tests that end the agent at every step: Store puts something between
	// the agent and its chunk store, Around is called before each other change to
	// the host, and what it gives after it. nil: nothing.
	Store  func(chunks.Store) chunks.Store
	Around func(effect Change) func()
}

// Change names a change to the host beside the chunk store.
type Change string

// The changes.
const (
	CreateVolumes     Change = "create-volumes"
	FreezeVolumes     Change = "freeze-volumes"
	RebaseVolumes     Change = "rebase-volumes"
	KeepOrder         Change = "keep-order"
	KeepGraph         Change = "keep-graph"
	KeepManifest      Change = "keep-manifest"
	RemoveManifest    Change = "remove-manifest"
	RemoveEnvironment Change = "remove-environment"
	RemoveUpload      Change = "remove-upload"
	ApplyNetwork      Change = "apply-network"
	RemoveNetwork     Change = "remove-network"
	StartMachine      Change = "start-machine"
	ContinueMachines  Change = "continue-machines"
	PauseMachines     Change = "pause-machines"
	KillMachine       Change = "kill-machine"
)

// Changes lists them all.
func Changes() []Change {
	return []Change{CreateVolumes, FreezeVolumes, RebaseVolumes, KeepOrder, KeepGraph, KeepManifest, RemoveManifest, RemoveEnvironment, RemoveUpload,
		ApplyNetwork, RemoveNetwork, StartMachine, ContinueMachines, PauseMachines, KillMachine}
}

// DefaultGrace is how long the janitor looks at an orphan before it reaps it.
const DefaultGrace = 10 * time.Minute

// DefaultScrubEvery is how often an agent reads back its store.
const DefaultScrubEvery = 7 * 24 * time.Hour

// DefaultSlots is how many pieces of work an agent performs at once.
const DefaultSlots = 4
