package commands_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	aggregatenumber "github.com/tombolo-vdc/tombolo/aggregates/number"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

const create = `{"environment":"env-1","region":"sydney","name":"Ajax Sales Demo","regions":["beijing"]}`

func TestTemplateCreate(t *testing.T) {
	w := newWorld(t)
	ann := w.as(t, "ann")
	first := send(t, ann, "tombolo.command.acme.template.create", "c-1", create).ok(t)
	if first.Event != "template.created" || first.Revision != 1 || first.Operation == "" || len(first.ID) != 8 || first.CommandID != "c-1" {
		t.Fatalf("%+v", first.Answer)
	}
	again := send(t, ann, "tombolo.command.acme.template.create", "c-1", " "+strings.ReplaceAll(create, ",", " , ")).ok(t)
	if !reflect.DeepEqual(first, again) {
		t.Errorf("the same command has another answer:\n%+v\n%+v", first, again)
	}
	tip, err := w.journal.Tip(t.Context())
	if err != nil || tip != 3 { // number, name, template
		t.Errorf("%d events, %v", tip, err)
	}
	records := w.history(t, template.Of("acme", events.TemplateID(first.ID)))
	if r := records[0]; len(records) != 1 || r.Actor != (events.Actor{Account: "acme", User: "ann"}) || r.Correlation != string(first.Operation) {
		t.Errorf("%+v", records)
	}
	created := records[0].Event.(events.TemplateCreated)
	if created.Name != "ajax-sales-demo" || created.Display != "Ajax Sales Demo" || !reflect.DeepEqual(created.Regions, []events.RegionID{"beijing", "sydney"}) {
		t.Errorf("%+v", created)
	}
	claimed := w.history(t, name.Of("acme", "", "ajax-sales-demo"))[0].Event.(events.NameClaimed)
	if claimed.Owner != first.ID || claimed.Until.Before(time.Now().Add(commands.ClaimTime-time.Minute)) {
		t.Errorf("%+v", claimed)
	}
	if n := w.history(t, aggregatenumber.Of(events.TemplateID(first.ID)))[0].Event.(events.NumberClaimed); n.Owner != string(first.Operation) || n.Account != "acme" {
		t.Errorf("%+v", n)
	}

	send(t, ann, "tombolo.command.acme.template.create", "c-1", strings.Replace(create, "Ajax", "Zorro", 1)).wants(t, "command-id-reused", "409")
	send(t, ann, "tombolo.command.acme.template.create", "c-2", create).wants(t, "name-in-use", "409")
	asked := strings.Replace(create, `"name":"Ajax`, `"number":"73291467","protected":true,"name":"Other`, 1)
	if r := send(t, ann, "tombolo.command.acme.template.create", "c-3", asked).ok(t); r.ID != "73291467" {
		t.Errorf("%+v", r.Answer)
	}
	if r := w.history(t, template.Of("acme", "73291467")); len(r) != 2 || r[1].Event.EventType() != "template.protection-set" {
		t.Errorf("%+v", r)
	}
	send(t, w.as(t, "eve"), "tombolo.command.other.template.create", "c-4", asked).wants(t, "number-in-use", "409")
}

// A command that was cut short between its claims and its first event, and is
// sent again when its claims have run out, makes one template with claims that hold.
func TestTemplateCreateResumed(t *testing.T) {
	w := newWorld(t)
	ann := w.as(t, "ann")
	// The name is taken at first: the number is claimed and nothing else.
	send(t, ann, "tombolo.command.acme.template.create", "first", create).ok(t)
	const second = `{"environment":"env-2","region":"sydney","name":"ajax sales  demo"}`
	send(t, ann, "tombolo.command.acme.template.create", "second", second).wants(t, "name-in-use", "409")
	start := time.Now()
	w.now = func() time.Time { return start.Add(2 * commands.ClaimTime) } // nobody confirmed
	r := send(t, ann, "tombolo.command.acme.template.create", "second", second).ok(t)
	if again := send(t, ann, "tombolo.command.acme.template.create", "second", second).ok(t); !reflect.DeepEqual(r, again) {
		t.Errorf("%+v\n%+v", r, again)
	}
	claims := w.history(t, aggregatenumber.Of(events.TemplateID(r.ID)))
	if len(claims) != 2 || claims[1].Event.(events.NumberClaimed).Until.Before(w.now()) {
		t.Errorf("the claim to the number was not renewed: %+v", claims)
	}
	if n := w.history(t, name.Of("acme", "", "ajax-sales-demo")); len(n) != 2 || n[1].Event.(events.NameClaimed).Owner != r.ID {
		t.Errorf("%+v", n)
	}
}

