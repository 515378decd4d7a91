package projections_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	p "github.com/tombolo-vdc/tombolo/projections"
)

// answers asks everything that lists and joins rows.
func answers(t *testing.T, v *p.View, templates []*worldTemplate) string {
	t.Helper()
	var out []any
	add := func(answer any, err error) {
		if err != nil && codeOf(err) == "unexpected" {
			t.Fatal(err)
		}
		out = append(out, answer, fmt.Sprint(err))
	}
	for _, account := range worldAccounts {
		for _, ask := range []string{"templates", "templates-ever", "environments", "operations"} {
			add(questions[ask](v, []string{string(account), "", "", ""}))
		}
	}
	for _, tpl := range templates {
		a := []string{string(tpl.account), tpl.id, "", ""}
		for _, ask := range []string{"where", "brief", "instances", "coverage", "resolve", "operations"} {
			add(questions[ask](v, a))
		}
	}
	for _, r := range worldRegions {
		for _, ask := range []string{"open", "trouble", "held-in", "environments-in", "pools"} {
			add(questions[ask](v, []string{string(r), "", "", ""}))
		}
		add(questions["leases"](v, []string{string(r), "public-address", "", ""}))
	}
	for _, kind := range []p.DeadlineKind{p.DeadlineName, p.DeadlineNumber, p.DeadlineLeases, p.DeadlineReplacement, p.DeadlineUpload} {
		add(p.Deadlines{}.Due(v, kind, epoch.Add(24*time.Hour), 0))
	}
	b, err := json.Marshal(out)
	check(t, err)
	return string(b)
}

// TestRandomHistory folds a random history event by event; what was answered at
// some positions then is answered as of them at the end, also by rows that are
// built anew in large batches. Along the way each pool's numbers are those of
// its leases.
func TestRandomHistory(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h, registry := newHistory(), events.NewRegistry()
			w := newWorld(seed, func(a events.Aggregate, e events.Event, person bool) {
				h.add(record(t, registry, len(h.records), a, e, person))
			})
			f := follow(t, h)
			digests, answered, known := map[uint64]map[string]events.Digest{}, map[uint64]string{}, map[uint64]int{}
			rng := rand.New(rand.NewPCG(seed, 1))
			for len(h.records) < 1500 {
				w.step()
				if rng.IntN(60) > 0 {
					continue
				}
				seq := uint64(len(h.records))
				digests[seq] = f.digests(t, seq)
				v := f.at(t, seq)
				answered[seq], known[seq] = answers(t, v, w.templates), len(w.templates)
				stock(t, v, w)
				check(t, v.Close())
			}
			agree(t, h, f, digests)
			for seq, want := range answered {
				v := f.at(t, seq)
				if got := answers(t, v, w.templates[:known[seq]]); got != want {
					t.Errorf("as of %d:\n%s\nthen:\n%s", seq, got, want)
				}
				check(t, v.Close())
			}
		})
	}
}

// record makes a record of an event as it comes out of a journal: decoded, and
// shared with nobody.
func record(t testing.TB, registry *events.Registry, n int, a events.Aggregate, e events.Event, person bool) events.Record {
	t.Helper()
	payload, schema, err := registry.Encode(e)
	check(t, err)
	e, err = registry.Decode(e.EventType(), schema, payload)
	check(t, err)
	r := events.Record{Aggregate: a, Event: e, Actor: events.Actor{Account: "acme", User: "ann"},
		Command: events.CommandRef{ID: events.CommandID(fmt.Sprintf("c-%d", n)), Digest: events.DigestOf([]byte(e.EventType()))}}
	if !person {
		r.Causation = "cause"
	}
	return r
}

// stock checks that free + reserved + bound = size, and that they are counted right.
func stock(t *testing.T, v *p.View, w *world) {
	t.Helper()
	for _, pool := range w.pools {
		row, _, err := p.Pools{}.Pool(v, pool.at.Region, "public-address")
		check(t, err)
		bound, leased := 0, 0
		for _, l := range pool.leases {
			leased++
			if l.environment != "" {
				bound++
			}
		}
		if row.Size != pool.size || row.Bound != bound || row.Reserved != leased-bound || row.Free+row.Reserved+row.Bound != row.Size {
			t.Errorf("%s: %+v; it has %d, of which %d are bound and %d leased", pool.at.Region, row, pool.size, bound, leased)
		}
		page, err := p.Pools{}.Leases(v, pool.at.Region, "public-address", 1000, "")
		check(t, err)
		if len(page.Rows) != leased {
			t.Errorf("%s lists %d leases of %d", pool.at.Region, len(page.Rows), leased)
		}
		for _, l := range pool.leases {
			row, ok, err := p.Pools{}.Holder(v, pool.at.Region, "public-address", l.Value)
			check(t, err)
			if !ok || row.ID != l.ID || string(row.Instance) != l.instance || string(row.Environment) != l.environment || fmt.Sprint(row.Heirs) != fmt.Sprint(l.heirs) {
				t.Errorf("%s of %s: %+v, %v; it is %+v", l.Value, pool.at.Region, row, ok, l)
			}
		}
	}
}
