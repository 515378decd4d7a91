package projections

import (
	"fmt"

	"github.com/tombolo-vdc/tombolo/events"
)

// Accounts answers: which accounts are there, who may act for them, and whose is
// a credential? The users of account None are the administrators. A removed user
// is in no row.
//
//	accounts.account      <account>             → AccountRow
//	accounts.user         <account> <user id>   → UserRow
//	accounts.user.nkey    <public key> <account> <user id>
//	accounts.user.token   <token digest> <account> <user id>
type Accounts struct{}

// AccountRow is a tenant.
type AccountRow struct {
	Account  events.AccountID `json:"account"`
	Display  string           `json:"display"`
	Created  Time             `json:"created_at"`
	Revision uint64           `json:"revision"`
}

// UserRow is a credential that acts for an account: public halves and digests.
type UserRow struct {
	Account events.AccountID `json:"account"`
	User    events.UserID    `json:"user"`
	Role    events.Role      `json:"role"`
	NKey    string           `json:"nkey"`
	Token   events.Digest    `json:"token"`            // digest of the bearer token
	Region  events.RegionID  `json:"region,omitempty"` // agents only
	Added   Time             `json:"added_at"`
	// Permissions are the commands that a member may send.
	Permissions []string `json:"permissions,omitempty"`
}

var (
	accounts   = NewTable("accounts", "account", func(a AccountRow) Key { return Key{string(a.Account)} })
	userNKeys  = index("nkey", func(u *UserRow, in *entries) { in.addUnlessEmpty(u.NKey) })
	userTokens = index("token", func(u *UserRow, in *entries) { in.addUnlessEmpty(string(u.Token)) })
	users      = NewTable("accounts", "user", func(u UserRow) Key { return Key{string(u.Account), string(u.User)} },
		userNKeys, userTokens)
)

// Name is "accounts".
func (Accounts) Name() string { return "accounts" }

// Shape of the rows.
func (Accounts) Shape() int { return 4 }

// Tables of accounts.
func (Accounts) Tables() []Described { return []Described{accounts, users} }

// Apply folds the facts of accounts.
func (Accounts) Apply(w *Batch, r events.Record) error {
	fact, ok := r.Event.(events.AccountEvent)
	if !ok {
		return nil
	}
	account := r.Aggregate.Account
	row, _, err := accounts.Get(w, string(account))
	if err != nil {
		return err
	}
	row.Account, row.Revision = account, r.Revision
	if row.Created.IsZero() {
		row.Created = stored(r)
	}
	switch e := fact.(type) {
	case events.AccountCreated:
		row.Display = e.Display
	case events.UserAdded:
		err = users.Put(w, UserRow{account, e.User, e.Role, e.NKey, e.Token, e.Region, stored(r), e.Permissions})
	case events.UserRemoved:
		err = users.Delete(w, string(account), string(e.User))
	default:
		err = fmt.Errorf("accounts do not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
	}
	if err != nil {
		return err
	}
	return accounts.Put(w, row)
}

// Account gives one account; false if there is none.
func (Accounts) Account(r Reader, id events.AccountID) (AccountRow, bool, error) {
	return accounts.Get(r, string(id))
}

// List gives accounts by id, a page at a time.
func (Accounts) List(r Reader, limit int, resume string) (Page[AccountRow], error) {
	return accounts.Scan(r, Query[AccountRow]{Limit: limit, Resume: resume})
}

// Users gives an account's users by id, a page at a time.
func (Accounts) Users(r Reader, account events.AccountID, limit int, resume string) (Page[UserRow], error) {
	return users.Scan(r, Query[UserRow]{Prefix: Key{string(account)}, Limit: limit, Resume: resume})
}

// User gives one user of an account; false if there is none, or none any more.
func (Accounts) User(r Reader, account events.AccountID, id events.UserID) (UserRow, bool, error) {
	return users.Get(r, string(account), string(id))
}

// ByNKey gives whose a public NATS user key is; false if nobody's.
func (a Accounts) ByNKey(r Reader, key string) (UserRow, bool, error) {
	return a.only(r, userNKeys, key)
}

// ByToken gives whose a bearer token is, by its digest; false if nobody's.
func (a Accounts) ByToken(r Reader, token events.Digest) (UserRow, bool, error) {
	return a.only(r, userTokens, string(token))
}

// only gives the one user with a credential. A credential that two have is
// nobody's: whose it is cannot be told.
func (Accounts) only(r Reader, by *Index[UserRow], credential string) (UserRow, bool, error) {
	if credential == "" {
		return UserRow{}, false, nil
	}
	page, err := users.Scan(r, Query[UserRow]{By: by, Prefix: Key{credential}, Limit: 2})
	if err != nil || len(page.Rows) != 1 {
		return UserRow{}, false, err
	}
	return page.Rows[0], true, nil
}
