package region

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/packs"
)

// storeOf is an agent's store and exports without the rest of it.
func storeOf(t *testing.T, dir string) *Agent {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "exports"), 0o700); err != nil {
		t.Fatal(err)
	}
	store, err := packs.Open(filepath.Join(dir, "chunks"), packs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: Config{Dir: dir, Region: "sydney", Log: slog.New(slog.DiscardHandler)}, store: store}
	if a.cache, err = chunks.NewCache(store, 0); err != nil {
		t.Fatal(err)
	}
	if a.exports, err = openExports(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	return a
}

func closeStore(t *testing.T, a *Agent) {
	t.Helper()
	if err := errors.Join(a.exports.close(), a.cache.Close(), a.store.Close()); err != nil {
		t.Fatal(err)
	}
}

func taken(t *testing.T, a *Agent, content []byte) *export {
	t.Helper()
	g := graph.Graph{Nodes: []graph.Node{{ID: "web", Type: graph.Machine, Name: "web", Power: graph.Running,
		Items: []graph.Item{{Name: "root", Class: graph.ProductionData, Kind: graph.Disk, Size: int64(len(content))}}}}}
	e, err := a.exports.take(t.Context(), export{Account: "acme", Graph: g}, func(ctx context.Context, s chunks.Session, g *graph.Graph) error {
		got, err := chunks.Ingest(ctx, s, chunks.IngestRequest{Source: bytes.NewReader(content), Size: int64(len(content))})
		setDigest(g, "web/root", events.Digest(got.Digest))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// left says what an agent keeps of exports: holds, files, chunks.
func left(t *testing.T, a *Agent) (holds, files, stored int) {
	t.Helper()
	h, err := a.store.Holds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids, err := a.exports.kept()
	if err != nil {
		t.Fatal(err)
	}
	stats, err := a.store.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(h), len(ids), stats.Chunks
}

// TestAnEndedExportOpensNoDisk: whoever reads an export that somebody else ends
// opens no disk of it any more, which nobody would close.
func TestAnEndedExportOpensNoDisk(t *testing.T) {
	a := storeOf(t, t.TempDir())
	defer closeStore(t, a)
	id := taken(t, a, bytes.Repeat([]byte("tombolo "), 1<<14)).ID
	e, done, err := a.exports.begin(t.Context(), id, "acme")
	if err != nil || e == nil {
		t.Fatal(e, err)
	}
	defer done()
	if d, err := a.exports.disk(t.Context(), e, "web/root"); d == nil || err != nil {
		t.Fatal(d, err)
	}
	ended, read := make(chan error, 1), make(chan error, 1)
	go func() { ended <- a.exports.drop(t.Context(), id) }()
	go func() { // at the same time; it gets a disk or none
		_, err := a.exports.disk(t.Context(), e, "web/root")
		read <- err
	}()
	if err := errors.Join(<-ended, <-read); err != nil {
		t.Fatal(err)
	}
	if d, err := a.exports.disk(t.Context(), e, "web/root"); d != nil || err != nil {
		t.Errorf("a disk of an export that was ended: %v, %v", d, err)
	}
}

// TestExportsExpire: one that nobody reads goes, with every byte that only it
// kept; one that is being read does not, and reading postpones its end.
func TestExportsExpire(t *testing.T) {
	a := storeOf(t, t.TempDir())
	defer func() { closeStore(t, a) }()
	content := bytes.Repeat([]byte("tombolo "), chunks.BlockSize/4)
	e := taken(t, a, content)
	over := e.Until

	e.Until = time.Now().Add(time.Second) // as if most of its time had gone by
	_, done, err := a.exports.begin(t.Context(), e.ID, "acme")
	if err != nil || done == nil {
		t.Fatalf("begin: %v", err)
	}
	if e.Until.Before(over) {
		t.Errorf("reading did not postpone the end: %s", e.Until)
	}
	holds, err := a.store.Holds(t.Context())
	if err != nil || len(holds) != 1 || !holds[0].Until.Equal(e.Until) {
		t.Errorf("the hold is %+v (%v), want its end at %s", holds, err, e.Until)
	}
	later := time.Now().Add(2 * exportTime)
	if err := a.exports.sweep(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	if !a.exports.alive(e.ID) {
		t.Error("an export went while it was read")
	}
	done()
	d, err := a.exports.disk(t.Context(), e, "web/root")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(content))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the export does not read as what went in: %v", err)
	}
	if err := a.exports.sweep(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	if h, f, c := left(t, a); h+f+c != 0 || a.exports.alive(e.ID) {
		t.Errorf("of an export that is over there are %d holds, %d files and %d chunks", h, f, c)
	}
}

// TestExportsThatWereBeingTaken: a failed one leaves nothing, nor does one
// during which the agent ended.
func TestExportsThatWereBeingTaken(t *testing.T) {
	dir := t.TempDir()
	a := storeOf(t, dir)
	whole := taken(t, a, bytes.Repeat([]byte{1}, chunks.BlockSize))
	wrong := errors.New("the disk cannot be read")
	_, err := a.exports.take(t.Context(), export{Graph: whole.Graph}, func(context.Context, chunks.Session, *graph.Graph) error { return wrong })
	if !errors.Is(err, wrong) {
		t.Errorf("take gives %v", err)
	}
	if h, f, _ := left(t, a); h != 1 || f != 1 {
		t.Errorf("beside the whole export there are %d holds and %d files", h-1, f-1)
	}
	cut := export{ID: "cut", Until: time.Now().Add(exportTime), Graph: whole.Graph}
	if err := errors.Join(a.exports.keep(&cut), a.store.Hold(t.Context(), cut.ID, cut.Until)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, a)

	a = storeOf(t, dir)
	defer func() { closeStore(t, a) }()
	if h, f, _ := left(t, a); h != 1 || f != 1 || !a.exports.alive(whole.ID) || a.exports.alive(cut.ID) {
		t.Errorf("after a restart there are %d holds and %d files; the whole one is alive: %v", h, f, a.exports.alive(whole.ID))
	}
}
