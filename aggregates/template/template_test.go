package template_test

import (
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
)

const id = events.TemplateID("73291467")

var (
	all       = events.SwitchPolicy{Kind: "all"}
	available = events.SwitchPolicy{Kind: "available"}
	source    = events.Source{Environment: "e1", Region: "beijing"}
	why       = events.Cause{Code: "why", Text: "because"}
	soon      = given.Now().Add(time.Hour)
	digest    = events.DigestOf([]byte("v"))
	created   = events.TemplateCreated{Name: "ajax", Display: "Ajax", Source: source, Regions: regions("beijing", "chicago", "sydney"), Operation: "op1"}
	deletion  = events.TemplateDeletionAccepted{Operation: "op9"}
	deleted   = events.TemplateDeleted{}
)

type history []events.TemplateEvent

// The steps below are histories that tests add up.
var (
	fresh = history{created}
	live  = history{created, saved(1), activated(1, 0, "op1")}
)

func regions(r ...events.RegionID) []events.RegionID { return r }

func (h history) and(more ...events.TemplateEvent) history {
	return append(append(history{}, h...), more...)
}

func saved(v int) events.VersionSaved {
	return events.VersionSaved{Version: v, Manifest: digest, Bytes: 9}
}

func staged(v int, p events.SwitchPolicy, op events.OperationID) events.ReplacementStaged {
	return events.ReplacementStaged{Version: v, Source: source, Policy: p, Operation: op}
}

func queued(op events.OperationID) events.ReplacementQueued {
	return events.ReplacementQueued{Source: source, Policy: all, Operation: op}
}

func activated(v, replaces int, op events.OperationID) events.VersionActivated {
	return events.VersionActivated{Version: v, Replaces: replaces, Operation: op}
}

func abandoned(v int, op events.OperationID) events.VersionAbandoned {
	return events.VersionAbandoned{Version: v, Operation: op, Cause: why}
}

// next is the history of one more version that replaced the one before it.
func (h history) next(v int, op events.OperationID) history {
	return h.and(staged(v, all, op), saved(v), activated(v, v-1, op))
}

func facts(t *testing.T, h history) given.Case[State, events.TemplateEvent] {
	t.Helper()
	return given.Facts[State](t, h...)
}

func replace(op events.OperationID) Replace {
	return Replace{Template: id, Source: source, Policy: all, Operation: op}
}

func activate(v int, verified ...events.RegionID) Activate { return Activate{id, v, verified} }

func TestATemplateBelongsToNoRegion(t *testing.T) {
	if got := replace("op").Aggregate("acme").Subject(); got != "tombolo.events.acme._.template.73291467" {
		t.Error(got)
	}
}

func TestCreate(t *testing.T) {
	c := Create{Template: id, Name: "ajax", Display: "Ajax", Source: source, Regions: regions("sydney", "chicago", "sydney"), Operation: "op1"}
	facts(t, nil).When(c).Then(created) // the source's region is one of the set; each stands there once
	facts(t, fresh).When(c).Nothing()
	c.Operation = "op2"
	facts(t, fresh).When(c).Refused("template-exists")
	c.Keep = -1
	facts(t, nil).When(c).Refused("bad-keep")
	c.Keep, c.Regions = 0, regions("Sydney!")
	facts(t, nil).When(c).Refused("bad-region")
}

func TestNothingGoesWithoutATemplate(t *testing.T) {
	facts(t, nil).When(RecordSaved{Template: id, Version: 1}).Refused("template-unknown")
	facts(t, nil).When(replace("op2")).Refused("template-unknown")
	facts(t, nil).When(StageNext{id}).Refused("template-unknown")
	facts(t, nil).When(Unqueue{Template: id}).Refused("template-unknown")
	facts(t, nil).When(Expire{Template: id}).Refused("template-unknown")
	facts(t, nil).When(activate(1, "beijing")).Refused("template-unknown")
	facts(t, nil).When(Abandon{Template: id, Version: 1}).Refused("version-not-staged")
	facts(t, nil).When(Rollback{id, 1, "op"}).Refused("template-unknown")
	facts(t, nil).When(Retire{id, 1}).Nothing()
	facts(t, nil).When(SetRegions{Template: id}).Refused("template-unknown")
	facts(t, nil).When(Protect{id, true}).Refused("template-unknown")
	facts(t, nil).When(Delete{id, "op"}).Refused("template-unknown")
	facts(t, nil).When(RecordDeleted{id}).Refused("template-not-deleted")
}

