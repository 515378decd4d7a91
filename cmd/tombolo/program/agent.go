package program

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
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

// AgentConfig says which region's agent to start, and how.
type AgentConfig struct {
	Dir       string // data directory; one process at a time
	Enrolment Enrolment

	TransferListen, HTTPListen       string // host:port; port 0 picks one
	TransferAdvertise, HTTPAdvertise string // as others reach it; empty: where it listens
	LinkBytesPerSecond               int64  // cap for what each link brings in; 0: none
	Guests

	Version string
	Log     *slog.Logger // required
	// Instrument may put something between the agent and what it works with, for
	// tests that end it there; nil in a product.
	Instrument func(*region.Config)
}

// RegionAgent is a region's agent with its connection to the bus.
type RegionAgent struct {
	*region.Agent
	conn   *bus.Conn
	log    *slog.Logger
	region events.RegionID
	ends   time.Time // of its certificate
}

// Close ends both.
func (a *RegionAgent) Close() error {
	err := a.Agent.Close()
	a.conn.Close()
	return err
}

// Devices is the unix socket on which a region of this process serves the disks
// of its environments.
func (p *Program) Devices(id events.RegionID) (string, error) {
	<-p.agentsOpen
	for _, a := range p.agents {
		if a.region == id {
			return a.RegionAgent.Devices(), nil
		}
	}
	return "", &Error{Code: "region-elsewhere", Text: fmt.Sprintf("the agent of %s does not run in this process", id), Next: "ask on its own host"}
}

// Run is the agent's. Errors besides its own: *Error with event-unknown.
func (a *RegionAgent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { a.watchCertificate(ctx) })
	defer watch.Wait()
	defer cancel()
	return explained(a.Agent.Run(ctx))
}

// watchCertificate says once a day that the certificate ends soon, until the
// context ends.
func (a *RegionAgent) watchCertificate(ctx context.Context) {
	day := time.NewTicker(24 * time.Hour)
	defer day.Stop()
	for now := time.Now(); ; {
		a.tellEnd(now)
		select {
		case <-ctx.Done():
			return
		case now = <-day.C:
		}
	}
}

func (a *RegionAgent) tellEnd(now time.Time) {
	if a.ends.Sub(now) < trust.EndsSoon {
		a.log.Warn("the region's certificate ends; after that no other region believes it", "ends", a.ends.UTC(), "next", enrolAgain(a.region))
	}
}

func enrolAgain(r events.RegionID) string {
	return fmt.Sprintf("enrol again (tombolo agent enroll --region %s -o FILE; one that runs in the control plane's process: start that again), and start the agent with it", r)
}

// reconnectPause is how long an agent waits between attempts to reach the bus.
const reconnectPause = 500 * time.Millisecond

