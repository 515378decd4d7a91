package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

const (
	uploadRange   = 8 << 20 // bytes of one request
	uploadWorkers = 4       // requests at once
	uploadTries   = 8       // of one request, over a connection that breaks
)

// pending is what uploading needs to know of an environment.
type pending struct {
	ID      string          `json:"id"`
	Region  events.RegionID `json:"region"`
	State   string          `json:"state"`
	Uploads []api.Upload    `json:"uploads"`
}

// uploadPatience is how long the region's agent is waited for.
const uploadPatience = time.Minute

// upload sends the disks that the environment still waits for. After a
// *contentError the environment will never come to be: abandon it.
func (c *client) upload(ctx context.Context, id string, disks map[string]diskSource) error {
	if len(disks) == 0 {
		return nil
	}
	to, err := c.awaitAgent(ctx, id)
	if err != nil || len(to.Uploads) == 0 {
		return err
	}
	meter := newMeter(c.app, to.Region, "uploading")
	for _, u := range to.Uploads {
		meter.total += u.Bytes
	}
	at := &entrance{client: c, ticket: to.Uploads[0].Ticket, fetch: func(ctx context.Context) (string, error) { return c.uploadTicket(ctx, id) }}
	for _, u := range to.Uploads {
		from, ok := disks[u.Disk]
		if !ok {
			return fail(exitError, "disk-unknown", "the environment waits for a disk %s that is not here", u.Disk)
		}
		if err := at.uploadDisk(ctx, u, from, meter); err != nil {
			return err
		}
	}
	return nil
}

// abandon deletes an environment that is of no use any more, because of err or
// because all is done, and gives back err.
func (c *client) abandon(ctx context.Context, id string, err error) error {
	ctx = context.WithoutCancel(ctx) // an interrupted command leaves nothing either
	c.app.key, c.app.revision = "", 0
	_, accepted, derr := c.write(ctx, http.MethodDelete, envPath(id), nil)
	if derr == nil {
		derr = c.await(ctx, accepted.Operation)
	}
	if derr == nil {
		return err
	}
	if err == nil {
		return derr
	}
	var f *failure
	if !errors.As(failed(err), &f) {
		return err
	}
	left := *f
	return left.withNext("environment %s could not be deleted (%v): tombolo env delete %s", id, derr, id)
}

