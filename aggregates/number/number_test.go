package number_test

import (
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/given"
	. "github.com/tombolo-vdc/tombolo/aggregates/number"
	"github.com/tombolo-vdc/tombolo/events"
)

var (
	soon      = given.Now().Add(time.Minute)
	later     = soon.Add(time.Hour)
	claim     = Claim{Number: "73291467", Account: "acme", Owner: "op1", Until: soon}
	claimed   = events.NumberClaimed{Account: "acme", Owner: "op1", Until: soon}
	confirmed = events.NumberConfirmed{Owner: "op1"}
	other     = Claim{Number: "73291467", Account: "evil", Owner: "op2", Until: later}
)

func facts(t *testing.T, history ...events.NumberEvent) given.Case[State, events.NumberEvent] {
	t.Helper()
	return given.Facts[State](t, history...)
}

func TestNumbersAreNoAccounts(t *testing.T) {
	for _, c := range []aggregates.Command[State, events.NumberEvent]{claim, Confirm{Number: "73291467"}} {
		if got := c.Aggregate("acme").Subject(); got != "tombolo.events._._.number.73291467" {
			t.Error(got)
		}
	}
}

func TestClaim(t *testing.T) {
	facts(t).When(claim).Then(claimed)
	facts(t, claimed).When(claim).Nothing()
	facts(t, claimed, confirmed).When(claim).Nothing()
	facts(t, claimed).When(other).Refused("number-in-use")
	facts(t, claimed).When(Claim{Number: "73291467", Account: "evil", Owner: "op1", Until: soon}).Refused("number-in-use")
	// Taken over only when the claim ran out, and never once it was spent.
	facts(t, claimed).At(soon.Add(-1)).When(other).Refused("number-in-use")
	facts(t, claimed).At(soon).When(other).Then(events.NumberClaimed{Account: "evil", Owner: "op2", Until: later})
	facts(t, claimed, confirmed).At(soon.AddDate(10, 0, 0)).When(other).Refused("number-in-use")
}

func TestClaimRefusesWhatIsWrong(t *testing.T) {
	for _, bad := range []events.TemplateID{"", "7329146", "732914670", "03291467", "7329146x", "-3291467"} {
		facts(t).When(Claim{Number: bad, Account: "acme", Owner: "op1", Until: soon}).Refused("number-invalid")
	}
	facts(t).When(Claim{Number: "73291467", Owner: "op1", Until: soon}).Refused("owner-missing")
	facts(t).When(Claim{Number: "73291467", Account: "acme", Until: soon}).Refused("owner-missing")
	facts(t).When(Claim{Number: "73291467", Account: "acme", Owner: "op1", Until: given.Now()}).Refused("until-past")
}

func TestConfirm(t *testing.T) {
	confirm := Confirm{Number: "73291467", Owner: "op1"}
	facts(t, claimed).When(confirm).Then(confirmed)
	facts(t, claimed).At(later).When(confirm).Then(confirmed)
	facts(t, claimed, confirmed).When(confirm).Nothing()
	facts(t).When(confirm).Refused("number-not-claimed")
	facts(t).When(Confirm{Number: "73291467"}).Refused("number-not-claimed")
	facts(t, claimed, events.NumberClaimed{Account: "evil", Owner: "op2", Until: later}).When(confirm).Refused("number-not-claimed")
}
