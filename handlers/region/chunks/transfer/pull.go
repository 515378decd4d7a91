package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Options are what a Puller needs.
type Options struct {
	Region string       // who pulls
	Store  chunks.Store // where to
	// TLS holds the region's certificate and, as RootCAs, the authorities of the regions' certificates.
	TLS *tls.Config
	// Links counts and caps; one for the whole process.
	Links *Links
	// Scratch is a folder for indexes on their way: the system's where empty.
	Scratch string
	// Connections to each source: 4 where 0. No more than 16 workers are used in all, each with about 2 MiB of memory.
	Connections int
	// Stall is how long a source may send nothing before another gets its work: 10 s where 0.
	Stall time.Duration
	// MaxIndexBytes bounds an encoded index: 256 MiB where 0, enough for 512 GiB of data.
	MaxIndexBytes int64
}

// Puller fetches disks from other regions. It is safe for concurrent use.
type Puller struct{ o Options }

// PullRequest says what to fetch.
type PullRequest struct {
	// Owner has a hold in the store; what is fetched stays under it. The caller makes the hold outlast the transfer, and
	// publishes afterwards.
	Owner   string
	Indexes []chunks.Digest
	Sources []Source // verified holders, nearest first; at most 64. None is well as long as the store lacks nothing.
	// Progress is called a few times a second, by one goroutine at a time, and at the end.
	Progress func(Progress)
}

// Progress is how far a transfer is.
type Progress struct {
	BytesDone, BytesTotal int64         // raw bytes of the chunks that lacked at the start
	SocketBytes           int64         // read from all sources
	Rate                  float64       // raw bytes a second, over the last seconds
	Left                  time.Duration // at that rate; 0 where it is not known
}

// Result is what a transfer did. Where it failed it tells what was done until then.
type Result struct {
	Chunks      int   // distinct, of all disks
	Present     int   // of these, in the store before: after an interrupted transfer, too
	Fetched     int   // stored by this one
	RawBytes    int64 // of the fetched
	StoredBytes int64
	SocketBytes int64 // read from all sources, TLS and all
	Duration    time.Duration
	Sources     []SourceResult // in the order of the request
}

// SourceResult is what one source gave.
type SourceResult struct {
	Source
	Chunks      int
	SocketBytes int64
	Lacked      int         // chunks that it did not have
	Bad         []chunks.ID // chunks of which it sent a bad copy
	Err         error       // why it was not used to the end, nil where it was
}

// NewPuller checks the options. Error: tls-invalid.
func NewPuller(o Options) (*Puller, error) {
	if err := checkConfig(o.TLS, o.Region); err != nil {
		return nil, err
	}
	if o.Connections <= 0 {
		o.Connections = 4
	}
	if o.Stall <= 0 {
		o.Stall = 10 * time.Second
	}
	if o.MaxIndexBytes <= 0 {
		o.MaxIndexBytes = 256 << 20
	}
	return &Puller{o: o}, nil
}

const (
	maxWorkers = 16
	// A source is out after so many failures of one connection in a row, with a pause between them that begins with
	// firstPause and doubles; or after so many bad chunks.
	maxFailures = 5
	maxBusy     = 60 // answers that it is busy, a second apart
	maxBad      = 3
	firstPause  = 100 * time.Millisecond
	busyPause   = time.Second
	// checkpointBytes are stored between two points from which a transfer goes on even after a power cut.
	checkpointBytes = 256 << 20
	progressEvery   = 250 * time.Millisecond
)

