package policies_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/policies"
)

func access(t testing.TB) *policies.Policy[policies.AccessInput] {
	t.Helper()
	p, err := policies.Access()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAccess(t *testing.T) {
	p := access(t)
	people := map[string]policies.Actor{
		"admin":    {Account: "_", User: "root", Role: "administrator"},
		"pretend":  {Account: "acme", User: "eve", Role: "administrator"},
		"operator": {Account: "acme", User: "ann", Role: "operator"},
		"reader":   {Account: "acme", User: "bob", Role: "reader"},
		"agent":    {Account: "_", User: "agent-sydney", Role: "agent", Region: "sydney"},
		"nobody":   {},
	}
	for _, c := range []struct {
		who, account, kind, verb, region string
		allowed                          bool
	}{
		{"admin", "acme", "template", "delete", "_", true},
		{"admin", "_", "region", "add", "oslo", true},
		{"admin", "_", "account", "create", "_", true},
		{"pretend", "acme", "template", "delete", "_", false},
		{"pretend", "_", "region", "add", "oslo", false},
		{"operator", "acme", "template", "create", "_", true},
		{"operator", "acme", "environment", "delete", "sydney", true},
		{"operator", "acme", "work", "retry", "sydney", true},
		{"operator", "acme", "work", "report-done", "sydney", false},
		{"operator", "acme", "work", "start", "sydney", false},
		{"operator", "acme", "instance", "report-verified", "sydney", false},
		{"operator", "other", "template", "create", "_", false},
		{"operator", "_", "pool", "add-range", "sydney", false},
		{"operator", "acme", "pool", "add-range", "sydney", false},
		{"operator", "acme", "account", "add-user", "_", false},
		{"reader", "acme", "template", "create", "_", false},
		{"reader", "acme", "operation", "cancel", "_", false},
		{"agent", "acme", "work", "start", "sydney", true},
		{"agent", "acme", "work", "report-stuck", "sydney", true},
		{"agent", "acme", "work", "report-done", "beijing", false},
		{"agent", "acme", "work", "write-off", "sydney", false},
		{"agent", "acme", "instance", "report-verified", "sydney", true},
		{"agent", "acme", "instance", "report-verified", "beijing", false},
		{"operator", "acme", "environment", "report-machines", "sydney", false},
		{"operator", "acme", "environment", "set-power", "sydney", true},
		{"operator", "acme", "environment", "set-edge", "sydney", true},
		{"reader", "acme", "environment", "set-power", "sydney", false},
		{"agent", "acme", "environment", "report-machines", "sydney", true},
		{"agent", "acme", "environment", "report-machines", "beijing", false},
		{"agent", "acme", "environment", "set-power", "sydney", false},
		{"agent", "_", "region", "start-epoch", "sydney", true},
		{"agent", "_", "region", "start-epoch", "beijing", false},
		{"agent", "_", "region", "drain", "sydney", false},
		{"agent", "acme", "template", "delete", "_", false},
		{"nobody", "acme", "template", "create", "_", false},
	} {
		in := policies.AccessInput{Actor: people[c.who], Account: c.account, Kind: c.kind, Verb: c.verb, Region: c.region}
		d := p.Decide(in)
		if d.Allowed != c.allowed || d.Why == "" || d.Failed {
			t.Errorf("%s %s.%s for %s in %s: %+v", c.who, c.kind, c.verb, c.account, c.region, d.Verdict)
		}
		if d.Policy != "access" || d.Digest != p.Digest() || d.Input != in {
			t.Errorf("the record of the decision is incomplete: %+v", d)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, source := range map[string]string{
		"unknown field":   `policies.Verdict{allowed: input.actor.title == "boss"}`,
		"unknown verdict": `policies.Verdict{allowed: true, because: "so"}`,
		"wrong type":      `policies.Verdict{allowed: input.account}`,
		"no verdict":      `true`,
		"dynamic":         `dyn(policies.Verdict{allowed: true})`,
		"syntax":          `input.account ==`,
		"unknown name":    `policies.Verdict{allowed: now > 3}`,
	} {
		if _, err := policies.Compile[policies.AccessInput]("test", source); !errors.Is(err, policies.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFailsClosed(t *testing.T) {
	for name, source := range map[string]string{
		"runtime error": `policies.Verdict{allowed: [true][size(input.account)]}`,
		"cost":          `policies.Verdict{allowed: [1,2,3,4,5,6,7,8,9,0].all(a, [1,2,3,4,5,6,7,8,9,0].all(b, [1,2,3,4,5,6,7,8,9,0].all(c, [1,2,3,4,5,6,7,8,9,0].all(d, a + b + c + d >= size(input.account) - 100))))}`,
	} {
		p, err := policies.Compile[policies.AccessInput]("test", source)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		d := p.Decide(policies.AccessInput{Account: "acme"})
		if d.Allowed || !d.Failed || !strings.Contains(d.Why, "could not be evaluated") {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestDigestIsOfTheSource(t *testing.T) {
	const source = `policies.Verdict{allowed: true, why: "so"}`
	p, err := policies.Compile[policies.AccessInput]("test", source)
	if err != nil {
		t.Fatal(err)
	}
	if p.Digest() != events.DigestOf([]byte(source)) {
		t.Error(p.Digest())
	}
}

func BenchmarkAccess(b *testing.B) {
	p := access(b)
	in := policies.AccessInput{Actor: policies.Actor{Account: "acme", User: "ann", Role: "operator"}, Account: "acme", Kind: "template", Verb: "protect", Region: "_"}
	for b.Loop() {
		if !p.Decide(in).Allowed {
			b.Fatal("denied")
		}
	}
}

// Each permission of a member is one command, and no other one; what is nobody's
// but the administrators' or the agents' is not to be had by permission.
func TestPermissionsOfAMember(t *testing.T) {
	p := access(t)
	may := func(permissions []string, account, kind, verb string) policies.Decision[policies.AccessInput] {
		return p.Decide(policies.AccessInput{Actor: policies.Actor{Account: "acme", User: "mia", Role: "member", Permissions: policies.Granted(permissions)},
			Account: account, Kind: kind, Verb: verb, Region: "_"})
	}
	three := []string{"set-regions", "instantiate", "delete"}
	for _, has := range three {
		for _, wants := range three {
			d := may([]string{"environment.create", "template." + has}, "acme", "template", wants)
			if d.Allowed != (has == wants) || !strings.Contains(d.Why, "template."+wants) {
				t.Errorf("with template.%s: template.%s: %+v", has, wants, d.Verdict)
			}
		}
		if d := may([]string{"template." + has}, "other", "template", has); d.Allowed {
			t.Errorf("template.%s reaches into another account", has)
		}
	}
	for _, c := range [][3]string{{"acme", "work", "start"}, {"acme", "instance", "report-verified"}, {"acme", "environment", "report-machines"}, {"_", "region", "add"}, {"_", "account", "add-user"}} {
		if may([]string{c[1] + "." + c[2]}, c[0], c[1], c[2]).Allowed {
			t.Errorf("%s.%s is to be had by permission", c[1], c[2])
		}
	}
	if may([]string{"template.delete"}, "acme", "template", "elete").Allowed || may(nil, "acme", "template", "delete").Allowed {
		t.Error("a part of a permission, or none, is enough")
	}
}
