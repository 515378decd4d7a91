// Package region decides about a place with machines. It guards: one agent owns
// the region at a time, epochs only rise, and a region that was retired never
// comes back (its id is not used again).
package region

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// State is the region as decisions need it.
type State struct {
	added    bool
	profile  events.RegionProfile
	epoch    int
	agent    string // who may start the next epoch; empty: anyone
	draining bool
	retired  bool
	lost     bool
}

// Epoch is the epoch that runs; 0 before the first agent came.
func (s State) Epoch() int { return s.epoch }

// Agent is the only agent that may start the next epoch; empty: any may.
func (s State) Agent() string { return s.agent }

// Fold gives the state after e.
func (s State) Fold(e events.RegionEvent) State {
	switch e := e.(type) {
	case events.RegionAdded:
		s.added, s.profile = true, e.Profile
	case events.EpochStarted:
		s.epoch, s.agent = e.Epoch, e.Agent
	case events.AgentReplaced:
		s.agent = e.Agent
	case events.RegionDraining:
		s.draining = true
	case events.RegionRetired:
		s.retired, s.lost = true, e.Lost
	}
	return s
}

// Of names the aggregate of a region, which is no account's.
func Of(r events.RegionID) events.Aggregate {
	return events.Aggregate{Account: events.None, Region: r, Kind: events.KindRegion, ID: string(r)}
}

// Add makes a region known.
type Add struct {
	Region  events.RegionID      `json:"region"`
	Profile events.RegionProfile `json:"profile"`
}

// Aggregate is the region, whoever asks.
func (c Add) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region) }

// Decide refuses region-invalid, region-retired, and region-exists where the
// region has another profile.
func (c Add) Decide(s State, _ aggregates.Facts) (events.RegionEvent, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	switch {
	case s.retired:
		return nil, retired(c.Region).WithNext("add it under another id")
	case s.added && same(s.profile, c.Profile):
		return nil, aggregates.Already("the region %s is there", c.Region)
	case s.added:
		return nil, aggregates.Refuse("region-exists", "the region %s is there with another profile", c.Region)
	}
	return events.RegionAdded{Region: c.Region, Profile: c.Profile}, nil
}

func (c Add) check() error {
	invalid := func(format string, args ...any) error {
		return aggregates.RefuseAs(aggregates.Invalid, "region-invalid", format, args...)
	}
	p := c.Profile
	switch {
	case !events.IsToken(string(c.Region)):
		return invalid("%q is not a region's id: use a-z, 0-9 and -, at most 63", c.Region)
	case strings.TrimSpace(p.Name) == "":
		return invalid("the region %s has no name", c.Region)
	case !(p.Latitude >= -90 && p.Latitude <= 90): // so written, not-a-number is refused
		return invalid("the latitude %v is not between -90 and 90 degrees", p.Latitude)
	case !(p.Longitude >= -180 && p.Longitude <= 180):
		return invalid("the longitude %v is not between -180 and 180 degrees", p.Longitude)
	}
	for i, a := range p.Aliases {
		if !events.IsToken(a) {
			return invalid("%q is not an alias: use a-z, 0-9 and -, at most 63", a)
		}
		if a == string(c.Region) || slices.Contains(p.Aliases[:i], a) {
			return invalid("the alias %s says nothing new", a)
		}
	}
	return nil
}

func same(a, b events.RegionProfile) bool {
	aliases := slices.Equal(a.Aliases, b.Aliases)
	return aliases && a.Name == b.Name && a.County == b.County && a.State == b.State && a.Country == b.Country &&
		a.Continent == b.Continent && a.Latitude == b.Latitude && a.Longitude == b.Longitude
}

// StartEpoch is an agent that has come up and takes the region. Each start is
// an epoch of its own, the same agent's too: drivers refuse orders of the one
// before.
type StartEpoch struct {
	Region   events.RegionID `json:"region"`
	Agent    string          `json:"agent"`    // the agent id in its data directory
	Transfer string          `json:"transfer"` // host:port
	HTTP     string          `json:"http"`     // host:port
}

// Aggregate is the region, whoever asks.
func (c StartEpoch) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region) }

// Decide refuses agent-invalid, endpoint-invalid, region-unknown,
// region-retired, and region-owned-by-another-agent until a takeover. A
// draining region still needs its agent, to let go of what it holds.
func (c StartEpoch) Decide(s State, _ aggregates.Facts) (events.RegionEvent, error) {
	if !events.IsToken(c.Agent) {
		return nil, agentInvalid(c.Agent)
	}
	for _, e := range []string{c.Transfer, c.HTTP} {
		if !isEndpoint(e) {
			return nil, aggregates.RefuseAs(aggregates.Invalid, "endpoint-invalid", "%q is not host:port", e)
		}
	}
	if err := s.usable(c.Region); err != nil {
		return nil, err
	}
	if s.agent != "" && s.agent != c.Agent {
		return nil, aggregates.Refuse("region-owned-by-another-agent", "the region %s belongs to agent %s, not to %s", c.Region, s.agent, c.Agent).
			WithNext("start that agent's data directory, or give the region to this one: tombolo region takeover %s --agent %s", c.Region, c.Agent)
	}
	return events.EpochStarted{Epoch: s.epoch + 1, Agent: c.Agent, Transfer: c.Transfer, HTTP: c.HTTP}, nil
}

