// Package faults ends a process at the steps that change something: before and
// after every change an agent makes to its host, every command it sends, and
// every event that the control plane appends. A step ends its process once in
// each phase of a test; what is restarted finds it spent.
package faults

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Dir is where processes and their test agree on what is armed and what is spent.
type Dir string

// Arm begins a phase: every step ends its process once more. An empty name
// disarms everything.
func (d Dir) Arm(phase string) error {
	if err := os.MkdirAll(filepath.Join(string(d), "spent", phase), 0o700); err != nil {
		return err
	}
	next := filepath.Join(string(d), "phase.new")
	if err := os.WriteFile(next, []byte(phase), 0o600); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(string(d), "phase"))
}

// Spend lets a step pass in a phase.
func (d Dir) Spend(phase, step string) error {
	dir := filepath.Join(string(d), "spent", phase)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, step), []byte("passes"), 0o600)
}

// Spent lists the steps that have ended their process, as "phase/step".
func (d Dir) Spent() ([]string, error) {
	var out []string
	root := filepath.Join(string(d), "spent")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !e.IsDir() {
			if info, ierr := e.Info(); ierr != nil || info.Size() > 0 {
				return ierr // it was let pass
			}
			out = append(out, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	return out, err
}

// at ends the process if the step is armed and not spent. It does not return then.
func (d Dir) at(step string) {
	phase, err := os.ReadFile(filepath.Join(string(d), "phase"))
	if err != nil || len(phase) == 0 {
		return
	}
	f, err := os.OpenFile(filepath.Join(string(d), "spent", string(phase), step), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return // spent
	}
	_ = f.Close()
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// around is the two steps of one change; call what it gives after the change.
func (d Dir) around(change string) func() {
	d.at(Before(change))
	return func() { d.at(After(change)) }
}

// Before and After name the steps of a change.
func Before(change string) string { return change + ":before" }

// After names the step after a change.
func After(change string) string { return change + ":after" }

// Agent puts the steps into an agent.
func (d Dir) Agent(c *region.Config) {
	c.Store = func(s chunks.Store) chunks.Store { return store{s, d} }
	c.Around = func(change region.Change) func() { return d.around("host." + string(change)) }
	c.Documents = docs{c.Documents, d}
	c.Commander = commander{c.Commander, d}
}

// Journal puts the steps around what the control plane appends.
func (d Dir) Journal(j journal.Journal) journal.Journal { return appender{j, d} }

type appender struct {
	journal.Journal
	dir Dir
}

func (a appender) Append(ctx context.Context, p journal.Proposal) (events.Record, error) {
	defer a.dir.around("append." + string(p.Event.EventType()))()
	return a.Journal.Append(ctx, p)
}

type docs struct {
	documents.Store
	dir Dir
}

func (d docs) Put(ctx context.Context, document []byte) (events.Digest, error) {
	defer d.dir.around("documents.Put")()
	return d.Store.Put(ctx, document)
}

type commander struct {
	region.Commander
	dir Dir
}

func (c commander) Command(ctx context.Context, account events.AccountID, kind events.Kind, verb string, id events.CommandID, body any) (uint64, error) {
	defer c.dir.around("command." + verb)()
	return c.Commander.Command(ctx, account, kind, verb, id, body)
}

// store and session have a step around every method of chunks.Writer and
// chunks.Session; a test holds them against the interfaces.
type store struct {
	chunks.Store
	dir Dir
}

func (s store) Hold(ctx context.Context, owner string, until time.Time) error {
	defer s.dir.around("store.Hold")()
	return s.Store.Hold(ctx, owner, until)
}

func (s store) Release(ctx context.Context, owner string) (bool, error) {
	defer s.dir.around("store.Release")()
	return s.Store.Release(ctx, owner)
}

func (s store) Begin(ctx context.Context, owner string) (chunks.Session, error) {
	defer s.dir.around("store.Begin")()
	inner, err := s.Store.Begin(ctx, owner)
	if err != nil {
		return nil, err
	}
	return session{inner, s.dir}, nil
}

func (s store) Publish(ctx context.Context, r chunks.Root) error {
	defer s.dir.around("store.Publish")()
	return s.Store.Publish(ctx, r)
}

func (s store) Unpublish(ctx context.Context, name string) (bool, error) {
	defer s.dir.around("store.Unpublish")()
	return s.Store.Unpublish(ctx, name)
}

func (s store) Quarantine(ctx context.Context, ids []chunks.ID) ([]chunks.ID, error) {
	defer s.dir.around("store.Quarantine")()
	return s.Store.Quarantine(ctx, ids)
}

func (s store) Collect(ctx context.Context, r chunks.CollectRequest) (chunks.CollectResult, error) {
	defer s.dir.around("store.Collect")()
	return s.Store.Collect(ctx, r)
}

type session struct {
	chunks.Session
	dir Dir
}

func (s session) Touch(ctx context.Context, ids []chunks.ID) ([]bool, error) {
	defer s.dir.around("session.Touch")()
	return s.Session.Touch(ctx, ids)
}

func (s session) Put(ctx context.Context, c chunks.Sealed) (int64, error) {
	defer s.dir.around("session.Put")()
	return s.Session.Put(ctx, c)
}

func (s session) Attach(ctx context.Context, x *chunks.DiskIndex) (chunks.Digest, error) {
	defer s.dir.around("session.Attach")()
	return s.Session.Attach(ctx, x)
}

func (s session) Close() {
	defer s.dir.around("session.Close")()
	s.Session.Close()
}
