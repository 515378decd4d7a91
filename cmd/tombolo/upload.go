package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
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

// upload sends the disks that the environment still waits for. If a file changes
// meanwhile the environment is deleted: it would be neither the old nor the new.
func (c *client) upload(ctx context.Context, id string, disks map[string]localDisk) error {
	if len(disks) == 0 {
		return nil
	}
	to, err := c.awaitAgent(ctx, id)
	if err != nil || len(to.Uploads) == 0 {
		return err
	}
	meter := &meter{bars: &bars{app: c.app, rows: map[string]api.Transfer{}}, region: to.Region, start: time.Now()}
	for _, u := range to.Uploads {
		meter.total += u.Bytes
	}
	for _, u := range to.Uploads {
		local, ok := disks[u.Disk]
		if !ok {
			return fail(exitError, "disk-unknown", "the environment waits for a disk %s that the file does not have", u.Disk)
		}
		err := c.uploadDisk(ctx, u, local, meter)
		if f, ok := errors.AsType[*failure](err); ok && f.Code == "disk-changed" {
			if _, _, derr := c.write(ctx, http.MethodDelete, envPath(id), nil); derr != nil {
				f.Next = fmt.Sprintf("environment %s could not be deleted either (%v): tombolo env delete %s", id, derr, id)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
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
type piece struct{ first, last int64 }

// uploadDisk sends what a file holds; its holes are not sent.
func (c *client) uploadDisk(ctx context.Context, u api.Upload, local localDisk, m *meter) error {
	f, err := os.Open(local.path)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pieces := make(chan piece)
	var workers sync.WaitGroup
	for range uploadWorkers {
		workers.Go(func() {
			for p := range pieces {
				if err := c.put(ctx, u, f, p); err != nil {
					cancel(err)
					return
				}
				m.sent(p.last - p.first + 1)
			}
		})
	}
	err = eachPiece(f, u.Bytes, func(p piece) error {
		select {
		case pieces <- p:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}, m.skipped)
	close(pieces)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err == nil {
		err = unchanged(f, local)
	}
	if err != nil {
		if f, ok := errors.AsType[*failure](err); ok && f.Code == "upload-complete" {
			return nil // an earlier run of this command had sent it
		}
		return err
	}
	return c.retrying(ctx, func() error {
		r, err := c.bearer(ctx, http.MethodPost, u.URL+"/complete", nil)
		if err != nil {
			return err
		}
		_, _, err = c.send(r)
		return err
	})
}

// unchanged compares the file with what it was when its size was taken.
func unchanged(f *os.File, local localDisk) error {
	now, err := f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(local.path)
	if err != nil || !os.SameFile(there, local.info) || now.Size() != local.info.Size() || !now.ModTime().Equal(local.info.ModTime()) {
		return fail(exitError, "disk-changed", "%s changed while it was read; the environment is not made", local.path).withNext("stop what writes to it, then make the environment again")
	}
	return nil
}

// Whence of lseek(2) that finds data and holes.
const (
	seekData = 3
	seekHole = 4
)

// eachPiece goes through the parts of a file that hold data. A file system that
// does not know holes gives the whole file.
func eachPiece(f *os.File, size int64, each func(piece) error, hole func(int64)) error {
	for at := int64(0); at < size; {
		data, err := f.Seek(at, seekData)
		switch {
		case errors.Is(err, syscall.ENXIO): // nothing but a hole up to the end
			hole(size - at)
			return nil
		case errors.Is(err, syscall.EINVAL):
			data = at
		case err != nil:
			return err
		}
		end, err := f.Seek(data, seekHole)
		if err != nil {
			end = size
		}
		data, end = min(data, size), min(end, size)
		hole(data - at)
		for first := data; first < end; first += uploadRange {
			if err := each(piece{first, min(first+uploadRange, end) - 1}); err != nil {
				return err
			}
		}
		at = end
	}
	return nil
}

// put sends one range.
func (c *client) put(ctx context.Context, u api.Upload, f *os.File, p piece) error {
	return c.retrying(ctx, func() error {
		n := p.last - p.first + 1
		r, err := c.bearer(ctx, http.MethodPut, u.URL, io.NewSectionReader(f, p.first, n))
		if err != nil {
			return err
		}
		r.ContentLength = n
		r.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", p.first, p.last, u.Bytes))
		_, _, err = c.send(r)
		return err
	})
}

// bearer makes a request to a region itself.
func (c *client) bearer(ctx context.Context, method, target string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+c.context.Token)
	return r, nil
}

// retrying tries again over a broken connection, and while the region has not
// heard yet that it is to take something in.
func (c *client) retrying(ctx context.Context, try func() error) error {
	for n, pause := 1, 50*time.Millisecond; ; n, pause = n+1, min(2*pause, 5*time.Second) {
		err := try()
		f, ok := errors.AsType[*failure](err)
		again := ok && (f.Code == "server-unreachable" || f.Code == "upload-cut" || f.Code == "upload-not-wanted")
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

// meter shows how far an upload is.
type meter struct {
	bars   *bars
	region events.RegionID
	start  time.Time

	mu    sync.Mutex
	total int64
	done  int64 // holes included
	wire  int64 // really sent
	shown time.Time
}

func (m *meter) sent(n int64)    { m.add(n, n) }
func (m *meter) skipped(n int64) { m.add(n, 0) }

// meterPause is the least time between two reports.
const meterPause = 500 * time.Millisecond

func (m *meter) add(n, wire int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += n
	m.wire += wire
	now := time.Now()
	if now.Sub(m.shown) < meterPause && m.done < m.total || m.bars.app.quiet {
		return
	}
	m.shown = now
	t := api.Transfer{Region: m.region, Step: "uploading", Done: m.done, Total: m.total, Rate: float64(m.wire) / now.Sub(m.start).Seconds()}
	if t.Rate > 0 {
		t.Left = time.Duration(float64(m.total-m.done) / t.Rate * float64(time.Second))
	}
	m.bars.report(t)
}
