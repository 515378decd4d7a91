// Package instance guards the copy of one version of a template in one region:
// whether it is wanted, what stands there for the region-bound resources, and
// whether the region has verified that it holds the bytes.
package instance

import (
	"fmt"
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// State is what decisions need to know of an instance.
type State struct {
	manifest events.Digest // wanted; empty when it is not
	verified events.Digest
	mapped   bool
	mapping  []events.Substitution
	waiting  string // code of the cause
	failed   bool
	cached   bool
	removing bool
	removed  bool
	attempt  int // 1 for the first since it was wanted
}

// Fold is the state after e.
func (s State) Fold(e events.InstanceEvent) State {
	switch e := e.(type) {
	case events.CopyWanted:
		return State{manifest: e.Manifest, cached: e.Cached, attempt: 1}
	case events.ResourcesMapped:
		s.mapped, s.mapping, s.waiting = true, e.Map, ""
	case events.CopyWaiting:
		s.waiting = e.Cause.Code
	case events.CopyVerified:
		s.verified, s.failed, s.waiting = e.Manifest, false, ""
	case events.CopyFailed:
		s.failed = true
	case events.CopyRetried:
		s.failed, s.waiting, s.verified, s.attempt = false, "", "", e.Attempt
	case events.CopyDamaged:
		s.verified = ""
	case events.CopyKept:
		s.cached = false
	case events.RemovalWanted:
		s.removing, s.manifest, s.verified = true, "", ""
	case events.CopyRemoved:
		return State{removed: true}
	}
	return s
}

// ID is the id of the instance: one for each template, version and region, so
// that asking twice makes nothing twice.
func ID(account events.AccountID, t events.TemplateID, version int, r events.RegionID) events.InstanceID {
	return events.InstanceID(events.DeriveID(account, "instance", fmt.Sprintf("%s/%d/%s", t, version, r)))
}

// Of names an instance's aggregate.
func Of(account events.AccountID, r events.RegionID, id events.InstanceID) events.Aggregate {
	return events.Aggregate{Account: account, Region: r, Kind: events.KindInstance, ID: string(id)}
}

// Ref addresses one instance; every command carries it.
type Ref struct {
	Region   events.RegionID   `json:"region"`
	Instance events.InstanceID `json:"instance"`
}

// Aggregate is the instance.
func (r Ref) Aggregate(a events.AccountID) events.Aggregate { return Of(a, r.Region, r.Instance) }

func (s State) wantedAt(r Ref) error {
	switch {
	case s.manifest == "" && !s.removing && !s.removed:
		return aggregates.RefuseAs(aggregates.NotFound, "instance-unknown", "%s has no instance %s", r.Region, r.Instance)
	case s.manifest == "":
		return aggregates.Refuse("copy-not-wanted", "instance %s is no longer wanted in %s", r.Instance, r.Region)
	}
	return nil
}

// Want asks the region to hold the version.
type Want struct {
	Ref
	events.CopyWanted
}

// Decide asks once; after a removal it may be asked again.
func (c Want) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	switch {
	case !c.Manifest.Valid():
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-manifest", "%q is not a manifest's digest", c.Manifest)
	case s.removing:
		return nil, aggregates.Refuse("removal-unfinished", "instance %s is still being removed from %s", c.Instance, c.Region).
			WithNext("wait for its removal, then ask again")
	case s.manifest == c.Manifest && (c.Cached || !s.cached):
		return nil, nil
	case s.manifest == c.Manifest:
		return events.CopyKept{}, nil
	case s.manifest != "":
		return nil, aggregates.Refuse("manifest-differs", "instance %s is wanted with another content", c.Instance)
	}
	return c.CopyWanted, nil
}

// StillWanted changes nothing: it is what a process asks before it takes
// something for an instance on the strength of an old event.
type StillWanted struct{ Ref }

// Decide refuses copy-not-wanted, or instance-unknown.
func (c StillWanted) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	return nil, s.wantedAt(c.Ref)
}

// Demand asks the region to hold the version because an environment is to be
// made from it there. It is Want, but says no where a copy cannot be waited for:
// it is verified already, or it has stopped and needs somebody.
type Demand struct {
	Ref
	events.CopyWanted
}

// Decide refuses copy-held where nothing is to be waited for, and copy-stopped
// where waiting would not end by itself.
func (c Demand) Decide(s State, f aggregates.Facts) (events.InstanceEvent, error) {
	switch {
	case s.verified != "" && s.verified == c.Manifest:
		return nil, aggregates.Refuse("copy-held", "%s has verified it", c.Region)
	case s.manifest != "" && s.manifest == c.Manifest && (s.failed || s.waiting != ""):
		return nil, aggregates.Refuse("copy-stopped", "the copy in %s has failed or waits for something", c.Region).
			WithNext("see to that copy first, then try again")
	}
	return Want(c).Decide(s, f)
}

