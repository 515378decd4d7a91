package region

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Scrubbed is what reading back everything in the region's store found.
type Scrubbed struct {
	Chunks  int      `json:"chunks"`  // read
	Bytes   int64    `json:"bytes"`   // of them, decompressed
	Damaged int      `json:"damaged"` // chunks that did not match their digests, and are out of the store now
	Missing int      `json:"missing"` // chunks that something kept here needs, and that are not there
	Hurt    []Hurt   `json:"hurt"`    // what lacks chunks
	Took    Duration `json:"duration_ms"`
}

// Hurt is something kept in the region that is not whole.
type Hurt struct {
	Kind     string            `json:"kind"` // "instance", "saved" or "environment", as the name begins
	Name     string            `json:"name"`
	Chunks   int               `json:"chunks"` // that it lacks; 0 where its index cannot be read
	Instance events.InstanceID `json:"instance,omitempty"`
	Reported bool              `json:"reported"` // the journal knows; the copy is fetched again
}

// Duration is a time span in whole milliseconds on the wire.
type Duration int64

// Scrub reads and hashes everything in the region's store, takes what is damaged
// out of it, and reports every instance that is hurt: those copies are then made
// whole from other regions. One runs at a time; another waits for it.
func (a *Agent) Scrub(ctx context.Context) (Scrubbed, error) {
	select {
	case a.scrubbing <- struct{}{}:
		defer func() { <-a.scrubbing }()
	case <-ctx.Done():
		return Scrubbed{}, ctx.Err()
	}
	start := time.Now()
	found, err := chunks.Scrub(ctx, a.store, nil)
	if err != nil {
		return Scrubbed{}, err
	}
	out := Scrubbed{Chunks: found.Chunks, Bytes: found.Bytes, Damaged: len(found.Damaged), Missing: len(found.Missing), Hurt: []Hurt{}}
	a.counts.scrubs.Add(1)
	a.counts.damaged.Add(int64(out.Damaged))
	for _, h := range found.Hurt {
		hurt, err := a.reportHurt(ctx, h, fmt.Sprintf("scrub %d %s", start.UnixNano(), h.Root.Name))
		if err != nil {
			return out, err
		}
		a.cfg.Log.Error("something in the store is damaged", "name", h.Root.Name, "chunks", len(h.Chunks), "instance", hurt.Instance, "error", h.Err)
		out.Hurt = append(out.Hurt, hurt)
	}
	out.Took = Duration(time.Since(start).Milliseconds())
	return out, nil
}

// reportHurt tells the control plane of a hurt instance. Environments and what a
// save keeps have nobody to fetch them from but the instances that share their chunks.
func (a *Agent) reportHurt(ctx context.Context, h chunks.HurtRoot, role string) (Hurt, error) {
	kind, _, _ := strings.Cut(h.Root.Name, "/")
	out := Hurt{Kind: kind, Name: h.Root.Name, Chunks: len(h.Chunks)}
	if !strings.HasPrefix(h.Root.Name, instanceRoots) {
		return out, nil
	}
	view, err := a.feed.Now("work-orders")
	if err != nil {
		return out, err
	}
	defer view.Close()
	row, ok, err := projections.WorkOrders{}.Work(view, events.WorkID(h.Root.Owner))
	if err != nil || !ok {
		return out, err // nobody's: the janitor's business
	}
	order, _, err := projections.WorkOrders{}.Order(view, row.Work)
	if err != nil {
		return out, err
	}
	out.Instance = order.Instance
	id := events.CommandID(events.DeriveID(row.Account, events.CommandID(order.Instance), role))
	_, err = retry(ctx, func() (uint64, error) {
		return a.cfg.Commander.Command(ctx, "", row.Account, events.KindInstance, "report-damaged", id,
			instance.ReportDamaged{Ref: instance.Ref{Region: a.cfg.Region, Instance: order.Instance}, Chunks: len(h.Chunks)})
	})
	if r, refused := aggregates.AsRefusal(err); refused {
		a.cfg.Log.Info("a damaged copy is not wanted any more", "instance", order.Instance, "code", r.Code)
		return out, nil
	}
	out.Reported = err == nil
	return out, err
}

// scrubRegularly scrubs again and again until the context ends.
func (a *Agent) scrubRegularly(ctx context.Context) error {
	ticks := time.NewTicker(a.cfg.ScrubEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticks.C:
		}
		if _, err := a.Scrub(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Log.Error("the store could not be scrubbed; the next time it is tried again", "error", err)
		}
	}
}