// Pull fetches the chunks that the store lacks of disks, checks each against its hash, stores them under the owner's
// hold and makes them durable. Nothing is published: the caller verifies (chunks.Verify) and publishes. After any
// interruption the same call goes on where it was: a chunk that was stored is not fetched again.
//
// Errors: source-invalid; hold-unknown; chunk-missing (no source has it); source-bad (no source has a good copy, or a
// good index); peer-refused, transfer-stalled, transfer-failed (no source is left; of the last failures the most telling
// gives the code); the context's; those of the store.
func (p *Puller) Pull(ctx context.Context, req PullRequest) (Result, error) {
	began := time.Now()
	if len(req.Sources) > 64 {
		return Result{}, chunks.Errorf(SourceInvalid, "%d sources; at most 64 are wanted", len(req.Sources))
	}
	t := &transfer{Puller: p, req: req, bad: make([]int, len(req.Sources))}
	for _, s := range req.Sources {
		src, err := newSource(p.o, s)
		if err != nil {
			return Result{}, err
		}
		defer src.close()
		t.sources = append(t.sources, src)
		t.result.Sources = append(t.result.Sources, SourceResult{Source: s})
	}
	session, err := p.o.Store.Begin(ctx, req.Owner)
	if err != nil {
		return Result{}, err
	}
	defer session.Close()
	t.session = session
	err = t.run(ctx)
	t.result.Duration = time.Since(began)
	for i, s := range t.sources {
		t.result.Sources[i].SocketBytes = s.socket.Load()
		t.result.SocketBytes += s.socket.Load()
	}
	return t.result, err
}

// transfer is one Pull.
type transfer struct {
	*Puller
	req     PullRequest
	sources []*source
	session chunks.Session
	disks   []*chunks.DiskIndex
	queue   *queue
	lengths []int32 // raw, of queue.ids

	mu         sync.Mutex
	result     Result
	bad        []int
	unsafe     int64 // bytes stored since the last checkpoint
	fatal      error // of the store
	progress   progress
	totalBytes int64
}

func (t *transfer) run(ctx context.Context) error {
	for _, d := range t.req.Indexes {
		x, err := t.index(ctx, d)
		if err != nil {
			return err
		}
		// Under the hold from the start, so that what is stored of it survives this process.
		if _, err := t.session.Attach(ctx, x); err != nil {
			return err
		}
		t.disks = append(t.disks, x)
	}
	lacking, err := t.lacking(ctx)
	if err != nil {
		return err
	}
	t.progress = newProgress(time.Now(), t.totalBytes)
	t.queue = newQueue(lacking, len(t.sources), time.Now)
	for i := range t.sources {
		if t.result.Sources[i].Err != nil {
			t.queue.drop(i)
		}
	}
	if len(lacking) > 0 {
		if len(t.sources) == 0 {
			return chunks.Errorf(SourceInvalid, "%d chunks lack, and no source was named", len(lacking))
		}
		if err := t.fetch(ctx); err != nil {
			return err
		}
	}
	if err := t.checkpoint(ctx); err != nil {
		return err
	}
	t.report(true)
	return nil
}

