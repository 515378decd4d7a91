package bus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// next reads so many events of a subscription with an ordinary client, and
// acknowledges them: "<sequence> <what was said>".
func next(t *testing.T, conn *bus.Conn, s bus.Subscribed, n int) []string {
	t.Helper()
	js, err := jetstream.NewWithAPIPrefix(conn.Conn, s.APIPrefix)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.Consumer(brief(t), s.Stream, s.Consumer)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for range n {
		m, err := consumer.Next(jetstream.FetchMaxWait(time.Minute))
		if err != nil {
			t.Fatalf("after %v: %v", out, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		var e struct{ Display, Region string }
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			t.Fatal(err)
		}
		if err := m.DoubleAck(brief(t)); err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(meta.Sequence.Stream, " ", e.Display, e.Region))
	}
	return out
}

func (p *place) addRegion(t *testing.T, id events.RegionID) {
	t.Helper()
	_, err := p.journal.Append(t.Context(), journal.Proposal{
		Aggregate: events.Aggregate{Account: events.None, Region: id, Kind: events.KindRegion, ID: string(id)},
		ID:        events.DeriveID(events.None, events.CommandID(id), "test"), Time: time.Now().UTC(), Actor: events.Actor{Account: events.None, User: "admin"},
		Command:     events.CommandRef{ID: events.CommandID(id), Digest: events.DigestOf([]byte(id))},
		Correlation: "test", Event: events.RegionAdded{Region: id, Profile: events.RegionProfile{Name: string(id)}}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSubscription: a tenant gets its own events and the regions', with the
// journal's sequences, and goes on where it was after it, or the server, was away.
func TestSubscription(t *testing.T) {
	p := newPlace(t)
	p.append(t, "acme", "acme", "one")            // 1
	p.append(t, "beta", "beta", "two")            // 2
	p.append(t, events.None, "somebody", "three") // 3, not public
	p.addRegion(t, "sydney")                      // 4
	p.append(t, "acme", "acme", "five")           // 5
	s, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "mailer"})
	if err != nil {
		t.Fatal(err)
	}
	if want := (bus.Subscribed{Stream: "EVENTS_acme", Consumer: "mailer", APIPrefix: "tombolo.api"}); s != want {
		t.Fatalf("the answer is %+v", s)
	}
	equal := func(got []string, want ...string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	equal(next(t, p.as(t, "ann"), s, 2), "1 one", "4 sydney")
	p.append(t, "acme", "acme", "six")
	p.stop(t)
	p.start(t)
	p.append(t, "beta", "beta", "seven")
	p.append(t, "acme", "acme", "eight")
	if again, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "mailer"}); err != nil || again != s {
		t.Errorf("asked again, the answer is %+v: %v", again, err)
	}
	equal(next(t, p.as(t, "ann"), s, 3), "5 five", "6 six", "8 eight")

	regions, err := p.subscribe(t, "rita", "acme", bus.Subscription{Name: "regions", Kinds: []events.Kind{"region", "template"}, Regions: []events.RegionID{"sydney"}})
	if err != nil {
		t.Fatal(err)
	}
	equal(next(t, p.as(t, "rita"), regions, 1), "4 sydney")
	after, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "after", After: 5, Kinds: []events.Kind{"account"}, Window: 10})
	if err != nil {
		t.Fatal(err)
	}
	equal(next(t, p.as(t, "ann"), after, 2), "6 six", "8 eight")
	bobs, err := p.subscribe(t, "bob", "beta", bus.Subscription{Name: "mailer"})
	if err != nil {
		t.Fatal(err)
	}
	equal(next(t, p.as(t, "bob"), bobs, 3), "2 two", "4 sydney", "7 seven")
}

