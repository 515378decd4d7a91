package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// agentAddresses is what `agent run -o json` prints once it can be used.
type agentAddresses struct {
	Region   string `json:"region"`
	Agent    string `json:"agent"`
	HTTP     string `json:"http"`
	Transfer string `json:"transfer"`
	Listen   struct {
		HTTP     string `json:"http"`
		Transfer string `json:"transfer"`
	} `json:"listen"` // where it listens; the others are as it is reached
}

func (a *app) agentCommand() *cobra.Command {
	var region, file string
	enroll := a.verb("enroll --region R -o FILE", "Fetch the key and certificates of a region's agent on another host", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if region == "" || file == "" {
			return usage("agent enroll needs --region and -o with a file").withNext("tombolo agent enroll --region %s -o %s.json", "sydney", "sydney")
		}
		return a.enroll(ctx, region, file)
	})
	enroll.Flags().StringVar(&region, "region", "", "whose agent it is")
	enroll.Flags().StringVarP(&file, "output", "o", "", "file to write; it holds secrets, and only its owner can read it")

	var c program.AgentConfig
	var enrolment string
	run := a.verb("run --enrolment FILE", "Run one region's agent alone", cobra.NoArgs, func(ctx context.Context, _ []string) (err error) {
		if a.output != "table" && a.output != "json" {
			return usage("agent run -o %s: table or json", a.output)
		}
		if enrolment == "" {
			return usage("agent run needs --enrolment with a file").withNext("tombolo agent enroll --region R -o FILE writes one")
		}
		if c.Enrolment, err = program.ReadEnrolment(enrolment); err != nil {
			return err
		}
		c.Log, c.Version = a.log(), version()
		return a.runAgent(ctx, c)
	})
	a.guestFlags(run, &c.Guests)
	f := run.Flags()
	f.StringVar(&c.Dir, "data", "tombolo-agent", "data directory; one that is there is continued")
	f.StringVar(&enrolment, "enrolment", "", "file that agent enroll has written")
	f.StringVar(&c.TransferListen, "transfer-listen", "127.0.0.1:0", "where other regions pull from; port 0 picks one")
	f.StringVar(&c.HTTPListen, "http-listen", "127.0.0.1:0", "where people ask and send disks; port 0 picks one")
	f.StringVar(&c.TransferAdvertise, "transfer-advertise", "", "the same, host:port, as other regions reach it")
	f.StringVar(&c.HTTPAdvertise, "http-advertise", "", "the same, host:port, as people reach it")
	f.Int64Var(&c.LinkBytesPerSecond, "link-bytes-per-second", 0, "cap for what each link from another region brings in; 0 is none")
	return noun("agent", "A region's agent", enroll, run)
}

func (a *app) enroll(ctx context.Context, region, file string) error {
	c, err := a.signIn()
	if err != nil {
		return err
	}
	b, _, err := c.write(ctx, http.MethodPost, "/v1/regions/"+url.PathEscape(region)+"/enrol", nil)
	if err != nil {
		return err
	}
	var e program.Enrolment
	if err := json.Unmarshal(b, &e); err != nil {
		return fail(exitError, "not-tombolo", "the server's answer cannot be read: %v", err)
	}
	if err := e.Write(file); err != nil {
		return fail(exitError, "file-unwritable", "the enrolment cannot be written: %v", err)
	}
	a.say("%s is written; on the region's host: tombolo agent run --data DIR --enrolment %s", file, file)
	return nil
}

func (a *app) runAgent(ctx context.Context, c program.AgentConfig) (err error) {
	agent, err := program.NewAgent(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, agent.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() {
		ran <- agent.Run(ctx)
		cancel()
	}()
	if err := agent.Ready(ctx); err == nil {
		at := agentAddresses{Region: string(c.Enrolment.Region), Agent: agent.ID(), HTTP: trust.URL(agent.HTTPAddress()), Transfer: agent.TransferAddress()}
		at.Listen.HTTP, at.Listen.Transfer = agent.Listens()
		if err := a.announceAgent(at); err != nil {
			cancel()
			return errors.Join(err, <-ran)
		}
	}
	return <-ran
}

func (a *app) announceAgent(at agentAddresses) error {
	if a.output != "json" {
		_, err := fmt.Fprintf(a.out, "region    %s\nagent     %s\nHTTP      %s\ntransfer  %s\n", at.Region, at.Agent, at.HTTP, at.Transfer)
		return err
	}
	b, err := json.Marshal(at)
	if err == nil {
		_, err = fmt.Fprintln(a.out, string(b))
	}
	return err
}
