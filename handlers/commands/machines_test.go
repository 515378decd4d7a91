package commands_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/projections"
)

// current are the read models of a journal, at its tip whenever they are asked.
type current struct {
	journal journal.Journal
	feed    *projections.Feed
}

func (c current) AtTip(ctx context.Context) (*projections.View, error) {
	tip, err := c.journal.Tip(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.feed.WaitFor(ctx, tip); err != nil {
		return nil, err
	}
	return c.feed.AsOf(tip)
}

// shop is an environment of three machines that is made, two of them in a vApp,
// and a door with reads before it.
type shop struct {
	*world
	t    *testing.T
	door *commands.Door
	ref  environment.Ref
	sent int
}

func newShop(t *testing.T) *shop {
	t.Helper()
	w := newWorld(t)
	store, err := projections.Open(t.TempDir(), projections.Options{})
	if err != nil {
		t.Fatal(err)
	}
	feed, err := store.Feed(projections.All()...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- feed.Run(ctx, w.journal) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &shop{world: w, t: t, door: w.doorReading(t, w.journal, w.users, current{w.journal, feed}), ref: environment.Ref{Region: "sydney", Environment: "e1"}}
	spec := graph.Spec{Name: "Shop", Networks: []graph.NetworkSpec{{Name: "lan", Subnet: "10.0.0.0/24"}}, VApps: []graph.VAppSpec{{Name: "tier", Machines: []string{"web", "app"}}, {Name: "nothing"}}}
	for _, m := range []string{"web", "app", "db"} {
		spec.Machines = append(spec.Machines, graph.MachineSpec{Name: m, Interfaces: []graph.InterfaceSpec{{Network: "lan", PublicAddress: "auto"}}})
	}
	spec.Machines[2].Power = graph.Stopped
	canonical, _, err := documents.Canonical(spec.Graph())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := w.docs.Put(t.Context(), canonical)
	if err != nil {
		t.Fatal(err)
	}
	fact(s, events.None, region.Add{Region: "sydney", Profile: events.RegionProfile{Name: "Sydney"}})
	fact(s, events.None, region.StartEpoch{Region: "sydney", Agent: "a", Transfer: "127.0.0.1:1", HTTP: "127.0.0.1:2"})
	fact(s, events.None, region.StartEpoch{Region: "sydney", Agent: "a", Transfer: "127.0.0.1:1", HTTP: "127.0.0.1:2"})
	fact(s, "acme", environment.Declare{Ref: s.ref, EnvironmentDeclared: events.EnvironmentDeclared{Name: "shop", Graph: digest, Operation: "op", Machines: 3, Networks: 1}})
	fact(s, "acme", environment.RecordCreated{Ref: s.ref, Graph: digest})
	return s
}

// fact has an aggregate decide what is not commanded at the door.
func fact[S aggregates.State[S, E], E events.Event](s *shop, account events.AccountID, c aggregates.Command[S, E]) {
	s.t.Helper()
	s.sent++
	id := events.CommandID(fmt.Sprintf("fact-%d", s.sent))
	_, err := commands.Execute(s.t.Context(), commands.NewExecutor(s.journal, s.now), commands.Origin{Account: account,
		Command: events.CommandRef{ID: id, Digest: events.DigestOf([]byte(id))}}, "event", c)
	if err != nil {
		s.t.Fatal(err)
	}
}

// do sends a command to the door: ann's, or the agent's.
func (s *shop) request(verb string, body any) commands.Request {
	s.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	who := s.users["actor:acme/ann"]
	if verb == "report-machines" {
		who = commands.Identity{Actor: events.Actor{Account: "_", User: "agent-sydney"}, Role: events.Agent, Region: "sydney"}
	}
	return commands.Request{Account: "acme", Kind: events.KindEnvironment, Verb: verb, Body: b, From: who}
}

type fields map[string]any

func (s *shop) do(verb string, body fields) (commands.Answer, error) {
	s.t.Helper()
	body["region"], body["environment"] = "sydney", "e1"
	return s.door.Do(s.t.Context(), s.request(verb, body))
}

func (s *shop) refused(code, verb string, body fields) {
	s.t.Helper()
	_, err := s.do(verb, body)
	if r, ok := aggregates.AsRefusal(err); !ok || r.Code != code {
		s.t.Errorf("%s %v: %v, want %s", verb, body, err, code)
	}
}

// last is the environment's last event.
func (s *shop) last() events.Event {
	s.t.Helper()
	all := s.history(s.t, environment.Of("acme", "sydney", "e1"))
	return all[len(all)-1].Event
}

func TestPowerNamesMachinesOfTheEnvironment(t *testing.T) {
	s := newShop(t)
	s.refused("machine-unknown", "set-power", fields{"power": "running", "machine": "mail"})
	s.refused("machine-unknown", "set-power", fields{"power": "running", "machines": []string{"web", "lan"}})
	s.refused("vapp-unknown", "set-power", fields{"power": "running", "vapp": "web"})
	s.refused("vapp-unknown", "set-power", fields{"power": "running", "vapp": "nothing"})
	s.refused("bad-request", "set-power", fields{"power": "running", "operation": "mine"})
	a, err := s.do("set-power", fields{"power": "suspended", "vapp": "tier", "timeout": 20})
	if err != nil || a.Operation == "" {
		t.Fatal(a, err)
	}
	if e, ok := s.last().(events.PowerSet); !ok || !reflect.DeepEqual(e.Machines, []string{"app", "web"}) || e.Timeout != 20 || e.Power != "suspended" || e.Operation != a.Operation {
		t.Errorf("%+v", s.last())
	}
}

func TestReportsAreJudgedAtTheDoor(t *testing.T) {
	s := newShop(t)
	died := func(machine string) fields {
		return fields{"epoch": 2, "machines": []environment.MachineReport{{Machine: machine, Power: events.MachineFailed, Cause: &events.Cause{Code: events.CauseCrashed, Text: "signal 9"}}}}
	}
	s.refused("stale-epoch", "report-machines", fields{"epoch": 1, "machines": []environment.MachineReport{{Machine: "web", Power: "running"}}})
	s.refused("bad-request", "report-machines", fields{"epoch": 2, "machines": []environment.MachineReport{}, "restarts": map[string]events.Verdict{}})
	for n := 1; n <= 4; n++ {
		if _, err := s.do("report-machines", fields{"epoch": 2, "machines": []environment.MachineReport{{Machine: "web", Power: "running", Accelerator: "tcg"}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.do("report-machines", died("web")); err != nil {
			t.Fatal(err)
		}
		e := s.last().(events.MachinesObserved)
		m := e.Machines[0]
		if m.Deaths != n || m.Restart == nil || m.Restart.Allowed != (n <= 3) || m.Restart.Policy != "restart" || !m.Restart.Digest.Valid() || (e.Operation != "") != m.Restart.Allowed {
			t.Errorf("death %d: %+v %+v, operation %q", n, m, m.Restart, e.Operation)
		}
	}
	// The graph declares db stopped, and nobody has said otherwise.
	if _, err := s.do("report-machines", died("db")); err != nil {
		t.Fatal(err)
	}
	if e := s.last().(events.MachinesObserved); e.Machines[0].Restart.Allowed || e.Operation != "" {
		t.Errorf("%+v", e)
	}
	before := s.last()
	if a, err := s.do("report-machines", died("db")); err != nil || a.Event != "" || !reflect.DeepEqual(s.last(), before) {
		t.Errorf("the same again: %+v, %v", a, err)
	}
	ann := s.request("report-machines", died("web"))
	ann.From = s.users["actor:acme/ann"]
	if _, err := s.door.Do(t.Context(), ann); err == nil {
		t.Error("a tenant speaks for the agent")
	}
}

func TestEdgesAreCheckedAndPlanned(t *testing.T) {
	s := newShop(t)
	set := fields{"rules": []events.EdgeRule{{Action: "deny", From: []string{"outside"}, To: []string{"tier"}}}, "open": []events.EdgeOpening{{Resource: "web.public", Ports: []string{"tcp/80"}}}}
	raw, err := s.door.Plan(t.Context(), s.request("set-edge", fields{"region": "sydney", "environment": "e1", "rules": set["rules"], "open": set["open"]}))
	if err != nil {
		t.Fatal(err)
	}
	var plan commands.EdgePlan
	if err := json.Unmarshal(raw, &plan); err != nil || len(plan.Changes) != 2 || len(plan.Before.Rules) != 0 || len(plan.After.Rules) != 1 {
		t.Errorf("%s, %v", raw, err)
	}
	a, err := s.do("set-edge", set)
	if err != nil || a.Operation == "" {
		t.Fatal(a, err)
	}
	if e, ok := s.last().(events.EdgeSet); !ok || e.Operation != a.Operation || len(e.Open) != 1 {
		t.Errorf("%+v", s.last())
	}
	if a, err := s.do("set-edge", set); err != nil || a.NothingToDo == "" {
		t.Errorf("the same again: %+v, %v", a, err)
	}
	_, err = s.do("set-edge", fields{"rules": []events.EdgeRule{{Action: "deny", To: []string{"mail"}}}, "open": []events.EdgeOpening{{Resource: "mail.public"}}})
	var g *commands.GraphError
	if !errors.As(err, &g) || g.Refusal.Code != "edge-invalid" || len(g.Findings) != 2 {
		t.Errorf("%v", err)
	}
	// What is set takes the place of what was set before, also in a plan.
	raw, err = s.door.Plan(t.Context(), s.request("set-edge", fields{"region": "sydney", "environment": "e1"}))
	if err != nil || json.Unmarshal(raw, &plan) != nil || len(plan.Changes) != 2 || plan.Changes[0].Change != "-" {
		t.Errorf("%s, %v", raw, err)
	}
}

// An agent's report comes over the bus under its own region's name, and no other.
func TestAgentsReportMachinesOverTheBus(t *testing.T) {
	s := newShop(t)
	agent := s.as(t, "sydney")
	const subject = "tombolo.agent.sydney.acme.environment.report-machines"
	body := `{"region":"sydney","environment":"e1","epoch":2,"machines":[{"machine":"web","power":"running","accelerator":"kvm"}]}`
	r := send(t, agent, subject, "r-1", body).ok(t)
	if r.Event != "environment.machines-observed" || r.Operation != "" {
		t.Errorf("%+v", r)
	}
	if r := send(t, agent, subject, "r-2", body).ok(t); r.NothingToDo == "" {
		t.Errorf("%+v", r)
	}
	send(t, agent, subject, "r-3", `{"region":"beijing","environment":"e1","epoch":2,"machines":[]}`).wants(t, "access-denied", "403")
	send(t, s.as(t, "ann"), "tombolo.command.acme.environment.report-machines", "r-4", body).wants(t, "access-denied", "403")
}

// What an environment is declared with says how much there is to connect and to start.
func TestDeclarationsCountNetworksAndMachines(t *testing.T) {
	s := newShop(t)
	spec := graph.Spec{Name: "Two", Networks: []graph.NetworkSpec{{Name: "lan", Subnet: "10.0.0.0/24"}},
		Machines: []graph.MachineSpec{{Name: "a", Interfaces: []graph.InterfaceSpec{{Network: "lan"}}}, {Name: "b"}}}
	r := s.request("create", commands.EnvironmentRequest{Name: "Two", Region: "sydney", Graph: spec.Graph()})
	a, err := s.door.Do(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	e := s.history(t, environment.Of("acme", "sydney", events.EnvironmentID(a.ID)))[0].Event.(events.EnvironmentDeclared)
	if e.Networks != 1 || e.Machines != 2 {
		t.Errorf("%+v", e)
	}
	spec.Machines[0].Interfaces[0].Address = "10.9.9.9"
	var g *commands.GraphError
	if _, err := s.door.Do(t.Context(), s.request("create", commands.EnvironmentRequest{Name: "Three", Region: "sydney", Graph: spec.Graph()})); !errors.As(err, &g) || g.Findings[0].Code != "address-outside-subnet" {
		t.Error(err)
	}
}
