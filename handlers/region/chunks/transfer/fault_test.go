package transfer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

// wire is a TCP proxy before a region. After some bytes towards the client it cuts or freezes its connections.
type wire struct {
	t      *testing.T
	target string
	addr   string
	left   atomic.Int64 // bytes until the fault
	freeze bool
	cuts   atomic.Int64
	done   chan struct{}
	group  sync.WaitGroup
}

// newWire is a wire that fails after n bytes; times bounds how often it cuts.
func newWire(t *testing.T, target string, n int64, freeze bool) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, target: target, addr: l.Addr().String(), freeze: freeze, done: make(chan struct{})}
	w.left.Store(n)
	w.group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.group.Go(func() { w.carry(c) })
		}
	})
	t.Cleanup(func() {
		close(w.done)
		l.Close()
		w.group.Wait()
	})
	return w
}

func (w *wire) carry(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", w.target)
	if err != nil {
		return
	}
	defer server.Close()
	go func() { <-w.done; client.Close(); server.Close() }()
	w.group.Go(func() {
		defer server.Close()
		copyConn(server, client, func(int) bool { return true })
	})
	copyConn(client, server, func(n int) bool {
		if w.left.Add(-int64(n)) > 0 {
			return true
		}
		if w.freeze {
			<-w.done
			return false
		}
		if w.cuts.Add(1) == 1 { // once; what comes again passes
			w.left.Store(1 << 40)
		}
		return false
	})
}

func copyConn(to, from net.Conn, pass func(n int) bool) {
	buf := make([]byte, 8<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && (!pass(n) || !wrote(to, buf[:n])) || err != nil {
			return
		}
	}
}

func wrote(c net.Conn, b []byte) bool {
	_, err := c.Write(b)
	return err == nil
}

func (w *wire) source(region string) Source { return Source{Region: region, URL: "https://" + w.addr} }

// TestCut cuts a connection at 60 %: the transfer goes on, and what came before does not come again.
func TestCut(t *testing.T) {
	a := newAuthority(t)
	sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
	disk := chunkstest.Disk(10, 400)
	held := sydney.holds(t, "v1", disk)
	w := newWire(t, sydney.addr, held.StoredBytes*6/10, false)
	r := mustPull(t, beijing.puller(t, nil), request(held.Digest, w.source("sydney")))
	if w.cuts.Load() == 0 || r.Fetched != held.NewChunks || r.SocketBytes > held.StoredBytes*11/10 {
		t.Fatalf("%d cuts; %d bytes read for %d stored; %+v", w.cuts.Load(), r.SocketBytes, held.StoredBytes, r)
	}
	wantDisk(t, beijing.store, held.Digest, disk)
}

// TestStall freezes a source in the middle: another one takes over; alone, the transfer says so and goes on later.
func TestStall(t *testing.T) {
	a := newAuthority(t)
	sydney, chicago := newRegion(t, a, "sydney", nil), newRegion(t, a, "chicago", nil)
	disk := chunkstest.Disk(11, 300)
	held := sydney.holds(t, "v1", disk)
	chicago.holds(t, "v1", disk)
	stall := func(o *Options) { o.Stall = 300 * time.Millisecond }

	beijing := newRegion(t, a, "beijing", nil)
	p := beijing.puller(t, stall)
	alone := newWire(t, sydney.addr, held.StoredBytes/2, true)
	r, err := p.Pull(t.Context(), request(held.Digest, alone.source("sydney")))
	wantCode(t, err, TransferStalled)
	if r.Fetched == 0 || r.Duration > 10*time.Second {
		t.Fatalf("before the stall: %+v", r)
	}
	if rest := mustPull(t, p, request(held.Digest, chicago.source())); rest.Present != r.Fetched || rest.Fetched+r.Fetched != held.NewChunks {
		t.Fatalf("after the stall: %+v, before %+v", rest, r)
	}
	wantDisk(t, beijing.store, held.Digest, disk)

	oslo := newRegion(t, a, "oslo", nil)
	both := newWire(t, sydney.addr, held.StoredBytes/5, true)
	r = mustPull(t, oslo.puller(t, stall), request(held.Digest, both.source("sydney"), chicago.source()))
	if r.Sources[1].Err != nil || r.Sources[1].Chunks < held.NewChunks/2 {
		t.Fatalf("%+v", r)
	}
	wantDisk(t, oslo.store, held.Digest, disk)
}

