package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// open says which paths answer without a credential.
func open(path string) bool {
	return path == "/livez" || path == "/readyz" || path == "/openapi.json" || path == "/asyncapi.json"
}

type callerKey struct{}

// authenticate finds out who asks.
func (s *Server) authenticate(r *http.Request) (User, *Problem) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		return User{}, problem(http.StatusUnauthorized, "credentials-missing", "%s %s needs a bearer token", r.Method, r.URL.Path).
			withNext("send Authorization: Bearer <token>; `tombolo up` writes one into DIR/context.json")
	}
	u, ok, err := s.Users.ByBearer(r.Context(), strings.TrimSpace(token))
	if ticket, is := errors.AsType[*trust.Error](err); is {
		return User{}, problem(http.StatusUnauthorized, string(ticket.Code), "%s", ticket.Text).withNext("%s", ticket.Next)
	}
	if err != nil {
		return User{}, s.problemOf(r.Context(), err)
	}
	if !ok {
		return User{}, problem(http.StatusUnauthorized, "credentials-unknown", "the bearer token, or ticket, is nobody's").
			withNext("the user may have been removed, or the token is of another installation")
	}
	return u, nil
}

func callerOf(ctx context.Context) User {
	u, _ := ctx.Value(callerKey{}).(User)
	return u
}

// SendsDisks reports whether the user may send the disks of environments, and
// read them: not readers, agents, and members who may not create environments.
func (u User) SendsDisks() bool {
	return u.Role == events.Administrator || u.Role == events.Operator || slices.Contains(u.Permissions, "environment.create")
}

// administrates reports whether the caller may look and act across accounts.
func (u User) administrates() bool { return u.Account == events.None && u.Role == events.Administrator }

// Scope is whose things are meant: everybody has an account; administrators may
// name another one.
type Scope struct {
	Account string `query:"account" doc:"the account to look at or act in; administrators only" example:"acme"`
}

// account gives the account that the request is about. all: an administrator
// who named none, and means every account where that makes sense.
func (c Scope) account(ctx context.Context) (account events.AccountID, all bool, err error) {
	u := callerOf(ctx)
	switch {
	case c.Account == "" || events.AccountID(c.Account) == u.Account:
		return u.Account, u.administrates() && c.Account == "", nil
	case !u.administrates():
		return "", false, problem(http.StatusForbidden, "account-denied", "user %s of account %s may not look into account %q", u.User, u.Account, c.Account)
	case c.Account != events.None && !events.IsToken(c.Account):
		return "", false, problem(http.StatusUnprocessableEntity, "account-invalid", "%q is not an account's id", c.Account)
	}
	return events.AccountID(c.Account), false, nil
}
