package processes

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

// Due is something that is over if nothing has happened until its time. Whether
// it is over is decided by its aggregate, with its own clock: that something is
// listed too early or twice does no harm.
type Due struct {
	Until time.Time
	send  Send
}

// ReservationDue is a reservation of a pool that nobody has confirmed.
func ReservationDue(region events.RegionID, t events.PoolID, owner events.Owner, until time.Time) Due {
	return due(until, owner.Account, fmt.Sprintf("reservation of %s/%s by %s", region, t, owner.Instance), pool.Expire{Region: region, Type: t, Owner: owner})
}

// ReplacementDue is a replacement, staged or queued, with a deadline.
func ReplacementDue(account events.AccountID, t events.TemplateID, op events.OperationID, until time.Time) Due {
	d := due(until, account, fmt.Sprintf("replacement of %s by %s", t, op), template.Expire{Template: t, Operation: op})
	d.send = d.send.of(op)
	return d
}

// UploadDue is an environment whose disks have not come.
func UploadDue(account events.AccountID, region events.RegionID, id events.EnvironmentID, until time.Time) Due {
	return due(until, account, fmt.Sprintf("upload of %s", id), environment.Expire{Ref: environment.Ref{Region: region, Environment: id}})
}

func due[S aggregates.State[S, E], E events.Event](until time.Time, account events.AccountID, what string, c aggregates.Command[S, E]) Due {
	return Due{until, send(account, fmt.Sprintf("%s until %s", what, until.UTC().Format(time.RFC3339Nano)), c)}
}

// DueList answers what is due at a time.
type DueList interface {
	Due(ctx context.Context, now time.Time) ([]Due, error)
}

// Deadlines reads the list of what is due at every tick and has the aggregates
// end it.
type Deadlines struct {
	Executor *commands.Executor
	List     DueList
	Log      *slog.Logger
}

// Run goes on until the context ends, and returns its error. Each tick carries
// the time that the list is asked for.
func (d *Deadlines) Run(ctx context.Context, ticks <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-ticks:
			if err := d.Tick(ctx, now); err != nil && ctx.Err() == nil {
				d.Log.Error("deadlines could not be looked after; the next tick tries again", "error", err)
			}
		}
	}
}

// Tick ends what is due. One that cannot be ended does not keep the others from
// it; the first such error is returned.
func (d *Deadlines) Tick(ctx context.Context, now time.Time) error {
	list, err := d.List.Due(ctx, now)
	if err != nil {
		return err
	}
	var first error
	for _, due := range list {
		id := events.CommandID(events.DeriveID(due.send.Account, "deadlines", due.send.Step))
		_, err := due.send.execute(ctx, d.Executor, commands.Origin{
			Account: due.send.Account, Actor: controlPlane, Correlation: string(due.send.operation),
			Command: events.CommandRef{ID: id, Digest: events.DigestOf([]byte(id))},
		})
		if _, refused := aggregates.AsRefusal(err); err == nil || refused {
			continue // ended, met meanwhile, or not due by the aggregate's clock
		}
		d.Log.Error("a deadline has passed and its end could not be recorded", "deadline", due.send.Step, "error", err)
		if first == nil {
			first = fmt.Errorf("%s: %w", due.send.Step, err)
		}
	}
	return first
}
