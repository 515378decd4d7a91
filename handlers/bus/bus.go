// Package bus runs the embedded NATS server with JetStream that a Tombolo process
// carries, and connects to it without going over the network.
package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// tlsPatience is how long a client's handshake may take.
const tlsPatience = 5 * time.Second

// Sync says when what JetStream acknowledges is on the disk.
type Sync string

const (
	// SyncAlways writes every message through to the disk before it is acknowledged. The default.
	SyncAlways Sync = "always"
	// SyncLazy leaves it to the operating system and writes through every two
	// minutes: a power cut loses what was acknowledged since. For tests and trials.
	SyncLazy Sync = "lazy"
)

// Options of Embedded.
type Options struct {
	// Dir holds the server's data; one process at a time may use it. Required.
	Dir string
	// Listen is host:port for clients over TCP; port 0 picks a free one. Empty
	// means no listener: Connect is then the only way in.
	Listen string
	// Sync is SyncAlways unless set.
	Sync Sync
	// MaxPayload is the most bytes of one message; 0 is nats-server's 1 MiB.
	MaxPayload int32
	// MaxStore is the most bytes that streams may take; 0 is three quarters of
	// what is free on Dir's disk and what they take of it already.
	MaxStore int64
	// Patience is how long the start may take, reading the streams included; 0 is a minute.
	Patience time.Duration
	// Log receives the server's log. Required.
	Log *slog.Logger
	// Users says who may connect besides the control plane. Listen needs it.
	Users Users
	// TLS is demanded of clients over TCP. Without it Listen must be on loopback.
	TLS *tls.Config
}

// Code is an error's stable code.
type Code string

// Codes of an Error.
const (
	PortInUse  Code = "port-in-use"     // another program listens there
	DataInUse  Code = "data-in-use"     // another process has Dir open
	BadOptions Code = "bad-bus-options" // the options contradict themselves
	NotStarted Code = "bus-not-started" // see the message and the log
)

// Error is what this package fails with.
type Error = fault.Error[Code]

// Server is a running embedded server.
type Server struct {
	nats  *server.Server
	lock  *os.File
	sync  Sync
	core  nkeys.KeyPair // the control plane's, of this process alone
	guard *nats.Conn
	log   *logger
}

// Embedded starts a server and returns once it answers. Errors are *Error.
func Embedded(o Options) (_ *Server, err error) {
	options, err := serverOptions(&o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, &Error{Code: NotStarted, Text: "make the data directory", Err: err}
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if o.Listen != "" {
		if err := probe(o.Listen); err != nil {
			return nil, err
		}
	}
	core, err := nkeys.CreateUser()
	if err != nil {
		return nil, &Error{Code: NotStarted, Text: "draw the control plane's key", Err: err}
	}
	public, err := core.PublicKey()
	if err != nil {
		return nil, &Error{Code: NotStarted, Text: "draw the control plane's key", Err: err}
	}
	g := &gate{users: o.Users, core: public, log: o.Log}
	options.CustomClientAuthentication, options.AlwaysEnableNonce = g, true
	s, err := server.NewServer(options)
	if err != nil {
		return nil, &Error{Code: NotStarted, Text: "configure the server", Err: err}
	}
	g.nats, g.house = s, &house{nats: s, open: map[events.AccountID]*server.Account{}}
	log := &logger{log: o.Log, failed: make(chan error, 1)}
	s.SetLoggerV2(log, o.Log.Enabled(context.Background(), slog.LevelDebug), false, false)
	s.Start()
	if fatal := log.fatal(); fatal != "" || !s.ReadyForConnections(o.Patience) || !s.JetStreamEnabled() {
		s.Shutdown()
		s.WaitForShutdown()
		if fatal == "" {
			fatal = fmt.Sprintf("the server did not answer within %s", o.Patience)
		}
		return nil, &Error{Code: NotStarted, Text: fatal}
	}
	b := &Server{nats: s, lock: lock, sync: o.Sync, core: core, log: log}
	if err := b.furnish(g.house, o.Log); err != nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, &Error{Code: NotStarted, Text: "open the accounts", Err: err}
	}
	level := slog.LevelInfo
	if o.Sync != SyncAlways {
		level = slog.LevelWarn
	}
	o.Log.Log(context.Background(), level, "the bus is up", "sync", string(o.Sync), "dir", o.Dir, "listen", o.Listen, "max_store", s.JetStreamConfig().MaxStore)
	return b, nil
}

// furnish opens the account of administrators and agents, and what stands
// before their reading of the journal.
func (s *Server) furnish(h *house, log *slog.Logger) (err error) {
	if _, err := h.account(events.None); err != nil {
		return err
	}
	if s.guard, err = s.Connect(nats.Name("guard")); err != nil {
		return err
	}
	return guardJournal(s.guard, log)
}

