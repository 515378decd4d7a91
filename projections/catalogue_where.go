package projections

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/tombolo-vdc/tombolo/events"
)

// InstanceState is the one word for an instance. It follows from the instance's
// facts and from what its template's reference means.
type InstanceState string

// The words, in the order in which they are tried: the first that fits is it.
// Ready, staged, superseded, behind, obsolete and cached are said of verified
// copies only.
const (
	InstanceRemoved  InstanceState = "removed"  // the region holds nothing of it any more, or was written off
	InstanceRemoving InstanceState = "removing" // its removal, or its template's deletion, was asked for; the region has not said that nothing is left
	InstanceFailed   InstanceState = "failed"   // the region did not get it and does not try again by itself; the cause says why
	InstanceDamaged  InstanceState = "damaged"  // a scrub found chunks that do not match; they are being fetched again
	InstanceWaiting  InstanceState = "waiting"  // it cannot go on until somebody does what the cause says
	InstanceCopying  InstanceState = "copying"  // the region's agent has begun to hold it (observed) and has not verified it
	InstanceWanted   InstanceState = "wanted"   // it is asked of the region, whose agent has not begun
	InstanceCached   InstanceState = "cached"   // verified; made on demand, not wanted there, evictable
	InstanceReady    InstanceState = "ready"    // verified, and of the version that the reference means
	InstanceStaged   InstanceState = "staged"   // verified, and of a version that the reference does not mean yet
	InstanceObsolete InstanceState = "obsolete" // verified, and of a version that was abandoned or retired; its removal follows
	// InstanceBehind: verified and superseded, and the region, where the template is
	// wanted, has not verified the active version. Unpinned use there is refused.
	InstanceBehind     InstanceState = "behind"
	InstanceSuperseded InstanceState = "superseded" // verified, and kept though the reference means another version
)

// CausePendingRemoval is why an instance that nobody wants any more is still
// listed: its region works on it or cannot be reached.
const CausePendingRemoval = "pending-removal"

// Instance is an instance as answers show it: its facts, the word for it, and
// whether the reference means it.
type Instance struct {
	InstanceRow
	State    InstanceState `json:"state"`
	Active   bool          `json:"active"`   // it is of the version that the reference means
	Location string        `json:"location"` // "loc:<region>/<slot>"
	Digest   events.Digest `json:"digest"`   // of the version's manifest, equal in all regions
}

// WhereAnswer says which region holds which version of a template ([0033]).
type WhereAnswer struct {
	Template      events.TemplateID `json:"template"`
	Name          string            `json:"name"`
	ActiveVersion int               `json:"active_version"`      // 0: none yet
	Position      uint64            `json:"position"`            // of the journal, that the answer is as of
	Deleted       Time              `json:"deleted_at,omitzero"` // when the reference ceased to resolve; regions may still hold something
	Regions       []Instance        `json:"regions"`             // by region, then version
}

// Where gives one element per region and version that is wanted, on its way
// there, held, or on its way out. A region that is wanted and has not even been
// asked yet, because the version is still being saved, has an element without an
// instance. CodeTemplateUnknown if the account has no such template; a deleted
// one is answered for as long as regions hold something of it.
func (c Catalogue) Where(v *View, account events.AccountID, number events.TemplateID) (WhereAnswer, error) {
	s, err := c.placed(v, account, number)
	if err != nil {
		return WhereAnswer{}, err
	}
	if s.needsVersions() {
		if err := s.readVersions(v); err != nil {
			return WhereAnswer{}, err
		}
	}
	answer := WhereAnswer{Template: number, Name: s.template.Name, ActiveVersion: s.template.Active, Position: v.Position(), Deleted: s.template.Deleted,
		Regions: make([]Instance, 0, len(s.instances))}
	for i := range s.instances {
		if row := &s.instances[i]; row.Condition != ConditionRemoved {
			answer.Regions = append(answer.Regions, Instance{})
			s.show(row, &answer.Regions[len(answer.Regions)-1])
		}
	}
	if unasked := s.unasked(); len(unasked) > 0 {
		answer.Regions = append(answer.Regions, unasked...)
		slices.SortStableFunc(answer.Regions, func(a, b Instance) int {
			return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Version, b.Version))
		})
	}
	return answer, nil
}

