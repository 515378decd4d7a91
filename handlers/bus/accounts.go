package bus

import (
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

const (
	// Core is the NATS account of the control plane: JetStream and everything
	// that answers live there. No user of the product is in it.
	Core = "CORE"
	// APIPrefix is what a tenant's clients give as JetStream's API prefix. A
	// prefix of our own leaves $JS.API free for a tenant's own JetStream.
	APIPrefix = "tombolo.api"

	journalStream     = journal.StreamName
	subscribePrefix   = "tombolo.subscribe."
	unsubscribePrefix = "tombolo.unsubscribe."
	guardPrefix       = "tombolo.guard." // in Core only
)

// StreamOf names the stream with the account's events.
func StreamOf(a events.AccountID) string { return journalStream + "_" + string(a) }

// house opens the NATS accounts of tenants, and that of administrators and
// agents, as they are needed. What an account imports follows from its name, so
// nothing of it has to be stored: it is made again after a restart.
type house struct {
	nats *server.Server
	mu   sync.Mutex
	open map[events.AccountID]*server.Account
}

// service is something in Core that an account may ask.
type service struct {
	from    string // the subject in the account
	to      string // in Core; empty: the same
	answers server.ServiceRespType
	// identified requests carry Nats-Request-Info with account and user, set by
	// the server. All imports do where the answer depends on who asks.
	identified bool
}

// account gives the NATS account, named as the account is, with its imports.
func (h *house) account(id events.AccountID) (*server.Account, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.open[id]; a != nil {
		return a, nil
	}
	a, err := h.make(id)
	if err != nil {
		return nil, fmt.Errorf("open the bus's account %s: %w", id, err)
	}
	h.open[id] = a
	return a, nil
}

func (h *house) make(id events.AccountID) (*server.Account, error) {
	core, err := h.nats.LookupAccount(Core)
	if err != nil {
		return nil, err
	}
	if id != events.None && !events.IsToken(string(id)) {
		return nil, errors.New("its name is not a token")
	}
	a, err := h.nats.RegisterAccount(string(id))
	if err != nil {
		return nil, err
	}
	services := tenantServices(id)
	if id == events.None {
		services = ourServices()
	}
	for _, s := range services {
		if err := s.connect(core, a); err != nil {
			return nil, fmt.Errorf("service %s: %w", s.from, err)
		}
	}
	return a, h.progress(a, id)
}

// progress lets the account hear how far its work is. Agents publish it in
// account None.
func (h *house) progress(a *server.Account, id events.AccountID) error {
	if id == events.None {
		core, err := h.nats.LookupAccount(Core)
		if err != nil {
			return err
		}
		return stream(a, core, "tombolo.progress.>")
	}
	ours := h.open[events.None] // opened with the server
	return stream(ours, a, "tombolo.progress."+string(id)+".>")
}

func stream(from, to *server.Account, subject string) error {
	if err := from.AddStreamExport(subject, []*server.Account{to}); err != nil {
		return fmt.Errorf("export %s: %w", subject, err)
	}
	if err := to.AddStreamImport(from, subject, ""); err != nil {
		return fmt.Errorf("import %s: %w", subject, err)
	}
	return nil
}

// connect exports the service to this account by its exact subject, so that an
// import of another account's subject would be refused, and imports it.
func (s service) connect(core, a *server.Account) error {
	to := s.to
	if to == "" {
		to = s.from
	}
	if err := core.AddServiceExportWithResponse(to, s.answers, []*server.Account{a}); err != nil {
		return err
	}
	if err := a.AddServiceImport(core, s.from, to); err != nil {
		return err
	}
	if !s.identified {
		return nil
	}
	return a.SetServiceImportSharing(core, to, true)
}

// tenantServices is what a tenant reaches: its own commands, and its own stream.
func tenantServices(id events.AccountID) []service {
	stream := StreamOf(id)
	return append(discovery(), []service{
		{from: "tombolo.command." + string(id) + ".>", identified: true},
		{from: "tombolo.inbox." + string(id) + ".>", identified: true},
		{from: subscribePrefix + string(id), identified: true},
		{from: unsubscribePrefix + string(id), identified: true},
		{from: APIPrefix + ".STREAM.INFO." + stream, to: "$JS.API.STREAM.INFO." + stream},
		{from: APIPrefix + ".CONSUMER.INFO." + stream + ".*", to: "$JS.API.CONSUMER.INFO." + stream + ".*"},
		{from: APIPrefix + ".CONSUMER.MSG.NEXT." + stream + ".*", to: "$JS.API.CONSUMER.MSG.NEXT." + stream + ".*", answers: server.Streamed},
		{from: "$JS.ACK." + stream + ".>"},
	}...)
}

// ourServices is what account None reaches: everything. Its users differ by
// their permissions.
func ourServices() []service {
	out := append(discovery(),
		service{from: "tombolo.command.>", identified: true},
		service{from: "tombolo.inbox.>", identified: true},
		service{from: "tombolo.agent.>", identified: true},
		service{from: "tombolo.document.>", identified: true},
		service{from: subscribePrefix + "*", identified: true},
		service{from: unsubscribePrefix + "*", identified: true},
		service{from: "$SRV.STATS", answers: server.Streamed},
		service{from: "$SRV.STATS.>", answers: server.Streamed},
	)
	for _, subject := range journalReading() {
		s := service{from: subject, to: subject}
		switch subject {
		case createSubject:
			s.to = guardPrefix + subject
		case "$JS.API.CONSUMER.MSG.NEXT." + journalStream + ".*":
			s.answers = server.Streamed
		}
		out = append(out, s)
	}
	return out
}

// discovery is micro's (ADR-32), of which each service answers for itself.
func discovery() []service {
	var out []service
	for _, verb := range []string{"PING", "INFO"} {
		out = append(out, service{from: "$SRV." + verb, answers: server.Streamed}, service{from: "$SRV." + verb + ".>", answers: server.Streamed})
	}
	return out
}
