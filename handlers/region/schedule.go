package region

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// running is one piece of work that the agent performs or waits to try again.
type running struct {
	environment events.EnvironmentID
	cancel      context.CancelFunc
	alone       bool // has its environment to itself while it is active
	undo        bool
	attempt     int
	again       time.Time // not before; set when a try has failed for now
	active      bool
}

// job is what a kind of work gets to see.
type job struct {
	openOrder
	agent   *Agent
	epoch   int
	attempt int
}

// openOrder is an order that waits for this agent, with what it is about.
type openOrder struct {
	projections.WorkRow
	Order events.Order
}

func openOrders(view *projections.View, region events.RegionID) ([]openOrder, error) {
	var out []openOrder
	for resume := ""; ; {
		page, err := projections.WorkOrders{}.OpenIn(view, region, 0, resume)
		if err != nil {
			return nil, err
		}
		for _, row := range page.Rows {
			order, _, err := projections.WorkOrders{}.Order(view, row.Work)
			if err != nil {
				return nil, err
			}
			out = append(out, openOrder{row, order})
		}
		if resume = page.Resume; resume == "" {
			return out, nil
		}
	}
}

// schedule performs the region's open orders, a bounded number at once, and
// takes turns between accounts. The set of open orders is the truth: an order
// that is no longer in it, or that is to be undone, has its work cancelled.
func (a *Agent) schedule(ctx context.Context) error {
	done := make(chan error, 64)
	active := 0
	defer func() {
		a.mu.Lock()
		for _, r := range a.jobs {
			r.cancel()
		}
		a.mu.Unlock()
		for ; active > 0; active-- {
			<-done
		}
	}()
	moved := make(chan struct{}, 1)
	go a.watch(ctx, moved)
	for {
		wake, err := a.reconcile(ctx, &active, done)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		case <-a.nudge:
		case err := <-done:
			active--
			if isStale(err) {
				return staleEpoch(a.cfg.Region)
			}
		case <-wake:
		}
	}
}

// intake is the journal as the region's projections follow it. It notes the last
// event that concerns the region's work: the others need no look at the orders.
type intake struct {
	projections.Follower
	region events.RegionID

	mu    sync.Mutex
	last  uint64
	moved chan struct{} // closed when last changes
}

func newIntake(from projections.Follower, region events.RegionID) *intake {
	return &intake{Follower: from, region: region, moved: make(chan struct{})}
}

// Follow see projections.Follower.
func (i *intake) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	return i.Follower.Follow(ctx, after, func(r events.Record) error {
		if r.Aggregate.Region == i.region && (r.Aggregate.Kind == events.KindWork || r.Aggregate.Kind == events.KindRegion) {
			i.note(r.Sequence)
		}
		return each(r)
	})
}

func (i *intake) note(sequence uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if sequence > i.last { // else a projection is built again
		i.last = sequence
		close(i.moved)
		i.moved = make(chan struct{})
	}
}

