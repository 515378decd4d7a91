package pool

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// TestRandomCommands sends sequences of random commands and checks, after each,
// what the package says it guards.
func TestRandomCommands(t *testing.T) {
	registry := events.NewRegistry()
	seen := map[string]int{} // outcomes, so that the test cannot pass by being refused throughout
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 14))
		var s, replayed State
		var old State
		var oldText string
		now := time.Date(2014, 1, 15, 0, 0, 0, 0, time.UTC)
		for step := range 120 {
			now = now.Add(time.Duration(r.IntN(20)) * time.Second)
			c := command(r, s, now, events.CommandID(fmt.Sprint("c", step)))
			f := aggregates.Facts{Now: now}
			e, err := c.Decide(s, f)
			again, errAgain := c.Decide(s, f)
			if !reflect.DeepEqual(e, again) || !reflect.DeepEqual(err, errAgain) {
				t.Fatalf("seed %d, step %d: %#v decides %#v, %v and then %#v, %v", seed, step, c, e, err, again, errAgain)
			}
			if step == 60 {
				old, oldText = s, text(s)
			}
			if err != nil {
				if refusal, ok := aggregates.AsRefusal(err); ok {
					seen[refusal.Code]++
				}
				continue
			}
			seen[string(e.EventType())]++
			switch e := e.(type) {
			case events.LeasesReleased:
				seen["passed to an heir"] += len(e.Passed)
				seen["kept by the other"] += len(e.Kept)
			case events.LeasesBound:
				seen["an instance's lease bound"] += len(e.Bound)
			}
			before := s
			s = s.Fold(e)
			// What else might have come of the older state must not reach this one.
			other := command(r, before, now, events.CommandID(fmt.Sprint("other", step)))
			if e, err := other.Decide(before, f); err == nil {
				before.Fold(e)
			}
			payload, schema, err := registry.Encode(e)
			if err != nil {
				t.Fatal(err)
			}
			stored, err := registry.Decode(e.EventType(), schema, payload)
			if err != nil {
				t.Fatal(err)
			}
			replayed = replayed.Fold(stored.(events.PoolEvent))
			if fault := wrong(s, before, e); fault != "" {
				t.Fatalf("seed %d, step %d, after %#v: %s\n%s", seed, step, e, fault, text(s))
			}
		}
		if got := text(replayed); got != text(s) {
			t.Fatalf("seed %d: replayed\n%s\nfolded\n%s", seed, got, text(s))
		}
		if text(old) != oldText {
			t.Fatalf("seed %d: an older state changed:\n%s\nwas\n%s", seed, text(old), oldText)
		}
	}
	for _, outcome := range []string{
		"pool.range-added", "pool.leases-reserved", "pool.leases-confirmed", "pool.leases-inherited", "pool.leases-bound",
		"pool.leases-released", "pool.lease-granted", "pool.lease-revoked", "pool-exhausted", "address-taken", "not-due",
		"reservation-gone", "range-overlaps", "resource-mapped", "lease-in-use", "owner-of-another-account",
		"passed to an heir", "kept by the other", "an instance's lease bound",
	} {
		if seen[outcome] < 20 {
			t.Errorf("%s came %d times: the commands do not reach it (all: %v)", outcome, seen[outcome], seen)
		}
	}
}

