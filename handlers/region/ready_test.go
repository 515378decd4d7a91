package region

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// held publishes an instance of one disk and gives the disk's index.
func held(t *testing.T, s chunks.Store, name string, content []byte) chunks.Digest {
	t.Helper()
	if err := s.Hold(t.Context(), name, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	session, err := s.Begin(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	got, err := chunks.Ingest(t.Context(), session, chunks.IngestRequest{Source: bytes.NewReader(content), Size: int64(len(content))})
	if err == nil {
		err = s.Publish(t.Context(), chunks.Root{Name: name, Owner: name, Indexes: []chunks.Digest{got.Digest}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return got.Digest
}

// TestADamagedInstanceKeepsNoOtherFromBeingReady: it is logged by its name, and
// the others' disks are open after a start as ever.
func TestADamagedInstanceKeepsNoOtherFromBeingReady(t *testing.T) {
	dir := t.TempDir()
	a := storeOf(t, dir)
	const damaged, good = instanceRoots + "10000001@1", instanceRoots + "73291467@1" // the damaged one comes first
	d := held(t, a.store, damaged, bytes.Repeat([]byte{1}, chunks.BlockSize))
	held(t, a.store, good, bytes.Repeat([]byte{2}, chunks.BlockSize))
	closeStore(t, a)
	if err := os.WriteFile(filepath.Join(dir, "chunks", "indexes", d.Hex()+".idx"), []byte("no index"), 0o600); err != nil {
		t.Fatal(err)
	}

	a = storeOf(t, dir)
	defer func() { closeStore(t, a) }()
	var log bytes.Buffer
	ready := newReadyDisks(a.cache)
	defer ready.close()
	ready.keepAll(t.Context(), a.store, slog.New(slog.NewTextHandler(&log, nil)))
	if len(ready.disks[good]) != 1 || len(ready.disks[damaged]) != 0 {
		t.Errorf("ready are %v", ready.disks)
	}
	if !strings.Contains(log.String(), "name="+damaged) || strings.Contains(log.String(), good) {
		t.Errorf("logged was %s", log.String())
	}

	log.Reset()
	ready.forget(good)
	ready.keepAll(t.Context(), partly{a.store}, slog.New(slog.NewTextHandler(&log, nil)))
	if len(ready.disks[good]) != 1 || !strings.Contains(log.String(), errPartly.Error()) {
		t.Errorf("where not all roots can be listed, ready are %v; logged was %s", ready.disks, log.String())
	}
}

// partly cannot list all roots.
type partly struct{ chunks.Reader }

var errPartly = errors.New("a root cannot be read")

func (p partly) Roots(ctx context.Context) ([]chunks.Root, error) {
	roots, err := p.Reader.Roots(ctx)
	return roots, errors.Join(err, errPartly)
}
