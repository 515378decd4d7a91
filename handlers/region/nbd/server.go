package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Device is what an export serves. Its methods are safe for concurrent use, and Flush makes durable whatever any of them
// answered before, on whichever connection it came: so clients may use several connections at once.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Size is the length in bytes, which does not change.
	Size() int64
	Flush() error
	// Trim says that bytes are needed no more.
	Trim(off, n int64) error
	// WriteZeroes makes bytes zeros, and is fast unless allocate asks that they take room.
	WriteZeroes(off, n int64, allocate bool) error
}

// Mapper is a Device that knows where it is zero without reading.
type Mapper interface {
	// Extent says whether the byte at off is in a range that takes no room and reads as zeros, and the range's length in
	// bytes, 1 to n.
	Extent(off, n int64) (hole bool, length int64, err error)
}

// Export is a device by its name.
type Export struct {
	Name        string // 1 to 255 bytes of UTF-8
	Description string // for people
	Device      Device
	ReadOnly    bool
}

// Server serves exports to any number of clients. Close it, whatever Serve answers.
type Server struct {
	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	exports   map[string]*served
	conns     map[net.Conn]struct{}
	done      sync.WaitGroup
}

// served is an export with the connections that use it.
type served struct {
	Export
	conns map[net.Conn]struct{} // guarded by the server's mu
	gone  bool
	done  sync.WaitGroup
}

// NewServer makes a server without exports.
func NewServer() *Server {
	return &Server{listeners: map[net.Listener]struct{}{}, exports: map[string]*served{}, conns: map[net.Conn]struct{}{}}
}

// Add offers a device. Errors: export-exists, export-invalid.
func (s *Server) Add(e Export) error {
	if e.Name == "" || len(e.Name) > 255 || !utf8.ValidString(e.Name) || strings.ContainsRune(e.Name, 0) || e.Device == nil {
		return errorf(ExportInvalid, "export %q", e.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[e.Name] != nil {
		return errorf(ExportExists, "%q is exported already", e.Name)
	}
	s.exports[e.Name] = &served{Export: e, conns: map[net.Conn]struct{}{}}
	return nil
}

// Remove takes an export away, disconnects its clients and waits for their requests in progress; then the device may be
// closed. It says whether there was one.
func (s *Server) Remove(name string) bool {
	s.mu.Lock()
	e := s.exports[name]
	if e == nil {
		s.mu.Unlock()
		return false
	}
	delete(s.exports, name)
	e.gone = true
	for c := range e.conns {
		c.Close()
	}
	s.mu.Unlock()
	e.done.Wait()
	return true
}

// Exports gives the names of the exports, sorted.
func (s *Server) Exports() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.exports))
	for name := range s.exports {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s *Server) export(name string) *served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exports[name]
}

// Serve accepts connections until the listener, which it closes, or the server is closed; then the error is nil.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, l)
	}()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return wrap(SocketUnusable, err, "accept")
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			c.Close()
			return nil
		}
		s.conns[c] = struct{}{}
		s.done.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.done.Done()
			defer func() {
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
				c.Close()
			}()
			s.serve(c)
		}()
	}
}

// serve negotiates and then answers requests until the client goes or misbehaves, which is the same to the server.
func (s *Server) serve(c net.Conn) {
	n := &negotiation{server: s, conn: c}
	e, err := n.run()
	if err != nil || e == nil || !s.enter(e, c) {
		return
	}
	defer s.leave(e, c)
	newSession(e, c, n.structured, n.contextOf == e).run()
}

func (s *Server) enter(e *served, c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.gone || s.closed {
		return false
	}
	e.conns[c] = struct{}{}
	e.done.Add(1)
	return true
}

func (s *Server) leave(e *served, c net.Conn) {
	s.mu.Lock()
	delete(e.conns, c)
	s.mu.Unlock()
	e.done.Done()
}

// Close ends all connections and waits for requests in progress. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var errs []error
	for l := range s.listeners {
		errs = append(errs, l.Close())
	}
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
	return errors.Join(errs...)
}

// ListenAndServe is Listen and Serve until ctx ends; ready is called when clients may connect.
func (s *Server) ListenAndServe(ctx context.Context, path string, ready func()) error {
	l, err := Listen(path)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	ready()
	return s.Serve(l)
}
