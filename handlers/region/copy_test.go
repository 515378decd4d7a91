package region

import (
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
)

// cutOff is a document store that cannot be reached.
type cutOff struct{ documents.Store }

var errCutOff = errors.New("the bus is cut")

func (cutOff) Get(context.Context, events.Digest) ([]byte, error) { return nil, errCutOff }

// TestRemovalLeavesOthersTheirManifest: two templates saved of one unchanged
// environment have one manifest. When one goes, the region can still clone the
// other while it is cut off; when both have gone, nothing is left.
func TestRemovalLeavesOthersTheirManifest(t *testing.T) {
	a := storeOf(t, t.TempDir())
	defer closeStore(t, a)
	a.ready, a.uploads = newReadyDisks(a.cache), newUploads(a)
	if err := os.MkdirAll(filepath.Join(a.cfg.Dir, "manifests"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	docs := documents.NewMemory(key)
	raw, _, err := documents.Canonical(graph.Manifest{Format: graph.ManifestFormat, Environment: "shop", Region: "beijing"})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := docs.Put(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	a.cfg.Documents = docs
	of := func(t events.TemplateID) *job {
		j := &job{agent: a}
		j.Work = events.WorkID("work-" + t)
		j.Order = events.Order{Template: t, Version: 1, Manifest: digest}
		return j
	}
	first, second := of("73291467"), of("10000001")
	for _, j := range []*job{first, second} {
		if _, err := j.copy(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.cfg.Documents = cutOff{docs}
	if _, err := first.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m, _, err := second.manifest(t.Context()); err != nil || m.Environment != "shop" {
		t.Errorf("the other template's manifest: %+v, %v", m, err)
	}
	if _, _, err := first.manifest(t.Context()); !errors.Is(err, errCutOff) {
		t.Errorf("the manifest of the one that was removed is still there: %v", err)
	}
	if _, err := second.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(a.cfg.Dir, "manifests")); err != nil || len(left) > 0 {
		t.Errorf("after both have gone there are %v (%v)", left, err)
	}
}