// serverOptions checks o, fills in its defaults and translates it.
func serverOptions(o *Options) (*server.Options, error) {
	bad := func(format string, args ...any) (*server.Options, error) {
		return nil, &Error{Code: BadOptions, Text: fmt.Sprintf(format, args...)}
	}
	switch {
	case o.Dir == "":
		return bad("there is no data directory")
	case o.Log == nil:
		return bad("there is no log")
	case o.MaxPayload < 0 || o.MaxStore < 0 || o.Patience < 0:
		return bad("a limit is negative")
	}
	if o.Sync == "" {
		o.Sync = SyncAlways
	}
	if o.Sync != SyncAlways && o.Sync != SyncLazy {
		return bad("sync %q is neither %q nor %q", o.Sync, SyncAlways, SyncLazy)
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	options := &server.Options{}
	// Only the configuration language can give an account JetStream from the start.
	if err := options.ProcessConfigString("accounts: {" + Core + ": {jetstream: enabled}}"); err != nil {
		return nil, &Error{Code: NotStarted, Text: "configure the accounts", Err: err}
	}
	options.ServerName = "tombolo"
	options.DontListen = true
	options.NoSigs = true
	options.JetStream = true
	options.StoreDir = o.Dir
	options.SyncAlways = o.Sync == SyncAlways
	options.MaxPayload = o.MaxPayload
	options.JetStreamMaxStore = o.MaxStore
	if o.MaxStore == 0 {
		var err error
		if options.JetStreamMaxStore, err = mostStore(o.Dir); err != nil {
			return nil, &Error{Code: NotStarted, Text: "ask what the disk has for the streams", Err: err}
		}
	}
	if o.Listen != "" {
		host, text, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return bad("listen %q is not host:port: %v", o.Listen, err)
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return bad("listen %q has no port between 0 and 65535", o.Listen)
		}
		if ip := net.ParseIP(host); o.TLS == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return bad("listen %q is not on loopback, and there is no TLS", o.Listen)
		}
		if o.Users == nil {
			return bad("listen %q without users: nobody could connect", o.Listen)
		}
		options.DontListen, options.Host, options.Port = false, host, int(port)
		if port == 0 {
			options.Port = server.RANDOM_PORT
		}
	}
	if o.TLS != nil {
		options.TLS, options.TLSConfig, options.TLSTimeout = true, o.TLS, tlsPatience.Seconds()
	}
	return options, nil
}

// probe finds out whether the address is free. The server itself tells that by
// a log line only.
func probe(address string) error {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return &Error{Code: PortInUse, Text: "another program listens on " + address}
	}
	if err != nil {
		return &Error{Code: NotStarted, Text: "listen on " + address, Err: err}
	}
	return l.Close()
}

// lockDir takes the directory for this process; the operating system gives it
// back when the process ends, however it does.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &Error{Code: NotStarted, Text: "lock the data directory", Err: err}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &Error{Code: DataInUse, Text: "another process has " + dir + " open"}
		}
		return nil, &Error{Code: NotStarted, Text: "lock the data directory", Err: err}
	}
	return f, nil
}

// Connect gives the control plane a connection that does not go over the
// network. It may do everything in account Core. It reconnects for ever; the
// options may say otherwise, or carry a user's key instead.
func (s *Server) Connect(options ...nats.Option) (*nats.Conn, error) {
	public, err := s.core.PublicKey()
	if err != nil {
		return nil, err
	}
	all := append([]nats.Option{s.InProcess(), nats.MaxReconnects(-1), nats.Nkey(public, s.core.Sign)}, options...)
	return nats.Connect("", all...)
}

// InProcess is the option to connect without going over the network.
func (s *Server) InProcess() nats.Option { return nats.InProcessServer(s.nats) }

// URL is where clients connect over TCP; empty without a listener.
func (s *Server) URL() string {
	if s.nats.Addr() == nil {
		return ""
	}
	return "nats://" + s.nats.Addr().String()
}

// Sync says when acknowledged messages are on the disk.
func (s *Server) Sync() Sync { return s.sync }

// Failed tells that the disk did not take what a stream has to store: it takes
// nothing more until the server is started again.
func (s *Server) Failed() <-chan error { return s.log.failed }

// mostStore is three quarters of what is free and what is taken: nats-server
// itself counts what is free alone, so that a bus that had taken half of its
// disk would take nothing more once it was started again. 0, which leaves it to
// nats-server, for a directory that has nothing yet.
func mostStore(dir string) (int64, error) {
	var used int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			used += info.Size()
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || err == nil && used == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(dir, &disk); err != nil {
		return 0, err
	}
	return (used + int64(disk.Bavail)*disk.Bsize) / 4 * 3, nil
}

// MaxStore is the most bytes that streams may take.
func (s *Server) MaxStore() int64 { return s.nats.JetStreamConfig().MaxStore }

// Room is how many bytes all streams take together (the journal, its tenants'
// mirrors, the inbox, the documents), and how many they may: MaxStore, or less
// where the disk has less. The server takes nothing beyond either.
func (s *Server) Room() (used, most uint64, err error) {
	info, err := s.nats.Jsz(nil)
	if err != nil {
		return 0, 0, fmt.Errorf("ask what the streams take: %w", err)
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(s.nats.StoreDir(), &disk); err != nil {
		return 0, 0, fmt.Errorf("ask what is free under the streams: %w", err)
	}
	return info.Store, min(uint64(s.MaxStore()), info.Store+disk.Bavail*uint64(disk.Bsize)), nil
}

// Ready reports why the server cannot serve, nil if it can.
func (s *Server) Ready() error {
	if h := s.nats.Healthz(nil); h.StatusCode != 200 {
		return fmt.Errorf("the bus is not ready: %s", h.Error)
	}
	return nil
}

// Close stops the server, waits until everything is written, and frees Dir.
func (s *Server) Close() error {
	s.guard.Close()
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
	return s.lock.Close()
}
