package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// TestAgentFollowsTheJournal with its own permissions, over a restart of the
// server, and appends nothing.
func TestAgentFollowsTheJournal(t *testing.T) {
	p := newPlace(t)
	p.append(t, "acme", "acme", "one")
	p.append(t, "beta", "beta", "two")
	agent := p.as(t, "sydney", nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0))
	j, err := journal.Open(t.Context(), agent.Conn, journal.Options{Registry: events.NewRegistry(), Known: p.journal.ID()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	got, ended := make(chan events.Record, 10), make(chan error, 1)
	go func() {
		ended <- j.Follow(ctx, 0, func(r events.Record) error { got <- r; return nil })
	}()
	expect := func(text string) {
		t.Helper()
		select {
		case r := <-got:
			if e, ok := r.Event.(events.AccountCreated); !ok || e.Display != text {
				t.Fatalf("got %+v, want %s", r, text)
			}
		case err := <-ended:
			t.Fatalf("following ended: %v", err)
		case <-brief(t).Done():
			t.Fatalf("%s does not come", text)
		}
	}
	expect("one")
	expect("two")
	p.append(t, "acme", "acme", "three")
	expect("three")
	p.stop(t)
	p.start(t)
	p.append(t, "acme", "acme", "four")
	expect("four")

	_, err = j.Append(brief(t), journal.Proposal{Aggregate: events.Aggregate{Account: "acme", Region: events.None, Kind: events.KindAccount, ID: "x"},
		ID: events.DeriveID("acme", "forged", "test"), Actor: events.Actor{Account: "acme", User: "ann"}, Command: events.CommandRef{ID: "forged", Digest: events.DigestOf(nil)},
		Correlation: "test", Event: events.AccountCreated{Display: "forged"}})
	if err == nil {
		t.Error("an agent has appended")
	}
	if tip, err := p.journal.Tip(t.Context()); err != nil || tip != 4 {
		t.Errorf("the journal is at %d: %v", tip, err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("following ended with %v", err)
	}
}

// TestOnlyReadersConsumersOfTheJournal: a consumer that would deliver events to
// a subject of Core, or change one that is there, is not made.
func TestOnlyReadersConsumersOfTheJournal(t *testing.T) {
	p := newPlace(t)
	p.append(t, "acme", "acme", "one")
	js, err := jetstream.New(p.core)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(t.Context(), journal.StreamName, jetstream.ConsumerConfig{Durable: "mine", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	reader := func() map[string]any {
		return map[string]any{"name": "r", "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant", "mem_storage": true, "inactive_threshold": 30e9, "num_replicas": 1}
	}
	with := func(k string, v any) map[string]any { m := reader(); m[k] = v; return m }
	got := p.listen(t, "tombolo.command.>")
	agent := p.as(t, "sydney")
	for name, c := range map[string]struct {
		subject string
		config  map[string]any
		accept  bool
	}{
		"a reader":                   {"r", reader(), true},
		"delivery to a command":      {"r", with("deliver_subject", "tombolo.command.acme.template.delete"), false},
		"a durable":                  {"r", with("durable_name", "r"), false},
		"acknowledgements":           {"r", with("ack_policy", "explicit"), false},
		"on disk":                    {"r", with("mem_storage", false), false},
		"for ever":                   {"r", with("inactive_threshold", 0), false},
		"another's":                  {"mine", with("name", "mine"), false},
		"samples to a subject":       {"r", with("sample_freq", "100"), false},
		"a field yet to be invented": {"r", with("deliver_somewhere", "x"), false},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := json.Marshal(map[string]any{"stream_name": "EVENTS", "config": c.config, "action": ""})
			if err != nil {
				t.Fatal(err)
			}
			m := nats.NewMsg("$JS.API.CONSUMER.CREATE.EVENTS." + c.subject)
			m.Data = body
			answer, err := agent.RequestMsgWithContext(brief(t), m)
			if err != nil {
				t.Fatal(err)
			}
			var response struct{ Error *jetstream.APIError }
			if err := json.Unmarshal(answer.Data, &response); err != nil {
				t.Fatal(err)
			}
			if accepted := response.Error == nil; accepted != c.accept {
				t.Errorf("the answer is %s", answer.Data)
			}
		})
	}
	stream, err := js.Stream(t.Context(), journal.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for info := range stream.ListConsumers(t.Context()).Info() {
		names = append(names, info.Name)
		if info.Name == "mine" && info.Config.AckPolicy != jetstream.AckExplicitPolicy {
			t.Error("another's consumer was changed")
		}
	}
	for _, n := range names {
		if n != "mine" && n != "r" {
			t.Errorf("there is a consumer %s", n)
		}
	}
	if !slices.Contains(names, "mine") {
		t.Errorf("the consumers are %v", names)
	}
	select {
	case h := <-got:
		t.Errorf("an event was delivered as a command: %+v", h)
	default:
	}
}

// TestRepliesAreNoCommands: whoever asks something names the subject of the
// answer. Where that is a command's, nothing may be heard that looks like the
// control plane's own or another user's command.
func TestRepliesAreNoCommands(t *testing.T) {
	p := newPlace(t)
	p.append(t, "acme", "acme", "one")
	if _, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "s"}); err != nil {
		t.Fatal(err)
	}
	got := p.listen(t, "tombolo.command.*.template.delete")
	p.listen(t, "tombolo.command.*.echo.echo")
	p.listen(t, "tombolo.document.get")
	for _, c := range []struct{ who, ask, reply string }{
		{"ann", "tombolo.command.acme.echo.echo", "tombolo.command.acme.template.delete"},
		{"ann", "tombolo.command.acme.echo.echo", "tombolo.command.beta.template.delete"},
		{"rita", "$SRV.PING", "tombolo.command.acme.template.delete"},
		{"rita", "tombolo.subscribe.acme", "tombolo.command.acme.template.delete"},
		{"rita", "tombolo.api.STREAM.INFO.EVENTS_acme", "tombolo.command.acme.template.delete"},
		{"rita", "tombolo.api.CONSUMER.MSG.NEXT.EVENTS_acme.s", "tombolo.command.acme.template.delete"},
		{"sydney", "tombolo.document.get", "tombolo.command._.template.delete"},
		{"sydney", "$JS.API.STREAM.INFO.EVENTS", "tombolo.command.acme.template.delete"},
		{"sydney", "$JS.API.STREAM.MSG.GET.EVENTS", "tombolo.command.acme.template.delete"},
	} {
		conn := p.as(t, c.who)
		if err := conn.PublishRequest(c.ask, c.reply, []byte(`{"name":"x","seq":1}`)); err != nil {
			t.Fatal(err)
		}
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		// What the answer passes through is passed by this as well.
		m := nats.NewMsg(c.ask)
		m.Data = []byte(`{"no_wait":true}`)
		if _, err := conn.RequestMsgWithContext(brief(t), m); err != nil {
			t.Fatal(err)
		}
	drain:
		for {
			select {
			case h := <-got:
				_, known := p.users.ByNKey(h.user)
				t.Logf("%s by %s: %+v", c.ask, c.who, h)
				if !h.told || known {
					t.Errorf("the answer to %s, asked by %s, is heard as a command: %+v", c.ask, c.who, h)
				}
			default:
				break drain
			}
		}
	}
	if _, err := p.as(t, "ann").RequestMsgWithContext(brief(t), nats.NewMsg("tombolo.command.acme.template.delete")); err != nil {
		t.Fatal(err)
	}
	if h := <-got; h.user != p.people["ann"].public {
		t.Errorf("a command itself is heard as %+v", h)
	}
}
