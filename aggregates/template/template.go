// Package template guards one reference and its versions: which version the
// reference means, which one is staged to follow, which regions should hold
// them. What a region really holds is the instances' business.
package template

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

type stage int

const (
	saving stage = iota + 1
	saved
	active
	superseded
	abandoned
	retired
)

type version struct {
	stage     stage
	operation events.OperationID
	policy    events.SwitchPolicy
	deadline  time.Time
	left      int // superseded by which switch of the reference
}

// State is what decisions need to know of a template.
type State struct {
	name      string
	operation events.OperationID // that created it
	versions  []version          // versions[i] is version i+1
	active    int
	switches  int // how often the reference has moved
	staged    int
	queue     []events.ReplacementQueued
	regions   []events.RegionID
	keep      int
	protected bool
	deleting  events.OperationID
	deleted   bool
}

// Fold is the state after e.
func (s State) Fold(e events.TemplateEvent) State {
	switch e := e.(type) {
	case events.TemplateCreated:
		s.name, s.operation, s.regions, s.keep = e.Name, e.Operation, e.Regions, e.Keep
		s.versions = []version{{stage: saving, operation: e.Operation}}
		s.staged = 1
	case events.VersionSaved:
		s.set(e.Version, saved)
	case events.ReplacementStaged:
		s.versions = append(slices.Clone(s.versions), version{stage: saving, operation: e.Operation, policy: e.Policy, deadline: e.Deadline})
		s.staged = e.Version
		s.unqueue(e.Operation)
	case events.ReplacementQueued:
		s.queue = append(slices.Clone(s.queue), e)
	case events.ReplacementUnqueued:
		s.unqueue(e.Operation)
	case events.VersionActivated:
		s.switches++
		if e.Replaces > 0 {
			s.set(e.Replaces, superseded)
			s.versions[e.Replaces-1].left = s.switches
		}
		s.set(e.Version, active)
		s.active = e.Version
		if s.staged == e.Version {
			s.staged = 0
		}
	case events.VersionAbandoned:
		s.set(e.Version, abandoned)
		if s.staged == e.Version {
			s.staged = 0
		}
	case events.VersionRetired:
		s.set(e.Version, retired)
	case events.RegionsChanged:
		s.regions = changed(s.regions, e.Add, e.Remove)
	case events.ProtectionSet:
		s.protected = e.Protected
	case events.KeepSet:
		s.keep = e.Keep
	case events.TemplateDeletionAccepted:
		s.deleting, s.staged, s.queue = e.Operation, 0, nil
	case events.TemplateDeleted:
		s.deleted = true
	}
	return s
}

func (s *State) set(v int, to stage) {
	s.versions = slices.Clone(s.versions)
	s.versions[v-1].stage = to
}

func (s *State) unqueue(op events.OperationID) {
	s.queue = slices.DeleteFunc(slices.Clone(s.queue), func(q events.ReplacementQueued) bool { return q.Operation == op })
}

func (s State) stage(v int) stage {
	if v < 1 || v > len(s.versions) {
		return 0
	}
	return s.versions[v-1].stage
}

// live refuses what makes no sense for a template that is not or no longer there.
func (s State) live(id events.TemplateID) error {
	switch {
	case len(s.versions) == 0:
		return aggregates.RefuseAs(aggregates.NotFound, "template-unknown", "there is no template %s", id)
	case s.deleting != "":
		return aggregates.Refuse("template-deleted", "template %s is deleted", id)
	}
	return nil
}

func changed(have, add, remove []events.RegionID) []events.RegionID {
	var out []events.RegionID
	for _, r := range append(slices.Clone(have), add...) {
		if !slices.Contains(remove, r) && !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	slices.Sort(out)
	return out
}

// Of names a template's aggregate.
func Of(account events.AccountID, id events.TemplateID) events.Aggregate {
	return events.Aggregate{Account: account, Region: events.None, Kind: events.KindTemplate, ID: string(id)}
}

// Create makes the reference; its first version is then saved from the source.
type Create struct {
	Template  events.TemplateID  `json:"template"`
	Name      string             `json:"name"`
	Display   string             `json:"display"`
	Source    events.Source      `json:"source"`
	Regions   []events.RegionID  `json:"regions"`
	Keep      int                `json:"keep"`
	Choices   []events.Choice    `json:"choices,omitempty"`
	Operation events.OperationID `json:"operation"`
	Memory    bool               `json:"memory,omitempty"` // with the memory of running machines
}

// Aggregate is the template to be.
func (c Create) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide creates it unless it exists.
func (c Create) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	switch {
	case len(s.versions) > 0 && s.operation == c.Operation:
		return nil, nil
	case len(s.versions) > 0:
		return nil, aggregates.Refuse("template-exists", "template %s exists already", c.Template)
	}
	if err := cmp.Or(checkKeep(c.Keep), checkRegions(append(slices.Clone(c.Regions), c.Source.Region))); err != nil {
		return nil, err
	}
	regions := changed(c.Regions, []events.RegionID{c.Source.Region}, nil)
	return events.TemplateCreated{Name: c.Name, Display: c.Display, Source: c.Source, Regions: regions,
		Keep: c.Keep, Choices: c.Choices, Operation: c.Operation, Memory: c.Memory}, nil
}

