package projections_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// world makes a random history that aggregates could have decided: each fact
// follows from those before it. What it knows is what a test may ask for.
type world struct {
	rng          *rand.Rand
	emit         func(a events.Aggregate, e events.Event, person bool)
	count        int
	templates    []*worldTemplate
	instances    []*worldInstance
	works        []*worldWork
	environments []*worldEnvironment
	pools        []*worldPool
	operations   []events.OperationID
	users        []events.UserID
}

type worldTemplate struct {
	id                string
	account           events.AccountID
	stages            []string // of version i+1
	active, staged    int
	queue             []events.ReplacementQueued
	regions           []events.RegionID
	deleting, deleted bool
}

type worldInstance struct {
	id       string
	of       *worldTemplate
	version  int
	region   events.RegionID
	state    string // wanted, mapped, waiting, verified, failed, damaged, removing, removed
	attempts int
	cached   bool
}

type worldWork struct {
	at    events.Aggregate
	state string
	undo  bool
	epoch int
	tries int
}

type worldEnvironment struct {
	at    events.Aggregate
	name  string
	state string
}

type worldLease struct {
	events.Lease
	account               events.AccountID
	instance, environment string
	heirs                 []string
}

type worldPool struct {
	at        events.Aggregate
	size      int
	leases    []*worldLease
	confirmed map[string]bool // by instance; false: reserved
	accounts  map[string]events.AccountID
}

var (
	worldRegions  = []events.RegionID{"beijing", "chicago", "lima", "sydney"}
	worldAccounts = []events.AccountID{"acme", "other"}
)

func newWorld(seed uint64, emit func(events.Aggregate, events.Event, bool)) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 7)), emit: emit}
	for _, r := range worldRegions {
		w.emit(events.Aggregate{Account: events.None, Region: r, Kind: events.KindRegion, ID: string(r)},
			events.RegionAdded{Region: r, Profile: events.RegionProfile{Name: string(r)}}, true)
		p := &worldPool{at: events.Aggregate{Account: events.None, Region: r, Kind: events.KindPool, ID: "public-address"},
			confirmed: map[string]bool{}, accounts: map[string]events.AccountID{}}
		w.pools = append(w.pools, p)
	}
	return w
}

func pick[T any](w *world, list []T) T { return list[w.rng.IntN(len(list))] }

func (w *world) next(prefix string) string { w.count++; return fmt.Sprintf("%s-%d", prefix, w.count) }

func (w *world) operation() events.OperationID {
	op := events.OperationID(w.next("op"))
	w.operations = append(w.operations, op)
	return op
}

func (w *world) cause() events.Cause {
	return events.Cause{Code: "some-cause", Text: w.next("because")}
}

func (w *world) until() time.Time {
	if w.rng.IntN(3) == 0 {
		return time.Time{}
	}
	return epoch.Add(time.Duration(w.rng.IntN(1e6)) * time.Millisecond)
}

// step emits one or a few facts.
func (w *world) step() {
	switch n := w.rng.IntN(100); {
	case n < 3 || len(w.templates) == 0:
		w.createTemplate()
	case n < 20:
		w.template(pick(w, w.templates))
	case n < 26 || len(w.instances) == 0:
		w.want(pick(w, w.templates))
	case n < 55:
		w.instance(pick(w, w.instances[max(0, len(w.instances)-50):]))
	case n < 80 && len(w.works) > 0:
		w.work(pick(w, w.works[max(0, len(w.works)-50):]))
	case n < 84 || len(w.environments) == 0:
		w.declare()
	case n < 90:
		w.environment(pick(w, w.environments[max(0, len(w.environments)-30):]))
	case n < 96:
		w.pool(pick(w, w.pools))
	case n < 98:
		w.asked(pick(w, w.operations))
	default:
		w.account()
	}
}

func (w *world) createTemplate() {
	t := &worldTemplate{id: fmt.Sprint(10000000 + len(w.templates)), account: pick(w, worldAccounts), stages: []string{"saving"}, staged: 1,
		regions: slices.Clone(worldRegions[:1+w.rng.IntN(len(worldRegions))])}
	w.templates = append(w.templates, t)
	name := w.next("name")
	claim := events.Aggregate{Account: t.account, Region: events.None, Kind: events.KindName, ID: name}
	number := events.Aggregate{Account: events.None, Region: events.None, Kind: events.KindNumber, ID: t.id}
	op := w.operation()
	w.emit(claim, events.NameClaimed{Owner: t.id, Until: epoch.Add(time.Hour)}, true)
	w.emit(number, events.NumberClaimed{Account: t.account, Owner: string(op), Until: epoch.Add(time.Hour)}, true)
	w.emit(t.at(), events.TemplateCreated{Name: name, Display: fmt.Sprintf("Display %d", w.rng.IntN(20)),
		Source: events.Source{Environment: "env", Region: t.regions[0]}, Regions: t.regions, Keep: 1, Operation: op}, true)
	if w.rng.IntN(4) > 0 {
		w.emit(claim, events.NameConfirmed{Owner: t.id}, false)
		w.emit(number, events.NumberConfirmed{Owner: string(op)}, false)
	}
}