// Instances gives all instances that a template ever had, removed ones too, by
// region, then version ([0034]). CodeTemplateUnknown.
func (c Catalogue) Instances(r Reader, account events.AccountID, number events.TemplateID) ([]Instance, error) {
	s, err := c.standing(r, account, number)
	if err != nil {
		return nil, err
	}
	out := make([]Instance, len(s.instances))
	for i := range s.instances {
		s.show(&s.instances[i], &out[i])
	}
	return out, nil
}

// Instance gives one instance; false if there is none with that id.
func (c Catalogue) Instance(r Reader, id events.InstanceID) (Instance, bool, error) {
	key, err := instanceKey(r, string(id))
	if err != nil {
		return Instance{}, false, err
	}
	row, ok, err := instances.Get(r, key...)
	if err != nil || !ok {
		return Instance{}, false, err
	}
	s, err := c.standing(r, row.Account, row.Template)
	if err != nil {
		return Instance{}, false, err
	}
	var out Instance
	s.show(&row, &out)
	return out, true, nil
}

// Map gives what stands in the instance's region for each region-bound resource;
// false while that is not known.
func (Catalogue) Map(r Reader, id events.InstanceID) ([]events.Substitution, bool, error) {
	row, ok, err := instanceMaps.Get(r, string(id))
	return row.Map, ok, err
}

// HeldIn gives the instances in a region that are not removed, by account and
// template, a page at a time; only those of an account if that is not empty.
func (Catalogue) HeldIn(r Reader, region events.RegionID, account events.AccountID, limit int, resume string) (Page[InstanceRow], error) {
	prefix := Key{string(region)}
	if account != "" {
		prefix = append(prefix, string(account))
	}
	return instances.Scan(r, Query[InstanceRow]{By: instancesRegion, Prefix: prefix, Limit: limit, Resume: resume})
}

// Template gives a template by its number; false if the account has none.
func (Catalogue) Template(r Reader, account events.AccountID, number events.TemplateID) (TemplateRow, bool, error) {
	return templates.Get(r, string(account), string(number))
}

// Numbered gives a template by its number, whoever owns it; false if there is none.
func (Catalogue) Numbered(r Reader, number events.TemplateID) (TemplateRow, bool, error) {
	page, err := templates.Scan(r, Query[TemplateRow]{By: templateNumbers, Prefix: Key{string(number)}, Limit: 1})
	if err != nil || len(page.Rows) == 0 {
		return TemplateRow{}, false, err
	}
	return page.Rows[0], true, nil
}

// Named gives the account's live template with that name (a slug); false if there is none.
func (Catalogue) Named(r Reader, account events.AccountID, slug string) (TemplateRow, bool, error) {
	page, err := templates.Scan(r, Query[TemplateRow]{By: templateNames, Prefix: Key{string(account), slug}, Limit: 1})
	if err != nil || len(page.Rows) == 0 {
		return TemplateRow{}, false, err
	}
	return page.Rows[0], true, nil
}

// List gives the account's live templates by name, a page at a time.
func (Catalogue) List(r Reader, account events.AccountID, limit int, resume string) (Page[TemplateRow], error) {
	return templates.Scan(r, Query[TemplateRow]{By: templateNames, Prefix: Key{string(account)}, Limit: limit, Resume: resume})
}

// ListAll gives all templates that the account ever had, by number, a page at a time.
func (Catalogue) ListAll(r Reader, account events.AccountID, limit int, resume string) (Page[TemplateRow], error) {
	return templates.Scan(r, Query[TemplateRow]{Prefix: Key{string(account)}, Limit: limit, Resume: resume})
}

// WantedIn gives the account's live templates that are wanted in a region, by
// number, a page at a time.
func (Catalogue) WantedIn(r Reader, account events.AccountID, region events.RegionID, limit int, resume string) (Page[TemplateRow], error) {
	return templates.Scan(r, Query[TemplateRow]{By: templateRegions, Prefix: Key{string(account), string(region)}, Limit: limit, Resume: resume})
}

// Version gives one version of a template; false if there is none.
func (Catalogue) Version(r Reader, number events.TemplateID, version int) (VersionRow, bool, error) {
	return versions.Get(r, versionKey(string(number), version)...)
}

