package processes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/stream"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Runner runs the process managers.
type Runner struct {
	journal  journal.Journal
	executor *commands.Executor
	log      *slog.Logger
	router   *message.Router
	managers []*manager
	done     chan struct{}
}

// manager is one process at work.
type manager struct {
	Definition
	rows   *projections.Table[storedRow]
	byName *projections.Index[storedRow]
	parked *projections.Table[Parked]
	store  *projections.Consumer
	runner *Runner

	mu sync.Mutex // one event, retry or skip at a time
}

type storedRow struct {
	Key   string          `json:"key"`
	Names []string        `json:"names,omitempty"`
	State json.RawMessage `json:"state"`
}

// Parked is a row whose process could not handle an event. What concerns it
// waits in order; everything else goes on.
type Parked struct {
	Process   string       `json:"process"`
	Key       string       `json:"key"`
	Cause     events.Cause `json:"cause"`
	Sequences []uint64     `json:"sequences"` // events that wait, the failed one first
}

// New makes a runner over a journal; rows and positions are kept in the store.
func New(j journal.Journal, x *commands.Executor, store *projections.Store, log *slog.Logger) (*Runner, error) {
	r := &Runner{journal: j, executor: x, log: log, done: make(chan struct{})}
	for _, d := range All() {
		m := &manager{Definition: d, runner: r}
		consumer := "process-" + d.Name
		m.byName = projections.NewIndex("name", func(row storedRow) []projections.Key {
			var out []projections.Key
			for _, n := range row.Names {
				out = append(out, projections.Key{n})
			}
			return out
		})
		m.rows = projections.NewTable(consumer, "rows", func(row storedRow) projections.Key { return projections.Key{row.Key} }, m.byName)
		m.parked = projections.NewTable(consumer, "parked", func(p Parked) projections.Key { return projections.Key{p.Key} })
		var err error
		if m.store, err = store.Consumer(consumer, m.rows, m.parked); err != nil {
			return nil, err
		}
		r.managers = append(r.managers, m)
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(log))
	if err != nil {
		return nil, err
	}
	router.AddMiddleware(middleware.CorrelationID, middleware.Recoverer)
	positions := func(handler string) uint64 { return r.manager(handler).store.Position() }
	failed := func(handler string, err error) {
		log.Error("a process has stopped: the journal cannot be followed", "process", handler, "error", err)
	}
	for _, m := range r.managers {
		router.AddConsumerHandler(m.Name, m.Name, stream.New(j, positions, failed), m.handle)
	}
	r.router = router
	return r, nil
}

// Run follows the journal until the context ends or Close is called.
func (r *Runner) Run(ctx context.Context) error { return r.router.Run(ctx) }

// Running is closed when all processes follow the journal.
func (r *Runner) Running() <-chan struct{} { return r.router.Running() }

// Close lets every process finish the event it is at.
func (r *Runner) Close() error { return r.router.Close() }

func (r *Runner) manager(name string) *manager {
	for _, m := range r.managers {
		if m.Name == name {
			return m
		}
	}
	return nil
}

func (m *manager) handle(msg *message.Message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	rec := stream.Record(msg)
	if rec.Sequence <= m.store.Position() {
		return nil // handled before a restart
	}
	view, err := m.store.View()
	if err != nil {
		return err
	}
	defer view.Close()
	keys, err := m.keys(view, rec)
	if err != nil || len(keys) == 0 {
		return err
	}
	var rows []storedRow
	var over []string
	var park []Parked
	for _, key := range keys {
		p, parked, err := m.parked.Get(view, key)
		if err != nil {
			return err
		}
		if parked {
			p.Sequences = append(p.Sequences, rec.Sequence)
			park = append(park, p)
			continue
		}
		row, gone, err := m.advance(msg.Context(), view, key, rec)
		switch {
		case permanent(err):
			m.runner.log.Error("a process cannot handle an event; what it concerns is parked", "process", m.Name, "key", key, "sequence", rec.Sequence, "error", err)
			park = append(park, Parked{Process: m.Name, Key: key, Sequences: []uint64{rec.Sequence},
				Cause: events.Cause{Code: "handler-failed", Text: err.Error(), Next: "handler retry, or handler skip"}})
		case err != nil:
			return err
		case gone:
			over = append(over, key)
		default:
			rows = append(rows, row)
		}
	}
	return m.store.Commit(rec.Sequence, func(b *projections.Batch) error {
		for _, row := range rows {
			if err := m.rows.Put(b, row); err != nil {
				return err
			}
		}
		for _, key := range over {
			if err := m.rows.Delete(b, key); err != nil {
				return err
			}
		}
		for _, p := range park {
			if err := m.parked.Put(b, p); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *manager) keys(view *projections.View, rec events.Record) ([]string, error) {
	var failed error
	keys := m.Keys(rec, func(name string) []string {
		var out []string
		for row, err := range m.rows.All(view, projections.Query[storedRow]{By: m.byName, Prefix: projections.Key{name}}) {
			if err != nil {
				failed = err
				break
			}
			out = append(out, row.Key)
		}
		return out
	})
	return keys, failed
}

// advance has the row react to the event and sends what follows. Everything
// sent has a derived id: an event that is handled again sends the same again.
func (m *manager) advance(ctx context.Context, view *projections.View, key string, rec events.Record) (_ storedRow, over bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &brokenError{fmt.Sprintf("panic: %v\n%s", p, debug.Stack())}
		}
	}()
	stored, _, err := m.rows.Get(view, key)
	if err != nil {
		return storedRow{}, false, err
	}
	row, err := m.decode(stored.State)
	if err != nil {
		return storedRow{}, false, &brokenError{err.Error()}
	}
	queue := row.React(rec)
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		id := events.CommandID(events.DeriveID(s.Account, events.CommandID(m.Name+"/"+key), s.Step))
		_, err := s.execute(ctx, m.runner.executor, commands.Origin{
			Account: s.Account, Actor: controlPlane, Correlation: rec.Correlation, Causation: rec.ID, TraceParent: rec.TraceParent,
			Command: events.CommandRef{ID: id, Digest: events.DigestOf([]byte(id))}, // the step is the body
		})
		if refusal, ok := aggregates.AsRefusal(err); ok {
			queue = append(queue, row.Refused(s, refusal)...)
			continue
		}
		if err != nil {
			return storedRow{}, false, fmt.Errorf("%s: %w", s.Step, err)
		}
	}
	state, err := json.Marshal(row)
	if err != nil {
		return storedRow{}, false, &brokenError{err.Error()}
	}
	return storedRow{Key: key, Names: row.Index(), State: state}, row.Over(), nil
}

// brokenError is what trying again does not mend.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return e.text }

func permanent(err error) bool {
	var broken *brokenError
	return errors.As(err, &broken) || errors.Is(err, journal.ErrChain) || errors.Is(err, events.ErrUnknownEvent)
}

// Parked lists what is parked, of all processes.
func (r *Runner) Parked() ([]Parked, error) {
	var out []Parked
	for _, m := range r.managers {
		view, err := m.store.View()
		if err != nil {
			return nil, err
		}
		for p, err := range m.parked.All(view, projections.Query[Parked]{}) {
			if err != nil {
				view.Close()
				return nil, err
			}
			out = append(out, p)
		}
		view.Close()
	}
	return out, nil
}