func (t *worldTemplate) at() events.Aggregate {
	return events.Aggregate{Account: t.account, Region: events.None, Kind: events.KindTemplate, ID: t.id}
}

func (t *worldTemplate) manifest(version int) events.Digest {
	return events.DigestOf(fmt.Appendf(nil, "%s/%d", t.id, version/2)) // two versions may have one content
}

func (w *world) template(t *worldTemplate) {
	stage := ""
	if t.staged > 0 {
		stage = t.stages[t.staged-1]
	}
	old := slices.IndexFunc(t.stages, func(s string) bool { return s == "superseded" }) + 1
	source := events.Source{Environment: "env", Region: pick(w, worldRegions)}
	policy := events.SwitchPolicy{Kind: pick(w, []string{"all", "available"})}
	switch n := w.rng.IntN(20); {
	case t.deleted:
	case t.deleting:
		w.emit(t.at(), events.TemplateDeleted{}, false)
		t.deleted = true
	case n == 0:
		w.emit(t.at(), events.TemplateDeletionAccepted{Operation: w.operation()}, true)
		t.deleting, t.staged, t.queue = true, 0, nil
	case n == 1 && w.rng.IntN(2) == 0:
		w.emit(t.at(), events.KeepSet{Keep: w.rng.IntN(3)}, true)
	case n == 1:
		w.emit(t.at(), events.ProtectionSet{Protected: w.rng.IntN(2) == 0}, true)
	case n == 2:
		r := pick(w, worldRegions)
		e := events.RegionsChanged{Operation: w.operation()}
		if i := slices.Index(t.regions, r); i < 0 {
			e.Add, t.regions = []events.RegionID{r}, append(t.regions, r)
		} else if len(t.regions) > 1 {
			e.Remove, t.regions = []events.RegionID{r}, slices.Delete(t.regions, i, i+1)
		}
		w.emit(t.at(), e, true)
	case stage == "saving" && n < 12:
		t.stages[t.staged-1] = "saved"
		w.emit(t.at(), events.VersionSaved{Version: t.staged, Manifest: t.manifest(t.staged), Bytes: int64(w.rng.IntN(1e9)),
			Resources: []events.ResourceRef{{ID: "web.public", Type: "public-address"}}}, false)
	case stage == "saved" && n < 12:
		if t.active > 0 {
			t.stages[t.active-1] = "superseded"
		}
		w.emit(t.at(), events.VersionActivated{Version: t.staged, Replaces: t.active, Operation: "op-1"}, false)
		t.stages[t.staged-1], t.active, t.staged = "active", t.staged, 0
	case stage != "" && n < 14 && t.active > 0:
		t.stages[t.staged-1] = "abandoned"
		w.emit(t.at(), events.VersionAbandoned{Version: t.staged, Operation: "op-1", Cause: w.cause()}, false)
		t.staged = 0
	case stage != "" && t.active > 0:
		if len(t.queue) < 3 {
			t.queue = append(t.queue, events.ReplacementQueued{Source: source, Policy: policy, Deadline: w.until(), Operation: w.operation()})
			w.emit(t.at(), t.queue[len(t.queue)-1], true)
		}
	case old > 0 && n < 15 && t.active > 0:
		w.emit(t.at(), events.VersionActivated{Version: old, Replaces: t.active, Rollback: true, Operation: w.operation()}, true)
		t.stages[t.active-1], t.stages[old-1], t.active = "superseded", "active", old
	case old > 0 && n < 17:
		t.stages[old-1] = "retired"
		w.emit(t.at(), events.VersionRetired{Version: old}, false)
	case stage == "" && t.active > 0:
		t.stages = append(t.stages, "saving")
		t.staged = len(t.stages)
		q := events.ReplacementQueued{Source: source, Policy: policy, Deadline: w.until()}
		if len(t.queue) > 0 {
			q, t.queue = t.queue[0], t.queue[1:]
		} else {
			q.Operation = w.operation()
		}
		w.emit(t.at(), events.ReplacementStaged{Version: t.staged, Source: q.Source, Policy: q.Policy, Deadline: q.Deadline, Operation: q.Operation}, true)
	}
}