// Versions gives all versions that a template ever had, the oldest first: its lineage.
func (Catalogue) Versions(r Reader, number events.TemplateID) ([]VersionRow, error) {
	return gather(versions, r, Query[VersionRow]{Prefix: Key{string(number)}})
}

// WaitsFor gives the regions that have to verify the staged version before the
// reference moves to it, sorted: every wanted region that has not, under the
// policies "available" and "quorum" only while too few have. A first version
// needs any one region. Nothing is staged: none.
func (c Catalogue) WaitsFor(r Reader, account events.AccountID, number events.TemplateID) ([]events.RegionID, error) {
	s, err := c.standing(r, account, number)
	if err != nil || s.template.Staged == 0 {
		return nil, err
	}
	v := s.versions[s.template.Staged]
	var missing []events.RegionID
	for _, region := range s.template.Regions {
		if !s.verified(region, v.Version) {
			missing = append(missing, region)
		}
	}
	have, need := len(s.template.Regions)-len(missing), len(s.template.Regions)
	switch {
	case s.template.Active == 0 || v.Policy.Kind == "available":
		need = 1
	case v.Policy.Kind == "quorum":
		need = v.Policy.Quorum
	}
	if have >= need {
		return nil, nil
	}
	return missing, nil
}

// CoverageAnswer compares where a template is used with where it is held.
type CoverageAnswer struct {
	Template      events.TemplateID `json:"template"`
	ActiveVersion int               `json:"active_version"`
	Wanted        []events.RegionID `json:"wanted"`    // regions that should hold it
	Running       []events.RegionID `json:"running"`   // regions with environments made from any version of it
	Holding       []events.RegionID `json:"holding"`   // regions that have verified the active version
	Uncovered     []events.RegionID `json:"uncovered"` // running or wanted, and not holding
}

// Coverage needs a view of the catalogue and of environments; all lists are
// sorted. CodeTemplateUnknown.
func (c Catalogue) Coverage(r Reader, account events.AccountID, number events.TemplateID) (CoverageAnswer, error) {
	s, err := c.standing(r, account, number)
	if err != nil {
		return CoverageAnswer{}, err
	}
	answer := CoverageAnswer{Template: number, ActiveVersion: s.template.Active, Wanted: s.template.Regions,
		Running: []events.RegionID{}, Holding: []events.RegionID{}, Uncovered: []events.RegionID{}}
	add := func(list *[]events.RegionID, region events.RegionID) {
		if !slices.Contains(*list, region) {
			*list = append(*list, region)
		}
	}
	for e, err := range (Environments{}).MadeFrom(r, number) {
		if err != nil {
			return CoverageAnswer{}, err
		}
		if e.State == EnvironmentCreated {
			add(&answer.Running, e.Region)
		}
	}
	for _, i := range s.instances {
		if i.Verified && i.Version == s.template.Active {
			add(&answer.Holding, i.Region)
		}
	}
	for _, region := range slices.Concat(answer.Wanted, answer.Running) {
		if !slices.Contains(answer.Holding, region) {
			add(&answer.Uncovered, region)
		}
	}
	slices.Sort(answer.Running)
	slices.Sort(answer.Holding)
	slices.Sort(answer.Uncovered)
	return answer, nil
}

// standing is everything that a template's instances are judged by.
type standing struct {
	template  TemplateRow
	versions  map[int]VersionRow
	instances []InstanceRow // by region, then version
}

func (c Catalogue) standing(r Reader, account events.AccountID, number events.TemplateID) (standing, error) {
	s, err := c.placed(r, account, number)
	if err == nil {
		err = s.readVersions(r)
	}
	return s, err
}

// placed is standing without the versions.
func (Catalogue) placed(r Reader, account events.AccountID, number events.TemplateID) (standing, error) {
	s := standing{versions: map[int]VersionRow{}}
	t, ok, err := templates.Get(r, string(account), string(number))
	if err != nil {
		return s, err
	}
	if !ok {
		return s, unknownTemplate(string(number))
	}
	s.template = t
	s.instances, err = gather(instances, r, Query[InstanceRow]{Prefix: Key{string(account), string(number)}})
	return s, err
}