// RecordMap fixes what stands in this region for each region-bound resource.
type RecordMap struct {
	Ref
	Map []events.Substitution `json:"map"`
}

// Decide records a map that differs: a version that takes the reference back has
// leases of the version before it.
func (c RecordMap) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	if err := s.wantedAt(c.Ref); err != nil {
		return nil, err
	}
	if s.mapped && slices.Equal(s.mapping, c.Map) {
		return nil, nil
	}
	return events.ResourcesMapped{Map: c.Map}, nil
}

// ReportWaiting says what the copy waits for; a person may have to do something.
type ReportWaiting struct {
	Ref
	Cause events.Cause `json:"cause"`
}

// Decide records a new cause.
func (c ReportWaiting) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	if err := s.wantedAt(c.Ref); err != nil {
		return nil, err
	}
	if s.waiting == c.Cause.Code {
		return nil, nil
	}
	return events.CopyWaiting{Cause: c.Cause}, nil
}

// ReportVerified is a region saying that it holds the bytes and has read them back.
type ReportVerified struct {
	Ref
	Manifest events.Digest `json:"manifest"`
	Location string        `json:"location"`
	Received int64         `json:"received"`
	Stored   int64         `json:"stored"`
}

// Decide believes the report when it is about what is wanted.
func (c ReportVerified) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	switch {
	case s.verified == c.Manifest && s.verified != "":
		return nil, nil
	case s.manifest == c.Manifest:
		return events.CopyVerified{Manifest: c.Manifest, Location: c.Location, Received: c.Received, Stored: c.Stored}, nil
	}
	if err := s.wantedAt(c.Ref); err != nil {
		return nil, err
	}
	return nil, aggregates.Refuse("manifest-differs", "instance %s is wanted with another content than was verified", c.Instance)
}

// ReportFailed says that the region does not get it and has stopped trying.
type ReportFailed struct {
	Ref
	Cause events.Cause `json:"cause"`
	// Attempt is the one that failed; 0 is whichever is under way.
	Attempt int `json:"attempt,omitempty"`
}

// Decide records the failure of a copy that is wanted and not there. What is
// told of an attempt that a retry has overtaken says nothing of the new one.
func (c ReportFailed) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	if err := s.wantedAt(c.Ref); err != nil {
		return nil, err
	}
	if s.failed || s.verified != "" {
		return nil, nil
	}
	if c.Attempt != 0 && c.Attempt != s.attempt {
		return nil, aggregates.Already("attempt %d is over, attempt %d is under way", c.Attempt, s.attempt)
	}
	return events.CopyFailed{Cause: c.Cause}, nil
}

// Retry asks for another try of a copy that failed, waits or is damaged.
type Retry struct {
	Ref
	Operation events.OperationID `json:"operation"`
}

// Decide starts another try where there is something to try.
func (c Retry) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	if err := s.wantedAt(c.Ref); err != nil {
		return nil, err
	}
	switch {
	case s.verified != "":
		return nil, aggregates.Already("%s has verified it", c.Region)
	case !s.failed && s.waiting == "":
		return nil, aggregates.Already("%s is still trying", c.Region)
	}
	return events.CopyRetried{Operation: c.Operation, Attempt: s.attempt + 1}, nil
}

// ReportDamaged says that a scrub found chunks that no longer match.
type ReportDamaged struct {
	Ref
	Chunks int `json:"chunks"`
}

// Decide takes "verified" back.
func (c ReportDamaged) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	if err := s.wantedAt(c.Ref); err != nil {
		return nil, err
	}
	if s.verified == "" {
		return nil, nil
	}
	return events.CopyDamaged{Chunks: c.Chunks}, nil
}

// WantRemoval asks the region to let go of it.
type WantRemoval struct {
	Ref
	Operation events.OperationID `json:"operation"`
}

// Decide asks once.
func (c WantRemoval) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	switch {
	case s.removing || s.removed:
		return nil, nil
	case s.manifest == "":
		return nil, s.wantedAt(c.Ref)
	}
	return events.RemovalWanted{Operation: c.Operation}, nil
}

// ReportRemoved says that nothing of it is left, or (Lost) that nobody can tell
// any more.
type ReportRemoved struct {
	Ref
	Lost bool `json:"lost,omitempty"`
}

// Decide records it after the removal was asked for.
func (c ReportRemoved) Decide(s State, _ aggregates.Facts) (events.InstanceEvent, error) {
	switch {
	case s.removing, c.Lost && s.manifest != "":
		return events.CopyRemoved{Lost: c.Lost}, nil
	case s.removed:
		return nil, nil
	}
	return nil, aggregates.Refuse("removal-not-wanted", "nobody asked to remove instance %s from %s", c.Instance, c.Region)
}