func TestNothingGoesOnceItIsDeleted(t *testing.T) {
	for _, h := range []history{live.and(deletion), live.and(deletion, deleted)} {
		gone := facts(t, h)
		gone.When(RecordSaved{Template: id, Version: 1}).Refused("template-deleted")
		gone.When(replace("op2")).Refused("template-deleted")
		gone.When(StageNext{id}).Refused("template-deleted")
		gone.When(Unqueue{Template: id}).Refused("template-deleted")
		gone.When(Expire{Template: id}).Refused("template-deleted")
		gone.When(activate(1, "beijing")).Refused("template-deleted")
		gone.When(Abandon{Template: id, Version: 1}).Nothing()
		gone.When(Rollback{id, 1, "op"}).Refused("template-deleted")
		gone.When(SetRegions{Template: id}).Refused("template-deleted")
		gone.When(Protect{id, true}).Refused("template-deleted")
		gone.When(Delete{id, "op"}).Nothing()
	}
}

func TestRecordSaved(t *testing.T) {
	record := RecordSaved{Template: id, Version: 1, Manifest: digest, Bytes: 9}
	facts(t, fresh).When(record).Then(saved(1))
	facts(t, fresh.and(saved(1))).When(record).Nothing()
	facts(t, live).When(record).Nothing() // content never changes
	facts(t, fresh.and(abandoned(1, "op1"))).When(record).Refused("version-not-wanted")
	record.Version = 2
	facts(t, live).When(record).Refused("version-not-wanted")
	facts(t, live.and(staged(2, all, "op2"))).When(record).Then(saved(2))
}

func TestVersionOneIsActiveWhereTheFirstRegionHasIt(t *testing.T) {
	facts(t, fresh.and(saved(1))).When(activate(1, "beijing")).Then(activated(1, 0, "op1"))
	facts(t, fresh.and(saved(1))).When(activate(1)).Refused("not-verified-anywhere")
	facts(t, fresh).When(activate(1, "beijing")).Refused("version-not-staged")
	facts(t, live).When(activate(1, "beijing")).Nothing()
}

func TestActivateUnderAll(t *testing.T) {
	h := live.and(staged(2, all, "op2"), saved(2))
	facts(t, h).When(activate(2, "beijing", "sydney")).Refused("not-verified-everywhere")
	facts(t, h).When(activate(2, "beijing", "sydney", "tokyo")).Refused("not-verified-everywhere") // tokyo is not of the set
	facts(t, h).When(activate(2, "beijing", "chicago", "sydney")).Then(activated(2, 1, "op2"))
	fewer := h.and(events.RegionsChanged{Remove: regions("chicago")})
	facts(t, fewer).When(activate(2, "beijing", "sydney")).Then(activated(2, 1, "op2"))
	more := h.and(events.RegionsChanged{Add: regions("tokyo")})
	facts(t, more).When(activate(2, "beijing", "chicago", "sydney")).Refused("not-verified-everywhere")
}

func TestActivateUnderQuorum(t *testing.T) {
	h := live.and(staged(2, events.SwitchPolicy{Kind: "quorum", Quorum: 2}, "op2"), saved(2))
	facts(t, h).When(activate(2, "beijing")).Refused("not-verified-everywhere")
	facts(t, h).When(activate(2, "beijing", "tokyo")).Refused("not-verified-everywhere")
	facts(t, h).When(activate(2, "beijing", "sydney")).Then(activated(2, 1, "op2"))
	one := h.and(events.RegionsChanged{Remove: regions("chicago", "sydney")})
	facts(t, one).When(activate(2, "beijing")).Then(activated(2, 1, "op2")) // more than all cannot be had
}

func TestActivateUnderAvailable(t *testing.T) {
	h := live.and(staged(2, available, "op2"), saved(2))
	facts(t, h).When(activate(2, "chicago")).Then(activated(2, 1, "op2"))
	facts(t, h).When(activate(2, "tokyo")).Refused("not-verified-everywhere")
	facts(t, h).When(activate(2)).Refused("not-verified-everywhere")
}

