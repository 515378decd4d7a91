package processes

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/stream"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Runner runs the process managers.
type Runner struct {
	router   *message.Router
	managers []*manager

	mu      sync.Mutex
	stopped error // why a process does not follow the journal any more
}

// New makes a runner over a journal; rows and positions are kept in the store.
func New(j journal.Journal, x *commands.Executor, store *projections.Store, log *slog.Logger) (*Runner, error) {
	return newRunner(All(), j, x, store, log)
}

func newRunner(table []Definition, j journal.Journal, x *commands.Executor, store *projections.Store, log *slog.Logger) (*Runner, error) {
	r := &Runner{}
	for _, d := range table {
		m, err := newManager(d, j, x, store, log)
		if err != nil {
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
	for _, m := range r.managers {
		router.AddConsumerHandler(m.Name, m.Name, stream.New(j, positions, m.pass, r.fail(log)), func(msg *message.Message) error {
			return m.handle(msg.Context(), stream.Record(msg))
		})
	}
	r.router = router
	return r, nil
}

// fail stops the runner: a process that cannot follow the journal must not look
// as if it did, and the others would go on without it.
func (r *Runner) fail(log *slog.Logger) func(handler string, err error) {
	return func(handler string, err error) {
		log.Error("a process has stopped: the journal cannot be followed", "process", handler, "error", err)
		r.mu.Lock()
		r.stopped = errors.Join(r.stopped, err)
		r.mu.Unlock()
		go r.router.Close() // which waits for the caller
	}
}

// Run follows the journal until the context ends or Close is called; then it
// returns nil. An error means that the journal could not be followed (a gap, an
// unknown event, a lost stream).
func (r *Runner) Run(ctx context.Context) error {
	err := r.router.Run(ctx)
	r.closeManagers()
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.stopped, err)
}

// Running is closed when all processes follow the journal.
func (r *Runner) Running() <-chan struct{} { return r.router.Running() }

// Close lets every process finish the event it is at. Once it has returned, the
// store may be closed.
func (r *Runner) Close() error {
	err := r.router.Close()
	r.closeManagers()
	return err
}

func (r *Runner) closeManagers() {
	for _, m := range r.managers {
		m.close()
	}
}

// Parked lists what is parked, of all processes.
func (r *Runner) Parked() ([]Parked, error) {
	var out []Parked
	for _, m := range r.managers {
		parked, err := m.list()
		if err != nil {
			return nil, err
		}
		out = append(out, parked...)
	}
	return out, nil
}

// Retry has the process handle the event that the key is parked at, and then
// everything that concerns it since. It stays parked where that fails again.
// Refusals: handler-unknown, not-parked. Other errors leave everything as it was.
func (r *Runner) Retry(ctx context.Context, process, key string) error {
	m := r.manager(process)
	if m == nil {
		return unknownHandler(process)
	}
	return m.resume(ctx, key, false)
}

// Skip is Retry without the event that the key is parked at: it is as if the
// process had never seen it.
func (r *Runner) Skip(ctx context.Context, process, key string) error {
	m := r.manager(process)
	if m == nil {
		return unknownHandler(process)
	}
	return m.resume(ctx, key, true)
}

func unknownHandler(process string) error {
	return aggregates.RefuseAs(aggregates.NotFound, "handler-unknown", "there is no process %s", process)
}

func (r *Runner) manager(name string) *manager {
	for _, m := range r.managers {
		if m.Name == name {
			return m
		}
	}
	return nil
}
