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
	"sync/atomic"
	"time"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
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
	p.door, err = commands.New(commands.Options{Executor: p.executor, Directory: directory{p.feed}, Access: access, Documents: p.documents,
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

// directory answers who is who from the accounts projection.
type directory struct{ feed *projections.Feed }

var (
	_ commands.Directory = directory{}
	_ api.Users          = directory{}
)

func (d directory) find(ask func(*projections.View) (projections.UserRow, bool, error)) (projections.UserRow, bool, error) {
	v, err := d.feed.Now(projections.Accounts{}.Name())
	if err != nil {
		return projections.UserRow{}, false, err
	}
	u, ok, err := ask(v)
	return u, ok, errors.Join(err, v.Close())
}

func (d directory) identity(ask func(*projections.View) (projections.UserRow, bool, error)) (commands.Identity, error) {
	u, ok, err := d.find(ask)
	if err == nil && !ok {
		err = commands.ErrUserUnknown
	}
	if err != nil {
		return commands.Identity{}, err
	}
	return commands.Identity{Actor: events.Actor{Account: u.Account, User: u.User}, Role: u.Role, Region: u.Region, Permissions: u.Permissions}, nil
}

// ByCredential finds the user of an account by public key.
func (d directory) ByCredential(_ context.Context, account events.AccountID, nkey string) (commands.Identity, error) {
	return d.identity(func(v *projections.View) (projections.UserRow, bool, error) {
		u, ok, err := projections.Accounts{}.ByNKey(v, nkey)
		return u, ok && u.Account == account, err
	})
}

// ByActor finds a user by name.
func (d directory) ByActor(_ context.Context, actor events.Actor) (commands.Identity, error) {
	return d.identity(func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.User(v, actor.Account, actor.User)
	})
}

// ByBearer finds whose a bearer token is. Only its digest is looked up.
func (d directory) ByBearer(_ context.Context, token string) (api.User, bool, error) {
	return d.user(func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.ByToken(v, events.DigestOf([]byte(token)))
	})
}

func (d directory) user(which func(*projections.View) (projections.UserRow, bool, error)) (api.User, bool, error) {
	u, ok, err := d.find(which)
	return api.User{Account: u.Account, User: u.User, Role: u.Role, Region: u.Region, Permissions: u.Permissions}, ok, err
}

// ticketHolders knows who comes to a region's agent: people with tickets of the
// control plane. What they may do is what the region's own reads say by now, so
// that a user who was removed has a ticket for nothing.
type ticketHolders struct {
	directory
	signer ed25519.PublicKey
	region events.RegionID
}

var _ api.Users = ticketHolders{}

// ByBearer finds who shows a ticket to ask the region.
func (h ticketHolders) ByBearer(_ context.Context, ticket string) (api.User, bool, error) {
	return h.holder(ticket, trust.ToAsk, "")
}

func (h ticketHolders) holder(shown string, purpose trust.Purpose, environment events.EnvironmentID) (api.User, bool, error) {
	t, err := trust.ReadTicket(shown, h.signer, h.region, purpose, environment, time.Now())
	if err != nil {
		return api.User{}, false, err
	}
	return h.user(func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.User(v, t.Account, t.User)
	})
}

// authorize reads the ticket of an upload to an environment, or of an export. It
// lets in neither readers, nor agents, nor members who may not create environments.
func (h ticketHolders) authorize(r *http.Request, environment events.EnvironmentID) (events.AccountID, error) {
	shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return "", errors.New("send a ticket of the control plane as bearer")
	}
	purpose := trust.ToAsk
	if environment != "" {
		purpose = trust.ToUpload
	}
	u, found, err := h.holder(strings.TrimSpace(shown), purpose, environment)
	switch {
	case err != nil:
		return "", err
	case !found || !u.SendsDisks():
		return "", errors.New("nobody who may send or read disks is known by this ticket")
	}
	return u.Account, nil
}

// busUsers tells the bus who may connect.
type busUsers struct{ directory *atomic.Pointer[directory] }

// ByNKey finds the user with this public key.
func (b busUsers) ByNKey(public string) (bus.User, bool) {
	d := b.directory.Load()
	if d == nil {
		return bus.User{}, false
	}
	u, ok, err := d.find(func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.ByNKey(v, public)
	})
	return bus.User{Account: u.Account, User: u.User, Role: u.Role, Region: u.Region}, ok && err == nil
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
		Handler: api.New(api.Config{Feed: p.feed, Journal: p.journal, Users: directory{p.feed}, Log: p.config.Log.With("part", "http"), Now: time.Now,
			Commands: p.door, Version: p.config.Version, Documents: p.documents, Handlers: p.runner, Inbox: p.inbox, Progress: reports,
			Source: "urn:uuid:" + p.journalID, Ready: p.ready, Enrol: p.Enrol, Tickets: p.tickets, Scratch: p.dir("scratch"), Grow: p.grow, Backup: p.backup,
			Regions: &http.Client{Transport: &http.Transport{TLSClientConfig: trust.ToRegions(p.authority.Pool())}}}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
	return nil
}
