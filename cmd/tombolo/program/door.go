package program

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/policies"
	"github.com/tombolo-vdc/tombolo/projections"
)

// openDoor opens the documents and the door, on the bus and for HTTP.
func (p *Program) openDoor(ctx context.Context) error {
	signing, err := signingKey(filepath.Join(p.dir("keys"), "signing.key"))
	if err != nil {
		return err
	}
	p.signer = signing.Public().(ed25519.PublicKey)
	p.tickets = func(t trust.Ticket) (string, error) { return t.Issue(signing) }
	if p.documents, err = documents.Open(ctx, p.conn, signing, 0); err != nil {
		return err
	}
	served, err := documents.Serve(p.conn, p.documents, p.config.Log.With("part", "documents"))
	if err != nil {
		return err
	}
	p.opened(served.Stop)
	access, err := policies.Access()
	if err != nil {
		return err
	}
	p.door, err = commands.New(commands.Options{Executor: p.executor, Directory: p.directory, Access: access, Documents: p.documents,
		Log: p.config.Log.With("part", "door"), Holdings: p.holdings, Reads: reads{p.journal, p.feed}})
	if err != nil {
		return err
	}
	if p.inbox, err = commands.OpenInbox(ctx, p.conn, p.door, inboxLimit(p.bus.MaxStore()), 0); err != nil {
		return err
	}
	service, err := commands.Serve(p.conn, p.door, p.inbox)
	if err != nil {
		return err
	}
	p.opened(func() error {
		end, cancel := context.WithTimeout(context.Background(), shutdownPatience)
		defer cancel()
		return service.Close(end)
	})
	return nil
}

// signingKey reads the Ed25519 key that manifests are signed with, or makes it.
func signingKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		seed, err := hex.DecodeString(strings.TrimSpace(string(b)))
		if err != nil || len(seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("%s does not hold a signing key", path)
		}
		return ed25519.NewKeyFromSeed(seed), nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	return private, contexts.WritePrivate(path, []byte(hex.EncodeToString(private.Seed())+"\n"))
}

// reads are the projections as the door needs them: never older than the journal.
type reads struct {
	journal journal.Journal
	feed    *projections.Feed
}

// AtTip waits until everything that the journal has now is shown.
func (r reads) AtTip(ctx context.Context) (*projections.View, error) {
	tip, err := r.journal.Tip(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.feed.WaitFor(ctx, tip); err != nil {
		return nil, err
	}
	return r.feed.Now()
}

// holdings counts what a region still holds, as far as the journal has come.
func (p *Program) holdings(ctx context.Context, region events.RegionID) (int, error) {
	v, err := reads{p.journal, p.feed}.AtTip(ctx)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	count := 0
	for resume := ""; ; {
		page, err := projections.Environments{}.InRegion(v, region, 1000, resume)
		if err != nil {
			return 0, err
		}
		count += len(page.Rows)
		if resume = page.Resume; resume == "" {
			break
		}
	}
	for resume := ""; ; {
		page, err := projections.Catalogue{}.HeldIn(v, region, "", 1000, resume)
		if err != nil {
			return 0, err
		}
		for _, row := range page.Rows {
			if row.Condition != projections.ConditionRemoved {
				count++
			}
		}
		if resume = page.Resume; resume == "" {
			return count, nil
		}
	}
}

// openHTTP makes the HTTP interface. Its listener is open already.
func (p *Program) openHTTP(ctx context.Context) error {
	tip, err := p.journal.Tip(ctx)
	if err != nil {
		return err
	}
	p.bootstrapped = tip
	// What a replay left behind when the program was killed.
	if err := errors.Join(os.RemoveAll(p.dir("scratch")), os.MkdirAll(p.dir("scratch"), 0o700)); err != nil {
		return err
	}
	reports, err := newProgress(p.conn)
	if err != nil {
		return err
	}
	p.server = &http.Server{
		Handler: api.New(api.Config{Feed: p.feed, Journal: p.journal, Users: p.directory, Log: p.config.Log.With("part", "http"), Now: time.Now,
			Commands: p.door, Version: p.config.Version, Documents: p.documents, Handlers: p.runner, Inbox: p.inbox, Progress: reports,
			Source: "urn:uuid:" + p.journalID, Ready: p.ready, Enrol: p.Enrol, Tickets: p.tickets, Scratch: p.dir("scratch"), Grow: p.grow, Backup: p.backup,
			Regions: &http.Client{Transport: &http.Transport{TLSClientConfig: trust.ToRegions(p.authority.Pool())}}}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	return nil
}
