package program

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// directory answers who is who from the accounts projection. Who sends a command
// is asked for every command and changes rarely: answers are kept until an event
// of any account comes by.
type directory struct {
	feed *projections.Feed

	mu      sync.Mutex
	changed uint64                         // the last event of an account that came by
	kept    map[string]projections.UserRow // by question, as of changed or later; nil where nothing is kept
}

// keptMost bounds the answers that are kept; then all are asked for again.
const keptMost = 10_000

// newDirectory makes a directory that keeps answers: the feed must follow the
// journal by an accountsFollower.
func newDirectory(feed *projections.Feed) *directory {
	return &directory{feed: feed, kept: map[string]projections.UserRow{}}
}

var (
	_ commands.Directory = (*directory)(nil)
	_ api.Users          = (*directory)(nil)
)

// accountsFollower is the journal as the feed follows it: the directory hears of
// events of accounts before the feed folds them.
type accountsFollower struct {
	projections.Follower
	directory *directory
}

// Follow see projections.Follower.
func (f accountsFollower) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	return f.Follower.Follow(ctx, after, func(r events.Record) error {
		if _, ok := r.Event.(events.AccountEvent); ok {
			f.directory.forget(r.Sequence)
		}
		return each(r)
	})
}

// forget drops what is kept: the event may change it once it is folded.
func (d *directory) forget(sequence uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changed = max(d.changed, sequence)
	clear(d.kept)
}

func (d *directory) find(question string, ask func(*projections.View) (projections.UserRow, bool, error)) (projections.UserRow, bool, error) {
	d.mu.Lock()
	u, ok := d.kept[question]
	d.mu.Unlock()
	if ok {
		return u, true, nil
	}
	v, err := d.feed.Now(projections.Accounts{}.Name())
	if err != nil {
		return projections.UserRow{}, false, err
	}
	position := v.Position()
	u, ok, err = ask(v)
	if err = errors.Join(err, v.Close()); err != nil || !ok {
		return u, ok, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept == nil || position < d.changed {
		return u, true, nil // true as of that position, and to be asked for again
	}
	if len(d.kept) >= keptMost {
		clear(d.kept)
	}
	d.kept[question] = u
	return u, true, nil
}

func (d *directory) identity(question string, ask func(*projections.View) (projections.UserRow, bool, error)) (commands.Identity, error) {
	u, ok, err := d.find(question, ask)
	if err == nil && !ok {
		err = commands.ErrUserUnknown
	}
	if err != nil {
		return commands.Identity{}, err
	}
	return commands.Identity{Actor: events.Actor{Account: u.Account, User: u.User}, Role: u.Role, Region: u.Region, Permissions: u.Permissions}, nil
}

// ByCredential finds the user of an account by public key.
func (d *directory) ByCredential(_ context.Context, account events.AccountID, nkey string) (commands.Identity, error) {
	who, err := d.identity("nkey "+nkey, func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.ByNKey(v, nkey)
	})
	if err == nil && who.Actor.Account != account {
		return commands.Identity{}, commands.ErrUserUnknown
	}
	return who, err
}

func actorQuestion(account events.AccountID, user events.UserID) string {
	return "user " + string(account) + " " + string(user)
}

// ByActor finds a user by name.
func (d *directory) ByActor(_ context.Context, actor events.Actor) (commands.Identity, error) {
	return d.identity(actorQuestion(actor.Account, actor.User), func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.User(v, actor.Account, actor.User)
	})
}

// ByBearer finds whose a bearer token is. Only its digest is looked up, and kept.
func (d *directory) ByBearer(_ context.Context, token string) (api.User, bool, error) {
	digest := events.DigestOf([]byte(token))
	return d.user("token "+string(digest), func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.ByToken(v, digest)
	})
}

func (d *directory) user(question string, which func(*projections.View) (projections.UserRow, bool, error)) (api.User, bool, error) {
	u, ok, err := d.find(question, which)
	return api.User{Account: u.Account, User: u.User, Role: u.Role, Region: u.Region, Key: u.NKey, Permissions: u.Permissions}, ok, err
}

// ticketHolders knows who comes to a region's agent: people with tickets of the
// control plane. What they may do is what the region's own reads say by now, so
// that a user who was removed has a ticket for nothing.
type ticketHolders struct {
	*directory
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
	u, found, err := h.user(actorQuestion(t.Account, t.User), func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.User(v, t.Account, t.User)
	})
	return u, found && u.Key == t.Key, err // else somebody else has the name by now
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
	u, ok, err := d.find("nkey "+public, func(v *projections.View) (projections.UserRow, bool, error) {
		return projections.Accounts{}.ByNKey(v, public)
	})
	return bus.User{Account: u.Account, User: u.User, Role: u.Role, Region: u.Region}, ok && err == nil
}
