package events

// KindInstance: the copy of one version of a template in one region.
const KindInstance Kind = "instance"

// InstanceEvent is a fact about an instance.
type InstanceEvent interface {
	Event
	ofInstance()
}

type inInstance struct{}

func (inInstance) ofInstance() {}

// CopyWanted: this region must come to hold the version's chunks.
type CopyWanted struct {
	inInstance
	Template  TemplateID    `json:"template"`
	Version   int           `json:"version"`
	Manifest  Digest        `json:"manifest"`
	Bytes     int64         `json:"bytes"`
	Resources []ResourceRef `json:"resources,omitempty"`
	Choices   []Choice      `json:"choices,omitempty"`
	Inherits  InstanceID    `json:"inherits,omitempty"` // the active instance here, whose leases this one takes over
	Cached    bool          `json:"cached,omitempty"`   // copied on demand: not wanted, evictable
	Operation OperationID   `json:"operation"`
}

// EventType is the wire name.
func (CopyWanted) EventType() Type { return "instance.copy-wanted" }

// ResourcesMapped: what stands in this region for each region-bound resource.
type ResourcesMapped struct {
	inInstance
	Map []Substitution `json:"map"`
}

// EventType is the wire name.
func (ResourcesMapped) EventType() Type { return "instance.resources-mapped" }

// CopyWaiting: the copy cannot go on until somebody does something.
type CopyWaiting struct {
	inInstance
	Cause Cause `json:"cause"`
}

// EventType is the wire name.
func (CopyWaiting) EventType() Type { return "instance.copy-waiting" }

// CopyVerified: the region holds every chunk and has read them back.
type CopyVerified struct {
	inInstance
	Manifest Digest `json:"manifest"`
	Location string `json:"location"` // the slot in the region's store
	Received int64  `json:"received"` // bytes that came from other regions
	Stored   int64  `json:"stored"`   // bytes that were new to the store
}

// EventType is the wire name.
func (CopyVerified) EventType() Type { return "instance.copy-verified" }

// CopyFailed: this region did not get it, and does not try again by itself.
type CopyFailed struct {
	inInstance
	Cause Cause `json:"cause"`
}

// EventType is the wire name.
func (CopyFailed) EventType() Type { return "instance.copy-failed" }

// CopyRetried: somebody asked for another try.
type CopyRetried struct {
	inInstance
	Operation OperationID `json:"operation"`
	Attempt   int         `json:"attempt"`
}

// EventType is the wire name.
func (CopyRetried) EventType() Type { return "instance.copy-retried" }

// CopyDamaged: a scrub found chunks that no longer match their digests.
type CopyDamaged struct {
	inInstance
	Chunks int `json:"chunks"`
}

// EventType is the wire name.
func (CopyDamaged) EventType() Type { return "instance.copy-damaged" }

// CopyKept: a cached copy is wanted from here on.
type CopyKept struct{ inInstance }

// EventType is the wire name.
func (CopyKept) EventType() Type { return "instance.copy-kept" }

// RemovalWanted: the region must no longer hold it.
type RemovalWanted struct {
	inInstance
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (RemovalWanted) EventType() Type { return "instance.removal-wanted" }

// CopyRemoved: the region's store has let go of it and its leases are released.
type CopyRemoved struct {
	inInstance
	Lost bool `json:"lost,omitempty"` // written off with its region
}

// EventType is the wire name.
func (CopyRemoved) EventType() Type { return "instance.copy-removed" }
