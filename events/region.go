package events

// KindRegion: a place with machines, a chunk store, pools and an agent.
// Subject account None, region its own id.
const KindRegion Kind = "region"

// RegionEvent is a fact about a region.
type RegionEvent interface {
	Event
	ofRegion()
}

type inRegion struct{}

func (inRegion) ofRegion() {}

// RegionProfile is how people name, group and place a region.
type RegionProfile struct {
	Name      string   `json:"name"`              // "Sydney"
	Aliases   []string `json:"aliases,omitempty"` // other spellings, resolved at the door
	County    string   `json:"county,omitempty"`
	State     string   `json:"state,omitempty"`
	Country   string   `json:"country,omitempty"`
	Continent string   `json:"continent,omitempty"`
	Latitude  float64  `json:"latitude"`  // degrees, north positive
	Longitude float64  `json:"longitude"` // degrees, east positive
}

// RegionAdded: the region exists and may be asked to hold things.
type RegionAdded struct {
	inRegion
	Region  RegionID      `json:"region"`
	Profile RegionProfile `json:"profile"`
}

// EventType is the wire name.
func (RegionAdded) EventType() Type { return "region.added" }

// EpochStarted: an agent owns the region from here on; orders of lower epochs
// are refused by the drivers.
type EpochStarted struct {
	inRegion
	Epoch    int    `json:"epoch"`
	Agent    string `json:"agent"`    // the agent id in the data directory
	Transfer string `json:"transfer"` // where other regions pull chunks: host:port
	HTTP     string `json:"http"`     // where people ask this region: host:port
}

// EventType is the wire name.
func (EpochStarted) EventType() Type { return "region.epoch-started" }

// AgentReplaced: an administrator let another agent take the region over.
type AgentReplaced struct {
	inRegion
	Agent string `json:"agent"` // the agent that may start the next epoch
}

// EventType is the wire name.
func (AgentReplaced) EventType() Type { return "region.agent-replaced" }

// RegionDraining: nothing new is placed here, and what is here is to leave.
type RegionDraining struct {
	inRegion
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (RegionDraining) EventType() Type { return "region.draining" }

// RegionRetired: the region is gone for good; with Lost, what it held is
// written off rather than removed.
type RegionRetired struct {
	inRegion
	Lost      bool        `json:"lost"`
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (RegionRetired) EventType() Type { return "region.retired" }
