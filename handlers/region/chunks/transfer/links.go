package transfer

import (
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Link is one direction between two regions. From or To is "" for peers that never said who they are.
type Link struct{ From, To string }

// LinkCount is what passed over a link, in bytes at the socket: requests, TLS and all.
type LinkCount struct {
	Link
	Bytes int64
	Cap   int64 // bytes a second; 0 where there is none
}

// Links counts and caps what a region's process moves, for all servers and pullers that share it. It is safe for
// concurrent use. A cap holds at this end: of a link that leads here it slows the reading, and the sender by TCP, after
// the socket buffers are full; of a link that leads away it paces the sending to the byte.
type Links struct {
	self  string
	clock clock

	mu    sync.Mutex
	links map[Link]*link
}

type link struct {
	bytes atomic.Int64
	cap   atomic.Int64
	// limiter has tokens of one byte; its burst bounds what is moved at once.
	limiter *rate.Limiter
}

// clock is the time that caps are held by.
type clock interface {
	now() time.Time
	until(ctx context.Context, t time.Time) error // waits
}

type realClock struct{}

func (realClock) now() time.Time { return time.Now() }
func (realClock) until(ctx context.Context, at time.Time) error {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// NewLinks makes the links of region self.
func NewLinks(self string) *Links {
	return &Links{self: self, clock: realClock{}, links: map[Link]*link{}}
}

const minBurst = 16 << 10

// SetCap limits a link from now on, for open connections too; 0 lifts the limit. Error: range-invalid.
func (l *Links) SetCap(k Link, bytesPerSecond int64) error {
	if bytesPerSecond < 0 || k.From != l.self && k.To != l.self {
		return chunks.Errorf(chunks.RangeInvalid, "a cap of %d bytes a second from %q to %q, in region %s", bytesPerSecond, k.From, k.To, l.self)
	}
	lk := l.link(k)
	l.mu.Lock()
	defer l.mu.Unlock()
	lk.cap.Store(bytesPerSecond)
	if bytesPerSecond == 0 {
		lk.limiter.SetLimitAt(l.clock.now(), rate.Inf)
		return nil
	}
	// A burst of 20 ms keeps the rate even; below 16 KiB the wakings would cost more than they are worth.
	lk.limiter.SetBurstAt(l.clock.now(), int(max(minBurst, min(bytesPerSecond/50, 1<<20))))
	lk.limiter.SetLimitAt(l.clock.now(), rate.Limit(bytesPerSecond))
	return nil
}

// Counts lists all links that were used or capped, sorted.
func (l *Links) Counts() []LinkCount {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []LinkCount
	for k, lk := range l.links {
		out = append(out, LinkCount{Link: k, Bytes: lk.bytes.Load(), Cap: lk.cap.Load()})
	}
	slices.SortFunc(out, func(a, b LinkCount) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return out
}

// Bytes gives the count of one link.
func (l *Links) Bytes(k Link) int64 { return l.link(k).bytes.Load() }

func (l *Links) link(k Link) *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	lk := l.links[k]
	if lk == nil {
		lk = &link{limiter: rate.NewLimiter(rate.Inf, minBurst)}
		l.links[k] = lk
	}
	return lk
}

// wait pays for n bytes.
func (l *Links) wait(ctx context.Context, lk *link, n int) error {
	for n > 0 {
		if lk.limiter.Limit() == rate.Inf {
			return nil
		}
		part := min(n, lk.limiter.Burst())
		now := l.clock.now()
		r := lk.limiter.ReserveN(now, part)
		if !r.OK() { // the burst shrank meanwhile
			continue
		}
		if d := r.DelayFrom(now); d > 0 {
			if err := l.clock.until(ctx, now.Add(d)); err != nil {
				return err
			}
		}
		n -= part
	}
	return nil
}

// errStalled is the cause of a connection that ended because no byte moved.
var errStalled = errors.New("no byte moved in the time allowed")

// stalls are how long a connection waits for a byte to move; 0 leaves it to others.
type stalls struct{ read, write time.Duration }

// conn counts, caps and watches a connection, below TLS.
type conn struct {
	net.Conn
	links *Links
	stall stalls
	also  *atomic.Int64 // bytes read, for one transfer; may be nil
	ctx   context.Context
	end   context.CancelFunc

	mu      sync.Mutex
	in, out *link
	read    int64 // until the peer is known
	written int64
}

// wrap makes a conn of a peer that is not known yet.
func (l *Links) wrap(c net.Conn, stall stalls, also *atomic.Int64) *conn {
	ctx, end := context.WithCancel(context.Background())
	return &conn{Conn: c, links: l, stall: stall, also: also, ctx: ctx, end: end,
		in: l.link(Link{From: "", To: l.self}), out: l.link(Link{From: l.self, To: ""})}
}

// identify tells who the peer is, whose the bytes of the handshake are then.
func (c *conn) identify(region string) {
	in, out := c.links.link(Link{From: region, To: c.links.self}), c.links.link(Link{From: c.links.self, To: region})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in.bytes.Add(-c.read)
	in.bytes.Add(c.read)
	c.out.bytes.Add(-c.written)
	out.bytes.Add(c.written)
	c.in, c.out, c.read, c.written = in, out, 0, 0
}

func (c *conn) ends() (in, out *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.in, c.out
}

// count adds bytes that moved.
func (c *conn) count(read, written int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in.bytes.Add(int64(read))
	c.out.bytes.Add(int64(written))
	c.read += int64(read)
	c.written += int64(written)
}

// Read waits for a byte as long as the stall allows; waiting for the cap is not a stall.
func (c *conn) Read(p []byte) (int, error) {
	in, _ := c.ends()
	if in.limiter.Limit() != rate.Inf {
		p = p[:min(len(p), in.limiter.Burst())]
	}
	if c.stall.read > 0 {
		if err := c.Conn.SetReadDeadline(time.Now().Add(c.stall.read)); err != nil {
			return 0, err
		}
	}
	n, err := c.Conn.Read(p)
	c.count(n, 0)
	if c.also != nil {
		c.also.Add(int64(n))
	}
	if werr := c.links.wait(c.ctx, in, n); werr != nil && err == nil {
		err = werr
	}
	return n, explain(err, c.stall.read)
}

// Write pays before it sends.
func (c *conn) Write(p []byte) (int, error) {
	_, out := c.ends()
	done := 0
	for done < len(p) {
		part := p[done:]
		if out.limiter.Limit() != rate.Inf {
			part = part[:min(len(part), out.limiter.Burst())]
		}
		if err := c.links.wait(c.ctx, out, len(part)); err != nil {
			return done, err
		}
		if c.stall.write > 0 {
			if err := c.Conn.SetWriteDeadline(time.Now().Add(c.stall.write)); err != nil {
				return done, err
			}
		}
		// Counted first: who got the bytes must not find them uncounted.
		c.count(0, len(part))
		n, err := c.Conn.Write(part)
		c.count(0, n-len(part))
		done += n
		if err != nil {
			return done, explain(err, c.stall.write)
		}
	}
	return done, nil
}

// explain marks a deadline of ours. Those of others pass as they are: http.Server ends reads with them, and TLS goes on
// after an error only where it sees that it is a time-out.
func explain(err error, stall time.Duration) error {
	if stall > 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.Join(errStalled, err)
	}
	return err
}

// Close wakes who waits for the cap.
func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}
