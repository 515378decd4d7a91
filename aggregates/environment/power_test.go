package environment_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	. "github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/given"
	"github.com/tombolo-vdc/tombolo/events"
)

func saw(machines ...events.MachineState) events.MachinesObserved {
	return events.MachinesObserved{Epoch: 3, At: given.Now(), Machines: machines}
}

func report(machines ...MachineReport) ReportMachines {
	return ReportMachines{Ref: ref, Epoch: 3, Machines: machines}
}

var (
	crashed   = &events.Cause{Code: events.CauseCrashed, Text: "signal 11"}
	shutdown  = &events.Cause{Code: events.CauseGuestShutdown, Text: "it switched itself off"}
	up        = events.MachineState{Machine: "vm1", Power: "running", Accelerator: "tcg"}
	died      = events.MachineState{Machine: "vm1", Power: events.MachineFailed, Cause: crashed, Deaths: 1}
	diedAgain = MachineReport{Machine: "vm1", Power: events.MachineFailed, Cause: crashed}
)

func TestSetPowerOfSeveral(t *testing.T) {
	both := SetPower{Ref: ref, Machines: []string{"vm2", "vm1", "vm2"}, Power: "stopped", Timeout: 30, Operation: "op5"}
	set := events.PowerSet{Machines: []string{"vm1", "vm2"}, Power: "stopped", Timeout: 30, Operation: "op5"}
	facts(t, declared, created, running).When(both).Then(set)
	facts(t, declared, created, running, set).When(both).Nothing()
	facts(t, declared, created, running, set).When(SetPower{Ref: ref, Machine: "vm2", Power: "stopped"}).Nothing()
	facts(t, declared, created, running, set, running).When(both).Then(set)
	facts(t, declared, created).When(SetPower{Ref: ref, Machine: "vm1", Machines: []string{"vm2"}, Power: "running", Cold: true}).
		Then(events.PowerSet{Machines: []string{"vm1", "vm2"}, Power: "running", Cold: true})
	facts(t, declared, created).When(SetPower{Ref: ref, Machines: []string{"vm1"}, Power: "running"}).Then(events.PowerSet{Machine: "vm1", Power: "running"})
	facts(t, declared, created).When(SetPower{Ref: ref, VApp: "tier", Power: "running"}).Refused("vapp-unknown")
	facts(t, declared, created).When(SetPower{Ref: ref, Power: "stopped", Timeout: MaxTimeout + 1}).Refused("bad-timeout")
	many := SetPower{Ref: ref, Power: "running"}
	for i := range MaxNamed + 1 {
		many.Machines = append(many.Machines, fmt.Sprintf("vm%d", i))
	}
	facts(t, declared, created).When(many).Refused("too-many-machines")
}

// What is declared is not so while it is seen to be otherwise.
func TestSetPowerLooksAtWhatWasSeen(t *testing.T) {
	start, stop := SetPower{Ref: ref, Power: "running"}, SetPower{Ref: ref, Machine: "vm1", Power: "stopped"}
	facts(t, declared, created, running, saw(up)).When(start).Nothing()
	ended := facts(t, declared, created, running, saw(up), saw(died))
	ended.When(start).Then(running)
	ended.When(SetPower{Ref: ref, Machine: "vm1", Power: "running"}).Then(events.PowerSet{Machine: "vm1", Power: "running"})
	ended.When(SetPower{Ref: ref, Machine: "vm2", Power: "running"}).Nothing()
	off := events.PowerSet{Machine: "vm1", Power: "stopped"}
	facts(t, declared, created, off, saw(up)).When(stop).Then(off)   // it did not stop
	facts(t, declared, created, off, saw(died)).When(stop).Nothing() // there is nothing left to stop
}

func TestReportMachines(t *testing.T) {
	facts(t, declared, created).When(report(MachineReport{Machine: "vm1", Power: "running", Accelerator: "tcg"})).Then(saw(up))
	facts(t, declared, created, saw(up)).When(report(MachineReport{Machine: "vm1", Power: "running"})).Nothing()
	facts(t, declared, created, saw(up)).When(report(MachineReport{Machine: "vm1", Power: "running"}, MachineReport{Machine: "vm2", Power: "stopped"})).
		Then(saw(events.MachineState{Machine: "vm2", Power: "stopped"}))
	late := report(MachineReport{Machine: "vm1", Power: "stopped"})
	late.Epoch = 2
	facts(t, declared, created, saw(up)).When(late).Refused("stale-epoch")
	facts(t).When(late).Refused("environment-unknown")
	facts(t, declared, created, deletion).When(late).Nothing()
	facts(t, declared, created).When(report(MachineReport{Machine: "vm1", Power: "on"})).Refused("bad-power")
	facts(t, declared, created).When(report(MachineReport{Machine: "VM 1", Power: "running"})).Refused("bad-machine")
	facts(t, declared, created).When(report(diedAgain, diedAgain)).Refused("bad-machine")
	facts(t, declared, created).When(report(make([]MachineReport, MaxReported+1)...)).Refused("too-many-machines")
}

