package processes

import (
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

// A manager that has fallen behind hears of a failure when somebody has asked
// for another try already.
func TestAFailureToldAfterARetryIsNotTheNewTrys(t *testing.T) {
	j := journal.NewMemory(events.NewRegistry(), time.Now)
	x := commands.NewExecutor(j, time.Now)
	ref := instance.Ref{Region: "sydney", Instance: instance.ID("acme", "73291467", 1, "sydney")}
	origin := func(id string) commands.Origin {
		return commands.Origin{Account: "acme", Actor: controlPlane, Command: events.CommandRef{ID: events.CommandID(id), Digest: events.DigestOf([]byte(id))}}
	}
	wanted := events.CopyWanted{Template: "73291467", Version: 1, Manifest: events.DigestOf(nil), Operation: "op"}
	if _, err := commands.Execute(t.Context(), x, origin("want"), "event", instance.Want{Ref: ref, CopyWanted: wanted}); err != nil {
		t.Fatal(err)
	}
	// The journal goes on while the manager has not begun: it waits for something, and is tried again.
	if _, err := commands.Execute(t.Context(), x, origin("wait"), "event", instance.ReportWaiting{Ref: ref, Cause: events.Cause{Code: "pool-exhausted"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := commands.Execute(t.Context(), x, origin("retry"), "event", instance.Retry{Ref: ref, Operation: "op"}); err != nil {
		t.Fatal(err)
	}
	history, err := j.Load(t.Context(), ref.Aggregate("acme"), events.Head{})
	if err != nil || len(history) != 3 {
		t.Fatal(history, err)
	}
	var h holding
	h.React(history[0])
	tell := func(step string) commands.Outcome {
		t.Helper()
		sends := h.copyFailed(events.Cause{Code: "store-full"})
		if len(sends) != 1 {
			t.Fatal(sends)
		}
		out, err := sends[0].execute(t.Context(), x, origin(step))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := tell("first failed"); out.Event != "" || out.Because == "" {
		t.Errorf("the failure of the first attempt became %q of the second", out.Event)
	}
	h.React(history[2])
	if out := tell("second failed"); out.Event != (events.CopyFailed{}).EventType() {
		t.Errorf("the second attempt's own failure: %+v", out)
	}
}
