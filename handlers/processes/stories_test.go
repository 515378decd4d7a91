package processes

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/aggregates/number"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
)

// everyKill is for those who change a process: it takes a minute.
var everyKill = flag.Bool("every-kill", false, "kill the managers after the n-th append for every n, not for some")

// TestStories plays the stories of testdata. Rewrite one (-rewrite) only if you
// understand what changed it. Each story is then played again: with every other
// schedule of the managers, killed after every append, and killed once after the
// n-th, for some n or (-every-kill) for every n; each time the same events must come of it. At last the managers
// lose their rows, are given everything again, and must add nothing.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		store := openStore(t)
		w := newWorld(t, store, "0")
		datadriven.RunTest(t, path, w.tell)
		w.check()
		want := w.summary()
		appends := w.killer.appended
		if added := w.replayed(store, "0"); len(added) > 0 {
			t.Errorf("having lost their rows, the managers did more:\n%s", strings.Join(added, "\n"))
		}
		again := func(run string, prepare func(*world)) {
			t.Helper()
			w := newWorld(t, store, run)
			prepare(w)
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				w.tell(t, d)
				return d.Expected
			})
			w.check()
			if got := w.summary(); !w.free && !slices.Equal(got, want) {
				t.Errorf("%s: other events came of it:\n%s", run, difference(want, got))
			}
		}
		for s := range schedules {
			again(fmt.Sprintf("schedule-%d", s), func(w *world) { w.schedule = s })
		}
		again("killed-always", func(w *world) { w.killer.at = func(int) bool { return true } })
		stride := 1
		if !*everyKill {
			stride = 1 + appends/4
		}
		for n := 1; n <= appends; n += stride {
			again(fmt.Sprintf("killed-%d", n), func(w *world) { w.killer.at = func(i int) bool { return i == n } })
			if t.Failed() {
				return
			}
		}
	})
}

func difference(want, got []string) string {
	var out []string
	for _, l := range want {
		if i := slices.Index(got, l); i >= 0 {
			got = slices.Delete(slices.Clone(got), i, i+1)
		} else {
			out = append(out, "- "+l)
		}
	}
	for _, l := range got {
		out = append(out, "+ "+l)
	}
	return strings.Join(out, "\n")
}

// tell plays one line of a story and tells the events that followed.
func (w *world) tell(t *testing.T, d *datadriven.TestData) string {
	w.t = t
	before := len(w.records)
	said := w.play(d)
	w.settle()
	if d.HasArg("quietly") {
		return said
	}
	var out strings.Builder
	out.WriteString(said)
	for _, r := range w.records[before:] {
		if _, started := r.Event.(events.WorkStarted); !started {
			out.WriteString(w.line(r) + "\n")
		}
	}
	return out.String()
}

// args of a line: words without a value, and the values of the others.
func args(d *datadriven.TestData) (words []string, value func(string) []string) {
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 && a.Key != "quietly" {
			words = append(words, a.Key)
		}
	}
	return words, func(key string) []string {
		for _, a := range d.CmdArgs {
			if a.Key == key {
				return a.Vals
			}
		}
		return nil
	}
}

