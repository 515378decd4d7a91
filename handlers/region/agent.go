package region

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/datadir"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/packs"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/transfer"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Agent is one region's agent: Open, Run, Close.
type Agent struct {
	cfg    Config
	lock   *os.File
	id     string
	kinds  map[events.WorkKind]kind
	store  chunks.Store
	cache  *chunks.Cache
	ready  *readyDisks
	reads  *projections.Store
	feed   *projections.Feed
	intake *intake // of the feed
	links  *transfer.Links
	puller *transfer.Puller

	transferListener, httpListener net.Listener
	transferServer                 *transfer.Server
	uploads                        *uploads
	exports                        *exports
	devices                        *devices
	guests                         *guests
	nudge                          chan struct{} // something changed that the journal does not tell
	owned                          chan struct{} // closed once the region is this agent's

	scrubbing chan struct{} // held by the scrub that runs
	counts    counts

	mu    sync.Mutex
	epoch int
	jobs  map[events.WorkID]*running
}

// Open takes the data directory, opens what is in it, and listens; Run does the
// rest. Errors: agent-dir-in-use, and those of the stores.
func Open(cfg Config) (_ *Agent, err error) {
	if cfg.Slots == 0 {
		cfg.Slots = DefaultSlots
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.ScrubEvery == 0 {
		cfg.ScrubEvery = DefaultScrubEvery
	}
	a := &Agent{cfg: cfg, kinds: kinds(), scrubbing: make(chan struct{}, 1), nudge: make(chan struct{}, 1), owned: make(chan struct{}), jobs: map[events.WorkID]*running{}}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := a.takeDir(); err != nil {
		return nil, err
	}
	for _, d := range []string{"chunks", "reads", "uploads", "exports", "environments", "manifests", "scratch"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	store, err := packs.Open(filepath.Join(cfg.Dir, "chunks"), packs.Options{})
	if err != nil {
		return nil, err
	}
	a.store = store
	if cfg.Store != nil {
		a.store = cfg.Store(store)
	}
	if a.cache, err = chunks.NewCache(a.store, cfg.CacheBytes); err != nil {
		return nil, err
	}
	a.ready = newReadyDisks(a.cache)
	a.ready.keepAll(context.Background(), a.store, cfg.Log)
	if a.reads, err = projections.Open(filepath.Join(cfg.Dir, "reads"), projections.Options{}); err != nil {
		return nil, err
	}
	if a.feed, err = a.reads.Feed(projections.All()...); err != nil {
		return nil, err
	}
	a.intake = newIntake(cfg.Journal, cfg.Region)
	a.uploads = newUploads(a)
	if a.httpListener, err = listen(cfg.HTTPListen); err != nil {
		return nil, err
	}
	if a.transferListener, err = listen(cfg.TransferListen); err != nil {
		return nil, err
	}
	if err := a.openTransfer(); err != nil {
		return nil, err
	}
	if a.devices, err = newDevices(a); err != nil {
		return nil, err
	}
	if a.exports, err = openExports(context.Background(), a); err != nil {
		return nil, err
	}
	if err := a.devices.openAll(context.Background()); err != nil {
		return nil, err
	}
	a.guests, err = openGuests(context.Background(), a)
	return a, err
}

// openTransfer prepares what moves chunks between this region and others.
func (a *Agent) openTransfer() (err error) {
	self := string(a.cfg.Region)
	config := &tls.Config{Certificates: []tls.Certificate{a.cfg.Certificate}, RootCAs: a.cfg.Authority, MinVersion: tls.VersionTLS13}
	a.links = transfer.NewLinks(self)
	a.transferServer, err = transfer.NewServer(transfer.ServerOptions{Region: self, Store: a.store, TLS: config, Links: a.links, Log: a.cfg.Log})
	if err != nil {
		return err
	}
	a.puller, err = transfer.NewPuller(transfer.Options{Region: self, Store: a.store, TLS: config, Links: a.links, Scratch: filepath.Join(a.cfg.Dir, "scratch")})
	return err
}

func (a *Agent) serveTransfer(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { a.transferServer.Close() })
	defer stop()
	if err := a.transferServer.Serve(a.transferListener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &Error{Code: "port-in-use", Text: fmt.Sprintf("%s is used by another process", address), Next: "choose another port, or 0 for any"}
	}
	return l, err
}

// Error is what an agent cannot start or go on with; Code is stable.
type Error = fault.Error[string]

// takeDir locks the data directory and reads, or chooses, the agent's id.
func (a *Agent) takeDir() error {
	path := filepath.Join(a.cfg.Dir, "agent-id")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return &Error{Code: "agent-dir-in-use", Text: "another agent uses " + a.cfg.Dir, Next: "stop it, or choose another directory"}
	}
	a.lock = f
	if err := datadir.Check(a.cfg.Dir); errors.Is(err, datadir.ErrUnknown) {
		return &Error{Code: "data-format-unknown", Text: err.Error(), Next: "use the program that wrote it, or another directory with --data"}
	} else if err != nil {
		return err
	}
	stored, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a.id = strings.TrimSpace(string(stored))
	if a.id != "" {
		return nil
	}
	a.id = uuid.NewString()
	if _, err := f.WriteString(a.id + "\n"); err != nil {
		return err
	}
	return f.Sync()
}

