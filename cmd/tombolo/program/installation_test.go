package program_test

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// fact is an event of an aggregate, caused by a person or by what happened before.
type fact struct {
	at     events.Aggregate
	event  events.Event
	person bool
}

// installation yields the history of an installation at work, without end:
// many templates and environments that live side by side, each from its claims
// to its removal, in forty regions. About one aggregate in ten events, ids as
// the product derives them.
func installation(seed uint64) iter.Seq[fact] {
	in := &installer{rng: rand.New(rand.NewPCG(seed, 11))}
	return func(yield func(fact) bool) {
		for i := range 40 {
			in.regions = append(in.regions, events.RegionID(fmt.Sprintf("region-%d", i)))
			r := in.regions[i]
			for _, f := range []fact{
				{events.Aggregate{Account: events.None, Region: r, Kind: events.KindRegion, ID: string(r)}, events.RegionAdded{Region: r, Profile: events.RegionProfile{Name: string(r)}}, true},
				{in.pool(r), events.RangeAdded{Prefix: "10.0.0.0/8"}, true},
			} {
				if !yield(f) {
					return
				}
			}
		}
		const together = 1000
		type life struct {
			next func() (fact, bool)
			stop func()
		}
		lives := make([]life, 0, together)
		defer func() {
			for _, l := range lives {
				l.stop()
			}
		}()
		for n := 0; ; n++ {
			if len(lives) < together {
				begin := in.environment
				if n%8 == 0 || in.templates == nil {
					begin = in.template
				}
				next, stop := iter.Pull(begin())
				lives = append(lives, life{next, stop})
			}
			i := in.rng.IntN(len(lives))
			f, ok := lives[i].next()
			if !ok {
				lives[i] = lives[len(lives)-1]
				lives = lives[:len(lives)-1]
				continue
			}
			if !yield(f) {
				return
			}
		}
	}
}

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type installer struct {
	rng       *rand.Rand
	count     int
	regions   []events.RegionID
	templates []installed
}

// installed is a template that environments can be made from.
type installed struct {
	ref     events.TemplateRef
	account events.AccountID
	region  events.RegionID
}

// id gives a fresh id of the kind that the product derives.
func (in *installer) id(role string) string {
	in.count++
	return events.DeriveID("acme", events.CommandID(fmt.Sprint(in.count)), role)
}

func (in *installer) pool(r events.RegionID) events.Aggregate {
	return events.Aggregate{Account: events.None, Region: r, Kind: events.KindPool, ID: "public-address"}
}

func (in *installer) lease() events.Lease {
	in.count++
	n := in.count
	return events.Lease{ID: events.LeaseID(in.id("lease")), Resource: "web/public", Value: fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255), Chosen: events.Automatic}
}

// work yields the life of one work order.
func (in *installer) work(yield func(fact) bool, account events.AccountID, r events.RegionID, kind events.WorkKind, op events.OperationID, o events.Order) bool {
	at := events.Aggregate{Account: account, Region: r, Kind: events.KindWork, ID: in.id("work")}
	return yield(fact{at, events.WorkOrdered{Kind: kind, Order: o, Operation: op}, false}) &&
		yield(fact{at, events.WorkStarted{Epoch: 3, Attempt: 1}, false}) &&
		yield(fact{at, events.WorkDone{Epoch: 3, Result: events.Result{Manifest: o.Manifest, Graph: o.Graph, Bytes: 4 << 30, Received: 1 << 30, Stored: 1 << 29, Location: at.ID}}, false})
}