func checkRegions(regions []events.RegionID) error {
	for _, r := range regions {
		if !events.IsToken(string(r)) {
			return aggregates.RefuseAs(aggregates.Invalid, "bad-region", "%q is not a region's id", r)
		}
	}
	return nil
}

// RecordSaved fixes a version's content.
type RecordSaved struct {
	Template  events.TemplateID    `json:"template"`
	Version   int                  `json:"version"`
	Manifest  events.Digest        `json:"manifest"`
	Bytes     int64                `json:"bytes"`
	Resources []events.ResourceRef `json:"resources,omitempty"`
}

// Aggregate is the version's template.
func (c RecordSaved) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide records the content once; a saved version never changes.
func (c RecordSaved) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	switch s.stage(c.Version) {
	case saving:
		return events.VersionSaved{Version: c.Version, Manifest: c.Manifest, Bytes: c.Bytes, Resources: c.Resources}, nil
	case saved, active, superseded:
		return nil, nil
	default:
		return nil, aggregates.Refuse("version-not-wanted", "version %d of template %s is not being saved", c.Version, c.Template)
	}
}

// Replace asks for a further version, saved from this or another environment.
// One that comes while another is under way queues behind it.
type Replace struct {
	Template  events.TemplateID   `json:"template"`
	Source    events.Source       `json:"source"`
	Policy    events.SwitchPolicy `json:"policy"`
	Deadline  time.Time           `json:"deadline,omitzero"`
	Choices   []events.Choice     `json:"choices,omitempty"`
	Operation events.OperationID  `json:"operation"`
	Memory    bool                `json:"memory,omitempty"` // with the memory of running machines
}

// Aggregate is the template to be replaced.
func (c Replace) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide stages the replacement, or queues it.
func (c Replace) Decide(s State, f aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	for _, q := range s.queue {
		if q.Operation == c.Operation {
			return nil, nil
		}
	}
	for _, v := range s.versions {
		if v.operation == c.Operation {
			return nil, nil
		}
	}
	switch {
	case !slices.Contains([]string{"all", "quorum", "available"}, c.Policy.Kind):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-policy", "%q is not a switch policy: all, quorum=n or available", c.Policy.Kind)
	case c.Policy.Kind == "quorum" && (c.Policy.Quorum < 1 || c.Policy.Quorum > len(s.regions)):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-policy", "a quorum of %d cannot be had: template %s is wanted in %s", c.Policy.Quorum, c.Template, count(len(s.regions), "region")).
			WithNext("name a quorum from 1 to %d, or have more regions hold the template first", len(s.regions))
	case !c.Deadline.IsZero() && !c.Deadline.After(f.Now):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-deadline", "the deadline %s has passed", c.Deadline.Format(time.RFC3339))
	}
	if s.staged != 0 || len(s.queue) > 0 {
		return events.ReplacementQueued{Source: c.Source, Policy: c.Policy, Deadline: c.Deadline, Choices: c.Choices, Operation: c.Operation, Memory: c.Memory}, nil
	}
	return events.ReplacementStaged{Version: len(s.versions) + 1, Source: c.Source, Policy: c.Policy,
		Deadline: c.Deadline, Choices: c.Choices, Operation: c.Operation, Memory: c.Memory}, nil
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// StageNext takes the next replacement out of the queue.
type StageNext struct {
	Template events.TemplateID `json:"template"`
}

// Aggregate is the template with the queue.
func (c StageNext) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide stages the first in the queue when nothing else is staged; one whose
// deadline has passed meanwhile leaves the queue instead.
func (c StageNext) Decide(s State, f aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	if s.staged != 0 || len(s.queue) == 0 {
		return nil, nil
	}
	q := s.queue[0]
	if overdue(q.Deadline, f.Now) {
		return events.ReplacementUnqueued{Operation: q.Operation, Cause: deadlinePassed(q.Deadline)}, nil
	}
	return events.ReplacementStaged{Version: len(s.versions) + 1, Source: q.Source, Policy: q.Policy,
		Deadline: q.Deadline, Choices: q.Choices, Operation: q.Operation, Memory: q.Memory}, nil
}

// Unqueue takes a replacement out of the queue that it waits in.
type Unqueue struct {
	Template  events.TemplateID  `json:"template"`
	Operation events.OperationID `json:"operation"` // the replacement's
	Cause     events.Cause       `json:"cause"`
}

// Aggregate is the template with the queue.
func (c Unqueue) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide takes it out; one that was staged meanwhile is Abandon's business.
func (c Unqueue) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	for _, q := range s.queue {
		if q.Operation == c.Operation {
			return events.ReplacementUnqueued{Operation: c.Operation, Cause: c.Cause}, nil
		}
	}
	return nil, aggregates.Already("no replacement of operation %s waits in the queue", c.Operation)
}