// wrong names the first thing that is wrong with s, which e led to.
func wrong(s, before State, e events.PoolEvent) string {
	values, reserved, bound := map[string]bool{}, 0, 0
	perHolder := map[string][]events.LeaseID{}
	for id, l := range s.leases.all() {
		if values[l.Value] {
			return l.Value + " is leased twice"
		}
		values[l.Value] = true
		if string(l.ID) != id {
			return "a lease stands under another's id"
		}
		if r, i, ok := s.find(l.Value); !ok || s.spans[r].pages[i/pageSize].words[i%pageSize/64]>>(i%64)&1 == 0 {
			return l.Value + " is leased but not taken"
		}
		if at, _ := s.byValue.get(l.Value); at != l.ID {
			return l.Value + " is found under another lease"
		}
		if l.Environment != "" {
			bound++
			perHolder["environment "+string(l.Environment)] = append(perHolder["environment "+string(l.Environment)], l.ID)
		} else {
			reserved++
		}
		if l.Instance != "" {
			perHolder["instance "+string(l.Instance)] = append(perHolder["instance "+string(l.Instance)], l.ID)
		}
		for _, heir := range l.Heirs {
			if h, ok := s.holders.get("instance " + string(heir)); !ok || !slices.Contains(h.inherits, l.ID) || heir == l.Instance {
				return "an heir knows nothing of " + l.Value
			}
		}
	}
	for k, h := range s.holders.all() {
		mine := slices.Sorted(slices.Values(h.leases))
		if !slices.Equal(mine, perHolder[k]) { // leases run in the order of their ids
			return fmt.Sprintf("%s holds %v, its leases say %v", k, mine, perHolder[k])
		}
		delete(perHolder, k)
		for _, id := range slices.Concat(h.leases, h.inherits) {
			if l, ok := s.leases.get(string(id)); !ok || l.Account != h.account {
				return k + " has what is gone or another account's"
			}
		}
	}
	if len(perHolder) > 0 {
		return fmt.Sprintf("nobody knows of %v", perHolder)
	}
	if s.Reserved() != reserved || s.Bound() != bound || s.Free()+reserved+bound != s.Size() {
		return fmt.Sprintf("%d free + %d reserved (counted %d) + %d bound (counted %d) of %d", s.Free(), s.Reserved(), reserved, s.Bound(), bound, s.Size())
	}
	released, _ := e.(events.LeasesReleased)
	for id, l := range before.leases.all() {
		if l.Environment == "" || l.Environment == released.Owner.Environment {
			continue
		}
		if now, _ := s.leases.get(id); now.Environment != l.Environment || now.Value != l.Value {
			return "a running environment lost " + l.Value
		}
	}
	return ""
}

// text is all of a state, to compare by.
func text(s State) string {
	var b strings.Builder
	fmt.Fprintln(&b, s.Bounds(), s.size, s.reserved, s.bound)
	for _, r := range s.spans {
		fmt.Fprintln(&b, r.prefix, r.bind, r.offset, r.values, r.taken)
		for i := range r.size() {
			if r.free(i) != i {
				fmt.Fprint(&b, r.at(i), " ")
			}
		}
	}
	for _, l := range s.leases.all() {
		fmt.Fprintf(&b, "\n%+v", l)
	}
	for k, h := range s.holders.all() {
		fmt.Fprintf(&b, "\n%s %+v", k, h)
	}
	return b.String()
}