// awaitAgent waits until the region can be reached and waits for the disks; an
// environment that has them already needs none.
func (c *client) awaitAgent(ctx context.Context, id string) (pending, error) {
	deadline := time.Now().Add(uploadPatience)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		b, err := c.read(ctx, envPath(id), nil)
		if err != nil {
			return pending{}, err
		}
		var e pending
		if err := json.Unmarshal(b, &e); err != nil {
			return e, err
		}
		if e.State != "declaring" && e.State != "receiving" || e.State == "receiving" && len(e.Uploads) > 0 {
			return e, nil
		}
		if time.Now().After(deadline) {
			f := fail(exitRunning, "region-not-ready", "%s does not take the disks of environment %s in yet", e.Region, id)
			f.Where = "region " + string(e.Region)
			return e, f.withNext("is its agent running (tombolo region show %s)? then the same command with --idempotency-key goes on, or: tombolo env delete %s", e.Region, id)
		}
		select {
		case <-ctx.Done():
			return e, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// piece is a part of a disk that holds data.
type piece struct {
	at   int64
	data []byte
}

// uploadDisk sends what a disk holds; zeros are not sent.
func (at *entrance) uploadDisk(ctx context.Context, u api.Upload, from diskSource, m *meter) error {
	disk, err := from.Open(ctx)
	if err != nil {
		return &contentError{err}
	}
	defer disk.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pieces := make(chan piece)
	var workers sync.WaitGroup
	for range uploadWorkers {
		workers.Go(func() {
			for p := range pieces {
				if err := at.put(ctx, u, p); err != nil {
					cancel(err)
					return
				}
				m.sent(int64(len(p.data)))
			}
		})
	}
	err = eachPiece(ctx, disk, u.Bytes, m.skipped, func(p piece) error {
		select {
		case pieces <- p:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(pieces)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if broken, ok := errors.AsType[*contentError](err); ok {
		if changed := disk.Unchanged(ctx); changed != nil { // says better what is wrong
			broken = &contentError{changed}
		}
		return broken
	}
	if f, ok := errors.AsType[*failure](err); ok && f.Code == "upload-complete" {
		return nil // an earlier run of this command had sent it
	}
	if err != nil {
		return err
	}
	if err := disk.Unchanged(ctx); err != nil {
		return &contentError{err}
	}
	return at.client.retrying(ctx, func() error {
		_, err := at.send(ctx, http.MethodPost, u.URL+"/complete", nil, nil)
		return err
	})
}

// eachPiece reads the parts of a disk that hold data. What fails here fails for
// good: a *contentError.
func eachPiece(ctx context.Context, disk diskContent, size int64, skipped func(int64), each func(piece) error) error {
	at := int64(0)
	for extent, err := range disk.Extents(ctx) {
		if err != nil {
			return &contentError{err}
		}
		skipped(extent.Offset - at)
		at = extent.Offset + extent.Length
		for from := extent.Offset; from < at; {
			p := piece{from, make([]byte, min(uploadRange, at-from))}
			if n, err := disk.ReadAt(p.data, from); n < len(p.data) {
				return &contentError{fmt.Errorf("read %d of %d bytes at %d: %w", n, len(p.data), from, err)}
			}
			from += int64(len(p.data))
			if len(bytes.TrimLeft(p.data, "\x00")) == 0 {
				skipped(int64(len(p.data)))
				continue
			}
			if err := each(p); err != nil {
				return err
			}
		}
	}
	skipped(size - at)
	return nil
}

// put sends one range.
func (at *entrance) put(ctx context.Context, u api.Upload, p piece) error {
	return at.client.retrying(ctx, func() error {
		_, err := at.send(ctx, http.MethodPut, u.URL, p.data, map[string]string{
			"Content-Range": fmt.Sprintf("bytes %d-%d/%d", p.at, p.at+int64(len(p.data))-1, u.Bytes)})
		return err
	})
}

// retrying tries again over a broken connection, and while the region is not so
// far yet.
func (c *client) retrying(ctx context.Context, try func() error) error {
	for n, pause := 1, 50*time.Millisecond; ; n, pause = n+1, min(2*pause, 5*time.Second) {
		err := try()
		f, ok := errors.AsType[*failure](err)
		again := ok && slices.Contains([]string{"server-unreachable", "upload-cut", "upload-not-wanted", "behind", "environment-busy", string(trust.TicketExpired)}, f.Code)
		if err == nil || !again || n == uploadTries {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// meter shows how far disks are on their way from here to a region, or back.
type meter struct {
	bars   *bars
	region events.RegionID
	step   string
	start  time.Time

	mu    sync.Mutex
	total int64
	done  int64 // holes included
	wire  int64 // really sent or received
	shown time.Time
}

func newMeter(a *app, at events.RegionID, step string) *meter {
	return &meter{bars: &bars{app: a, rows: map[string]region.Progress{}}, region: at, step: step, start: time.Now()}
}

func (m *meter) sent(n int64)     { m.add(n, n) }
func (m *meter) received(n int64) { m.add(n, n) }
func (m *meter) skipped(n int64)  { m.add(n, 0) }

// meterPause is the least time between two reports.
const meterPause = 500 * time.Millisecond

func (m *meter) add(n, wire int64) {
	if n == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	m.wire += wire
	now := time.Now()
	if now.Sub(m.shown) < meterPause && m.done < m.total || m.bars.app.quiet {
		return
	}
	m.shown = now
	// The total is what the disks hold, each chunk once; who writes a package reads some of them again.
	t := region.Progress{Region: m.region, Step: m.step, Done: m.done, Total: max(m.total, m.done), Rate: float64(m.wire) / now.Sub(m.start).Seconds()}
	if t.Rate > 0 {
		t.Left = time.Duration(float64(t.Total-t.Done) / t.Rate * float64(time.Second))
	}
	m.bars.report(t)
}