// Expire gives up a replacement, staged or queued, whose deadline has passed.
type Expire struct {
	Template  events.TemplateID  `json:"template"`
	Operation events.OperationID `json:"operation"` // the replacement's
}

// Aggregate is the template to be replaced.
func (c Expire) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide refuses not-due before the deadline, and without one.
func (c Expire) Decide(s State, f aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	for _, q := range s.queue {
		switch {
		case q.Operation != c.Operation:
		case !overdue(q.Deadline, f.Now):
			return nil, notDue(q.Deadline)
		default:
			return events.ReplacementUnqueued{Operation: c.Operation, Cause: deadlinePassed(q.Deadline)}, nil
		}
	}
	if s.staged == 0 || s.versions[s.staged-1].operation != c.Operation {
		return nil, aggregates.Already("no replacement of operation %s is under way", c.Operation)
	}
	v := s.versions[s.staged-1]
	if !overdue(v.deadline, f.Now) {
		return nil, notDue(v.deadline)
	}
	return events.VersionAbandoned{Version: s.staged, Operation: c.Operation, Cause: deadlinePassed(v.deadline)}, nil
}

func overdue(deadline, now time.Time) bool { return !deadline.IsZero() && !now.Before(deadline) }

func deadlinePassed(t time.Time) events.Cause {
	return events.Cause{Code: "deadline-passed", Text: "it was not complete by " + t.Format(time.RFC3339), Next: "replace again, with a later deadline or another policy"}
}

func notDue(t time.Time) error {
	if t.IsZero() {
		return aggregates.Refuse("not-due", "it has no deadline")
	}
	return aggregates.Refuse("not-due", "it has time until %s", t.Format(time.RFC3339))
}

// Activate moves the reference to a version that enough regions have verified.
type Activate struct {
	Template events.TemplateID `json:"template"`
	Version  int               `json:"version"`
	Verified []events.RegionID `json:"verified"` // the regions that hold it, verified
}

// Aggregate is the version's template.
func (c Activate) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide moves the reference by the one event that does so.
func (c Activate) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	switch st := s.stage(c.Version); {
	case st == active || st == superseded:
		return nil, nil
	case st != saved || s.staged != c.Version:
		return nil, aggregates.Refuse("version-not-staged", "version %d of template %s is not staged", c.Version, c.Template)
	}
	v := s.versions[c.Version-1]
	if missing := s.missing(v.policy, c.Verified); s.active != 0 && len(missing) > 0 {
		return nil, aggregates.Refuse("not-verified-everywhere", "version %d waits for %v", c.Version, missing)
	}
	if len(c.Verified) == 0 {
		return nil, aggregates.Refuse("not-verified-anywhere", "no region has verified version %d", c.Version)
	}
	return events.VersionActivated{Version: c.Version, Replaces: s.active, Operation: v.operation}, nil
}

// missing lists the regions that the policy still waits for.
func (s State) missing(p events.SwitchPolicy, verified []events.RegionID) []events.RegionID {
	var missing []events.RegionID
	for _, r := range s.regions {
		if !slices.Contains(verified, r) {
			missing = append(missing, r)
		}
	}
	have := len(s.regions) - len(missing)
	switch {
	case p.Kind == "quorum" && have >= min(p.Quorum, len(s.regions)), // regions may have left since
		p.Kind == "available" && have >= 1:
		return nil
	}
	return missing
}

