package environment

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// Limits of what one command is about, so that its event always fits.
const (
	MaxNamed    = 500  // machines that are set
	MaxReported = 50   // machines that are reported
	MaxTimeout  = 3600 // seconds
)

// Window is how far back the deaths of a machine count.
const Window = 10 * time.Minute

// deathsKept is how many deaths of a machine are remembered: more than any policy looks at.
const deathsKept = 16

// seen is how a machine was seen last.
type seen struct{ power, code string }

const (
	running    = "running"
	suspended  = "suspended"
	stopped    = "stopped"
	poweredOff = "powered-off"
)

func (s *State) declare(e events.PowerSet) {
	names := e.Names()
	if len(names) == 0 {
		s.power = map[string]string{"": e.Power}
		return
	}
	s.power = cloned(s.power)
	for _, m := range names {
		s.power[m] = e.Power
	}
}

func (s *State) observe(e events.MachinesObserved) {
	s.epoch = e.Epoch
	s.observed, s.power, s.deaths = cloned(s.observed), cloned(s.power), cloned(s.deaths)
	for _, m := range e.Machines {
		now := seen{power: m.Power}
		if m.Cause != nil {
			now.code = m.Cause.Code
		}
		s.observed[m.Machine] = now
		if m.Declared != "" {
			s.power[m.Machine] = m.Declared
		}
		if died(m.Power, m.Cause) {
			s.deaths[m.Machine] = append(slices.Clone(s.deaths[m.Machine]), e.At)
			if n := len(s.deaths[m.Machine]); n > deathsKept {
				s.deaths[m.Machine] = s.deaths[m.Machine][n-deathsKept:]
			}
		}
	}
}

func cloned[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

// died says whether a report is of a machine that ended by itself.
func died(power string, why *events.Cause) bool {
	return power == events.MachineFailed && why != nil && why.Code == events.CauseCrashed
}

// Declared is the power state that the machine was last declared to be in; empty: as the graph says.
func (s State) Declared(machine string) string {
	if p, own := s.power[machine]; own {
		return p
	}
	return s.power[""]
}

// Deaths is how often a machine died by itself within the window before now.
func (s State) Deaths(machine string, now time.Time) int {
	n := 0
	for _, at := range s.deaths[machine] {
		if now.Sub(at) < Window {
			n++
		}
	}
	return n
}

// rested says whether a report is of a machine that was suspended because its
// region's agent was told to end.
func rested(power string, why *events.Cause) bool {
	return power == suspended && why != nil && why.Code == events.CauseRegionStopped
}

// AsksRestart says whether the report is news of a machine that does not run any
// more though nobody asked for that: what the restart policy is asked about.
func (s State) AsksRestart(r MachineReport) bool {
	return (died(r.Power, r.Cause) || rested(r.Power, r.Cause)) && s.observed[r.Machine] != r.seen()
}

// SetPower has one machine, several, those of a vApp, or all brought to a power state.
type SetPower struct {
	Ref
	Machine   string             `json:"machine,omitempty"`  // node id
	Machines  []string           `json:"machines,omitempty"` // node ids
	VApp      string             `json:"vapp,omitempty"`     // node id; whoever sends the command names its machines as well
	Power     string             `json:"power"`
	Cold      bool               `json:"cold,omitempty"`    // boot where stored memory does not fit the host's hardware
	Timeout   int                `json:"timeout,omitempty"` // seconds that a guest has to shut down
	Operation events.OperationID `json:"operation,omitempty"`
}

// Decide sets a power state that is not declared and seen already.
func (c SetPower) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	if err := s.usable(c.Ref); err != nil {
		return nil, err
	}
	names := slices.Clone(c.Machines)
	if c.Machine != "" {
		names = append(names, c.Machine)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case !slices.Contains([]string{running, suspended, stopped, poweredOff}, c.Power):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-power", "%q is not a power state: running, suspended, stopped or powered-off", c.Power)
	case len(names) > MaxNamed:
		return nil, aggregates.RefuseAs(aggregates.Invalid, "too-many-machines", "%d machines are named, at most %d are allowed", len(names), MaxNamed).
			WithNext("name none to mean all, or a vApp, or send several commands")
	case c.VApp != "" && len(names) == 0:
		return nil, aggregates.RefuseAs(aggregates.NotFound, "vapp-unknown", "the environment has no vApp %q with machines", c.VApp)
	case c.Timeout < 0 || c.Timeout > MaxTimeout:
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-timeout", "a guest has from 0 to %d seconds to shut down, not %d", MaxTimeout, c.Timeout)
	case s.is(names, c.Power):
		return nil, aggregates.Already("it is %s", c.Power)
	}
	e := events.PowerSet{Machines: names, Power: c.Power, Operation: c.Operation, Cold: c.Cold, Timeout: c.Timeout}
	if len(names) == 1 {
		e.Machine, e.Machines = names[0], nil
	}
	return e, nil
}

