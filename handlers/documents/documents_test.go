package documents_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
)

var seed = bytes.Repeat([]byte{7}, ed25519.SeedSize)

func startBus(t *testing.T) *bus.Server {
	t.Helper()
	s, err := bus.Embedded(bus.Options{Dir: t.TempDir(), Sync: bus.SyncLazy, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func openBucket(t *testing.T, s *bus.Server) *documents.Bucket {
	t.Helper()
	conn, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	b, err := documents.Open(t.Context(), conn, ed25519.NewKeyFromSeed(seed), 1)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// served is a bucket, and an agent's connection to where it is served.
func served(t *testing.T) (*documents.Bucket, documents.Requester) {
	t.Helper()
	s := startBus(t)
	bucket := openBucket(t, s)
	conn, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	service, err := documents.Serve(conn, bucket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = service.Stop() })
	agent, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	return bucket, agent
}

// stores are all implementations; every one passes every test.
func stores(t *testing.T) map[string]documents.Store {
	key := ed25519.NewKeyFromSeed(seed)
	bucket, agent := served(t)
	return map[string]documents.Store{"memory": documents.NewMemory(key), "bucket": bucket, "remote": documents.NewRemote(agent, key.Public().(ed25519.PublicKey))}
}

func TestStores(t *testing.T) {
	key := ed25519.NewKeyFromSeed(seed)
	for name, store := range stores(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for _, size := range []int{1, 4000, documents.MaxBytes} {
				doc := bytes.Repeat([]byte(name), size)[:size]
				digest, err := store.Put(ctx, doc)
				if err != nil || digest != events.DigestOf(doc) {
					t.Fatalf("put %d bytes: %s, %v", size, digest, err)
				}
				if again, err := store.Put(ctx, doc); err != nil || again != digest {
					t.Fatalf("put again: %s, %v", again, err)
				}
				got, err := store.Get(ctx, digest)
				if err != nil || !bytes.Equal(got, doc) {
					t.Fatalf("get %d bytes: %d bytes, %v", size, len(got), err)
				}
				signature, err := store.Signature(ctx, digest)
				if err != nil {
					t.Fatal(err)
				}
				if err := documents.Verify(key.Public().(ed25519.PublicKey), got, signature); err != nil {
					t.Error(err)
				}
				got[0]++
				if code := documents.CodeOf(documents.Verify(key.Public().(ed25519.PublicKey), got, signature)); code != documents.Damaged {
					t.Errorf("an altered document passes: %q", code)
				}
				if again, err := store.Get(ctx, digest); err != nil || !bytes.Equal(again, doc) {
					t.Errorf("what a caller does to its bytes reaches the store: %v", err)
				}
			}

			never := events.DigestOf([]byte("never stored"))
			for _, c := range []struct {
				what string
				do   func() error
				want documents.Code
			}{
				{"empty", func() error { _, err := store.Put(ctx, nil); return err }, documents.Invalid},
				{"too large", func() error { _, err := store.Put(ctx, make([]byte, documents.MaxBytes+1)); return err }, documents.TooLarge},
				{"unknown", func() error { _, err := store.Get(ctx, never); return err }, documents.Unknown},
				{"unknown signature", func() error { _, err := store.Signature(ctx, never); return err }, documents.Unknown},
				{"no digest", func() error { _, err := store.Get(ctx, "sha256:../../x"); return err }, documents.Invalid},
			} {
				if err := c.do(); documents.CodeOf(err) != c.want {
					t.Errorf("%s: %v", c.what, err)
				}
			}

			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					doc := fmt.Appendf(nil, "document %d", i%4)
					digest, err := store.Put(ctx, doc)
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := store.Get(ctx, digest); err != nil || !bytes.Equal(got, doc) {
						t.Errorf("%q, %v", got, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

// What the disk or a hand altered is not given out, at either end.
func TestBucketRefusesAlteredContent(t *testing.T) {
	s := startBus(t)
	b := openBucket(t, s)
	digest, err := b.Put(t.Context(), []byte("the truth"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), documents.BucketName)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), digest.Hex(), []byte("a lie")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), digest); documents.CodeOf(err) != documents.Damaged {
		t.Error(err)
	}
}

func TestCanonical(t *testing.T) {
	g := graph.Graph{Nodes: []graph.Node{{ID: "web", Type: graph.Machine, Name: "Wéb <1>", Power: graph.Running,
		Items: []graph.Item{{Name: "root", Class: graph.ProductionData, Kind: graph.Disk, Size: 64 << 40}}}}, Edges: []graph.Edge{}}
	doc, digest, err := documents.Canonical(g)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"edges":[],"nodes":[{"id":"web","items":[{"class":"production","kind":"disk","name":"root","size":70368744177664}],"name":"Wéb <1>","power":"running","type":"machine"}]}`
	if string(doc) != want || digest != events.DigestOf([]byte(want)) {
		t.Errorf("%s\n%s", doc, digest)
	}
}

// TestForeignSignature: whoever asks the control plane takes nothing that another
// one has signed.
func TestForeignSignature(t *testing.T) {
	bucket, agent := served(t)
	digest, err := bucket.Put(t.Context(), []byte("a manifest"))
	if err != nil {
		t.Fatal(err)
	}
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{99}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	if got, err := documents.NewRemote(agent, other).Get(t.Context(), digest); documents.CodeOf(err) != documents.Damaged || got != nil {
		t.Errorf("a document that another one has signed: %q, %v", got, err)
	}
}
