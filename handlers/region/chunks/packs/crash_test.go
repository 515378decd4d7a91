package packs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

var (
	errPower = errors.New("the power is gone")
	until    = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
)

// powerFS is a disk that loses power before its nth change: from then on nothing is done, and cut leaves what a disk may
// be left with: what was fsynced for certain, of the rest whatever chance says, to the byte.
type powerFS struct {
	mu    sync.Mutex
	left  int // changes until the cut
	files map[string]*powerFile
	names map[string][]func() error // changes of names in a folder that no syncDir made durable, with their undoing
	rnd   *rand.Rand
}

type powerFile struct {
	fs *powerFS
	*os.File
	name   string
	synced int64 // bytes that are safe
}

func newPowerFS(changes int, seed uint64) *powerFS {
	return &powerFS{left: changes, files: map[string]*powerFile{}, names: map[string][]func() error{}, rnd: rand.New(rand.NewPCG(seed, 3))}
}

// change is one step towards the cut.
func (p *powerFS) change(do func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 {
		return errPower
	}
	p.left--
	return do()
}

func (p *powerFS) undo(name string, f func() error) {
	dir := filepath.Dir(name)
	p.names[dir] = append(p.names[dir], f)
}

func (p *powerFS) create(name string) (out file, err error) {
	err = p.change(func() error {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		pf := &powerFile{fs: p, File: f, name: name}
		p.files[name] = pf
		out = pf
		p.undo(name, func() error { return os.Remove(pf.name) })
		return nil
	})
	return out, err
}

func (p *powerFS) open(name string) (file, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	pf := &powerFile{fs: p, File: f, name: name, synced: info.Size()}
	p.files[name] = pf
	return pf, nil
}

func (p *powerFS) rename(from, to string) error {
	return p.change(func() error {
		old, err := os.ReadFile(to)
		existed := err == nil
		if err := os.Rename(from, to); err != nil {
			return err
		}
		if f := p.files[from]; f != nil {
			f.name = to
			p.files[to] = f
			delete(p.files, from)
		}
		p.undo(to, func() error {
			if !existed {
				return os.Rename(to, from)
			}
			return os.WriteFile(to, old, 0o644)
		})
		return nil
	})
}

func (p *powerFS) remove(name string) error {
	return p.change(func() error {
		old, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		p.undo(name, func() error { return os.WriteFile(name, old, 0o644) })
		return os.Remove(name)
	})
}

func (p *powerFS) free(string) (int64, error) { return math.MaxInt64, nil }

func (p *powerFS) syncDir(name string) error {
	return p.change(func() error { delete(p.names, name); return nil })
}

func (f *powerFile) WriteAt(b []byte, off int64) (n int, err error) {
	err = f.fs.change(func() error { n, err = f.File.WriteAt(b, off); return err })
	return n, err
}

func (f *powerFile) Truncate(n int64) error {
	return f.fs.change(func() error { f.synced = min(f.synced, n); return f.File.Truncate(n) })
}

func (f *powerFile) Sync() error {
	return f.fs.change(func() error {
		info, err := f.File.Stat()
		if err == nil {
			f.synced = info.Size()
		}
		return err
	})
}

// cut takes away what was not durable: of each file some bytes behind the last fsync, or zeros instead of them; of each
// folder the latest changes of names.
func (p *powerFS) cut(t *testing.T) {
	t.Helper()
	for name, f := range p.files {
		info, err := os.Stat(name)
		if err != nil || info.Size() <= f.synced {
			continue
		}
		keep := f.synced + p.rnd.Int64N(info.Size()-f.synced+1)
		if err := os.Truncate(name, keep); err != nil {
			t.Fatal(err)
		}
		if p.rnd.IntN(2) == 0 { // the length was written, the bytes were not
			if err := os.Truncate(name, info.Size()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, undos := range p.names {
		for n := p.rnd.IntN(len(undos) + 1); n > 0; n-- {
			if err := undos[len(undos)-1](); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			undos = undos[:len(undos)-1]
		}
	}
}

// life is what happens to a store; it tells what was promised so far.
func life(t *testing.T, s *Store, disks [][]byte, promised map[string]int) error {
	ctx := t.Context()
	for i, disk := range disks {
		name := fmt.Sprint("disk", i)
		if err := s.Hold(ctx, name, until); err != nil {
			return err
		}
		n, err := s.Begin(ctx, name)
		if err != nil {
			return err
		}
		r, err := chunks.Ingest(ctx, n, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk))})
		n.Close()
		if err != nil {
			return err
		}
		if err := s.Publish(ctx, chunks.Root{Name: name, Owner: name, Indexes: []chunks.Digest{r.Digest}}); err != nil {
			return err
		}
		promised[name] = i
		if _, err := s.Release(ctx, name); err != nil {
			return err
		}
		if i == 1 {
			delete(promised, "disk0") // either outcome is good from here on
			if _, err := s.Unpublish(ctx, "disk0"); err != nil {
				return err
			}
		}
		if _, err := s.Collect(ctx, chunks.CollectRequest{Now: until.Add(-time.Hour)}); err != nil {
			return err
		}
	}
	return nil
}

