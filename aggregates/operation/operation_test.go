package operation_test

import (
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/events"
)

func facts(t *testing.T, history ...events.OperationEvent) given.Case[State, events.OperationEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

func finished(o events.Outcome) events.OperationFinished {
	return events.OperationFinished{Outcome: o}
}

func TestAnOperationIsItsAccounts(t *testing.T) {
	for _, got := range []events.Aggregate{Cancel{"op"}.Aggregate("acme"), Retry{Operation: "op"}.Aggregate("acme"), Finish{Operation: "op"}.Aggregate("acme")} {
		if got.Subject() != "tombolo.events.acme._.operation.op" {
			t.Error(got)
		}
	}
}

func TestCancel(t *testing.T) {
	facts(t).When(Cancel{"op"}).Then(events.CancelAsked{})
	facts(t, events.CancelAsked{}).When(Cancel{"op"}).Nothing()
	for _, o := range []events.Outcome{events.Succeeded, events.RolledBack, events.Cancelled} {
		facts(t, finished(o)).When(Cancel{"op"}).Nothing()
	}
	facts(t, finished(events.Partly)).When(Cancel{"op"}).Then(events.CancelAsked{}) // what failed is not to be tried again
	facts(t, finished(events.Partly), events.RetryAsked{Attempt: 1}).When(Cancel{"op"}).Then(events.CancelAsked{})
}

func TestRetry(t *testing.T) {
	facts(t).When(Retry{"op", "sydney"}).Then(events.RetryAsked{Region: "sydney", Attempt: 1})
	facts(t, finished(events.Partly)).When(Retry{"op", ""}).Then(events.RetryAsked{Attempt: 1})
	facts(t, finished(events.LeftBehind)).When(Retry{"op", ""}).Then(events.RetryAsked{Attempt: 1})
	facts(t, finished(events.Partly), events.RetryAsked{Attempt: 1}, finished(events.Partly)).When(Retry{"op", ""}).Then(events.RetryAsked{Attempt: 2})
	facts(t, finished(events.Succeeded)).When(Retry{"op", ""}).Nothing()
	facts(t, finished(events.RolledBack)).When(Retry{"op", ""}).Refused("operation-undone")
	facts(t, events.CancelAsked{}).When(Retry{"op", ""}).Then(events.RetryAsked{Attempt: 1})
	facts(t, events.CancelAsked{}, finished(events.Cancelled)).When(Retry{"op", ""}).Refused("operation-undone")
	facts(t, finished(events.Cancelled)).When(Retry{"op", ""}).Refused("operation-undone")
}

func TestAnOutcomeIsSaidOncePerTry(t *testing.T) {
	why := &events.Cause{Code: "regions-failed"}
	partly := Finish{"op", events.Partly, why}
	facts(t).When(partly).Then(events.OperationFinished{Outcome: events.Partly, Cause: why})
	facts(t, finished(events.Partly)).When(partly).Nothing()
	facts(t, finished(events.Partly)).When(Finish{"op", events.Succeeded, nil}).Then(finished(events.Succeeded))
	for _, o := range []events.Outcome{events.Succeeded, events.RolledBack, events.Cancelled} {
		facts(t, finished(events.Partly), finished(o)).When(partly).Nothing()
		facts(t, finished(o)).When(Finish{"op", events.Cancelled, nil}).Nothing()
	}
	facts(t, finished(events.Partly), events.RetryAsked{Attempt: 1}).When(partly).Then(events.OperationFinished{Outcome: events.Partly, Cause: why})
}
