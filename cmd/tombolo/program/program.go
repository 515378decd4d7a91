// Package program is the whole server as a value: the embedded bus, the journal,
// the projections, the door, the processes and the HTTP interface, composed over
// one data directory. `tombolo up` runs one; tests and the demo start it on port
// 0 of their own process.
package program

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/datadir"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/processes"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Config says what to start.
type Config struct {
	Dir     string   // data directory; one process at a time
	HTTP    string   // host:port; port 0 picks one
	NATS    string   // host:port; port 0 picks one
	Regions []string // whose agents run in this process; empty: those that were there before
	// Advertise are names or addresses by which other hosts reach this one, the
	// preferred one first; empty: its own. See openTrust.
	Advertise []string
	Settings  Settings // what is said of regions and their pools
	Alone     bool     // the control plane alone: Regions are made known, and their agents run elsewhere
	Bytes     int64    // most that the journal of a new directory may take; 0: 8 GiB, or half of what the disk has for the bus
	Lazy      bool     // acknowledge before the disk has it: for tests and trials only
	Guests             // of the regions whose agents run in this process
	Version   string
	Log       *slog.Logger // required
	// Journal may put something between those who append and the journal, for
	// tests that end the program there; nil in a product.
	Journal func(journal.Journal) journal.Journal
}

// Program is a composed server.
type Program struct {
	config       Config
	refused      bool // New fails: of a new data directory nothing stays
	bus          *bus.Server
	conn         *nats.Conn
	journal      *journal.JetStream
	store        *projections.Store
	feed         *projections.Feed
	directory    *directory
	executor     *commands.Executor
	runner       *processes.Runner
	door         *commands.Door
	inbox        *commands.Inbox
	feeds        *bus.Feeds
	journalID    string
	signer       ed25519.PublicKey
	tickets      api.Tickets
	authority    *trust.Authority
	tls          *tls.Config // of whatever does not listen on loopback
	documents    *documents.Bucket
	bootstrapped uint64 // position at which accounts and regions are there
	listener     net.Listener
	server       *http.Server
	keys         keyring
	users        atomic.Pointer[directory] // for the bus, which is there before the projections
	agents       []namedAgent
	agentsOpen   chan struct{}  // closed once agents is complete
	closers      []func() error // in the order of opening
	backing      sync.Mutex     // one backup at a time
}

type namedAgent struct {
	region events.RegionID
	*RegionAgent
}

// Addresses is where a program can be reached.
type Addresses struct {
	HTTP    string   `json:"http"`
	NATS    string   `json:"nats"`
	Dir     string   `json:"dir"`
	Context string   `json:"context"` // file with the administrator's credentials
	Regions []string `json:"regions"`
}

// Error is a failure to start that a person can do something about.
type Error = fault.Error[string]

// DefaultRegions are those of a new data directory if nobody names others.
func DefaultRegions() []string { return []string{"beijing", "sydney", "chicago"} }

// The most that the journal of a new directory may take, and commands that wait.
const (
	journalBytes = 8 << 30
	inboxBytes   = 1 << 30
)