// TestSourceGone starts with a source that does not answer at all.
func TestSourceGone(t *testing.T) {
	a := newAuthority(t)
	sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
	disk := chunkstest.Disk(12, 50)
	held := sydney.holds(t, "v1", disk)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := Source{Region: "chicago", URL: "https://" + l.Addr().String()}
	l.Close()
	p := beijing.puller(t, nil)
	_, err = p.Pull(t.Context(), request(held.Digest, gone))
	wantCode(t, err, TransferFailed)
	r := mustPull(t, p, request(held.Digest, gone, sydney.source()))
	if chunks.CodeOf(r.Sources[0].Err) != SourceFailed {
		t.Fatalf("%+v", r.Sources[0])
	}
	wantDisk(t, beijing.store, held.Digest, disk)
}

// victim is what the process that TestKill kills is told.
type victim struct {
	Dir           string
	Index         chunks.Digest
	Source        Source
	CA, Cert, Key []byte
}

// TestKill kills a pulling process at 60 %. A new one, upon the same store, fetches the rest and little more.
func TestKill(t *testing.T) {
	a := newAuthority(t)
	sydney := newRegion(t, a, "sydney", nil)
	disk := chunkstest.Disk(13, 1500)
	held := sydney.holds(t, "v1", disk)
	// Slow enough to be met in the middle.
	if err := sydney.links.SetCap(Link{From: "sydney", To: "beijing"}, 30<<20); err != nil {
		t.Fatal(err)
	}
	config := a.region("beijing")
	key, err := x509.MarshalPKCS8PrivateKey(config.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "store")
	v := victim{Dir: dir, Index: held.Digest, Source: sydney.source(), CA: encodePEM("CERTIFICATE", a.cert.Raw),
		Cert: encodePEM("CERTIFICATE", config.Certificates[0].Certificate[0]), Key: encodePEM("PRIVATE KEY", key)}
	told, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestKillVictim$")
	cmd.Env = append(os.Environ(), "TRANSFER_VICTIM="+string(told))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reached := false
	for lines := bufio.NewScanner(out); !reached && lines.Scan(); {
		var p Progress
		if json.Unmarshal(lines.Bytes(), &p) == nil && p.BytesTotal > 0 {
			reached = p.BytesDone >= p.BytesTotal*6/10
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !reached {
		t.Fatalf("the victim ended by itself, or before 60 %%: %v", err)
	}
	before := sydney.links.Bytes(Link{From: "sydney", To: "beijing"})

	store := openPacks(t, dir)
	beijing := &region{name: "beijing", store: store, links: NewLinks("beijing"), tls: config}
	r := mustPull(t, beijing.puller(t, nil), request(v.Index, v.Source))
	total := sydney.links.Bytes(Link{From: "sydney", To: "beijing"})
	t.Logf("%d bytes stored; sent %d before the kill, %d in all; %d of %d chunks were there", held.StoredBytes, before, total, r.Present, r.Chunks)
	if r.Present < r.Chunks/2 || r.Present+r.Fetched != r.Chunks || total > held.StoredBytes*11/10 {
		t.Fatalf("%+v", r)
	}
	wantDisk(t, store, held.Digest, disk)
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// TestKillVictim is the process that TestKill kills; without its environment there is nothing to do.
func TestKillVictim(t *testing.T) {
	told := os.Getenv("TRANSFER_VICTIM")
	if told == "" {
		return
	}
	var v victim
	if err := json.Unmarshal([]byte(told), &v); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(v.Cert, v.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(v.CA)
	beijing := &region{name: "beijing", store: openPacks(t, v.Dir), links: NewLinks("beijing"), tls: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}}
	q := request(v.Index, v.Source)
	q.Progress = func(p Progress) {
		line, err := json.Marshal(p)
		if err != nil {
			t.Error(err)
		}
		fmt.Println(string(line))
	}
	mustPull(t, beijing.puller(t, nil), q)
}

// handClock is time that moves only when somebody waits.
type handClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *handClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *handClock) until(ctx context.Context, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.at) {
		c.at = t
	}
	return ctx.Err()
}

// TestCap copies over a capped link, at either end, with several connections and two transfers at once; by a clock of
// its own the bytes at the socket are within 5 % of what the cap allows.
func TestCap(t *testing.T) {
	a := newAuthority(t)
	one, two := chunkstest.Disk(14, 200), chunkstest.Disk(15, 200)
	for _, end := range []string{"beijing", "sydney"} {
		for _, perSecond := range []int64{200_000, 5_000_000} {
			t.Run(fmt.Sprint(end, " ", perSecond), func(t *testing.T) {
				sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
				first, second := sydney.holds(t, "v1", one), sydney.holds(t, "v2", two)
				link := Link{From: "sydney", To: "beijing"}
				capped := map[string]*Links{"beijing": beijing.links, "sydney": sydney.links}[end]
				clock := &handClock{at: time.Unix(1000, 0)}
				capped.clock = clock
				if err := capped.SetCap(link, perSecond); err != nil {
					t.Fatal(err)
				}
				p := beijing.puller(t, nil)
				var both sync.WaitGroup
				for _, held := range []chunks.IngestResult{first, second} {
					both.Go(func() {
						if _, err := p.Pull(t.Context(), request(held.Digest, sydney.source())); err != nil {
							t.Error(err)
						}
					})
				}
				both.Wait()
				took := clock.now().Sub(time.Unix(1000, 0)).Seconds()
				rate := float64(capped.Bytes(link)) / took
				t.Logf("%d bytes in %.2f s: %.0f bytes a second", capped.Bytes(link), took, rate)
				if rate > 1.05*float64(perSecond) || rate < 0.95*float64(perSecond) {
					t.Fatalf("%.0f bytes a second, the cap is %d", rate, perSecond)
				}
				wantDisk(t, beijing.store, first.Digest, one)
				wantDisk(t, beijing.store, second.Digest, two)
			})
		}
	}
}

// TestCapByTheWallClock measures the same with the real clock: never above the cap.
func TestCapByTheWallClock(t *testing.T) {
	a := newAuthority(t)
	sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
	disk := chunkstest.Disk(16, 400)
	held := sydney.holds(t, "v1", disk)
	link := Link{From: "sydney", To: "beijing"}
	const perSecond = 8 << 20
	if err := beijing.links.SetCap(link, perSecond); err != nil {
		t.Fatal(err)
	}
	r := mustPull(t, beijing.puller(t, nil), request(held.Digest, sydney.source()))
	rate := float64(r.SocketBytes) / r.Duration.Seconds()
	t.Logf("%d bytes in %s: %.2f of the cap", r.SocketBytes, r.Duration, rate/perSecond)
	if rate > 1.05*perSecond || rate < 0.5*perSecond {
		t.Fatalf("%.0f bytes a second, the cap is %d", rate, perSecond)
	}
	if c := beijing.links.Counts(); len(c) == 0 || c[len(c)-1].Cap != perSecond && c[0].Cap != perSecond {
		t.Fatalf("counts %+v do not tell the cap", c)
	}
	wantCode(t, beijing.links.SetCap(Link{From: "x", To: "y"}, 1), chunks.RangeInvalid)
	wantCode(t, beijing.links.SetCap(link, -1), chunks.RangeInvalid)
	// Lifted, it is fast again.
	if err := beijing.links.SetCap(link, 0); err != nil {
		t.Fatal(err)
	}
	wantDisk(t, beijing.store, held.Digest, disk)
}

// TestSlowSource shares a disk between a slow and a fast source: the slow one does not hold up the end.
func TestSlowSource(t *testing.T) {
	a := newAuthority(t)
	sydney, chicago, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "chicago", nil), newRegion(t, a, "beijing", nil)
	disk := chunkstest.Disk(17, 1000)
	held := sydney.holds(t, "v1", disk)
	chicago.holds(t, "v1", disk)
	const slow = 300 << 10
	if err := sydney.links.SetCap(Link{From: "sydney", To: "beijing"}, slow); err != nil {
		t.Fatal(err)
	}
	r := mustPull(t, beijing.puller(t, nil), request(held.Digest, sydney.source(), chicago.source()))
	t.Logf("%s; sydney %d chunks, chicago %d", r.Duration, r.Sources[0].Chunks, r.Sources[1].Chunks)
	// Its first batches alone are 4 of 30 chunks, about 10 s of its time.
	if first := 4 * 30 * held.StoredBytes / int64(held.NewChunks) / slow; r.Duration > time.Duration(first)*time.Second*2/3 {
		t.Fatalf("took %s; %d s of the slow source were asked for", r.Duration, first)
	}
	wantDisk(t, beijing.store, held.Digest, disk)
}

