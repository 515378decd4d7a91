package program

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
)

// A backup is a directory: backup.json, a snapshot of each stream, and the files of the data directory that are no
// copy of something else. Read models follow from the journal. What the regions have in their stores is not in it.
const (
	backupFormat = 1
	backupFile   = "backup.json" // written last: a backup without it is not whole
)

// backupManifest is backup.json.
type backupManifest struct {
	Format   int            `json:"format"`
	Position uint64         `json:"position"`
	Head     string         `json:"head"`
	Streams  []backupStream `json:"streams"` // in the order in which they are restored
	Files    []backupPart   `json:"files"`
}

type backupStream struct {
	backupPart
	bus.Snapshot
}

// backupPart is one file, with its path in the backup.
type backupPart struct {
	Path   string        `json:"path"`
	Bytes  int64         `json:"bytes"`
	Digest events.Digest `json:"digest"`
}

// notBackedUp are the entries of a data directory that a backup leaves out: the bus's files (its snapshots are there),
// what follows from the journal, what is written anew at every start, and what belongs to the regions.
func notBackedUp(name string) bool {
	return slices.Contains([]string{"bus", "reads", "scratch", "lock", "context.json", "contexts", "regions"}, name)
}

func unprocessable(code, next, format string, args ...any) *api.Problem {
	return &api.Problem{Type: "about:blank", Title: "Unprocessable Entity", Status: 422, Code: code, Detail: fmt.Sprintf(format, args...), Next: next}
}

// backup is api.Backup.
func (p *Program) backup(ctx context.Context, to string) (made api.BackupMade, err error) {
	if !filepath.IsAbs(to) {
		return made, unprocessable("backup-directory-invalid", "name a directory from the root", "%q is not an absolute path", to)
	}
	if inside, err := filepath.Rel(p.config.Dir, to); err != nil || filepath.IsLocal(inside) {
		return made, unprocessable("backup-directory-invalid", "choose a directory elsewhere, on another disk at best", "%q is in the data directory", to)
	}
	if !p.backing.TryLock() {
		return made, &api.Problem{Type: "about:blank", Title: "Service Unavailable", Status: 503, Code: "backup-busy", Detail: "another backup is going on", Next: "ask again when it has ended"}
	}
	defer p.backing.Unlock()
	if err := emptyDir(to); err != nil {
		return made, unprocessable("backup-directory-invalid", "choose another directory", "a backup cannot be written there: %v", err)
	}
	m, err := p.takeBackup(ctx, to)
	if err != nil {
		return made, errors.Join(err, os.RemoveAll(to)) // half a backup is none
	}
	made = api.BackupMade{Directory: to, Position: m.Position, Head: m.Head, Streams: len(m.Streams), Files: len(m.Files)}
	for _, s := range m.Streams {
		made.Bytes += s.Bytes
	}
	for _, f := range m.Files {
		made.Bytes += f.Bytes
	}
	return made, nil
}

// emptyDir makes a directory that only its owner can read, or finds it empty.
func emptyDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is not empty", dir)
	}
	return err
}

func (p *Program) takeBackup(ctx context.Context, to string) (backupManifest, error) {
	m := backupManifest{Format: backupFormat}
	names, err := bus.StreamNames(ctx, p.conn)
	if err != nil {
		return m, err
	}
	// While work goes on, what refers to something else is taken before it: a command of the inbox is either still
	// there or in the journal, a tenant's mirror is never ahead of it, and a document is there before an event names it.
	rank := func(name string) int {
		switch name {
		case journal.StreamName:
			return 1
		case "KV_" + documents.BucketName:
			return 2
		}
		return 0
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	for _, name := range names {
		s := backupStream{}
		s.backupPart, err = writePart(to, filepath.Join("streams", name), func(w io.Writer) (err error) {
			s.Snapshot, err = bus.TakeSnapshot(ctx, p.conn, name, name != journal.StreamName, w)
			return err
		})
		if err != nil {
			return m, err
		}
		m.Streams = append(m.Streams, s)
		if name == journal.StreamName {
			if m.Position, err = s.Last(); err != nil {
				return m, err
			}
		}
	}
	slices.Reverse(m.Streams)
	if m.Head, err = headAt(ctx, p.journal, m.Position); err != nil {
		return m, err
	}
	if m.Files, err = p.backupFiles(to); err != nil {
		return m, err
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	_, err = writePart(to, backupFile, func(w io.Writer) error { _, err := w.Write(b); return err })
	return m, errors.Join(err, syncDir(to))
}

// backupFiles copies the files of the data directory.
func (p *Program) backupFiles(to string) (out []backupPart, err error) {
	err = filepath.WalkDir(p.config.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(p.config.Dir, path)
		switch {
		case err != nil:
			return err
		case notBackedUp(name) && entry.IsDir():
			return fs.SkipDir
		case notBackedUp(name) || !entry.Type().IsRegular():
			return nil
		}
		part, err := writePart(to, filepath.Join("files", name), func(w io.Writer) error { return copyFrom(path, w) })
		out = append(out, part)
		return err
	})
	return out, err
}

func copyFrom(path string, to io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, f)
	return errors.Join(err, f.Close())
}

// counted is a writer that knows how much went through it, and the digest of it.
type counted struct {
	to    io.Writer
	bytes int64
	hash  hash.Hash
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.to.Write(b)
	c.bytes += int64(n)
	c.hash.Write(b[:n])
	return n, err
}

func (c *counted) digest() events.Digest {
	return events.Digest("sha256:" + hex.EncodeToString(c.hash.Sum(nil)))
}

