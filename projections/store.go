package projections

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// formatNumber is the on-disk format that this program writes and reads. The
// rows can be folded again, but handlers' rows hold what they have already
// done, so an unknown format is refused rather than thrown away.
const formatNumber = 1

// formatFile holds the format number in decimal. It is older than the first
// byte of the database beside it.
const formatFile = "FORMAT"

// Options bound a store; the zero value has the defaults. The memory of a store
// is about CacheBytes, three times MemTableBytes, and four times BatchBytes for
// the feed while it is behind (a run that is filled and one that is written, the
// rows used last, the filter of known keys) and as much again for all builds
// together: 256 MiB, and 352 while something is built. Beside that are the
// pumpLength events on their way to each, and their last tailEvents events.
type Options struct {
	// CacheBytes is the size of the block cache; 64 MiB if 0.
	CacheBytes int64
	// MemTableBytes is the size of one memtable; 32 MiB if 0. Writes wait for a
	// flush when two are full.
	MemTableBytes uint64
	// BatchBytes is about how much one batch of a feed that is behind holds before it is
	// committed; 24 MiB if 0.
	BatchBytes int
	// Log receives what Pebble reports; nothing is reported if nil.
	Log *slog.Logger

	fs         vfs.FS // tests crash it
	tableBytes int    // of a commit that becomes a table of its own
}

const memTables = 2

func (o Options) withDefaults() Options {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 32 << 20
	}
	if o.BatchBytes == 0 {
		o.BatchBytes = 24 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.fs == nil {
		o.fs = vfs.Default
	}
	if o.tableBytes == 0 {
		o.tableBytes = 1 << 20
	}
	return o
}

// Store is the database of all rows of one process, in one directory. Its
// methods may be called from many goroutines.
type Store struct {
	db      *pebble.DB
	lock    *pebble.Lock
	options Options
	dir     string
	pacer   *pacer

	tableOptions sstable.WriterOptions
	runs         atomic.Uint64 // tables written

	mu        sync.Mutex // guards what follows, and the making of spaces
	feed      bool
	consumers map[string]bool
}

// Open opens the store in dir, which is made if it is missing. Errors:
// CodeInUse, CodeFormatUnknown, or what the file system says.
func Open(dir string, o Options) (*Store, error) {
	o = o.withDefaults()
	if err := o.fs.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open reads: %w", err)
	}
	lock, err := pebble.LockDirectory(dir, o.fs)
	if err != nil {
		var path *fs.PathError // the lock file could not be opened at all
		if errors.As(err, &path) {
			return nil, fmt.Errorf("open reads: %w", err)
		}
		return nil, fail(CodeInUse, err, "the reads in %s are in use by another process", dir)
	}
	s, err := open(dir, lock, o)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func open(dir string, lock *pebble.Lock, o Options) (*Store, error) {
	if err := checkFormat(o.fs, dir); err != nil {
		return nil, err
	}
	if err := removeRuns(o.fs, dir); err != nil {
		return nil, fmt.Errorf("open reads: %w", err)
	}
	pace := &pacer{}
	p := pebbleOptions(lock, o)
	p.Experimental.CompactionScheduler = pace
	p.EnsureDefaults()
	db, err := pebble.Open(dir, p)
	if err != nil {
		return nil, fmt.Errorf("open reads: %w", err)
	}
	tables := p.MakeWriterOptions(0, db.TableFormat())
	tables.DisableValueBlocks = true // each would be kept until its table ends; merging makes them
	return &Store{db: db, lock: lock, options: o, dir: dir, pacer: pace, tableOptions: tables, consumers: map[string]bool{}}, nil
}

// runFiles begins the names of tables that are being written.
const runFiles = "run-"

// removeRuns removes what a crash left of tables that were not taken in.
func removeRuns(files vfs.FS, dir string) error {
	present, err := files.List(dir)
	if err != nil {
		return err
	}
	for _, name := range present {
		if strings.HasPrefix(name, runFiles) {
			if err := files.Remove(files.PathJoin(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func pebbleOptions(lock *pebble.Lock, o Options) *pebble.Options {
	p := &pebble.Options{
		FS:                          o.fs,
		Lock:                        lock,
		Comparer:                    newComparer(),
		FormatMajorVersion:          pebble.FormatNewest,
		CacheSize:                   o.CacheBytes,
		MemTableSize:                o.MemTableBytes,
		MemTableStopWritesThreshold: memTables,
		L0CompactionThreshold:       8,
		L0StopWritesThreshold:       4 * mostSublevels,
		LBaseMaxBytes:               8 * int64(o.MemTableBytes), // fewer levels, so rows are rewritten less often
		MaxOpenFiles:                500,
		Logger:                      pebbleLog{o.Log},
	}
	p.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	for i := range p.Levels {
		p.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		p.Levels[i].BlockSize = 16 << 10
	}
	return p
}

// checkFormat reads the format number, or writes it into an empty directory.
func checkFormat(files vfs.FS, dir string) error {
	path := files.PathJoin(dir, formatFile)
	f, err := files.Open(path)
	switch {
	case err == nil:
		b, err := io.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if got := strings.TrimSpace(string(b)); got != fmt.Sprint(formatNumber) {
			return fail(CodeFormatUnknown, nil, "the reads in %s have format %q, this program knows %d", dir, got, formatNumber)
		}
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read %s: %w", path, err)
	}
	present, err := files.List(dir)
	if err != nil {
		return fmt.Errorf("open reads: %w", err)
	}
	for _, name := range present {
		// A crash may have left these two before the format was written.
		if name != "LOCK" && name != formatFile+".new" {
			return fail(CodeFormatUnknown, nil, "%s holds files (%s) but no %s", dir, name, formatFile)
		}
	}
	return writeFormat(files, dir, path)
}

func writeFormat(files vfs.FS, dir, path string) error {
	f, err := files.Create(path+".new", vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = fmt.Fprintln(f, formatNumber)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := files.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	d, err := files.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Close ends the store. Feeds must have returned and views must be closed.
func (s *Store) Close() error {
	return errors.Join(s.db.Close(), s.lock.Close())
}

// pebbleLog passes Pebble's reports on.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(format string, args ...any)  { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l pebbleLog) Errorf(format string, args ...any) { l.log.Error(fmt.Sprintf(format, args...)) }

// Fatalf is called where going on would lose rows (the write-ahead log cannot
// be written). Pebble demands that it does not return.
func (l pebbleLog) Fatalf(format string, args ...any) {
	m := fmt.Sprintf(format, args...)
	l.log.Error(m)
	panic("reads: " + m)
}
