package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
)

// reconnectPause is how long an agent waits between attempts to reach the bus.
const reconnectPause = 50 * time.Millisecond

// hostCommand has a region's networks in a process of their own, as in the
// product: it is not ended at steps, and outlives the agent that is.
const hostCommand = "region-host"

// Env names the variable with the Dir of a process that Main is to be.
const Env = "TOMBOLO_TESTENV_FAULTS"

// Main is a process of the program with the steps in it: it understands the
// parts of `tombolo server`, `tombolo agent run` and `tombolo region-host` that
// package testenv uses.
// A test's TestMain calls it where Env is set, and ends with its exit code.
func Main(dir Dir, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, dir, args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(ctx context.Context, dir Dir, args []string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	flags := pflag.NewFlagSet("testenv", pflag.ContinueOnError)
	var c program.Config
	var a program.AgentConfig
	data := flags.String("data", "", "")
	enrolment := flags.String("enrolment", "", "")
	sync := flags.String("sync", "always", "")
	leave := flags.Bool("leave-running", false, "")
	flags.StringP("output", "o", "", "")
	flags.CountP("verbose", "v", "")
	flags.StringVar(&c.HTTP, "http", "127.0.0.1:0", "")
	flags.StringVar(&c.NATS, "nats", "127.0.0.1:0", "")
	flags.StringSliceVar(&c.Regions, "regions", nil, "")
	flags.StringVar(&a.TransferAdvertise, "transfer-advertise", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.Arg(0) == "server" {
		c.Dir, c.Alone, c.Lazy, c.Log, c.Journal = *data, true, *sync == "lazy", log, dir.Journal
		return server(ctx, c)
	}
	if flags.Arg(0) == hostCommand {
		return program.HostProcess(ctx, flags.Arg(1), flags.Arg(2), "", log)
	}
	var err error
	if a.Enrolment, err = program.ReadEnrolment(*enrolment); err != nil {
		return err
	}
	a.Dir, a.Log, a.Instrument = *data, log, dir.Agent
	a.Guests = program.Guests{Accelerator: os.Getenv("TOMBOLO_ACCELERATOR"), LeaveRunning: *leave, Host: []string{os.Args[0], hostCommand}}
	a.TransferListen, a.HTTPListen = "127.0.0.1:0", "127.0.0.1:0"
	return agent(ctx, a)
}

func server(ctx context.Context, c program.Config) (err error) {
	p, err := program.New(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	go func() {
		if p.Ready(ctx) == nil {
			_ = json.NewEncoder(os.Stdout).Encode(p.Addresses()) // nobody reads it: the test has ended
		}
	}()
	return p.Run(ctx)
}

func agent(ctx context.Context, c program.AgentConfig) (err error) {
	// The control plane ends every moment, and is back at once.
	a, err := program.NewAgent(ctx, c, nats.ReconnectWait(reconnectPause), nats.ReconnectJitter(0, 0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	go func() {
		if a.Ready(ctx) != nil {
			return
		}
		http, transfer := a.Listens()
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"region": c.Enrolment.Region, "agent": a.ID(), "http": "http://" + a.HTTPAddress(),
			"transfer": a.TransferAddress(), "listen": map[string]string{"http": http, "transfer": transfer}}) // as above
	}()
	return a.Run(ctx)
}