func (w *world) play(d *datadriven.TestData) string {
	words, value := args(d)
	one := func(key string) string { return strings.Join(value(key), "") }
	regions := func(key string) (out []events.RegionID) {
		for _, v := range value(key) {
			out = append(out, events.RegionID(v))
		}
		return out
	}
	op := events.OperationID(one("op"))
	id := func(i int) events.TemplateID { return events.TemplateID(words[i]) }
	soon := w.now.Add(time.Minute)
	switch d.Cmd {
	case "free":
		w.free = true
		return ""
	case "region": // region sydney
		return do(w, events.None, region.Add{Region: events.RegionID(words[0]), Profile: events.RegionProfile{Name: words[0]}})
	case "drain": // drain sydney op=…
		return do(w, events.None, region.Drain{Region: events.RegionID(words[0]), Operation: op})
	case "retire": // retire sydney op=…
		return do(w, events.None, region.Retire{Region: events.RegionID(words[0]), Operation: op})
	case "lose": // lose sydney op=…
		return do(w, events.None, region.Retire{Region: events.RegionID(words[0]), Lost: true, Operation: op})
	case "pool": // pool sydney public-address 203.0.113.0/30
		return do(w, events.None, pool.AddRange{Region: events.RegionID(words[0]), Type: events.PoolID(words[1]), Prefix: words[2]})
	case "environment": // environment e1 beijing op=… resources=(web:public-address:192.0.2.1, vpn:vpn-route:192.0.2.1:web) networks=1 machines=2
		e := events.EnvironmentDeclared{Name: words[0], Operation: op, Graph: events.DigestOf([]byte(words[0])), Resources: resources(value("resources")),
			Networks: whole(one("networks")), Machines: whole(one("machines"))}
		if until := one("until"); until != "" {
			e.Until = w.now.Add(duration(until))
			w.dues = append(w.dues, UploadDue(acme, events.RegionID(words[1]), events.EnvironmentID(words[0]), e.Until))
		}
		return w.declare(words[0], words[1], e)
	case "instantiate": // instantiate e2 sydney 73291467@1 op=… (copy)
		t, v, _ := strings.Cut(words[2], "@")
		return w.instantiate(words[0], words[1], events.TemplateID(t), whole(v), op, d.HasArg("copy"))
	case "create": // create 73291467 ajax op=… from=e1 in=beijing regions=(…) keep=n choose=(sydney:web:203.0.113.9)
		c := template.Create{Template: id(0), Name: words[1], Display: words[1], Source: source(one), Regions: regions("regions"), Keep: whole(one("keep")),
			Choices: choices(value("choose")), Operation: op, Memory: d.HasArg("memory")}
		return do(w, acme, number.Claim{Number: c.Template, Account: acme, Owner: string(op), Until: soon}) +
			do(w, acme, name.Claim{Name: c.Name, Owner: words[0], Until: soon}) + do(w, acme, c)
	case "replace": // replace 73291467 op=… from=e2 in=tokyo policy=quorum n=2 deadline=1h
		c := template.Replace{Template: id(0), Source: source(one), Policy: events.SwitchPolicy{Kind: one("policy"), Quorum: whole(one("n"))},
			Choices: choices(value("choose")), Operation: op, Memory: d.HasArg("memory")}
		if deadline := one("deadline"); deadline != "" {
			c.Deadline = w.now.Add(duration(deadline))
			w.dues = append(w.dues, ReplacementDue(acme, c.Template, op, c.Deadline))
		}
		return do(w, acme, c)
	case "rollback": // rollback 73291467 1 op=…
		return do(w, acme, template.Rollback{Template: id(0), Version: whole(words[1]), Operation: op})
	case "regions": // regions 73291467 op=… add=(…) remove=(…)
		return do(w, acme, template.SetRegions{Template: id(0), Add: regions("add"), Remove: regions("remove"), Operation: op})
	case "protect":
		return do(w, acme, template.Protect{Template: id(0), Protected: true})
	case "keep": // keep 73291467 1
		return do(w, acme, template.Keep{Template: id(0), Keep: whole(words[1])})
	case "delete": // delete 73291467 op=…
		return do(w, acme, template.Delete{Template: id(0), Operation: op})
	case "power": // power e1 beijing running op=… (machines=(vm1, vm2))
		return do(w, acme, environment.SetPower{Ref: environmentRef(words), Power: words[2], Machines: value("machines"), Operation: op})
	case "see": // see e1 beijing vm1 failed (code=crashed restart op=…)
		r := environment.MachineReport{Machine: words[2], Power: words[3]}
		c := environment.ReportMachines{Ref: environmentRef(words), Epoch: 1, Operation: op}
		if code := one("code"); code != "" {
			r.Cause = &events.Cause{Code: code, Text: "as the story has it"}
			c.Restarts = map[string]events.Verdict{words[2]: {Policy: "restart", Allowed: d.HasArg("restart")}}
		}
		c.Machines = []environment.MachineReport{r}
		return do(w, acme, c)
	case "edge": // edge e1 beijing op=… from=outside
		return do(w, acme, environment.SetEdge{Ref: environmentRef(words), Rules: []events.EdgeRule{{Action: "deny", From: value("from")}}, Operation: op})
	case "discard": // discard e1 beijing op=…
		return do(w, acme, environment.Delete{Ref: environmentRef(words), Operation: op})
	case "cancel":
		return do(w, acme, operation.Cancel{Operation: events.OperationID(words[0])})
	case "retry": // retry op1 (in=sydney account=_)
		account := acme
		if one("account") != "" {
			account = events.AccountID(one("account"))
		}
		return do(w, account, operation.Retry{Operation: events.OperationID(words[0]), Region: events.RegionID(one("in"))})
	case "agents": // agents (sydney tokyo): all open work there, or everywhere
		return w.agents(words)
	case "start", "done", "fail", "undone", "stuck", "reopen", "write-off": // fail copy 73291467@1 sydney code=…
		a, known := w.works[strings.Join(words, " ")]
		if !known {
			w.t.Fatalf("no work order %q; there are %v", words, keysOf(w.works))
		}
		out := ""
		if d.Cmd != "start" && d.Cmd != "reopen" && d.Cmd != "write-off" {
			out = w.report(a, "start", "")
		}
		return out + w.report(a, d.Cmd, one("code"))
	case "damaged": // damaged 73291467@1 sydney
		t, v, _ := strings.Cut(words[0], "@")
		return do(w, acme, instance.ReportDamaged{Ref: instanceRef(events.TemplateID(t), whole(v), words[1]), Chunks: 3})
	case "wait": // wait 2h: the clock moves, and what is due is ended
		w.now = w.now.Add(duration(words[0]))
		if err := (&Deadlines{Executor: w.people, List: w, Log: quiet}).Tick(w.t.Context(), w.now); err != nil {
			w.t.Fatal(err)
		}
		return ""
	case "pools":
		return w.pools()
	}
	w.t.Fatalf("%s: what is %q?", d.Pos, d.Cmd)
	return ""
}

