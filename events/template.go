package events

import "time"

// KindTemplate: one reference to versions 1..n. Account its owner's, no region;
// the id is the number.
const KindTemplate Kind = "template"

// TemplateEvent is a fact about a template.
type TemplateEvent interface {
	Event
	ofTemplate()
}

type inTemplate struct{}

func (inTemplate) ofTemplate() {}

// Source is the environment that a version is saved from.
type Source struct {
	Environment EnvironmentID `json:"environment"`
	Region      RegionID      `json:"region"`
}

// Choice is a value that a user named for a resource in a region.
type Choice struct {
	Region   RegionID `json:"region"`
	Resource string   `json:"resource"`
	Value    string   `json:"value"`
}

// SwitchPolicy says when a staged version may take the reference.
type SwitchPolicy struct {
	Kind   string `json:"kind"`             // "all", "quorum" or "available"
	Quorum int    `json:"quorum,omitempty"` // how many regions must have verified
}

// TemplateCreated: the reference exists and its first version is being saved.
type TemplateCreated struct {
	inTemplate
	Name      string      `json:"name"` // slug
	Display   string      `json:"display"`
	Source    Source      `json:"source"`
	Regions   []RegionID  `json:"regions"` // wanted, the source's among them
	Keep      int         `json:"keep"`    // how many superseded versions stay
	Choices   []Choice    `json:"choices,omitempty"`
	Operation OperationID `json:"operation"`
	Memory    bool        `json:"memory,omitempty"` // saved with the memory of running machines
}

// EventType is the wire name.
func (TemplateCreated) EventType() Type { return "template.created" }

// VersionSaved: the version's content is fixed.
type VersionSaved struct {
	inTemplate
	Version   int           `json:"version"`
	Manifest  Digest        `json:"manifest"`
	Bytes     int64         `json:"bytes"` // of its disks
	Resources []ResourceRef `json:"resources,omitempty"`
}

// EventType is the wire name.
func (VersionSaved) EventType() Type { return "template.version-saved" }

// ReplacementStaged: a further version is being saved and placed; the
// reference stays where it is.
type ReplacementStaged struct {
	inTemplate
	Version   int          `json:"version"`
	Source    Source       `json:"source"`
	Policy    SwitchPolicy `json:"policy"`
	Deadline  time.Time    `json:"deadline,omitzero"`
	Choices   []Choice     `json:"choices,omitempty"`
	Operation OperationID  `json:"operation"`
	Memory    bool         `json:"memory,omitempty"` // saved with the memory of running machines
}

// EventType is the wire name.
func (ReplacementStaged) EventType() Type { return "template.replacement-staged" }

// ReplacementQueued: one waits behind the replacement that is staged.
type ReplacementQueued struct {
	inTemplate
	Source    Source       `json:"source"`
	Policy    SwitchPolicy `json:"policy"`
	Deadline  time.Time    `json:"deadline,omitzero"`
	Choices   []Choice     `json:"choices,omitempty"`
	Operation OperationID  `json:"operation"`
	Memory    bool         `json:"memory,omitempty"` // saved with the memory of running machines
}

// EventType is the wire name.
func (ReplacementQueued) EventType() Type { return "template.replacement-queued" }

// ReplacementUnqueued: one that waited in the queue will not be staged.
type ReplacementUnqueued struct {
	inTemplate
	Operation OperationID `json:"operation"`
	Cause     Cause       `json:"cause"`
}

// EventType is the wire name.
func (ReplacementUnqueued) EventType() Type { return "template.replacement-unqueued" }

// VersionActivated: from here on the reference means this version, in every region.
type VersionActivated struct {
	inTemplate
	Version   int         `json:"version"`
	Replaces  int         `json:"replaces,omitempty"`
	Rollback  bool        `json:"rollback,omitempty"`
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (VersionActivated) EventType() Type { return "template.version-activated" }

// VersionAbandoned: the staged (or first) version will never be activated.
type VersionAbandoned struct {
	inTemplate
	Version   int         `json:"version"`
	Operation OperationID `json:"operation"`
	Cause     Cause       `json:"cause"`
}

// EventType is the wire name.
func (VersionAbandoned) EventType() Type { return "template.version-abandoned" }

// VersionRetired: a superseded version is no longer kept.
type VersionRetired struct {
	inTemplate
	Version int `json:"version"`
}

// EventType is the wire name.
func (VersionRetired) EventType() Type { return "template.version-retired" }

// RegionsChanged: the set of regions that should hold the template changed.
type RegionsChanged struct {
	inTemplate
	Add       []RegionID  `json:"add,omitempty"`
	Remove    []RegionID  `json:"remove,omitempty"`
	Choices   []Choice    `json:"choices,omitempty"`
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (RegionsChanged) EventType() Type { return "template.regions-changed" }

// ProtectionSet: whether the template may be deleted.
type ProtectionSet struct {
	inTemplate
	Protected bool `json:"protected"`
}

// EventType is the wire name.
func (ProtectionSet) EventType() Type { return "template.protection-set" }

// KeepSet: how many superseded versions stay from here on.
type KeepSet struct {
	inTemplate
	Keep int `json:"keep"`
}

// EventType is the wire name.
func (KeepSet) EventType() Type { return "template.keep-set" }

// TemplateDeletionAccepted: the reference no longer resolves; copies are on
// their way out.
type TemplateDeletionAccepted struct {
	inTemplate
	Operation OperationID `json:"operation"`
}

// EventType is the wire name.
func (TemplateDeletionAccepted) EventType() Type { return "template.deletion-accepted" }

// TemplateDeleted: no region holds anything of it any more.
type TemplateDeleted struct{ inTemplate }

// EventType is the wire name.
func (TemplateDeleted) EventType() Type { return "template.deleted" }
