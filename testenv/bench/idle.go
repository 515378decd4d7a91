package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/testenv/guest"
	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

const (
	idleMachines = 20
	idleMemory   = 96 // MiB that each guest is promised
	idleTime     = 20 * time.Second
	ticksASecond = 100 // of /proc (proc(5), sysconf(_SC_CLK_TCK)) on every Linux that Go runs on
)

// idleParts are the processes of a region, in the order of the table.
var idleParts = [...]string{"agent", "region host", "emulators"}

// used is what processes of one part take.
type used struct {
	count     int
	own, ram  int64 // proportional set size, bytes: without and only memory that is shared, which is the guests' RAM
	processor float64
}

// idleRows reports what machines take that do nothing, beyond what their guests were promised.
func (b *bench) idleRows(ctx context.Context) (err error) {
	dir := filepath.Join(b.dir, "idle")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server, err := process.Control(ctx, b.binary, filepath.Join(dir, "server"), "--regions", siteRegion)
	if err != nil {
		return err
	}
	s := &site{Server: server, dir: dir}
	defer func() { err = errors.Join(err, s.close()) }()
	enrolment, data := filepath.Join(dir, "enrolment.json"), filepath.Join(dir, "agent")
	if err := run(ctx, b.binary, "agent", "enroll", "--region", siteRegion, "-o", enrolment, "--context", server.Addresses.Context); err != nil {
		return err
	}
	agent, _, err := startTelling(process.Command{Args: []string{b.binary, "agent", "run", "--data", data, "--enrolment", enrolment, "--accelerator", accelerator, "-q", "-o", "json"},
		Env: []string{"XDG_CONFIG_HOME=" + dir}})
	if err != nil {
		return err
	}
	defer func() {
		for _, env := range s.envs { // or the agent's end would store their memory
			err = errors.Join(err, s.forget(context.WithoutCancel(ctx), env))
		}
		err = errors.Join(err, agent.End(time.Minute))
	}()
	if err := s.addPool(ctx, 24); err != nil {
		return err
	}
	empty, err := measureIdle(ctx, data, idleTime/4)
	if err != nil {
		return err
	}
	image, err := guest.Build(ctx, guest.Options{})
	if err == nil {
		err = image.CopyTo(filepath.Join(dir, "guest.raw"))
	}
	if err != nil {
		return err
	}
	text := "name: idle\nnetworks:\n- {name: lan, subnet: 10.10.0.0/24}\nmachines:\n"
	for i := range idleMachines {
		text += fmt.Sprintf("- {name: m%d, memory_mib: %d, disks: [{name: root, file: guest.raw}], interfaces: [{network: lan, public_address: auto, open: [tcp/80]}]}\n", i, idleMemory)
	}
	b.say("starting %d machines", idleMachines)
	if err := s.create(ctx, "idle", text); err != nil {
		return err
	}
	urls, err := s.reached(ctx, "idle")
	if err != nil {
		return err
	}
	for _, url := range urls {
		if _, err := firstAnswer(ctx, url); err != nil {
			return err
		}
	}
	pass(ctx, idleTime) // until what a boot leaves to do is done
	full, err := measureIdle(ctx, data, idleTime)
	if err != nil {
		return err
	}
	if n := full["emulators"].count; n != idleMachines {
		return fmt.Errorf("%d emulators are there, not %d", n, idleMachines)
	}
	b.tabulateIdle(empty, full)
	return nil
}

func (b *bench) tabulateIdle(empty, full map[string]used) {
	t := &report.Table{Name: "idle", Head: []string{"process", "MiB without machines", fmt.Sprintf("MiB with %d", idleMachines), "more for each machine, MiB", "processor for each machine, %"}}
	var before, after, ram int64
	var processor float64
	for _, name := range idleParts {
		e, f := empty[name], full[name]
		t.Add(name, e.own/mib, f.own/mib, float64(f.own-e.own)/mib/idleMachines, f.processor*100/idleMachines)
		before, after, ram, processor = before+e.own, after+f.own, ram+f.ram, processor+f.processor
	}
	t.Add("all", before/mib, after/mib, float64(after-before)/mib/idleMachines, processor*100/idleMachines)
	t.Note("Accelerator: %s. Proportional set size (/proc/PID/smaps_rollup) without the guests' own RAM, of which %.0f MiB of the %d that each was promised are in use; %% of one processor over %s. One agent and its region host beside a control plane that is not counted; the guests are Linux, and one process in each writes to its disk every second.",
		accelerator, float64(ram)/mib/idleMachines, idleMemory, idleTime)
	b.tables = append(b.tables, t)
}

// measureIdle looks at the processes of an agent's folder for a while.
func measureIdle(ctx context.Context, data string, d time.Duration) (map[string]used, error) {
	before, err := idleProcesses(data)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	pass(ctx, d)
	took := time.Since(began)
	after, err := idleProcesses(data)
	if err != nil {
		return nil, err
	}
	for name, a := range after {
		a.processor = (a.processor - before[name].processor) / took.Seconds()
		after[name] = a
	}
	return after, ctx.Err()
}

// idleProcesses finds them by their command lines; processor is in seconds since their start.
func idleProcesses(data string) (map[string]used, error) {
	sum := sha256.Sum256([]byte(filepath.Join(data, "machines"))) // package qemu: machines are named by the folder that they are of
	marks := map[string]string{"agent": "\x00agent\x00run\x00--data\x00" + data + "\x00", "region host": "\x00" + filepath.Join(data, "networks") + "\x00",
		"emulators": "\x00guest=tombolo/" + hex.EncodeToString(sum[:8]) + "/"}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	out := map[string]used{}
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		for name, mark := range marks {
			if !strings.Contains(string(line), mark) {
				continue
			}
			u := out[name]
			if err := u.add(filepath.Dir(path)); err != nil {
				return nil, err
			}
			out[name] = u
		}
	}
	return out, nil
}

// add adds what one process takes.
func (u *used) add(proc string) error {
	text, err := os.ReadFile(filepath.Join(proc, "smaps_rollup"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue // the line of addresses
		}
		switch fields[0] {
		case "Pss_Anon:", "Pss_File:":
			u.own += kib << 10
		case "Pss_Shmem:":
			u.ram += kib << 10
		}
	}
	seconds, err := processorSeconds(proc)
	u.processor += seconds
	u.count++
	return err
}

// processorSeconds is what a process has used since its start (proc(5), stat).
func processorSeconds(proc string) (float64, error) {
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s/stat cannot be read", proc)
	}
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, err
	}
	return float64(user+system) / ticksASecond, nil
}