// index gives a disk index: the store's own, or one fetched to scratch, checked against its digest.
func (t *transfer) index(ctx context.Context, d chunks.Digest) (*chunks.DiskIndex, error) {
	x, err := t.o.Store.Index(ctx, d)
	if err == nil || chunks.CodeOf(err) != chunks.IndexMissing && chunks.CodeOf(err) != chunks.StoreDamaged {
		return x, err
	}
	if len(t.sources) == 0 {
		return nil, chunks.Errorf(SourceInvalid, "the index %s lacks, and no source was named", d)
	}
	var errs []error
	for i, s := range t.sources {
		if t.result.Sources[i].Err != nil {
			continue
		}
		x, err := t.fetchIndex(ctx, s, d)
		for busy := 0; chunks.CodeOf(err) == ServerBusy && busy < maxBusy; busy++ {
			if err = pause(ctx, busyPause); err == nil {
				x, err = t.fetchIndex(ctx, s, d)
			}
		}
		if err == nil {
			return x, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		errs = append(errs, err)
		// Without a second try: there are others, and the same Pull can be repeated.
		if chunks.CodeOf(err) != chunks.IndexMissing {
			t.result.Sources[i].Err = err
		}
	}
	if len(errs) == 0 {
		errs = t.sourceErrors()
	}
	return nil, failed(errs, "fetch disk index "+string(d))
}

func (t *transfer) fetchIndex(ctx context.Context, s *source, d chunks.Digest) (_ *chunks.DiskIndex, err error) {
	f, err := os.CreateTemp(t.o.Scratch, "index-*.partial")
	if err != nil {
		return nil, chunks.Wrap(TransferFailed, err, "scratch for disk index %s", d)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if err := s.fetchIndex(ctx, d, f, t.o.MaxIndexBytes); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, 0); err != nil {
		return nil, chunks.Wrap(TransferFailed, err, "scratch for disk index %s", d)
	}
	x, got, err := chunks.DecodeIndex(f)
	if err != nil || got != d {
		return nil, chunks.Wrap(SourceBad, err, "region %s sent %q for disk index %s", s.Region, got, d)
	}
	return x, nil
}

// lacking gives the chunks to fetch, each once, in the disks' order, and protects those that are here.
func (t *transfer) lacking(ctx context.Context) ([]chunks.ID, error) {
	var out []chunks.ID
	seen := map[chunks.ID]struct{}{}
	for _, x := range t.disks {
		for run := range x.Runs() {
			first := run.First
			for ids := range slices.Chunk(run.IDs, 4096) {
				have, err := t.session.Touch(ctx, ids)
				if err != nil {
					return nil, err
				}
				for i, id := range ids {
					if _, twice := seen[id]; twice {
						continue
					}
					seen[id] = struct{}{}
					if have[i] {
						continue
					}
					n := x.BlockLen(first + int64(i))
					out = append(out, id)
					t.lengths = append(t.lengths, int32(n))
					t.totalBytes += int64(n)
				}
				first += int64(len(ids))
			}
		}
	}
	t.result.Chunks, t.result.Present = len(seen), len(seen)-len(out)
	return out, nil
}

// fetch runs the workers, spread over the sources, nearest first.
func (t *transfer) fetch(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conns := max(1, min(t.o.Connections, maxWorkers/len(t.sources)))
	want := min(max(len(t.queue.ids)/(4*conns*len(t.sources)), minBatch), maxBatch)
	var workers sync.WaitGroup
	for range conns {
		for i := range t.sources {
			workers.Go(func() {
				if err := t.work(ctx, i, want); err != nil {
					cancel(err) // of the store: others need not go on
				}
			})
		}
	}
	workers.Wait()
	nobody, left := t.queue.without()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case left == 0:
		return nil
	case len(nobody) > 0:
		return t.nobodyHas(nobody)
	}
	return failed(t.sourceErrors(), "copy chunks")
}

func (t *transfer) nobodyHas(nobody []chunks.ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.result.Sources {
		if i := slices.IndexFunc(nobody, func(id chunks.ID) bool { return slices.Contains(r.Bad, id) }); i >= 0 {
			return chunks.Errorf(SourceBad, "region %s sent a bad copy of chunk %s, and no other source has a good one", r.Region, nobody[i])
		}
	}
	return chunks.Errorf(chunks.ChunkMissing, "no source has chunk %s, and %d more", nobody[0], len(nobody)-1)
}

func (t *transfer) sourceErrors() []error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, r := range t.result.Sources {
		if r.Err != nil {
			errs = append(errs, r.Err)
		}
	}
	return errs
}

// failed joins the failures of all sources under the most telling code.
func failed(errs []error, doing string) error {
	code := TransferFailed
	for _, c := range []chunks.Code{SourceBad, PeerRefused, TransferStalled, chunks.IndexMissing} {
		if slices.ContainsFunc(errs, func(err error) bool { return chunks.CodeOf(err) == c }) {
			code = c
			break
		}
	}
	return chunks.Wrap(code, errors.Join(errs...), "%s: no source is left", doing)
}

