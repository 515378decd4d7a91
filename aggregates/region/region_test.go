package region_test

import (
	"math"
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/events"
)

var (
	profile  = events.RegionProfile{Name: "Beijing", Aliases: []string{"peking"}, Country: "China", Continent: "Asia", Latitude: 39.9, Longitude: 116.4}
	added    = events.RegionAdded{Region: "beijing", Profile: profile}
	first    = events.EpochStarted{Epoch: 1, Agent: "a1", Transfer: "127.0.0.1:7001", HTTP: "bj.example:7080"}
	replaced = events.AgentReplaced{Agent: "a2"}
	draining = events.RegionDraining{Operation: "op1"}
	retired  = events.RegionRetired{Operation: "op2"}
	lost     = events.RegionRetired{Lost: true, Operation: "op3"}
)

func facts(t *testing.T, history ...events.RegionEvent) given.Case[State, events.RegionEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

func start(agent string) StartEpoch {
	return StartEpoch{Region: "beijing", Agent: agent, Transfer: "127.0.0.1:7001", HTTP: "bj.example:7080"}
}

func TestRegionsAreNoAccounts(t *testing.T) {
	for _, c := range []aggregates.Command[State, events.RegionEvent]{
		Add{Region: "beijing"}, start("a1"), Takeover{Region: "beijing"}, Drain{Region: "beijing"}, Retire{Region: "beijing"},
	} {
		if got := c.Aggregate("acme").Subject(); got != "tombolo.events._.beijing.region.beijing" {
			t.Errorf("%T: %s", c, got)
		}
	}
}

func TestAdd(t *testing.T) {
	add := Add{Region: "beijing", Profile: profile}
	facts(t).When(add).Then(added)
	facts(t, added).When(add).Nothing()
	elsewhere := add
	elsewhere.Profile.Latitude = 40
	facts(t, added).When(elsewhere).Refused("region-exists")
	facts(t, added, draining, retired).When(add).Refused("region-retired")
}

func TestAddRefusesWhatIsWrong(t *testing.T) {
	for what, spoil := range map[string]func(*Add){
		"id":            func(c *Add) { c.Region = "Bei Jing" },
		"no region":     func(c *Add) { c.Region = events.None },
		"name":          func(c *Add) { c.Profile.Name = " " },
		"north":         func(c *Add) { c.Profile.Latitude = 90.1 },
		"south":         func(c *Add) { c.Profile.Latitude = -90.1 },
		"east":          func(c *Add) { c.Profile.Longitude = 180.1 },
		"west":          func(c *Add) { c.Profile.Longitude = -180.1 },
		"nowhere":       func(c *Add) { c.Profile.Latitude = math.NaN() },
		"infinity":      func(c *Add) { c.Profile.Longitude = math.Inf(1) },
		"alias":         func(c *Add) { c.Profile.Aliases = []string{"Pe.king"} },
		"alias twice":   func(c *Add) { c.Profile.Aliases = []string{"peking", "peking"} },
		"alias is self": func(c *Add) { c.Profile.Aliases = []string{"beijing"} },
	} {
		t.Run(what, func(t *testing.T) {
			c := Add{Region: "beijing", Profile: profile}
			spoil(&c)
			facts(t).When(c).Refused("region-invalid")
		})
	}
	poles := Add{Region: "pole", Profile: events.RegionProfile{Name: "Pole", Latitude: -90, Longitude: 180}}
	facts(t).When(poles).Then(events.RegionAdded{Region: "pole", Profile: poles.Profile})
}

func TestEachStartOfTheSameAgentIsAnEpoch(t *testing.T) {
	second := first
	second.Epoch = 2
	facts(t, added).When(start("a1")).Then(first)
	facts(t, added, first).When(start("a1")).Then(second)
	facts(t, added, first, draining).When(start("a1")).Then(second) // it has to let go of things
	facts(t, added, first).When(start("a2")).Refused("region-owned-by-another-agent")
	facts(t).When(start("a1")).Refused("region-unknown")
	facts(t, added, first, draining, retired).When(start("a1")).Refused("region-retired")
	facts(t, added).When(start("A 1")).Refused("agent-invalid")
	for _, bad := range []string{"", "host", ":7001", "host:", "host:0", "host:65536", "0.0.0.0:7001", "::1:7001", "ho st:1", "host:7001/x"} {
		c := start("a1")
		c.Transfer = bad
		facts(t, added).When(c).Refused("endpoint-invalid")
		c = start("a1")
		c.HTTP = bad
		facts(t, added).When(c).Refused("endpoint-invalid")
	}
	six := start("a1")
	six.HTTP = "[::1]:7080"
	facts(t, added).When(six).Then(events.EpochStarted{Epoch: 1, Agent: "a1", Transfer: "127.0.0.1:7001", HTTP: "[::1]:7080"})
}

func TestTakeover(t *testing.T) {
	takeover := Takeover{Region: "beijing", Agent: "a2"}
	facts(t, added, first).When(takeover).Then(replaced)
	facts(t, added, first, replaced).When(takeover).Nothing()
	facts(t, added, first).When(Takeover{Region: "beijing", Agent: "a1"}).Nothing()
	// From here on the new agent may come, and the old one may not come back.
	c := facts(t, added, first, replaced)
	c.When(start("a1")).Refused("region-owned-by-another-agent")
	c.When(start("a2")).Then(events.EpochStarted{Epoch: 2, Agent: "a2", Transfer: "127.0.0.1:7001", HTTP: "bj.example:7080"})
	if c.State().Epoch() != 1 || c.State().Agent() != "a2" {
		t.Errorf("epoch %d, agent %s", c.State().Epoch(), c.State().Agent())
	}
	facts(t).When(takeover).Refused("region-unknown")
	facts(t, added, draining, retired).When(takeover).Refused("region-retired")
	facts(t, added).When(Takeover{Region: "beijing"}).Refused("agent-invalid")
}

func TestDrain(t *testing.T) {
	drain := Drain{Region: "beijing", Operation: "op1"}
	facts(t, added).When(drain).Then(draining)
	facts(t, added, draining).When(drain).Nothing()
	facts(t).When(drain).Refused("region-unknown")
	facts(t, added, lost).When(drain).Refused("region-retired")
}

func TestRetire(t *testing.T) {
	retire := Retire{Region: "beijing", Operation: "op2"}
	facts(t, added, draining).When(retire).Then(retired)
	facts(t, added, draining, retired).When(retire).Nothing()
	facts(t, added).When(retire).Refused("region-not-draining")
	facts(t, added, draining).When(Retire{Region: "beijing", Holds: 3, Operation: "op2"}).Refused("region-not-empty")
	facts(t).When(retire).Refused("region-unknown")

	writeOff := Retire{Region: "beijing", Lost: true, Holds: 3, Operation: "op3"}
	facts(t, added).When(writeOff).Then(lost)
	facts(t, added, draining, retired).When(writeOff).Then(lost)
	facts(t, added, lost).When(writeOff).Nothing()
	facts(t, added, lost).When(retire).Nothing()
	facts(t).When(writeOff).Refused("region-unknown")
}
