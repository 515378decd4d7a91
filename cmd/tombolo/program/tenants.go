package program

import (
	"context"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/processes"
	"github.com/tombolo-vdc/tombolo/projections"
)

// openFeeds lets tenants subscribe to their own events.
func (p *Program) openFeeds(ctx context.Context) error {
	var err error
	if p.feeds, err = bus.OpenFeeds(ctx, p.conn, p.config.Log.With("part", "feeds")); err != nil {
		return err
	}
	p.opened(p.feeds.Close)
	return nil
}

// again is the pause before what failed for want of the bus or the reads is
// tried again.
const again = time.Second

// followTenants brings the bus what the journal says of accounts: every tenant
// has its stream of events, and who was removed is disconnected. It goes on until
// the context ends.
func (p *Program) followTenants(ctx context.Context) {
	after, err := uint64(0), error(nil)
	for started := false; ctx.Err() == nil; {
		if !started {
			if after, err = p.addTenants(ctx); err == nil {
				started = true
			}
		}
		if started {
			err = p.journal.Follow(ctx, after, func(r events.Record) error {
				if err := p.onTenant(ctx, r); err != nil {
					return err
				}
				after = r.Sequence
				return nil
			})
		}
		if ctx.Err() != nil {
			return
		}
		p.config.Log.Error("tenants cannot be looked after; trying again", "position", after, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// addTenants makes the streams of all accounts that are there, and says up to
// which event these are all.
func (p *Program) addTenants(ctx context.Context) (uint64, error) {
	v, err := reads{p.journal, p.feed}.AtTip(ctx)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	for resume := ""; ; {
		page, err := projections.Accounts{}.List(v, 1000, resume)
		if err != nil {
			return 0, err
		}
		for _, a := range page.Rows {
			if a.Account == events.None {
				continue
			}
			if err := p.feeds.Add(ctx, a.Account); err != nil {
				return 0, err
			}
		}
		if resume = page.Resume; resume == "" {
			return v.Position(), nil
		}
	}
}

func (p *Program) onTenant(ctx context.Context, r events.Record) error {
	account := events.AccountID(r.Aggregate.ID)
	switch e := r.Event.(type) {
	case events.AccountCreated:
		if account == events.None {
			return nil
		}
		return p.feeds.Add(ctx, account)
	case events.UserRemoved:
		if err := p.feed.WaitFor(ctx, r.Sequence); err != nil { // or it would be let in again
			return err
		}
		before, err := p.feed.AsOf(r.Sequence-1, projections.Accounts{}.Name())
		if err != nil {
			return err
		}
		defer before.Close()
		u, ok, err := projections.Accounts{}.User(before, account, e.User)
		if err != nil || !ok {
			return err
		}
		n, err := p.bus.Disconnect(u.NKey)
		if n > 0 {
			p.config.Log.Info("a user was removed and is disconnected", "account", account, "user", e.User, "connections", n)
		}
		return err
	}
	return nil
}

// deadlineEvery is how often it is looked whether something is over.
const deadlineEvery = time.Second

// endDeadlines has the aggregates end what is due.
func (p *Program) endDeadlines(ctx context.Context) error {
	ticks := time.NewTicker(deadlineEvery)
	defer ticks.Stop()
	d := processes.Deadlines{Executor: p.executor, List: dueList{p.feed}, Log: p.config.Log.With("part", "deadlines")}
	return d.Run(ctx, ticks.C)
}

// dueList reads what is due from the projections.
type dueList struct{ feed *projections.Feed }

var _ processes.DueList = dueList{}

// dueMost bounds what one tick ends of each kind.
const dueMost = 1000

// Due answers what is due at a time.
func (d dueList) Due(_ context.Context, now time.Time) ([]processes.Due, error) {
	v, err := d.feed.Now(projections.Deadlines{}.Name())
	if err != nil {
		return nil, err
	}
	defer v.Close()
	var out []processes.Due
	for kind, due := range map[projections.DeadlineKind]func(projections.DeadlineRow) processes.Due{
		projections.DeadlineLeases: func(r projections.DeadlineRow) processes.Due {
			return processes.ReservationDue(r.Region, events.PoolID(r.ID), r.Leases, r.Until)
		},
		projections.DeadlineReplacement: func(r projections.DeadlineRow) processes.Due {
			return processes.ReplacementDue(r.Account, events.TemplateID(r.ID), r.Operation, r.Until)
		},
		projections.DeadlineUpload: func(r projections.DeadlineRow) processes.Due {
			return processes.UploadDue(r.Account, r.Region, events.EnvironmentID(r.ID), r.Until)
		},
	} {
		rows, err := projections.Deadlines{}.Due(v, kind, now, dueMost)
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			out = append(out, due(r))
		}
	}
	return out, nil
}
