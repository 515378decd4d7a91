package program

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/commands/client"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// agent is a region's agent with its connection to the bus.
type agent struct {
	*region.Agent
	conn *bus.Conn
}

// Close ends both.
func (a agent) Close() error {
	err := a.Agent.Close()
	a.conn.Close()
	return err
}

// Devices is the unix socket on which a region of this process serves the disks
// of its environments.
func (p *Program) Devices(id events.RegionID) (string, error) {
	<-p.agentsOpen
	for _, a := range p.agents {
		if served, ok := a.Agent.(agent); ok && a.region == id {
			return served.Devices(), nil
		}
	}
	return "", &Error{"region-elsewhere", fmt.Sprintf("the agent of %s does not run in this process", id), "ask on its own host"}
}

// openAgent opens the agent of one region in this process. It has the agent's
// own credential and no more rights than one on another host.
func (p *Program) openAgent(ctx context.Context, id events.RegionID) (agent, error) {
	log := p.config.Log.With("part", "agent", "region", id)
	conn, err := bus.Connect(p.bus.URL(), p.keys.agents[id].Seed, p.bus.InProcess(), nats.Name("agent-"+string(id)))
	if err != nil {
		return agent{}, err
	}
	a, err := p.composeAgent(ctx, id, conn, log)
	if err != nil {
		conn.Close()
		return agent{}, err
	}
	return agent{a, conn}, nil
}

func (p *Program) composeAgent(ctx context.Context, id events.RegionID, conn *bus.Conn, log *slog.Logger) (*region.Agent, error) {
	j, err := journal.Open(ctx, conn.Conn, journal.Options{Registry: events.NewRegistry(), Known: p.journalID})
	if err != nil {
		return nil, fmt.Errorf("open the journal for reading: %w", err)
	}
	authority, err := trust.OpenAuthority(p.dir("keys"))
	if err != nil {
		return nil, err
	}
	certificate, err := authority.Region(p.dir("keys"), id)
	if err != nil {
		return nil, err
	}
	docs := documents.NewRemote(conn.Conn)
	control := client.New(conn, id)
	return region.Open(region.Config{
		Dir: p.dir("regions", string(id)), Region: id,
		Journal: j, Commander: control, Documents: docs,
		Progress: func(r region.Progress) {
			if err := control.Progress(r.Account, r.Work, r); err != nil {
				log.Debug("progress could not be told", "error", err)
			}
		},
		Log:         log,
		Certificate: certificate, Authority: authority.Pool(),
		TransferListen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0",
		HTTP: func(a *region.Agent) http.Handler {
			return api.New(api.Config{Feed: a.Feed(), Journal: j, Users: directory{a.Feed()}, Log: log, Host: a, Now: time.Now,
				Home: p.Addresses().HTTP, Source: "urn:uuid:" + p.journalID, Version: p.config.Version, Documents: docs})
		},
		Authorize: authorize,
	})
}

// authorize reads the bearer token of an upload and gives the account it acts
// for. Readers and agents send no disks.
func authorize(r *http.Request, feed *projections.Feed) (events.AccountID, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", errors.New("send the bearer token of your context")
	}
	sum := sha256.Sum256([]byte(token))
	u, found, err := directory{feed}.ByToken(r.Context(), events.Digest("sha256:"+hex.EncodeToString(sum[:])))
	switch {
	case err != nil:
		return "", err
	case !found || u.Role != events.Administrator && u.Role != events.Operator:
		return "", errors.New("nobody who may send disks is known by this token")
	}
	return u.Account, nil
}
