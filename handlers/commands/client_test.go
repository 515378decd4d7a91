package commands_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/commands/client"
)

// TestAgentsClient: an accepted command, one that is repeated, refusals that are
// final, what the bus forbids, and a control plane that is not there.
func TestAgentsClient(t *testing.T) {
	w := newWorld(t)
	o := commands.Origin{Account: "acme", Command: events.CommandRef{ID: "order", Digest: events.DigestOf(nil)}}
	ref := work.Ref{Region: "sydney", Work: "w-1"}
	if _, err := commands.Execute(t.Context(), commands.NewExecutor(w.journal, w.now), o, "x",
		work.Order{Ref: ref, WorkOrdered: events.WorkOrdered{Kind: events.WorkSave, Operation: "o"}}); err != nil {
		t.Fatal(err)
	}
	agent := client.New(w.tcp(t, "sydney"), "sydney")
	start := func(account events.AccountID, kind events.Kind, verb string, id events.CommandID, ref work.Ref) (uint64, error) {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		return agent.Command(ctx, "o", account, kind, verb, id, work.Start{Ref: ref, Epoch: 1})
	}
	for range 2 {
		if n, err := start("acme", events.KindWork, "start", "s-1", ref); err != nil || n != 2 {
			t.Fatalf("sequence %d, %v; want 2", n, err)
		}
	}
	if h := w.history(t, ref.Aggregate("acme")); h[1].Correlation != "o" {
		t.Errorf("what the agent began is of %q, not of the operation", h[1].Correlation)
	}
	for _, c := range []struct {
		what    string
		account events.AccountID
		kind    events.Kind
		verb    string
		ref     work.Ref
		code    string
	}{
		{"another region's work", "acme", events.KindWork, "start", work.Ref{Region: "beijing", Work: "w-1"}, "access-denied"},
		{"work that is not there", "acme", events.KindWork, "start", work.Ref{Region: "sydney", Work: "w-2"}, "work-unknown"},
		{"what only people say", "acme", events.KindTemplate, "delete", ref, "not-permitted"},
		{"what only administrators say", events.None, events.KindRegion, "takeover", ref, "not-permitted"},
	} {
		_, err := start(c.account, c.kind, c.verb, "x-1", c.ref)
		if r, ok := aggregates.AsRefusal(err); !ok || r.Code != c.code {
			t.Errorf("%s: %v, want %s", c.what, err, c.code)
		}
	}

	// Progress reaches the tenant.
	got := make(chan *nats.Msg, 1)
	ann := w.tcp(t, "ann")
	if _, err := ann.ChanSubscribe("tombolo.progress.acme.>", got); err != nil {
		t.Fatal(err)
	}
	if err := ann.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := agent.Progress("acme", "w-1", map[string]int{"bytes_done": 7}); err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-got:
		var p map[string]int
		if err := json.Unmarshal(m.Data, &p); err != nil || p["bytes_done"] != 7 || m.Subject != "tombolo.progress.acme.sydney.w-1" {
			t.Errorf("%s: %s", m.Subject, m.Data)
		}
	case <-time.After(wait):
		t.Error("no progress came")
	}

	// A control plane that has gone is no refusal.
	if err := w.service.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := start("acme", events.KindWork, "start", "s-1", ref)
	var away *client.Unavailable
	if _, refused := aggregates.AsRefusal(err); !errors.As(err, &away) || refused {
		t.Errorf("without a control plane: %v", err)
	}
}