// command draws one command that has a fair chance to do something.
func command(r *rand.Rand, s State, now time.Time, id events.CommandID) aggregates.Command[State, events.PoolEvent] {
	const region, kind = "sydney", "public-address"
	accounts := []events.AccountID{"acme", "acme", "acme", "evil"}
	instances := []events.InstanceID{"i1", "i2", "i3", "i4"}
	pick := func() (events.Owner, events.Owner) {
		account := accounts[r.IntN(4)]
		return events.Owner{Account: account, Instance: instances[r.IntN(4)]},
			events.Owner{Account: account, Environment: []events.EnvironmentID{"e1", "e2", "e3"}[r.IntN(3)]}
	}
	instance, environment := pick()
	var resources []string
	for _, name := range []string{"a", "b", "c", "d"} {
		if r.IntN(2) == 0 {
			resources = append(resources, name)
		}
	}
	choices := map[string]string{}
	if r.IntN(3) == 0 && len(resources) > 0 {
		choices[resources[0]] = fmt.Sprint("10.0.0.", r.IntN(18))
	}
	switch n := r.IntN(20); {
	case n == 0 || len(s.spans) == 0:
		if r.IntN(3) == 0 {
			return AddRange{Region: region, Type: kind, Values: []string{fmt.Sprint("v", r.IntN(4)), fmt.Sprint("10.0.0.", r.IntN(18))}}
		}
		return AddRange{Region: region, Type: kind, Prefix: fmt.Sprintf("10.0.0.%d/%d", r.IntN(16), 30+r.IntN(3))}
	case n < 6:
		return Reserve{region, kind, id, instance, resources, choices, instances[r.IntN(4)], now.Add(time.Duration(r.IntN(60)) * time.Second)}
	case n < 8:
		return Confirm{region, kind, instance}
	case n < 10:
		return Inherit{region, kind, events.Owner{Account: instance.Account, Instance: instances[r.IntN(4)]}, instance}
	case n < 11:
		return Expire{region, kind, instance}
	case n < 15:
		return Bind{region, kind, id, environment, instance.Instance, resources, choices}
	case n < 16:
		return Release{region, kind, instance, "removed"}
	case n < 18:
		return Release{region, kind, environment, "removed"}
	case n < 19:
		return Grant{region, kind, id, instance.Account, "router", choices["a"]}
	default:
		var ids []events.LeaseID
		for _, l := range s.leases.all() {
			ids = append(ids, l.ID)
		}
		if len(ids) == 0 {
			return Revoke{region, kind, "none"}
		}
		return Revoke{region, kind, ids[r.IntN(len(ids))]}
	}
}

// TestTable compares the table with a Go map, and its older selves with theirs.
func TestTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var now, old table[int]
	model, oldModel := map[string]int{}, map[string]int{}
	check := func(t2 table[int], m map[string]int) {
		t.Helper()
		got := map[string]int{}
		last := ""
		for k, v := range t2.all() {
			if k <= last {
				t.Fatalf("%s after %s", k, last)
			}
			got[k], last = v, k
			if g, ok := t2.get(k); !ok || g != v {
				t.Fatalf("%s is %d by walking, %d by looking", k, v, g)
			}
		}
		if !reflect.DeepEqual(got, m) {
			t.Fatalf("got %v, want %v", got, m)
		}
	}
	for i := range 5000 {
		k := fmt.Sprint("k", r.IntN(200))
		if r.IntN(2) == 0 {
			now, model[k] = now.with(k, i), i
		} else {
			now = now.without(k)
			delete(model, k)
		}
		if i%500 == 250 {
			check(old, oldModel)
			old, oldModel = now, map[string]int{}
			for k, v := range model {
				oldModel[k] = v
			}
		}
	}
	check(now, model)
	check(old, oldModel)
}

// TestALargePoolGivesEveryAddressOnce fills a /16 and says what it cost.
func TestALargePoolGivesEveryAddressOnce(t *testing.T) {
	s := State{}.Fold(events.RangeAdded{Prefix: "10.0.0.0/16"})
	began := time.Now()
	n := 0
	for ; ; n++ {
		c := Reserve{"sydney", "public-address", events.CommandID(fmt.Sprint(n)), events.Owner{Account: "acme", Instance: events.InstanceID(fmt.Sprint(n))},
			[]string{"a", "b", "c", "d"}, nil, "", began.Add(time.Hour)}
		e, err := c.Decide(s, aggregates.Facts{Now: began})
		if refusal, ok := aggregates.AsRefusal(err); ok && refusal.Code == "pool-exhausted" {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		s = s.Fold(e)
	}
	if s.Free() != 0 || s.Reserved() != 1<<16 || n != 1<<14 {
		t.Fatalf("after %d reservations: %s", n, s.numbers())
	}
	if l, ok := s.Holder("10.0.255.255"); !ok || l.Instance != events.InstanceID(fmt.Sprint(n-1)) {
		t.Fatalf("the last address is held by %+v", l)
	}
	t.Logf("%d reservations of 4 decided and folded in %v, %v each", n, time.Since(began), time.Since(began)/time.Duration(n))
}