// next waits for an event after the given one that concerns the region's work.
func (i *intake) next(ctx context.Context, after uint64) (uint64, error) {
	for {
		i.mu.Lock()
		last, moved := i.last, i.moved
		i.mu.Unlock()
		if last > after {
			return last, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// watch tells when the projections show something new that concerns the region's work.
func (a *Agent) watch(ctx context.Context, moved chan<- struct{}) {
	for seen := uint64(0); ; {
		last, err := a.intake.next(ctx, seen)
		if err == nil {
			err = a.feed.WaitFor(ctx, last, "work-orders", "regions")
		}
		if err != nil {
			return // Run learns of it from the feed itself
		}
		seen = last
		select {
		case moved <- struct{}{}:
		default:
		}
	}
}

func (a *Agent) wake() {
	select {
	case a.nudge <- struct{}{}:
	default:
	}
}

// reconcile starts and cancels work so that it fits the open orders. The
// channel says when to look again though nothing has happened.
func (a *Agent) reconcile(ctx context.Context, active *int, done chan<- error) (<-chan time.Time, error) {
	view, err := a.feed.Now("work-orders", "regions")
	if err != nil {
		return nil, err
	}
	defer view.Close()
	open, err := openOrders(view, a.cfg.Region)
	if err != nil {
		return nil, err
	}
	row, _, err := projections.Regions{}.Region(view, a.cfg.Region)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if row.Epoch > a.epoch {
		return nil, staleEpoch(a.cfg.Region) // one with nothing to do would never hear of it
	}
	turn := a.turnsOf(open)
	for id, r := range a.jobs {
		i := slices.IndexFunc(open, func(o openOrder) bool { return o.Work == id })
		if i >= 0 && open[i].Undo == r.undo && !turn.waits(a.kinds[open[i].Kind], open[i]) {
			continue
		}
		r.cancel() // closed, or to be undone, or its environment goes
		if !r.active {
			delete(a.jobs, id)
		}
	}
	now := time.Now()
	var next time.Time
	for _, o := range a.fair(open) {
		r := a.jobs[o.Work]
		if r != nil && r.active || *active >= a.cfg.Slots || turn.waits(a.kinds[o.Kind], o) || turn.taken(a.kinds[o.Kind], o) {
			continue
		}
		if r != nil && now.Before(r.again) {
			if next.IsZero() || r.again.Before(next) {
				next = r.again
			}
			continue
		}
		k, known := a.kinds[o.Kind]
		if !known {
			return nil, fmt.Errorf("work order %s is of kind %q, which this agent does not know", o.Work, o.Kind)
		}
		if r == nil {
			r = &running{environment: o.Order.Environment, alone: k.alone(), undo: o.Undo}
			a.jobs[o.Work] = r
		}
		r.attempt++
		j := &job{openOrder: o, agent: a, epoch: a.epoch, attempt: r.attempt}
		if !o.Undo && k.ready != nil && !k.ready(j) {
			r.attempt--
			r.cancel = func() {}
			if until := o.Order.Until; next.IsZero() || until.Before(next) {
				next = until
			}
			continue
		}
		jobCtx, cancel := context.WithCancel(ctx)
		r.cancel, r.active = cancel, true
		turn[o.Order.Environment] = turn[o.Order.Environment].with(o.Work, k)
		*active++
		go func() {
			err := j.perform(jobCtx, k)
			cancel()
			a.mu.Lock()
			r.active = false
			if a.jobs[o.Work] == r {
				if err == nil || errors.Is(err, context.Canceled) {
					delete(a.jobs, o.Work)
				} else {
					r.again = time.Now().Add(min(time.Second<<min(r.attempt-1, 6), time.Minute))
				}
			}
			a.mu.Unlock()
			done <- err
		}()
	}
	if next.IsZero() {
		return nil, nil
	}
	return time.After(max(time.Until(next), time.Millisecond)), nil
}

// turns says, for each environment with open orders, which of those that have it
// to themselves comes first, and whether another order ends it.
type turns map[events.EnvironmentID]turnOf

// turnOf is of one environment.
type turnOf struct {
	first uint64 // sequence of the order; 0: there is none
	ended bool
	busy  events.WorkID // the order that is being performed, though it is cancelled perhaps
}

func (a *Agent) turnsOf(open []openOrder) turns {
	out := turns{}
	for _, o := range open {
		k, t := a.kinds[o.Kind], out[o.Order.Environment]
		if k.inTurn && !o.Undo && (t.first == 0 || o.Sequence < t.first) {
			t.first = o.Sequence
		}
		t.ended = t.ended || k.ends && !o.Undo
		out[o.Order.Environment] = t
	}
	for id, r := range a.jobs {
		if r.active && r.alone {
			t := out[r.environment]
			t.busy = id
			out[r.environment] = t
		}
	}
	return out
}

// with is the turn once the order is being performed.
func (t turnOf) with(w events.WorkID, k kind) turnOf {
	if k.alone() {
		t.busy = w
	}
	return t
}

// taken says that another order has the order's environment to itself just now.
func (t turns) taken(k kind, o openOrder) bool {
	busy := t[o.Order.Environment].busy
	return k.alone() && busy != "" && busy != o.Work
}

// waits says that the order's environment is another order's turn.
func (t turns) waits(k kind, o openOrder) bool {
	turn := t[o.Order.Environment]
	return k.inTurn && !o.Undo && (turn.ended || turn.first < o.Sequence)
}

// fair orders the work so that the account with the least in progress comes
// first, undos before the rest, older before newer. a.mu is held.
func (a *Agent) fair(open []openOrder) []openOrder {
	busy := map[events.AccountID]int{}
	for _, o := range open {
		if r := a.jobs[o.Work]; r != nil && r.active {
			busy[o.Account]++
		}
	}
	slices.SortStableFunc(open, func(x, y openOrder) int {
		if x.Undo != y.Undo {
			if x.Undo {
				return -1
			}
			return 1
		}
		return busy[x.Account] - busy[y.Account]
	})
	return open
}

func isStale(err error) bool {
	r, ok := aggregates.AsRefusal(err)
	return ok && r.Code == "stale-epoch"
}

// perform does one try of the work, or of its undo, and reports what came of it.
// An error means: not now.
func (j *job) perform(ctx context.Context, k kind) error {
	log := j.agent.cfg.Log.With("work", j.Work, "kind", j.Kind, "epoch", j.epoch, "attempt", j.attempt)
	ref := work.Ref{Region: j.Region, Work: j.Work}
	if _, err := j.command(ctx, "start", work.Start{Ref: ref, Epoch: j.epoch}); err != nil {
		return j.refused(log, err)
	}
	if j.Undo {
		err := ended(k.undo(j, ctx))
		var p *permanent
		switch {
		case errors.As(err, &p):
			log.Error("the undo does not work", "error", err)
			err = j.report(ctx, "report-stuck", work.ReportStuck{Ref: ref, Epoch: j.epoch, Cause: p.cause})
		case err == nil:
			err = j.report(ctx, "report-undone", work.ReportUndone{Ref: ref, Epoch: j.epoch})
		}
		return j.refused(log, err)
	}
	result, err := k.do(j, ctx)
	var p *permanent
	switch {
	case errors.As(err, &p):
		log.Warn("the work has failed", "error", err)
		err = j.report(ctx, "report-failed", work.ReportFailed{Ref: ref, Epoch: j.epoch, Cause: p.cause})
	case err != nil:
		if ctx.Err() == nil {
			log.Info("the work has to wait", "error", err)
			j.progress(Progress{Step: "waiting", Text: err.Error()})
		}
	default:
		err = j.report(ctx, "report-done", work.ReportDone{Ref: ref, Epoch: j.epoch, Result: result})
	}
	return j.refused(log, err)
}

// report says what came of the order, and waits until this agent's own
// projections know: until then the order looks open, and would be done again.
func (j *job) report(ctx context.Context, verb string, body any) error {
	sequence, err := j.command(ctx, verb, body)
	if err != nil {
		return err
	}
	return j.agent.feed.WaitFor(ctx, sequence, "work-orders")
}

// command sends a report. Its id names this try, of this epoch, of the order as
// it was then: the result of another try may differ, and is another command, and
// so is the first try of an order that was opened again.
func (j *job) command(ctx context.Context, verb string, body any) (uint64, error) {
	id := events.CommandID(events.DeriveID(j.Account, events.CommandID(j.Work), fmt.Sprintf("%s %d/%d at %d", verb, j.epoch, j.attempt, j.Revision)))
	return retry(ctx, func() (uint64, error) {
		return j.agent.cfg.Commander.Command(ctx, j.Operation, j.Account, events.KindWork, verb, id, body)
	})
}

// refused is what a refusal of a report means for the try.
func (j *job) refused(log *slog.Logger, err error) error {
	err = closedIsNil(err)
	if r, ok := aggregates.AsRefusal(err); ok && r.Code != "stale-epoch" {
		log.Error("the control plane refuses a report; trying again", "code", r.Code, "error", err)
	}
	return err
}

// closedIsNil: an order that was closed meanwhile needs nothing more. Any other
// refusal is no end of the order: it is open still, and tried again after a pause.
func closedIsNil(err error) error {
	if r, ok := aggregates.AsRefusal(err); ok && slices.Contains([]string{"work-closed", "work-not-started", "undo-not-ordered"}, r.Code) {
		return nil
	}
	return err
}

func (j *job) progress(p Progress) {
	if j.agent.cfg.Progress == nil {
		return
	}
	p.Account, p.Region, p.Work, p.Kind, p.Operation = j.Account, j.Region, j.Work, j.Kind, j.Operation
	j.agent.cfg.Progress(p)
}

// permanent is a failure that trying again does not mend.
type permanent struct{ cause events.Cause }

func (p *permanent) Error() string { return p.cause.Text + " (" + p.cause.Code + ")" }

func fail(code, next, format string, args ...any) error {
	return &permanent{events.Cause{Code: code, Text: fmt.Sprintf(format, args...), Next: next}}
}
