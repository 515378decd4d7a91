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
	"sync"
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

// armed says whether the step is to end its process.
func (d Dir) armed(step string) (spent string, armed bool) {
	phase, err := os.ReadFile(filepath.Join(string(d), "phase"))
	if err != nil || len(phase) == 0 {
		return "", false
	}
	spent = filepath.Join(string(d), "spent", string(phase), step)
	_, err = os.Stat(spent)
	return spent, errors.Is(err, fs.ErrNotExist)
}

// steps are those of one process.
type steps struct {
	dir Dir
	// telling is held while others are told something, from before it until after
	// it: what they do because of it may come back and end the process at another
	// step, and what has been told is not told again.
	telling sync.Mutex
}

// at ends the process if the step is armed and not spent. It does not return then.
func (s *steps) at(step string) {
	s.dir.pauseAt(step)
	if spent, armed := s.dir.armed(step); armed {
		f, err := os.OpenFile(spent, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return // spent meanwhile
		}
		_ = f.Close()
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// around is the two steps of one change to the host; call what it gives after
// the change.
func (s *steps) around(change string) func() {
	s.alone(Before(change))
	return func() { s.alone(After(change)) }
}

// alone is at, but lets who tells others something come to its end first.
func (s *steps) alone(step string) {
	s.dir.pauseAt(step)
	if _, armed := s.dir.armed(step); !armed {
		return
	}
	s.telling.Lock()
	defer s.telling.Unlock()
	s.at(step)
}

// tell is around for what others are told.
func (s *steps) tell(what string) func() {
	s.telling.Lock()
	s.at(Before(what))
	return func() {
		s.at(After(what))
		s.telling.Unlock()
	}
}

// Before and After name the steps of a change.
func Before(change string) string { return change + ":before" }

// After names the step after a change.
func After(change string) string { return change + ":after" }

// Agent puts the steps into an agent.
func (d Dir) Agent(c *region.Config) {
	all := &steps{dir: d}
	c.Store = func(s chunks.Store) chunks.Store { return store{s, all} }
	c.Around = func(change region.Change) func() { return all.around("host." + string(change)) }
	c.Documents = docs{c.Documents, all}
	c.Commander = commander{c.Commander, all}
}

// Journal puts the steps around what the control plane appends.
func (d Dir) Journal(j journal.Journal) journal.Journal { return appender{j, &steps{dir: d}} }

type appender struct {
	journal.Journal
	steps *steps
}

func (a appender) Append(ctx context.Context, p journal.Proposal) (events.Record, error) {
	defer a.steps.tell("append." + string(p.Event.EventType()))()
	return a.Journal.Append(ctx, p)
}

type docs struct {
	documents.Store
	steps *steps
}

func (d docs) Put(ctx context.Context, document []byte) (events.Digest, error) {
	defer d.steps.around("documents.Put")()
	return d.Store.Put(ctx, document)
}

type commander struct {
	region.Commander
	steps *steps
}

func (c commander) Command(ctx context.Context, operation events.OperationID, account events.AccountID, kind events.Kind, verb string, id events.CommandID, body any) (uint64, error) {
	defer c.steps.tell("command." + verb)()
	return c.Commander.Command(ctx, operation, account, kind, verb, id, body)
}

// store and session have a step around every method of chunks.Writer and
// chunks.Session; a test holds them against the interfaces.
type store struct {
	chunks.Store
	steps *steps
}

func (s store) Hold(ctx context.Context, owner string, until time.Time) error {
	defer s.steps.around("store.Hold")()
	return s.Store.Hold(ctx, owner, until)
}

func (s store) Release(ctx context.Context, owner string) (bool, error) {
	defer s.steps.around("store.Release")()
	if err := s.steps.dir.failing("store.Release"); err != nil {
		return false, err
	}
	return s.Store.Release(ctx, owner)
}

func (s store) Begin(ctx context.Context, owner string) (chunks.Session, error) {
	defer s.steps.around("store.Begin")()
	inner, err := s.Store.Begin(ctx, owner)
	if err != nil {
		return nil, err
	}
	return session{inner, s.steps}, nil
}

func (s store) Publish(ctx context.Context, r chunks.Root) error {
	defer s.steps.around("store.Publish")()
	if err := s.steps.dir.failing("store.Publish"); err != nil {
		return err
	}
	return s.Store.Publish(ctx, r)
}

func (s store) Unpublish(ctx context.Context, name string) (bool, error) {
	defer s.steps.around("store.Unpublish")()
	return s.Store.Unpublish(ctx, name)
}

func (s store) Quarantine(ctx context.Context, ids []chunks.ID) ([]chunks.ID, error) {
	defer s.steps.around("store.Quarantine")()
	return s.Store.Quarantine(ctx, ids)
}

func (s store) Collect(ctx context.Context, r chunks.CollectRequest) (chunks.CollectResult, error) {
	defer s.steps.around("store.Collect")()
	return s.Store.Collect(ctx, r)
}

type session struct {
	chunks.Session
	steps *steps
}

func (s session) Touch(ctx context.Context, ids []chunks.ID) ([]bool, error) {
	defer s.steps.around("session.Touch")()
	return s.Session.Touch(ctx, ids)
}

func (s session) Put(ctx context.Context, c chunks.Sealed) (int64, error) {
	defer s.steps.around("session.Put")()
	return s.Session.Put(ctx, c)
}

func (s session) Attach(ctx context.Context, x *chunks.DiskIndex) (chunks.Digest, error) {
	defer s.steps.around("session.Attach")()
	return s.Session.Attach(ctx, x)
}

func (s session) Close() {
	defer s.steps.around("session.Close")()
	s.Session.Close()
}