// A command whose first number was another's at the time stays with its second
// when the first becomes free.
func TestTemplateCreateKeepsItsNumber(t *testing.T) {
	first := send(t, newWorld(t).core, "tombolo.command.acme.template.create", "c-1", create).ok(t)
	w := newWorld(t)
	o := commands.Origin{Account: "other", Command: events.CommandRef{ID: "theirs", Digest: events.DigestOf(nil)}}
	_, err := commands.Execute(t.Context(), commands.NewExecutor(w.journal, w.now), o, "x", aggregatenumber.Claim{
		Number: events.TemplateID(first.ID), Account: "other", Owner: "theirs", Until: time.Now().Add(commands.ClaimTime)})
	if err != nil {
		t.Fatal(err)
	}
	second := send(t, w.core, "tombolo.command.acme.template.create", "c-1", create).ok(t)
	if second.ID == first.ID {
		t.Fatal("it took another's number")
	}
	start := time.Now()
	w.now = func() time.Time { return start.Add(2 * commands.ClaimTime) }
	if again := send(t, w.core, "tombolo.command.acme.template.create", "c-1", create).ok(t); !reflect.DeepEqual(again, second) {
		t.Errorf("%+v\n%+v", second, again)
	}
}

// closed is a journal that takes no template.
type closed struct{ journal.Journal }

func (c closed) Append(ctx context.Context, p journal.Proposal) (events.Record, error) {
	if p.Aggregate.Kind == events.KindTemplate {
		return events.Record{}, &journal.FullError{Type: p.Event.EventType()}
	}
	return c.Journal.Append(ctx, p)
}

