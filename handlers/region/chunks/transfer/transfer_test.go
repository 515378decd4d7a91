package transfer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/packs"
)

var until = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)

// authority issues the certificates of a test's regions.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "regions"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue makes a certificate for URIs.
func (a *authority) issue(notAfter time.Time, uris ...*url.URL) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, URIs: uris,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) region(name string) *tls.Config {
	return &tls.Config{RootCAs: a.pool(), Certificates: []tls.Certificate{a.issue(time.Now().Add(time.Hour), RegionURI(name))}}
}

// region is a store, its links and its server.
type region struct {
	name  string
	store chunks.Store
	links *Links
	tls   *tls.Config
	addr  string
}

func openPacks(t testing.TB, dir string) *packs.Store {
	t.Helper()
	s, err := packs.Open(dir, packs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newRegion starts a region. served is what its server reads, the store itself where nil.
func newRegion(t testing.TB, a *authority, name string, served func(chunks.Store) chunks.Reader) *region {
	t.Helper()
	r := &region{name: name, store: openPacks(t, t.TempDir()), links: NewLinks(name), tls: a.region(name)}
	var reader chunks.Reader = r.store
	if served != nil {
		reader = served(r.store)
	}
	r.addr = serve(t, ServerOptions{Region: name, Store: reader, TLS: r.tls, Links: r.links})
	return r
}

func serve(t testing.TB, o ServerOptions) string {
	t.Helper()
	s, err := NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func (r *region) source() Source { return Source{Region: r.name, URL: "https://" + r.addr} }

// holds ingests a disk and publishes it.
func (r *region) holds(t testing.TB, name string, disk []byte) chunks.IngestResult {
	t.Helper()
	ctx := t.Context()
	hold(t, r.store, name)
	n, err := r.store.Begin(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	res, err := chunks.Ingest(ctx, n, chunks.IngestRequest{Source: bytes.NewReader(disk), Size: int64(len(disk))})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Publish(ctx, chunks.Root{Name: name, Owner: name, Indexes: []chunks.Digest{res.Digest}}); err != nil {
		t.Fatal(err)
	}
	return res
}

func hold(t testing.TB, s chunks.Store, owner string) {
	t.Helper()
	if err := s.Hold(t.Context(), owner, until); err != nil {
		t.Fatal(err)
	}
}

func (r *region) puller(t testing.TB, change func(*Options)) *Puller {
	t.Helper()
	hold(t, r.store, "copy")
	o := Options{Region: r.name, Store: r.store, TLS: r.tls, Links: r.links, Scratch: t.TempDir()}
	if change != nil {
		change(&o)
	}
	p, err := NewPuller(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func request(d chunks.Digest, sources ...Source) PullRequest {
	return PullRequest{Owner: "copy", Indexes: []chunks.Digest{d}, Sources: sources}
}

func mustPull(t testing.TB, p *Puller, q PullRequest) Result {
	t.Helper()
	r, err := p.Pull(t.Context(), q)
	if err != nil {
		t.Fatalf("%v\n%+v", err, r)
	}
	return r
}

func wantCode(t testing.TB, err error, code chunks.Code) {
	t.Helper()
	if chunks.CodeOf(err) != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
}

func wantDisk(t testing.TB, s chunks.Store, d chunks.Digest, disk []byte) {
	t.Helper()
	if v, err := chunks.Verify(t.Context(), s, d, nil); err != nil || v.Err() != nil {
		t.Fatalf("verify: %v, %v", err, v.Err())
	}
	cache, err := chunks.NewCache(s, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	opened, err := cache.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	got, err := io.ReadAll(io.NewSectionReader(opened, 0, opened.Size()))
	if err != nil || !bytes.Equal(got, disk) {
		t.Fatalf("the disk arrived differently: %v", err)
	}
}

func TestPull(t *testing.T) {
	a := newAuthority(t)
	sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
	disk := chunkstest.Disk(1, 300)
	held := sydney.holds(t, "v1", disk)
	var last Progress
	q := request(held.Digest, sydney.source())
	q.Progress = func(p Progress) { last = p }
	p := beijing.puller(t, nil)
	r := mustPull(t, p, q)
	if r.Chunks != held.NewChunks || r.Fetched != held.NewChunks || r.Present != 0 || r.StoredBytes != held.StoredBytes || r.Sources[0].Chunks != held.NewChunks {
		t.Fatalf("pulled %+v of %+v", r, held)
	}
	if last.BytesDone != last.BytesTotal || last.BytesTotal != held.NewBytes || last.SocketBytes != r.SocketBytes || last.Left != 0 {
		t.Fatalf("progress %+v", last)
	}
	// Both ends count the same bytes, but for the goodbyes of TLS that are still on their way. TLS and HTTP cost less
	// than a fiftieth.
	in, out := beijing.links.Bytes(Link{From: "sydney", To: "beijing"}), sydney.links.Bytes(Link{From: "sydney", To: "beijing"})
	if in-r.SocketBytes > 500 || in < r.StoredBytes || in > r.StoredBytes*51/50 || out < in || out-in > 500 {
		t.Fatalf("%d bytes stored, %d in, %d out", r.StoredBytes, in, out)
	}
	if up := beijing.links.Bytes(Link{From: "beijing", To: "sydney"}); up < int64(32*r.Chunks) || up > int64(32*r.Chunks)+15_000 {
		t.Fatalf("%d bytes for the requests of %d chunks", up, r.Chunks)
	}
	wantDisk(t, beijing.store, held.Digest, disk)
	if err := beijing.store.Publish(t.Context(), chunks.Root{Name: "v1", Owner: "copy", Indexes: []chunks.Digest{held.Digest}}); err != nil {
		t.Fatal(err)
	}
	// Again: nothing to fetch. Another version: only what differs.
	if again := mustPull(t, p, q); again.Fetched != 0 || again.SocketBytes != 0 || again.Present != again.Chunks {
		t.Fatalf("pulled again %+v", again)
	}
	next := bytes.Clone(disk)
	next[100*chunks.BlockSize+7] ^= 1
	v2 := sydney.holds(t, "v2", next)
	if r := mustPull(t, p, request(v2.Digest, sydney.source())); r.Fetched != 1 || r.SocketBytes > 200_000 {
		t.Fatalf("pulled the next version %+v", r)
	}
	wantDisk(t, beijing.store, v2.Digest, next)
}

func TestPullFromSeveral(t *testing.T) {
	a := newAuthority(t)
	beijing := newRegion(t, a, "beijing", nil)
	disk, other := chunkstest.Disk(2, 400), chunkstest.Disk(3, 50)
	var sources []Source
	var held, second chunks.IngestResult
	for _, name := range []string{"sydney", "chicago", "oslo"} {
		r := newRegion(t, a, name, nil)
		held, second = r.holds(t, "v1", disk), r.holds(t, "v2", other)
		sources = append(sources, r.source())
	}
	r := mustPull(t, beijing.puller(t, nil), PullRequest{Owner: "copy", Indexes: []chunks.Digest{held.Digest, second.Digest}, Sources: sources})
	for _, s := range r.Sources {
		if s.Chunks == 0 || s.Err != nil || s.SocketBytes == 0 || beijing.links.Bytes(Link{From: s.Region, To: "beijing"}) < s.SocketBytes {
			t.Fatalf("%s gave %+v", s.Region, s)
		}
	}
	wantDisk(t, beijing.store, held.Digest, disk)
	wantDisk(t, beijing.store, second.Digest, other)
}

func TestBadRequests(t *testing.T) {
	a := newAuthority(t)
	sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
	held := sydney.holds(t, "v1", chunkstest.Disk(4, 5))
	p := beijing.puller(t, nil)
	_, err := p.Pull(t.Context(), request(held.Digest))
	wantCode(t, err, SourceInvalid)
	for _, s := range []Source{{"sydney", "http://" + sydney.addr}, {"sydney", "https://"}, {"", sydney.source().URL}, {"beijing", "https://" + beijing.addr}, {"../x", sydney.source().URL}} {
		_, err := p.Pull(t.Context(), request(held.Digest, s))
		wantCode(t, err, SourceInvalid)
	}
	q := request(held.Digest, sydney.source())
	q.Owner = "nobody"
	_, err = p.Pull(t.Context(), q)
	wantCode(t, err, chunks.HoldUnknown)
	_, err = p.Pull(t.Context(), request(chunks.DigestOf([]byte("nothing")), sydney.source()))
	wantCode(t, err, chunks.IndexMissing)
	_, err = p.Pull(t.Context(), request("sha256:x", sydney.source()))
	wantCode(t, err, chunks.DigestInvalid)
	// The server, asked for nonsense.
	s, err := newSource(p.o, sydney.source())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for _, ids := range [][]chunks.ID{nil, make([]chunks.ID, MaxBatch+1)} {
		wantCode(t, s.fetchChunks(t.Context(), ids, make([]byte, chunks.MaxRecordSize), nil), RequestInvalid)
	}
	wantCode(t, s.fetchIndex(t.Context(), held.Digest, io.Discard, 10), SourceBad)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Pull(ctx, request(held.Digest, sydney.source())); err == nil || chunks.CodeOf(err) != "" {
		t.Fatalf("cancelled: %v", err)
	}
}

func TestWhoIsRefused(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
	held := sydney.holds(t, "v1", chunkstest.Disk(5, 5))
	hour := time.Now().Add(time.Hour)
	https := &url.URL{Scheme: "https", Host: "sydney"}
	with := func(pool *x509.CertPool, certs ...tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: pool, Certificates: certs}
	}
	// Clients that the server must refuse. Their configurations are put past NewPuller, which would not have them.
	for name, config := range map[string]*tls.Config{
		"no certificate":       with(a.pool()),
		"another authority":    with(a.pool(), other.issue(hour, RegionURI("beijing"))),
		"expired":              with(a.pool(), a.issue(time.Now().Add(-time.Minute), RegionURI("beijing"))),
		"no region":            with(a.pool(), a.issue(hour)),
		"a host":               with(a.pool(), a.issue(hour, https)),
		"two regions":          with(a.pool(), a.issue(hour, RegionURI("beijing"), RegionURI("sydney"))),
		"a path":               with(a.pool(), a.issue(hour, RegionURI("beijing/x"))),
		"a query":              with(a.pool(), a.issue(hour, &url.URL{Scheme: "tombolo", Host: "region", Path: "/beijing", RawQuery: "x"})),
		"server not trusted":   with(other.pool(), a.issue(hour, RegionURI("beijing"))),
		"older version of TLS": {RootCAs: a.pool(), Certificates: beijing.tls.Certificates, MaxVersion: tls.VersionTLS12},
	} {
		t.Run(name, func(t *testing.T) {
			p := beijing.puller(t, nil)
			p.o.TLS = config
			if name == "older version of TLS" {
				c, err := tls.Dial("tcp", sydney.addr, &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true, Certificates: config.Certificates})
				if err == nil {
					c.Close()
					t.Fatal("TLS 1.2 was accepted")
				}
				return
			}
			r, err := p.Pull(t.Context(), request(held.Digest, sydney.source()))
			wantCode(t, err, PeerRefused)
			if r.Fetched != 0 {
				t.Fatalf("%+v", r)
			}
		})
	}
	// A server that is not the region that was asked for.
	p := beijing.puller(t, nil)
	_, err := p.Pull(t.Context(), request(held.Digest, Source{Region: "chicago", URL: sydney.source().URL}))
	wantCode(t, err, PeerRefused)
	// A region that the server does not want.
	strict := serve(t, ServerOptions{Region: "sydney", Store: sydney.store, TLS: sydney.tls, Links: sydney.links, Allow: func(r string) error {
		return chunks.Errorf(PeerRefused, "not today, %s", r)
	}})
	_, err = p.Pull(t.Context(), request(held.Digest, Source{Region: "sydney", URL: "https://" + strict}))
	wantCode(t, err, PeerRefused)
	// Refused configurations.
	for name, config := range map[string]*tls.Config{
		"none": nil, "no authority": with(nil, a.issue(hour, RegionURI("beijing"))), "no certificate": with(a.pool()),
		"of another region": with(a.pool(), a.issue(hour, RegionURI("sydney"))),
	} {
		if _, err := NewPuller(Options{Region: "beijing", Store: beijing.store, TLS: config, Links: beijing.links}); chunks.CodeOf(err) != TLSInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := NewServer(ServerOptions{Region: "beijing", Store: beijing.store, TLS: config, Links: beijing.links}); chunks.CodeOf(err) != TLSInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tampered is a store that gives other bytes for some chunks, in records whose checksums are right.
type tampered struct {
	chunks.Store
	mu    sync.Mutex
	which func(chunks.ID) bool // called under mu
	gone  bool                 // the chunks are missing instead
}

func (s *tampered) ReadRecord(ctx context.Context, id chunks.ID, buf []byte) (chunks.Record, error) {
	rec, err := s.Store.ReadRecord(ctx, id, buf)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.which(id) {
		if s.gone {
			return chunks.Record{}, chunks.Errorf(chunks.ChunkMissing, "chunk %s", id)
		}
		rec.Payload = bytes.Clone(rec.Payload)
		rec.Payload[len(rec.Payload)/3] ^= 4
	}
	return rec, err
}

func TestBadSource(t *testing.T) {
	a := newAuthority(t)
	disk := chunkstest.Disk(6, 200)
	for _, c := range []struct {
		name string
		one  bool // only one chunk
		gone bool
	}{{"one bad chunk", true, false}, {"all bad", false, false}, {"one missing", true, true}, {"all missing", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			var bad *tampered
			var target chunks.ID
			sydney := newRegion(t, a, "sydney", func(s chunks.Store) chunks.Reader {
				bad = &tampered{Store: s, gone: c.gone, which: func(id chunks.ID) bool {
					if target.IsZero() { // the first that it is asked for
						target = id
					}
					return !c.one || id == target
				}}
				return bad
			})
			chicago, beijing := newRegion(t, a, "chicago", nil), newRegion(t, a, "beijing", nil)
			held := sydney.holds(t, "v1", disk)
			chicago.holds(t, "v1", disk)
			// Alone, the bad one is named.
			r, err := beijing.puller(t, nil).Pull(t.Context(), request(held.Digest, sydney.source()))
			if c.gone {
				wantCode(t, err, chunks.ChunkMissing)
			} else {
				wantCode(t, err, SourceBad)
				if !bytes.Contains([]byte(err.Error()), []byte("sydney")) || len(r.Sources[0].Bad) == 0 || c.one && !slices.Contains(r.Sources[0].Bad, target) {
					t.Fatalf("the bad source is not named: %v, %+v", err, r.Sources[0])
				}
			}
			if have, err := beijing.store.Has(t.Context(), []chunks.ID{target}); err != nil || have[0] {
				t.Fatalf("a bad chunk was stored: %v", err)
			}
			// With a good one beside it all comes.
			fresh := newRegion(t, a, "oslo", nil)
			bad.mu.Lock()
			target = chunks.ZeroID
			bad.mu.Unlock()
			r = mustPull(t, fresh.puller(t, nil), request(held.Digest, sydney.source(), chicago.source()))
			wantDisk(t, fresh.store, held.Digest, disk)
			switch first := r.Sources[0]; {
			case c.gone && first.Lacked == 0, !c.gone && len(first.Bad) == 0, c.name == "all bad" && chunks.CodeOf(first.Err) != SourceBad, c.one && first.Err != nil:
				t.Fatalf("sydney's result %+v", first)
			}
			if r.Sources[1].Err != nil || r.Sources[1].Bad != nil {
				t.Fatalf("chicago's result %+v", r.Sources[1])
			}
		})
	}
}

// lyingIndex gives the index of another disk.
type lyingIndex struct {
	chunks.Store
	other *chunks.DiskIndex
}

func (s lyingIndex) Acquire(context.Context, chunks.Digest) (*chunks.DiskIndex, func(), error) {
	return s.other, func() {}, nil
}

func TestBadIndex(t *testing.T) {
	a := newAuthority(t)
	disk := chunkstest.Disk(7, 20)
	b := chunks.NewIndexBuilder(0)
	empty, err := b.Index()
	if err != nil {
		t.Fatal(err)
	}
	sydney := newRegion(t, a, "sydney", func(s chunks.Store) chunks.Reader { return lyingIndex{s, empty} })
	chicago, beijing := newRegion(t, a, "chicago", nil), newRegion(t, a, "beijing", nil)
	held := sydney.holds(t, "v1", disk)
	chicago.holds(t, "v1", disk)
	p := beijing.puller(t, nil)
	_, err = p.Pull(t.Context(), request(held.Digest, sydney.source()))
	wantCode(t, err, SourceBad)
	r := mustPull(t, p, request(held.Digest, sydney.source(), chicago.source()))
	if chunks.CodeOf(r.Sources[0].Err) != SourceBad || r.Sources[0].Chunks != 0 {
		t.Fatalf("sydney's result %+v", r.Sources[0])
	}
	wantDisk(t, beijing.store, held.Digest, disk)
}

// slowStore lets a reader wait until it is let go.
type slowStore struct {
	chunks.Store
	entered chan struct{}
	release chan struct{}
}

func (s slowStore) ReadRecord(ctx context.Context, id chunks.ID, buf []byte) (chunks.Record, error) {
	select {
	case s.entered <- struct{}{}:
	case <-s.release:
	}
	<-s.release
	return s.Store.ReadRecord(ctx, id, buf)
}

func TestServerBusy(t *testing.T) {
	a := newAuthority(t)
	sydney, beijing := newRegion(t, a, "sydney", nil), newRegion(t, a, "beijing", nil)
	disk := chunkstest.Disk(8, 40)
	held := sydney.holds(t, "v1", disk)
	slow := slowStore{sydney.store, make(chan struct{}), make(chan struct{})}
	addr := serve(t, ServerOptions{Region: "sydney", Store: slow, TLS: sydney.tls, Links: sydney.links, MaxStreams: 1})
	p := beijing.puller(t, nil)
	s, err := newSource(p.o, Source{"sydney", "https://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	done := make(chan error, 1)
	go func() {
		done <- s.fetchChunks(t.Context(), held.Index.DataIDs()[:1], make([]byte, chunks.MaxRecordSize), func(int, *chunks.Record) error { return nil })
	}()
	<-slow.entered
	wantCode(t, s.fetchIndex(t.Context(), held.Digest, io.Discard, 1<<20), ServerBusy)
	// A transfer that finds it busy waits for its turn.
	pulled := make(chan error, 1)
	go func() {
		_, err := p.Pull(t.Context(), request(held.Digest, Source{Region: "sydney", URL: "https://" + addr}))
		pulled <- err
	}()
	close(slow.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	wantDisk(t, beijing.store, held.Digest, disk)
}