func TestOnlyWhatIsStagedAndSavedIsActivated(t *testing.T) {
	everywhere := created.Regions
	facts(t, live.and(staged(2, all, "op2"))).When(activate(2, everywhere...)).Refused("version-not-staged")
	facts(t, live.and(staged(2, all, "op2"), saved(2), abandoned(2, "op2"))).When(activate(2, everywhere...)).Refused("version-not-staged")
	facts(t, live).When(activate(2, everywhere...)).Refused("version-not-staged")
	facts(t, live.next(2, "op2")).When(activate(1, everywhere...)).Nothing() // said long ago
	facts(t, live.next(2, "op2").and(events.VersionRetired{Version: 1})).When(activate(1, everywhere...)).Refused("version-not-staged")
}

func TestReplace(t *testing.T) {
	facts(t, live).When(replace("op2")).Then(staged(2, all, "op2"))
	facts(t, live.and(staged(2, all, "op2"))).When(replace("op2")).Nothing()
	facts(t, live.next(2, "op2")).When(replace("op2")).Nothing()
	elsewhere := replace("op2")
	elsewhere.Source = events.Source{Environment: "e2", Region: "tokyo"} // another environment, outside the set
	facts(t, live).When(elsewhere).Then(events.ReplacementStaged{Version: 2, Source: elsewhere.Source, Policy: all, Operation: "op2"})
}

func TestReplaceRefusesPoliciesThatMakeNoSense(t *testing.T) {
	for _, p := range []events.SwitchPolicy{{}, {Kind: "most"}, {Kind: "quorum"}, {Kind: "quorum", Quorum: 4}, {Kind: "quorum", Quorum: -1}} {
		r := replace("op2")
		r.Policy = p
		facts(t, live).When(r).Refused("bad-policy")
	}
	late := replace("op2")
	late.Deadline = given.Now()
	facts(t, live).When(late).Refused("bad-deadline")
	late.Deadline = soon
	facts(t, live).When(late).Then(events.ReplacementStaged{Version: 2, Source: source, Policy: all, Deadline: soon, Operation: "op2"})
}

func TestReplacementsQueue(t *testing.T) {
	facts(t, fresh).When(replace("op2")).Then(queued("op2")) // behind the creation
	one := live.and(staged(2, all, "op2"))
	facts(t, one).When(replace("op3")).Then(queued("op3"))
	facts(t, one.and(queued("op3"))).When(replace("op3")).Nothing()
	facts(t, one.and(queued("op3"))).When(StageNext{id}).Nothing()
	free := one.and(queued("op3"), queued("op4"), saved(2), activated(2, 1, "op2"))
	facts(t, free).When(replace("op5")).Then(queued("op5")) // nobody overtakes
	facts(t, free).When(StageNext{id}).Then(staged(3, all, "op3"))
	facts(t, free.and(staged(3, all, "op3"))).When(StageNext{id}).Nothing()
	facts(t, free.and(staged(3, all, "op3"), abandoned(3, "op3"))).When(StageNext{id}).Then(staged(4, all, "op4"))
	facts(t, live).When(StageNext{id}).Nothing()
}

func TestUnqueue(t *testing.T) {
	h := live.and(staged(2, all, "op2"), queued("op3"), queued("op4"))
	out := events.ReplacementUnqueued{Operation: "op3", Cause: why}
	facts(t, h).When(Unqueue{id, "op3", why}).Then(out)
	facts(t, h.and(out)).When(Unqueue{id, "op3", why}).Nothing()
	facts(t, h).When(Unqueue{id, "op2", why}).Nothing() // it is staged
	facts(t, h.and(out, abandoned(2, "op2"))).When(StageNext{id}).Then(staged(3, all, "op4"))
}

func TestExpire(t *testing.T) {
	passed := events.Cause{Code: "deadline-passed", Text: "it was not complete by 2014-01-15T15:07:03Z", Next: "replace again, with a later deadline or another policy"}
	s := staged(2, all, "op2")
	s.Deadline = soon
	h := live.and(s)
	facts(t, h).When(Expire{id, "op2"}).Refused("not-due")
	facts(t, h).At(soon).When(Expire{id, "op2"}).Then(events.VersionAbandoned{Version: 2, Operation: "op2", Cause: passed})
	facts(t, h.and(saved(2), activated(2, 1, "op2"))).At(soon).When(Expire{id, "op2"}).Nothing()
	facts(t, live.and(staged(2, all, "op2"))).At(soon).When(Expire{id, "op2"}).Refused("not-due")
	q := queued("op3")
	q.Deadline = soon
	waiting := live.and(staged(2, all, "op2"), q)
	facts(t, waiting).When(Expire{id, "op3"}).Refused("not-due")
	facts(t, waiting).At(soon).When(Expire{id, "op3"}).Then(events.ReplacementUnqueued{Operation: "op3", Cause: passed})
	facts(t, waiting.and(abandoned(2, "op2"))).At(soon).When(StageNext{id}).Then(events.ReplacementUnqueued{Operation: "op3", Cause: passed})
}