// checkPromises opens the store on a good disk and reads what it must have, then uses it.
func checkPromises(t *testing.T, dir string, disks [][]byte, promised map[string]int, what string) {
	t.Helper()
	s, err := Open(dir, small)
	if err != nil {
		t.Fatalf("%s: open: %v", what, err)
	}
	defer mustClose(t, s)
	ctx := t.Context()
	roots, err := s.Roots(ctx)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	found := map[string]bool{}
	for _, r := range roots {
		found[r.Name] = true
		var i int
		if _, err := fmt.Sscanf(r.Name, "disk%d", &i); err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, s, r.Indexes[0]); !bytes.Equal(got, disks[i]) {
			t.Fatalf("%s: %s reads back differently", what, r.Name)
		}
	}
	for name := range promised {
		if !found[name] {
			t.Fatalf("%s: %s was promised and is gone", what, name)
		}
	}
	res, err := chunks.Scrub(ctx, s, nil)
	if err != nil || res.Err() != nil || len(res.Hurt) > 0 {
		t.Fatalf("%s: scrub: %+v, %v", what, res, err)
	}
	if err := life(t, s, disks[:1], map[string]int{}); err != nil && chunks.CodeOf(err) != chunks.RootConflict {
		t.Fatalf("%s: the store is of no use: %v", what, err)
	}
}