// NewAgent opens the data directory and everything over it, and waits for the
// bus. Nothing is answered before Run, which goes on through losses of the bus.
// Errors: *Error, *region.Error, or what lies beneath.
func NewAgent(ctx context.Context, c AgentConfig, options ...nats.Option) (_ *RegionAgent, err error) {
	if err := c.Guests.check(); err != nil {
		return nil, err
	}
	c.Log = c.Log.With("part", "agent", "region", c.Enrolment.Region)
	options = append([]nats.Option{
		nats.Name("agent-" + string(c.Enrolment.Region)), nats.ReconnectWait(reconnectPause), nats.RetryOnFailedConnect(true),
		// A control plane that has just come up may not know its users yet.
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.Log.Warn("the bus is not reached", "error", err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // without one it was this process that closed it
				c.Log.Warn("the bus is lost", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { c.Log.Info("the bus is back") }),
	}, options...)
	certificate, authority, err := c.Enrolment.identity()
	if err != nil {
		return nil, err
	}
	if err := trust.CheckRegion(certificate, authority, c.Enrolment.Region, time.Now()); err != nil {
		bad, ok := errors.AsType[*trust.Error](err)
		if !ok {
			return nil, err
		}
		return nil, &Error{Code: string(bad.Code), Text: bad.Text, Next: enrolAgain(c.Enrolment.Region) + "; if it is good, look at this host's clock"}
	}
	if strings.HasPrefix(c.Enrolment.NATS, "tls://") {
		options = append(options, nats.Secure(trust.ToControl(authority)))
	}
	conn, err := bus.Connect(c.Enrolment.NATS, c.Enrolment.Seed, options...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	j, err := openRemoteJournal(ctx, conn.Conn, c)
	if err != nil {
		return nil, err
	}
	docs := documents.NewRemote(conn, c.Enrolment.Signer)
	control := client.New(conn, c.Enrolment.Region)
	holders := func(f *projections.Feed) ticketHolders {
		return ticketHolders{&directory{feed: f}, c.Enrolment.Signer, c.Enrolment.Region}
	}
	composed := region.Config{
		Dir: c.Dir, Region: c.Enrolment.Region,
		Journal: j, Commander: control, Documents: docs,
		Progress: func(r region.Progress) {
			if err := control.Progress(r.Account, r.Work, r); err != nil {
				c.Log.Debug("progress could not be told", "error", err)
			}
		},
		Log:         c.Log,
		Certificate: certificate, Authority: authority,
		TransferListen: c.TransferListen, HTTPListen: c.HTTPListen,
		TransferAdvertise: c.TransferAdvertise, HTTPAdvertise: c.HTTPAdvertise,
		LinkBytesPerSecond: c.LinkBytesPerSecond,
		HTTP: func(a *region.Agent) http.Handler {
			return api.New(api.Config{Feed: a.Feed(), Journal: j, Users: holders(a.Feed()), Log: c.Log, Now: time.Now, Host: a,
				Home: c.Enrolment.HTTP, Source: "urn:uuid:" + c.Enrolment.Journal, Version: c.Version, Documents: docs})
		},
		Authorize: func(r *http.Request, f *projections.Feed, environment events.EnvironmentID) (events.AccountID, error) {
			return holders(f).authorize(r, environment)
		},
	}
	c.Guests.compose(&composed, c.Version)
	if c.Instrument != nil {
		c.Instrument(&composed)
	}
	a, err := region.Open(composed)
	if err != nil {
		return nil, err
	}
	return &RegionAgent{a, conn, c.Log, c.Enrolment.Region, certificate.Leaf.NotAfter}, nil
}

// openRemoteJournal opens the journal for reading, as soon as the bus is there.
func openRemoteJournal(ctx context.Context, conn *nats.Conn, c AgentConfig) (*journal.JetStream, error) {
	for {
		within, cancel := context.WithTimeout(ctx, openPatience)
		lost := conn.StatusChanged(nats.RECONNECTING, nats.CLOSED) // then no answer comes any more
		go func() {
			select {
			case <-lost:
				cancel()
			case <-within.Done():
			}
		}()
		j, err := journal.Open(within, conn, journal.Options{Registry: events.NewRegistry(), Known: c.Enrolment.Journal})
		cancel()
		conn.RemoveStatusListener(lost)
		switch {
		case err == nil:
			return j, nil
		case errors.Is(err, journal.ErrVanished):
			return nil, &Error{Code: "journal-unknown", Text: fmt.Sprintf("the control plane at %s is not the one that enrolled this region: %v", c.Enrolment.NATS, err),
				Next: "ask its administrator for an enrolment"}
		case errors.Is(err, journal.ErrMismatch):
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		c.Log.Warn("the agent waits for the control plane", "at", c.Enrolment.NATS, "error", err)
		select {
		case <-time.After(reconnectPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// openPatience is how long one attempt to open the journal from afar may take.
const openPatience = 5 * time.Second

// openAgent opens the agent of one region in this process. It has the agent's
// own credential and no more rights than one on another host.
func (p *Program) openAgent(ctx context.Context, id events.RegionID) (*RegionAgent, error) {
	e, err := p.enrolment(id, p.keys.agents[id])
	if err != nil {
		return nil, err
	}
	// People, and regions on other hosts, reach the regions where they reach the control plane.
	host, _, err := net.SplitHostPort(p.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	listen, advertise := net.JoinHostPort(host, "0"), ""
	if !trust.Local(host) {
		advertise = p.advertised(listen)
	}
	return NewAgent(ctx, AgentConfig{Dir: p.regionDir(id), Enrolment: e, TransferListen: listen, HTTPListen: listen, TransferAdvertise: advertise, HTTPAdvertise: advertise,
		Guests: p.config.Guests, Version: p.config.Version, Log: p.config.Log}, p.bus.InProcess())
}