func (w *world) want(t *worldTemplate) {
	version := 1 + w.rng.IntN(len(t.stages))
	if s := t.stages[version-1]; s == "saving" || s == "abandoned" || s == "retired" || t.deleting {
		return
	}
	i := &worldInstance{of: t, version: version, region: pick(w, worldRegions)}
	i.id = fmt.Sprintf("i-%s-%d-%s", t.id, version, i.region)
	if k := slices.IndexFunc(w.instances, func(o *worldInstance) bool { return o.id == i.id }); k >= 0 {
		if i = w.instances[k]; i.state != "removed" {
			return
		}
	} else {
		w.instances = append(w.instances, i)
	}
	i.state, i.cached = "wanted", w.rng.IntN(4) == 0
	i.attempts++
	w.emit(i.at(), events.CopyWanted{Template: events.TemplateID(t.id), Version: version, Manifest: t.manifest(version),
		Bytes: 1000, Cached: i.cached, Operation: pick(w, w.operations)}, false)
}

func (i *worldInstance) at() events.Aggregate {
	return events.Aggregate{Account: i.of.account, Region: i.region, Kind: events.KindInstance, ID: i.id}
}

func (w *world) instance(i *worldInstance) {
	say := func(state string, e events.Event) {
		i.state = state
		w.emit(i.at(), e, false)
	}
	n := w.rng.IntN(10)
	switch {
	case i.state == "removed":
	case i.state == "removing":
		say("removed", events.CopyRemoved{Lost: n == 0})
	case n == 0:
		say("removing", events.RemovalWanted{Operation: pick(w, w.operations)})
	case n == 1 && i.cached:
		i.cached = false
		w.emit(i.at(), events.CopyKept{}, false)
	case i.state == "wanted" && n < 4:
		say("waiting", events.CopyWaiting{Cause: w.cause()})
	case i.state == "wanted" || i.state == "waiting":
		say("mapped", events.ResourcesMapped{Map: []events.Substitution{{Resource: "web.public", Type: "public-address", To: w.next("value"), Chosen: events.Automatic}}})
	case i.state == "verified" && n < 4:
		say("damaged", events.CopyDamaged{Chunks: n})
	case (i.state == "mapped" || i.state == "damaged") && n < 5:
		w.order(i)
	case (i.state == "mapped" || i.state == "damaged") && n < 8:
		say("verified", events.CopyVerified{Manifest: i.of.manifest(i.version), Location: w.next("slot"), Received: 5, Stored: 4})
	case i.state == "mapped" || i.state == "damaged":
		say("failed", events.CopyFailed{Cause: w.cause()})
	case i.state == "failed":
		i.attempts++
		say("mapped", events.CopyRetried{Operation: pick(w, w.operations), Attempt: i.attempts})
	}
}

func (w *world) order(i *worldInstance) {
	k := &worldWork{at: events.Aggregate{Account: i.of.account, Region: i.region, Kind: events.KindWork, ID: w.next("w")}, state: "ordered"}
	w.works = append(w.works, k)
	w.emit(k.at, events.WorkOrdered{Kind: pick(w, []events.WorkKind{events.WorkCopy, events.WorkCopy, events.WorkRemove}), Operation: pick(w, w.operations),
		Order: events.Order{Instance: events.InstanceID(i.id), Template: events.TemplateID(i.of.id), Version: i.version, Manifest: i.of.manifest(i.version)}}, false)
}

func (w *world) work(k *worldWork) {
	say := func(state string, e events.WorkEvent) {
		k.state = state
		w.emit(k.at, e, false)
	}
	n := w.rng.IntN(10)
	start := func(state string) {
		k.epoch++
		k.tries++
		say(state, events.WorkStarted{Epoch: k.epoch, Attempt: k.tries})
	}
	switch {
	case k.state == "written-off" || k.state == "undone":
	case n == 0 && k.state != "done":
		say("written-off", events.WorkWrittenOff{Why: w.cause()})
	case n == 1 && !k.undo:
		k.undo = true
		say("undoing", events.WorkUndoOrdered{Why: w.cause()})
	case k.state == "ordered":
		start("started")
	case k.state == "started" && n < 4:
		start("started")
	case k.state == "started" && n < 6:
		say("failed", events.WorkFailed{Epoch: k.epoch, Cause: w.cause()})
	case k.state == "started":
		say("done", events.WorkDone{Epoch: k.epoch, Result: events.Result{Location: w.next("slot"), Received: 3}})
	case k.state == "undoing" && n < 4:
		start("undoing")
	case k.state == "undoing" && n < 6:
		say("stuck", events.WorkStuck{Epoch: k.epoch, Cause: w.cause()})
	case k.state == "undoing":
		say("undone", events.WorkUndone{Epoch: k.epoch})
	case k.state == "stuck":
		say("undoing", events.WorkRetried{})
	case k.state == "failed":
		say("ordered", events.WorkRetried{})
	}
}

