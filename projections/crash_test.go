package projections

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/tombolo-vdc/tombolo/events"
)

// randomEdit gives an event over few rows, so that they change often.
func randomEdit(rng *rand.Rand) edited {
	var e edited
	group := func() string { return fmt.Sprintf("g%d", rng.IntN(5)) }
	id := func() string { return fmt.Sprint(rng.IntN(8)) }
	for range rng.IntN(4) {
		row := thing{Group: group(), ID: id(), Value: uint64(rng.IntN(30))}
		for tag := range 3 {
			if rng.IntN(2) == 0 {
				row.Tags = append(row.Tags, fmt.Sprintf("t%d", tag))
			}
		}
		e.Put = append(e.Put, row)
	}
	for range rng.IntN(2) {
		e.Delete = append(e.Delete, Key{group(), id()})
	}
	if rng.IntN(25) == 0 {
		e.Clear = group()
	}
	return e
}

// history is a stream of random events, the naive truth of it, and the digests
// that a feed committing after each event had at each position.
type history struct {
	log     *stream
	model   model
	digests []events.Digest
}

func randomHistory(t *testing.T, rng *rand.Rand, n int) history {
	h := history{log: newStream(), model: newModel()}
	s := openStore(t, "db", Options{BatchBytes: 1, fs: vfs.NewMem()})
	defer s.Close()
	f := feedOf(t, s, things{}, counts{})
	stop := start(t, f, h.log)
	defer stop()
	h.digests = append(h.digests, digest(t, f, 0, "things"))
	for range n {
		e := randomEdit(rng)
		h.model.fold(e)
		must(t, f.WaitFor(t.Context(), h.log.add(e)))
		v, err := f.Now("things")
		must(t, err)
		d, err := v.Digest("things")
		must(t, err)
		must(t, v.Close())
		h.digests = append(h.digests, d)
	}
	return h
}

// check compares everything that a view shows with the truth at its position.
func (h history) check(t *testing.T, v *View) {
	t.Helper()
	defer v.Close()
	at := v.Position()
	all := h.model.list(at, func(thing) bool { return true })
	if got := collect(t, thingRows, v, Query[thing]{}); !sameRows(got, all) {
		t.Fatalf("at %d: rows %v, want %v", at, got, all)
	}
	for _, tag := range []string{"t0", "t1", "t2"} {
		want := h.model.list(at, func(r thing) bool { return slices.Contains(r.Tags, tag) })
		if got := collect(t, thingRows, v, Query[thing]{By: byTag, Prefix: Key{tag}}); !sameRows(got, want) {
			t.Fatalf("at %d: tag %s gives %v, want %v", at, tag, got, want)
		}
	}
	for g := range 5 {
		for id := range 8 {
			k := Key{fmt.Sprintf("g%d", g), fmt.Sprint(id)}
			got, ok, err := thingRows.Get(v, k...)
			must(t, err)
			want, exists := h.model[at][k[0]+"/"+k[1]]
			if ok != exists || !sameRows([]thing{got}, []thing{want}) {
				t.Fatalf("at %d: %v is %v %v, want %v %v", at, k, got, ok, want, exists)
			}
		}
	}
	d, err := v.Digest("things")
	must(t, err)
	if d != h.digests[at] {
		t.Fatalf("at %d: digest %s, was %s", at, d, h.digests[at])
	}
	n, _, err := countRows.Get(v, "events")
	must(t, err)
	if uint64(n.N) != at {
		t.Fatalf("at %d: %d events counted", at, n.N)
	}
}

