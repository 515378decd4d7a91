package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/testenv/images"
)

func (d *demo) replace(ctx context.Context) error {
	d.tell("6", "The machines work: thousands of files change on their disks, which are block devices (NBD)")
	var id string
	if err := d.environmentID(ctx, &id, "ajax-demo"); err != nil {
		return err
	}
	socket, err := d.program.Devices("beijing")
	if err != nil {
		return err
	}
	for _, m := range machines() {
		e, err := images.Evolve(ctx, d.image(m, 0), d.image(m, 2), images.Change{Label: "v2", Edit: 800, Delete: 80, Add: 120})
		if err != nil {
			return err
		}
		written, err := writeChanges(ctx, d.image(m, 0), d.image(m, 2), socket, region.Export(events.EnvironmentID(id), m+"/root"))
		if err != nil {
			return err
		}
		d.note("%-4s %d files edited, %d deleted, %d added: %.1f MiB written to its disk", m, len(e.Edited), len(e.Deleted), len(e.Added), float64(written)/(1<<20))
	}
	d.tell("7", "Version 2 replaces version 1 while readers ask every region's own endpoint, all the time")
	readers, err := d.startReaders(ctx)
	if err != nil {
		return err
	}
	err = d.show(ctx, "template", "replace", d.number, "--from-env", "ajax-demo", "--wait")
	if err == nil {
		err = readers.awaitVersion(ctx, 2)
	}
	answers, rerr := readers.stop()
	if err := errors.Join(err, rerr); err != nil {
		return err
	}
	if err := consistent(answers); err != nil {
		return err
	}
	count := map[int]int{}
	for _, a := range answers {
		count[a.version]++
	}
	d.note("%d answers from three regions: %d said version 1, %d said version 2.", len(answers), count[1], count[2])
	d.note("Of any two, the one at the lower position never had the higher version, and equal positions agreed.")
	fmt.Fprintln(d.out)
	if err := d.show(ctx, "where", d.number); err != nil {
		return err
	}
	return d.received(ctx)
}

func (d *demo) environmentID(ctx context.Context, id *string, name string) error {
	var e struct {
		ID string `json:"id"`
	}
	err := d.ask(ctx, &e, "env", "show", name)
	*id = e.ID
	return err
}

// writeChanges writes what differs between two images to a block device, in
// runs of blocks, and flushes it: what a machine's kernel does.
func writeChanges(ctx context.Context, before, after, socket, export string) (written int64, err error) {
	device, err := nbd.Dial(ctx, socket, export)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	old, err := os.Open(before)
	if err != nil {
		return 0, err
	}
	defer old.Close()
	new, err := os.Open(after)
	if err != nil {
		return 0, err
	}
	defer new.Close()
	const span, block = 1 << 20, 4096
	a, b := make([]byte, span), make([]byte, span)
	for off := int64(0); ; off += span {
		n, rerr := io.ReadFull(new, b)
		if n == 0 {
			break
		}
		if _, err := io.ReadFull(old, a[:n]); err != nil {
			return written, err
		}
		for i := 0; i < n; i += block {
			end := min(i+block, n)
			if bytes.Equal(a[i:end], b[i:end]) {
				continue
			}
			if _, err := device.WriteAt(b[i:end], off+int64(i)); err != nil {
				return written, err
			}
			written += int64(end - i)
		}
		if rerr != nil {
			break
		}
	}
	return written, device.Flush()
}

// reading is one answer of one region.
type reading struct {
	region   string
	position uint64
	version  int
}

// readers ask each region what the reference means, over and over, each with
// the highest position it has seen.
type readers struct {
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex
	answers []reading
	newest  map[string]int
	failed  error
	grown   chan struct{}
}

func (d *demo) startReaders(ctx context.Context) (*readers, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &readers{cancel: cancel, newest: map[string]int{}, grown: make(chan struct{}, 1)}
	for _, name := range d.program.Addresses().Regions {
		var row struct {
			HTTP string `json:"http"`
		}
		if err := d.ask(ctx, &row, "region", "show", name); err != nil {
			cancel()
			return nil, err
		}
		at := (&client{app: d.app, context: d.context, http: http.DefaultClient}).entranceTo(name)
		r.workers.Go(func() { r.read(ctx, d, at, name, trust.URL(row.HTTP)) })
	}
	return r, nil
}

func (r *readers) read(ctx context.Context, d *demo, at *entrance, name, base string) {
	var highest uint64
	for ctx.Err() == nil {
		var w whereAnswer
		answer, err := at.send(ctx, http.MethodGet, fmt.Sprintf("%s/v1/templates/%s/where?account=%s&after=%d", base, d.number, d.context.Account, highest), nil, nil)
		if err == nil {
			err = json.Unmarshal(answer, &w)
		}
		if ctx.Err() == nil && err != nil {
			r.mu.Lock()
			r.failed = errors.Join(r.failed, err)
			r.mu.Unlock()
			return
		}
		if err == nil {
			highest = max(highest, w.Position)
			r.add(reading{name, w.Position, w.ActiveVersion})
		}
	}
}

func (r *readers) add(a reading) {
	r.mu.Lock()
	r.answers = append(r.answers, a)
	r.newest[a.region] = a.version
	r.mu.Unlock()
	select {
	case r.grown <- struct{}{}:
	default:
	}
}

// awaitVersion waits until every region has said this version.
func (r *readers) awaitVersion(ctx context.Context, version int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		r.mu.Lock()
		done, failed := len(r.newest) > 0, r.failed
		for _, v := range r.newest {
			done = done && v == version
		}
		r.mu.Unlock()
		if done || failed != nil {
			return failed
		}
		select {
		case <-r.grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *readers) stop() ([]reading, error) {
	r.cancel()
	r.workers.Wait()
	return r.answers, r.failed
}

// consistent checks what a switch must look like from anywhere.
func consistent(answers []reading) error {
	sorted := slices.Clone(answers)
	slices.SortFunc(sorted, func(a, b reading) int { return cmp.Compare(a.position, b.position) })
	for i, a := range sorted[1:] {
		before := sorted[i]
		if before.version > a.version || before.position == a.position && before.version != a.version {
			return fail(exitError, "demo-failed", "a mix: %s said version %d at position %d, %s said version %d at position %d",
				before.region, before.version, before.position, a.region, a.version, a.position)
		}
	}
	return nil
}
