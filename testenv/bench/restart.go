package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// restartRows measures a start on a journal that has grown.
func (b *bench) restartRows(ctx context.Context) error {
	t := &report.Table{Name: "restart", Head: []string{"events", "subjects", "seconds to /readyz", "resident MiB", "peak MiB", "data directory, MiB"}}
	for _, share := range []int{10, 2} { // events of a subject
		if err := b.restart(ctx, t, b.events/share, share); err != nil {
			return err
		}
	}
	t.Note("`tombolo up` with three regions on a directory whose journal holds so many events over so many subjects (names that are claimed, confirmed and released), all of them folded before; until /readyz answers 200; then resident when it has become idle.")
	b.tables = append(b.tables, t)
	return nil
}

func (b *bench) restart(ctx context.Context, t *report.Table, subjects, each int) error {
	dir := filepath.Join(b.dir, "restart")
	defer os.RemoveAll(dir)
	fresh, err := process.Up(ctx, b.binary, dir, "--sync", "lazy")
	if err != nil {
		return err
	}
	if _, err := fresh.Down(); err != nil {
		return err
	}
	began := time.Now()
	if err := fill(ctx, dir, subjects, each); err != nil {
		return err
	}
	b.say("%d events written in %s", subjects*each, time.Since(began).Round(time.Second))
	began = time.Now()
	folded, err := process.Up(ctx, b.binary, dir, "--sync", "lazy")
	if err != nil {
		return err
	}
	err = errors.Join(caughtUp(ctx, folded), idle(ctx, folded.PID()))
	_, derr := folded.Down()
	if err = errors.Join(err, derr, settle(ctx, dir)); err != nil {
		return err
	}
	b.say("folded in %s", time.Since(began).Round(time.Second))
	again, err := process.Up(ctx, b.binary, dir)
	if err != nil {
		return err
	}
	err = idle(ctx, again.PID())
	resident := process.Memory(again.PID(), "VmRSS")
	peak, derr := again.Down()
	if err = errors.Join(err, derr); err != nil {
		return err
	}
	t.Add(subjects*each, subjects, again.Ready.Seconds(), resident/mib, peak/mib, folderBytes(dir)/mib)
	return nil
}

// fill writes the events through the journal, while the program is down.
func fill(ctx context.Context, dir string, subjects, each int) (err error) {
	server, err := bus.Embedded(bus.Options{Dir: filepath.Join(dir, "bus"), Sync: bus.SyncLazy, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = closed(err, server) }()
	conn, err := server.Connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	known, remember, err := journal.MarkerFile(filepath.Join(dir, "journal-id"))
	if err != nil {
		return err
	}
	j, err := journal.Open(ctx, conn, journal.Options{Registry: events.NewRegistry(), Known: known, Remember: remember, AckWait: 30 * time.Second})
	if err != nil {
		return err
	}
	const writers = 64
	group, ctx := errgroup.WithContext(ctx)
	for w := range writers {
		group.Go(func() error {
			// Round by round, so that a subject's events lie scattered, as they do in life.
			heads := make([]events.Head, 0, subjects/writers+1)
			for i := range each {
				for k, s := 0, w; s < subjects; k, s = k+1, s+writers {
					if i == 0 {
						heads = append(heads, events.Head{})
					}
					r, err := j.Append(ctx, nameEvent(s, i, heads[k]))
					if err != nil {
						return err
					}
					heads[k] = r.Head()
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// nameEvent is the i-th event of a name, which goes from hand to hand.
func nameEvent(subject, i int, head events.Head) journal.Proposal {
	owner := fmt.Sprintf("%08d", 10_000_000+subject)
	all := []events.Event{events.NameClaimed{Owner: owner, Until: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)}, events.NameConfirmed{Owner: owner}, events.NameReleased{Owner: owner}}
	command := events.CommandID(fmt.Sprintf("name-%d-%d", subject, i))
	return journal.Proposal{Aggregate: events.Aggregate{Account: "default", Region: events.None, Kind: events.KindName, ID: "name-" + owner}, Expect: head,
		ID: events.DeriveID("default", command, "name"), Time: time.Now().UTC(), Actor: events.Actor{Account: "default", User: "operator"},
		Command: events.CommandRef{ID: command, Digest: events.DigestOf([]byte(command))}, Correlation: string(command), Event: all[i%len(all)]}
}

// caughtUp waits until the reads stand at the journal's tip.
func caughtUp(ctx context.Context, s *process.Server) error {
	return every(ctx, 200*time.Millisecond, func() (bool, error) {
		resp, err := http.Get(s.HTTP + "/readyz?verbose")
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return false, err
		}
		var position, tip uint64
		for line := range strings.Lines(string(text)) {
			if _, rest, ok := strings.Cut(line, "reads (position "); ok {
				_, err = fmt.Sscan(strings.TrimSpace(strings.SplitN(rest, ")", 2)[0]), &position)
			}
			if _, rest, ok := strings.Cut(line, "journal (tip "); ok && err == nil {
				_, err = fmt.Sscan(strings.TrimSpace(strings.SplitN(rest, ")", 2)[0]), &tip)
			}
		}
		return tip > 0 && position >= tip, err
	})
}

// idle waits until a process uses less than a tenth of a processor for two seconds: everything that follows the journal
// has come to its end.
func idle(ctx context.Context, pid int) error {
	last := -1.0
	return every(ctx, 2*time.Second, func() (bool, error) {
		now, err := processorSeconds(fmt.Sprintf("/proc/%d", pid))
		used, first := now-last, last < 0
		last = now
		return err == nil && !first && used < 2*0.1, err
	})
}

// every asks until the answer is yes.
func every(ctx context.Context, pause time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		if yes, err := ask(); yes || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