// Whatever the sizes of batches and memtables, and however often the store is
// closed, rebuilt or paged through in between, rows, lists, as-of answers and
// digests are those of the naive model.
func TestMetamorphic(t *testing.T) {
	runs := 12
	if testing.Short() {
		runs = 4
	}
	for seed := range uint64(runs) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			const n = 250
			h := randomHistory(t, rng, n)
			o := Options{
				fs:            vfs.NewMem(),
				BatchBytes:    []int{1, 500, 5000, 4 << 20}[rng.IntN(4)],
				MemTableBytes: []uint64{64 << 10, 1 << 20}[rng.IntN(2)],
				CacheBytes:    1 << 20,
				tableBytes:    []int{1, 3000, 1 << 20}[rng.IntN(3)],
			}
			s := openStore(t, "db", o)
			f := feedOf(t, s, things{}, counts{})
			for position := uint64(0); position < n; {
				switch rng.IntN(5) {
				case 0:
					must(t, s.Close())
					s = openStore(t, "db", o)
					f = feedOf(t, s, things{}, counts{})
				case 1:
					must(t, f.Rebuild("things"))
				case 2:
					must(t, s.db.Flush())
				default:
					position = min(n, position+uint64(rng.IntN(80)))
					part := newStream()
					part.records = h.log.records[:position]
					feedTo(t, f, part, position)
				}
				v, err := f.AsOf(uint64(rng.IntN(int(position) + 1)))
				must(t, err)
				h.check(t, v)
				v, err = f.Now()
				must(t, err)
				h.check(t, v)
			}
			waitBuilt(t, f, h.log)
			must(t, s.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false))
			for at := uint64(0); at <= n; at += 1 + uint64(rng.IntN(9)) {
				v, err := f.AsOf(at)
				must(t, err)
				h.check(t, v)
			}
			must(t, s.Close())
		})
	}
}

// crashDisk is a disk in memory whose power can be cut. In Pebble 2.1 a
// MemFS.Link takes a lock for reading twice, and so never ends if a CrashClone
// comes in between: here they wait for each other.
type crashDisk struct {
	*vfs.MemFS
	links sync.Mutex
}

// Link see vfs.FS.
func (d *crashDisk) Link(oldname, newname string) error {
	d.links.Lock()
	defer d.links.Unlock()
	return d.MemFS.Link(oldname, newname)
}

func (d *crashDisk) crash(c vfs.CrashCloneCfg) *crashDisk {
	d.links.Lock()
	defer d.links.Unlock()
	return &crashDisk{MemFS: d.CrashClone(c)}
}

// The power is cut at any moment, also while projections are rebuilt: rows and
// position agree in what is left, and going on from there ends where it would
// have.
func TestCrash(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	rng := rand.New(rand.NewPCG(3, 3))
	const n = 400
	h := randomHistory(t, rng, n)
	disk := &crashDisk{MemFS: vfs.NewCrashableMem()}
	furthest, restarted := uint64(0), 0
	for range rounds {
		o := Options{fs: disk, BatchBytes: 1 + rng.IntN(3000), MemTableBytes: 64 << 10, CacheBytes: 1 << 20, tableBytes: []int{1, 1000, 1 << 20}[rng.IntN(3)]}
		s := openStore(t, "db", o)
		f := feedOf(t, s, things{}, counts{})
		begun, err := f.Position()
		must(t, err)
		v, err := f.Now()
		must(t, err)
		h.check(t, v)
		if begun < furthest {
			restarted++
		}
		if rng.IntN(2) == 0 {
			must(t, f.Rebuild("things"))
		}
		stop := start(t, f, h.log)
		must(t, f.WaitFor(t.Context(), min(n, begun+uint64(rng.IntN(60)))))
		if rng.IntN(3) == 0 {
			must(t, s.db.Flush())
		}
		// The disk as it is at some moment of a feed that runs.
		crashed := disk.crash(vfs.CrashCloneCfg{
			UnsyncedDataPercent: []int{0, 30, 60, 95, 100}[rng.IntN(5)],
			RNG:                 rng,
		})
		must(t, ignoreCanceled(stop()))
		furthest, err = f.Position()
		must(t, err)
		must(t, s.Close())
		disk = crashed
	}
	if restarted == 0 {
		t.Error("no crash lost anything: the test shows nothing")
	}
	s := openStore(t, "db", Options{fs: disk})
	defer s.Close()
	f := feedOf(t, s, things{}, counts{})
	feedTo(t, f, h.log, n)
	waitBuilt(t, f, h.log)
	for at := uint64(0); at <= n; at += 37 {
		v, err := f.AsOf(at)
		must(t, err)
		h.check(t, v)
	}
	v, err := f.Now()
	must(t, err)
	h.check(t, v)
}
