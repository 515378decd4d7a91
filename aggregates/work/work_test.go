package work_test

import (
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

var (
	ref      = Ref{Region: "sydney", Work: "w1"}
	ordered  = events.WorkOrdered{Kind: events.WorkCopy, Operation: "op", Order: events.Order{Instance: "i1"}}
	started  = events.WorkStarted{Epoch: 3, Attempt: 1}
	done     = events.WorkDone{Epoch: 3, Result: events.Result{Received: 7}}
	why      = events.Cause{Code: "why", Text: "because"}
	failed   = events.WorkFailed{Epoch: 3, Cause: why}
	undo     = events.WorkUndoOrdered{Why: why}
	undone   = events.WorkUndone{Epoch: 3}
	stuck    = events.WorkStuck{Epoch: 3, Cause: why}
	retried  = events.WorkRetried{}
	writeOff = events.WorkWrittenOff{Why: why}
)

func facts(t *testing.T, history ...events.WorkEvent) given.Case[State, events.WorkEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

func TestAnOrderIsOfOneRegion(t *testing.T) {
	if got := (Order{Ref: ref}).Aggregate("acme").Subject(); got != "tombolo.events.acme.sydney.work.w1" {
		t.Error(got)
	}
}

func TestOrder(t *testing.T) {
	facts(t).When(Order{ref, ordered}).Then(ordered)
	facts(t, ordered).When(Order{ref, ordered}).Nothing()
	facts(t, ordered, started, done).When(Order{ref, ordered}).Nothing()
}

func TestWhatWasNeverOrderedIsUnknown(t *testing.T) {
	facts(t).When(Start{ref, 3}).Refused("work-unknown")
	facts(t).When(ReportDone{Ref: ref, Epoch: 3}).Refused("work-unknown")
	facts(t).When(ReportFailed{Ref: ref, Epoch: 3}).Refused("work-unknown")
	facts(t).When(OrderUndo{Ref: ref}).Refused("work-unknown")
	facts(t).When(ReportUndone{ref, 3}).Refused("work-unknown")
	facts(t).When(ReportStuck{Ref: ref, Epoch: 3}).Refused("work-unknown")
	facts(t).When(Retry{ref}).Refused("work-unknown")
	facts(t).When(WriteOff{Ref: ref}).Refused("work-unknown")
}

func TestStart(t *testing.T) {
	facts(t, ordered).When(Start{ref, 3}).Then(started)
	facts(t, ordered, started).When(Start{ref, 3}).Nothing()
	facts(t, ordered, started).When(Start{ref, 4}).Then(events.WorkStarted{Epoch: 4, Attempt: 2})
	facts(t, ordered, started).When(Start{ref, 2}).Refused("stale-epoch")
	facts(t, ordered, started, failed, retried).When(Start{ref, 3}).Then(events.WorkStarted{Epoch: 3, Attempt: 2})
	for _, closed := range []events.WorkEvent{done, failed, writeOff} {
		facts(t, ordered, started, closed).When(Start{ref, 4}).Refused("work-closed")
	}
	facts(t, ordered, started, undo, undone).When(Start{ref, 4}).Refused("work-closed")
	facts(t, ordered, started, undo, stuck).When(Start{ref, 4}).Refused("work-closed")
}

func TestAnUndoIsStartedByAnEpochToo(t *testing.T) {
	facts(t, ordered, undo).When(Start{ref, 1}).Then(events.WorkStarted{Epoch: 1, Attempt: 1})
	facts(t, ordered, started, undo).When(Start{ref, 3}).Nothing()
	again := facts(t, ordered, started, undo, events.WorkStarted{Epoch: 4, Attempt: 2})
	again.When(ReportDone{Ref: ref, Epoch: 4}).Nothing() // started is the undo, not the work
	again.When(ReportUndone{ref, 4}).Then(events.WorkUndone{Epoch: 4})
}

func TestReportDone(t *testing.T) {
	report := ReportDone{ref, 3, done.Result}
	facts(t, ordered, started).When(report).Then(done)
	facts(t, ordered, started, done).When(report).Nothing()
	facts(t, ordered).When(report).Refused("work-not-started")
	facts(t, ordered, started, failed).When(report).Refused("work-not-started")
	facts(t, ordered, started, undo).When(report).Nothing()
	facts(t, ordered, started, undo, undone).When(report).Nothing()
	facts(t, ordered, started, writeOff).When(report).Nothing()
}

func TestOnlyTheEpochThatHasTheOrderReports(t *testing.T) {
	late := []events.WorkEvent{ordered, started, events.WorkStarted{Epoch: 5, Attempt: 2}}
	facts(t, late...).When(ReportDone{Ref: ref, Epoch: 3}).Refused("stale-epoch")
	facts(t, late...).When(ReportFailed{Ref: ref, Epoch: 3}).Refused("stale-epoch")
	facts(t, late...).When(ReportDone{Ref: ref, Epoch: 6}).Refused("work-not-started")
	facts(t, late...).When(ReportFailed{Ref: ref, Epoch: 6}).Refused("work-not-started")
	late = append(late, undo)
	facts(t, late...).When(ReportUndone{ref, 3}).Refused("stale-epoch")
	facts(t, late...).When(ReportStuck{Ref: ref, Epoch: 3}).Refused("stale-epoch")
	facts(t, late...).When(ReportUndone{ref, 6}).Refused("work-not-started")
	facts(t, late...).When(ReportStuck{Ref: ref, Epoch: 6}).Refused("work-not-started")
}

func TestReportFailed(t *testing.T) {
	report := ReportFailed{ref, 3, why}
	facts(t, ordered, started).When(report).Then(failed)
	facts(t, ordered).When(report).Refused("work-not-started")
	facts(t, ordered, started, failed).When(report).Nothing()
	facts(t, ordered, started, done).When(report).Nothing()
	facts(t, ordered, started, undo).When(report).Nothing()
	facts(t, ordered, started, writeOff).When(report).Nothing()
}

func TestOrderUndo(t *testing.T) {
	order := OrderUndo{ref, why}
	for _, history := range [][]events.WorkEvent{{ordered}, {ordered, started}, {ordered, started, done}, {ordered, started, failed}} {
		facts(t, history...).When(order).Then(undo)
	}
	facts(t, ordered, undo).When(order).Nothing()
	facts(t, ordered, undo, undone).When(order).Nothing()
	facts(t, ordered, writeOff).When(order).Nothing()
}

func TestReportUndone(t *testing.T) {
	report := ReportUndone{ref, 3}
	facts(t, ordered, started, undo).When(report).Then(undone)
	facts(t, ordered, started, undo, stuck).When(report).Then(undone)
	facts(t, ordered, started, undo, undone).When(report).Nothing()
	facts(t, ordered, started, undo, writeOff).When(report).Nothing()
	facts(t, ordered, started).When(report).Refused("undo-not-ordered")
	facts(t, ordered, started, done).When(report).Refused("undo-not-ordered")
}

func TestReportStuck(t *testing.T) {
	report := ReportStuck{ref, 3, why}
	facts(t, ordered, started, undo).When(report).Then(stuck)
	facts(t, ordered, started, undo, stuck).When(report).Nothing()
	facts(t, ordered, started, undo, undone).When(report).Nothing()
	facts(t, ordered, started).When(report).Nothing()
}

func TestRetry(t *testing.T) {
	facts(t, ordered, started, failed).When(Retry{ref}).Then(retried)
	facts(t, ordered, started, undo, stuck).When(Retry{ref}).Then(retried)
	facts(t, ordered, started, undo, stuck, retried).When(ReportUndone{ref, 3}).Then(undone)
	for _, history := range [][]events.WorkEvent{{ordered}, {ordered, started}, {ordered, started, done}, {ordered, undo}, {ordered, writeOff}} {
		facts(t, history...).When(Retry{ref}).Nothing()
	}
}

func TestWriteOff(t *testing.T) {
	order := WriteOff{ref, why}
	for _, history := range [][]events.WorkEvent{{ordered}, {ordered, started}, {ordered, started, failed}, {ordered, started, undo}, {ordered, started, undo, stuck}} {
		facts(t, history...).When(order).Then(writeOff)
	}
	facts(t, ordered, started, done).When(order).Nothing()
	facts(t, ordered, started, undo, undone).When(order).Nothing()
	facts(t, ordered, writeOff).When(order).Nothing()
}