// writePart writes one file below dir so that it is on the disk.
func writePart(dir, name string, write func(io.Writer) error) (backupPart, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return backupPart{}, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return backupPart{}, err
	}
	c := &counted{to: f, hash: sha256.New()}
	err = write(c)
	if err == nil {
		err = f.Sync()
	}
	return backupPart{filepath.ToSlash(name), c.bytes, c.digest()}, errors.Join(err, f.Close(), syncDir(filepath.Dir(path)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

var errHead = errors.New("the head is reached")

// headAt walks the journal and gives the head at a sequence.
func headAt(ctx context.Context, j journal.Journal, until uint64) (string, error) {
	a := journal.NewAuditor(false, journal.Position{})
	if until > 0 {
		err := j.Follow(ctx, 0, func(r events.Record) error {
			if err := a.Check(r); err != nil {
				return err
			}
			if r.Sequence >= until {
				return errHead
			}
			return nil
		})
		if !errors.Is(err, errHead) {
			return "", err
		}
	}
	return a.At().String(), nil
}

// Restore makes a data directory from a backup. Either the whole directory is there afterwards, and its journal is
// the one that was backed up, event by event, or nothing is. Errors: *Error, or what lies beneath.
func Restore(ctx context.Context, from, to string, log *slog.Logger) (made api.BackupMade, err error) {
	m, err := readBackup(from)
	if err != nil {
		return made, err
	}
	if to, err = filepath.Abs(to); err != nil {
		return made, err
	}
	if err := emptyDir(to); err != nil {
		return made, &Error{Code: "data-dir-unusable", Text: fmt.Sprintf("a backup is restored into a new directory only: %v", err), Next: "choose another one with --data"}
	}
	work, err := os.MkdirTemp(filepath.Dir(to), "."+filepath.Base(to)+"-restoring-")
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	made = api.BackupMade{Directory: to, Position: m.Position, Head: m.Head, Streams: len(m.Streams), Files: len(m.Files)}
	for _, f := range m.Files {
		name, ok := cutFiles(f.Path)
		if !ok {
			return made, broken("%s is no file of a data directory", f.Path)
		}
		part, err := writePart(work, name, func(w io.Writer) error { return copyFrom(filepath.Join(from, filepath.FromSlash(f.Path)), w) })
		if err != nil {
			return made, err
		}
		if part.Digest != f.Digest {
			return made, broken("%s has changed since", f.Path)
		}
		made.Bytes += part.Bytes
	}
	if err := restoreStreams(ctx, from, work, m, log); err != nil {
		return made, err
	}
	for _, s := range m.Streams {
		made.Bytes += s.Bytes
	}
	if err := os.Remove(to); err != nil { // it is empty
		return made, err
	}
	return made, errors.Join(os.Rename(work, to), syncDir(filepath.Dir(to)))
}

// cutFiles is the path in the data directory of a file in a backup, if it stays in there.
func cutFiles(path string) (string, bool) {
	name, err := filepath.Rel("files", filepath.FromSlash(path))
	return name, err == nil && filepath.IsLocal(name)
}

func broken(format string, args ...any) *Error {
	return &Error{Code: "backup-damaged", Text: "the backup cannot be restored: " + fmt.Sprintf(format, args...), Next: "take another backup"}
}

// readBackup reads backup.json, and checks that the snapshots are as they were written.
func readBackup(from string) (backupManifest, error) {
	var m backupManifest
	b, err := os.ReadFile(filepath.Join(from, backupFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, &Error{Code: "backup-missing", Text: fmt.Sprintf("there is no whole backup in %s: it has no %s", from, backupFile), Next: "name the directory that server backup wrote"}
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, broken("%s: %v", backupFile, err)
	}
	if m.Format != backupFormat {
		return m, &Error{Code: "backup-format-unknown", Text: fmt.Sprintf("the backup has format %d, and this program reads %d", m.Format, backupFormat), Next: "use the program that wrote it"}
	}
	for _, s := range m.Streams {
		if !filepath.IsLocal(filepath.FromSlash(s.Path)) {
			return m, broken("%s is not in it", s.Path)
		}
		c := &counted{to: io.Discard, hash: sha256.New()}
		if err := copyFrom(filepath.Join(from, filepath.FromSlash(s.Path)), c); err != nil {
			return m, broken("%v", err)
		}
		if c.digest() != s.Digest {
			return m, broken("%s has changed since", s.Path)
		}
	}
	return m, nil
}

// restoreStreams makes the bus's files, and walks the journal in them.
func restoreStreams(ctx context.Context, from, dir string, m backupManifest, log *slog.Logger) (err error) {
	server, err := startBus(bus.Options{Dir: filepath.Join(dir, "bus"), Log: log.With("part", "bus")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	conn, err := server.Connect(nats.Name("restore"))
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, s := range m.Streams {
		f, err := os.Open(filepath.Join(from, filepath.FromSlash(s.Path)))
		if err != nil {
			return err
		}
		if err := errors.Join(bus.RestoreSnapshot(ctx, conn, s.Snapshot, f), f.Close()); err != nil {
			return broken("%v", err)
		}
	}
	known, _, err := journal.MarkerFile(filepath.Join(dir, "journal-id"))
	if err != nil {
		return err
	}
	j, err := journal.Open(ctx, conn, journal.Options{Registry: events.NewRegistry(), Known: known})
	if err != nil {
		return broken("%v", err)
	}
	tip, err := j.Tip(ctx)
	if err != nil {
		return err
	}
	if head, err := headAt(ctx, j, tip); err != nil || head != m.Head {
		return broken("its journal ends at %s, and not at %s (%v)", head, m.Head, err)
	}
	return nil
}
