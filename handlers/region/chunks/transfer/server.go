package transfer

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// MaxBatch is how many chunks one request may ask for.
const MaxBatch = 1024

// ServerOptions are what a Server needs.
type ServerOptions struct {
	Region string        // whose store it is
	Store  chunks.Reader // what is handed out
	// TLS holds the region's certificate and, as RootCAs, the authorities of the regions' certificates.
	TLS *tls.Config
	// Links counts and caps; one for the whole process.
	Links *Links
	// Allow refuses a region that has a good certificate; nil allows all.
	Allow func(region string) error
	// MaxStreams bounds the answers sent at once, and thereby memory (about 400 KiB each): 32 where 0. Who comes then is told to come again.
	MaxStreams int
	// Stall is how long a peer may not take a byte: 30 s where 0.
	Stall time.Duration
	// Log takes what goes wrong with connections; nil drops it.
	Log *slog.Logger
}

// Server hands out chunks and disk indexes to other regions.
type Server struct {
	o       ServerOptions
	http    *http.Server
	streams chan struct{}
	indexes chan struct{} // of these, answers with an index, which takes 8 MiB for 16 GiB of data
}

// NewServer checks the options. Error: tls-invalid.
func NewServer(o ServerOptions) (*Server, error) {
	if err := checkConfig(o.TLS, o.Region); err != nil {
		return nil, err
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = 32
	}
	if o.Stall <= 0 {
		o.Stall = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, streams: make(chan struct{}, o.MaxStreams), indexes: make(chan struct{}, 2)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/indexes/{digest}", s.limited(s.index))
	mux.HandleFunc("POST /v1/chunks", s.limited(s.chunks))
	s.http = &http.Server{
		Handler:           mux,
		ReadTimeout:       time.Minute, // of a request, which is small
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelInfo),
	}
	s.http.Protocols = new(http.Protocols)
	s.http.Protocols.SetHTTP1(true) // HTTP/2 moved 0.6 GB/s where HTTP/1.1 moved 1.6
	return s, nil
}

// Serve answers on l until Close or Shutdown, and gives nil then.
func (s *Server) Serve(l net.Listener) error {
	config := serverConfig(s.o.TLS, func(hello *tls.ClientHelloInfo, region string) error {
		if s.o.Allow != nil {
			if err := s.o.Allow(region); err != nil {
				return chunks.Wrap(PeerRefused, err, "region %s", region)
			}
		}
		if c, ok := hello.Conn.(*conn); ok {
			c.identify(region)
		}
		return nil
	})
	err := s.http.Serve(tls.NewListener(meteredListener{l, s}, config))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown lets answers end; see http.Server.Shutdown.
func (s *Server) Shutdown(ctx context.Context) error { return s.http.Shutdown(ctx) }

// Close ends all at once.
func (s *Server) Close() error { return s.http.Close() }

type meteredListener struct {
	net.Listener
	s *Server
}

func (l meteredListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// Reads are watched by http.Server, which uses deadlines of its own to end them.
	return l.s.o.Links.wrap(c, stalls{write: l.s.o.Stall}, nil), nil
}

func (s *Server) limited(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.streams <- struct{}{}:
			defer func() { <-s.streams }()
			next(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			problem(w, http.StatusServiceUnavailable, ServerBusy, "all streams of region "+s.o.Region+" are in use")
		}
	}
}

// problem answers an error in the form of RFC 9457.
func problem(w http.ResponseWriter, status int, code chunks.Code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	// A client that went away has no use for the answer.
	_ = json.NewEncoder(w).Encode(problemBody{Title: http.StatusText(status), Status: status, Code: code, Detail: detail})
}

type problemBody struct {
	Title  string      `json:"title"`
	Status int         `json:"status"`
	Code   chunks.Code `json:"code"`
	Detail string      `json:"detail"`
}

func (s *Server) index(w http.ResponseWriter, r *http.Request) {
	d, err := chunks.ParseDigest(r.PathValue("digest"))
	if err != nil {
		problem(w, http.StatusBadRequest, chunks.DigestInvalid, err.Error())
		return
	}
	select {
	case s.indexes <- struct{}{}:
		defer func() { <-s.indexes }()
	case <-r.Context().Done():
		return
	}
	x, release, err := s.o.Store.Acquire(r.Context(), d)
	switch {
	case chunks.CodeOf(err) == chunks.IndexMissing:
		problem(w, http.StatusNotFound, chunks.IndexMissing, "region "+s.o.Region+" does not hold disk index "+string(d))
		return
	case err != nil:
		s.o.Log.Error("read a disk index for another region", "digest", d, "error", err)
		problem(w, http.StatusInternalServerError, ServerFailed, "region "+s.o.Region+" cannot read disk index "+string(d))
		return
	}
	defer release()
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := x.Encode(w); err != nil {
		s.abort(r, err)
	}
}

// abort breaks the connection, so that the client does not take a part for the whole.
func (s *Server) abort(r *http.Request, err error) {
	s.o.Log.Info("send to another region", "peer", r.RemoteAddr, "error", err)
	panic(http.ErrAbortHandler)
}

func (s *Server) chunks(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBatch*int64(len(chunks.ID{}))))
	if err != nil || len(body)%len(chunks.ID{}) != 0 || len(body) == 0 {
		problem(w, http.StatusBadRequest, RequestInvalid, "the body is not 1 to 1024 chunk ids of 32 bytes")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	out := bufio.NewWriterSize(w, 128<<10)
	frame, buf := make([]byte, 0, 4+chunks.RecordHeaderSize), make([]byte, chunks.MaxRecordSize)
	for ; len(body) > 0; body = body[len(chunks.ID{}):] {
		rec, err := s.o.Store.ReadRecord(r.Context(), chunks.ID(body[:len(chunks.ID{})]), buf)
		switch code := chunks.CodeOf(err); {
		case err == nil:
			frame = binary.BigEndian.AppendUint32(frame[:0], uint32(rec.Size()))
			frame = rec.AppendHeader(frame)
		case code == chunks.ChunkMissing || code == chunks.ChunkDamaged:
			frame, rec.Payload = binary.BigEndian.AppendUint32(frame[:0], 0), nil
		default:
			s.abort(r, err)
		}
		if _, err = out.Write(frame); err == nil {
			_, err = out.Write(rec.Payload)
		}
		if err != nil {
			s.abort(r, err)
		}
	}
	if err := out.Flush(); err != nil {
		s.abort(r, err)
	}
}
