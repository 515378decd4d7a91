package region

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"

	regions "github.com/tombolo-vdc/tombolo/aggregates/region"
)

// startEpoch makes this agent the region's owner, and waits until its own
// projections know of it: nothing of an older epoch is then taken for open.
func (a *Agent) startEpoch(ctx context.Context) error {
	run := events.CommandID("epoch-" + a.id + "-" + strconv.FormatInt(time.Now().UnixNano(), 36))
	sequence, err := retry(ctx, func() (uint64, error) {
		return a.cfg.Commander.Command(ctx, "", events.None, events.KindRegion, "start-epoch", run, regions.StartEpoch{
			Region: a.cfg.Region, Agent: a.id, Transfer: a.TransferAddress(), HTTP: a.HTTPAddress()})
	})
	if r, refused := aggregates.AsRefusal(err); refused {
		return &Error{Code: r.Code, Text: r.Text, Next: r.Next}
	}
	if err != nil {
		return fmt.Errorf("start an epoch of %s: %w", a.cfg.Region, err)
	}
	if err := a.feed.WaitFor(ctx, sequence); err != nil {
		return err
	}
	view, err := a.feed.Now("regions")
	if err != nil {
		return err
	}
	defer view.Close()
	row, ok, err := projections.Regions{}.Region(view, a.cfg.Region)
	if err != nil {
		return err
	}
	if !ok || row.Agent != a.id {
		return staleEpoch(a.cfg.Region)
	}
	highest, err := a.highestEpoch()
	if err != nil {
		return err
	}
	if row.Epoch < highest {
		return &Error{Code: "epoch-from-the-past", Text: fmt.Sprintf("%s is at epoch %d in the journal, and was at %d here", a.cfg.Region, row.Epoch, highest),
			Next: "if the journal was restored to an earlier state, remove " + a.epochPath() + " and start again; else this directory belongs to another installation"}
	}
	if err := a.rememberEpoch(row.Epoch); err != nil {
		return err
	}
	a.mu.Lock()
	a.epoch = row.Epoch
	a.mu.Unlock()
	a.cfg.Log.Info("the region is ours", "region", a.cfg.Region, "epoch", row.Epoch)
	return nil
}

func staleEpoch(r events.RegionID) error {
	return &Error{Code: "stale-epoch", Text: fmt.Sprintf("another agent has taken %s over", r), Next: "stop this one"}
}

func (a *Agent) epochPath() string { return filepath.Join(a.cfg.Dir, "epoch") }

// highestEpoch is the highest that this directory has seen; what the drivers
// keep on disk was made under it or an older one.
func (a *Agent) highestEpoch() (int, error) {
	stored, err := os.ReadFile(a.epochPath())
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(stored)))
	if err != nil {
		return 0, &Error{Code: "epoch-damaged", Text: a.epochPath() + " does not hold a number", Next: "write the region's epoch (region show) into it"}
	}
	return n, nil
}

func (a *Agent) rememberEpoch(n int) error {
	return writeDurably(a.epochPath(), []byte(strconv.Itoa(n)+"\n"))
}

// writeDurably replaces a small file so that after a crash it is the old or the
// new one.
func writeDurably(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// retry repeats what fails for want of a connection until it works, is refused,
// or the context ends.
func retry[T any](ctx context.Context, try func() (T, error)) (T, error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		v, err := try()
		if _, refused := aggregates.AsRefusal(err); err == nil || refused || ctx.Err() != nil {
			return v, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}
