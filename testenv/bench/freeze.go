package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qmp"
	"github.com/tombolo-vdc/tombolo/testenv/guest"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// onlooker has a second monitor at every machine of a site. The agent's own takes one client; but the agent finds its emulator
// in PATH, and there stands a script that adds a monitor to what the agent asks for and then is the emulator. Nothing of what
// is measured knows of it.
type onlooker struct {
	dir     string
	program string // `tombolo` with that PATH
}

const (
	emulatorName = "qemu-system-x86_64"
	// Machines run as users of their own: the folder of their monitors is everybody's.
	emulatorScript = `#!/bin/sh
name=
for a; do case $a in guest=tombolo/*) name=${a%%/*/*}; name=${name##*/};; esac; done
if [ -n "$name" ]; then
	set -- "$@" -chardev "socket,id=onlooker,path=%[1]s/monitors/$name,server=on,wait=off" -mon chardev=onlooker,mode=control
fi
exec %[2]s "$@"
`
	programScript = `#!/bin/sh
PATH=%[1]s:$PATH exec %[2]s "$@"
`
)

func (b *bench) newOnlooker() (_ *onlooker, err error) {
	emulator, err := exec.LookPath(emulatorName)
	if err != nil {
		return nil, err
	}
	o := &onlooker{}
	if o.dir, err = os.MkdirTemp("", "onlooker-"); err != nil { // not in the run's own folder, which others may not enter
		return nil, err
	}
	o.program = filepath.Join(o.dir, "tombolo")
	monitors := filepath.Join(o.dir, "monitors")
	if err := errors.Join(os.Chmod(o.dir, 0o755), os.Mkdir(monitors, 0o777), os.Chmod(monitors, 0o777),
		os.WriteFile(filepath.Join(o.dir, emulatorName), fmt.Appendf(nil, emulatorScript, o.dir, emulator), 0o755),
		os.WriteFile(o.program, fmt.Appendf(nil, programScript, o.dir, b.binary), 0o755)); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *onlooker) close() error { return os.RemoveAll(o.dir) }

// silence is one time that a machine stood still, by its emulator's own clock.
type silence struct{ stop, resume time.Time }

func (s silence) ms() float64 { return s.resume.Sub(s.stop).Seconds() * 1000 }

// watched is a machine whose events are followed.
type watched struct {
	*qmp.Client
	stop     time.Time // the reader's alone
	silences chan silence
}

func (o *onlooker) watch(ctx context.Context, machine string) (*watched, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(o.dir, "monitors", machine))
	if err != nil {
		return nil, err
	}
	w := &watched{silences: make(chan silence, 64)}
	w.Client, err = qmp.Connect(ctx, conn.(*net.UnixConn), func(e qmp.Event) {
		switch e.Name {
		case "STOP":
			w.stop = e.Time
		case "RESUME":
			w.silences <- silence{w.stop, e.Time}
		}
	})
	return w, err
}

// last is the one silence since it was asked last.
func (w *watched) last(ctx context.Context) (silence, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	select {
	case s := <-w.silences:
		if len(w.silences) > 0 {
			return s, errors.New("the machine stood still more than once")
		}
		return s, nil
	case <-ctx.Done():
		return silence{}, fmt.Errorf("the machine did not stand still: %w", ctx.Err())
	}
}

// byHand stands a machine still with the commands that a save uses, and nothing between them.
func (w *watched) byHand(ctx context.Context) (silence, error) {
	for _, command := range []string{"stop", "cont"} {
		if err := w.Do(ctx, command, nil, nil); err != nil {
			return silence{}, err
		}
	}
	return w.last(ctx)
}

// p99 is by nearest rank: of 50 it is the largest.
func p99(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[int(math.Ceil(0.99*float64(len(x))))-1]
}

// freezeRows measures how long machines stand still for a save.
func (b *bench) freezeRows(ctx context.Context) (err error) {
	o, err := b.newOnlooker()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.close()) }()
	s, err := b.openSite(ctx, "freeze", o.program, 24)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	t := &report.Table{Name: "freeze", Head: []string{"disk", "how", "times", "ms of silence (median)", "ms (p99)", "ms (least)", "p99 of by hand"}}
	for _, d := range []struct {
		name, text    string
		size, content int64
	}{{"small", "256 MiB", 256 * mib, 100 * mib}, {"large", "8 GiB", 8 * gib, diskContent}} {
		if err := guestDisk(ctx, filepath.Join(s.dir, d.name+".raw"), d.size, d.content); err != nil {
			return err
		}
		byHand, saved, err := b.saveOften(ctx, s, o, d.name)
		if err != nil {
			return fmt.Errorf("%s: %w", d.text, err)
		}
		ratio := p99(saved) / p99(byHand)
		t.Add(d.text, "stop and cont by hand", len(byHand), median(byHand), p99(byHand), slices.Min(byHand), "")
		t.Add(d.text, "save, disks only", len(saved), median(saved), p99(saved), slices.Min(saved), ratio)
		b.goals.AtMost(fmt.Sprintf("silence of a save with disks only, p99 of %d / by hand, %s (%s)", len(saved), d.text, accelerator), 2, ratio, "")
	}
	pauses, silences, err := b.saveMemory(ctx, s, o)
	if err != nil {
		return fmt.Errorf("with memory: %w", err)
	}
	t.Add("3 × 57 MiB", "save with the memory of three machines of 128 MiB, together", len(silences), median(silences), p99(silences), slices.Min(silences), "")
	_, most := extremes(pauses)
	b.goals.AtMost("pause that a save with memory reports, three machines of 128 MiB, the longest of "+fmt.Sprint(len(pauses))+" ("+accelerator+")", 1, most/1000, " s")
	t.Note("Accelerator: %s. From STOP to RESUME by the timestamps of QMP's own events, which a second monitor of each machine hears: the agent finds its emulator in PATH, and there stands a script that adds it. `tombolo env save` and the commands by hand, over that monitor, take turns on the same machine, whose guest runs and writes to its disk every second. p99 by nearest rank: of 50, the longest. Three machines: from the first STOP to the last RESUME; what the save reports of itself: %s ms (median), %s at most.", accelerator, report.Number(median(pauses)), report.Number(most))
	b.tables = append(b.tables, t)
	return nil
}

