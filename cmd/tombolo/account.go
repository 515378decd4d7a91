package main

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"

	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
	"github.com/tombolo-vdc/tombolo/events"
)

var (
	accountColumns = []column{{"ACCOUNT", "account", false}, {"DISPLAY", "display", false}, {"CREATED", "created_at", false}, {"REVISION", "revision", true}}
	userColumns    = []column{{"USER", "user", false}, {"ROLE", "role", false}, {"REGION", "region", false}, {"MAY", "permissions", false}, {"ADDED", "added_at", false}, {"NKEY", "nkey", true}}
)

func (a *app) accountCommand() *cobra.Command {
	ls := a.verb("ls", "Which accounts are there?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		return a.showList(ctx, "/v1/accounts", nil, shape{items: "items", name: "account", columns: accountColumns})
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
		return a.showList(ctx, "/v1/accounts/"+url.PathEscape(args[0])+"/users", nil, shape{items: "items", name: "user", columns: userColumns})
	})
	var role, file string
	var can []string
	add := a.verb("add-user ACCOUNT USER --role ROLE --to FILE", "Let a new user act for it", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		if file == "" || role == "" {
			return usage("account add-user needs --role, and --to with a file for the new user's context").withNext("tombolo account add-user acme ann --role operator --to ann.json")
		}
		return a.addUser(ctx, events.AccountID(args[0]), events.UserID(args[1]), role, can, file)
	})
	add.Long = "Let a new user act for an account.\n\nThe user's key and token are made here and written to a context file; the server learns the public halves only.\n" +
		"An operator may do everything in the account, a reader changes nothing, and a member may do what --can names:\n" +
		"template.set-regions, template.instantiate, template.delete and so on, one by one (nats micro info tombolo lists them)."
	add.Flags().StringVar(&role, "role", "", "operator, member or reader; in account _ administrator")
	add.Flags().StringSliceVar(&can, "can", nil, "of a member: the commands that it may send")
	add.Flags().StringVar(&file, "to", "", "file to write the user's context to; it holds secrets, and only its owner can read it")
	remove := a.verb("remove-user ACCOUNT USER", "Void a user's credential", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		if err := a.confirm("void the credential of %s?", args[1]); err != nil {
			return err
		}
		return a.sendOnly(ctx, http.MethodDelete, "/v1/accounts/"+url.PathEscape(args[0])+"/users/"+url.PathEscape(args[1]), nil)
	})
	whoami := a.verb("whoami", "Who am I?", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		return a.showOne(ctx, "/v1/whoami", nil, shape{name: "user", columns: []column{{"ACCOUNT", "account", false}, {"USER", "user", false}, {"ROLE", "role", false}, {"MAY", "permissions", false}}})
	})
	return noun("account", "Tenants and their users", ls, create, users, add, remove, whoami)
}

// addUser makes a user's key and token, keeps them in a context file, and tells
// the server their public halves. The file comes first: a user whose secrets
// nobody has would be of no use.
func (a *app) addUser(ctx context.Context, account events.AccountID, user events.UserID, role string, can []string, file string) error {
	c, err := a.ready()
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return fail(exitConflict, "file-exists", "%s is there already", file).withNext("name another file")
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		return err
	}
	defer pair.Wipe()
	seed, err := pair.Seed()
	if err != nil {
		return err
	}
	public, err := pair.PublicKey()
	if err != nil {
		return err
	}
	made := contexts.Context{Name: string(account) + "-" + string(user), HTTP: c.context.HTTP, NATS: c.context.NATS, Account: account, Home: account,
		User: user, Token: program.NewToken(), NKey: public, Seed: string(seed), Regions: c.context.Regions}
	if err := made.Write(file); err != nil {
		return fail(exitError, "file-unwritable", "the context cannot be written: %v", err)
	}
	err = a.sendOnly(ctx, http.MethodPost, "/v1/accounts/"+url.PathEscape(string(account))+"/users", map[string]any{"user": user, "role": role,
		"nkey": public, "token": events.DigestOf([]byte(made.Token)), "permissions": can})
	var refused *failure
	if errors.As(err, &refused) && refused.Exit != exitRunning && refused.Code != "server-unreachable" && refused.Code != "outcome-unknown" {
		return errors.Join(err, os.Remove(file))
	}
	if err == nil {
		a.say("%s is written; whoever has it acts as %s of account %s: tombolo --context %s …", file, user, account, file)
	}
	return err
}