func (s *standing) readVersions(r Reader) error {
	for v, err := range versions.All(r, Query[VersionRow]{Prefix: Key{string(s.template.Number)}}) {
		if err != nil {
			return err
		}
		s.versions[v.Version] = v
	}
	return nil
}

// needsVersions reports whether the versions' rows tell more of the instances
// than the template's own row: they do unless every wanted region has been
// asked for the active version, and there is no other one anywhere.
func (s *standing) needsVersions() bool {
	if s.template.Staged != 0 {
		return true
	}
	for i := range s.instances {
		if row := &s.instances[i]; row.Version != s.template.Active && row.Condition != ConditionRemoved {
			return true
		}
	}
	for _, region := range s.template.Regions {
		if !s.asked(region, s.template.Active) {
			return true
		}
	}
	return false
}

// asked reports whether there is an instance of the version in the region.
func (s *standing) asked(region events.RegionID, version int) bool {
	for i := range s.instances {
		if row := &s.instances[i]; row.Version == version && row.Region == region && row.Condition != ConditionRemoved {
			return true
		}
	}
	return false
}

func (s *standing) verified(region events.RegionID, version int) bool {
	for i := range s.instances {
		if row := &s.instances[i]; row.Region == region && row.Version == version && row.Verified {
			return true
		}
	}
	return false
}

// show tells an instance as answers show it. Rows are large: it does not copy them about.
func (s *standing) show(i *InstanceRow, out *Instance) {
	out.InstanceRow = *i
	out.State, out.Active, out.Location, out.Digest = s.state(i), i.Version == s.template.Active && s.template.live(), i.location(), i.Manifest
	if out.State == InstanceRemoving && out.Cause == nil {
		out.Cause = &events.Cause{Code: CausePendingRemoval, Text: string(i.Region) + " has not said yet that nothing of it is left there",
			Next: "it is removed when the region's agent is reached; of a region that is lost: tombolo region retire --lost"}
	}
}

// state finds the first word that fits, in the order of the words.
func (s *standing) state(i *InstanceRow) InstanceState {
	v := s.versions[i.Version].State
	if i.Version == s.template.Active {
		v = VersionActive
	}
	switch {
	case i.Condition == ConditionRemoved:
		return InstanceRemoved
	case i.Condition == ConditionRemoving || !s.template.live():
		return InstanceRemoving
	case i.Condition == ConditionFailed:
		return InstanceFailed
	case i.Condition == ConditionDamaged:
		return InstanceDamaged
	case i.Condition == ConditionWaiting:
		return InstanceWaiting
	case !i.Verified && i.Observed:
		return InstanceCopying
	case !i.Verified:
		return InstanceWanted
	case i.Cached:
		return InstanceCached
	case v == VersionActive:
		return InstanceReady
	case v == VersionStaged:
		return InstanceStaged
	case v == VersionAbandoned || v == VersionRetired:
		return InstanceObsolete
	case slices.Contains(s.template.Regions, i.Region) && !s.verified(i.Region, s.template.Active):
		return InstanceBehind
	}
	return InstanceSuperseded
}

// unasked gives the wanted regions that have no instance of the version that
// they are to hold.
func (s *standing) unasked() []Instance {
	var out []Instance
	if !s.template.live() {
		return nil
	}
	for _, n := range []int{s.template.Active, s.template.Staged} {
		for _, region := range s.template.Regions {
			if n == 0 || s.asked(region, n) {
				continue
			}
			v := s.versions[n]
			out = append(out, Instance{State: InstanceWanted, Active: n == s.template.Active, Digest: v.Manifest,
				InstanceRow: InstanceRow{Account: s.template.Account, Template: s.template.Number, Version: n, Region: region,
					Manifest: v.Manifest, Bytes: v.Bytes, Wanted: true, WantedBy: s.template.RegionsBy, Operation: v.Operation, Created: v.Created}})
		}
	}
	return out
}

// slot is what the agent calls the place, or would by default.
func (i *InstanceRow) slot() string {
	if i.Slot != "" {
		return i.Slot
	}
	return string(i.Template) + "@" + strconv.Itoa(i.Version)
}

func (i *InstanceRow) location() string { return "loc:" + string(i.Region) + "/" + i.slot() }