// New opens the data directory and everything over it. Nothing is answered
// before Run. Errors: *Error, or what lies beneath.
func New(ctx context.Context, c Config) (_ *Program, err error) {
	if err := c.Guests.check(); err != nil {
		return nil, err
	}
	p := &Program{config: c, agentsOpen: make(chan struct{})}
	defer func() {
		if err != nil {
			p.refused = true
			err = errors.Join(explained(err), p.Close())
		}
	}()
	if p.config.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, err
	}
	if err := p.lockDir(); err != nil {
		return nil, err
	}
	if err := p.chooseRegions(); err != nil {
		return nil, err
	}
	if p.keys, err = openKeys(p.dir("keys"), p.config.Regions); err != nil {
		return nil, err
	}
	if err := p.openTrust(); err != nil {
		return nil, err
	}
	// The HTTP port is taken first: it is the cheapest thing to be wrong.
	if p.listener, err = listen(c.HTTP); err != nil {
		return nil, err
	}
	p.opened(func() error {
		if err := p.listener.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	if err := p.openJournal(ctx); err != nil {
		return nil, err
	}
	if err := p.openReads(); err != nil {
		return nil, err
	}
	if err := p.bootstrap(ctx); err != nil {
		return nil, explained(fmt.Errorf("set up accounts and regions: %w", err))
	}
	if err := p.openFeeds(ctx); err != nil {
		return nil, err
	}
	if err := p.openDoor(ctx); err != nil {
		return nil, err
	}
	if err := p.openHTTP(ctx); err != nil {
		return nil, err
	}
	return p, p.writeContexts()
}

func (p *Program) dir(parts ...string) string {
	return filepath.Join(append([]string{p.config.Dir}, parts...)...)
}

func (p *Program) opened(close func() error) { p.closers = append(p.closers, close) }

func (p *Program) lockDir() error {
	unusable := func(err error) error {
		return &Error{Code: "data-dir-unusable", Text: fmt.Sprintf("the data directory cannot be used: %v", err), Next: "choose another one with --data"}
	}
	if _, _, err := datadir.IsNew(p.config.Dir); errors.Is(err, datadir.ErrForeign) {
		return &Error{Code: "data-dir-foreign", Text: err.Error(), Next: "name a new or an empty directory with --data, or one that tombolo up has made"}
	} else if err != nil {
		return unusable(err)
	}
	made, err := datadir.Make(p.config.Dir)
	if err != nil {
		return unusable(err)
	}
	f, err := os.OpenFile(p.dir("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return unusable(err)
	}
	inUse := &Error{Code: "data-in-use", Text: "another process works on " + p.config.Dir, Next: "end it, or choose another directory with --data"}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(inUse, f.Close())
	}
	p.opened(f.Close)
	ours, err := f.Stat()
	if err != nil {
		return unusable(err)
	}
	// Another start that was refused has taken the directory away meanwhile.
	if there, err := os.Stat(p.dir("lock")); err != nil || !os.SameFile(there, ours) {
		return inUse
	}
	isNew, prepared, err := datadir.IsNew(p.config.Dir)
	if err != nil {
		return unusable(err)
	}
	if isNew { // asked again, for nobody else works on it now
		p.opened(func() error {
			if p.refused {
				return datadir.Discard(p.config.Dir, made, prepared)
			}
			return nil
		})
	}
	err = datadir.Check(p.config.Dir)
	if errors.Is(err, datadir.ErrUnknown) {
		return &Error{Code: "data-format-unknown", Text: err.Error(), Next: "use the program that wrote it, or another directory with --data"}
	}
	return err
}

// chooseRegions takes the regions named, or those that the directory has.
func (p *Program) chooseRegions() error {
	if len(p.config.Regions) == 0 {
		p.config.Regions = p.config.Settings.Names()
	}
	if len(p.config.Regions) == 0 && !p.config.Alone {
		entries, err := os.ReadDir(p.dir("regions"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			p.config.Regions = append(p.config.Regions, e.Name())
		}
	}
	if len(p.config.Regions) == 0 && !p.config.Alone {
		p.config.Regions = DefaultRegions()
	}
	for i, r := range p.config.Regions {
		if !events.IsToken(r) {
			return &Error{Code: "region-invalid", Text: fmt.Sprintf("%q is not a region's id: use a-z, 0-9 and -, at most 63", r), Next: "--regions beijing,sydney,chicago"}
		}
		if slices.Contains(p.config.Regions[:i], r) {
			return &Error{Code: "region-invalid", Text: fmt.Sprintf("region %s is named twice", r), Next: "--regions beijing,sydney,chicago"}
		}
		if p.config.Alone {
			continue
		}
		if err := os.MkdirAll(p.dir("regions", r), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &Error{Code: "port-in-use", Text: "another program listens on " + address, Next: "choose another address with --http, or port 0 for a free one"}
	}
	if err != nil {
		return nil, &Error{Code: "http-address-invalid", Text: fmt.Sprintf("cannot listen for HTTP on %q: %v", address, err), Next: "--http 127.0.0.1:7080"}
	}
	return l, nil
}

func (p *Program) openJournal(ctx context.Context) error {
	o := bus.Options{Dir: p.dir("bus"), Listen: p.config.NATS, Log: p.config.Log.With("part", "bus"), Users: busUsers{&p.users}}
	if p.config.Lazy {
		o.Sync = bus.SyncLazy
	}
	if !trust.Local(p.config.NATS) {
		o.TLS = p.tls
	}
	var err error
	if p.bus, err = startBus(o); err != nil {
		return err
	}
	p.opened(p.bus.Close)
	if p.conn, err = p.bus.Connect(nats.Name("control-plane")); err != nil {
		return fmt.Errorf("connect to the bus: %w", err)
	}
	p.opened(func() error { p.conn.Close(); return nil })
	known, remember, err := journal.MarkerFile(p.dir("journal-id"))
	if err != nil {
		return err
	}
	most := mostOfJournal(p.bus.MaxStore())
	limit := min(journalBytes, most)
	if p.config.Bytes != 0 {
		limit = p.config.Bytes
	}
	if known == "" && limit > most { // one that is there keeps its limit
		return &Error{Code: "journal-limit-too-high", Text: fmt.Sprintf("of what the disk has for the bus, the journal may take %d bytes: %d are asked for", most, limit), Next: "a smaller --journal-size, or more room on the disk"}
	}
	if limit < journal.MinBytes {
		return &Error{Code: "journal-too-small", Text: fmt.Sprintf("a journal of %d bytes is too small: it needs %d at least", limit, journal.MinBytes), Next: "--journal-size BYTES, or more room on the disk"}
	}
	p.journal, err = journal.Open(ctx, p.conn, journal.Options{Registry: events.NewRegistry(), Known: known, Remember: remember, MaxBytes: limit, Finishing: finishing, Alarm: p.alarm})
	if err != nil {
		return err
	}
	if p.journalID, _, err = journal.MarkerFile(p.dir("journal-id")); err != nil {
		return err
	}
	var appended journal.Journal = p.journal
	if p.config.Journal != nil {
		appended = p.config.Journal(p.journal)
	}
	p.executor = commands.NewExecutor(appended, time.Now)
	return nil
}

// startBus starts a bus. What keeps it from starting is an *Error.
func startBus(o bus.Options) (*bus.Server, error) {
	s, err := bus.Embedded(o)
	if why, ok := errors.AsType[*bus.Error](err); ok {
		code, text, _ := why.Tell()
		next := map[bus.Code]string{bus.PortInUse: "choose another address with --nats, or port 0 for a free one", bus.DataInUse: "end the other process, or choose another directory with --data"}
		return nil, &Error{Code: code, Text: "the bus cannot be started: " + text, Next: next[why.Code]}
	}
	return s, err
}

// diskFailure waits for the disk to fail under the bus. The program ends then:
// started again, it reads what is really there.
func (p *Program) diskFailure(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-p.bus.Failed():
		return &Error{Code: "bus-disk-failed", Text: fmt.Sprintf("the disk under the bus takes nothing more: %v", err),
			Next: "make room on the disk, then start again: what was answered is stored, what was not can be sent again with the same command id"}
	}
}

func (p *Program) openReads() (err error) {
	if p.store, err = projections.Open(p.dir("reads"), projections.Options{Log: p.config.Log.With("part", "reads")}); err != nil {
		return err
	}
	p.opened(p.store.Close)
	if p.feed, err = p.store.Feed(projections.All()...); err != nil {
		return err
	}
	p.directory = newDirectory(p.feed)
	p.users.Store(p.directory)
	p.runner, err = processes.New(p.journal, p.executor, p.store, p.config.Log.With("part", "processes"))
	return err
}

// openAgents opens the regions' agents, once their credentials are known.
func (p *Program) openAgents(ctx context.Context) error {
	if err := p.feed.WaitFor(ctx, p.bootstrapped); err != nil {
		return err
	}
	defer close(p.agentsOpen)
	if p.config.Alone {
		return nil
	}
	view, err := p.feed.Now(projections.Regions{}.Name())
	if err != nil {
		return err
	}
	defer view.Close()
	for _, r := range p.config.Regions {
		row, _, err := projections.Regions{}.Region(view, events.RegionID(r))
		if err != nil {
			return err
		}
		if row.State == projections.RegionRetired {
			// Its folder is still here; that keeps no other region from running.
			p.config.Log.Warn("a region does not run here any more: it was retired for good", "region", r)
			continue
		}
		a, err := p.openAgent(ctx, events.RegionID(r))
		if err != nil {
			return fmt.Errorf("start the agent of %s: %w", r, err)
		}
		p.agents = append(p.agents, namedAgent{events.RegionID(r), a})
		p.opened(a.Close)
	}
	return nil
}

// Addresses is where the program is reached.
func (p *Program) Addresses() Addresses {
	return Addresses{HTTP: trust.URL(p.advertised(p.listener.Addr().String())), NATS: p.busURL(), Dir: p.config.Dir, Context: p.dir("context.json"), Regions: p.config.Regions}
}

// Administrator is the context of the first administrator, acting in the account default.
func (p *Program) Administrator() contexts.Context { return p.context(p.keys.administrator) }

// Operator is the context of the operator of the account default.
func (p *Program) Operator() contexts.Context { return p.context(p.keys.operator) }

func (p *Program) context(k key) contexts.Context {
	a := p.Addresses()
	return contexts.Context{Name: filepath.Base(p.config.Dir), HTTP: a.HTTP, NATS: a.NATS, Account: defaultAccount, Home: k.Account, User: k.User,
		Token: k.Token, NKey: k.NKey, Seed: k.Seed, Regions: p.config.Regions, Authority: p.told()}
}

func (p *Program) writeContexts() error {
	if err := p.Administrator().Write(p.dir("context.json")); err != nil {
		return err
	}
	return p.Operator().Write(p.dir("contexts", "operator.json"))
}

// shutdownPatience is how long requests in flight may take once the end has come.
const shutdownPatience = 5 * time.Second

// Run serves until the context ends (then it gives nil) or a part fails.
func (p *Program) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	var mu sync.Mutex
	var failed error
	part := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			err := run(ctx)
			if ctx.Err() == nil {
				mu.Lock()
				if failed == nil {
					failed = explained(fmt.Errorf("%s ended: %w", name, cmpErr(err)))
				}
				mu.Unlock()
				cancel()
			}
		})
	}
	// A feed that stopped at an event stays stopped, visibly: /readyz says why,
	// and what was folded before is still answered.
	parts.Go(func() {
		if err := p.feed.Run(ctx, accountsFollower{p.journal, p.directory}); ctx.Err() == nil {
			p.config.Log.Error("the projections have stopped", "error", err)
		}
	})
	part("the bus", p.diskFailure)
	part("the processes", p.runner.Run)
	part("the deadlines", p.endDeadlines)
	parts.Go(func() { p.followTenants(ctx) })
	parts.Go(func() { p.watchStore(ctx) })
	if err := p.openAgents(ctx); err != nil && ctx.Err() == nil {
		cancel()
		parts.Wait()
		return explained(err)
	}
	part("the inbox", p.inbox.Run)
	for _, a := range p.agents {
		part("the agent of "+string(a.region), a.Run)
	}
	p.server.BaseContext = func(net.Listener) context.Context { return ctx }
	serve := p.server.Serve
	if !trust.Local(p.listener.Addr().String()) {
		p.server.TLSConfig = p.tls
		serve = func(l net.Listener) error { return p.server.ServeTLS(l, "", "") }
	}
	part("the HTTP interface", func(context.Context) error { return serve(p.listener) })
	<-ctx.Done()
	end, stop := context.WithTimeout(context.Background(), shutdownPatience)
	defer stop()
	if err := p.server.Shutdown(end); err != nil {
		p.config.Log.Warn("some HTTP requests were cut off", "error", err)
		_ = p.server.Close() // its listener is closed already
	}
	if err := p.runner.Close(); err != nil {
		p.config.Log.Warn("the processes did not end in time", "error", err)
	}
	parts.Wait()
	return failed
}