// work is one connection's life; its error is the store's.
func (t *transfer) work(ctx context.Context, i, want int) error {
	codec, buf := chunks.NewCodec(), make([]byte, chunks.MaxRecordSize)
	failures, busy := 0, 0
	for {
		b := t.queue.take(ctx, i, want)
		if b == nil {
			return nil
		}
		err := t.batch(ctx, i, b, codec, buf)
		came := b.next > 0
		t.queue.finish(b)
		if err := t.storeFailed(); err != nil {
			return err
		}
		if came {
			failures, busy = 0, 0
		}
		wait := firstPause << failures
		switch code := chunks.CodeOf(err); {
		case err == nil || errors.Is(err, errEnough) || ctx.Err() != nil:
			continue
		case code == ServerBusy:
			busy++
			wait = busyPause
		default:
			failures++
		}
		if t.out(i, err, failures >= maxFailures || busy >= maxBusy) {
			t.queue.drop(i)
			return nil
		}
		if err := pause(ctx, wait); err != nil {
			return nil // whoever ended the context tells why
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errEnough ends an answer whose rest another worker took over, or is out of date.
var errEnough = errors.New("the rest of the answer is not wanted")

func (t *transfer) batch(ctx context.Context, i int, b *batch, codec *chunks.Codec, buf []byte) error {
	s, ids := t.sources[i], t.queue.idsOf(b)
	return s.fetchChunks(ctx, ids, buf, func(n int, rec *chunks.Record) error {
		more := false
		switch sealed, err := check(codec, rec, ids[n], int(t.lengths[b.items[n]])); {
		case rec == nil:
			t.mu.Lock()
			t.result.Sources[i].Lacked++
			t.mu.Unlock()
			more = t.queue.lacks(b)
		case err != nil:
			if t.sentBad(i, ids[n]) {
				t.queue.lacks(b)
				return chunks.Wrap(SourceBad, err, "region %s sent bad chunks, the last is %s", s.Region, ids[n])
			}
			more = t.queue.lacks(b)
		default:
			stored, err := t.session.Put(ctx, sealed)
			if err == nil {
				err = t.stored(ctx, i, int64(t.lengths[b.items[n]]), stored)
			}
			if err != nil {
				return t.stop(err)
			}
			more = t.queue.arrived(b)
		}
		if !more && n+1 < len(ids) {
			return errEnough
		}
		return nil
	})
}

// check proves that a record is the chunk that was asked for.
func check(codec *chunks.Codec, rec *chunks.Record, id chunks.ID, length int) (chunks.Sealed, error) {
	switch {
	case rec == nil:
		return chunks.Sealed{}, nil
	case rec.ID != id || rec.RawLen != length:
		return chunks.Sealed{}, chunks.Errorf(chunks.ChunkDamaged, "chunk %s of %d bytes came instead of %s of %d", rec.ID, rec.RawLen, id, length)
	}
	return codec.Verify(*rec)
}

// stored counts a chunk that came, and makes a checkpoint now and then.
func (t *transfer) stored(ctx context.Context, i int, raw, stored int64) error {
	t.mu.Lock()
	t.result.Sources[i].Chunks++
	t.result.Fetched++
	t.result.RawBytes += raw
	t.result.StoredBytes += stored
	t.unsafe += stored
	due := t.unsafe >= checkpointBytes
	if due {
		t.unsafe = 0
	}
	t.mu.Unlock()
	t.report(false)
	if due {
		return t.checkpoint(ctx)
	}
	return nil
}

// checkpoint makes what is stored durable.
func (t *transfer) checkpoint(ctx context.Context) error {
	for _, x := range t.disks {
		if _, err := t.session.Attach(ctx, x); err != nil {
			return err
		}
	}
	return nil
}

// sentBad says whether a source sent so much that is bad that it is out.
func (t *transfer) sentBad(i int, id chunks.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result.Sources[i].Bad = append(t.result.Sources[i].Bad, id)
	t.bad[i]++
	return t.bad[i] >= maxBad
}

// out says whether a failure takes a source out, and notes it then.
func (t *transfer) out(i int, err error, often bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	code := chunks.CodeOf(err)
	// These do not get better by themselves, and a stall has cost its time already.
	out := often || code == SourceBad || code == PeerRefused || code == TransferStalled
	if out && t.result.Sources[i].Err == nil {
		t.result.Sources[i].Err = err
	}
	return out
}

// stop notes a failure of the store, which ends the transfer.
func (t *transfer) stop(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fatal == nil {
		t.fatal = err
	}
	return err
}

func (t *transfer) storeFailed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fatal
}

func (t *transfer) report(last bool) {
	if t.req.Progress == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var socket int64
	for _, s := range t.sources {
		socket += s.socket.Load()
	}
	if p, due := t.progress.at(time.Now(), t.result.RawBytes, socket, last); due {
		t.req.Progress(p)
	}
}