// Abandon gives the staged version up; the reference stays where it is.
type Abandon struct {
	Template  events.TemplateID  `json:"template"`
	Version   int                `json:"version"`
	Operation events.OperationID `json:"operation"` // on whose behalf
	Cause     events.Cause       `json:"cause"`
}

// Aggregate is the version's template.
func (c Abandon) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide abandons a version that is not yet active. A deletion has abandoned it
// with everything else.
func (c Abandon) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if s.deleting != "" {
		return nil, aggregates.Already("template %s is deleted", c.Template)
	}
	switch s.stage(c.Version) {
	case saving, saved:
		return events.VersionAbandoned{Version: c.Version, Operation: c.Operation, Cause: c.Cause}, nil
	case abandoned, retired:
		return nil, nil
	}
	return nil, aggregates.Refuse("version-not-staged", "version %d of template %s is not staged", c.Version, c.Template)
}

// SetRegions changes the set of regions that should hold the template: adds and
// removes, never "the whole list", so that two writers do not undo each other.
type SetRegions struct {
	Template  events.TemplateID  `json:"template"`
	Add       []events.RegionID  `json:"add,omitempty"`
	Remove    []events.RegionID  `json:"remove,omitempty"`
	Choices   []events.Choice    `json:"choices,omitempty"`
	Operation events.OperationID `json:"operation"`
}

// Aggregate is the template.
func (c SetRegions) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide records what really changes. The last region is not taken away here:
// that is a deletion, and is asked for as one.
func (c SetRegions) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	if err := checkRegions(append(slices.Clone(c.Add), c.Remove...)); err != nil {
		return nil, err
	}
	for _, r := range c.Add {
		if slices.Contains(c.Remove, r) {
			return nil, aggregates.RefuseAs(aggregates.Invalid, "bad-region", "%s is to be added and removed at once", r)
		}
	}
	e := events.RegionsChanged{Choices: c.Choices, Operation: c.Operation}
	for _, r := range c.Add {
		if !slices.Contains(s.regions, r) && !slices.Contains(e.Add, r) {
			e.Add = append(e.Add, r)
		}
	}
	for _, r := range c.Remove {
		if slices.Contains(s.regions, r) && !slices.Contains(e.Remove, r) {
			e.Remove = append(e.Remove, r)
		}
	}
	switch {
	case len(e.Add) == 0 && len(e.Remove) == 0:
		return nil, aggregates.Already("template %s is wanted in exactly these regions: %v", c.Template, s.regions)
	case len(changed(s.regions, e.Add, e.Remove)) == 0:
		return nil, aggregates.RefuseAs(aggregates.Confirmation, "would-delete", "no region would be left: that deletes template %s", c.Template).
			WithNext("confirm the deletion (--yes)")
	}
	return e, nil
}

// Protect says whether the template may be deleted.
type Protect struct {
	Template  events.TemplateID `json:"template"`
	Protected bool              `json:"protected"`
}

// Aggregate is the template.
func (c Protect) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide sets the protection.
func (c Protect) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	if s.protected == c.Protected {
		return nil, aggregates.Already("the protection of template %s is already so", c.Template)
	}
	return events.ProtectionSet{Protected: c.Protected}, nil
}

// Delete takes the reference away and with it every copy.
type Delete struct {
	Template  events.TemplateID  `json:"template"`
	Operation events.OperationID `json:"operation"`
}

// Aggregate is the template.
func (c Delete) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide accepts the deletion of a template that is not protected. One whose
// creation failed has nothing to protect.
func (c Delete) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	switch {
	case len(s.versions) == 0:
		return nil, s.live(c.Template)
	case s.deleting != "":
		return nil, aggregates.Already("template %s is deleted", c.Template)
	case s.protected && s.stage(1) != abandoned:
		return nil, aggregates.Refuse("template-protected", "template %s is protected against deletion", c.Template).
			WithNext("take the protection off first")
	}
	return events.TemplateDeletionAccepted{Operation: c.Operation}, nil
}

// RecordDeleted says that no region holds anything of it any more.
type RecordDeleted struct {
	Template events.TemplateID `json:"template"`
}

// Aggregate is the template.
func (c RecordDeleted) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide records it once, after the deletion was accepted.
func (c RecordDeleted) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	switch {
	case s.deleted:
		return nil, nil
	case s.deleting == "":
		return nil, aggregates.Refuse("template-not-deleted", "nobody asked to delete template %s", c.Template)
	}
	return events.TemplateDeleted{}, nil
}
