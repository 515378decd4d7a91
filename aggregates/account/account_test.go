package account_test

import (
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates"
	. "github.com/tombolo-vdc/tombolo/aggregates/account"
	"github.com/tombolo-vdc/tombolo/aggregates/given"
	"github.com/tombolo-vdc/tombolo/events"
)

// Public keys as github.com/nats-io/nkeys made them.
const (
	annsKey    = "UC2LN4Z5OGGVUVS2XQZDSDZPICMWZ5ADDA64KYUUWXNZUXIHNLMZRWWX"
	bobsKey    = "UC2GWLK3O7VB2KD2GDIIPTUX5XMMWMCHUSW44J4VP623KJQPS45EMLG6"
	evesKey    = "UBQA3RCQPQZKDR2DBNK33ZOA4AZSWIJSB5JSHCKCEEDJPHWFM33CLS2F"
	accountKey = "ABQLXICQCIJNTHFOFCP3X7ZGN2RARIJBE6TCDURLD4O2QNH2IIOBZRYQ"
)

var (
	created = events.AccountCreated{Display: "Acme"}
	ann     = events.UserAdded{User: "ann", Role: events.Operator, NKey: annsKey, Token: events.DigestOf([]byte("ann"))}
	bob     = events.UserAdded{User: "bob", Role: events.Reader, NKey: bobsKey, Token: events.DigestOf([]byte("bob"))}
	root    = events.UserAdded{User: "root", Role: events.Administrator, NKey: annsKey, Token: events.DigestOf([]byte("root"))}
	deputy  = events.UserAdded{User: "deputy", Role: events.Administrator, NKey: bobsKey, Token: events.DigestOf([]byte("deputy"))}
	agent   = events.UserAdded{User: "agent-sydney", Role: events.Agent, Region: "sydney", NKey: evesKey, Token: events.DigestOf([]byte("agent"))}
)