// is tells whether the machines, or all if none are named, were last declared to
// be so, and were not seen to be otherwise: one that has ended is not running.
func (s State) is(names []string, power string) bool {
	for _, m := range names {
		if s.Declared(m) != power || !s.stands(m, power) {
			return false
		}
	}
	if len(names) > 0 {
		return true
	}
	for _, p := range s.power {
		if p != power {
			return false
		}
	}
	for m := range s.observed {
		if !s.stands(m, power) {
			return false
		}
	}
	return s.power[""] == power
}

// stands says whether what was seen of the machine, if anything, is the power state.
func (s State) stands(machine, power string) bool {
	o, known := s.observed[machine]
	return !known || o.power == power || off(o.power) && off(power)
}

// off says whether a machine in that state has no process.
func off(power string) bool {
	return power == stopped || power == poweredOff || power == events.MachineFailed
}

// MachineReport is what an agent says of one machine.
type MachineReport struct {
	Machine     string        `json:"machine"` // node id
	Power       string        `json:"power"`   // running, suspended, stopped, powered-off or failed
	Cause       *events.Cause `json:"cause,omitempty"`
	Accelerator string        `json:"accelerator,omitempty"`
}

func (r MachineReport) seen() seen {
	if r.Cause == nil {
		return seen{power: r.Power}
	}
	return seen{r.Power, r.Cause.Code}
}

// ReportMachines is a region's agent saying what it saw become of machines.
type ReportMachines struct {
	Ref
	Epoch    int             `json:"epoch"`
	Machines []MachineReport `json:"machines"`
	// Restarts are the restart policy's verdicts on those that do not run any more, by machine.
	Restarts  map[string]events.Verdict `json:"restarts,omitempty"`
	Operation events.OperationID        `json:"operation,omitempty"` // that starts machines again, if any are to be
}

// Decide records what is news. A guest that switched itself off is declared
// stopped from then on, so that nobody starts it again behind its back.
func (c ReportMachines) Decide(s State, f aggregates.Facts) (events.EnvironmentEvent, error) {
	switch {
	case s.phase == 0:
		return nil, s.usable(c.Ref)
	case s.phase != created && s.phase != declared:
		return nil, aggregates.Already("environment %s is on its way out", c.Environment)
	case c.Epoch < s.epoch:
		return nil, aggregates.Refuse("stale-epoch", "epoch %d has lost the region to epoch %d", c.Epoch, s.epoch)
	case len(c.Machines) > MaxReported:
		return nil, aggregates.RefuseAs(aggregates.Invalid, "too-many-machines", "%d machines are reported at once, at most %d are allowed", len(c.Machines), MaxReported)
	}
	e := events.MachinesObserved{Epoch: c.Epoch, At: f.Now}
	for i, r := range c.Machines {
		switch {
		case !events.IsToken(r.Machine) || slices.ContainsFunc(c.Machines[:i], func(o MachineReport) bool { return o.Machine == r.Machine }):
			return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-machine", "%.80q is no machine, or is reported twice", r.Machine)
		case !slices.Contains([]string{running, suspended, stopped, poweredOff, events.MachineFailed}, r.Power):
			return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-power", "%.80q is not a state that a machine is seen in", r.Power)
		}
		if before, known := s.observed[r.Machine]; known && before == r.seen() {
			continue
		}
		m := events.MachineState{Machine: r.Machine, Power: r.Power, Cause: brief(r.Cause), Accelerator: clip(r.Accelerator, 20)}
		if died(r.Power, r.Cause) {
			m.Deaths = s.Deaths(r.Machine, f.Now) + 1
		}
		if v, asked := c.Restarts[r.Machine]; asked && s.phase == created && s.AsksRestart(r) {
			m.Restart = &v
		}
		if r.Power == stopped && m.Cause != nil && m.Cause.Code == events.CauseGuestShutdown && !off(s.Declared(r.Machine)) {
			m.Declared = stopped
		}
		if m.Restart != nil && m.Restart.Allowed {
			e.Operation = c.Operation
		}
		e.Machines = append(e.Machines, m)
	}
	if len(e.Machines) == 0 {
		return nil, aggregates.Already("the machines were seen so before")
	}
	return e, nil
}

// brief is a cause that fits an event however many there are.
func brief(c *events.Cause) *events.Cause {
	if c == nil {
		return nil
	}
	return &events.Cause{Code: clip(c.Code, 60), Text: clip(c.Text, 400), Next: clip(c.Next, 200)}
}

func clip(text string, most int) string {
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most-len("…")], "") + "…"
	}
	return text
}
