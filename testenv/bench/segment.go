package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/segment"
	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// peersDir is a Go module of its own: what the peers need is nothing that the product's module knows of.
const peersDir = "testenv/bench/peers"

// segmentMachines are at each network: one sends, one is sent to, one stands beside.
const segmentMachines = 3

// serveSegment is a segment in a process of its own, as a region has it, with a port for each machine.
func serveSegment(ctx context.Context, p part) (told, error) {
	s := segment.New(1500)
	for i, socket := range p.Sockets {
		port := s.NewPort(segment.ParseMAC(addressOf(i)))
		defer port.Close()
		port.Connect(socket)
		if err := port.Wait(ctx); err != nil {
			return told{}, err
		}
	}
	if err := tell(told{}); err != nil {
		return told{}, err
	}
	<-ctx.Done()
	return told{}, nil
}

// cabled is a network with its machines' ends.
type cabled struct {
	ends  []end
	close func() error
}

// streams starts a network that connects to the sockets that it is told.
func (b *bench) streams(dir string, start func(sockets []string) (*process.Process, error)) (*cabled, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	sockets, accept, err := listenStreams(dir, segmentMachines)
	if err != nil {
		return nil, err
	}
	p, err := start(sockets)
	if err != nil {
		return nil, err
	}
	end := func() error { return p.End(10 * time.Second) }
	ends, err := accept()
	if err == nil {
		err = introduce(ends)
	}
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return &cabled{ends, func() error { return errors.Join(closeEnds(ends), end()) }}, nil
}

func (b *bench) ourSegment(dir string) (*cabled, error) {
	return b.streams(dir, func(sockets []string) (*process.Process, error) {
		p, _, err := b.startPart("", partSegment, part{Sockets: sockets})
		return p, err
	})
}

// peerSwitch is gvisor-tap-vsock's.
func (b *bench) peerSwitch(ctx context.Context, dir string) (*cabled, error) {
	program := filepath.Join(b.dir, "peers")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, ".")
	build.Dir, build.Env = peersDir, append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s (its modules come from the Go module proxy): %w\n%s", peersDir, err, out)
	}
	return b.streams(dir, func(sockets []string) (*process.Process, error) {
		p, _, err := startTelling(process.Command{Args: append([]string{program}, sockets...)})
		return p, err
	})
}

// bridge is the kernel's: a bridge, and a veth pair to each machine, which is in a network namespace of its own.
func bridge(ctx context.Context) (_ *cabled, err error) {
	middle := fmt.Sprintf("tombolo-bench-%d-bridge", os.Getpid())
	l := &link{namespaces: []string{middle}}
	c := &cabled{close: func() error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeEnds(c.ends), l.close())
		}
	}()
	steps := []string{"netns add " + middle, "-n " + middle + " link add bridge type bridge forward_delay 0 stp_state 0", "-n " + middle + " link set bridge up"}
	for i := range segmentMachines {
		own, port := fmt.Sprintf("%s-%d", middle, i), fmt.Sprintf("port%d", i)
		l.namespaces = append(l.namespaces, own)
		steps = append(steps, "netns add "+own,
			fmt.Sprintf("-n %s link add nic address %s type veth peer name %s netns %s", own, addressOf(i), port, middle),
			fmt.Sprintf("-n %s link set %s master bridge up", middle, port), "-n "+own+" link set nic up")
	}
	for _, s := range steps {
		if err := run(ctx, "ip", strings.Fields(s)...); err != nil {
			return nil, err
		}
	}
	for i := range segmentMachines {
		own := l.namespaces[i+1]
		for namespace, device := range map[string]string{own: "nic", middle: fmt.Sprintf("port%d", i)} {
			if err := run(ctx, "ip", "netns", "exec", namespace, "ethtool", "-K", device, "rx", "off", "tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off"); err != nil {
				return nil, err
			}
		}
		p, err := openPacket(own, "nic")
		if err != nil {
			return nil, err
		}
		c.ends = append(c.ends, p)
	}
	c.close = func() error { return errors.Join(closeEnds(c.ends), l.close()) }
	return c, introduce(c.ends)
}

