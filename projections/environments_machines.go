package projections

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
)

// MachineRow is a machine as its region's agent saw it last. What it is declared
// to be is in the environment's row and in its graph.
type MachineRow struct {
	Environment events.EnvironmentID `json:"environment"`
	Machine     string               `json:"machine"`
	Observed    string               `json:"observed"` // running, suspended, stopped, powered-off or failed
	Cause       *events.Cause        `json:"cause,omitempty"`
	Accelerator string               `json:"accelerator,omitempty"`
	Epoch       int                  `json:"epoch"` // of the agent that saw it
	Deaths      int                  `json:"deaths,omitempty"`
	Restart     *events.Verdict      `json:"restart,omitempty"` // on its last death
	Since       Time                 `json:"since"`             // when it came to be seen in this state
}

// EnvironmentEdgeRow is the environment's edge as it was set after the
// environment was made; without one it is as the graph says.
type EnvironmentEdgeRow struct {
	Environment events.EnvironmentID `json:"environment"`
	Rules       []events.EdgeRule    `json:"rules,omitempty"`
	SourcePorts string               `json:"source_ports,omitempty"`
	Open        []events.EdgeOpening `json:"open,omitempty"`
	Operation   events.OperationID   `json:"operation"`
	Set         Time                 `json:"set_at"`
}

// Event is the setting as it was recorded.
func (e EnvironmentEdgeRow) Event() events.EdgeSet {
	return events.EdgeSet{Rules: e.Rules, SourcePorts: e.SourcePorts, Open: e.Open, Operation: e.Operation}
}

var (
	environmentMachines = NewTable("environments", "machine", func(m MachineRow) Key { return Key{string(m.Environment), m.Machine} })
	environmentEdges    = NewTable("environments", "edge", func(e EnvironmentEdgeRow) Key { return Key{string(e.Environment)} })
)

// observe folds what was seen of machines into their rows, and counts them by state.
func observe(w *Batch, r events.Record, e events.MachinesObserved) (counts map[string]int, declared map[string]string, err error) {
	id := events.EnvironmentID(r.Aggregate.ID)
	counts, declared = map[string]int{}, map[string]string{}
	for _, m := range e.Machines {
		before, known, err := environmentMachines.Get(w, string(id), m.Machine)
		if err != nil {
			return nil, nil, err
		}
		if known {
			counts[before.Observed]--
		}
		counts[m.Power]++
		if m.Declared != "" {
			declared[m.Machine] = m.Declared
		}
		row := MachineRow{Environment: id, Machine: m.Machine, Observed: m.Power, Cause: m.Cause, Accelerator: m.Accelerator,
			Epoch: e.Epoch, Deaths: m.Deaths, Restart: m.Restart, Since: stored(r)}
		if err := environmentMachines.Put(w, row); err != nil {
			return nil, nil, err
		}
	}
	return counts, declared, nil
}

// forget removes what was known of a deleted environment's machines and edge.
func forget(w *Batch, id string) error {
	if err := environmentEdges.Delete(w, id); err != nil {
		return err
	}
	row, ok, err := environments.Get(w, id)
	if err != nil || !ok || len(row.Observed) == 0 {
		return err
	}
	machines, err := gather(environmentMachines, w, Query[MachineRow]{Prefix: Key{id}})
	if err != nil {
		return err
	}
	for _, m := range machines {
		if err := environmentMachines.Delete(w, id, m.Machine); err != nil {
			return err
		}
	}
	return nil
}

// seen adds up how many machines are seen in which state.
func (e *EnvironmentRow) seen(counts map[string]int, declared map[string]string) {
	now := maps.Clone(e.Observed)
	if now == nil {
		now = map[string]int{}
	}
	for state, n := range counts {
		if now[state] += n; now[state] == 0 {
			delete(now, state)
		}
	}
	e.Observed = now
	if len(declared) == 0 {
		return
	}
	power := maps.Clone(e.Power)
	if power == nil {
		power = map[string]string{}
	}
	maps.Copy(power, declared)
	e.Power = power
}

// Summary says in a few words how the environment's machines are seen:
// "running", "2/3 running", "2/3 running, 1 failed", "starting" before any was
// seen. It is empty where there are none, or nothing is known of them.
func (e EnvironmentRow) Summary() string {
	known := 0
	for _, n := range e.Observed {
		known += n
	}
	all := max(e.Machines, known)
	switch {
	case e.State != EnvironmentCreated || all == 0:
		return ""
	case known == 0 && (e.PowerAll == "" || e.PowerAll == "running"):
		return "starting"
	case known == 0:
		return e.PowerAll
	}
	for state, n := range e.Observed {
		if n == all {
			return state
		}
	}
	var parts []string
	if n := e.Observed["running"]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d/%d running", n, all))
		if n := e.Observed[events.MachineFailed]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d failed", n))
		}
		return strings.Join(parts, ", ")
	}
	for _, state := range slices.Sorted(maps.Keys(e.Observed)) {
		parts = append(parts, fmt.Sprintf("%d/%d %s", e.Observed[state], all, state))
	}
	return strings.Join(parts, ", ")
}

// Machines gives what was seen of an environment's machines, by name.
func (Environments) Machines(r Reader, id events.EnvironmentID) ([]MachineRow, error) {
	return gather(environmentMachines, r, Query[MachineRow]{Prefix: Key{string(id)}})
}

// Edge gives the edge as it was set last; false if it is as the graph says.
func (Environments) Edge(r Reader, id events.EnvironmentID) (EnvironmentEdgeRow, bool, error) {
	return environmentEdges.Get(r, string(id))
}
