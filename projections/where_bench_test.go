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
	out := []events.Record{{Aggregate: at, Revision: 1, Event: events.TemplateCreated{Name: "template-" + number, Display: number, Keep: 1, Operation: "op"}}}
	for r := range 10 {
		id := events.DeriveID("acme", events.CommandID(number), fmt.Sprint(r))
		here := events.Aggregate{Account: "acme", Region: events.RegionID(fmt.Sprintf("region-%d", r)), Kind: events.KindInstance, ID: id}
		out = append(out, events.Record{Aggregate: here, Revision: 1, Event: events.CopyWanted{Template: events.TemplateID(number), Version: 1,
			Manifest: events.DigestOf([]byte(number)), Bytes: 4 << 30, Operation: events.OperationID(id)}})
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
	const regions, versioned, versions = 10, 100, 100
	count := scaled(1_000_000) / regions
	first := count * (1 + regions) // events; then those of the versioned templates' instances
	second := versioned * regions * versions
	known := make([][]events.Record, versioned)
	for i := range known {
		known[i] = copiesOf(i)
	}
	var of int
	var facts []events.Record
	log := generated{n: first + second, at: func(i int) events.Record {
		if i < first {
			if n := i / (1 + regions); facts == nil || of != n {
				of, facts = n, copiesOf(n)
			}
			return facts[i%(1+regions)]
		}
		i -= first
		r := known[i%(versioned*regions)/regions][1+i%regions]
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
	ask := func(v *View, among int) func() {
		return func() {
			answer, err := Catalogue{}.Where(v, "acme", events.TemplateID(fmt.Sprint(10000000+rng.IntN(among))))
			if err != nil || len(answer.Regions) != regions {
				b.Fatal(len(answer.Regions), err)
			}
		}
	}
	now, err := f.Now()
	must(b, err)
	defer now.Close()
	then, err := f.AsOf(uint64(first + second/2))
	must(b, err)
	defer then.Close()
	space := f.served["catalogue"].space
	raw := func() {
		lower := instances.rowKey(Key{"acme", fmt.Sprint(10000000 + rng.IntN(count))})
		setHead(lower, areaCurrent, space)
		it, err := now.snapshot.NewIter(&pebble.IterOptions{LowerBound: lower})
		must(b, err)
		rows := 0
		for it.First(); it.Valid() && rows < regions+2; it.Next() {
			rows += min(1, len(it.Value()))
		}
		must(b, it.Close())
	}
	for b.Loop() {
		for _, c := range []struct {
			name string
			call func()
		}{{"raw", raw}, {"where", ask(now, count)}, {"as-of", ask(then, versioned)}} {
			took := make([]time.Duration, 5000)
			for range took {
				c.call()
			}
			for i := range took {
				begun := time.Now()
				c.call()
				took[i] = time.Since(begun)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), c.name+"-p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), c.name+"-p99-us")
		}
	}
}