// HTTPAddress is where people reach the region.
func (a *Agent) HTTPAddress() string { return reached(a.cfg.HTTPAdvertise, a.httpListener) }

// TransferAddress is where other regions reach it.
func (a *Agent) TransferAddress() string { return reached(a.cfg.TransferAdvertise, a.transferListener) }

// reached is an address as others are told it: the advertised one, with the port
// that was picked in place of port 0.
func reached(advertised string, l net.Listener) string {
	if host, port, err := net.SplitHostPort(advertised); err == nil && port == "0" {
		_, port, _ = net.SplitHostPort(l.Addr().String())
		return net.JoinHostPort(host, port)
	}
	return cmp.Or(advertised, l.Addr().String())
}

// Listens is where the agent listens, whatever it is reached by.
func (a *Agent) Listens() (http, transfer string) {
	return a.httpListener.Addr().String(), a.transferListener.Addr().String()
}

// ID is the agent's id, kept in its data directory.
func (a *Agent) ID() string { return a.id }

// around tells of a change to the host: call it before, and what it gives after.
func (a *Agent) around(c Change) func() {
	if a.cfg.Around == nil {
		return func() {}
	}
	return a.cfg.Around(c)
}

// Feed is the region's own projections.
func (a *Agent) Feed() *projections.Feed { return a.feed }

// Ready returns when the region is this agent's and it takes work. Run must have
// been called.
func (a *Agent) Ready(ctx context.Context) error {
	select {
	case <-a.owned:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run serves, follows the journal and works until the context ends, or the
// region is lost to another epoch (stale-epoch). When it is told to end, running
// machines are suspended, unless they are to be left.
func (a *Agent) Run(told context.Context) error {
	g, ctx := errgroup.WithContext(told)
	g.Go(func() error { return a.feed.Run(ctx, a.intake) })
	g.Go(func() error { return a.serveTransfer(ctx) })
	g.Go(func() error { return a.serveHTTP(ctx) })
	g.Go(func() error { return a.exports.run(ctx) })
	g.Go(func() error {
		err := a.devices.server.ListenAndServe(ctx, a.devices.socket, func() {})
		return errors.Join(err, ctx.Err())
	})
	g.Go(func() error {
		if err := a.startEpoch(ctx); err != nil {
			return err
		}
		if err := a.guests.adopt(ctx); err != nil {
			return err
		}
		close(a.owned)
		return a.schedule(ctx)
	})
	g.Go(func() error { return a.whenOurs(ctx, a.guests.run) })
	g.Go(func() error { return a.whenOurs(ctx, a.keepClean) })
	g.Go(func() error { return a.whenOurs(ctx, a.scrubRegularly) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) && told.Err() != nil {
		return a.guests.rest(told)
	}
	return err
}

// whenOurs runs what only the region's owner may do.
func (a *Agent) whenOurs(ctx context.Context, run func(context.Context) error) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-a.owned:
		return run(ctx)
	}
}

func (a *Agent) serveHTTP(ctx context.Context) error {
	mux := http.NewServeMux()
	a.uploads.register(mux)
	a.exports.register(mux)
	a.guests.registerConsoles(mux)
	if a.cfg.HTTP != nil {
		mux.Handle("/", a.cfg.HTTP(a))
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	serve := server.Serve
	if !trust.Local(a.httpListener.Addr().String()) {
		server.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{a.cfg.Certificate}}
		serve = func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if err := serve(a.httpListener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return ctx.Err()
}

// Close gives everything back. Run must have returned.
func (a *Agent) Close() error {
	var errs []error
	for _, l := range []net.Listener{a.httpListener, a.transferListener} {
		if l != nil {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	if a.guests != nil { // before the disks that they use
		errs = append(errs, a.guests.close())
	}
	if a.devices != nil {
		errs = append(errs, a.devices.close())
	}
	if a.exports != nil {
		errs = append(errs, a.exports.close())
	}
	if a.ready != nil {
		a.ready.close()
	}
	if a.cache != nil {
		errs = append(errs, a.cache.Close())
	}
	if a.reads != nil {
		errs = append(errs, a.reads.Close())
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
	}
	if a.lock != nil {
		errs = append(errs, a.lock.Close())
	}
	return errors.Join(errs...)
}