func (w *world) declare() {
	v := &worldEnvironment{name: w.next("env"), state: "declared"}
	v.at = events.Aggregate{Account: pick(w, worldAccounts), Region: pick(w, worldRegions), Kind: events.KindEnvironment, ID: v.name}
	w.environments = append(w.environments, v)
	e := events.EnvironmentDeclared{Name: v.name, Display: v.name, Graph: events.DigestOf([]byte(v.name)), Operation: w.operation(), Until: w.until()}
	if len(w.instances) > 0 && w.rng.IntN(2) == 0 {
		i := pick(w, w.instances)
		e.Origin = &events.TemplateRef{Template: events.TemplateID(i.of.id), Version: i.version, Instance: events.InstanceID(i.id)}
	}
	w.emit(v.at, e, true)
}

func (w *world) environment(v *worldEnvironment) {
	say := func(state string, e events.Event) {
		v.state = state
		w.emit(v.at, e, false)
	}
	n := w.rng.IntN(10)
	switch {
	case v.state == "deleted":
	case v.state == "deleting":
		say("deleted", events.EnvironmentDeleted{})
	case n == 0:
		say("deleting", events.EnvironmentDeletionAccepted{Operation: w.operation()})
	case v.state == "declared":
		say("mapped", events.EnvironmentMapped{Map: []events.Substitution{{Resource: "web.public", To: w.next("value")}}})
	case v.state == "mapped" && n < 3:
		say("failed", events.EnvironmentFailed{Cause: w.cause()})
	case v.state == "mapped":
		say("created", events.EnvironmentCreated{Graph: events.DigestOf([]byte(w.next("graph")))})
	case v.state == "created" && n < 4:
		seen := events.MachineState{Machine: pick(w, []string{"web", "db"}), Power: pick(w, []string{"running", "stopped", events.MachineFailed}), Accelerator: "tcg"}
		if seen.Power == "stopped" {
			seen.Declared = "stopped"
		}
		w.emit(v.at, events.MachinesObserved{Epoch: 1, Machines: []events.MachineState{seen}, Operation: w.operation()}, true)
	case v.state == "created" && n < 6:
		w.emit(v.at, events.EdgeSet{Rules: []events.EdgeRule{{Action: "deny", To: []string{w.next("host")}}}, Operation: w.operation()}, true)
	case v.state == "created":
		w.emit(v.at, events.PowerSet{Machine: pick(w, []string{"", "web", "db"}), Power: pick(w, []string{"running", "stopped"})}, true)
	}
}

func (w *world) asked(op events.OperationID) {
	at := events.Aggregate{Account: "acme", Region: events.None, Kind: events.KindOperation, ID: string(op)}
	w.emit(at, pick(w, []events.Event{events.CancelAsked{}, events.RetryAsked{Attempt: 1 + w.count},
		events.OperationFinished{Outcome: pick(w, []events.Outcome{events.Succeeded, events.Partly, events.Cancelled})}}), true)
}

func (w *world) account() {
	at := events.Aggregate{Account: "acme", Region: events.None, Kind: events.KindAccount, ID: "acme"}
	if len(w.users) > 5 {
		w.emit(at, events.UserRemoved{User: w.users[0]}, true)
		w.users = w.users[1:]
		return
	}
	u := events.UserID(w.next("user"))
	w.users = append(w.users, u)
	w.emit(at, events.UserAdded{User: u, Role: events.Operator, NKey: "U" + string(u), Token: events.DigestOf([]byte(u))}, true)
}

func (w *world) pool(p *worldPool) {
	n := w.rng.IntN(10)
	switch free := p.size - len(p.leases); {
	case p.size < 64 && (p.size == 0 || n == 0):
		w.emit(p.at, events.RangeAdded{Prefix: fmt.Sprintf("192.0.2.%d/28", p.size)}, true)
		p.size += 16
	case n < 5 && free > 1:
		w.reserve(p)
	case n < 8 && free > 0:
		w.bind(p)
	case n == 8 && free > 0:
		l := p.lease(w, "acme")
		w.emit(p.at, events.LeaseGranted{Account: "acme", Lease: l.Lease}, true)
	default:
		w.release(p)
	}
}

