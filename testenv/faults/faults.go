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

// Spent lists the steps that have ended their process, as "phase/step".
func (d Dir) Spent() ([]string, error) {
	var out []string
	root := filepath.Join(string(d), "spent")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !e.IsDir() {
			out = append(out, strings.TrimPrefix(path, root+"/"))
		}
		return err
	})
	return out, err
}

// Pause has the process stand still at a step, once, until somebody lets it go on.
func (d Dir) Pause(step string) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	return os.WriteFile(d.pausing(), []byte(step), 0o600)
}

// Paused says whether the process has come to the step that it is to pause at.
func (d Dir) Paused() bool {
	_, err := os.Stat(d.pausing() + ".done")
	return err == nil
}

func (d Dir) pausing() string { return filepath.Join(string(d), "pause") }

func (d Dir) pauseAt(step string) {
	if wanted, err := os.ReadFile(d.pausing()); err != nil || string(wanted) != step {
		return
	}
	if os.Rename(d.pausing(), d.pausing()+".done") == nil {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
}

// at ends the process if the step is armed and not spent. It does not return then.
func (d Dir) at(step string) {
	d.pauseAt(step)
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

// Fail has store.Publish or store.Release refused with a code, without a try,
// until Mend.
func (d Dir) Fail(change string, code chunks.Code) error {
	if err := os.MkdirAll(filepath.Join(string(d), "failing"), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(string(d), "failing", change), []byte(code), 0o600)
}

// Mend ends Fail.
func (d Dir) Mend(change string) error {
	return os.Remove(filepath.Join(string(d), "failing", change))
}

func (d Dir) failing(change string) error {
	code, err := os.ReadFile(filepath.Join(string(d), "failing", change))
	if err != nil {
		return nil // it is not to fail
	}
	return chunks.Errorf(chunks.Code(code), "%s fails in this test", change)
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
	if err := s.dir.failing("store.Release"); err != nil {
		return false, err
	}
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
	if err := s.dir.failing("store.Publish"); err != nil {
		return err
	}
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