func TestQueue(t *testing.T) {
	ctx := t.Context()
	now := time.Unix(0, 0)
	ids := make([]chunks.ID, 30)
	for i := range ids {
		ids[i] = chunks.ID{byte(i + 1)}
	}
	q := newQueue(ids, 2, func() time.Time { return now })
	slow, fast := q.take(ctx, 0, 20), q.take(ctx, 1, 20)
	if len(slow.items) != 20 || len(fast.items) != 10 {
		t.Fatalf("batches of %d and %d", len(slow.items), len(fast.items))
	}
	now = now.Add(time.Second)
	for range 9 {
		q.arrived(fast)
	}
	if q.lacks(fast) { // its last
		t.Fatal("more of a batch that is over")
	}
	q.finish(fast)
	for range 2 {
		q.arrived(slow)
	}
	now = now.Add(9 * time.Second) // slow: 5 s for each chunk; fast: 0.1 s
	stolen := q.take(ctx, 1, 20)
	if len(stolen.items) != 9 || stolen.items[0] != 11 || slow.end != 11 {
		t.Fatalf("stole %v of what ends at %d", stolen.items, slow.end)
	}
	for i := range 9 {
		if more := q.arrived(slow); more != (i < 8) {
			t.Fatalf("%d of the rest: more %v", i, more)
		}
	}
	q.finish(slow)
	// What fast lacked is for slow only.
	if b := q.take(ctx, 0, 20); len(b.items) != 1 || q.idsOf(b)[0] != ids[29] {
		t.Fatalf("batch %v", b.items)
	} else {
		q.lacks(b)
		q.finish(b)
	}
	if b := q.take(ctx, 1, 20); b != nil {
		t.Fatalf("batch %v of what nobody has", b.items)
	}
	if nobody, left := q.without(); len(nobody) != 1 || nobody[0] != ids[29] || left != 10 {
		t.Fatalf("%d that nobody has, %d left", len(nobody), left)
	}
}

func TestProgress(t *testing.T) {
	at := time.Unix(0, 0)
	p := newProgress(at, 1000)
	if _, due := p.at(at.Add(time.Millisecond), 1, 1, false); due {
		t.Fatal("told too often")
	}
	got, due := p.at(at.Add(2*time.Second), 200, 90, false)
	if want := (Progress{BytesDone: 200, BytesTotal: 1000, SocketBytes: 90, Rate: 100, Left: 8 * time.Second}); !due || got != want {
		t.Fatalf("got %+v", got)
	}
	for s := 3; s <= 12; s++ { // ten times as slow
		got, _ = p.at(at.Add(time.Duration(s)*time.Second), int64(200+10*(s-2)), 0, false)
	}
	if got.Rate > 11 || got.Rate < 9 {
		t.Fatalf("the rate of the last seconds is %v", got.Rate)
	}
	if !bytes.Contains(fmt.Append(nil, got.Left), []byte("1m10s")) {
		t.Fatalf("left %s", got.Left)
	}
}