// segmentRows measures what a segment in user space carries, between generators of frames.
func (b *bench) segmentRows(ctx context.Context) (err error) {
	if os.Getuid() != 0 {
		return errors.New("bridge and veth need root")
	}
	names := []string{"segment", "bridge", "peer", "paused"}
	nets := map[string]*cabled{}
	defer func() {
		for _, n := range nets {
			err = errors.Join(err, n.close())
		}
	}()
	for _, name := range names {
		dir := filepath.Join(b.dir, name)
		switch name {
		case "bridge":
			nets[name], err = bridge(ctx)
		case "peer":
			nets[name], err = b.peerSwitch(ctx, dir)
		default:
			nets[name], err = b.ourSegment(dir)
		}
		if err != nil {
			delete(nets, name)
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	t := &report.Table{Name: "segment", Head: []string{"frame, bytes", "frames in a call", "segment, 1000 frames/s", "Gbit/s", "bridge and veth, 1000 frames/s", "of it", "gvisor-tap-vsock, 1000 frames/s", "times it"}}
	for _, size := range []int{1514, 64} {
		for _, burst := range []int{1, frameBurst} {
			rates := map[string][]float64{}
			for range b.rounds {
				for _, name := range names[:3] {
					rate, err := flow{ends: nets[name].ends, size: size, burst: burst}.pump(ctx, b.roundTime)
					if err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
					rates[name] = append(rates[name], rate)
				}
			}
			ours := median(rates["segment"])
			kernel, peer := ratios(rates["segment"], rates["bridge"]), ratios(rates["segment"], rates["peer"])
			t.Add(size, burst, ours/1000, ours*float64(size)*8/1e9, median(rates["bridge"])/1000, spread(kernel), median(rates["peer"])/1000, spread(peer))
			if size == 1514 {
				b.goals.AtLeast(fmt.Sprintf("segment / bridge and veth, frames of 1514 bytes, %d in a call", burst), 0.5, median(kernel), "")
				b.goals.AtLeast(fmt.Sprintf("segment / gvisor-tap-vsock's switch, frames of 1514 bytes, %d in a call", burst), 1.5, median(peer), "")
			}
		}
	}
	beside := map[string][]float64{}
	for range b.rounds {
		for _, name := range []string{"segment", "paused"} {
			rate, err := flow{ends: nets[name].ends, size: 1514, burst: 1, side: true, stuck: name == "paused"}.pump(ctx, b.roundTime)
			if err != nil {
				return fmt.Errorf("a third machine, %s: %w", name, err)
			}
			beside[name] = append(beside[name], rate)
		}
	}
	paused := ratios(beside["paused"], beside["segment"])
	b.goals.AtLeast("segment with a paused machine / with one that reads", 0.9, median(paused), "")
	t.Note("Frames that arrive at one generator's sink from another, %d at most on their way, so that none is sent to be dropped; medians of %d alternating rounds of %s, and of their ratios with the least and the largest. The segment is in a process of its own, as is gvisor-tap-vsock's switch (a Go module of its own, %s); both connect to unix sockets and speak QEMU's protocol. The bridge has a veth pair to each of three network namespaces, without offloads; frames come and go through packet sockets past the queueing discipline. One frame in a call (write, sendmmsg) is what QEMU does.",
		frameWindow, b.rounds, b.roundTime, peersDir)
	t.Note("A third machine, to which every 32nd frame of 1514 bytes goes, costs the other two nothing when it never reads: %s thousand frames/s arrive at the second one, and %s when the third reads; of it %s.", report.Number(median(beside["paused"])/1000), report.Number(median(beside["segment"])/1000), spread(paused))
	b.tables = append(b.tables, t)
	return nil
}

// ratios are those of each round.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// spread is the median with the least and the largest.
func spread(x []float64) string {
	return fmt.Sprintf("%s (%s to %s)", report.Number(median(x)), report.Number(slices.Min(x)), report.Number(slices.Max(x)))
}

// extremes are the least and the largest.
func extremes(x []float64) (least, most float64) { return slices.Min(x), slices.Max(x) }
