package pool

import (
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// request is what Reserve and Bind have in common.
type request struct {
	pool      events.Aggregate
	command   events.CommandID
	owner     events.Owner
	resources []string
	choices   map[string]string
}

// maxBytes is how much of an event the leases in it may fill.
const maxBytes = events.MaxPayload - 1024

// choose finds a value for every resource that the owner has none for: what
// prefer offers (unless the user named something else), the value the user
// named, or the lowest free one; for all of them or, with a refusal, for none.
func (s State) choose(r request, prefer func(resource string) (Held, bool)) (preferred, fresh []events.Lease, err error) {
	if err := s.check(r); err != nil {
		return nil, nil, err
	}
	has := map[string]string{}
	for _, l := range s.Leases(r.owner) {
		has[l.Resource] = l.Value
	}
	named := map[string]string{} // value → resource, of this request
	automatic := 0
	for _, resource := range r.resources {
		choice, chosen := r.choices[resource]
		choice = canonical(choice)
		if value, done := has[resource]; done {
			if chosen && choice != value {
				return nil, nil, aggregates.Refuse("resource-mapped", "%s has %s already, so it cannot get %s", resource, value, choice).
					WithNext("release it first")
			}
			continue
		}
		if l, ok := prefer(resource); ok && (!chosen || choice == l.Value) {
			preferred = append(preferred, l.Lease)
			continue
		}
		lease := events.Lease{ID: leaseID(r, resource), Resource: resource, Value: choice, Chosen: events.Named}
		if _, twice := s.leases.get(string(lease.ID)); twice {
			return nil, nil, aggregates.Refuse("command-id-reused", "the command %s has leased something for %s before", r.command, resource)
		}
		if !chosen {
			lease.Chosen = events.Automatic
			automatic++
		} else if err := s.available(r, resource, choice, named); err != nil {
			return nil, nil, err
		} else {
			named[choice] = resource
		}
		fresh = append(fresh, lease)
	}
	if free := s.Free() - len(named); automatic > free {
		return nil, nil, exhausted(r.pool, automatic+len(named), s)
	}
	s.fill(fresh, named)
	bytes := 0
	for _, l := range slices.Concat(preferred, fresh) {
		bytes += len(l.Resource) + len(l.Value) + len(`{"id":"","resource":"","value":"","chosen":"automatic"},`) + len(l.ID)
	}
	if len(preferred)+len(fresh)+len(has) > events.MaxResources || bytes > maxBytes {
		return nil, nil, tooMany(r)
	}
	return preferred, fresh, nil
}

// fill gives the automatic ones the lowest values that are free and not named.
func (s State) fill(fresh []events.Lease, named map[string]string) {
	span, next := 0, 0
	for i := range fresh {
		for fresh[i].Value == "" {
			at := s.spans[span].free(next)
			if at < 0 {
				span, next = span+1, 0
				continue
			}
			next = at + 1
			if value := s.spans[span].at(at); named[value] == "" {
				fresh[i].Value = value
			}
		}
	}
}

// check refuses requests that are wrong whatever the pool holds, and pools that
// nobody declared.
func (s State) check(r request) error {
	seen := map[string]bool{}
	for _, resource := range r.resources {
		if !isValue(resource) || seen[resource] {
			return aggregates.RefuseAs(aggregates.Invalid, "resource-invalid", "%q is not the id of a resource, or is listed twice", resource)
		}
		seen[resource] = true
	}
	for _, resource := range sortedKeys(r.choices) {
		if !seen[resource] {
			return aggregates.RefuseAs(aggregates.Invalid, "resource-invalid", "%s was named for %s, which is not among the resources", r.choices[resource], resource)
		}
	}
	if r.command == "" {
		return aggregates.RefuseAs(aggregates.Invalid, "command-id-missing", "the ids of leases derive from the command's, which is missing")
	}
	if len(s.spans) == 0 {
		return undeclared(r.pool)
	}
	if h, known := s.holders.get(key(r.owner)); known && h.account != r.owner.Account {
		return anotherAccount()
	}
	return nil
}

// available refuses a named value that cannot be had. Who of another account
// holds it is nobody's business.
func (s State) available(r request, resource, value string, named map[string]string) error {
	if _, _, ok := s.find(value); !ok {
		return aggregates.Refuse("address-unknown", "%s, named for %s, is not in the pool %s of %s, which consists of %s", value, resource, r.pool.ID, r.pool.Region, s.Bounds())
	}
	if other := named[value]; other != "" {
		return aggregates.RefuseAs(aggregates.Invalid, "address-named-twice", "%s is named for %s and for %s", value, other, resource)
	}
	h, taken := s.Holder(value)
	switch {
	case !taken:
		return nil
	case h.Account != r.owner.Account:
		return aggregates.Refuse("address-taken", "%s, named for %s, is held by another account", value, resource)
	default:
		return aggregates.Refuse("address-taken", "%s, named for %s, is held by %s", value, resource, h.holder())
	}
}

// holder says who has a lease, to people of its account.
func (h Held) holder() string {
	switch {
	case h.Environment != "":
		return "environment " + string(h.Environment) + " for " + h.Resource
	case h.Instance != "":
		return "instance " + string(h.Instance) + " for " + h.Resource
	default:
		return "lease " + string(h.ID) + " for " + h.Resource
	}
}

func exhausted(pool events.Aggregate, wanted int, s State) error {
	return aggregates.Refuse("pool-exhausted", "the pool %s of %s has too little for %d more: %s", pool.ID, pool.Region, wanted, s.numbers()).
		WithNext("add to it: tombolo pool add --region %s --type %s PREFIX", pool.Region, pool.ID)
}

func undeclared(pool events.Aggregate) error {
	return aggregates.Refuse("pool-undeclared", "%s has no pool of type %s", pool.Region, pool.ID).
		WithNext("declare it: tombolo pool add --region %s --type %s PREFIX", pool.Region, pool.ID)
}

func tooMany(r request) error {
	return aggregates.RefuseAs(aggregates.Invalid, "too-many-resources", "one owner may hold at most %d values of the pool %s, and all that one command gives must fit an event of %d bytes", events.MaxResources, r.pool.ID, events.MaxPayload)
}

// leaseID derives the id of the lease that the command makes for a resource:
// the same command always the same, another command another.
func leaseID(r request, resource string) events.LeaseID {
	return events.LeaseID(events.DeriveID(r.owner.Account, r.command, r.pool.Subject()+" "+key(r.owner)+" "+resource))
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
