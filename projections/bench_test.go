package projections

import (
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// wide is a row, and an event, of ten fields.
type wide struct {
	ID       string    `json:"id"`
	Account  string    `json:"account"`
	Region   string    `json:"region"`
	State    string    `json:"state"`
	Name     string    `json:"name"`
	Template string    `json:"template"`
	Version  int       `json:"version"`
	Bytes    int64     `json:"bytes"`
	Digest   string    `json:"digest"`
	Changed  time.Time `json:"changed"`
}

func (wide) EventType() events.Type { return "test.wide" }

func wideOf(i, rows int) wide {
	id := i % rows
	return wide{
		ID: fmt.Sprintf("%08d", id), Account: "acme", Region: fmt.Sprintf("region-%d", id%40), State: []string{"ready", "wanted", "copying"}[i%3],
		Name: fmt.Sprintf("environment number %d", id), Template: fmt.Sprint(10000000 + id%1000), Version: i/rows + 1, Bytes: int64(i) * 4096,
		Digest: string(events.DigestOf([]byte{byte(i)})), Changed: time.Unix(1700000000+int64(i), 0).UTC(),
	}
}

var (
	wideRegions = NewIndex("region", func(w wide) []Key { return []Key{{w.Region}} })
	wideIndexed = NewTable("indexed", "wide", func(w wide) Key { return Key{w.ID} }, wideRegions)
	widePlain   = NewTable("plain", "wide", func(w wide) Key { return Key{w.ID} })
)

// wides decodes each event's payload and puts it as a row.
type wides struct{ table *Table[wide] }

func (p wides) Name() string        { return p.table.id.projection }
func (wides) Shape() int            { return 1 }
func (p wides) Tables() []Described { return []Described{p.table} }
func (p wides) Apply(w *Batch, r events.Record) error {
	var e wide
	if err := json.Unmarshal(r.Payload, &e); err != nil {
		return err
	}
	return p.table.Put(w, e)
}

func wideStream(b *testing.B, n, rows int) *stream {
	log := newStream()
	for i := range n {
		payload, err := json.Marshal(wideOf(i, rows))
		must(b, err)
		log.records = append(log.records, events.Record{Sequence: uint64(i + 1), Payload: payload})
	}
	return log
}

func scaled(n int) int {
	if testing.Short() {
		return n / 20
	}
	return n
}

// BenchmarkFeed folds 200,000 events that decode ten fields and put a row
// (50,000 rows, four versions each), and says how many times longer that takes
// than decoding the JSON alone.
func BenchmarkFeed(b *testing.B) {
	n := scaled(200_000)
	log := wideStream(b, n, n/4)
	begun := time.Now()
	for _, r := range log.records {
		var e wide
		must(b, json.Unmarshal(r.Payload, &e))
	}
	decode := time.Since(begun)
	for _, table := range []*Table[wide]{widePlain, wideIndexed} {
		b.Run(table.id.projection, func(b *testing.B) {
			for b.Loop() {
				s := openStore(b, b.TempDir(), Options{})
				f := feedOf(b, s, wides{table})
				begun := time.Now()
				feedTo(b, f, log, uint64(n))
				took := time.Since(begun)
				b.ReportMetric(float64(n)/took.Seconds(), "events/s")
				b.ReportMetric(float64(n)/decode.Seconds(), "decodes/s")
				b.ReportMetric(took.Seconds()/decode.Seconds(), "x-decode")
				must(b, s.Close())
			}
		})
	}
}

// BenchmarkPoint reads one row of 2,000 with 100 versions each: now, as of the
// middle, and as a raw Pebble iterator goes through the versions.
func BenchmarkPoint(b *testing.B) {
	const versions = 100
	rows := scaled(2000)
	n := rows * versions
	s := openStore(b, b.TempDir(), Options{})
	defer s.Close()
	f := feedOf(b, s, wides{widePlain})
	feedTo(b, f, wideStream(b, n, rows), uint64(n))
	must(b, s.db.Flush())
	id := func(i int) string { return fmt.Sprintf("%08d", i*7919%rows) }
	point := func(v *View) func(*testing.B) {
		return func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if _, ok, err := widePlain.Get(v, id(i)); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		}
	}
	now, err := f.Now()
	must(b, err)
	defer now.Close()
	then, err := f.AsOf(uint64(n / 2))
	must(b, err)
	defer then.Close()
	b.Run("now", point(now))
	b.Run("as-of", point(then))
	b.Run("as-of-with-view", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			v, err := f.AsOf(uint64(n / 2))
			must(b, err)
			if _, ok, err := widePlain.Get(v, id(i)); !ok || err != nil {
				b.Fatal(ok, err)
			}
			must(b, v.Close())
		}
	})
	list := func(v *View) func(*testing.B) {
		return func(b *testing.B) {
			seen := 0
			for b.Loop() {
				for _, err := range widePlain.All(v, Query[wide]{}) {
					must(b, err)
					seen++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(seen), "ns/row")
		}
	}
	b.Run("list-now", list(now))
	b.Run("list-as-of", list(then))
	b.Run("raw-versions", func(b *testing.B) {
		seen := 0
		for b.Loop() {
			it, err := s.db.NewIter(nil)
			must(b, err)
			for it.First(); it.Valid(); it.Next() {
				seen++
			}
			must(b, it.Close())
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(seen), "ns/key")
	})
}

// BenchmarkFewOfMany lists the three rows of one region among 1,000,000 rows,
// and says what memory the store takes.
func BenchmarkFewOfMany(b *testing.B) {
	n := scaled(1_000_000)
	s := openStore(b, b.TempDir(), Options{})
	defer s.Close()
	f := feedOf(b, s, wides{wideIndexed})
	log := newStream()
	for i := range n {
		w := wideOf(i, n)
		if i%(n/3) == n/6 {
			w.Region = "rare"
		}
		payload, err := json.Marshal(w)
		must(b, err)
		log.records = append(log.records, events.Record{Sequence: uint64(i + 1), Payload: payload})
	}
	log.addRecord(events.Record{Sequence: uint64(n + 1), Payload: log.records[0].Payload})
	feedTo(b, f, log, uint64(n+1))
	log.records = nil
	runtime.GC()
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap)
	pebble := s.db.Metrics()
	for _, c := range []struct {
		name string
		seq  uint64
	}{{"now", uint64(n + 1)}, {"as-of", uint64(n)}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				v, err := f.AsOf(c.seq)
				must(b, err)
				page, err := wideIndexed.Scan(v, Query[wide]{By: wideRegions, Prefix: Key{"rare"}})
				if err != nil || len(page.Rows) != 3 {
					b.Fatal(len(page.Rows), err)
				}
				must(b, v.Close())
			}
			// Pebble keeps cache and memtables outside Go's heap.
			b.ReportMetric(float64(heap.HeapAlloc)/(1<<20), "go-heap-MiB")
			b.ReportMetric(float64(pebble.BlockCache.Size)/(1<<20), "cache-MiB")
			b.ReportMetric(float64(pebble.MemTable.Size)/(1<<20), "memtable-MiB")
			b.ReportMetric(float64(pebble.DiskSpaceUsage())/(1<<20), "disk-MiB")
		})
	}
}