func facts(t *testing.T, history ...events.AccountEvent) given.Case[State, events.AccountEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

// add is the command that leads to e.
func add(account events.AccountID, e events.UserAdded) AddUser {
	return AddUser{Account: account, User: e.User, Role: e.Role, NKey: e.NKey, Token: e.Token, Region: e.Region, Permissions: e.Permissions}
}

func remove(account events.AccountID, u events.UserID) RemoveUser {
	return RemoveUser{Account: account, User: u}
}

func TestCommandsGoToTheAccountTheyAreAboutNotTheOneTheyComeFrom(t *testing.T) {
	for _, c := range []aggregates.Command[State, events.AccountEvent]{Create{Account: "acme"}, add("acme", ann), remove("acme", "ann")} {
		if got := c.Aggregate(events.None).Subject(); got != "tombolo.events.acme._.account.acme" {
			t.Errorf("%T: %s", c, got)
		}
	}
	if a := Of(events.None); a.Validate() != nil || a.Subject() != "tombolo.events._._.account.administrators" {
		t.Errorf("%s: %v", a, a.Validate())
	}
}

func TestCreate(t *testing.T) {
	facts(t).When(Create{Account: "acme", Display: "Acme"}).Then(created)
	facts(t).When(Create{Account: events.None, Display: "Acme"}).Then(created)
	facts(t, created).When(Create{Account: "acme", Display: "Acme"}).Nothing()
	facts(t, created).When(Create{Account: "acme", Display: "Other"}).Refused("account-exists")
	facts(t).When(Create{Account: "Acme Ltd", Display: "Acme"}).Refused("account-invalid")
	facts(t).When(Create{Account: "acme", Display: " "}).Refused("account-invalid")
	facts(t).When(Create{Account: "acme", Display: strings.Repeat("a", 201)}).Refused("account-invalid")
}

func TestAddUser(t *testing.T) {
	facts(t, created).When(add("acme", ann)).Then(ann)
	facts(t, created, ann).When(add("acme", bob)).Then(bob)
	facts(t, created, ann).When(add("acme", ann)).Nothing()
	facts(t).When(add("acme", ann)).Refused("account-unknown")
	promoted := ann
	promoted.Role = events.Reader
	facts(t, created, ann).When(add("acme", promoted)).Refused("user-exists")
}

func TestACredentialIsOneUsersAndVoidOnceThatUserIsRemoved(t *testing.T) {
	sameKey, sameToken := bob, bob
	sameKey.NKey, sameToken.Token = ann.NKey, ann.Token
	facts(t, created, ann).When(add("acme", sameKey)).Refused("credential-in-use")
	facts(t, created, ann).When(add("acme", sameToken)).Refused("credential-in-use")
	gone := facts(t, created, ann, events.UserRemoved{User: "ann"})
	gone.When(add("acme", sameKey)).Refused("credential-in-use")
	gone.When(add("acme", ann)).Refused("credential-in-use")
	anew := ann
	anew.NKey, anew.Token = evesKey, events.DigestOf([]byte("ann again"))
	gone.When(add("acme", anew)).Then(anew)
	facts(t, created, ann, events.UserRemoved{User: "ann"}, anew).When(remove("acme", "ann")).Then(events.UserRemoved{User: "ann"})
}

func TestRolesBelongToTheirAccounts(t *testing.T) {
	facts(t, created).When(add(events.None, root)).Then(root)
	facts(t, created).When(add(events.None, agent)).Then(agent)
	facts(t, created).When(add("acme", root)).Refused("role-invalid")
	facts(t, created).When(add("acme", agent)).Refused("role-invalid")
	facts(t, created).When(add(events.None, ann)).Refused("role-invalid")
	facts(t, created).When(add(events.None, bob)).Refused("role-invalid")
	nowhere, somewhere, nobody := agent, ann, ann
	nowhere.Region, somewhere.Region, nobody.Role = "", "sydney", "king"
	facts(t, created).When(add(events.None, nowhere)).Refused("role-invalid")
	facts(t, created).When(add("acme", somewhere)).Refused("role-invalid")
	facts(t, created).When(add("acme", nobody)).Refused("role-invalid")
}

func TestAddUserRefusesWhatIsNoCredential(t *testing.T) {
	flipped := "UC2LN4Z5OGGVUVS2XQZDSDZPICMWZ5ADDA64KYUUWXNZUXIHNLMZRWWY" // the checksum tells
	for _, bad := range []string{"", flipped, accountKey, strings.ToLower(annsKey), annsKey + "\n", annsKey[:55]} {
		u := ann
		u.NKey = bad
		facts(t, created).When(add("acme", u)).Refused("key-invalid")
	}
	for _, bad := range []events.Digest{"", "secret", "sha256:00"} {
		u := ann
		u.Token = bad
		facts(t, created).When(add("acme", u)).Refused("token-invalid")
	}
	u := ann
	u.User = "Ann A."
	facts(t, created).When(add("acme", u)).Refused("user-invalid")
}

func TestRemoveUser(t *testing.T) {
	facts(t, created, ann).When(remove("acme", "ann")).Then(events.UserRemoved{User: "ann"})
	facts(t, created, ann, events.UserRemoved{User: "ann"}).When(remove("acme", "ann")).Nothing()
	facts(t, created, ann).When(remove("acme", "bob")).Refused("user-unknown")
	facts(t).When(remove("acme", "ann")).Refused("account-unknown")
}

func TestTheLastAdministratorStays(t *testing.T) {
	facts(t, created, root, agent).When(remove(events.None, "root")).Refused("last-administrator")
	facts(t, created, root, agent).When(remove(events.None, "agent-sydney")).Then(events.UserRemoved{User: "agent-sydney"})
	facts(t, created, root, deputy).When(remove(events.None, "root")).Then(events.UserRemoved{User: "root"})
	facts(t, created, root, deputy, events.UserRemoved{User: "root"}).When(remove(events.None, "deputy")).Refused("last-administrator")
}

func TestAnOlderStateStaysAsItWas(t *testing.T) {
	before := facts(t, created, root, deputy)
	before.State().Fold(events.UserRemoved{User: "deputy"})
	before.State().Fold(agent)
	before.When(remove(events.None, "root")).Then(events.UserRemoved{User: "root"}) // deputy is still there
	before.When(add(events.None, agent)).Then(agent)
}

func TestPermissionsAreMembers(t *testing.T) {
	member := events.UserAdded{User: "mia", Role: events.Member, NKey: evesKey, Token: events.DigestOf([]byte("mia")), Permissions: []string{"template.delete", "template.replace"}}
	unsorted := add("acme", member)
	unsorted.Permissions = []string{"template.replace", "template.delete", "template.replace"}
	facts(t, created).When(unsorted).Then(member)
	facts(t, created, member).When(unsorted).Nothing()
	other := member
	other.Permissions = []string{"template.delete"}
	facts(t, created, member).When(add("acme", other)).Refused("user-exists")
	none, operator, wild := member, ann, member
	none.Permissions, operator.Permissions, wild.Permissions = nil, member.Permissions, []string{"template.*"}
	facts(t, created).When(add("acme", none)).Refused("role-invalid")
	facts(t, created).When(add("acme", operator)).Refused("role-invalid")
	facts(t, created).When(add(events.None, member)).Refused("role-invalid")
	facts(t, created).When(add("acme", wild)).Refused("permission-invalid")
}