func TestAbandon(t *testing.T) {
	abandon := Abandon{id, 2, "op2", why}
	facts(t, live.and(staged(2, all, "op2"))).When(abandon).Then(abandoned(2, "op2"))
	facts(t, live.and(staged(2, all, "op2"), saved(2))).When(abandon).Then(abandoned(2, "op2"))
	facts(t, live.and(staged(2, all, "op2"), abandoned(2, "op2"))).When(abandon).Nothing()
	facts(t, live.next(2, "op2")).When(abandon).Refused("version-not-staged")
	facts(t, live).When(abandon).Refused("version-not-staged")
	facts(t, fresh).When(Abandon{id, 1, "op1", why}).Then(abandoned(1, "op1"))
	facts(t, live.and(staged(2, all, "op2"), abandoned(2, "op2"))).When(replace("op3")).Then(staged(3, all, "op3")) // numbers are not used again
}

func TestRollback(t *testing.T) {
	h := live.next(2, "op2")
	back := events.VersionActivated{Version: 1, Replaces: 2, Rollback: true, Operation: "op3"}
	facts(t, h).When(Rollback{id, 1, "op3"}).Then(back)
	facts(t, h.and(back)).When(Rollback{id, 1, "op3"}).Nothing()
	facts(t, h.and(back)).When(Rollback{id, 2, "op4"}).Then(events.VersionActivated{Version: 2, Replaces: 1, Rollback: true, Operation: "op4"})
	facts(t, h.and(events.VersionRetired{Version: 1})).When(Rollback{id, 1, "op3"}).Refused("version-retired")
	facts(t, h).When(Rollback{id, 7, "op3"}).Refused("version-unknown")
	facts(t, h).When(Rollback{id, 0, "op3"}).Refused("version-unknown")
	facts(t, h.and(staged(3, all, "op3"))).When(Rollback{id, 3, "op4"}).Refused("version-unknown")
	third := h.and(staged(3, all, "op4"), saved(3), back)
	facts(t, third).When(activate(3, created.Regions...)).Then(activated(3, 1, "op4")) // what is staged stays staged
}

func TestRetireLeavesTheKeptVersionsThatWereActiveLast(t *testing.T) {
	none := live.next(2, "op2")
	facts(t, none).When(Retire{id, 1}).Then(events.VersionRetired{Version: 1})
	facts(t, none.and(events.VersionRetired{Version: 1})).When(Retire{id, 1}).Nothing()
	facts(t, none).When(Retire{id, 2}).Nothing() // the active one
	facts(t, none).When(Retire{id, 3}).Nothing()

	two := created
	two.Keep = 2
	kept := history{two, saved(1), activated(1, 0, "op1")}.next(2, "op2").next(3, "op3")
	facts(t, kept).When(Retire{id, 1}).Nothing()
	facts(t, kept.next(4, "op4")).When(Retire{id, 1}).Then(events.VersionRetired{Version: 1})
	facts(t, kept.next(4, "op4")).When(Retire{id, 2}).Nothing()

	one := created
	one.Keep = 1
	back := history{one, saved(1), activated(1, 0, "op1")}.next(2, "op2").and(
		events.VersionActivated{Version: 1, Replaces: 2, Rollback: true, Operation: "op3"},
		staged(3, all, "op4"), saved(3), activated(3, 1, "op4"))
	facts(t, back).When(Retire{id, 1}).Nothing() // it was the good one until now
	facts(t, back).When(Retire{id, 2}).Then(events.VersionRetired{Version: 2})
}

func TestKeep(t *testing.T) {
	keep := func(n int) Keep { return Keep{id, n} }
	three := live.next(2, "op2").next(3, "op3").next(4, "op4")
	facts(t, nil).When(keep(1)).Refused("template-unknown")
	facts(t, live.and(deletion)).When(keep(1)).Refused("template-deleted")
	facts(t, live).When(keep(-1)).Refused("bad-keep")
	facts(t, live).When(keep(0)).Nothing()
	facts(t, live).When(keep(2)).Then(events.KeepSet{Keep: 2})
	kept := three.and(events.KeepSet{Keep: 2})
	facts(t, kept).When(Retire{id, 1}).Then(events.VersionRetired{Version: 1})
	facts(t, kept).When(Retire{id, 2}).Nothing()
	facts(t, kept.and(events.KeepSet{Keep: 1})).When(Retire{id, 2}).Then(events.VersionRetired{Version: 2})
	facts(t, kept.and(events.KeepSet{Keep: 1})).When(Retire{id, 3}).Nothing()
}

