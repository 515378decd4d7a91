package projections

import (
	"fmt"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Catalogue answers: which templates are there, which versions have they, which
// region holds which version ([0032]-[0034]), and what does a reference mean
// (catalogue_where.go, catalogue_resolve.go)?
//
//	catalogue.template           <account> <number>                               → TemplateRow, deleted ones too
//	catalogue.template.number    <number> <account> <number>
//	catalogue.template.name      <account> <slug> <account> <number>              live ones
//	catalogue.template.spelling  <account> <folded slug or display> <account> <number>
//	catalogue.template.region    <account> <region> <account> <number>            live ones, by wanted region
//	catalogue.version            <number> <version>                               → VersionRow
//	catalogue.version.manifest   <account> <digest> <number> <version>
//	catalogue.placed-instance    <account> <number> <region> <version> <instance id> → InstanceRow, removed ones too
//	catalogue.place              <instance id>                                    → placeRow
//	catalogue.placed-instance.region  <region> <account> <key of the instance>         not removed
//	catalogue.placed-instance.slot    <account> <region> <slot> <key of the instance>
//	catalogue.map                <instance id>                                    → MapRow
//	catalogue.copy               <work id>                                        → copyRow
//
// Rows hold facts. What follows from the facts of several rows (which instance
// is active, behind or superseded) is derived when it is asked for, so that one
// event moves the reference in all regions at once.
type Catalogue struct{}

// TemplateRow is one reference and what it stands for.
type TemplateRow struct {
	Account   events.AccountID   `json:"account"`
	Number    events.TemplateID  `json:"number"`
	Name      string             `json:"name"` // slug
	Display   string             `json:"display"`
	Active    int                `json:"active_version"`             // 0: none yet
	Staged    int                `json:"staged_version,omitempty"`   // being saved or placed; for a new template version 1
	StagedBy  events.OperationID `json:"staged_operation,omitempty"` // the operation that stages it
	Latest    int                `json:"latest_version"`             // the highest there ever was
	Queue     []QueuedRow        `json:"queue,omitempty"`            // replacements that wait behind the staged one
	Regions   []events.RegionID  `json:"regions"`                    // wanted, sorted
	RegionsBy Evidence           `json:"regions_by"`                 // that says which are wanted
	Keep      int                `json:"keep"`                       // how many superseded versions stay
	Protected bool               `json:"protected"`
	Operation events.OperationID `json:"operation"` // that created it
	Created   Time               `json:"created_at"`
	Activated Time               `json:"activated_at,omitzero"`       // when the reference last moved
	DeletedBy events.OperationID `json:"deleted_operation,omitempty"` // that deletes it
	Deleted   Time               `json:"deleted_at,omitzero"`         // when the reference ceased to resolve
	Gone      Time               `json:"gone_at,omitzero"`            // when no region held anything of it any more
	Revision  uint64             `json:"revision"`                    // of the aggregate
}

// QueuedRow is a replacement that waits for its turn.
type QueuedRow struct {
	Operation events.OperationID  `json:"operation"`
	Source    events.Source       `json:"source"`
	Policy    events.SwitchPolicy `json:"policy"`
	Deadline  time.Time           `json:"deadline,omitzero"`
	Since     Time                `json:"since"`
}

// TemplateState is what can be done with a template now.
type TemplateState string

// The states of a template.
const (
	TemplateCreating  TemplateState = "creating"  // no version has been activated yet
	TemplateAvailable TemplateState = "available" // the reference means its active version
	TemplateReplacing TemplateState = "replacing" // available, and a further version is staged
	TemplateDeleting  TemplateState = "deleting"  // the reference no longer resolves; some region may still hold something
	TemplateDeleted   TemplateState = "deleted"   // and no region holds anything of it
)

// State is the one word of TemplateState that fits.
func (t TemplateRow) State() TemplateState {
	switch {
	case !t.Gone.IsZero():
		return TemplateDeleted
	case !t.Deleted.IsZero():
		return TemplateDeleting
	case t.Active == 0:
		return TemplateCreating
	case t.Staged != 0:
		return TemplateReplacing
	}
	return TemplateAvailable
}

func (t TemplateRow) live() bool { return t.Deleted.IsZero() }

// VersionState is where a version is on its way.
type VersionState string

// The states of a version.
const (
	VersionSaving     VersionState = "saving"     // its content is being fixed in the source's region
	VersionStaged     VersionState = "staged"     // its content is fixed; the reference does not mean it yet
	VersionActive     VersionState = "active"     // the reference means it
	VersionSuperseded VersionState = "superseded" // the reference meant it before; it is kept and can be pinned or gone back to
	VersionAbandoned  VersionState = "abandoned"  // it never became active and never will
	VersionRetired    VersionState = "retired"    // superseded and no longer kept
)

// VersionRow is one version of a template.
type VersionRow struct {
	Account    events.AccountID     `json:"account"`
	Template   events.TemplateID    `json:"template"`
	Version    int                  `json:"version"`
	State      VersionState         `json:"state"`
	Source     events.Source        `json:"source"` // what it was saved from
	Policy     events.SwitchPolicy  `json:"policy,omitzero"`
	Deadline   time.Time            `json:"deadline,omitzero"` // when it is given up if it still waits
	Manifest   events.Digest        `json:"manifest,omitempty"`
	Bytes      int64                `json:"bytes"` // of its disks, as machines see them
	Resources  []events.ResourceRef `json:"resources,omitempty"`
	Operation  events.OperationID   `json:"operation"` // that made it
	Created    Time                 `json:"created_at"`
	Saved      Time                 `json:"saved_at,omitzero"`
	Activated  Time                 `json:"activated_at,omitzero"`  // the last time
	Superseded Time                 `json:"superseded_at,omitzero"` // the last time
	Ended      Time                 `json:"ended_at,omitzero"`      // abandoned or retired
	Cause      *events.Cause        `json:"cause,omitempty"`        // why it was abandoned
}

// Condition is what an instance's own events say of it, beside the three facts.
type Condition string

// The conditions of an instance; usually there is none.
const (
	ConditionWaiting  Condition = "waiting"
	ConditionFailed   Condition = "failed"
	ConditionDamaged  Condition = "damaged"
	ConditionRemoving Condition = "removing"
	ConditionRemoved  Condition = "removed"
)

// InstanceRow is the copy of one version in one region. Wanted, observed and
// verified are three facts; none is inferred from another, and each names the
// event that says it.
type InstanceRow struct {
	ID       events.InstanceID `json:"instance_id"`
	Account  events.AccountID  `json:"account"`
	Template events.TemplateID `json:"template"`
	Version  int               `json:"version"`
	Region   events.RegionID   `json:"region"`
	Manifest events.Digest     `json:"manifest"`
	Bytes    int64             `json:"bytes"` // of the version's disks, as machines see them

	// Wanted: somebody asked that the region hold it, and nobody has asked for its
	// removal since. A copy that was made on demand (Cached) is not wanted.
	Wanted   bool     `json:"wanted"`
	WantedBy Evidence `json:"wanted_by"`
	// Observed: the region's agent has reported that it has begun to hold it
	// (work.started of its copy order) or that it holds it (instance.copy-verified),
	// and has not reported since that nothing came of it or is left of it (work.failed
	// or work.undone of the order, instance.copy-removed); nor was it written off.
	Observed   bool     `json:"observed"`
	ObservedBy Evidence `json:"observed_by,omitzero"`
	// Verified: the region's agent has read back every chunk and reported so
	// (instance.copy-verified), and no scrub has found damage since.
	Verified   bool     `json:"verified"`
	VerifiedBy Evidence `json:"verified_by,omitzero"`

	Condition Condition          `json:"condition,omitempty"`
	Cause     *events.Cause      `json:"cause,omitempty"`          // of waiting or failed
	Damaged   int                `json:"damaged_chunks,omitempty"` // found by the last scrub
	Cached    bool               `json:"cached,omitempty"`         // copied on demand; evictable
	Lost      bool               `json:"lost,omitempty"`           // written off with its region
	Mapped    bool               `json:"mapped"`                   // its map is recorded
	Inherits  events.InstanceID  `json:"inherits,omitempty"`       // the instance whose leases it takes over
	Slot      string             `json:"slot,omitempty"`           // in the region's store, as its agent names it
	Received  int64              `json:"received"`                 // bytes that came from other regions
	Stored    int64              `json:"stored"`                   // bytes that were new to the store
	Attempt   int                `json:"attempt"`                  // 1 for the first
	Operation events.OperationID `json:"operation"`                // that wanted it
	RemovedBy events.OperationID `json:"removed_operation,omitempty"`
	Created   Time               `json:"created_at"` // when it was wanted
	Held      Time               `json:"verified_at,omitzero"`
	Removed   Time               `json:"removed_at,omitzero"`
	Revision  uint64             `json:"revision"`
}

// MapRow is what stands in an instance's region for each region-bound resource.
type MapRow struct {
	Instance events.InstanceID     `json:"instance"`
	Map      []events.Substitution `json:"map"`
}

// placeRow says where an instance's row is: beside those of its template, so
// that asking where a template is reads one stretch of rows.
type placeRow struct {
	ID       events.InstanceID `json:"instance_id"`
	Account  events.AccountID  `json:"account"`
	Template events.TemplateID `json:"template"`
	Region   events.RegionID   `json:"region"`
	Version  int               `json:"version"`
}

func (p placeRow) key() Key {
	return Key{string(p.Account), string(p.Template), string(p.Region), Number(uint64(p.Version)), string(p.ID)}
}

// instanceKey gives the key of an instance's row, or one of no row if there is
// no such instance.
func instanceKey(r Reader, id string) (Key, error) {
	p, ok, err := instancePlaces.Get(r, id)
	if err != nil || !ok {
		return Key{id}, err
	}
	return p.key(), nil
}

// copyRow says which instance a copy order is for.
type copyRow struct {
	Work     events.WorkID     `json:"work"`
	Instance events.InstanceID `json:"instance"`
}

var (
	templateNumbers = index("number", func(t *TemplateRow, in *entries) { in.add(string(t.Number)) })
	templateNames   = index("name", func(t *TemplateRow, in *entries) {
		if t.live() {
			in.add(string(t.Account), t.Name)
		}
	})
	templateSpellings = index("spelling", func(t *TemplateRow, in *entries) {
		in.add(string(t.Account), foldSpelling(t.Name))
		in.add(string(t.Account), foldSpelling(t.Display))
	})
	templateRegions = index("region", func(t *TemplateRow, in *entries) {
		if !t.live() {
			return
		}
		for _, region := range t.Regions {
			in.add(string(t.Account), string(region))
		}
	})
	templates = NewTable("catalogue", "template", func(t TemplateRow) Key { return Key{string(t.Account), string(t.Number)} },
		templateNumbers, templateNames, templateSpellings, templateRegions)

	versionManifests = index("manifest", func(v *VersionRow, in *entries) {
		if v.Manifest != "" {
			in.add(string(v.Account), string(v.Manifest))
		}
	})
	versions = NewTable("catalogue", "version", func(v VersionRow) Key { return versionKey(string(v.Template), v.Version) },
		versionManifests)

	instancesRegion = index("region", func(i *InstanceRow, in *entries) {
		if i.Condition != ConditionRemoved {
			in.add(string(i.Region), string(i.Account))
		}
	})
	instancesSlot = index("slot", func(i *InstanceRow, in *entries) {
		in.add(string(i.Account), string(i.Region), i.slot())
	})
	instances = NewTable("catalogue", "placed-instance", func(i InstanceRow) Key {
		return placeRow{i.ID, i.Account, i.Template, i.Region, i.Version}.key()
	},
		instancesRegion, instancesSlot)
	instancePlaces = NewTable("catalogue", "place", func(p placeRow) Key { return Key{string(p.ID)} })

	instanceMaps = NewTable("catalogue", "map", func(m MapRow) Key { return Key{string(m.Instance)} })
	copies       = NewTable("catalogue", "copy", func(c copyRow) Key { return Key{string(c.Work)} })
)

func versionKey(template string, version int) Key { return Key{template, Number(uint64(version))} }

// Name is "catalogue".
func (Catalogue) Name() string { return "catalogue" }

// Shape of the rows.
func (Catalogue) Shape() int { return 3 }

// Tables of the catalogue.
func (Catalogue) Tables() []Described {
	return []Described{templates, versions, instances, instancePlaces, instanceMaps, copies}
}

// Apply folds the facts of templates and instances, and of the work that copies.
func (c Catalogue) Apply(w *Batch, r events.Record) error {
	switch fact := r.Event.(type) {
	case events.TemplateEvent:
		return c.template(w, r, fact)
	case events.InstanceEvent:
		return c.instance(w, r, fact)
	case events.WorkEvent:
		return c.work(w, r, fact)
	}
	return nil
}

func (Catalogue) template(w *Batch, r events.Record, fact events.TemplateEvent) error {
	number, at := r.Aggregate.ID, stored(r)
	if e, ok := fact.(events.TemplateCreated); ok {
		row := TemplateRow{Account: r.Aggregate.Account, Number: events.TemplateID(number), Name: e.Name, Display: e.Display,
			Staged: 1, StagedBy: e.Operation, Latest: 1, Regions: slices.Sorted(slices.Values(e.Regions)), RegionsBy: evidence(r),
			Keep: e.Keep, Operation: e.Operation, Created: at, Revision: r.Revision}
		if err := create(templates, w, r, row); err != nil {
			return err
		}
		return create(versions, w, r, VersionRow{Account: row.Account, Template: row.Number, Version: 1, State: VersionSaving,
			Source: e.Source, Operation: e.Operation, Created: at})
	}
	version := func(n int, edit func(*VersionRow)) error { return versions.Change(w, edit, versionKey(number, n)...) }
	var err error
	switch e := fact.(type) {
	case events.VersionSaved:
		err = version(e.Version, func(v *VersionRow) {
			v.State, v.Saved = VersionStaged, at
			v.Manifest, v.Bytes, v.Resources = e.Manifest, e.Bytes, e.Resources
		})
	case events.ReplacementStaged:
		err = versions.Put(w, VersionRow{Account: r.Aggregate.Account, Template: events.TemplateID(number), Version: e.Version,
			State: VersionSaving, Source: e.Source, Policy: e.Policy, Deadline: e.Deadline, Operation: e.Operation, Created: at})
	case events.VersionActivated:
		err = version(e.Version, func(v *VersionRow) { v.State, v.Activated = VersionActive, at })
		if err == nil && e.Replaces > 0 {
			err = version(e.Replaces, func(v *VersionRow) { v.State, v.Superseded = VersionSuperseded, at })
		}
	case events.VersionAbandoned:
		err = version(e.Version, func(v *VersionRow) { v.State, v.Ended, v.Cause = VersionAbandoned, at, &e.Cause })
	case events.VersionRetired:
		err = version(e.Version, func(v *VersionRow) { v.State, v.Ended = VersionRetired, at })
	}
	if err != nil {
		return err
	}
	var unknown error
	err = templates.Change(w, func(t *TemplateRow) {
		t.Revision = r.Revision
		unknown = t.fold(r, fact)
	}, string(r.Aggregate.Account), number)
	if unknown != nil {
		return unknown
	}
	return err
}

func (t *TemplateRow) fold(r events.Record, fact events.TemplateEvent) error {
	switch e := fact.(type) {
	case events.VersionSaved, events.VersionRetired:
	case events.ReplacementStaged:
		t.Staged, t.StagedBy, t.Latest = e.Version, e.Operation, e.Version
		if len(t.Queue) > 0 && t.Queue[0].Operation == e.Operation {
			t.Queue = t.Queue[1:]
		}
	case events.ReplacementQueued:
		t.Queue = append(t.Queue, QueuedRow{e.Operation, e.Source, e.Policy, e.Deadline, stored(r)})
	case events.ReplacementUnqueued:
		t.Queue = slices.DeleteFunc(t.Queue, func(q QueuedRow) bool { return q.Operation == e.Operation })
	case events.VersionActivated:
		t.Active, t.Activated = e.Version, stored(r)
		t.unstage(e.Version)
	case events.VersionAbandoned:
		t.unstage(e.Version)
	case events.RegionsChanged:
		t.Regions = slices.DeleteFunc(append(t.Regions, e.Add...), func(id events.RegionID) bool { return slices.Contains(e.Remove, id) })
		slices.Sort(t.Regions)
		t.Regions = slices.Compact(t.Regions)
		t.RegionsBy = evidence(r)
	case events.ProtectionSet:
		t.Protected = e.Protected
	case events.KeepSet:
		t.Keep = e.Keep
	case events.TemplateDeletionAccepted:
		t.Deleted, t.DeletedBy = stored(r), e.Operation
		t.Staged, t.StagedBy, t.Queue = 0, "", nil
	case events.TemplateDeleted:
		t.Gone = stored(r)
	default:
		return fmt.Errorf("the catalogue does not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
	}
	return nil
}

func (t *TemplateRow) unstage(version int) {
	if t.Staged == version {
		t.Staged, t.StagedBy = 0, ""
	}
}

func (Catalogue) instance(w *Batch, r events.Record, fact events.InstanceEvent) error {
	switch e := fact.(type) {
	case events.CopyWanted:
		place := placeRow{events.InstanceID(r.Aggregate.ID), r.Aggregate.Account, e.Template, r.Aggregate.Region, e.Version}
		if err := create(instancePlaces, w, r, place); err != nil {
			return err
		}
		return create(instances, w, r, InstanceRow{ID: events.InstanceID(r.Aggregate.ID), Account: r.Aggregate.Account, Region: r.Aggregate.Region,
			Template: e.Template, Version: e.Version, Manifest: e.Manifest, Bytes: e.Bytes, Wanted: !e.Cached, WantedBy: evidence(r),
			Cached: e.Cached, Inherits: e.Inherits, Attempt: 1, Operation: e.Operation, Created: stored(r), Revision: r.Revision})
	case events.ResourcesMapped:
		if err := replace(instanceMaps, w, MapRow{events.InstanceID(r.Aggregate.ID), e.Map}); err != nil {
			return err
		}
	case events.CopyRemoved:
		if err := instanceMaps.Delete(w, r.Aggregate.ID); err != nil {
			return err
		}
	}
	key, err := instanceKey(w, r.Aggregate.ID)
	if err != nil {
		return err
	}
	var unknown error
	err = instances.Change(w, func(i *InstanceRow) {
		i.Revision = r.Revision
		unknown = i.fold(r, fact)
	}, key...)
	if unknown != nil {
		return unknown
	}
	return err
}

func (i *InstanceRow) fold(r events.Record, fact events.InstanceEvent) error {
	say := evidence(r)
	switch e := fact.(type) {
	case events.ResourcesMapped:
		i.Mapped = true
		if i.Condition == ConditionWaiting {
			i.become("", nil)
		}
	case events.CopyWaiting:
		i.become(ConditionWaiting, &e.Cause)
	case events.CopyVerified:
		i.Observed, i.ObservedBy = true, say
		i.Verified, i.VerifiedBy, i.Held = true, say, stored(r)
		i.Slot, i.Received, i.Stored = e.Location, e.Received, e.Stored
		i.become("", nil)
	case events.CopyFailed:
		i.become(ConditionFailed, &e.Cause)
	case events.CopyRetried:
		i.Attempt = e.Attempt
		i.become("", nil)
	case events.CopyDamaged:
		i.Verified, i.VerifiedBy = false, say
		i.become(ConditionDamaged, nil)
		i.Damaged = e.Chunks
	case events.CopyKept:
		i.Wanted, i.WantedBy, i.Cached = true, say, false
	case events.RemovalWanted:
		i.Wanted, i.WantedBy, i.RemovedBy = false, say, e.Operation
		i.become(ConditionRemoving, nil)
	case events.CopyRemoved:
		deny(&i.Wanted, &i.WantedBy, say)
		deny(&i.Observed, &i.ObservedBy, say)
		deny(&i.Verified, &i.VerifiedBy, say)
		i.Mapped, i.Lost, i.Removed = false, e.Lost, stored(r)
		i.become(ConditionRemoved, nil)
	default:
		return fmt.Errorf("the catalogue does not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
	}
	return nil
}

// deny ends a fact; one that was not so keeps its evidence.
func deny(fact *bool, by *Evidence, say Evidence) {
	if *fact {
		*fact, *by = false, say
	}
}

func (i *InstanceRow) become(c Condition, why *events.Cause) {
	i.Condition, i.Cause, i.Damaged = c, why, 0
}

// work keeps Observed, which only the orders to copy can tell.
func (Catalogue) work(w *Batch, r events.Record, fact events.WorkEvent) error {
	observed := false
	switch e := fact.(type) {
	case events.WorkOrdered:
		if e.Kind != events.WorkCopy || e.Order.Instance == "" {
			return nil
		}
		return create(copies, w, r, copyRow{events.WorkID(r.Aggregate.ID), e.Order.Instance})
	case events.WorkStarted:
		observed = true
	case events.WorkFailed, events.WorkUndone, events.WorkWrittenOff:
	default:
		return nil
	}
	c, ok, err := copies.Get(w, r.Aggregate.ID)
	if err != nil || !ok {
		return err
	}
	// No aggregate guards that the instance of an order exists.
	key, err := instanceKey(w, string(c.Instance))
	if err != nil {
		return err
	}
	i, ok, err := instances.Get(w, key...)
	if err != nil || !ok || i.Observed == observed || i.Condition == ConditionRemoved || observed && i.Condition == ConditionRemoving {
		return err
	}
	if !observed && i.Verified && i.Condition != ConditionRemoving {
		return nil // an order before the one that brought it
	}
	i.Observed, i.ObservedBy = observed, evidence(r)
	return instances.Put(w, i)
}