func (w *world) declare(id, in string, e events.EnvironmentDeclared) string {
	ref := environment.Ref{Region: events.RegionID(in), Environment: events.EnvironmentID(id)}
	return do(w, acme, name.Claim{Region: ref.Region, Name: e.Name, Owner: id, Until: w.now.Add(time.Minute)}) +
		do(w, acme, environment.Declare{Ref: ref, EnvironmentDeclared: e})
}

func (w *world) instantiate(id, in string, t events.TemplateID, v int, op events.OperationID, copyFirst bool) string {
	var saved events.VersionSaved
	for _, r := range w.records {
		if e, ok := r.Event.(events.VersionSaved); ok && r.Aggregate.ID == string(t) && e.Version == v {
			saved = e
		}
	}
	e := events.EnvironmentDeclared{Name: id, Operation: op, Graph: events.DigestOf([]byte(id)), Origin: &events.TemplateRef{Template: t, Version: v,
		Manifest: saved.Manifest, Bytes: saved.Bytes, Instance: instance.ID(acme, t, v, events.RegionID(in)), Copy: copyFirst}}
	for _, r := range saved.Resources {
		r.Value = ""
		e.Resources = append(e.Resources, r)
	}
	return w.declare(id, in, e)
}

// Due makes the world the list of its own deadlines.
func (w *world) Due(_ context.Context, now time.Time) ([]Due, error) {
	return slices.DeleteFunc(slices.Clone(w.dues), func(d Due) bool { return d.Until.After(now) }), nil
}

// pools tells how full the pools are and who has what.
func (w *world) pools() string {
	states := map[string]pool.State{}
	owners := map[string]events.Owner{}
	for _, r := range w.records {
		switch e := r.Event.(type) {
		case events.PoolEvent:
			states[r.Aggregate.ID+" "+string(r.Aggregate.Region)] = states[r.Aggregate.ID+" "+string(r.Aggregate.Region)].Fold(e)
		case events.CopyWanted:
			owners["instance "+w.called(r.Aggregate.ID)+" "+string(r.Aggregate.Region)] = events.Owner{Account: acme, Instance: events.InstanceID(r.Aggregate.ID)}
		case events.EnvironmentDeclared:
			owners["environment "+r.Aggregate.ID] = events.Owner{Account: acme, Environment: events.EnvironmentID(r.Aggregate.ID)}
		}
	}
	var out strings.Builder
	for _, p := range keysOf(states) {
		s := states[p]
		fmt.Fprintf(&out, "%s: %d free, %d reserved, %d bound\n", p, s.Free(), s.Reserved(), s.Bound())
		for _, o := range keysOf(owners) {
			for _, h := range s.Leases(owners[o]) {
				fmt.Fprintf(&out, "  %s has %s for %s\n", o, h.Value, h.Resource)
			}
		}
	}
	return out.String()
}
