package instance_test

import (
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/events"
)

var (
	ref      = Ref{Region: "sydney", Instance: "i1"}
	manifest = events.DigestOf([]byte("v1"))
	wanted   = events.CopyWanted{Template: "73291467", Version: 1, Manifest: manifest, Operation: "op"}
	mapped   = events.ResourcesMapped{Map: []events.Substitution{{Resource: "web", From: "192.0.2.1", To: "203.0.113.8", Lease: "l1"}}}
	why      = events.Cause{Code: "pool-exhausted", Text: "because"}
	waiting  = events.CopyWaiting{Cause: why}
	verified = events.CopyVerified{Manifest: manifest, Location: "73291467@1", Received: 7, Stored: 5}
	failed   = events.CopyFailed{Cause: why}
	damaged  = events.CopyDamaged{Chunks: 2}
	leaving  = events.RemovalWanted{Operation: "op2"}
	removed  = events.CopyRemoved{}
)

func facts(t *testing.T, history ...events.InstanceEvent) given.Case[State, events.InstanceEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

func cached() events.CopyWanted { w := wanted; w.Cached = true; return w }

func other() events.CopyWanted {
	w := wanted
	w.Manifest = events.DigestOf([]byte("another"))
	return w
}

func TestOneIDForEachTemplateVersionAndRegion(t *testing.T) {
	ids := map[events.InstanceID]bool{}
	for _, id := range []events.InstanceID{ID("acme", "73291467", 1, "sydney"), ID("acme", "73291467", 2, "sydney"), ID("acme", "73291467", 1, "tokyo"), ID("evil", "73291467", 1, "sydney"), ID("acme", "73291468", 1, "sydney")} {
		ids[id] = true
	}
	if again := ID("acme", "73291467", 1, "sydney"); len(ids) != 5 || !ids[again] {
		t.Error(ids)
	}
	if got := ref.Aggregate("acme").Subject(); got != "tombolo.events.acme.sydney.instance.i1" {
		t.Error(got)
	}
}

func TestWhatWasNeverWantedIsUnknown(t *testing.T) {
	facts(t).When(RecordMap{ref, nil}).Refused("instance-unknown")
	facts(t).When(ReportWaiting{ref, why}).Refused("instance-unknown")
	facts(t).When(ReportVerified{Ref: ref, Manifest: manifest}).Refused("instance-unknown")
	facts(t).When(ReportFailed{Ref: ref, Cause: why}).Refused("instance-unknown")
	facts(t).When(Retry{ref, "op"}).Refused("instance-unknown")
	facts(t).When(ReportDamaged{ref, 1}).Refused("instance-unknown")
	facts(t).When(WantRemoval{ref, "op"}).Refused("instance-unknown")
	facts(t).When(ReportRemoved{Ref: ref}).Refused("removal-not-wanted")
	facts(t).When(ReportRemoved{Ref: ref, Lost: true}).Refused("removal-not-wanted")
}

func TestWant(t *testing.T) {
	facts(t).When(Want{ref, wanted}).Then(wanted)
	facts(t, wanted).When(Want{ref, wanted}).Nothing()
	facts(t, wanted, verified).When(Want{ref, wanted}).Nothing()
	facts(t, wanted).When(Want{ref, other()}).Refused("manifest-differs")
	facts(t, wanted, leaving).When(Want{ref, wanted}).Refused("removal-unfinished")
	facts(t, wanted, leaving, removed).When(Want{ref, wanted}).Then(wanted)
	facts(t).When(Want{ref, events.CopyWanted{}}).Refused("bad-manifest")
	facts(t).When(Demand{ref, events.CopyWanted{}}).Refused("bad-manifest")
	facts(t, wanted, leaving, removed).When(Want{ref, other()}).Then(other())
}

func TestACachedCopyIsKeptOnceItIsWanted(t *testing.T) {
	facts(t).When(Want{ref, cached()}).Then(cached())
	facts(t, cached()).When(Want{ref, cached()}).Nothing()
	facts(t, cached()).When(Want{ref, wanted}).Then(events.CopyKept{})
	facts(t, cached(), events.CopyKept{}).When(Want{ref, wanted}).Nothing()
	facts(t, wanted).When(Want{ref, cached()}).Nothing() // wanted is more than cached
}

func TestStillWanted(t *testing.T) {
	facts(t, wanted).When(StillWanted{ref}).Nothing()
	facts(t).When(StillWanted{ref}).Refused("instance-unknown")
	facts(t, wanted, leaving).When(StillWanted{ref}).Refused("copy-not-wanted")
	facts(t, wanted, leaving, removed).When(StillWanted{ref}).Refused("copy-not-wanted")
}

func TestDemand(t *testing.T) {
	facts(t).When(Demand{ref, cached()}).Then(cached())
	facts(t, wanted).When(Demand{ref, cached()}).Nothing()
	facts(t, wanted, verified).When(Demand{ref, cached()}).Refused("copy-held")
	facts(t, wanted, failed).When(Demand{ref, cached()}).Refused("copy-stopped")
	facts(t, wanted, waiting).When(Demand{ref, cached()}).Refused("copy-stopped")
	facts(t, wanted, verified, damaged).When(Demand{ref, cached()}).Nothing() // it is copied again
	facts(t, wanted, verified, leaving).When(Demand{ref, cached()}).Refused("removal-unfinished")
	facts(t, wanted, verified).When(Demand{ref, other()}).Refused("manifest-differs")
}

func TestRecordMap(t *testing.T) {
	again := events.ResourcesMapped{Map: []events.Substitution{{Resource: "web", From: "192.0.2.1", To: "203.0.113.9", Lease: "l2"}}}
	facts(t, wanted).When(RecordMap{ref, mapped.Map}).Then(mapped)
	facts(t, wanted).When(RecordMap{ref, nil}).Then(events.ResourcesMapped{})
	facts(t, wanted, events.ResourcesMapped{}).When(RecordMap{ref, nil}).Nothing()
	facts(t, wanted, mapped).When(RecordMap{ref, mapped.Map}).Nothing()
	facts(t, wanted, mapped).When(RecordMap{ref, again.Map}).Then(again)
	facts(t, wanted, mapped, leaving).When(RecordMap{ref, again.Map}).Refused("copy-not-wanted")
	facts(t, wanted, mapped, leaving, removed, wanted).When(RecordMap{ref, mapped.Map}).Then(mapped)
}

func TestReportWaiting(t *testing.T) {
	facts(t, wanted).When(ReportWaiting{ref, why}).Then(waiting)
	facts(t, wanted, waiting).When(ReportWaiting{ref, why}).Nothing()
	undeclared := events.Cause{Code: "pool-undeclared"}
	facts(t, wanted, waiting).When(ReportWaiting{ref, undeclared}).Then(events.CopyWaiting{Cause: undeclared})
	facts(t, wanted, waiting, mapped).When(ReportWaiting{ref, why}).Then(waiting)
	facts(t, wanted, leaving).When(ReportWaiting{ref, why}).Refused("copy-not-wanted")
}

func TestReportVerified(t *testing.T) {
	report := ReportVerified{ref, manifest, "73291467@1", 7, 5}
	facts(t, wanted, mapped).When(report).Then(verified)
	facts(t, wanted, verified).When(report).Nothing()
	facts(t, wanted, failed).When(report).Then(verified) // the region's fact wins
	facts(t, wanted, verified, damaged).When(report).Then(verified)
	facts(t, other()).When(report).Refused("manifest-differs")
	facts(t, wanted, leaving).When(report).Refused("copy-not-wanted")
	facts(t, wanted, leaving, removed).When(report).Refused("copy-not-wanted")
	facts(t, wanted, verified, leaving, removed, wanted).When(report).Then(verified)
}

func TestReportFailed(t *testing.T) {
	facts(t, wanted, mapped).When(ReportFailed{Ref: ref, Cause: why}).Then(failed)
	facts(t, wanted, failed).When(ReportFailed{Ref: ref, Cause: why}).Nothing()
	facts(t, wanted, verified).When(ReportFailed{Ref: ref, Cause: why}).Nothing()
	facts(t, wanted, verified, damaged).When(ReportFailed{Ref: ref, Cause: why}).Then(failed)
	facts(t, wanted, leaving).When(ReportFailed{Ref: ref, Cause: why}).Refused("copy-not-wanted")
}

func TestTheFailureOfAnOlderAttemptIsNotTheNewOnes(t *testing.T) {
	second := events.CopyRetried{Operation: "op3", Attempt: 2}
	first := ReportFailed{Ref: ref, Cause: why, Attempt: 1}
	facts(t, wanted).When(first).Then(failed)
	facts(t, wanted, waiting, second).When(first).Nothing()
	facts(t, wanted, failed, second).When(first).Nothing()
	facts(t, wanted, failed, second).When(ReportFailed{Ref: ref, Cause: why, Attempt: 2}).Then(failed)
	facts(t, wanted, failed, second, leaving, removed, wanted).When(first).Then(failed) // wanted anew, it is the first again
}

func TestRetry(t *testing.T) {
	retry := Retry{ref, "op3"}
	second := events.CopyRetried{Operation: "op3", Attempt: 2}
	facts(t, wanted, failed).When(retry).Then(second)
	facts(t, wanted, waiting).When(retry).Then(second)
	facts(t, wanted).When(retry).Nothing()
	facts(t, wanted, verified).When(retry).Nothing()
	facts(t, wanted, failed, second).When(retry).Nothing()
	facts(t, wanted, failed, second, failed).When(retry).Then(events.CopyRetried{Operation: "op3", Attempt: 3})
	facts(t, wanted, failed, leaving).When(retry).Refused("copy-not-wanted")
	facts(t, wanted, failed, second, leaving, removed, wanted, failed).When(retry).Then(second)
}

func TestReportDamaged(t *testing.T) {
	facts(t, wanted, verified).When(ReportDamaged{ref, 2}).Then(damaged)
	facts(t, wanted, verified, damaged).When(ReportDamaged{ref, 2}).Nothing()
	facts(t, wanted).When(ReportDamaged{ref, 2}).Nothing()
	facts(t, wanted, verified, leaving).When(ReportDamaged{ref, 2}).Refused("copy-not-wanted")
}

func TestRemoval(t *testing.T) {
	facts(t, wanted).When(WantRemoval{ref, "op2"}).Then(leaving)
	facts(t, wanted, verified).When(WantRemoval{ref, "op2"}).Then(leaving)
	facts(t, wanted, leaving).When(WantRemoval{ref, "op9"}).Nothing()
	facts(t, wanted, leaving, removed).When(WantRemoval{ref, "op9"}).Nothing()
	facts(t, wanted, leaving).When(ReportRemoved{Ref: ref}).Then(removed)
	facts(t, wanted, leaving).When(ReportRemoved{ref, true}).Then(events.CopyRemoved{Lost: true})
	facts(t, wanted, leaving, removed).When(ReportRemoved{Ref: ref}).Nothing()
	facts(t, wanted).When(ReportRemoved{Ref: ref}).Refused("removal-not-wanted")
}

func TestWhatIsLostWithItsRegionIsGone(t *testing.T) {
	lost := events.CopyRemoved{Lost: true}
	facts(t, wanted, verified).When(ReportRemoved{ref, true}).Then(lost)
	facts(t, wanted, verified, lost).When(ReportRemoved{ref, true}).Nothing()
	facts(t, wanted, verified, lost).When(ReportVerified{Ref: ref, Manifest: manifest}).Refused("copy-not-wanted")
	facts(t, wanted, verified, lost).When(Want{ref, wanted}).Then(wanted)
}
