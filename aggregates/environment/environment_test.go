package environment_test

import (
	"testing"
	"time"

	. "github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/given"
	"github.com/tombolo-vdc/tombolo/events"
)

var (
	ref       = Ref{Region: "sydney", Environment: "e1"}
	declared  = events.EnvironmentDeclared{Name: "web", Operation: "op", Until: given.Now().Add(time.Hour)}
	mapped    = events.EnvironmentMapped{Map: []events.Substitution{{Resource: "a", To: "203.0.113.8"}}}
	graph     = events.DigestOf([]byte("graph"))
	created   = events.EnvironmentCreated{Graph: graph}
	why       = events.Cause{Code: "why", Text: "because"}
	failed    = events.EnvironmentFailed{Cause: why}
	deletion  = events.EnvironmentDeletionAccepted{Operation: "op2"}
	deleted   = events.EnvironmentDeleted{}
	running   = events.PowerSet{Power: "running"}
	suspended = events.PowerSet{Machine: "vm1", Power: "suspended"}
)

func facts(t *testing.T, history ...events.EnvironmentEvent) given.Case[State, events.EnvironmentEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

func TestAnEnvironmentIsOfOneRegion(t *testing.T) {
	if got := (Delete{Ref: ref}).Aggregate("acme").Subject(); got != "tombolo.events.acme.sydney.environment.e1" {
		t.Error(got)
	}
}

func TestDeclare(t *testing.T) {
	facts(t).When(Declare{ref, declared}).Then(declared)
	facts(t, declared).When(Declare{ref, declared}).Nothing()
	other := declared
	other.Operation = "op9"
	facts(t, declared).When(Declare{ref, other}).Refused("environment-exists")
	facts(t, declared, deletion, deleted).When(Declare{ref, other}).Refused("environment-exists")
	other.Resources = make([]events.ResourceRef, events.MaxResources+1)
	facts(t).When(Declare{ref, other}).Refused("too-many-resources")
	other.Resources = other.Resources[1:]
	facts(t).When(Declare{ref, other}).Then(other)
}

func TestStillMade(t *testing.T) {
	facts(t, declared).When(StillMade{ref}).Nothing()
	facts(t, declared, mapped).When(StillMade{ref}).Nothing()
	facts(t).When(StillMade{ref}).Refused("environment-not-made")
	for _, over := range []events.EnvironmentEvent{created, failed, deletion} {
		facts(t, declared, over).When(StillMade{ref}).Refused("environment-not-made")
	}
}

func TestStillUsable(t *testing.T) {
	facts(t, declared, created).When(StillUsable{ref}).Nothing()
	facts(t, declared).When(StillUsable{ref}).Refused("environment-not-ready")
	facts(t, declared, created, deletion).When(StillUsable{ref}).Refused("environment-deleted")
}

func TestRecordMap(t *testing.T) {
	facts(t, declared).When(RecordMap{ref, mapped.Map}).Then(mapped)
	facts(t, declared, mapped).When(RecordMap{ref, nil}).Nothing()
	facts(t).When(RecordMap{ref, mapped.Map}).Refused("environment-unknown")
}

func TestRecordCreated(t *testing.T) {
	facts(t, declared, mapped).When(RecordCreated{ref, graph}).Then(created)
	facts(t, declared, created).When(RecordCreated{ref, graph}).Nothing()
	facts(t).When(RecordCreated{ref, graph}).Refused("environment-unknown")
	facts(t, declared, failed).When(RecordCreated{ref, graph}).Refused("environment-failed")
	facts(t, declared, deletion).When(RecordCreated{ref, graph}).Refused("environment-deleted")
}

func TestRecordFailed(t *testing.T) {
	facts(t, declared).When(RecordFailed{ref, why}).Then(failed)
	facts(t).When(RecordFailed{ref, why}).Refused("environment-unknown")
	for _, late := range []events.EnvironmentEvent{created, failed, deletion} {
		facts(t, declared, late).When(RecordFailed{ref, why}).Nothing()
	}
}

func TestExpire(t *testing.T) {
	facts(t, declared).When(Expire{ref}).Refused("not-due")
	late := facts(t, declared).At(declared.Until)
	late.When(Expire{ref}).Then(events.EnvironmentFailed{Cause: events.Cause{Code: "upload-expired",
		Text: "its disks did not come by 2014-01-15T15:07:03Z", Next: "create it again"}})
	facts(t, declared, created).At(declared.Until).When(Expire{ref}).Nothing()
	facts(t).When(Expire{ref}).Refused("environment-unknown")
	unlimited := declared
	unlimited.Until = time.Time{}
	facts(t, unlimited).At(declared.Until).When(Expire{ref}).Refused("not-due")
}

func TestSetPower(t *testing.T) {
	power := func(machine, p string) SetPower { return SetPower{Ref: ref, Machine: machine, Power: p} }
	facts(t, declared, created).When(power("", "running")).Then(running)
	facts(t, declared, created).When(power("vm1", "suspended")).Then(suspended)
	for _, p := range []string{"stopped", "powered-off"} {
		facts(t, declared, created).When(power("", p)).Then(events.PowerSet{Power: p})
	}
	facts(t, declared, created).When(power("", "on")).Refused("bad-power")
	facts(t).When(power("", "running")).Refused("environment-unknown")
	facts(t, declared).When(power("", "running")).Refused("environment-not-ready")
	facts(t, declared, failed).When(power("", "running")).Refused("environment-failed")
	facts(t, declared, created, deletion).When(power("", "running")).Refused("environment-deleted")
}

func TestPowerOfOneAndOfAll(t *testing.T) {
	power := func(machine, p string) SetPower { return SetPower{Ref: ref, Machine: machine, Power: p} }
	facts(t, declared, created, running).When(power("", "running")).Nothing()
	facts(t, declared, created, running).When(power("vm1", "running")).Nothing()
	one := facts(t, declared, created, running, suspended)
	one.When(power("vm1", "suspended")).Nothing()
	one.When(power("vm2", "running")).Nothing()
	one.When(power("", "running")).Then(running) // vm1 is not
	facts(t, declared, created, suspended).When(power("", "suspended")).Then(events.PowerSet{Power: "suspended"})
	facts(t, declared, created, running, suspended, running).When(power("vm1", "running")).Nothing()
	back := facts(t, declared, created, running, suspended, events.PowerSet{Machine: "vm1", Power: "running"})
	back.When(power("", "running")).Nothing()
}

func TestDelete(t *testing.T) {
	for _, history := range [][]events.EnvironmentEvent{{declared}, {declared, created}, {declared, failed}} {
		facts(t, history...).When(Delete{ref, "op2"}).Then(deletion)
	}
	facts(t, declared, deletion).When(Delete{ref, "op3"}).Nothing()
	facts(t, declared, deletion, deleted).When(Delete{ref, "op3"}).Nothing()
	facts(t).When(Delete{ref, "op2"}).Refused("environment-unknown")
}

func TestRecordDeleted(t *testing.T) {
	facts(t, declared, deletion).When(RecordDeleted{ref}).Then(deleted)
	facts(t, declared, deletion, deleted).When(RecordDeleted{ref}).Nothing()
	facts(t, declared, created).When(RecordDeleted{ref}).Refused("environment-not-deleted")
	facts(t).When(RecordDeleted{ref}).Refused("environment-not-deleted")
}

func TestAnOlderStateStaysAsItWas(t *testing.T) {
	before := facts(t, declared, created, running, suspended)
	before.State().Fold(events.PowerSet{Machine: "vm1", Power: "running"})
	before.When(SetPower{Ref: ref, Machine: "vm1", Power: "running"}).Then(events.PowerSet{Machine: "vm1", Power: "running"})
}
