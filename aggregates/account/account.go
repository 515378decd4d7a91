// Package account decides about tenants and who may act for them. It guards:
// only public halves and digests of credentials come in; a credential is one
// user's, and void for ever once that user is removed; the administrators'
// account always has an administrator.
package account

import (
	"encoding/base32"
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// Administrators is the id of the aggregate that holds the users of account
// None, whose own id cannot be the last token of a subject.
const Administrators = "administrators"

// State is the account as decisions need it.
type State struct {
	created bool
	display string
	users   map[events.UserID]events.UserAdded
	spent   map[string]events.UserID // key or token digest → whose it is or was
	removed map[events.UserID]bool   // and not added again since
}

// Fold gives the state after e. Accounts have few users and change rarely: what
// changes is copied.
func (s State) Fold(e events.AccountEvent) State {
	switch e := e.(type) {
	case events.AccountCreated:
		s.created, s.display = true, e.Display
	case events.UserAdded:
		s.users, s.spent, s.removed = copied(s.users), copied(s.spent), copied(s.removed)
		s.users[e.User] = e
		s.spent[e.NKey], s.spent[string(e.Token)] = e.User, e.User
		delete(s.removed, e.User)
	case events.UserRemoved:
		s.users, s.removed = copied(s.users), copied(s.removed)
		delete(s.users, e.User)
		s.removed[e.User] = true
	}
	return s
}

func copied[K comparable, V any](m map[K]V) map[K]V {
	c := make(map[K]V, len(m)+1)
	maps.Copy(c, m)
	return c
}

// Of names the aggregate of an account.
func Of(a events.AccountID) events.Aggregate {
	id := string(a)
	if a == events.None {
		id = Administrators
	}
	return events.Aggregate{Account: a, Region: events.None, Kind: events.KindAccount, ID: id}
}

// Create makes a tenant.
type Create struct {
	Account events.AccountID `json:"account"`
	Display string           `json:"display"`
}

// Aggregate is the account that is created, whoever asks.
func (c Create) Aggregate(events.AccountID) events.Aggregate { return Of(c.Account) }

// Decide refuses account-invalid, and account-exists under another display name.
func (c Create) Decide(s State, _ aggregates.Facts) (events.AccountEvent, error) {
	switch {
	case c.Account != events.None && !events.IsToken(string(c.Account)):
		return nil, aggregates.RefuseAs(aggregates.Invalid, "account-invalid", "%q is not an account's id: use a-z, 0-9 and -, at most 63", c.Account)
	case strings.TrimSpace(c.Display) == "" || len(c.Display) > 200:
		return nil, aggregates.RefuseAs(aggregates.Invalid, "account-invalid", "the account %s needs a name to display, of at most 200 bytes", c.Account)
	case s.created && s.display == c.Display:
		return nil, aggregates.Already("the account %s is there", c.Account)
	case s.created:
		return nil, aggregates.Refuse("account-exists", "the account %s is there as %q", c.Account, s.display)
	}
	return events.AccountCreated{Display: c.Display}, nil
}

// AddUser lets a credential act for the account.
type AddUser struct {
	Account events.AccountID `json:"account"`
	User    events.UserID    `json:"user"`
	Role    events.Role      `json:"role"`
	NKey    string           `json:"nkey"`
	Token   events.Digest    `json:"token"`
	Region  events.RegionID  `json:"region,omitempty"` // agents only
	// Permissions are the commands that a member may send: "template.delete".
	Permissions []string `json:"permissions,omitempty"`
}

// MaxPermissions is the most that one member may have.
const MaxPermissions = 64

// Aggregate is the account that gets the user, whoever asks.
func (c AddUser) Aggregate(events.AccountID) events.Aggregate { return Of(c.Account) }

// Decide refuses user-invalid, role-invalid (administrators and agents are of
// account None, operators and readers of tenants; agents have a region, others
// none; members alone have permissions), permission-invalid, key-invalid, token-invalid, account-unknown, user-exists with other
// particulars, and credential-in-use for a key or token that the account has or
// had.
func (c AddUser) Decide(s State, _ aggregates.Facts) (events.AccountEvent, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	e := events.UserAdded{User: c.User, Role: c.Role, NKey: c.NKey, Token: c.Token, Region: c.Region}
	if len(c.Permissions) > 0 {
		e.Permissions = slices.Compact(slices.Sorted(slices.Values(c.Permissions)))
	}
	now, there := s.users[c.User]
	switch {
	case !s.created:
		return nil, unknown(c.Account)
	case there && same(now, e):
		return nil, aggregates.Already("the user %s is there", c.User)
	case there:
		return nil, aggregates.Refuse("user-exists", "the user %s is there with another role, key, token, region or permissions", c.User).
			WithNext("remove the user first, or choose another name")
	}
	for _, credential := range []string{c.NKey, string(c.Token)} {
		if whose, spent := s.spent[credential]; spent {
			return nil, aggregates.Refuse("credential-in-use", "the key or token is or was that of user %s", whose).
				WithNext("make a new one")
		}
	}
	return e, nil
}

func same(a, b events.UserAdded) bool {
	return a.User == b.User && a.Role == b.Role && a.NKey == b.NKey && a.Token == b.Token && a.Region == b.Region && slices.Equal(a.Permissions, b.Permissions)
}

func isPermission(s string) bool {
	kind, verb, ok := strings.Cut(s, ".")
	return ok && events.IsToken(kind) && events.IsToken(verb)
}

func (c AddUser) check() error {
	invalid := func(code, format string, args ...any) error {
		return aggregates.RefuseAs(aggregates.Invalid, code, format, args...)
	}
	ours := c.Account == events.None
	switch {
	case !events.IsToken(string(c.User)):
		return invalid("user-invalid", "%q is not a user's name: use a-z, 0-9 and -, at most 63", c.User)
	case !slices.Contains([]events.Role{events.Administrator, events.Operator, events.Member, events.Reader, events.Agent}, c.Role):
		return invalid("role-invalid", "%q is not a role", c.Role)
	case ours != (c.Role == events.Administrator || c.Role == events.Agent):
		return invalid("role-invalid", "account %s has no users of role %s", c.Account, c.Role)
	case c.Role == events.Agent && !events.IsToken(string(c.Region)):
		return invalid("role-invalid", "an agent needs its region; %q is none", c.Region)
	case c.Role != events.Agent && c.Region != "":
		return invalid("role-invalid", "only agents belong to a region")
	case c.Role == events.Member && len(c.Permissions) == 0:
		return invalid("role-invalid", "a member may do what it is given permissions for, and none is given")
	case c.Role != events.Member && len(c.Permissions) > 0:
		return invalid("role-invalid", "members alone are given permissions, and a %s is none", c.Role)
	case len(c.Permissions) > MaxPermissions:
		return invalid("permission-invalid", "%d permissions are more than a member may have: %d", len(c.Permissions), MaxPermissions)
	case slices.ContainsFunc(c.Permissions, func(p string) bool { return !isPermission(p) }):
		return invalid("permission-invalid", "a permission names a command: template.delete; one of %q does not", c.Permissions)
	case !isUserKey(c.NKey):
		return invalid("key-invalid", "%q is not the public key of a NATS user", c.NKey)
	case !c.Token.Valid():
		return invalid("token-invalid", "the token's digest is not sha256: and 64 hexadecimal digits")
	}
	return nil
}

// RemoveUser voids a credential.
type RemoveUser struct {
	Account events.AccountID `json:"account"`
	User    events.UserID    `json:"user"`
}

// Aggregate is the account that loses the user, whoever asks.
func (c RemoveUser) Aggregate(events.AccountID) events.Aggregate { return Of(c.Account) }

// Decide refuses account-unknown, user-unknown, and last-administrator.
func (c RemoveUser) Decide(s State, _ aggregates.Facts) (events.AccountEvent, error) {
	user, there := s.users[c.User]
	switch {
	case !s.created:
		return nil, unknown(c.Account)
	case s.removed[c.User]:
		return nil, aggregates.Already("the user %s is removed", c.User)
	case !there:
		return nil, aggregates.RefuseAs(aggregates.NotFound, "user-unknown", "account %s has no user %s", c.Account, c.User)
	case user.Role == events.Administrator && s.administrators() == 1:
		return nil, aggregates.Refuse("last-administrator", "%s is the last administrator: nobody could act any more", c.User).
			WithNext("add another administrator first")
	}
	return events.UserRemoved{User: c.User}, nil
}

func (s State) administrators() int {
	n := 0
	for _, u := range s.users {
		if u.Role == events.Administrator {
			n++
		}
	}
	return n
}

func unknown(a events.AccountID) error {
	return aggregates.RefuseAs(aggregates.NotFound, "account-unknown", "there is no account %s", a)
}

// isUserKey reports whether key is a public NATS user key: base32 of a prefix
// byte (20<<3, which reads "U"), 32 bytes of Ed25519 key and their CRC-16
// (https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth).
func isUserKey(key string) bool {
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(key)
	if len(key) != 56 || err != nil || len(raw) != 35 || raw[0] != 20<<3 { // the decoder skips line ends; a key has none
		return false
	}
	return binary.LittleEndian.Uint16(raw[33:]) == crc16(raw[:33])
}

// crc16 is CRC-16/XMODEM: polynomial 0x1021, from zero, not reflected.
func crc16(data []byte) uint16 {
	var crc uint16
	for _, b := range data {
		crc ^= uint16(b) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return crc
}
