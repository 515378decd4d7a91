package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
)

// bars shows how an operation goes, region by region: bars on a terminal, a JSON
// line for each report elsewhere.
type bars struct {
	app    *app
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex
	rows  map[string]region.Progress
	drawn int // lines on the terminal
}

// showProgress follows an operation's progress until stop. That nothing is shown
// is no failure: the operation itself says how it ends.
func (c *client) showProgress(ctx context.Context, id events.OperationID) *bars {
	ctx, cancel := context.WithCancel(ctx)
	b := &bars{app: c.app, cancel: cancel, rows: map[string]region.Progress{}}
	if c.app.quiet {
		return b
	}
	b.done.Go(func() {
		err := c.stream(ctx, "/v1/operations/"+url.PathEscape(string(id))+"/progress", nil, "", func(_, _ string, data []byte) error {
			var t region.Progress
			if err := json.Unmarshal(data, &t); err != nil {
				return err
			}
			if t.Work != "" {
				b.report(t)
			}
			return nil
		})
		if err != nil && ctx.Err() == nil && c.app.verbose > 0 {
			c.app.say("progress cannot be followed: %v", err)
		}
	})
	return b
}

// report shows one report.
func (b *bars) report(t region.Progress) {
	if isTerminal(b.app.err) {
		b.draw(t)
		return
	}
	line, err := json.Marshal(t)
	if err == nil {
		fmt.Fprintln(b.app.err, string(line))
	}
}

func (b *bars) stop() {
	b.cancel()
	b.done.Wait()
}

const barWidth = 30

// draw writes all bars over those drawn before.
func (b *bars) draw(t region.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rows[string(t.Region)+" "+t.Step] = t
	var out strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", b.drawn)
	}
	names := make([]string, 0, len(b.rows))
	for n := range b.rows {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		r := b.rows[n]
		filled := 0
		if r.Total > 0 {
			filled = int(min(r.Done, r.Total) * barWidth / r.Total)
		}
		left := "-"
		if r.Left > 0 {
			left = r.Left.Round(time.Second).String()
		}
		fmt.Fprintf(&out, "\r\x1b[2K%-24s [%s%s] %s of %s  %s/s  %s left\n", n, strings.Repeat("=", filled), strings.Repeat(" ", barWidth-filled),
			size(r.Done), size(r.Total), size(int64(r.Rate)), left)
	}
	b.drawn = len(names)
	fmt.Fprint(b.app.err, out.String())
}

// size is bytes in binary units, for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n)/unit, "KMGTP"
	i := 0
	for ; value >= unit && i < len(units)-1; i++ {
		value /= unit
	}
	return fmt.Sprintf("%.1f %ciB", value, units[i])
}
