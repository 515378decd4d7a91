package api

import (
	"context"
	"net/http"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Member is a user as people see it: without keys and digests.
type Member struct {
	Account events.AccountID `json:"account"`
	User    events.UserID    `json:"user"`
	Role    events.Role      `json:"role"`
	Region  events.RegionID  `json:"region,omitempty"`
	NKey    string           `json:"nkey" doc:"public NATS user key"`
	Added   projections.Time `json:"added_at"`

	Permissions []string `json:"permissions,omitempty" doc:"commands that a member may send"`
}

func showMember(u projections.UserRow) Member {
	return Member{u.Account, u.User, u.Role, u.Region, u.NKey, u.Added, u.Permissions}
}

// Whoami is the caller.
type Whoami struct {
	Account events.AccountID `json:"account"`
	User    events.UserID    `json:"user"`
	Role    events.Role      `json:"role"`
	Region  events.RegionID  `json:"region,omitempty"`

	Permissions []string `json:"permissions,omitempty" doc:"commands that a member may send"`
}

type accountsInput struct{ Paged }

type usersInput struct {
	Paged
	Of string `path:"account"`
}

type newAccount struct {
	Write
	Body struct {
		Account events.AccountID `json:"account"`
		Display string           `json:"display"`
	}
}

type newUser struct {
	Write
	Of   string `path:"account"`
	Body struct {
		User   events.UserID   `json:"user"`
		Role   events.Role     `json:"role" enum:"administrator,operator,member,reader,agent"`
		NKey   string          `json:"nkey" doc:"public NATS user key; the seed stays with the user"`
		Token  events.Digest   `json:"token" doc:"digest of the bearer token, sha256:…; the token stays with the user"`
		Region events.RegionID `json:"region,omitempty" doc:"agents only"`

		Permissions []string `json:"permissions,omitempty" doc:"members only: the commands that it may send, as template.delete"`
	}
}

type oldUser struct {
	Write
	Of   string `path:"account"`
	User string `path:"user"`
}

// Bodies of commands, as the door's table has them.
type (
	accountBody struct {
		Account events.AccountID `json:"account"`
		Display string           `json:"display"`
	}
	userBody struct {
		Account events.AccountID `json:"account"`
		User    events.UserID    `json:"user"`
		Role    events.Role      `json:"role"`
		NKey    string           `json:"nkey"`
		Token   events.Digest    `json:"token"`
		Region  events.RegionID  `json:"region,omitempty"`

		Permissions []string `json:"permissions,omitempty"`
	}
	removeUserBody struct {
		Account events.AccountID `json:"account"`
		User    events.UserID    `json:"user"`
	}
)

func (s *Server) accountRoutes() {
	get(s, "/v1/whoami", "whoami", "Who am I?", func(ctx context.Context, _ at, _ *Read) (Whoami, uint64, error) {
		u := callerOf(ctx)
		return Whoami{Account: u.Account, User: u.User, Role: u.Role, Region: u.Region, Permissions: u.Permissions}, 0, nil
	})
	get(s, "/v1/accounts", "list-accounts", "Which accounts are there?", func(ctx context.Context, v at, in *accountsInput) (List[projections.AccountRow], uint64, error) {
		if err := mustAdministrate(ctx); err != nil {
			return List[projections.AccountRow]{}, 0, err
		}
		page, err := projections.Accounts{}.List(v, in.Limit, in.Next)
		return listed(v.known, page, same[projections.AccountRow]), 0, err
	})
	command(s, http.MethodPost, "/v1/accounts", "create-account", "Make a tenant", func(ctx context.Context, in *newAccount) (Accepted, error) {
		return s.send(ctx, in.Write, events.None, events.KindAccount, "create", accountBody{in.Body.Account, in.Body.Display})
	})
	get(s, "/v1/accounts/{account}/users", "list-users", "Who may act for it?", func(ctx context.Context, v at, in *usersInput) (List[Member], uint64, error) {
		if u := callerOf(ctx); string(u.Account) != in.Of {
			if err := mustAdministrate(ctx); err != nil {
				return List[Member]{}, 0, err
			}
		}
		page, err := projections.Accounts{}.Users(v, events.AccountID(in.Of), in.Limit, in.Next)
		return listed(v.known, page, showMember), 0, err
	})
	command(s, http.MethodPost, "/v1/accounts/{account}/users", "add-user", "Let a credential act for it", func(ctx context.Context, in *newUser) (Accepted, error) {
		b := in.Body
		return s.send(ctx, in.Write, events.None, events.KindAccount, "add-user", userBody{events.AccountID(in.Of), b.User, b.Role, b.NKey, b.Token, b.Region, b.Permissions})
	})
	command(s, http.MethodDelete, "/v1/accounts/{account}/users/{user}", "remove-user", "Void a user's credential", func(ctx context.Context, in *oldUser) (Accepted, error) {
		return s.send(ctx, in.Write, events.None, events.KindAccount, "remove-user", removeUserBody{events.AccountID(in.Of), events.UserID(in.User)})
	})
}
