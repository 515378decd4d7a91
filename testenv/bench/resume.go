package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/tombolo-vdc/tombolo/testenv/guest"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

const (
	gib = 1 << 30
	// diskContent is in the large disk: what is in it is stored, and not read for a resume.
	diskContent = 300 * mib
	// sameResume is how much longer the machine with the larger disk may take to go on: what there is to do is the same, and
	// two medians of a machine that others use differ by so much.
	sameResume = 1.25
)

// shop is an environment of one machine that is reached from the outside, with more disks where they are wanted.
func shop(name, moreDisks string) string {
	return fmt.Sprintf(`name: %s
networks:
- {name: lan, subnet: 10.10.0.0/24}
machines:
- {name: web, memory_mib: 128, disks: [{name: root, file: guest.raw}%s],
   interfaces: [{network: lan, public_address: auto, open: [tcp/80]}]}
`, name, moreDisks)
}

// started is one way to have the machine again.
type started struct {
	template string
	what     string
	seconds  []float64 // from the command's start to the first 200
	command  []float64 // the command alone
}

// resumeRows measures how soon a machine answers that is made of a template with its memory, and one that boots.
func (b *bench) resumeRows(ctx context.Context) (err error) {
	s, err := b.openSite(ctx, "resume", b.binary, 29)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	image, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		return err
	}
	if err := errors.Join(image.CopyTo(filepath.Join(s.dir, "guest.raw")), fillDisk(filepath.Join(s.dir, "large.raw"), 8*gib, 4*gib, diskContent)); err != nil {
		return err
	}
	all := []*started{{template: "cold", what: "boot"}, {template: "warm", what: "resume"}, {template: "large", what: "resume, with a second disk of 8 GiB"}}
	was := map[string]guest.Answer{}
	for _, e := range []struct{ name, disks string }{{"small", ""}, {"big", ", {name: data, file: large.raw}"}} {
		if err := s.create(ctx, e.name, shop(e.name, e.disks)); err != nil {
			return err
		}
		urls, err := s.reached(ctx, e.name)
		if err != nil {
			return err
		}
		answer, err := firstAnswer(ctx, urls["web"])
		if err != nil {
			return err
		}
		saves := [][]string{{"cold"}, {"warm", "--memory"}}
		if e.name == "big" {
			saves = [][]string{{"large", "--memory"}}
		}
		for _, save := range saves {
			was[save[0]] = answer.Answer
			args := append([]string{"env", "save", e.name, "--regions", siteRegion, "--timeout", "15m", "--new"}, save...)
			if _, err := s.CLI(ctx, nil, args...); err != nil {
				return err
			}
		}
		// It gives its address and the processors to those that are measured.
		if err := s.forget(ctx, e.name); err != nil {
			return err
		}
	}
	for range b.rounds {
		for _, st := range all {
			if err := s.start(ctx, st, was[st.template]); err != nil {
				return fmt.Errorf("%s: %w", st.what, err)
			}
		}
	}
	t := &report.Table{Name: "resume", Head: []string{"the machine comes by", "seconds to the first answer (median)", "least", "most", "of it the command (median)"}}
	for _, st := range all {
		least, most := extremes(st.seconds)
		t.Add(st.what, median(st.seconds), least, most, median(st.command))
	}
	t.Note("Accelerator: %s. One machine with 128 MiB, Debian's cloud kernel and a disk of %d MiB, from the start of `tombolo template instantiate` in the region that holds the template, durable commands, until the machine's public address answers the first HTTP request with 200; %d rounds in turn. The second disk holds %d MiB.", accelerator, image.Size/mib, b.rounds, diskContent/mib)
	b.tables = append(b.tables, t)
	b.goals.AtLeast("boot / resume, first answer ("+accelerator+")", 3, median(ratios(all[0].seconds, all[1].seconds)), "")
	b.goals.AtMost("resume with a second disk of 8 GiB / without ("+accelerator+")", sameResume, median(ratios(all[2].seconds, all[1].seconds)), "")
	return nil
}

// start makes an environment of the template, waits for its first answer, and removes it.
func (s *site) start(ctx context.Context, st *started, was guest.Answer) error {
	// It gets one of the pool's eight addresses, of which the templates have three reserved, and nobody else any: which, is found
	// out beside the command.
	var urls []string
	for i := range 8 {
		urls = append(urls, fmt.Sprintf("http://127.93.113.%d:%d/", i, 80+siteOffset))
	}
	type told struct {
		took time.Duration
		err  error
	}
	done := make(chan told, 1)
	asking, give := context.WithCancel(ctx)
	defer give()
	began := time.Now()
	go func() {
		took, err := s.CLI(ctx, nil, "template", "instantiate", st.template, "--region", siteRegion, "--name", "copy", "--timeout", "5m")
		if err != nil {
			give()
		}
		done <- told{took, err}
	}()
	answer, err := firstAnswer(asking, urls...)
	command := <-done
	if command.err == nil {
		s.envs = append(s.envs, "copy")
	}
	if err := errors.Join(command.err, err); err != nil {
		return err
	}
	if resumed := answer.BootID == was.BootID; resumed == (st.template == "cold") {
		return fmt.Errorf("the guest was %+v and is %+v", was, answer.Answer)
	}
	st.seconds, st.command = append(st.seconds, answer.at.Sub(began).Seconds()), append(st.command, command.took.Seconds())
	return s.forget(ctx, "copy")
}
