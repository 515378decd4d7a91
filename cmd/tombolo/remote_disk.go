package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// exported is an export that a region holds while it is read.
type exported struct {
	region.ExportAnswer
	at   *entrance
	base string // URL of the region
}

// openExport has a region fix one moment of what is asked for.
func (c *client) openExport(ctx context.Context, at string, ask region.ExportRequest) (*exported, error) {
	base, position, err := c.reach(ctx, at)
	if err != nil {
		return nil, err
	}
	ask.After = max(position, c.app.position)
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	e := &exported{at: c.entranceTo(at), base: base}
	return e, c.retrying(ctx, func() error {
		b, err := e.at.send(ctx, http.MethodPost, e.base+"/v1/exports", body, nil)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &e.ExportAnswer)
	})
}

// close tells the region that nothing more is read. If it cannot be told, the
// export expires.
func (e *exported) close(ctx context.Context) {
	_, err := e.at.send(context.WithoutCancel(ctx), http.MethodDelete, e.base+"/v1/exports/"+e.ID, nil, nil)
	if err != nil && e.at.client.app.verbose > 0 {
		e.at.client.app.say("export %s of region %s is left to expire: %v", e.ID, e.Region, err)
	}
}

// disk opens one of the export's disks.
func (e *exported) disk(ctx context.Context, of region.ExportedDisk, m *meter) (*remoteDisk, error) {
	d := &remoteDisk{at: e.at, ctx: ctx, url: e.base + of.Path, size: of.Bytes, meter: m}
	return d, e.at.client.retrying(ctx, func() error {
		b, err := e.at.send(ctx, http.MethodGet, d.url+"/extents", nil, nil)
		if err != nil {
			return err
		}
		var ranges region.DiskExtents
		if err := json.Unmarshal(b, &ranges); err != nil {
			return err
		}
		d.extents = nil
		for _, x := range ranges.Extents {
			d.extents = append(d.extents, disks.Extent{Offset: x.Offset, Length: x.Length})
		}
		return nil
	})
}

// readAhead is how many bytes of a remote disk are asked for at once.
const readAhead = 4 << 20

// windows is how many such parts are kept: readers go forward, several at once.
const windows = 4

// remoteDisk is a disk of a region, read over HTTP in ranges. Its methods may be
// called concurrently.
type remoteDisk struct {
	at      *entrance
	ctx     context.Context // of the command: io.ReaderAt has none
	url     string
	size    int64
	extents []disks.Extent
	meter   *meter

	mu   sync.Mutex
	kept []*window // the newest last
}

type window struct {
	at   int64
	once sync.Once
	data []byte
	err  error
}

// Size is the disk's length in bytes.
func (d *remoteDisk) Size() int64 { return d.size }

// Extents gives the ranges that hold data.
func (d *remoteDisk) Extents(context.Context) iter.Seq2[disks.Extent, error] {
	return func(yield func(disks.Extent, error) bool) {
		for _, e := range d.extents {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// ReadAt reads through the windows.
func (d *remoteDisk) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) && off < d.size {
		w := d.window(off - off%readAhead)
		w.once.Do(func() {
			w.data = make([]byte, min(readAhead, d.size-w.at))
			w.err = d.fetch(d.ctx, w.data, w.at)
		})
		if w.err != nil {
			return n, w.err
		}
		k := copy(p[n:], w.data[off-w.at:])
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *remoteDisk) window(at int64) *window {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.kept {
		if w.at == at {
			return w
		}
	}
	if len(d.kept) == windows {
		d.kept = d.kept[1:]
	}
	w := &window{at: at}
	d.kept = append(d.kept, w)
	return w
}

// fetch reads a range; after a connection that breaks it goes on where it was.
func (d *remoteDisk) fetch(ctx context.Context, p []byte, off int64) error {
	for got := 0; got < len(p); {
		before := got
		err := d.at.client.retrying(ctx, func() error {
			n, err := d.get(ctx, p[got:], off+int64(got))
			got += n
			if got > before {
				return nil // however little: the tries count from here again
			}
			return err
		})
		if err != nil {
			return err
		}
		d.meter.received(int64(got - before))
	}
	return nil
}

func (d *remoteDisk) get(ctx context.Context, p []byte, off int64) (int, error) {
	last := off + int64(len(p)) - 1
	resp, err := d.at.open(ctx, http.MethodGet, d.url, nil, map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", off, last)})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	want := fmt.Sprintf("bytes %d-%d/", off, last)
	if resp.StatusCode != http.StatusPartialContent || !strings.HasPrefix(resp.Header.Get("Content-Range"), want) {
		return 0, fail(exitError, "not-tombolo", "%s answered %s (%q) where a part of a disk was asked for", d.url, resp.Status, resp.Header.Get("Content-Range"))
	}
	n, err := io.ReadFull(resp.Body, p)
	if err != nil {
		return n, d.at.client.unreachable(err)
	}
	return n, nil
}