// saveOften saves an environment of one machine many times, and has it stand still by hand as often.
func (b *bench) saveOften(ctx context.Context, s *site, o *onlooker, name string) (byHand, saved []float64, err error) {
	text := strings.ReplaceAll(strings.ReplaceAll(shop(name, ""), "guest.raw", name+".raw"), "{name: web,", "{name: "+name+",")
	if err := s.create(ctx, name, text); err != nil {
		return nil, nil, err
	}
	urls, err := s.reached(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if _, err := firstAnswer(ctx, urls[name]); err != nil {
		return nil, nil, err
	}
	w, err := o.watch(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	for i := range b.saves {
		hand, err := w.byHand(ctx)
		if err != nil {
			return nil, nil, err
		}
		if _, err := s.CLI(ctx, nil, "env", "save", name, "--regions", siteRegion, "--timeout", "15m", "--new", fmt.Sprintf("%s-%d", name, i)); err != nil {
			return nil, nil, err
		}
		save, err := w.last(ctx)
		if err != nil {
			return nil, nil, err
		}
		byHand, saved = append(byHand, hand.ms()), append(saved, save.ms())
	}
	return byHand, saved, s.forget(ctx, name)
}

// saveMemory saves three machines with their memory, and gives what the save says, and what the emulators say, in ms.
func (b *bench) saveMemory(ctx context.Context, s *site, o *onlooker) (pauses, silences []float64, err error) {
	image, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		return nil, nil, err
	}
	if err := image.CopyTo(filepath.Join(s.dir, "guest.raw")); err != nil {
		return nil, nil, err
	}
	names := []string{"one", "two", "three"}
	text := "name: trio\nnetworks:\n- {name: lan, subnet: 10.10.0.0/24}\nmachines:\n"
	for _, n := range names {
		text += fmt.Sprintf("- {name: %s, memory_mib: 128, disks: [{name: root, file: guest.raw}], interfaces: [{network: lan, public_address: auto, open: [tcp/80]}]}\n", n)
	}
	if err := s.create(ctx, "trio", text); err != nil {
		return nil, nil, err
	}
	urls, err := s.reached(ctx, "trio")
	if err != nil {
		return nil, nil, err
	}
	var watch []*watched
	for _, n := range names {
		if _, err := firstAnswer(ctx, urls[n]); err != nil {
			return nil, nil, err
		}
		w, err := o.watch(ctx, n)
		if err != nil {
			return nil, nil, err
		}
		defer w.Close()
		watch = append(watch, w)
	}
	for i := range b.rounds {
		if _, err := s.CLI(ctx, nil, "env", "save", "trio", "--memory", "--regions", siteRegion, "--timeout", "15m", "--new", fmt.Sprintf("trio-%d", i)); err != nil {
			return nil, nil, err
		}
		var first, last time.Time
		for _, w := range watch {
			one, err := w.last(ctx)
			if err != nil {
				return nil, nil, err
			}
			if first.IsZero() || one.stop.Before(first) {
				first = one.stop
			}
			if one.resume.After(last) {
				last = one.resume
			}
		}
		silences = append(silences, silence{first, last}.ms())
	}
	pauses, err = s.pauses(ctx)
	if err == nil && len(pauses) < b.rounds {
		err = errors.New("not every save with memory said how long its machines stood still")
	}
	if err != nil {
		return nil, nil, err
	}
	return pauses[len(pauses)-b.rounds:], silences, s.forget(ctx, "trio")
}

// pauses is what saves said of themselves, in ms, in their order.
func (s *site) pauses(ctx context.Context) (out []float64, err error) {
	admin, err := s.Context("")
	if err != nil {
		return nil, err
	}
	for from := uint64(1); from > 0; {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/v1/events?account=default&type=work.done&from=%d", s.HTTP, from), nil)
		if err != nil {
			return nil, err
		}
		request.Header.Set("Authorization", "Bearer "+admin.Token)
		resp, err := http.DefaultClient.Do(request)
		if err != nil {
			return nil, err
		}
		var page struct {
			Items []struct{ Data events.WorkDone }
			Next  uint64
		}
		err = json.NewDecoder(resp.Body).Decode(&page)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return nil, err
		}
		for _, e := range page.Items {
			if e.Data.Result.PauseMS > 0 {
				out = append(out, float64(e.Data.Result.PauseMS))
			}
		}
		from = page.Next
	}
	return out, nil
}
