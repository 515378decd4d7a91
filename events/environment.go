package events

import "time"

// KindEnvironment: a virtual data center in one region, owned by one account.
const KindEnvironment Kind = "environment"

// EnvironmentEvent is a fact about an environment.
type EnvironmentEvent interface {
	Event
	ofEnvironment()
}

type inEnvironment struct{}

func (inEnvironment) ofEnvironment() {}

// EnvironmentDeclared: the environment is wanted; its disks are on their way.
type EnvironmentDeclared struct {
	inEnvironment
	Name      string        `json:"name"` // slug
	Display   string        `json:"display"`
	Graph     Digest        `json:"graph"` // the document as declared
	Operation OperationID   `json:"operation"`
	Origin    *TemplateRef  `json:"origin,omitempty"` // what it was instantiated from
	Until     time.Time     `json:"until,omitzero"`   // when an unfinished upload is given up
	Disks     []DiskWanted  `json:"disks,omitempty"`
	Resources []ResourceRef `json:"resources,omitempty"`
	Networks  int           `json:"networks,omitempty"` // how many it has; 0 in events of before networks were made
	Machines  int           `json:"machines,omitempty"` // the same of machines
}

// EventType is the wire name.
func (EnvironmentDeclared) EventType() Type { return "environment.declared" }

// DiskWanted is one disk that an environment consists of.
type DiskWanted struct {
	Name  string `json:"name"` // "<node>/<item>"
	Bytes int64  `json:"bytes"`
}

// ResourceRef is one region-bound resource of a graph, as pools and maps need
// to know it.
type ResourceRef struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Value   string `json:"value,omitempty"` // what the source has
	LeansOn string `json:"leans_on,omitempty"`
}

// MaxResources is the most region-bound resources that one graph may have, so
// that a map always fits an event.
const MaxResources = 250

// TemplateRef is one version of one template, and the instance of it that the
// environment's region holds or is made to hold.
type TemplateRef struct {
	Template TemplateID `json:"template"`
	Version  int        `json:"version"`
	Manifest Digest     `json:"manifest"`
	Bytes    int64      `json:"bytes"`
	Instance InstanceID `json:"instance"`
	Copy     bool       `json:"copy,omitempty"` // the region does not hold it yet; somebody agreed to the copy
}

// EnvironmentMapped: the environment's region-bound resources have their values.
type EnvironmentMapped struct {
	inEnvironment
	Map []Substitution `json:"map"`
}

// EventType is the wire name.
func (EnvironmentMapped) EventType() Type { return "environment.mapped" }

// EnvironmentCreated: its disks are in the region; it can be used and saved.
type EnvironmentCreated struct {
	inEnvironment
	Graph Digest `json:"graph"` // the document with the disks' digests
}

// EventType is the wire name.
func (EnvironmentCreated) EventType() Type { return "environment.created" }

// EnvironmentFailed: it could not be made; what there was of it is undone.
type EnvironmentFailed struct {
	inEnvironment
	Cause Cause `json:"cause"`
}

// EventType is the wire name.
func (EnvironmentFailed) EventType() Type { return "environment.failed" }

// EnvironmentDeletionAccepted: it is on its way out.
type EnvironmentDeletionAccepted struct {
	inEnvironment
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (EnvironmentDeletionAccepted) EventType() Type { return "environment.deletion-accepted" }

// EnvironmentDeleted: nothing of it is left in the region.
type EnvironmentDeleted struct{ inEnvironment }

// EventType is the wire name.
func (EnvironmentDeleted) EventType() Type { return "environment.deleted" }

// Cause says why something did not work, for a person: what, where, why, what next.
type Cause struct {
	Code string `json:"code"` // stable
	Text string `json:"text"`
	Next string `json:"next,omitempty"` // what to do about it
}