// template yields the life of a template in three regions.
func (in *installer) template() iter.Seq[fact] {
	return func(yield func(fact) bool) {
		account := events.AccountID(fmt.Sprintf("account-%d", in.rng.IntN(50)))
		op := events.OperationID(in.id("operation"))
		in.count++
		number := fmt.Sprint(10000000 + in.count*7919%90000000)
		name := "template-" + number
		first := in.rng.IntN(len(in.regions))
		regions := []events.RegionID{in.regions[first], in.regions[(first+7)%40], in.regions[(first+19)%40]}
		manifest := events.DigestOf([]byte(number))
		nameAt := events.Aggregate{Account: account, Region: events.None, Kind: events.KindName, ID: name}
		numberAt := events.Aggregate{Account: events.None, Region: events.None, Kind: events.KindNumber, ID: number}
		at := events.Aggregate{Account: account, Region: events.None, Kind: events.KindTemplate, ID: number}
		ok := yield(fact{nameAt, events.NameClaimed{Owner: number, Until: epoch}, true}) &&
			yield(fact{numberAt, events.NumberClaimed{Account: account, Owner: string(op), Until: epoch}, true}) &&
			yield(fact{at, events.TemplateCreated{Name: name, Display: "Template " + number, Source: events.Source{Environment: "env", Region: regions[0]}, Regions: regions, Keep: 1, Operation: op}, true}) &&
			yield(fact{nameAt, events.NameConfirmed{Owner: number}, false}) &&
			yield(fact{numberAt, events.NumberConfirmed{Owner: string(op)}, false}) &&
			in.work(yield, account, regions[0], events.WorkSave, op, events.Order{Template: events.TemplateID(number), Version: 1, Environment: "env"}) &&
			yield(fact{at, events.VersionSaved{Version: 1, Manifest: manifest, Bytes: 4 << 30, Resources: []events.ResourceRef{{ID: "web/public", Type: "public-address"}}}, false})
		for _, r := range regions {
			id := events.InstanceID(in.id("instance"))
			here := events.Aggregate{Account: account, Region: r, Kind: events.KindInstance, ID: string(id)}
			l, owner := in.lease(), events.Owner{Account: account, Instance: id}
			ok = ok && yield(fact{here, events.CopyWanted{Template: events.TemplateID(number), Version: 1, Manifest: manifest, Bytes: 4 << 30,
				Resources: []events.ResourceRef{{ID: "web/public", Type: "public-address"}}, Operation: op}, false}) &&
				yield(fact{in.pool(r), events.LeasesReserved{Owner: owner, Leases: []events.Lease{l}, Until: epoch}, false}) &&
				yield(fact{here, events.ResourcesMapped{Map: []events.Substitution{{Resource: "web/public", Type: "public-address", To: l.Value, Chosen: l.Chosen}}}, false}) &&
				yield(fact{in.pool(r), events.LeasesConfirmed{Owner: owner}, false}) &&
				in.work(yield, account, r, events.WorkCopy, op, events.Order{Template: events.TemplateID(number), Version: 1, Instance: id, Manifest: manifest}) &&
				yield(fact{here, events.CopyVerified{Manifest: manifest, Location: string(id), Received: 1 << 30, Stored: 1 << 29}, false})
			if ok {
				in.templates = append(in.templates, installed{events.TemplateRef{Template: events.TemplateID(number), Version: 1, Manifest: manifest, Bytes: 4 << 30, Instance: id}, account, r})
			}
		}
		_ = ok && yield(fact{at, events.VersionActivated{Version: 1, Operation: op}, false}) &&
			yield(fact{events.Aggregate{Account: account, Region: events.None, Kind: events.KindOperation, ID: string(op)}, events.OperationFinished{Outcome: events.Succeeded}, false})
	}
}

// environment yields the life of an environment made from a template.
func (in *installer) environment() iter.Seq[fact] {
	return func(yield func(fact) bool) {
		of := in.templates[in.rng.IntN(len(in.templates))]
		id, op := in.id("environment"), events.OperationID(in.id("operation"))
		at := events.Aggregate{Account: of.account, Region: of.region, Kind: events.KindEnvironment, ID: id}
		graph, l := events.DigestOf([]byte(id)), in.lease()
		owner := events.Owner{Account: of.account, Environment: events.EnvironmentID(id)}
		ok := yield(fact{at, events.EnvironmentDeclared{Name: "env-" + id[:8], Display: "Environment " + id[:8], Graph: graph, Operation: op, Origin: &of.ref,
			Resources: []events.ResourceRef{{ID: "web/public", Type: "public-address"}}}, true}) &&
			yield(fact{in.pool(of.region), events.LeasesBound{Owner: owner, Fresh: []events.Lease{l}}, false}) &&
			yield(fact{at, events.EnvironmentMapped{Map: []events.Substitution{{Resource: "web/public", Type: "public-address", To: l.Value, Chosen: l.Chosen}}}, false}) &&
			in.work(yield, of.account, of.region, events.WorkClone, op, events.Order{Environment: owner.Environment, Template: of.ref.Template, Version: 1, Instance: of.ref.Instance, Manifest: of.ref.Manifest, Graph: graph}) &&
			yield(fact{at, events.EnvironmentCreated{Graph: graph}, false})
		for range in.rng.IntN(90) { // somebody switches machines on and off
			ok = ok && yield(fact{at, events.PowerSet{Machine: []string{"", "web", "db"}[in.rng.IntN(3)], Power: []string{"running", "stopped"}[in.rng.IntN(2)]}, true})
		}
		if !ok || in.rng.IntN(3) == 0 { // stays
			return
		}
		op = events.OperationID(in.id("operation"))
		_ = yield(fact{at, events.EnvironmentDeletionAccepted{Operation: op}, true}) &&
			in.work(yield, of.account, of.region, events.WorkDiscard, op, events.Order{Environment: owner.Environment}) &&
			yield(fact{in.pool(of.region), events.LeasesReleased{Owner: owner, Why: "removed", Freed: []events.LeaseID{l.ID}}, false}) &&
			yield(fact{at, events.EnvironmentDeleted{}, false})
	}
}
