// Package api is the HTTP interface: what a person, a script or the command line
// asks over HTTP becomes a command at the bus's front door or a read of the
// projections. It decides nothing itself and holds no state but counters.
//
// The same handler serves the control plane and a region: one without a
// Commander answers reads and events, and sends whoever wants to change
// something to the control plane (not-here).
package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Users knows who a bearer credential belongs to: a token at the control plane,
// a ticket (trust.Ticket) at a region. false: nobody. An error may be a
// *trust.Error.
type Users interface {
	ByBearer(ctx context.Context, credential string) (User, bool, error)
}

// Tickets signs for regions' agents who somebody is.
type Tickets func(trust.Ticket) (string, error)

// User is who a credential stands for.
type User struct {
	Account events.AccountID
	User    events.UserID
	Role    events.Role
	Region  events.RegionID // agents only
	Key     string          // public nkey
	// Permissions are the commands that a member may send.
	Permissions []string
}

// Commander is the bus's front door as this package needs it: commands.Door.
type Commander interface {
	Do(ctx context.Context, r commands.Request) (commands.Answer, error)
	Plan(ctx context.Context, r commands.Request) (json.RawMessage, error)
}

// Documents gives graphs and manifests by digest.
type Documents interface {
	Get(ctx context.Context, d events.Digest) ([]byte, error)
}

// Progress follows how an operation's transfers go. It calls each until the
// context ends or each fails; progress that nobody follows is lost.
type Progress interface {
	Follow(ctx context.Context, account events.AccountID, operation events.OperationID, each func(json.RawMessage) error) error
	// Latest is the last report on an operation's copy into a region; false where
	// none is remembered.
	Latest(account events.AccountID, operation events.OperationID, at events.RegionID) (region.Progress, bool)
}

// Check is one part of readiness; Err is nil if it is well. A warning leaves it ready.
type Check struct {
	Name    string
	Err     error
	Warning string
}

// Config is what a handler is made of.
type Config struct {
	Feed     *projections.Feed // required
	Journal  journal.Journal   // required; a region's is a mirror's
	Users    Users             // required
	Log      *slog.Logger      // required
	Now      func() time.Time  // required
	Commands Commander         // nil: writes answer not-here
	Home     string            // of the control plane, for not-here
	Source   string            // ce-source of events: "urn:uuid:<journal id>"
	Version  string            // of the program

	Documents Documents
	Progress  Progress
	Host      Host           // a region's own; nil: its questions are passed on to the regions
	Inbox     Inbox          // nil: there is none here
	Regions   *http.Client   // reaches the regions' hosts; not needed where Host is there
	Handlers  Handlers       // nil: nothing is ever parked here
	Enrol     Enrol          // nil: this is a region, which enrols none
	Tickets   Tickets        // nil: this is a region, which only takes them
	Ready     func() []Check // beyond the feed and the journal
	Grow      Grow           // nil: the journal's limit is not raised here
	Backup    Backup         // nil: nothing is backed up here
	Scratch   string         // where a replay folds; the system's place for that if empty
	Patience  time.Duration  // how long a read waits for a position; 10 s if 0
}

// Server is the handler.
type Server struct {
	Config
	mux     *http.ServeMux
	api     huma.API
	metrics *metrics
	replay  sync.Mutex // one at a time
}

var _ http.Handler = (*Server)(nil)

// New makes a handler.
func New(c Config) *Server {
	if c.Patience == 0 {
		c.Patience = 10 * time.Second
	}
	s := &Server{Config: c, mux: http.NewServeMux()}
	s.metrics = newMetrics(s)
	s.api = humago.New(s.mux, s.huma())
	s.health()
	s.regionRoutes()
	s.mapRoutes()
	s.enrolRoutes()
	s.ticketRoutes()
	s.hostRoutes()
	s.poolRoutes()
	s.environmentRoutes()
	s.machineRoutes()
	s.templateRoutes()
	s.instantiateRoutes()
	s.operationRoutes()
	s.workRoutes()
	s.accountRoutes()
	s.auditRoutes()
	s.eventRoutes()
	s.journalRoutes()
	s.documentErrors()
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.write(w, r, problem(http.StatusNotFound, "route-unknown", "there is nothing at %s %s", r.Method, r.URL.Path).
			withNext("GET /openapi.json lists what there is"))
	})
	return s
}

// huma gives the configuration of the OpenAPI layer; unknown fields in bodies and
// unknown query parameters are refused, so that a misspelt wish is never dropped.
func (s *Server) huma() huma.Config {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	c := huma.DefaultConfig("Tombolo", s.Version)
	c.Components.Schemas = registry
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}}
	c.Security = []map[string][]string{{"token": {}}}
	c.DocsPath, c.SchemasPath = "", ""
	c.CreateHooks = nil // they would put $schema into every body
	c.RejectUnknownQueryParameters = true
	c.Transformers = []huma.Transformer{s.transform}
	return c
}

// ServeHTTP answers one request: who asks, then the route.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	counted := &counter{ResponseWriter: w, status: http.StatusOK}
	start := s.Now()
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.Log.Error("an HTTP handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p)
			s.write(counted, r, internal(r))
		}
		s.metrics.request(r, counted.status, s.Now().Sub(start))
	}()
	r = withRequestID(counted, r)
	if !open(r.URL.Path) {
		caller, err := s.authenticate(r)
		if err != nil {
			counted.Header().Set("WWW-Authenticate", `Bearer realm="tombolo"`)
			s.write(counted, r, err)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
	}
	s.mux.ServeHTTP(counted, r)
}

// OpenAPI is the description of the interface as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return json.MarshalIndent(s.api.OpenAPI(), "", "  ") }

// counter remembers the status.
type counter struct {
	http.ResponseWriter
	status int
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