func TestSetRegions(t *testing.T) {
	set := func(add, remove []events.RegionID) SetRegions {
		return SetRegions{Template: id, Add: add, Remove: remove, Operation: "op2"}
	}
	change := func(add, remove []events.RegionID) events.RegionsChanged {
		return events.RegionsChanged{Add: add, Remove: remove, Operation: "op2"}
	}
	facts(t, live).When(set(regions("tokyo"), regions("beijing"))).Then(change(regions("tokyo"), regions("beijing")))
	facts(t, live).When(set(regions("tokyo", "sydney", "tokyo"), nil)).Then(change(regions("tokyo"), nil)) // only what is new
	facts(t, live).When(set(nil, regions("tokyo", "sydney", "sydney"))).Then(change(nil, regions("sydney")))
	facts(t, live).When(set(regions("sydney"), nil)).Nothing()
	facts(t, live).When(set(nil, nil)).Nothing()
	facts(t, live).When(set(nil, regions("tokyo"))).Nothing()
	facts(t, live).When(set(regions("tokyo"), regions("tokyo"))).Refused("bad-region")
	facts(t, live).When(set(regions("To kyo"), nil)).Refused("bad-region")
	facts(t, live).When(set(nil, regions(""))).Refused("bad-region")
	facts(t, live).When(set(nil, created.Regions)).Refused("would-delete")
	facts(t, live).When(set(regions("tokyo"), created.Regions)).Then(change(regions("tokyo"), created.Regions))
	facts(t, fresh).When(set(regions("tokyo"), nil)).Then(change(regions("tokyo"), nil)) // while the first version is being saved
	facts(t, live.and(change(regions("tokyo"), nil), change(nil, regions("tokyo")))).When(set(regions("tokyo"), nil)).Then(change(regions("tokyo"), nil))
}

func TestProtection(t *testing.T) {
	protected := live.and(events.ProtectionSet{Protected: true})
	facts(t, live).When(Protect{id, true}).Then(events.ProtectionSet{Protected: true})
	facts(t, live).When(Protect{id, false}).Nothing()
	facts(t, protected).When(Protect{id, true}).Nothing()
	facts(t, protected).When(Protect{id, false}).Then(events.ProtectionSet{})
	facts(t, protected).When(Delete{id, "op9"}).Refused("template-protected")
	facts(t, protected.and(events.ProtectionSet{})).When(Delete{id, "op9"}).Then(deletion)
	unborn := fresh.and(events.ProtectionSet{Protected: true}, abandoned(1, "op1"))
	facts(t, unborn).When(Delete{id, "op9"}).Then(deletion)
}

func TestDelete(t *testing.T) {
	facts(t, live).When(Delete{id, "op9"}).Then(deletion)
	facts(t, fresh).When(Delete{id, "op9"}).Then(deletion)
	facts(t, live.and(staged(2, all, "op2"), queued("op3"))).When(Delete{id, "op9"}).Then(deletion)
	facts(t, live.and(deletion)).When(RecordDeleted{id}).Then(deleted)
	facts(t, live.and(deletion, deleted)).When(RecordDeleted{id}).Nothing()
	facts(t, live).When(RecordDeleted{id}).Refused("template-not-deleted")
}

func TestAnOlderStateStaysAsItWas(t *testing.T) {
	before := facts(t, live.and(staged(2, all, "op2"), queued("op3")))
	s := before.State()
	s.Fold(saved(2)).Fold(activated(2, 1, "op2")).Fold(events.ReplacementUnqueued{Operation: "op3"})
	s.Fold(queued("op4"))
	s.Fold(events.RegionsChanged{Remove: regions("beijing")})
	before.When(activate(2, created.Regions...)).Refused("version-not-staged")
	before.When(Unqueue{id, "op3", why}).Then(events.ReplacementUnqueued{Operation: "op3", Cause: why})
	before.When(Unqueue{id, "op4", why}).Nothing()
	before.When(SetRegions{Template: id, Remove: regions("beijing")}).Then(events.RegionsChanged{Remove: regions("beijing")})
}
