package main

import (
	"context"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
)

var (
	accountColumns = []column{{"ACCOUNT", "account", false}, {"DISPLAY", "display", false}, {"CREATED", "created_at", false}, {"REVISION", "revision", true}}
	userColumns    = []column{{"USER", "user", false}, {"ROLE", "role", false}, {"REGION", "region", false}, {"ADDED", "added_at", false}, {"NKEY", "nkey", true}}
)

func (a *app) accountCommand() *cobra.Command {
	ls := a.verb("ls", "Which accounts are there?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		return a.showList(ctx, "/v1/accounts", nil, shape{"items", "account", accountColumns})
	})
	var display string
	create := a.verb("create ACCOUNT", "Make a tenant", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if display == "" {
			display = args[0]
		}
		return a.sendOnly(ctx, http.MethodPost, "/v1/accounts", map[string]string{"account": args[0], "display": display})
	})
	create.Flags().StringVar(&display, "display", "", "as people call it; the id if absent")
	users := a.verb("users ACCOUNT", "Who may act for it?", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showList(ctx, "/v1/accounts/"+url.PathEscape(args[0])+"/users", nil, shape{"items", "user", userColumns})
	})
	remove := a.verb("remove-user ACCOUNT USER", "Void a user's credential", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		if err := a.confirm("void the credential of %s?", args[1]); err != nil {
			return err
		}
		return a.sendOnly(ctx, http.MethodDelete, "/v1/accounts/"+url.PathEscape(args[0])+"/users/"+url.PathEscape(args[1]), nil)
	})
	whoami := a.verb("whoami", "Who am I?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		return a.showOne(ctx, "/v1/whoami", nil, shape{"", "user", []column{{"ACCOUNT", "account", false}, {"USER", "user", false}, {"ROLE", "role", false}}})
	})
	return noun("account", "Tenants and their users", ls, create, users, remove, whoami)
}
