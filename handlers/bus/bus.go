// Package bus runs the embedded NATS server with JetStream that a Tombolo process
// carries, and connects to it without going over the network.
package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

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
	// what is free on Dir's disk (nats-server's own choice).
	MaxStore int64
	// Patience is how long the start may take, reading the streams included; 0 is a minute.
	Patience time.Duration
	// Log receives the server's log. Required.
	Log *slog.Logger
	// Access sets accounts, users, permissions and TLS. Without it whoever
	// reaches the server may do everything, so Listen must be on loopback.
	Access func(*server.Options) error
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

// Error is what Embedded fails with.
type Error struct {
	Code   Code
	Detail string
	Cause  error // may be nil
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return string(e.Code) + ": " + e.Detail
	}
	return string(e.Code) + ": " + e.Detail + ": " + e.Cause.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Server is a running embedded server.
type Server struct {
	nats *server.Server
	lock *os.File
	sync Sync
}

// Embedded starts a server and returns once it answers. Errors are *Error.
func Embedded(o Options) (_ *Server, err error) {
	options, err := serverOptions(&o)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, &Error{NotStarted, "make the data directory", err}
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
	s, err := server.NewServer(options)
	if err != nil {
		return nil, &Error{NotStarted, "configure the server", err}
	}
	log := &logger{log: o.Log}
	s.SetLoggerV2(log, o.Log.Enabled(context.Background(), slog.LevelDebug), false, false)
	s.Start()
	if fatal := log.fatal(); fatal != "" || !s.ReadyForConnections(o.Patience) || !s.JetStreamEnabled() {
		s.Shutdown()
		s.WaitForShutdown()
		if fatal == "" {
			fatal = fmt.Sprintf("the server did not answer within %s", o.Patience)
		}
		return nil, &Error{NotStarted, fatal, nil}
	}
	level := slog.LevelInfo
	if o.Sync != SyncAlways {
		level = slog.LevelWarn
	}
	o.Log.Log(context.Background(), level, "the bus is up", "sync", string(o.Sync), "dir", o.Dir, "listen", o.Listen, "max_store", s.JetStreamConfig().MaxStore)
	return &Server{nats: s, lock: lock, sync: o.Sync}, nil
}

// serverOptions checks o, fills in its defaults and translates it.
func serverOptions(o *Options) (*server.Options, error) {
	bad := func(format string, args ...any) (*server.Options, error) {
		return nil, &Error{BadOptions, fmt.Sprintf(format, args...), nil}
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
	options := &server.Options{
		ServerName:        "tombolo",
		DontListen:        true,
		NoSigs:            true,
		JetStream:         true,
		StoreDir:          o.Dir,
		SyncAlways:        o.Sync == SyncAlways,
		MaxPayload:        o.MaxPayload,
		JetStreamMaxStore: o.MaxStore,
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
		if ip := net.ParseIP(host); o.Access == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return bad("listen %q is not on loopback, and there is no access control", o.Listen)
		}
		options.DontListen, options.Host, options.Port = false, host, int(port)
		if port == 0 {
			options.Port = server.RANDOM_PORT
		}
	}
	if o.Access != nil {
		if err := o.Access(options); err != nil {
			return nil, &Error{BadOptions, "access", err}
		}
	}
	return options, nil
}

// probe finds out whether the address is free. The server itself tells that by
// a log line only.
func probe(address string) error {
	l, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return &Error{PortInUse, "another program listens on " + address, nil}
	}
	if err != nil {
		return &Error{NotStarted, "listen on " + address, err}
	}
	return l.Close()
}

// lockDir takes the directory for this process; the operating system gives it
// back when the process ends, however it does.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &Error{NotStarted, "lock the data directory", err}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &Error{DataInUse, "another process has " + dir + " open", nil}
		}
		return nil, &Error{NotStarted, "lock the data directory", err}
	}
	return f, nil
}

// Connect gives a connection that does not go over the network. It reconnects
// for ever; the options may say otherwise, and carry credentials.
func (s *Server) Connect(options ...nats.Option) (*nats.Conn, error) {
	all := append([]nats.Option{nats.InProcessServer(s.nats), nats.MaxReconnects(-1)}, options...)
	return nats.Connect("", all...)
}

// URL is where clients connect over TCP; empty without a listener.
func (s *Server) URL() string {
	if s.nats.Addr() == nil {
		return ""
	}
	return "nats://" + s.nats.Addr().String()
}

// Sync says when acknowledged messages are on the disk.
func (s *Server) Sync() Sync { return s.sync }

// MaxStore is the most bytes that streams may take.
func (s *Server) MaxStore() int64 { return s.nats.JetStreamConfig().MaxStore }

// Ready reports why the server cannot serve, nil if it can.
func (s *Server) Ready() error {
	if h := s.nats.Healthz(nil); h.StatusCode != 200 {
		return fmt.Errorf("the bus is not ready: %s", h.Error)
	}
	return nil
}

// Close stops the server, waits until everything is written, and frees Dir.
func (s *Server) Close() error {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
	return s.lock.Close()
}