// A guest that switches itself off is not started again behind its back.
func TestAGuestThatShutsDownIsDeclaredStopped(t *testing.T) {
	bye := report(MachineReport{Machine: "vm1", Power: "stopped", Cause: shutdown})
	off := events.MachineState{Machine: "vm1", Power: "stopped", Cause: shutdown, Declared: "stopped"}
	facts(t, declared, created, running, saw(up)).When(bye).Then(saw(off))
	facts(t, declared, created, running, saw(up), saw(off)).When(SetPower{Ref: ref, Machine: "vm1", Power: "stopped"}).Nothing()
	if got := facts(t, declared, created, running, saw(up), saw(off)).State().Declared("vm1"); got != "stopped" {
		t.Error(got)
	}
	asked := off
	asked.Declared = ""
	facts(t, declared, created, events.PowerSet{Power: "stopped"}).When(bye).Then(saw(asked))
}

func TestDeathsAreCountedAndTheVerdictIsRecorded(t *testing.T) {
	again := report(diedAgain)
	again.Operation = "op7"
	again.Restarts = map[string]events.Verdict{"vm1": {Policy: "restart", Allowed: true, Why: "it crashed"}}
	first := died
	first.Restart = &events.Verdict{Policy: "restart", Allowed: true, Why: "it crashed"}
	restarted := saw(first)
	restarted.Operation = "op7"
	facts(t, declared, created, running, saw(up)).When(again).Then(restarted)
	facts(t, declared).When(again).Then(saw(died)) // nothing is started in one that is not there yet

	history := []events.EnvironmentEvent{declared, created, running}
	for i := range 3 {
		e := saw(died)
		e.At = given.Now().Add(time.Duration(i) * time.Minute)
		history = append(history, saw(up), e)
	}
	history = append(history, saw(up))
	denied := report(diedAgain)
	denied.Restarts = map[string]events.Verdict{"vm1": {Policy: "restart", Why: "too often"}}
	denied.Operation = "op8"
	now := given.Now().Add(Window)
	last := events.MachineState{Machine: "vm1", Power: events.MachineFailed, Cause: crashed, Deaths: 3, Restart: &events.Verdict{Policy: "restart", Why: "too often"}}
	// The first of three is ten minutes ago and does not count any more; nothing is started, so there is no operation.
	facts(t, history...).At(now).When(denied).Then(events.MachinesObserved{Epoch: 3, At: now, Machines: []events.MachineState{last}})

	s := facts(t, history...).State()
	if s.Deaths("vm1", given.Now().Add(2*time.Minute)) != 3 || s.Deaths("vm2", given.Now()) != 0 || !s.AsksRestart(diedAgain) {
		t.Error("deaths are counted wrongly")
	}
	if facts(t, declared, created, saw(up), saw(died)).State().AsksRestart(diedAgain) {
		t.Error("the same death is news twice")
	}
}

func TestReportsFitAnEvent(t *testing.T) {
	long := strings.Repeat("ö", 5000)
	c := report()
	c.Restarts = map[string]events.Verdict{}
	for i := range MaxReported {
		m := fmt.Sprintf("%s%d", strings.Repeat("m", 58), i)
		c.Machines = append(c.Machines, MachineReport{Machine: m, Power: events.MachineFailed, Accelerator: long, Cause: &events.Cause{Code: events.CauseCrashed, Text: long, Next: long}})
		c.Restarts[m] = events.Verdict{Policy: "restart", Digest: events.DigestOf(nil), Allowed: true, Why: "it crashed, and that is the third time within ten minutes"}
	}
	e, err := c.Decide(facts(t, declared, created).State(), aggregates.Facts{Now: given.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if b, _, err := events.NewRegistry().Encode(e); err != nil {
		t.Errorf("%d bytes: %v", len(b), err)
	}
}

func TestSetEdge(t *testing.T) {
	set := events.EdgeSet{Rules: []events.EdgeRule{{Action: "deny", From: []string{"outside"}}}, SourcePorts: "1000-2000",
		Open: []events.EdgeOpening{{Resource: "web.public", Ports: []string{"tcp/80"}}}, Operation: "op3"}
	c := SetEdge{Ref: ref, Rules: set.Rules, SourcePorts: set.SourcePorts, Open: set.Open, Operation: "op3"}
	facts(t, declared, created).When(c).Then(set)
	again := c
	again.Operation = "op4"
	facts(t, declared, created, set).When(again).Nothing()
	facts(t, declared, created, set).When(SetEdge{Ref: ref, Operation: "op5"}).Then(events.EdgeSet{Operation: "op5"})
	facts(t, declared).When(c).Refused("environment-not-ready")
}
