package program

import (
	"context"
	"errors"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/account"
	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
)

// defaultAccount is the tenant that a new directory has.
const defaultAccount events.AccountID = "default"

// keyring is the secrets that the program itself made.
type keyring struct {
	administrator key
	operator      key
	agents        map[events.RegionID]key
}

func openKeys(dir string, regions []string) (keyring, error) {
	ring := keyring{agents: map[events.RegionID]key{}}
	var errs []error
	open := func(k key) key {
		got, err := keyOf(dir, k)
		errs = append(errs, err)
		return got
	}
	ring.administrator = open(key{Account: events.None, User: "administrator", Role: events.Administrator})
	ring.operator = open(key{Account: defaultAccount, User: "operator", Role: events.Operator})
	for _, r := range regions {
		ring.agents[events.RegionID(r)] = open(agentKey(events.RegionID(r)))
	}
	return ring, errors.Join(errs...)
}

// bootstrap makes the accounts, the users and the regions that a new directory
// starts with. Every command's id and body follow from the keys, which are on the
// disk before: a start that was interrupted goes on where it was, and a later
// start finds everything done.
func (p *Program) bootstrap(ctx context.Context) error {
	if err := p.bootstrapAccounts(ctx); err != nil {
		return err
	}
	for _, r := range p.config.Regions {
		id := events.RegionID(r)
		err := bootstrap(ctx, p, "region-"+r, region.Add{Region: id, Profile: p.config.Settings.profile(id)})
		refusal, ok := aggregates.AsRefusal(err)
		switch {
		case ok && refusal.Code == "region-exists": // somebody has described it better
			if _, said := p.config.Settings.region(id); said {
				p.config.Log.Warn("the region is there with another profile than the settings say, and keeps it", "region", r)
			}
		case ok && refusal.Code == "region-retired":
			p.config.Log.Warn("the region is retired; its agent is started all the same, to let go of what it holds", "region", r)
		case err != nil:
			return err
		}
		if err := p.addUser(ctx, p.keys.agents[id]); err != nil {
			return err
		}
		if err := p.bootstrapPools(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (p *Program) bootstrapAccounts(ctx context.Context) error {
	for _, a := range []account.Create{{Account: events.None, Display: "Administrators"}, {Account: defaultAccount, Display: "Default"}} {
		if err := bootstrap(ctx, p, "account-"+string(a.Account), a); err != nil {
			return err
		}
	}
	for _, k := range []key{p.keys.administrator, p.keys.operator} {
		if err := p.addUser(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// addUser tells the journal of a key's public half. Who was removed since stays
// removed: the command was executed before, and is not executed again.
func (p *Program) addUser(ctx context.Context, k key) error {
	return bootstrap(ctx, p, "user-"+string(k.Account)+"-"+string(k.User), account.AddUser{Account: k.Account, User: k.User, Role: k.Role,
		NKey: k.NKey, Token: events.DigestOf([]byte(k.Token)), Region: k.Region})
}

func bootstrap[S aggregates.State[S, E], E events.Event](ctx context.Context, p *Program, name string, c aggregates.Command[S, E]) error {
	// The role, and not the command's id, carries the name: ids are at most 64 characters.
	_, err := commands.Execute(ctx, p.executor, commands.Origin{
		Account: events.None, Actor: events.Actor{Account: events.None, User: "bootstrap"}, Correlation: "bootstrap",
		Command: events.CommandRef{ID: "bootstrap", Digest: events.DigestOf([]byte(name))},
	}, name, c)
	return err
}