func readAll(t *testing.T, s *Store, d chunks.Digest) []byte {
	t.Helper()
	cache, err := chunks.NewCache(s, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	disk, err := cache.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	b, err := io.ReadAll(io.NewSectionReader(disk, 0, disk.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPowerCutBeforeEveryChange(t *testing.T) {
	disks := [][]byte{chunkstest.Disk(1, 6), chunkstest.Disk(2, 6), chunkstest.Disk(1, 8)}
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "store")
		power := newPowerFS(n, uint64(n))
		promised := map[string]int{}
		s, err := open(dir, small, power)
		if err == nil {
			err = life(t, s, disks, promised)
			if cerr := s.Close(); err == nil {
				err = cerr
			}
		}
		if err == nil {
			if n < 100 {
				t.Fatalf("the life of a store took %d changes only", n)
			}
			t.Logf("%d changes", n)
			return
		}
		if !errors.Is(err, errPower) {
			t.Fatalf("cut before change %d: %v", n, err)
		}
		power.cut(t)
		checkPromises(t, dir, disks, promised, fmt.Sprintf("cut before change %d", n))
		os.RemoveAll(dir)
	}
}

// TestTornTail cuts a pack at every byte behind what was promised, and at some of them leaves zeros or noise.
func TestTornTail(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := mustOpen(t, dir, Options{})
	ctx := t.Context()
	if err := s.Hold(ctx, "a", until); err != nil {
		t.Fatal(err)
	}
	n, err := s.Begin(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	codec := chunks.NewCodec()
	put := func(text string) chunks.ID {
		block := chunks.NewBlock([]byte(text))
		if _, err := n.Put(ctx, codec.Seal(block)); err != nil {
			t.Fatal(err)
		}
		return block.ID()
	}
	var ids []chunks.ID
	ends := []int64{packHeaderSize}
	for i := range 6 {
		ids = append(ids, put(strings.Repeat(fmt.Sprint("chunk", i), 3+i)))
		ends = append(ends, s.active.size)
		if i == 1 {
			if err := s.sync(); err != nil { // the first two are promised
				t.Fatal(err)
			}
		}
	}
	pack, index := s.active.path(), s.active.indexPath()
	whole, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	promised, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)

	check := func(what string, tail []byte, complete int) {
		t.Helper()
		for path, b := range map[string][]byte{pack: tail, index: promised} {
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s := mustOpen(t, dir, Options{})
		have, err := s.Has(ctx, ids)
		if err != nil {
			t.Fatal(err)
		}
		for i, ok := range have {
			if ok != (i < complete) {
				t.Fatalf("%s: chunk %d present: %v", what, i, ok)
			}
			if ok {
				rec, err := s.ReadRecord(ctx, ids[i], nil)
				if err == nil {
					_, err = codec.Open(rec)
				}
				if err != nil {
					t.Fatalf("%s: chunk %d: %v", what, i, err)
				}
			}
		}
		if s.active.size != ends[complete] {
			t.Fatalf("%s: the pack ends at %d, not %d", what, s.active.size, ends[complete])
		}
		mustClose(t, s)
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	for cut := ends[2]; cut <= int64(len(whole)); cut++ {
		complete := 0
		for complete+1 < len(ends) && ends[complete+1] <= cut {
			complete++
		}
		check(fmt.Sprintf("cut at %d", cut), whole[:cut], complete)
		if cut%7 == 0 {
			check(fmt.Sprintf("zeros from %d", cut), append(bytes.Clone(whole[:cut]), make([]byte, 100)...), complete)
			noise := make([]byte, 3000)
			for i := range noise {
				noise[i] = byte(rnd.Uint32())
			}
			check(fmt.Sprintf("noise from %d", cut), append(bytes.Clone(whole[:cut]), noise...), complete)
		}
	}
}

// TestKill kills a process that fills a store, again and again; what it said was published must be there.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	promised := map[string]int{}
	disks := make([][]byte, 40)
	for i := range disks {
		disks[i] = chunkstest.Disk(uint64(i%5), 20)
	}
	for round := range 6 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillVictim$")
		cmd.Env = append(os.Environ(), "CHUNKS_VICTIM="+dir, fmt.Sprint("CHUNKS_FROM=", len(promised)))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for seen := 0; seen <= round && lines.Scan(); {
			var i int
			if _, err := fmt.Sscanf(lines.Text(), "published disk%d", &i); err == nil {
				promised[fmt.Sprint("disk", i)] = i
				seen++
			}
			if seen == 1 {
				_, err := Open(dir, small)
				wantCode(t, err, chunks.StoreInUse)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // said before it died
			var i int
			if _, err := fmt.Sscanf(lines.Text(), "published disk%d", &i); err == nil {
				promised[fmt.Sprint("disk", i)] = i
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the victim ended by itself")
		}
		s := mustOpen(t, dir, small)
		roots, err := s.Roots(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		left := maps.Clone(promised)
		for _, r := range roots {
			var i int
			if _, err := fmt.Sscanf(r.Name, "disk%d", &i); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readAll(t, s, r.Indexes[0]), disks[i]) {
				t.Fatalf("round %d: %s reads back differently", round, r.Name)
			}
			delete(left, r.Name)
			promised[r.Name] = i // published, and killed before it could say so
		}
		if len(left) > 0 {
			t.Fatalf("round %d: promised and gone: %v", round, left)
		}
		mustClose(t, s)
	}
}

// TestKillVictim is the process that TestKill kills; without its environment there is nothing to do.
func TestKillVictim(t *testing.T) {
	dir := os.Getenv("CHUNKS_VICTIM")
	if dir == "" {
		return
	}
	var from int
	if _, err := fmt.Sscan(os.Getenv("CHUNKS_FROM"), &from); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, dir, small)
	for i := from; ; i++ {
		disk, name := chunkstest.Disk(uint64(i%5), 20), fmt.Sprint("disk", i)
		if err := s.Hold(t.Context(), name, until); err != nil {
			t.Fatal(err)
		}
		n, err := s.Begin(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := chunks.Ingest(t.Context(), n, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk))})
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
		if err := s.Publish(t.Context(), chunks.Root{Name: name, Owner: name, Indexes: []chunks.Digest{r.Digest}}); err != nil {
			t.Fatal(err)
		}
		fmt.Println("published", name)
		if _, err := s.Collect(t.Context(), chunks.CollectRequest{Now: until.Add(-time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
}