// lease takes the lowest free value.
func (p *worldPool) lease(w *world, account events.AccountID) *worldLease {
	for i := 0; ; i++ {
		value := fmt.Sprintf("192.0.2.%d", i)
		if !slices.ContainsFunc(p.leases, func(l *worldLease) bool { return l.Value == value }) {
			l := &worldLease{Lease: events.Lease{ID: events.LeaseID(w.next("l")), Resource: "web.public", Value: value, Chosen: events.Automatic}, account: account}
			p.leases = append(p.leases, l)
			return l
		}
	}
}

func (w *world) reserve(p *worldPool) {
	e := events.LeasesReserved{Owner: events.Owner{Account: "acme", Instance: events.InstanceID(w.next("holder"))}, Until: epoch.Add(time.Hour)}
	id := string(e.Owner.Instance)
	p.confirmed[id] = w.rng.IntN(2) == 0
	for _, l := range p.leases {
		if l.instance != "" && w.rng.IntN(4) == 0 {
			l.heirs = append(l.heirs, id)
			e.Inherited = append(e.Inherited, l.Lease)
		}
	}
	l := p.lease(w, "acme")
	l.instance = id
	e.Leases = []events.Lease{l.Lease}
	w.emit(p.at, e, false)
	if p.confirmed[id] {
		w.emit(p.at, events.LeasesConfirmed{Owner: e.Owner}, false)
	}
	if len(e.Inherited) > 0 && w.rng.IntN(2) == 0 {
		i := slices.IndexFunc(p.leases, func(l *worldLease) bool { return l.ID == e.Inherited[0].ID })
		from := p.leases[i]
		passed := events.LeasesInherited{From: events.Owner{Account: "acme", Instance: events.InstanceID(from.instance)}, To: e.Owner, Leases: []events.LeaseID{from.ID}}
		from.instance, from.heirs = id, slices.DeleteFunc(from.heirs, func(h string) bool { return h == id })
		w.emit(p.at, passed, false)
	}
}

func (w *world) bind(p *worldPool) {
	e := events.LeasesBound{Owner: events.Owner{Account: "acme", Environment: events.EnvironmentID(w.next("user"))}}
	for _, l := range p.leases {
		if l.instance != "" && l.environment == "" {
			l.environment = string(e.Owner.Environment)
			e.Bound = append(e.Bound, l.Lease)
			break
		}
	}
	l := p.lease(w, "acme")
	l.environment = string(e.Owner.Environment)
	e.Fresh = []events.Lease{l.Lease}
	w.emit(p.at, e, false)
}

func (w *world) release(p *worldPool) {
	if len(p.leases) == 0 {
		return
	}
	l := pick(w, p.leases)
	e := events.LeasesReleased{Owner: events.Owner{Account: "acme"}, Why: "removed"}
	mine := func(o *worldLease) bool { return o.instance == l.instance }
	switch {
	case l.instance == "" && l.environment == "":
		w.emit(p.at, events.LeaseRevoked{Lease: l.ID}, true)
		p.leases = slices.DeleteFunc(p.leases, func(o *worldLease) bool { return o == l })
		return
	case l.environment != "":
		e.Owner.Environment = events.EnvironmentID(l.environment)
		mine = func(o *worldLease) bool { return o.environment == string(e.Owner.Environment) }
	default:
		e.Owner.Instance = events.InstanceID(l.instance)
		for _, o := range p.leases {
			o.heirs = slices.DeleteFunc(o.heirs, func(h string) bool { return h == l.instance })
		}
		owner := l.instance
		mine = func(o *worldLease) bool { return o.instance == owner }
	}
	p.leases = slices.DeleteFunc(p.leases, func(o *worldLease) bool {
		switch {
		case !mine(o):
			return false
		case e.Owner.Instance != "" && len(o.heirs) > 0:
			e.Passed = append(e.Passed, events.Passed{Lease: o.ID, To: events.InstanceID(o.heirs[0])})
			o.instance, o.heirs = o.heirs[0], o.heirs[1:]
		case e.Owner.Instance != "" && o.environment != "":
			e.Kept, o.instance = append(e.Kept, o.ID), ""
		case e.Owner.Environment != "" && o.instance != "":
			e.Kept, o.environment = append(e.Kept, o.ID), ""
		default:
			e.Freed = append(e.Freed, o.ID)
			return true
		}
		return false
	})
	w.emit(p.at, e, false)
}
