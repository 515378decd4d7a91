package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
)

func (a *app) upCommand() *cobra.Command {
	up, c := a.starter("up", "Start everything in one process: bus, control plane, regions, HTTP")
	up.AddCommand(a.settingsSchema())
	a.guestFlags(up, &c.Guests)
	up.Flags().StringSliceVar(&c.Regions, "regions", nil, "regions to run (default: those of --config, or of the directory, or beijing,sydney,chicago)")
	return up
}

func (a *app) serverCommand() *cobra.Command {
	server, c := a.starter("server", "Start the control plane alone; the regions' agents run elsewhere (agent run)")
	c.Alone = true
	server.AddCommand(a.serverGrow(), a.serverBackup(), a.serverRestore())
	server.Flags().StringSliceVar(&c.Regions, "regions", nil, "regions to make known, as region add does")
	return server
}

// starter makes a command that starts a program.
func (a *app) starter(name, short string) (*cobra.Command, *program.Config) {
	c := &program.Config{}
	var sync, config string
	start := a.verb(name, short, cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if a.output != "table" && a.output != "json" {
			return usage("%s -o %s: table or json", name, a.output)
		}
		switch sync {
		case "always":
		case "lazy":
			c.Lazy = true
		default:
			return usage("--sync %s: always or lazy", sync)
		}
		if config != "" {
			var err error
			if c.Settings, err = readSettings(config); err != nil {
				return err
			}
		}
		c.Log, c.Version = a.log(), version()
		return a.up(ctx, *c)
	})
	f := start.Flags()
	f.StringVar(&config, "config", "", "a YAML file that says which regions there are, where they are, and what their pools have (tombolo up schema)")
	f.StringVar(&c.Dir, "data", "tombolo-data", "data directory; one that is there is continued")
	f.StringVar(&c.HTTP, "http", "127.0.0.1:7080", "address of the HTTP interface; port 0 picks one")
	f.StringVar(&c.NATS, "nats", "127.0.0.1:4222", "address of the bus; port 0 picks one")
	f.StringSliceVar(&c.Advertise, "advertise", nil, "names or addresses by which other hosts reach this one, the preferred one first (default: its own); what does not listen on loopback is reached by TLS")
	f.Int64Var(&c.Bytes, "journal-size", 0, "most bytes that the journal of a new directory may take (default: 8 GiB, or a quarter of what the disk has free); server grow raises it")
	f.StringVar(&sync, "sync", "always", "when an event is acknowledged: always (it is on the disk) or lazy (a power cut loses the last two minutes)")
	return start, c
}

func (a *app) up(ctx context.Context, c program.Config) (err error) {
	p, err := program.New(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() {
		ran <- p.Run(ctx)
		cancel()
	}()
	// What is printed can be used at once.
	if err := p.Ready(ctx); err == nil {
		if err := a.announce(p); err != nil {
			cancel()
			return errors.Join(err, <-ran)
		}
	}
	return <-ran
}

func (a *app) announce(p *program.Program) error {
	at := p.Addresses()
	a.adopt(p.Administrator(), at.Context)
	if a.output == "json" {
		b, err := json.Marshal(at)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out, string(b))
		return err
	}
	fmt.Fprintf(a.out, "HTTP     %s\nNATS     %s\nregions  %s\ncontext  %s\n", at.HTTP, at.NATS, strings.Join(at.Regions, ", "), at.Context)
	a.say("ctrl-C ends it; in another shell: tombolo --context %s region ls", at.Context)
	return nil
}

// adopt makes a context known to the command line, and the current one where
// there is none. Where there is no place for that, it is left.
func (a *app) adopt(c contexts.Context, path string) {
	dir, err := a.configDir()
	if err != nil {
		return
	}
	known, err := contexts.Load(dir)
	if err != nil {
		a.say("the list of contexts is left as it is: %v", err)
		return
	}
	before := known.Current
	if _, err := os.Stat(known.Files[known.Current]); err != nil {
		known.Current = c.Name
	}
	if known.Files[c.Name] == path && known.Current == before {
		return
	}
	known.Files[c.Name] = path
	if err := known.Save(); err != nil {
		a.say("the list of contexts is left as it is: %v", err)
	}
}

// guestFlags say how regions run machines and networks.
func (a *app) guestFlags(c *cobra.Command, g *program.Guests) {
	f := c.Flags()
	f.StringVar(&g.Accelerator, "accelerator", cmp.Or(a.env("TOMBOLO_ACCELERATOR"), program.Accelerators()[0]), "what runs machines: "+strings.Join(program.Accelerators(), ", ")+"; auto takes kvm where a guest is seen to run with it, none runs none")
	f.StringVar(&g.Networks, "networks", cmp.Or(a.env("TOMBOLO_NETWORKS"), program.NetworkKinds()[0]), "what networks are made of: user needs no privilege, kernel needs root")
	f.BoolVar(&g.LeaveRunning, "leave-running", false, "leave machines running when this ends; they are suspended otherwise, and go on with the next start")
	if self, err := os.Executable(); err == nil { // else networks are in this process, and end with it
		g.Host = []string{self, hostCommand}
	}
}

// hostCommand is the command of a region's host process.
const hostCommand = "region-host"

// regionHost is started by agents, and by nobody else.
func (a *app) regionHost() *cobra.Command {
	c := a.verb(hostCommand+" KIND DIR", "Have a region's networks, for its agent", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		return program.HostProcess(ctx, args[0], args[1], version(), a.log())
	})
	c.Hidden = true
	return c
}
