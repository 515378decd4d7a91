package name_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/events"
)

var (
	soon      = given.Now().Add(time.Minute)
	claim     = Claim{Name: "ajax-demo", Owner: "73291467", Until: soon}
	claimed   = events.NameClaimed{Owner: "73291467", Until: soon}
	confirmed = events.NameConfirmed{Owner: "73291467"}
	other     = Claim{Name: "ajax-demo", Owner: "10000001", Until: soon.Add(time.Hour)}
	takenOver = events.NameClaimed{Owner: "10000001", Until: soon.Add(time.Hour)}
)

func facts(t *testing.T, history ...events.NameEvent) given.Case[State, events.NameEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

func TestNamesAreTheAccountsAndEnvironmentsTheirRegionsToo(t *testing.T) {
	if got := claim.Aggregate("acme").Subject(); got != "tombolo.events.acme._.name.ajax-demo" {
		t.Error(got)
	}
	if got := (Confirm{Region: "sydney", Name: "ajax-demo"}).Aggregate("acme").Subject(); got != "tombolo.events.acme.sydney.name.ajax-demo" {
		t.Error(got)
	}
	if got := (Release{Region: "sydney", Name: "ajax-demo"}).Aggregate("acme").Subject(); got != "tombolo.events.acme.sydney.name.ajax-demo" {
		t.Error(got)
	}
}

func TestClaim(t *testing.T) {
	facts(t).When(claim).Then(claimed)
	facts(t, claimed).When(claim).Nothing()
	facts(t, claimed, confirmed).When(claim).Nothing()
	facts(t, claimed).When(other).Refused("name-in-use")
	facts(t, claimed, confirmed).When(other).Refused("name-in-use")
	facts(t, claimed, confirmed, events.NameReleased{Owner: "73291467"}).When(other).Then(takenOver)
}

func TestAClaimThatWasNotConfirmedInTimeMayBeTaken(t *testing.T) {
	facts(t, claimed).At(soon.Add(-1)).When(other).Refused("name-in-use")
	facts(t, claimed).At(soon).When(other).Then(takenOver)
	facts(t, claimed, confirmed).At(soon).When(other).Refused("name-in-use")
	// Its owner may renew it, and confirm it late; once another has it, neither.
	renewal := Claim{Name: "ajax-demo", Owner: "73291467", Until: soon.Add(time.Hour)}
	facts(t, claimed).At(soon).When(renewal).Then(events.NameClaimed{Owner: "73291467", Until: soon.Add(time.Hour)})
	facts(t, claimed).At(soon).When(Confirm{Name: "ajax-demo", Owner: "73291467"}).Then(confirmed)
	facts(t, claimed, takenOver).At(soon).When(renewal).Refused("name-in-use")
	facts(t, claimed, takenOver).At(soon).When(Confirm{Name: "ajax-demo", Owner: "73291467"}).Refused("name-not-claimed")
}

func TestClaimRefusesWhatIsWrong(t *testing.T) {
	for _, bad := range []string{"", "Ajax", "a.b", "a b", "ä", "_", strings.Repeat("a", 64)} {
		facts(t).When(Claim{Name: bad, Owner: "x", Until: soon}).Refused("name-invalid")
	}
	facts(t).When(Claim{Name: "a", Until: soon}).Refused("owner-missing")
	facts(t).When(Claim{Name: "a", Owner: "x", Until: given.Now()}).Refused("until-past")
}

func TestConfirm(t *testing.T) {
	confirm := Confirm{Name: "ajax-demo", Owner: "73291467"}
	facts(t, claimed).When(confirm).Then(confirmed)
	facts(t, claimed, confirmed).When(confirm).Nothing()
	facts(t).When(confirm).Refused("name-not-claimed")
	facts(t).When(Confirm{Name: "ajax-demo"}).Refused("name-not-claimed")
	facts(t, takenOver).When(confirm).Refused("name-not-claimed")
}

func TestRelease(t *testing.T) {
	release, released := Release{Name: "ajax-demo", Owner: "73291467"}, events.NameReleased{Owner: "73291467"}
	facts(t, claimed).When(release).Then(released)
	facts(t, claimed, confirmed).When(release).Then(released)
	facts(t).When(release).Nothing()
	facts(t).When(Release{Name: "ajax-demo"}).Nothing()
	// Sent again, it does not take the name from its next owner.
	facts(t, claimed, confirmed, released, takenOver).When(release).Nothing()
}
