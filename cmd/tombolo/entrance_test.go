package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// over is a ticket of the administrator's that was good once.
func (w *world) over(t trust.Ticket) string {
	w.t.Helper()
	raw, err := os.ReadFile(filepath.Join(w.dir, "keys", "signing.key"))
	if err != nil {
		w.t.Fatal(err)
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil {
		w.t.Fatal(err)
	}
	c := w.client().context
	t.Region, t.Account, t.User, t.Until = "sydney", c.Home, c.User, time.Now().Add(-time.Second)
	out, err := t.Issue(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// TestTicketsAreRenewed: a region refuses a ticket whose time is over, and the
// command line goes on with a new one: while it reads, and while it sends disks.
func TestTicketsAreRenewed(t *testing.T) {
	w := newWorld(t, t.TempDir())
	c := w.client()
	ctx := t.Context()
	var to api.OneRegion
	b, err := c.read(ctx, "/v1/regions/sydney", nil)
	if err != nil || json.Unmarshal(b, &to) != nil {
		t.Fatal(err)
	}
	at := c.entranceTo("sydney")
	at.ticket = w.over(trust.Ticket{For: trust.ToAsk})
	target := trust.URL(to.HTTP) + "/v1/regions"
	if _, err := at.send(ctx, http.MethodGet, target, nil, nil); codeOf(err) != string(trust.TicketExpired) {
		t.Fatalf("a ticket whose time is over: %v", err)
	}
	if _, err := at.send(ctx, http.MethodGet, target, nil, nil); err != nil {
		t.Errorf("after a refusal: %v", err)
	}

	spec := map[string]any{"region": "sydney", "spec": map[string]any{"name": "Shop", "machines": []any{
		map[string]any{"name": "web", "disks": []any{map[string]any{"name": "root", "bytes": 1 << 16}}}}}}
	answer, accepted, err := c.write(ctx, http.MethodPost, "/v1/environments", spec)
	if err != nil {
		t.Fatal(err)
	}
	var made api.AcceptedEnvironment
	if err := json.Unmarshal(answer, &made); err != nil || len(made.Uploads) != 1 || made.Uploads[0].Ticket == "" {
		t.Fatalf("no ticket for its disk: %s, %v", answer, err)
	}
	upload := made.Uploads[0]
	refused := &entrance{client: c, ticket: w.ticket(c)}
	if err := refused.put(ctx, upload, piece{0, []byte{1}}); codeOf(err) != "ticket-elsewhere" {
		t.Errorf("a ticket to ask sends a disk: %v", err)
	}
	sends := &entrance{client: c, ticket: w.over(trust.Ticket{For: trust.ToUpload, Environment: events.EnvironmentID(accepted.ID)}),
		fetch: func(ctx context.Context) (string, error) { return c.uploadTicket(ctx, accepted.ID) }}
	content := bytes.Repeat([]byte("tombolo "), 1<<13)
	if err := sends.put(ctx, upload, piece{0, content}); err != nil {
		t.Fatal(err)
	}
	if err := c.retrying(ctx, func() error {
		_, err := sends.send(ctx, http.MethodPost, upload.URL+"/complete", nil, nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w.run("operation", "wait", string(accepted.Operation), "-q")
	if _, err := c.uploadTicket(ctx, accepted.ID); codeOf(err) != "upload-not-wanted" {
		t.Errorf("a ticket for disks that nobody waits for: %v", err)
	}
}