// Takeover lets one agent, and no other, start the next epoch. The agent before
// it keeps its epoch until then and can start none.
type Takeover struct {
	Region events.RegionID `json:"region"`
	Agent  string          `json:"agent"`
}

// Aggregate is the region, whoever asks.
func (c Takeover) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region) }

// Decide refuses agent-invalid, region-unknown and region-retired.
func (c Takeover) Decide(s State, _ aggregates.Facts) (events.RegionEvent, error) {
	if !events.IsToken(c.Agent) {
		return nil, agentInvalid(c.Agent)
	}
	if err := s.usable(c.Region); err != nil {
		return nil, err
	}
	if s.agent == c.Agent {
		return nil, aggregates.Already("the region %s belongs to agent %s", c.Region, c.Agent)
	}
	return events.AgentReplaced{Agent: c.Agent}, nil
}

// Drain stops new placements in the region; what it holds is to leave.
type Drain struct {
	Region    events.RegionID    `json:"region"`
	Operation events.OperationID `json:"operation"`
}

// Aggregate is the region, whoever asks.
func (c Drain) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region) }

// Decide refuses region-unknown and region-retired.
func (c Drain) Decide(s State, _ aggregates.Facts) (events.RegionEvent, error) {
	if err := s.usable(c.Region); err != nil {
		return nil, err
	}
	if s.draining {
		return nil, aggregates.Already("the region %s is draining", c.Region)
	}
	return events.RegionDraining{Operation: c.Operation}, nil
}

// Retire ends the region for good. An ordinary retirement is of a region that
// was drained and holds nothing. With Lost it is of one that will not answer
// again: what it held is written off. Lost may follow an ordinary retirement,
// for what was placed between the count of its holdings and the retirement; the
// reverse has nothing to do.
type Retire struct {
	Region    events.RegionID    `json:"region"`
	Lost      bool               `json:"lost"`
	Holds     int                `json:"holds"` // instances and environments there, as the catalogue counts them
	Operation events.OperationID `json:"operation"`
}

// Aggregate is the region, whoever asks.
func (c Retire) Aggregate(events.AccountID) events.Aggregate { return Of(c.Region) }

// Decide refuses region-unknown and, unless Lost, region-not-draining and
// region-not-empty.
func (c Retire) Decide(s State, _ aggregates.Facts) (events.RegionEvent, error) {
	switch {
	case !s.added:
		return nil, unknown(c.Region)
	case s.retired && (s.lost || !c.Lost):
		return nil, aggregates.Already("the region %s is retired", c.Region)
	case c.Lost:
	case !s.draining:
		return nil, aggregates.Refuse("region-not-draining", "the region %s still takes new things", c.Region).
			WithNext("drain it first: tombolo region drain %s; or, where it is gone for good, retire it with --lost", c.Region)
	case c.Holds > 0:
		return nil, aggregates.Refuse("region-not-empty", "the region %s still holds %d things", c.Region, c.Holds).
			WithNext("wait until it is drained; or, where it is gone for good, retire it with --lost")
	}
	return events.RegionRetired{Lost: c.Lost, Operation: c.Operation}, nil
}

func (s State) usable(r events.RegionID) error {
	switch {
	case !s.added:
		return unknown(r)
	case s.retired:
		return retired(r)
	}
	return nil
}

func unknown(r events.RegionID) error {
	return aggregates.RefuseAs(aggregates.NotFound, "region-unknown", "there is no region %s", r)
}

func retired(r events.RegionID) *aggregates.Refusal {
	return aggregates.Refuse("region-retired", "the region %s was retired for good", r)
}

func agentInvalid(agent string) error {
	return aggregates.RefuseAs(aggregates.Invalid, "agent-invalid", "%q is not an agent's id: use a-z, 0-9 and -, at most 63", agent)
}

// isEndpoint reports whether e is host:port as a peer can dial it.
func isEndpoint(e string) bool {
	if a, err := netip.ParseAddrPort(e); err == nil {
		return a.Port() != 0 && !a.Addr().IsUnspecified()
	}
	host, port, ok := strings.Cut(e, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 || host == "" || len(host) > 253 {
		return false
	}
	for _, label := range strings.Split(host, ".") {
		if !events.IsToken(strings.ToLower(label)) {
			return false
		}
	}
	return true
}