// TestRoomCountsMirrors: what a tenant's events take in its mirror is counted
// beside what they take in the journal.
func TestRoomCountsMirrors(t *testing.T) {
	p := newPlace(t)
	s, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "mailer"})
	if err != nil {
		t.Fatal(err)
	}
	before, most, err := p.server.Room()
	if err != nil || most <= before || most > uint64(p.server.MaxStore()) {
		t.Fatalf("%d of %d bytes, and at most %d, %v", before, most, p.server.MaxStore(), err)
	}
	const n = 16
	for range n {
		p.append(t, "acme", "acme", strings.Repeat("x", 1<<10))
	}
	next(t, p.as(t, "ann"), s, n) // the mirror has them
	took, _, err := p.journal.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if used, _, err := p.server.Room(); err != nil || took < n<<10 || used-before < 2*took-took/10 {
		t.Errorf("%d bytes in the journal, %d more in all streams, %v", took, used-before, err)
	}
}

func TestRefusedSubscriptions(t *testing.T) {
	p := newPlace(t)
	good := bus.Subscription{Name: "s", Kinds: []events.Kind{"template"}}
	if _, err := p.subscribe(t, "ann", "acme", good); err != nil {
		t.Fatal(err)
	}
	many := make([]events.RegionID, 65)
	for i := range many {
		many[i] = events.RegionID(fmt.Sprint("r", i))
	}
	for name, c := range map[string]struct {
		who, subject string
		body         any
		want         bus.Code
	}{
		"no name":          {"ann", "tombolo.subscribe.acme", bus.Subscription{}, bus.BadSubscription},
		"a path":           {"ann", "tombolo.subscribe.acme", bus.Subscription{Name: "../x"}, bus.BadSubscription},
		"a pattern":        {"ann", "tombolo.subscribe.acme", bus.Subscription{Name: "s", Kinds: []events.Kind{">"}}, bus.BadSubscription},
		"two tokens":       {"ann", "tombolo.subscribe.acme", bus.Subscription{Name: "s", Regions: []events.RegionID{"a.b"}}, bus.BadSubscription},
		"a huge window":    {"ann", "tombolo.subscribe.acme", bus.Subscription{Name: "s", Window: 1e6}, bus.BadSubscription},
		"too many filters": {"ann", "tombolo.subscribe.acme", bus.Subscription{Name: "s", Regions: many}, bus.BadSubscription},
		"a subject":        {"ann", "tombolo.subscribe.acme", map[string]string{"name": "s", "deliver_subject": "x"}, bus.BadSubscription},
		"another filter":   {"ann", "tombolo.subscribe.acme", bus.Subscription{Name: "s"}, bus.SubscriptionDiffers},
		"another start":    {"ann", "tombolo.subscribe.acme", bus.Subscription{Name: "s", Kinds: good.Kinds, After: 1}, bus.SubscriptionDiffers},
		"no such account":  {"admin", "tombolo.subscribe.gamma", good, bus.AccountUnknown},
		"no such name":     {"ann", "tombolo.unsubscribe.acme", map[string]string{"name": "t"}, bus.SubscriptionUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			var out bus.Subscribed
			err := p.ask(t, c.who, c.subject, c.body, &out)
			var e *bus.Error
			if !errors.As(err, &e) || e.Code != c.want {
				t.Errorf("got %+v, %v; want %s", out, err, c.want)
			}
		})
	}
	for i := range bus.MaxSubscriptions - 1 {
		if _, err := p.subscribe(t, "admin", "acme", bus.Subscription{Name: fmt.Sprint("s", i)}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "too-many"})
	if e := (*bus.Error)(nil); !errors.As(err, &e) || e.Code != bus.TooManySubscriptions {
		t.Errorf("one too many: %v", err)
	}
	if err := p.ask(t, "ann", "tombolo.unsubscribe.acme", map[string]string{"name": "s"}, &bus.Subscribed{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "s"}); err != nil {
		t.Errorf("after unsubscribing, the name cannot be used: %v", err)
	}
}

