package commands

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// Headers of a command.
const (
	// CommandIDHeader names the command; Nats-Msg-Id does as well. Without
	// either, an id is made and answered, and a retry is a command of its own.
	CommandIDHeader = "tombolo-command-id"
	// IfRevisionHeader refuses the command unless the aggregate is at this revision.
	IfRevisionHeader = "tombolo-if-revision"
	// CorrelationHeader is recorded with the event of a command that starts no
	// operation of its own.
	CorrelationHeader = "tombolo-correlation"
	// TraceParentHeader is W3C Trace Context.
	TraceParentHeader = "traceparent"
	// CausationHeader, ActorAccountHeader and ActorUserHeader count only from
	// users of the control plane's own account: on whose behalf they command.
	CausationHeader    = "tombolo-causation"
	ActorAccountHeader = "tombolo-actor-account"
	ActorUserHeader    = "tombolo-actor-user"

	// requestInfoHeader is set by nats-server (server/accounts.go, ClientInfoHdr)
	// when a request crosses accounts and its import is shared.
	requestInfoHeader = "Nats-Request-Info"
)

// Subject prefixes. After them come account, kind and verb; an agent's begin
// with its region.
const (
	CommandPrefix = "tombolo.command."
	InboxPrefix   = "tombolo.inbox."
	AgentPrefix   = "tombolo.agent."
)

// Identity is who commands: a user as the directory knows it.
type Identity struct {
	Actor  events.Actor
	Role   events.Role
	Region events.RegionID // agents only
	// Permissions are the commands that a member may send.
	Permissions []string
}

// System is the control plane itself.
func System() Identity {
	return Identity{Actor: events.Actor{Account: events.None, User: "tombolo"}, Role: events.Administrator}
}

// ErrUserUnknown: the directory has no such user.
var ErrUserUnknown = errors.New("no such user")

// Directory knows the users of all accounts. Its methods fail with
// ErrUserUnknown, or when the directory itself cannot answer.
type Directory interface {
	// ByCredential finds the user of the account who connected with this public
	// NATS user key. The account is sound; the key is what the bus reports.
	ByCredential(ctx context.Context, account events.AccountID, nkey string) (Identity, error)
	// ByActor finds a user by name, for the control plane's own senders.
	ByActor(ctx context.Context, actor events.Actor) (Identity, error)
}

// address is what a subject says.
type address struct {
	account events.AccountID
	agent   events.RegionID // of the agent that sends; empty for people
	inbox   bool
	kind    events.Kind
	verb    string
}

// parseSubject reads the subject of a command.
func parseSubject(subject string) (address, error) {
	var a address
	rest, ok := strings.CutPrefix(subject, CommandPrefix)
	if !ok {
		rest, a.inbox = strings.CutPrefix(subject, InboxPrefix)
		ok = a.inbox
	}
	tokens := strings.Split(rest, ".")
	if !ok {
		rest, ok = strings.CutPrefix(subject, AgentPrefix)
		tokens = strings.Split(rest, ".")
		a.agent = events.RegionID(tokens[0])
		ok = ok && events.IsToken(tokens[0])
		tokens = tokens[1:]
	}
	if !ok || len(tokens) != 3 || (tokens[0] != events.None && !events.IsToken(tokens[0])) {
		return a, badRequest("the subject %.200q is not %s<account>.<kind>.<verb>", subject, CommandPrefix)
	}
	a.account, a.kind, a.verb = events.AccountID(tokens[0]), events.Kind(tokens[1]), tokens[2]
	return a, nil
}

// identify finds out who sent the message.
//
// Who is not of the control plane's own account reaches the door through a shared
// import of handlers/bus: nats-server then reports account and user in
// Nats-Request-Info, and a tenant's import fixes the account in the subject as
// well. An agent may publish under its own region's token only (grants, in
// handlers/bus), and is that region's agent by its key as well: nobody else, not
// even the control plane, speaks as one. What comes without a report is from the
// control plane itself, which is trusted to name the actor.
func (d *Door) identify(ctx context.Context, a address, h nats.Header) (Identity, error) {
	var who Identity
	var err error
	info := h.Get(requestInfoHeader)
	actor := events.Actor{Account: events.AccountID(h.Get(ActorAccountHeader)), User: events.UserID(h.Get(ActorUserHeader))}
	switch {
	case info != "":
		var client struct {
			Account events.AccountID `json:"acc"`
			User    string           `json:"user"`
		}
		if json.Unmarshal([]byte(info), &client) != nil || client.User == "" {
			err = ErrUserUnknown
			break
		}
		if client.Account != a.account && client.Account != events.None {
			err = ErrUserUnknown
			break
		}
		who, err = d.directory.ByCredential(ctx, client.Account, client.User)
		if err == nil && (who.Actor.Account != client.Account || a.agent != "" && (who.Role != events.Agent || who.Region != a.agent)) {
			err = ErrUserUnknown
		}
	case a.agent != "":
		err = ErrUserUnknown
	case actor != (events.Actor{}):
		who, err = d.directory.ByActor(ctx, actor)
	default:
		return System(), nil
	}
	return known(who, err)
}

// asNow is what the sender of a command that has waited is by now. The control
// plane itself stays what it is.
func (d *Door) asNow(ctx context.Context, then Identity) (Identity, error) {
	if self := System(); then.Actor == self.Actor && then.Role == self.Role {
		return then, nil
	}
	return known(d.directory.ByActor(ctx, then.Actor))
}

// known refuses whom the directory does not know.
func known(who Identity, err error) (Identity, error) {
	if errors.Is(err, ErrUserUnknown) {
		return Identity{}, aggregates.RefuseAs(aggregates.Denied, "user-unknown", "nobody is known by this credential").
			WithNext("ask your administrator whether the credential was removed")
	}
	return who, err
}
