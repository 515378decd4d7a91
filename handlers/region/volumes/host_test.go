package volumes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/packs"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

func wantCode(t *testing.T, err error, want Code) {
	t.Helper()
	if CodeOf(err) != want {
		t.Fatalf("%v, want %s", err, want)
	}
}

// served is a host whose environments are served in this process.
type served struct {
	*Host
	*shelf
	socket string
}

func serve(t testing.TB, dir string, store chunks.Store) served {
	t.Helper()
	s := newShelf(t, store)
	server := nbd.NewServer()
	l, err := nbd.Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	h := NewHost(dir, s.cache, server)
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), <-done, h.Close(), s.cache.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return served{h, s, l.Addr().String()}
}

func openPacks(t testing.TB, dir string) *packs.Store {
	t.Helper()
	store, err := packs.Open(dir, packs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// TestClone is what happens to an environment's disk: a clone is there at once, is written to, saved, and discarded; what
// is stored never changes.
func TestClone(t *testing.T) {
	s := serve(t, filepath.Join(t.TempDir(), "volumes"), openPacks(t, t.TempDir()))
	disk := random(rand.New(rand.NewPCG(1, 2)), 30<<20+512)
	base := s.keep(disk)
	wanted := []Disk{{Name: "web/root", Base: base, Size: int64(len(disk))}, {Name: "web/data", Size: 1 << 20}}
	for range 2 {
		if err := s.Create(t.Context(), "e1", wanted); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, s.Create(t.Context(), "e1", []Disk{{Name: "web/data", Size: 2 << 20}}), VolumeInUse)
	wantCode(t, s.Create(t.Context(), "..", wanted), VolumeInvalid)
	wantCode(t, s.Create(t.Context(), "e2", []Disk{{Name: "x", Size: -1}}), VolumeInvalid)

	uri := "nbd+unix:///e1/web%2Froot?socket=" + s.socket
	out := filepath.Join(t.TempDir(), "out")
	program(t, "nbdcopy", uri, out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, disk) {
		t.Fatal("the clone differs from its base ", err)
	}
	program(t, "qemu-io", "-f", "raw", "-c", "write -P 0x11 5000k 300k", "-c", "write -P 0x22 12345 678", "-c", "discard 8M 2M", "-c", "flush", uri)
	want := slices.Clone(disk)
	copy(want[5000<<10:], bytes.Repeat([]byte{0x11}, 300<<10))
	for i := range 678 {
		want[12345+i] = 0x22
	}
	clear(want[8<<20 : 10<<20])

	snapshot, names, err := s.Freeze(t.Context(), "e1")
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Close()
	_, _, err = s.Freeze(t.Context(), "e1")
	wantCode(t, err, VolumeBusy)
	wantCode(t, snapshot.Rebase(t.Context()), VolumeBusy)
	session, err := s.store.Begin(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	var last chunks.Progress
	got, err := snapshot.Ingest(t.Context(), session, func(p chunks.Progress) { last = p })
	if err != nil || !slices.Equal(names, []string{"web/data", "web/root"}) {
		t.Fatal(names, err)
	}
	if got[1].BytesRead > 3<<20 || last.Done != last.Total || last.Total == 0 {
		t.Errorf("an incremental save of 2.3 MiB read %d bytes; progress %+v", got[1].BytesRead, last)
	}
	full, err := chunks.Ingest(t.Context(), session, chunks.IngestRequest{Source: bytes.NewReader(want), Size: int64(len(want))})
	if err != nil || full.Digest != got[1].Digest {
		t.Fatal("an incremental save and a full one differ ", err)
	}
	s.publish(got[0].Digest, got[1].Digest)
	if err := snapshot.Rebase(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := s.Volumes("e1")["web/root"]
	if i := v.Info(); i.Base != got[1].Digest || i.Changed != 0 || len(v.Changed()) != 0 {
		t.Fatalf("%+v", i)
	}
	program(t, "nbdcopy", uri, out)
	if b, err := os.ReadFile(out); err != nil || !bytes.Equal(b, want) {
		t.Fatal("the volume changed by being saved ", err)
	}
	snapshot.Close()
	if r, err := chunks.Verify(t.Context(), s.store, base, nil); err != nil || r.Err() != nil {
		t.Fatal("the base is not what it was ", err, r.Err())
	}
	if disks, err := s.Disks("e1"); err != nil || len(disks) != 2 || disks[1].Base != got[1].Digest {
		t.Fatal(disks, err)
	}
	for range 2 {
		if err := s.Discard("e1"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := s.Environments(); err != nil || len(left) != 0 || len(s.Volumes("e1")) != 0 {
		t.Fatal(left, err)
	}
	_, err = nbd.Dial(t.Context(), s.socket, "e1/web/root")
	if nbd.CodeOf(err) != nbd.ExportUnknown {
		t.Fatal(err)
	}
}

func program(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("failed")) {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// TestOneMoment writes the same number to two volumes, one after the other, while they are saved together: no save may
// hold a number in the second that the first does not have yet.
func TestOneMoment(t *testing.T) {
	s := serve(t, t.TempDir(), chunkstest.NewMemory())
	if err := s.Create(t.Context(), "e", []Disk{{Name: "a", Size: 1 << 20}, {Name: "b", Size: 1 << 20}}); err != nil {
		t.Fatal(err)
	}
	v := s.Volumes("e")
	stop := make(chan struct{})
	var work sync.WaitGroup
	for w := range int64(4) {
		work.Go(func() {
			for i := uint64(1); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				b := binary.BigEndian.AppendUint64(nil, i)
				// The writers share a block.
				_, aerr := v["a"].WriteAt(b, w*8+64<<10)
				_, berr := v["b"].WriteAt(b, w*8+64<<10)
				if err := errors.Join(aerr, berr, v["b"].Flush()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	number := func(d chunks.Digest, w int64) uint64 {
		disk, err := s.shelf.cache.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		b := make([]byte, 8)
		if _, err := disk.ReadAt(b, w*8+64<<10); err != nil {
			t.Fatal(err)
		}
		return binary.BigEndian.Uint64(b)
	}
	for range 10 {
		snapshot, _, err := s.Freeze(t.Context(), "e")
		if err != nil {
			t.Fatal(err)
		}
		session, err := s.store.Begin(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		r, err := snapshot.Ingest(t.Context(), session, nil)
		if err != nil {
			t.Fatal(err)
		}
		for w := range int64(4) {
			if a, b := number(r[0].Digest, w), number(r[1].Digest, w); a != b && a != b+1 {
				t.Errorf("writer %d: %d in the first, %d in the second", w, a, b)
			}
		}
		if err := snapshot.Rebase(t.Context()); err != nil {
			t.Fatal(err)
		}
		snapshot.Close()
		session.Close()
	}
	close(stop)
	work.Wait()
}

func TestRefusals(t *testing.T) {
	s := newShelf(t, chunkstest.NewMemory())
	dir := filepath.Join(t.TempDir(), "v")
	_, err := Open(t.Context(), dir, s.cache)
	wantCode(t, err, VolumeMissing)
	base := s.keep(random(rand.New(rand.NewPCG(1, 1)), 1<<20))
	wantCode(t, Create(dir, "sha256:beef", 1<<20), VolumeInvalid)
	wantCode(t, Create(dir, base, 0), VolumeInvalid)
	wantCode(t, Create(dir, base, 1<<60), VolumeInvalid)
	if err := errors.Join(Create(dir, base, 2<<20), Create(dir, base, 2<<20)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, Create(dir, base, 3<<20), VolumeExists)
	v, err := Open(t.Context(), dir, s.cache)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), dir, s.cache)
	wantCode(t, err, VolumeInUse)
	wantCode(t, Remove(dir), VolumeInUse)
	_, err = v.WriteAt([]byte{1}, 2<<20)
	wantCode(t, err, RangeInvalid)
	wantCode(t, v.Trim(-1, 1), RangeInvalid)
	_, err = v.ReadAt(make([]byte, 1), -1)
	wantCode(t, err, RangeInvalid)
	if n, err := v.ReadAt(make([]byte, 2), 2<<20-1); n != 1 || err != io.EOF {
		t.Fatal(n, err)
	}
	if _, err := v.WriteAt([]byte{1}, 7); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.Close(), v.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = v.WriteAt([]byte{1}, 0)
	wantCode(t, err, VolumeClosed)
	wantCode(t, v.Flush(), VolumeClosed)

	meta, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		t.Fatal(err)
	}
	broken := func(content string, want Code) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, metaName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), dir, s.cache)
		wantCode(t, err, want)
	}
	if i, err := Inspect(dir); err != nil || i != (Info{Size: 2 << 20, Base: base}) {
		t.Fatal(i, err)
	}
	broken(strings.Replace(string(meta), `"format":1`, `"format":2,"new":true`, 1), VolumeFormatUnknown)
	broken(string(meta[:20]), VolumeDamaged)
	broken(strings.Replace(string(meta), `[1]`, `[1,2,3]`, 1), VolumeDamaged)
	broken(strings.Replace(string(meta), `[1]`, `[9]`, 1), VolumeDamaged)
}

func TestDamagedLogIsRefused(t *testing.T) {
	s := newShelf(t, chunkstest.NewMemory())
	fs := newPowerFS(1)
	if err := create(fs, "disk", "", 1<<20); err != nil {
		t.Fatal(err)
	}
	v, err := open(t.Context(), fs, "disk", s.cache)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(4) {
		if _, err := v.WriteAt([]byte{1}, i*BlockSize); err != nil {
			t.Fatal(err)
		}
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	log := fs.names["disk/00000001.log"]
	good := slices.Clone(log.now)
	for at := range good {
		log.now = slices.Clone(good)
		log.now[at] ^= 0x10
		_, _, first, _ := readRecord(good, 0)
		v, err := open(t.Context(), fs, "disk", s.cache)
		// Of the last two commits nobody can tell damage from a crash.
		if int64(at) < first && err == nil {
			t.Fatalf("byte %d is damaged and nobody notices", at)
		}
		if err != nil && CodeOf(err) != VolumeDamaged {
			t.Fatal(err)
		}
		if err == nil {
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	log.now = appendRecord(nil, 0, kindOpened, append([]byte{9}, make([]byte, 16)...))
	_, err = open(t.Context(), fs, "disk", s.cache)
	wantCode(t, err, VolumeFormatUnknown)
}

// TestMain lets the test program be a process that serves an environment and is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("VOLUMES_TEST_SERVE"); dir != "" {
		if err := serveForever(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveForever(dir string) error {
	store, err := packs.Open(filepath.Join(dir, "chunks"), packs.Options{})
	if err != nil {
		return err
	}
	cache, err := chunks.NewCache(store, 4<<20)
	if err != nil {
		return err
	}
	server := nbd.NewServer()
	h := NewHost(filepath.Join(dir, "volumes"), cache, server)
	ctx := context.Background()
	environments, err := h.Environments()
	if err != nil {
		return err
	}
	for _, e := range environments {
		if err := h.Open(ctx, e); err != nil {
			return err
		}
	}
	return server.ListenAndServe(ctx, filepath.Join(dir, "s"), func() { fmt.Println("ready") })
}

// process is the test program serving dir.
func process(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = append(os.Environ(), "VOLUMES_TEST_SERVE="+dir)
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatal(line, err)
	}
	return c
}

// TestQEMUGoesOnAfterAKill kills the serving process under a QEMU client that reconnects: what was answered is there,
// flushed or not.
func TestQEMUGoesOnAfterAKill(t *testing.T) {
	dir := t.TempDir()
	s := newShelf(t, openPacks(t, filepath.Join(dir, "chunks")))
	disk := random(rand.New(rand.NewPCG(5, 2)), 8<<20)
	base := s.keep(disk)
	if err := errors.Join(Create(filepath.Join(dir, "volumes", "e", "root"), base, int64(len(disk))), s.cache.Close(), s.store.Close()); err != nil {
		t.Fatal(err)
	}
	server := process(t, dir)
	image := fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":%q},"export":"e/root","reconnect-delay":60}}`, filepath.Join(dir, "s"))
	q := exec.CommandContext(t.Context(), "stdbuf", "-oL", "qemu-io", image) // else its answers wait in a buffer
	in, err := q.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := q.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	q.Stderr = q.Stdout
	if err := q.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewScanner(pipe)
	say := func(command, want string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, command); err != nil {
			t.Fatal(err)
		}
		var seen []string
		for out.Scan() {
			seen = append(seen, out.Text())
			if strings.Contains(out.Text(), "failed") {
				break
			}
			if strings.Contains(out.Text(), want) {
				return
			}
		}
		t.Fatalf("%s: %q", command, seen)
	}
	say("write -f -P 0x61 1M 64k", "wrote 65536/65536")
	say("write -P 0x62 2000k 3k", "wrote 3072/3072")
	for i := range 3 {
		if err := server.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		server.Wait()
		server = process(t, dir)
		say("read -P 0x62 2000k 3k", "read 3072/3072")
		say("read -P 0x61 1M 64k", "read 65536/65536")
		say(fmt.Sprintf("write -P %d %dM 5k", 0x70+i, 3+i), "wrote 5120/5120")
	}
	in.Close()
	for out.Scan() {
	}
	if err := q.Wait(); err != nil {
		t.Fatal(err)
	}
	c, err := nbd.Dial(t.Context(), filepath.Join(dir, "s"), "e/root")
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(disk)
	put := func(off, n int, b byte) { copy(want[off:], bytes.Repeat([]byte{b}, n)) }
	put(1<<20, 64<<10, 0x61)
	put(2000<<10, 3<<10, 0x62)
	for i := range 3 {
		put((3+i)<<20, 5<<10, byte(0x70+i))
	}
	got := make([]byte, len(want))
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatal("other bytes ", err)
	}
	c.Close()
	server.Process.Kill()
	server.Wait()
}