// Of claims that an earlier try made only the record is sure. What ran out in the
// meantime is claimed again, and is refused if somebody else has it by now.
func TestTemplateCreateClaimsAgain(t *testing.T) {
	w := newWorld(t)
	start := time.Now()
	shut := w.newDoor(t, closed{w.journal})
	request := func(id events.CommandID) commands.Request {
		return commands.Request{Account: "acme", Kind: "template", Verb: "create", Command: id, From: w.users["actor:acme/ann"],
			Body: []byte(`{"environment":"e","region":"sydney","name":"one name"}`)}
	}
	claims := func() int { return len(w.history(t, name.Of("acme", "", "one-name"))) }
	for try := range 3 { // cut short again and again, each time after the claims have run out
		w.now = func() time.Time { return start.Add(time.Duration(try) * 2 * commands.ClaimTime) }
		if _, err := shut.Do(t.Context(), request("mine")); commands.FailureOf(err, slog.New(slog.DiscardHandler)).Code != "journal-nearly-full" {
			t.Fatal(err)
		}
		if claims() != try+1 {
			t.Errorf("try %d: %d claims to the name", try, claims())
		}
	}
	w.now = func() time.Time { return start.Add(6 * commands.ClaimTime) }
	theirs, err := w.door.Do(t.Context(), request("theirs"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.door.Do(t.Context(), request("mine")); commands.FailureOf(err, slog.New(slog.DiscardHandler)).Code != "name-in-use" {
		t.Errorf("a claim that ran out counts: %v", err)
	}
	w.now = func() time.Time { return start.Add(60 * commands.ClaimTime) }
	before := claims()
	if again, err := w.door.Do(t.Context(), request("theirs")); err != nil || again != theirs || claims() != before {
		t.Errorf("what is done is claimed again: %+v, %v, %d claims", again, err, claims()-before)
	}
}

const graphOK = `{"nodes":[{"id":"web","type":"machine","name":"Web","power":"running","items":[{"name":"root","class":"production","kind":"disk","size":1048576}],` +
	`"resources":[{"id":"web.public","type":"public-address","value":"203.0.113.7"}]}],"edges":[]}`

func TestEnvironmentCreate(t *testing.T) {
	w := newWorld(t)
	ann := w.as(t, "ann")
	body := `{"name":"Shop 1","region":"sydney","graph":` + graphOK + `}`
	r := send(t, ann, "tombolo.command.acme.environment.create", "e-1", body).ok(t)
	if again := send(t, ann, "tombolo.command.acme.environment.create", "e-1", body).ok(t); !reflect.DeepEqual(r, again) || r.Region != "sydney" {
		t.Errorf("%+v\n%+v", r, again)
	}
	e := w.history(t, environment.Of("acme", "sydney", events.EnvironmentID(r.ID)))[0].Event.(events.EnvironmentDeclared)
	want := []events.DiskWanted{{Name: "web/root", Bytes: 1 << 20}}
	if !reflect.DeepEqual(e.Disks, want) || e.Name != "shop-1" || e.Resources[0].Value != "203.0.113.7" || e.Until.IsZero() || e.Operation != r.Operation {
		t.Errorf("%+v", e)
	}
	if doc, err := w.docs.Get(t.Context(), e.Graph); err != nil || !strings.HasPrefix(string(doc), `{"edges":[],"nodes":[{"id":"web"`) {
		t.Errorf("%s, %v", doc, err)
	}
	send(t, ann, "tombolo.command.acme.environment.create", "e-2", body).wants(t, "name-in-use", "409")
	send(t, ann, "tombolo.command.acme.environment.create", "e-3", strings.Replace(body, "sydney", "beijing", 1)).ok(t) // a name of another region

	bad := strings.NewReplacer(`"size":1048576`, `"size":7,"digest":"`+string(e.Graph)+`"`, `"type":"machine"`, `"type":"Mach ine"`).Replace(body)
	f := send(t, ann, "tombolo.command.acme.environment.create", "e-4", bad)
	f.wants(t, "graph-invalid", "400")
	codes := map[string]bool{}
	for _, finding := range f.Error.Findings {
		codes[finding.Code] = true
	}
	for _, code := range []string{"bad-size", "bad-type", "digest-not-allowed"} {
		if !codes[code] {
			t.Errorf("%s is missing among %+v", code, f.Error.Findings)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	people := map[string]*nats.Conn{"ann": w.as(t, "ann"), "bob": w.as(t, "bob"), "gone": w.as(t, "gone"), "core": w.core}
	const protect = `{"template":"10000001","protected":true}`
	for _, c := range []struct {
		what, who, subject, body, code, status string
		headers                                []string
	}{
		{"unknown verb", "ann", "command.acme.template.explode", protect, "command-unknown", "404", nil},
		{"unknown kind", "ann", "command.acme.teapot.protect", protect, "command-unknown", "404", nil},
		{"no JSON", "ann", "command.acme.template.protect", `{"template":`, "bad-request", "400", nil},
		{"empty", "ann", "command.acme.template.protect", ``, "bad-request", "400", nil},
		{"list", "ann", "command.acme.template.protect", `[1]`, "bad-request", "400", nil},
		{"two objects", "ann", "command.acme.template.protect", protect + protect, "bad-request", "400", nil},
		{"twice the same field", "ann", "command.acme.template.protect", `{"template":"10000001","protected":true,"protected":false}`, "bad-request", "400", nil},
		{"unknown field", "ann", "command.acme.template.protect", `{"template":"10000001","protected":true,"colour":1}`, "bad-request", "400", nil},
		{"missing field", "ann", "command.acme.template.protect", `{"template":"10000001"}`, "bad-request", "400", nil},
		{"wrong type", "ann", "command.acme.template.protect", `{"template":"10000001","protected":"yes"}`, "bad-request", "400", nil},
		{"nested unknown field", "ann", "command.acme.template.replace", `{"template":"10000001","source":{"planet":"mars"}}`, "bad-request", "400", nil},
		{"the door's own field", "ann", "command.acme.template.delete", `{"template":"10000001","operation":"mine"}`, "bad-request", "400", nil},
		{"the door's own field, shouted", "ann", "command.acme.template.delete", `{"template":"10000001","OPERATION":"mine"}`, "bad-request", "400", nil},
		{"no token", "ann", "command.acme.template.protect", `{"template":"a.>","protected":true}`, "bad-name", "400", nil},
		{"too large", "ann", "command.acme.template.protect", `{"template":"` + strings.Repeat("1", commands.MaxBody) + `","protected":true}`, "too-large", "400", nil},
		{"stale revision", "ann", "command.acme.template.protect", protect, "stale-revision", "409", []string{"tombolo-if-revision", "7"}},
		{"no revision", "ann", "command.acme.template.protect", protect, "bad-request", "400", []string{"tombolo-if-revision", "new"}},
		{"revision of what is not there", "ann", "command.acme.template.create", create, "bad-request", "400", []string{"tombolo-if-revision", "1"}},
		{"bad id", "ann", "command.acme.template.protect", protect, "bad-request", "400", []string{"tombolo-command-id", strings.Repeat("x", 65)}},
		{"bad name", "ann", "command.acme.template.create", strings.Replace(create, "Ajax", "Äjax", 1), "name-invalid", "400", nil},
		{"unknown template", "ann", "command.acme.template.protect", strings.Replace(protect, "1000", "2000", 1), "template-unknown", "404", nil},
		{"reader", "bob", "command.acme.template.protect", protect, "access-denied", "403", nil},
		{"removed user", "gone", "command.acme.template.protect", protect, "user-unknown", "403", nil},
		{"forged actor", "bob", "command.acme.template.protect", protect, "access-denied", "403",
			[]string{"tombolo-actor-account", "acme", "tombolo-actor-user", "ann", "Nats-Request-Info", `{"acc":"acme","user":"ann"}`}},
		{"ours, in a tenant's account", "ann", "command.acme.region.add", `{}`, "wrong-account", "403", nil},
		{"a tenant's, in ours", "core", "command._.template.protect", protect, "wrong-account", "403", nil},
		{"unknown actor", "core", "command.acme.template.protect", protect, "user-unknown", "403", []string{"tombolo-actor-account", "acme", "tombolo-actor-user", "zoe"}},
	} {
		r := send(t, people[c.who], "tombolo."+c.subject, "", c.body, c.headers...)
		if r.Error == nil || r.Error.Code != c.code || r.status != c.status || r.Error.Text == "" {
			t.Errorf("%s: got %+v %+v %s; want %s", c.what, r.Answer, r.Error, r.status, c.code)
		}
	}
	r := send(t, people["ann"], "tombolo.command.acme.template.protect", "", `{"template":"10000001","protected":true,"colour":1}`)
	if !strings.Contains(r.Error.Text, `"colour"`) {
		t.Errorf("the unknown field is not named: %s", r.Error.Text)
	}
	if n := len(w.history(t, template.Of("acme", "10000001"))); n != 1 {
		t.Errorf("%d events after refusals only", n)
	}

	// Somebody else's account is out of reach altogether.
	_, err := commands.NewClient(w.tcp(t, "ann")).Do(t.Context(), "other", "template", "protect", "o-1", template.Protect{Template: "10000001"})
	if refusal, ok := aggregates.AsRefusal(err); !ok || refusal.Code != "not-permitted" || refusal.Class != aggregates.Denied {
		t.Errorf("another tenant's subject answers: %v", err)
	}
	// An administrator reaches it, with their own name.
	if r := send(t, w.as(t, "root"), "tombolo.command.acme.template.protect", "a-1", protect).ok(t); r.Event == "" {
		t.Errorf("%+v", r.Answer)
	}
	if all := w.history(t, template.Of("acme", "10000001")); all[len(all)-1].Actor != (events.Actor{Account: "_", User: "root"}) {
		t.Errorf("%+v", all)
	}
}

func TestSenders(t *testing.T) {
	w := newWorld(t)
	w.template(t, "10000001")
	system := send(t, w.core, "tombolo.command.acme.template.protect", "", `{"template":"10000001","protected":true}`, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").ok(t)
	if system.CommandID == "" {
		t.Error("no command id was made")
	}
	send(t, w.core, "tombolo.command.acme.template.protect", "", `{"template":"10000001","protected":false}`, "tombolo-actor-account", "acme", "tombolo-actor-user", "ann", "tombolo-causation", "why").ok(t)
	same := send(t, w.core, "tombolo.command.acme.template.protect", "", `{"template":"10000001","protected":false}`).ok(t)
	if same.NothingToDo == "" || same.Event != "" || same.Revision != 3 {
		t.Errorf("%+v", same.Answer)
	}
	send(t, w.core, "tombolo.command._.region.add", "", `{"region":"oslo","profile":{"name":"Oslo","latitude":59.9,"longitude":10.7}}`,
		"tombolo-actor-account", "_", "tombolo-actor-user", "root").ok(t)
	send(t, w.core, "tombolo.command._.region.retire", "", `{"region":"oslo","lost":false}`).wants(t, "catalogue-missing", "409")
	send(t, w.core, "tombolo.command._.region.retire", "", `{"region":"oslo","lost":true}`).ok(t)
	r := w.history(t, template.Of("acme", "10000001"))
	if r[1].Actor.User != "tombolo" || r[1].TraceParent == "" || r[2].Actor.User != "ann" || r[2].Causation != "why" {
		t.Errorf("%+v", r)
	}
}

func TestAgentReportsForItsOwnRegionOnly(t *testing.T) {
	w := newWorld(t)
	x := commands.NewExecutor(w.journal, w.now)
	for _, region := range []events.RegionID{"sydney", "beijing"} {
		o := commands.Origin{Account: "acme", Command: events.CommandRef{ID: events.CommandID("order-" + region), Digest: events.DigestOf(nil)}}
		_, err := commands.Execute(t.Context(), x, o, "x", work.Order{Ref: work.Ref{Region: region, Work: "w-1"}, WorkOrdered: events.WorkOrdered{Kind: events.WorkSave, Operation: "o"}})
		if err != nil {
			t.Fatal(err)
		}
	}
	agent := w.as(t, "sydney")
	const sydney, beijing = `{"region":"sydney","work":"w-1","epoch":1}`, `{"region":"beijing","work":"w-1","epoch":1}`
	r := send(t, agent, "tombolo.agent.sydney.acme.work.start", "s-1", sydney).ok(t)
	if r.Event != "work.started" {
		t.Errorf("%+v", r.Answer)
	}
	send(t, agent, "tombolo.agent.sydney.acme.work.start", "s-2", beijing).wants(t, "access-denied", "403")
	send(t, agent, "tombolo.agent.sydney.acme.work.write-off", "s-3", `{"region":"sydney","work":"w-1","why":{"code":"c","text":"t"}}`).wants(t, "access-denied", "403")
	client := commands.NewAgentClient(agent, "sydney")
	if a, err := client.Do(t.Context(), "acme", "work", "report-done", "s-4", work.ReportDone{Ref: work.Ref{Region: "sydney", Work: "w-1"}, Epoch: 1}); err != nil || a.Event != "work.done" {
		t.Errorf("%+v, %v", a, err)
	}

	// The bus does not let it speak as another region's agent or as the control plane.
	refused := make(chan error, 2)
	agent.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err })
	for _, subject := range []string{"tombolo.agent.beijing.acme.work.start", "tombolo.command.acme.work.start"} {
		if err := agent.Publish(subject, []byte(beijing)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !strings.Contains(err.Error(), "Permissions Violation") {
				t.Error(err)
			}
		case <-time.After(wait):
			t.Errorf("%s was let through", subject)
		}
	}
}

// TestAnAgentIsKnownByItsKey: the subject says which region's agent speaks, and
// the bus who it is; where they differ, and where the bus says nothing, nobody is
// believed.
func TestAnAgentIsKnownByItsKey(t *testing.T) {
	w := newWorld(t)
	const start = `{"region":"sydney","agent":"a-1","http":"127.0.0.1:1","transfer":"127.0.0.1:2"}`
	const subject = "tombolo.agent.sydney._.region.start-epoch"
	send(t, w.core, subject, "s-1", start).wants(t, "user-unknown", "403")
	public, err := w.keys["sydney"].PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	agent, key := w.as(t, "sydney"), "key:_/"+public
	own := w.users[key]
	for name, who := range map[string]commands.Identity{
		"another region's agent":    {Actor: events.Actor{Account: "_", User: "agent-beijing"}, Role: events.Agent, Region: "beijing"},
		"an administrator":          {Actor: events.Actor{Account: "_", User: "agent-sydney"}, Role: events.Administrator, Region: "sydney"},
		"somebody of other account": {Actor: events.Actor{Account: "acme", User: "agent-sydney"}, Role: events.Agent, Region: "sydney"},
	} {
		w.users[key] = who
		if got := send(t, agent, subject, "", start); got.Error == nil || got.Error.Code != "user-unknown" {
			t.Errorf("%s: %+v %+v", name, got.Answer, got.Error)
		}
	}
	w.users[key] = own
	send(t, agent, subject, "s-2", start).wants(t, "region-unknown", "404") // let in, and then decided
}

func TestParallelRequestsAndDrain(t *testing.T) {
	w := newWorld(t)
	second, err := commands.Serve(w.core, w.door, w.inbox) // another control plane
	if err != nil {
		t.Fatal(err)
	}
	w.template(t, "10000001")
	ann := w.as(t, "ann")
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() { // each command twice, all at once
			for range 2 {
				send(t, ann, "tombolo.command.acme.template.protect", fmt.Sprint("c-", i), fmt.Sprintf(`{"template":"10000001","protected":%v}`, i%2 == 0)).ok(t)
				send(t, ann, "tombolo.command.acme.template.create", fmt.Sprint("n-", i/2), fmt.Sprintf(`{"environment":"e","region":"sydney","name":"n %d"}`, i/2)).ok(t)
			}
		})
	}
	if err := second.Close(t.Context()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, r := range w.history(t, template.Of("acme", "10000001")) {
		if seen[r.ID] {
			t.Errorf("%s twice", r.ID)
		}
		seen[r.ID] = true
	}
	created := 0
	tip, err := w.journal.Tip(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stop := fmt.Errorf("enough")
	err = w.journal.Follow(t.Context(), 0, func(r events.Record) error {
		if r.Event.EventType() == "template.created" {
			created++
		}
		if r.Sequence == tip {
			return stop
		}
		return nil
	})
	if err != stop || created != 33 {
		t.Errorf("%d templates, %v", created, err)
	}
}

// What nats micro info and stats show.
func TestDiscovery(t *testing.T) {
	w := newWorld(t)
	send(t, w.core, "tombolo.command.acme.template.protect", "", `{}`).wants(t, "bad-request", "400")
	m, err := w.core.Request("$SRV.INFO.tombolo", nil, wait)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Endpoints []struct {
			Name, Subject string
			Metadata      map[string]string
		}
	}
	if err := json.Unmarshal(m.Data, &info); err != nil {
		t.Fatal(err)
	}
	found := map[string]map[string]string{}
	for _, e := range info.Endpoints {
		found[e.Subject] = e.Metadata
	}
	for _, v := range w.door.Verbs() {
		meta := found["tombolo.command.*."+string(v.Kind)+"."+v.Name]
		var request struct {
			Type                 string
			Properties           map[string]any
			AdditionalProperties any `json:"additionalProperties"`
		}
		if err := json.Unmarshal([]byte(meta["request"]), &request); err != nil || request.Type != "object" || len(request.Properties) == 0 || request.AdditionalProperties == nil {
			t.Errorf("%s: request schema %q, %v", v, meta["request"], err)
		}
		if meta["doc"] == "" || !strings.Contains(meta["response"], "command_id") {
			t.Errorf("%s: %v", v, meta)
		}
	}
	if del := found["tombolo.command.*.template.delete"]["request"]; strings.Contains(del, "operation") {
		t.Errorf("the door's own field is in the schema: %s", del)
	}
	if m, err = w.core.Request("$SRV.STATS.tombolo", nil, wait); err != nil || !strings.Contains(string(m.Data), `"data":{"requests":1,"refused":1`) {
		t.Errorf("%s, %v", m.Data, err)
	}
}

func TestSlug(t *testing.T) {
	for in, want := range map[string]string{"Ajax Sales Demo": "ajax-sales-demo", " --A__b.  c!": "a-b-c", "Ｗｉｄｅ １": "wide-1", strings.Repeat("a", 63): strings.Repeat("a", 63)} {
		if got, err := commands.Slug(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "--", "Zürich", "北京", "a\xff", strings.Repeat("a", 64)} {
		if got, err := commands.Slug(in); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}
