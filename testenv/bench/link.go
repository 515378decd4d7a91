package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// link is how two sides reach each other: in network namespaces of their own, so that what the interface counts is
// theirs alone.
type link struct {
	name             string
	sender, receiver string // namespaces
	address          string // of the sender
	counter          string // interface of the receiver
	namespaces       []string
}

// openLoopback makes one namespace that both sides are in.
func openLoopback(ctx context.Context) (*link, error) {
	n := fmt.Sprintf("tombolo-bench-%d", os.Getpid())
	l := &link{name: "loopback", sender: n, receiver: n, address: "127.0.0.1", counter: "lo", namespaces: []string{n}}
	return l, l.make(ctx, "netns add "+n, "-n "+n+" link set lo up")
}

// openShaped makes two namespaces with a link of 1 Gbit/s in each direction.
func openShaped(ctx context.Context) (*link, error) {
	a, b := fmt.Sprintf("tombolo-bench-%d-a", os.Getpid()), fmt.Sprintf("tombolo-bench-%d-b", os.Getpid())
	l := &link{name: "1 Gbit/s", sender: a, receiver: b, address: "10.77.0.1", counter: "wire", namespaces: []string{a, b}}
	err := l.make(ctx, "netns add "+a, "netns add "+b, "-n "+a+" link set lo up", "-n "+b+" link set lo up",
		"-n "+a+" link add wire type veth peer name wire netns "+b,
		"-n "+a+" address add 10.77.0.1/24 dev wire", "-n "+b+" address add 10.77.0.2/24 dev wire",
		"-n "+a+" link set wire up", "-n "+b+" link set wire up")
	for _, n := range l.namespaces {
		if err == nil {
			err = run(ctx, "tc", "-n", n, "qdisc", "add", "dev", "wire", "root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms")
		}
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *link) make(ctx context.Context, steps ...string) error {
	for _, s := range steps {
		if err := run(ctx, "ip", strings.Fields(s)...); err != nil {
			return errors.Join(err, l.close())
		}
	}
	return nil
}

// close takes away what was made.
func (l *link) close() error {
	var errs []error
	for _, n := range l.namespaces {
		errs = append(errs, run(context.Background(), "ip", "netns", "del", n))
	}
	l.namespaces = nil
	return errors.Join(errs...)
}

// bytes is what the interface has carried, in both directions.
func (l *link) bytes(ctx context.Context) (int64, error) {
	out, err := exec.CommandContext(ctx, "ip", "netns", "exec", l.receiver, "cat", "/proc/net/dev").Output()
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(out)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(rest)
		if name != l.counter || len(fields) < 9 {
			continue
		}
		received, err := strconv.ParseInt(fields[0], 10, 64)
		if l.counter == "lo" || err != nil { // what loopback sends it receives
			return received, err
		}
		sent, err := strconv.ParseInt(fields[8], 10, 64)
		return received + sent, err
	}
	return 0, fmt.Errorf("%s has no interface %s", l.receiver, l.counter)
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
