package projections

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tombolo-vdc/tombolo/events"
)

// copiesOf gives the facts of one template and its verified copies in ten regions.
func copiesOf(n int) []events.Record {
	number := fmt.Sprint(10000000 + n)
	at := events.Aggregate{Account: "acme", Region: events.None, Kind: events.KindTemplate, ID: number}
	digest := events.DigestOf([]byte(number))
	var regions []events.RegionID
	for r := range 10 {
		regions = append(regions, events.RegionID(fmt.Sprintf("region-%d", r)))
	}
	out := []events.Record{
		{Aggregate: at, Revision: 1, Event: events.TemplateCreated{Name: "template-" + number, Display: number, Regions: regions, Keep: 1, Operation: "op"}},
		{Aggregate: at, Revision: 2, Event: events.VersionSaved{Version: 1, Manifest: digest, Bytes: 4 << 30}},
		{Aggregate: at, Revision: 3, Event: events.VersionActivated{Version: 1, Operation: "op"}},
	}
	for r, region := range regions {
		id := events.DeriveID("acme", events.CommandID(number), fmt.Sprint(r))
		here := events.Aggregate{Account: "acme", Region: region, Kind: events.KindInstance, ID: id}
		out = append(out, events.Record{Aggregate: here, Revision: 1, Event: events.CopyWanted{Template: events.TemplateID(number), Version: 1,
			Manifest: digest, Bytes: 4 << 30, Operation: events.OperationID(id)}})
	}
	return out
}

// generated follows facts that are made while they are read.
type generated struct {
	n  int
	at func(i int) events.Record
}

func (g generated) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	for i := int(after); i < g.n; i++ {
		r := g.at(i)
		r.Sequence, r.ID, r.Stored = uint64(i+1), fmt.Sprint(i), time.Unix(1700000000+int64(i), 0)
		if err := each(r); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// BenchmarkWhere asks which regions hold a template, among 1,000,000 instances:
// now, and as of the middle of a history of 100 versions per row; and compares
// with raw Pebble scans of as many rows.
func BenchmarkWhere(b *testing.B) {
	const regions, versioned, versions, before = 10, 100, 100, 3 // events of a template before those of its instances
	count := scaled(1_000_000) / regions
	first := count * (before + regions) // events; then those of the versioned templates' instances
	second := versioned * regions * versions
	known := make([][]events.Record, versioned)
	for i := range known {
		known[i] = copiesOf(i)
	}
	var of int
	var facts []events.Record
	log := generated{n: first + second, at: func(i int) events.Record {
		if i < first {
			if n := i / (before + regions); facts == nil || of != n {
				of, facts = n, copiesOf(n)
			}
			return facts[i%(before+regions)]
		}
		i -= first
		r := known[i%(versioned*regions)/regions][before+i%regions]
		r.Revision = uint64(2 + i/(versioned*regions))
		r.Event = events.CopyVerified{Location: "slot", Received: int64(i)}
		return r
	}}
	s := openStore(b, b.TempDir(), Options{})
	defer s.Close()
	f := feedOf(b, s, Catalogue{})
	feedTo(b, f, log, uint64(log.n))
	must(b, s.db.Flush())

	rng := rand.New(rand.NewPCG(1, 1))
	// As a request does it: from the opening of a view to its end.
	ask := func(open func() (*View, error), among int) func() {
		return func() {
			v, err := open()
			must(b, err)
			answer, err := Catalogue{}.Where(v, "acme", events.TemplateID(fmt.Sprint(10000000+rng.IntN(among))))
			if err != nil || len(answer.Regions) != regions {
				b.Fatal(len(answer.Regions), err)
			}
			must(b, v.Close())
		}
	}
	now := func() (*View, error) { return f.Now("catalogue") }
	then := func() (*View, error) { return f.AsOf(uint64(first+second/2), "catalogue") }
	space := f.served["catalogue"].space
	// As many rows as an answer is made of: the template's and its instances'.
	raw := func() {
		lower := instances.rowKey(Key{"acme", fmt.Sprint(10000000 + rng.IntN(count))})
		setHead(lower, areaCurrent, space)
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower})
		must(b, err)
		rows := 0
		for it.First(); it.Valid() && rows < regions+1; it.Next() {
			rows += min(1, len(it.Value()))
		}
		must(b, it.Close())
	}
	cases := []struct {
		name string
		call func()
		took []time.Duration
	}{{name: "raw", call: raw}, {name: "where", call: ask(now, count)}, {name: "as-of", call: ask(then, versioned)}}
	const warm, reads = 2000, 20_000 // of each, in turn: what else the machine does meets all of them
	for b.Loop() {
		for i := range warm + reads {
			for c := range cases {
				begun := time.Now()
				cases[c].call()
				if i >= warm {
					cases[c].took = append(cases[c].took, time.Since(begun))
				}
			}
		}
	}
	at := func(c, percent int) float64 {
		return float64(cases[c].took[len(cases[c].took)*percent/100].Nanoseconds()) / 1000
	}
	for c := range cases {
		slices.Sort(cases[c].took)
		b.ReportMetric(at(c, 50), cases[c].name+"-p50-us")
		b.ReportMetric(at(c, 99), cases[c].name+"-p99-us")
	}
	for _, percent := range []int{50, 99} {
		b.ReportMetric(at(1, percent)/at(0, percent), fmt.Sprintf("where-of-raw-p%d", percent))
		b.ReportMetric(at(2, percent)/at(1, percent), fmt.Sprintf("as-of-of-where-p%d", percent))
	}
}
