package pool_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/events"
)

const (
	sydney  = events.RegionID("sydney")
	address = events.PoolID("public-address")
)

var (
	soon = given.Now().Add(time.Minute)
	four = events.RangeAdded{Prefix: "203.0.113.8/30"} // .8 .9 .10 .11
	v1   = events.Owner{Account: "acme", Instance: "v1"}
	v2   = events.Owner{Account: "acme", Instance: "v2"}
	v3   = events.Owner{Account: "acme", Instance: "v3"}
	env  = events.Owner{Account: "acme", Environment: "env"}
	env2 = events.Owner{Account: "acme", Environment: "env2"}
	evil = events.Owner{Account: "evil", Instance: "mallory"}
)

// facts is a pool with these facts.
func facts(t *testing.T, history ...events.PoolEvent) given.Case[State, events.PoolEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

// id is the lease that a command makes: what Reserve and Bind document.
func id(o events.Owner, command events.CommandID, resource string) events.LeaseID {
	key := "instance " + string(o.Instance)
	if o.Environment != "" {
		key = "environment " + string(o.Environment)
	}
	return events.LeaseID(events.DeriveID(o.Account, command, Of(sydney, address).Subject()+" "+key+" "+resource))
}

func lease(o events.Owner, resource, value string, chosen events.Chosen) events.Lease {
	return events.Lease{ID: id(o, "c1", resource), Resource: resource, Value: value, Chosen: chosen}
}

func reserve(o events.Owner, resources ...string) Reserve {
	return Reserve{Region: sydney, Type: address, Command: "c1", Owner: o, Resources: resources, Until: soon}
}

func bind(o events.Owner, from events.InstanceID, resources ...string) Bind {
	return Bind{Region: sydney, Type: address, Command: "c1", Owner: o, Instance: from, Resources: resources}
}

func release(o events.Owner) Release {
	return Release{Region: sydney, Type: address, Owner: o, Why: "removed"}
}

// has is the fact that v1 (or another) reserved these values, in this order.
func has(o events.Owner, pairs ...string) events.LeasesReserved {
	e := events.LeasesReserved{Owner: o, Until: soon}
	for i := 0; i < len(pairs); i += 2 {
		e.Leases = append(e.Leases, lease(o, pairs[i], pairs[i+1], events.Automatic))
	}
	return e
}

// uses is the fact that an environment bound leases of v1 that has() made.
func uses(o events.Owner, pairs ...string) events.LeasesBound {
	return events.LeasesBound{Owner: o, Bound: has(v1, pairs...).Leases}
}

func TestEveryCommandGoesToTheRegionsPoolWhoeverAsks(t *testing.T) {
	want := events.Aggregate{Account: events.None, Region: sydney, Kind: events.KindPool, ID: "public-address"}
	for _, c := range []aggregates.Command[State, events.PoolEvent]{
		AddRange{Region: sydney, Type: address}, Reserve{Region: sydney, Type: address}, Confirm{Region: sydney, Type: address},
		Inherit{Region: sydney, Type: address}, Expire{Region: sydney, Type: address}, Bind{Region: sydney, Type: address},
		Release{Region: sydney, Type: address}, Grant{Region: sydney, Type: address}, Revoke{Region: sydney, Type: address},
	} {
		if got := c.Aggregate("acme"); got != want || got.Validate() != nil {
			t.Errorf("%T decides in %s, want %s", c, got, want)
		}
	}
}

func TestAddRange(t *testing.T) {
	add := func(prefix string) AddRange { return AddRange{Region: sydney, Type: address, Prefix: prefix} }
	facts(t).When(add("203.0.113.9/30")).Then(four) // host bits are zeroed
	facts(t, four).When(add("203.0.113.8/30")).Nothing()
	facts(t, four).When(add("203.0.113.12/30")).Then(events.RangeAdded{Prefix: "203.0.113.12/30"})
	facts(t, four).When(add("203.0.113.0/24")).Refused("range-overlaps")
	facts(t, four).When(add("203.0.113.11/32")).Refused("range-overlaps")
	facts(t).When(add("2001:db8::/108")).Then(events.RangeAdded{Prefix: "2001:db8::/108"})
	facts(t).When(add("10.0.0.0/12")).Then(events.RangeAdded{Prefix: "10.0.0.0/12"})
	facts(t).When(add("10.0.0.0/11")).Refused("range-too-large")
	facts(t).When(add("2001:db8::/64")).Refused("range-too-large")
	for _, bad := range []string{"203.0.113.8", "203.0.113.8/33", "::ffff:203.0.113.0/124", "fe80::1%eth0/120", "x"} {
		facts(t).When(add(bad)).Refused("range-invalid")
	}
	facts(t).When(AddRange{}).Refused("range-invalid")
	facts(t).When(AddRange{Prefix: "203.0.113.8/30", Values: []string{"a"}}).Refused("range-invalid")
}

func TestAddRangeThatIsBoundElsewhere(t *testing.T) {
	add := func(prefix, bind string, offset int) AddRange {
		return AddRange{Region: sydney, Type: address, Prefix: prefix, Bind: bind, PortOffset: offset}
	}
	there := events.RangeAdded{Prefix: "203.0.113.8/30", Bind: "127.10.0.0/30", PortOffset: 8000}
	c := facts(t).When(add("203.0.113.8/30", "127.10.0.1/30", 8000))
	c.Then(there)
	facts(t, there).When(add("203.0.113.8/30", "127.10.0.0/30", 8000)).Nothing()
	facts(t, there).When(add("203.0.113.8/30", "", 0)).Refused("range-overlaps") // the same range, elsewhere
	facts(t, there).When(add("198.51.100.0/30", "127.10.0.0/30", 8000)).Refused("bind-overlaps")
	facts(t, there).When(add("198.51.100.0/30", "127.10.0.0/30", 9000)).Then(events.RangeAdded{Prefix: "198.51.100.0/30", Bind: "127.10.0.0/30", PortOffset: 9000})
	facts(t).When(add("203.0.113.8/30", "127.10.0.0/29", 0)).Refused("bind-invalid")
	facts(t).When(add("203.0.113.8/30", "127.10.0.0/30", 65000)).Refused("bind-invalid")
	facts(t).When(add("203.0.113.8/30", "127.10.0.0/30", -1)).Refused("bind-invalid")
	facts(t).When(add("203.0.113.8/30", "", 8000)).Refused("bind-invalid")
	facts(t).When(AddRange{Values: []string{"a"}, Bind: "127.10.0.0/30"}).Refused("bind-invalid")

	if at, offset := facts(t, there).State().Place("203.0.113.10"); at != "127.10.0.2" || offset != 8000 {
		t.Errorf("203.0.113.10 is bound at %s, +%d", at, offset)
	}
	if at, offset := facts(t, four).State().Place("203.0.113.10"); at != "203.0.113.10" || offset != 0 {
		t.Errorf("203.0.113.10 is bound at %s, +%d", at, offset)
	}
}

func TestAddValues(t *testing.T) {
	add := func(values ...string) AddRange { return AddRange{Region: sydney, Type: "vpn-endpoint", Values: values} }
	ab := events.RangeAdded{Values: []string{"vpn-a.example:500", "vpn-b.example:500"}}
	facts(t).When(add(ab.Values...)).Then(ab)
	facts(t, ab).When(add(ab.Values...)).Nothing()
	facts(t, ab).When(add("vpn-c.example:500", "vpn-b.example:500")).Refused("range-overlaps")
	facts(t, four).When(add("203.0.113.9")).Refused("range-overlaps")
	facts(t, events.RangeAdded{Values: []string{"203.0.113.9"}}).When(AddRange{Prefix: "203.0.113.8/30"}).Refused("range-overlaps")
	facts(t).When(add("2001:DB8:0::1")).Then(events.RangeAdded{Values: []string{"2001:db8::1"}})
	facts(t).When(add("a", "a")).Refused("range-invalid")
	for _, bad := range []string{"", "a b", `a"`, "a\x00", strings.Repeat("a", 254), "ä"} {
		facts(t).When(add(bad)).Refused("range-invalid")
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprintf("%0100d", i)
	}
	facts(t).When(add(many...)).Refused("range-too-large")
}

func TestReserveTakesTheLowestFree(t *testing.T) {
	facts(t, four).When(reserve(v1, "web", "db")).Then(has(v1, "web", "203.0.113.8", "db", "203.0.113.9"))
	facts(t, four, has(v2, "x", "203.0.113.8")).When(reserve(v1, "web")).Then(has(v1, "web", "203.0.113.9"))
	// Lowest by address, whichever range came first.
	facts(t, four, events.RangeAdded{Prefix: "198.51.100.7/32"}).When(reserve(v1, "a", "b")).Then(has(v1, "a", "198.51.100.7", "b", "203.0.113.8"))
	// What was released is given again.
	facts(t, four, has(v2, "x", "203.0.113.8"), events.LeasesReleased{Owner: v2, Freed: []events.LeaseID{id(v2, "c1", "x")}}).
		When(reserve(v1, "web")).Then(has(v1, "web", "203.0.113.8"))
	// Other types than addresses, in the order in which they were listed.
	facts(t, events.RangeAdded{Values: []string{"b", "a"}}).When(reserve(v1, "x", "y")).Then(has(v1, "x", "b", "y", "a"))
}

func TestReserveAgainAddsOnlyWhatIsNew(t *testing.T) {
	c := facts(t, four, has(v1, "web", "203.0.113.8"))
	c.When(reserve(v1, "web")).Nothing()
	c.When(reserve(v1)).Nothing()
	c.When(reserve(v1, "db", "web")).Then(has(v1, "db", "203.0.113.9"))
}

func TestReserveWhatTheUserNamed(t *testing.T) {
	named := func(o events.Owner, value string, resources ...string) Reserve {
		c := reserve(o, resources...)
		c.Choices = map[string]string{"web": value}
		return c
	}
	// The named one is kept from the automatic ones beside it.
	facts(t, four).When(named(v1, "203.0.113.8", "db", "web")).Then(events.LeasesReserved{Owner: v1, Until: soon, Leases: []events.Lease{
		lease(v1, "db", "203.0.113.9", events.Automatic), lease(v1, "web", "203.0.113.8", events.Named),
	}})
	facts(t, four).When(named(v1, "203.0.113.12", "web")).Refused("address-unknown")
	facts(t, four).When(named(v1, "nonsense", "web")).Refused("address-unknown")
	facts(t, four).When(named(v1, "203.0.113.8", "db")).Refused("resource-invalid") // named for none of them
	facts(t, four, has(v1, "web", "203.0.113.9")).When(named(v1, "203.0.113.9", "web")).Nothing()
	facts(t, four, has(v1, "web", "203.0.113.9")).When(named(v1, "203.0.113.8", "web")).Refused("resource-mapped")

	twice := reserve(v1, "web", "db")
	twice.Choices = map[string]string{"web": "203.0.113.8", "db": "203.0.113.8"}
	facts(t, four).When(twice).Refused("address-named-twice")

	// The holder is named within its account and to nobody else.
	taken := facts(t, four, has(v2, "secret-name", "203.0.113.8"))
	taken.When(named(v1, "203.0.113.8", "web")).Refused("address-taken")
	says := func(o events.Owner) string {
		_, err := named(o, "203.0.113.8", "web").Decide(taken.State(), aggregates.Facts{Now: given.Now()})
		return err.Error()
	}
	if text := says(v1); !strings.Contains(text, "instance v2 for secret-name") {
		t.Errorf("the holder's own account is told %q", text)
	}
	if text := says(evil); strings.Contains(text, "v2") || strings.Contains(text, "secret") || strings.Contains(text, "acme") {
		t.Errorf("another account is told %q", text)
	}
}

func TestReserveIsForAllOrForNone(t *testing.T) {
	c := facts(t, four, has(v2, "x", "203.0.113.8", "y", "203.0.113.9"))
	c.When(reserve(v1, "a", "b")).Then(has(v1, "a", "203.0.113.10", "b", "203.0.113.11"))
	c.When(reserve(v1, "a", "b", "c")).Refused("pool-exhausted")
	_, err := reserve(v1, "a", "b", "c").Decide(c.State(), aggregates.Facts{Now: given.Now()})
	if !strings.Contains(err.Error(), "2 of 4 free, 2 reserved, 0 bound; it consists of 203.0.113.8/30") {
		t.Errorf("the refusal says %q", err)
	}
	// A named one counts as well: two are free, one of them is named, two more are wanted.
	named := reserve(v1, "a", "b", "c")
	named.Choices = map[string]string{"a": "203.0.113.11"}
	c.When(named).Refused("pool-exhausted")
	facts(t).When(reserve(v1, "a")).Refused("pool-undeclared")
}

func TestReserveRefusesWhatIsWrong(t *testing.T) {
	c := facts(t, four)
	c.When(reserve(env, "a")).Refused("owner-invalid")
	c.When(reserve(events.Owner{Instance: "v1"}, "a")).Refused("owner-invalid")
	c.When(reserve(v1, "a", "a")).Refused("resource-invalid")
	c.When(reserve(v1, "")).Refused("resource-invalid")
	past := reserve(v1, "a")
	past.Until = given.Now()
	c.When(past).Refused("until-past")
	nameless := reserve(v1, "a")
	nameless.Command = ""
	c.When(nameless).Refused("command-id-missing")
	facts(t, four, has(v1, "web", "203.0.113.8")).When(reserve(events.Owner{Account: "evil", Instance: "v1"}, "a")).Refused("owner-of-another-account")

	large := events.RangeAdded{Prefix: "10.0.0.0/16"}
	resources := make([]string, events.MaxResources+1)
	for i := range resources {
		resources[i] = fmt.Sprintf("%063d.%04d", i, i)
	}
	facts(t, large).When(reserve(v1, resources...)).Refused("too-many-resources")
	for i := range resources {
		resources[i] = fmt.Sprintf("%0240d", i)
	}
	facts(t, large).When(reserve(v1, resources[:events.MaxResources]...)).Refused("too-many-resources") // too long for an event
}

func TestTheLargestReservationFitsAnEvent(t *testing.T) {
	resources := make([]string, events.MaxResources)
	for i := range resources {
		resources[i] = fmt.Sprintf("%063d.%063d", i, i) // the longest id that a graph has
	}
	e, err := reserve(v1, resources...).Decide(facts(t, events.RangeAdded{Prefix: "10.0.0.0/16"}).State(), aggregates.Facts{Now: given.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := events.NewRegistry().Encode(e); err != nil {
		t.Fatal(err)
	}
}

func TestTheNextVersionInheritsByResource(t *testing.T) {
	inherit := func(o events.Owner, from events.InstanceID, resources ...string) Reserve {
		c := reserve(o, resources...)
		c.InheritFrom = from
		return c
	}
	web, db := lease(v1, "web", "203.0.113.8", events.Inherited), lease(v1, "db", "203.0.113.9", events.Inherited)
	old := has(v1, "web", "203.0.113.8", "db", "203.0.113.9")
	c := facts(t, four, old)
	c.When(inherit(v2, "v1", "web", "new")).Then(events.LeasesReserved{Owner: v2, Until: soon,
		Leases: []events.Lease{lease(v2, "new", "203.0.113.10", events.Automatic)}, Inherited: []events.Lease{web}})

	// What the user names wins; naming the inherited value is inheriting it.
	other := inherit(v2, "v1", "web")
	other.Choices = map[string]string{"web": "203.0.113.11"}
	c.When(other).Then(events.LeasesReserved{Owner: v2, Until: soon, Leases: []events.Lease{lease(v2, "web", "203.0.113.11", events.Named)}})
	other.Choices = map[string]string{"web": "203.0.113.8"}
	c.When(other).Then(events.LeasesReserved{Owner: v2, Until: soon, Inherited: []events.Lease{web}})

	// Nobody inherits from another account.
	c.When(inherit(evil, "v1", "web")).Then(has(evil, "web", "203.0.113.10"))

	staged := events.LeasesReserved{Owner: v2, Until: soon, Inherited: []events.Lease{web, db}}
	become := Inherit{Region: sydney, Type: address, From: v1, To: v2}
	became := events.LeasesInherited{From: v1, To: v2, Leases: []events.LeaseID{web.ID, db.ID}}
	c = facts(t, four, old, staged)
	c.When(inherit(v2, "v1", "web", "db")).Nothing()
	c.When(become).Then(became)
	if h, _ := c.State().Holder("203.0.113.8"); h.Instance != "v1" {
		t.Errorf("before its version is active, v2's inheritance is %s's", h.Instance)
	}
	c = facts(t, four, old, staged, became)
	c.When(become).Nothing()
	if h, _ := c.State().Holder("203.0.113.8"); h.Instance != "v2" || len(h.Heirs) != 0 {
		t.Errorf("after it, the inheritance is %+v", h)
	}
	// The version before releases what is left to it; the inheritance is out of its reach.
	c.When(release(v1)).Then(events.LeasesReleased{Owner: v1, Why: "removed"})

	// Released too early, v1 leaves the inheritance to its heir.
	c = facts(t, four, old, events.LeasesReserved{Owner: v2, Until: soon, Inherited: []events.Lease{web}})
	c.When(release(v1)).Then(events.LeasesReleased{Owner: v1, Why: "removed", Freed: []events.LeaseID{db.ID}, Passed: []events.Passed{{Lease: web.ID, To: "v2"}}})
	// A version that is given up leaves it where it was.
	c.When(release(v2)).Then(events.LeasesReleased{Owner: v2, Why: "removed"})
	c = facts(t, four, old, staged, events.LeasesReleased{Owner: v2, Why: "abandoned"})
	c.When(become).Nothing()
	c.When(release(v1)).Then(events.LeasesReleased{Owner: v1, Why: "removed", Freed: []events.LeaseID{web.ID, db.ID}})

	c.When(Inherit{From: env, To: v2}).Refused("owner-invalid")
	c.When(Inherit{From: events.Owner{Account: "evil", Instance: "v1"}, To: v2}).Refused("owner-of-another-account")
}

func TestConfirmAndExpire(t *testing.T) {
	confirm, expire := Confirm{Region: sydney, Type: address, Owner: v1}, Expire{Region: sydney, Type: address, Owner: v1}
	c := facts(t, four, has(v1, "web", "203.0.113.8"))
	c.When(confirm).Then(events.LeasesConfirmed{Owner: v1})
	c.When(expire).Refused("not-due")
	c.At(soon.Add(-1)).When(expire).Refused("not-due")
	c.At(soon).When(expire).Then(events.LeasesReleased{Owner: v1, Why: "expired", Freed: []events.LeaseID{id(v1, "c1", "web")}})
	c.At(soon).When(confirm).Then(events.LeasesConfirmed{Owner: v1}) // late, but still held

	c = facts(t, four, has(v1, "web", "203.0.113.8"), events.LeasesConfirmed{Owner: v1})
	c.When(confirm).Nothing()
	c.At(soon).When(expire).Nothing()
	// The owner has appeared: what it reserves later does not expire either.
	facts(t, four, has(v1, "web", "203.0.113.8"), events.LeasesConfirmed{Owner: v1}, has(v1, "db", "203.0.113.9")).At(soon).When(expire).Nothing()

	facts(t, four).When(confirm).Refused("reservation-gone")
	facts(t, four).When(expire).Nothing()
	facts(t, four).When(Confirm{Owner: env}).Refused("owner-invalid")
	facts(t, four).When(Expire{Owner: env}).Refused("owner-invalid")
	stolen := events.Owner{Account: "evil", Instance: "v1"}
	c.When(Confirm{Owner: stolen}).Refused("owner-of-another-account")
	c.When(Expire{Owner: stolen}).Refused("owner-of-another-account")
}

func TestBindTakesTheInstancesLeaseIfFree(t *testing.T) {
	old := has(v1, "web", "203.0.113.8")
	c := facts(t, four, old)
	c.When(bind(env, "v1", "web", "own")).Then(events.LeasesBound{Owner: env, Bound: old.Leases, Fresh: []events.Lease{lease(env, "own", "203.0.113.9", events.Automatic)}})
	// The second environment of the instance gets a fresh one.
	c = facts(t, four, old, uses(env, "web", "203.0.113.8"))
	c.When(bind(env, "v1", "web")).Nothing()
	c.When(bind(env2, "v1", "web")).Then(events.LeasesBound{Owner: env2, Fresh: []events.Lease{lease(env2, "web", "203.0.113.9", events.Automatic)}})
	if s := c.State(); s.Free() != 3 || s.Reserved() != 0 || s.Bound() != 1 || s.Size() != 4 {
		t.Errorf("free %d, reserved %d, bound %d of %d", s.Free(), s.Reserved(), s.Bound(), s.Size())
	}
	// An environment of no template, and one of another account's instance, get fresh ones.
	facts(t, four).When(bind(env, "", "web")).Then(events.LeasesBound{Owner: env, Fresh: []events.Lease{lease(env, "web", "203.0.113.8", events.Automatic)}})
	buyer := events.Owner{Account: "buyer", Environment: "env"}
	facts(t, four, old).When(bind(buyer, "v1", "web")).Then(events.LeasesBound{Owner: buyer, Fresh: []events.Lease{lease(buyer, "web", "203.0.113.9", events.Automatic)}})

	named := bind(env, "v1", "web")
	named.Choices = map[string]string{"web": "203.0.113.11"}
	facts(t, four, old).When(named).Then(events.LeasesBound{Owner: env, Fresh: []events.Lease{lease(env, "web", "203.0.113.11", events.Named)}})
	named.Choices["web"] = "203.0.113.8"
	facts(t, four, old).When(named).Then(events.LeasesBound{Owner: env, Bound: old.Leases})
	facts(t, four, old, uses(env2, "web", "203.0.113.8")).When(named).Refused("address-taken")

	facts(t).When(bind(env, "", "web")).Refused("pool-undeclared")
	facts(t, four, has(v2, "a", "203.0.113.8", "b", "203.0.113.9", "c", "203.0.113.10", "d", "203.0.113.11")).When(bind(env, "v1", "web")).Refused("pool-exhausted")
	facts(t, four).When(bind(v1, "", "web")).Refused("owner-invalid")
}

func TestRelease(t *testing.T) {
	old := has(v1, "web", "203.0.113.8", "db", "203.0.113.9")
	web, db := id(v1, "c1", "web"), id(v1, "c1", "db")
	c := facts(t, four, old, uses(env, "web", "203.0.113.8"))
	// A running environment keeps what it uses when its template goes …
	c.When(release(v1)).Then(events.LeasesReleased{Owner: v1, Why: "removed", Freed: []events.LeaseID{db}, Kept: []events.LeaseID{web}})
	// … and an instance what it owns when the environment goes.
	c.When(release(env)).Then(events.LeasesReleased{Owner: env, Why: "removed", Kept: []events.LeaseID{web}})
	back := facts(t, four, old, uses(env, "web", "203.0.113.8"), events.LeasesReleased{Owner: env, Kept: []events.LeaseID{web}})
	if s := back.State(); s.Reserved() != 2 || s.Bound() != 0 {
		t.Errorf("reserved %d, bound %d", s.Reserved(), s.Bound())
	}
	back.When(release(env)).Nothing()
	back.When(bind(env2, "v1", "web")).Then(uses(env2, "web", "203.0.113.8"))
	// The last of the two frees it.
	alone := facts(t, four, old, uses(env, "web", "203.0.113.8"), events.LeasesReleased{Owner: v1, Freed: []events.LeaseID{db}, Kept: []events.LeaseID{web}})
	if s := alone.State(); s.Free() != 3 || s.Bound() != 1 {
		t.Errorf("free %d, bound %d", s.Free(), s.Bound())
	}
	alone.When(release(env)).Then(events.LeasesReleased{Owner: env, Why: "removed", Freed: []events.LeaseID{web}})

	c.When(release(v3)).Nothing()
	c.When(release(events.Owner{Account: "evil", Instance: "v1"})).Refused("owner-of-another-account")
	c.When(release(events.Owner{Account: "acme"})).Refused("owner-invalid")
	c.When(Release{Owner: v1, Why: "because"}).Refused("why-unknown")
}

func TestGrantAndRevoke(t *testing.T) {
	grant := Grant{Region: sydney, Type: address, Command: "g1", For: "acme", Note: "office router"}
	leaseOf := func(value string, chosen events.Chosen) events.LeaseGranted {
		l := events.Lease{ID: id(events.Owner{Account: "acme"}, "g1", "office router"), Resource: "office router", Value: value, Chosen: chosen}
		return events.LeaseGranted{Account: "acme", Lease: l}
	}
	auto := leaseOf("203.0.113.8", events.Automatic)
	facts(t, four).When(grant).Then(auto)
	facts(t, four, auto).When(grant).Nothing()
	named := grant
	named.Value = "203.0.113.11"
	facts(t, four).When(named).Then(leaseOf("203.0.113.11", events.Named))
	facts(t, four, has(v1, "web", "203.0.113.11")).When(named).Refused("address-taken")
	named.Value = "192.0.2.1"
	facts(t, four).When(named).Refused("address-unknown")
	facts(t).When(grant).Refused("pool-undeclared")
	facts(t, events.RangeAdded{Values: []string{"a"}}, has(v1, "x", "a")).When(grant).Refused("pool-exhausted")
	facts(t, four).When(Grant{For: "acme"}).Refused("grant-invalid")

	revoke := Revoke{Region: sydney, Type: address, Lease: auto.Lease.ID}
	facts(t, four, auto).When(revoke).Then(events.LeaseRevoked{Lease: auto.Lease.ID})
	facts(t, four, auto, events.LeaseRevoked{Lease: auto.Lease.ID}).When(revoke).Nothing()
	facts(t, four, auto, events.LeaseRevoked{Lease: auto.Lease.ID}).When(reserve(v1, "web")).Then(has(v1, "web", "203.0.113.8"))
	facts(t, four, has(v1, "web", "203.0.113.8")).When(Revoke{Lease: id(v1, "c1", "web")}).Refused("lease-in-use")
}

// An automatic place is on the loopback, where nobody needs privileges, differs
// for prefixes that differ, and is never where others listen.
func TestAutomaticPlaces(t *testing.T) {
	for prefix, want := range map[string]string{"203.0.113.0/28": "127.0.113.0/28", "198.51.100.16/28": "127.51.100.16/28", "10.0.0.0/28": "127.240.0.0/28", "10.0.0.0/12": "127.240.0.0/12"} {
		given.Facts[State, events.PoolEvent](t).When(AddRange{Region: sydney, Type: address, Prefix: prefix, Bind: Auto}).
			Then(events.RangeAdded{Prefix: prefix, Bind: want, PortOffset: LoopbackOffset})
	}
	added := events.RangeAdded{Prefix: "203.0.113.0/28", Bind: "127.0.113.0/28", PortOffset: 9000}
	c := AddRange{Region: sydney, Type: address, Prefix: "203.0.113.0/28", Bind: Auto, PortOffset: 9000}
	given.Facts[State, events.PoolEvent](t).When(c).Then(added)
	given.Facts[State, events.PoolEvent](t, added).When(c).Nothing()
	c.Prefix = "2001:db8::/120"
	given.Facts[State, events.PoolEvent](t).When(c).Refused("bind-invalid")
}
