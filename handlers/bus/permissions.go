package bus

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tombolo-vdc/tombolo/events"
)

// grant is a line of the table: users of these roles may publish and subscribe
// so. <account>, <user>, <key>, <region> and <stream> stand for the user's own.
type grant struct {
	roles              []events.Role
	publish, subscribe []string
}

// grants is the table of who may do what on the bus. It bounds what can be
// said at all; who may command what is the access policy's business.
func grants() []grant {
	const admin, agent, operator, member, reader = events.Administrator, events.Agent, events.Operator, events.Member, events.Reader
	return []grant{
		// Answers to one's own requests, and nobody else's.
		{roles: []events.Role{admin, agent, operator, member, reader},
			subscribe: []string{"_INBOX.<user>.>", "_INBOX.<key>.>"}},
		// What there is to ask. Not STATS: its last errors speak of other tenants.
		{roles: []events.Role{admin, agent, operator, member, reader},
			publish: []string{"$SRV.PING", "$SRV.PING.>", "$SRV.INFO", "$SRV.INFO.>"}},

		// Readers and members, too: the access policy refuses them with a reason.
		{roles: []events.Role{operator, member, reader},
			publish: []string{"tombolo.command.<account>.>", "tombolo.inbox.<account>.>"}},
		// One's own account's events and progress.
		{roles: []events.Role{operator, member, reader},
			publish: []string{
				subscribePrefix + "<account>", unsubscribePrefix + "<account>",
				APIPrefix + ".STREAM.INFO.<stream>", APIPrefix + ".CONSUMER.INFO.<stream>.*",
				APIPrefix + ".CONSUMER.MSG.NEXT.<stream>.*", "$JS.ACK.<stream>.>",
			},
			subscribe: []string{"tombolo.progress.<account>.>"}},

		{roles: []events.Role{admin},
			publish: []string{"tombolo.command.>", "tombolo.inbox.>", "tombolo.document.>", subscribePrefix + "*", unsubscribePrefix + "*",
				"$SRV.STATS", "$SRV.STATS.>"},
			subscribe: []string{"tombolo.progress.>"}},
		// An agent reports, in its own region's name.
		{roles: []events.Role{agent},
			publish: []string{
				"tombolo.agent.<region>.*.work.*", "tombolo.agent.<region>.*.instance.*", "tombolo.agent.<region>.*.environment.report-machines", "tombolo.agent.<region>._.region.start-epoch",
				"tombolo.document.>", "tombolo.progress.*.<region>.>",
			}},
		// Following the journal.
		{roles: []events.Role{admin, agent}, publish: journalReading()},
	}
}

// journalReading is what journal.Open and Follow ask of JetStream.
func journalReading() []string {
	return []string{
		"$JS.API.STREAM.INFO." + journalStream,
		"$JS.API.STREAM.MSG.GET." + journalStream,
		"$JS.API.CONSUMER.CREATE." + journalStream + ".>",
		"$JS.API.CONSUMER.INFO." + journalStream + ".*",
		"$JS.API.CONSUMER.DELETE." + journalStream + ".*",
		"$JS.API.CONSUMER.MSG.NEXT." + journalStream + ".*",
	}
}

// permissions fills the table in for one user.
func permissions(u User, key string) (*server.Permissions, error) {
	ours := u.Role == events.Administrator || u.Role == events.Agent
	switch {
	case u.Account != events.None && !events.IsToken(string(u.Account)), !events.IsToken(string(u.User)):
		return nil, fmt.Errorf("user %q of account %q is not named by tokens", u.User, u.Account)
	case ours != (u.Account == events.None):
		return nil, fmt.Errorf("account %s has no users of role %q", u.Account, u.Role)
	case u.Role == events.Agent && !events.IsToken(string(u.Region)):
		return nil, fmt.Errorf("agent %s has no region", u.User)
	}
	own := strings.NewReplacer("<account>", string(u.Account), "<user>", string(u.User), "<key>", key,
		"<region>", string(u.Region), "<stream>", StreamOf(u.Account))
	p := &server.Permissions{Publish: &server.SubjectPermission{}, Subscribe: &server.SubjectPermission{}}
	for _, g := range grants() {
		if !slices.Contains(g.roles, u.Role) {
			continue
		}
		for _, s := range g.publish {
			p.Publish.Allow = append(p.Publish.Allow, own.Replace(s))
		}
		for _, s := range g.subscribe {
			p.Subscribe.Allow = append(p.Subscribe.Allow, own.Replace(s))
		}
	}
	if len(p.Publish.Allow) == 0 {
		return nil, fmt.Errorf("the role %q may do nothing", u.Role)
	}
	return p, nil
}