// TestOneTenantsSubscriptionsAreNotAnothers: same names, and every subject with
// which one could touch the other's.
func TestOneTenantsSubscriptionsAreNotAnothers(t *testing.T) {
	p := newPlace(t)
	p.append(t, "beta", "beta", "one")
	p.append(t, "beta", "beta", "two")
	bobs, err := p.subscribe(t, "bob", "beta", bus.Subscription{Name: "s", Kinds: []events.Kind{"account"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.subscribe(t, "ann", "acme", bus.Subscription{Name: "s", Kinds: []events.Kind{"template"}}); err != nil {
		t.Fatal(err)
	}
	if err := p.ask(t, "ann", "tombolo.unsubscribe.acme", map[string]string{"name": "s"}, &bus.Subscribed{}); err != nil {
		t.Fatal(err)
	}
	ann := p.as(t, "ann")
	for _, subject := range []string{
		"tombolo.api.CONSUMER.MSG.NEXT.EVENTS_beta.s", "tombolo.api.CONSUMER.INFO.EVENTS_beta.s", "$JS.ACK.EVENTS_beta.s.1.1.1.1.1",
		"tombolo.api.CONSUMER.DELETE.EVENTS_beta.s", "$JS.API.CONSUMER.MSG.NEXT.EVENTS_beta.s", "tombolo.unsubscribe.beta",
	} {
		m := nats.NewMsg(subject)
		m.Data = []byte(`{"name":"s"}`)
		_, err := ann.RequestMsgWithContext(brief(t), m)
		if e := (*bus.Error)(nil); !errors.As(err, &e) || e.Code != bus.NotPermitted {
			t.Errorf("%s: %v", subject, err)
		}
	}
	if got := next(t, p.as(t, "bob"), bobs, 2); !slices.Equal(got, []string{"1 one", "2 two"}) {
		t.Errorf("bob gets %q", got)
	}
}

// TestDiscovery: nats micro ls works in a tenant.
func TestDiscovery(t *testing.T) {
	p := newPlace(t)
	for who, verbs := range map[string][]string{"rita": {"PING", "INFO"}, "admin": {"PING", "INFO", "STATS"}} {
		conn := p.as(t, who)
		for _, verb := range verbs {
			for _, subject := range []string{"$SRV." + verb, "$SRV." + verb + ".tombolo-feeds"} {
				answer, err := conn.RequestMsgWithContext(brief(t), nats.NewMsg(subject))
				if err != nil {
					t.Fatalf("%s as %s: %v", subject, who, err)
				}
				var ping micro.Ping
				if err := json.Unmarshal(answer.Data, &ping); err != nil || ping.Name != "tombolo-feeds" {
					t.Errorf("%s answers %s", subject, answer.Data)
				}
			}
		}
	}
}

// TestProgress goes to the tenant concerned, to administrators and to the
// control plane, and to each once.
func TestProgress(t *testing.T) {
	p := newPlace(t)
	got := make(chan string, 20)
	watch := func(who string, conn *nats.Conn, subject string) {
		t.Helper()
		if _, err := conn.Subscribe(subject, func(m *nats.Msg) { got <- who + " " + string(m.Data) }); err != nil {
			t.Fatal(err)
		}
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	watch("ann", p.as(t, "ann").Conn, "tombolo.progress.acme.>")
	watch("bob", p.as(t, "bob").Conn, "tombolo.progress.beta.>")
	watch("admin", p.as(t, "admin").Conn, "tombolo.progress.>")
	watch("core", p.core, "tombolo.progress.>")
	agent := p.as(t, "sydney")
	for _, subject := range []string{"tombolo.progress.acme.sydney.w1", "tombolo.progress.beta.sydney.w2"} {
		if err := agent.Publish(subject, []byte(subject[len("tombolo.progress."):])); err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	for range 6 {
		select {
		case s := <-got:
			all = append(all, s)
		case <-brief(t).Done():
			t.Fatalf("only %q came", all)
		}
	}
	slices.Sort(all)
	want := []string{"admin acme.sydney.w1", "admin beta.sydney.w2", "ann acme.sydney.w1", "bob beta.sydney.w2", "core acme.sydney.w1", "core beta.sydney.w2"}
	if !slices.Equal(all, want) {
		t.Errorf("got %q, want %q", all, want)
	}
}