// Ready returns when everything that was there at the start can be asked: the
// first accounts and regions among it. Run must have been called.
func (p *Program) Ready(ctx context.Context) error {
	if err := p.feed.WaitFor(ctx, p.bootstrapped); err != nil {
		return err
	}
	wait := func(done <-chan struct{}) error {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := wait(p.runner.Running()); err != nil {
		return err
	}
	if err := wait(p.agentsOpen); err != nil {
		return err
	}
	for _, a := range p.agents {
		if err := a.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// storageExhausted is nats-server's JSStorageResourcesExceededErr, which jetstream does not name.
const storageExhausted jetstream.ErrorCode = 10047

// explained gives a code to what ends a program and a person can mend.
func explained(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == storageExhausted {
		return &Error{Code: "disk-too-small", Text: err.Error(), Next: "the streams reserve a part of what is free on the disk when they are made: make room, or choose another disk"}
	}
	if errors.Is(err, events.ErrUnknownEvent) {
		return &Error{Code: "event-unknown", Text: err.Error(), Next: "the journal was written by a later program: use that one"}
	}
	const setBack = "the journal was restored to an earlier state: take the folder reads out of this data directory; it is built again"
	if reads := (*projections.Error)(nil); errors.As(err, &reads) && reads.Code == projections.CodeSetBack {
		return &Error{Code: string(projections.CodeSetBack), Text: err.Error(), Next: setBack}
	}
	if errors.Is(err, journal.ErrSetBack) {
		return &Error{Code: string(projections.CodeSetBack), Text: err.Error(), Next: setBack}
	}
	if gap := (*journal.GapError)(nil); errors.As(err, &gap) {
		if gap.Found == 0 { // a reader is ahead of it
			return &Error{Code: string(projections.CodeSetBack), Text: err.Error(), Next: setBack}
		}
		return &Error{Code: "journal-gap", Text: err.Error(), Next: "the journal has lost an event: tombolo audit verify --live says which; restore a backup"}
	}
	if full := (*journal.FullError)(nil); errors.As(err, &full) {
		return &Error{Code: full.Code(), Text: err.Error(), Next: "start without what is new (regions, users), and raise the limit: tombolo server grow"}
	}
	return err
}

// cmpErr names an end that gave no reason.
func cmpErr(err error) error {
	if err == nil {
		return errors.New("without a reason")
	}
	return err
}

// Close frees everything, in the reverse of the order of opening. Run must have
// returned.
func (p *Program) Close() error {
	var errs []error
	for _, c := range slices.Backward(p.closers) {
		errs = append(errs, c())
	}
	p.closers = nil
	return errors.Join(errs...)
}

// ready are the program's own checks.
func (p *Program) ready() []api.Check {
	out := []api.Check{{Name: "bus", Err: p.bus.Ready()}}
	if used, most, err := p.bus.Room(); err == nil {
		out = append(out, api.Check{Name: fmt.Sprintf("bus's room (%d of %d bytes)", used, most), Warning: storeFullness(journal.LevelOf(used, most))})
	}
	if at, err := p.feed.Position(); err == nil && at < p.bootstrapped {
		out = append(out, api.Check{Name: "catching up", Err: fmt.Errorf("position %d of %d", at, p.bootstrapped)})
	}
	running := api.Check{Name: "processes"}
	select {
	case <-p.runner.Running():
	default:
		running.Err = errors.New("they are starting")
	}
	return append(out, running)
}
