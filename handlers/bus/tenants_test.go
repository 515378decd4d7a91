package bus_test

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// TestAccountAndUserComeFromTheCredential: what a responder is told is what the
// server knows, whatever the client says.
func TestAccountAndUserComeFromTheCredential(t *testing.T) {
	p := newPlace(t)
	got := p.listen(t, "tombolo.command.>")
	for _, c := range []struct{ who, subject, account string }{
		{"ann", "tombolo.command.acme.template.create", "acme"},
		{"bob", "tombolo.command.beta.template.create", "beta"},
		{"admin", "tombolo.command._.region.add", "_"},
		{"admin", "tombolo.command.acme.template.create", "_"},
	} {
		m := nats.NewMsg(c.subject)
		m.Header.Set("Nats-Request-Info", `{"acc":"_","user":"`+p.people["admin"].public+`"}`)
		answer, err := p.as(t, c.who).RequestMsgWithContext(brief(t), m)
		if err != nil || string(answer.Data) != "done" {
			t.Fatalf("%s to %s: %v", c.who, c.subject, err)
		}
		want := heard{c.subject, c.account, p.people[c.who].public, true, ""}
		if h := <-got; h != want {
			t.Errorf("heard %+v, want %+v", h, want)
		}
	}
}

// TestReach: who is kept from what. Everything here has a listener or a stream
// behind it in Core.
func TestReach(t *testing.T) {
	p := newPlace(t)
	p.append(t, "beta", "beta", "secret")
	got := p.listen(t, "tombolo.>")
	for _, c := range []struct{ who, subject string }{
		{"ann", "tombolo.command.beta.template.create"},
		{"ann", "tombolo.command._.region.add"},
		{"ann", "tombolo.inbox.beta.template.create"},
		{"ann", "tombolo.agent.sydney.acme.work.start"},
		{"ann", "tombolo.document.get"},
		{"ann", "tombolo.subscribe.beta"},
		{"ann", "tombolo.unsubscribe.beta"},
		{"ann", "tombolo.events.acme._.template.1"},
		{"ann", "tombolo.progress.acme.sydney.1"},
		{"ann", "$SRV.STATS"},
		{"ann", "$JS.API.INFO"},
		{"ann", "$JS.API.STREAM.INFO.EVENTS"},
		{"ann", "$JS.API.STREAM.MSG.GET.EVENTS"},
		{"ann", "$JS.API.DIRECT.GET.EVENTS_beta"},
		{"ann", "$JS.API.CONSUMER.CREATE.EVENTS.x"},
		{"ann", "tombolo.api.STREAM.INFO.EVENTS"},
		{"ann", "tombolo.api.STREAM.INFO.EVENTS_beta"},
		{"ann", "tombolo.api.STREAM.MSG.GET.EVENTS_acme"},
		{"ann", "tombolo.api.DIRECT.GET.EVENTS_acme"},
		{"ann", "tombolo.api.CONSUMER.CREATE.EVENTS_acme.x"},
		{"ann", "tombolo.api.CONSUMER.DURABLE.CREATE.EVENTS_acme.x"},
		{"ann", "tombolo.api.CONSUMER.MSG.NEXT.EVENTS_beta.x"},
		{"ann", "$JS.ACK.EVENTS_beta.x.1.1.1.1.1"},
		{"ann", "$SYS.REQ.ACCOUNT.PING.CONNZ"},
		{"rita", "tombolo.command.beta.template.create"},
		{"rita", "tombolo.document.get"},
		{"sydney", "tombolo.command.acme.work.start"},
		{"sydney", "tombolo.agent.beijing.acme.work.start"},
		{"sydney", "tombolo.agent.sydney._.region.add"},
		{"sydney", "tombolo.agent.sydney._.account.add-user"},
		{"sydney", "tombolo.agent.sydney.acme.template.delete"},
		{"sydney", "tombolo.progress.acme.beijing.1"},
		{"sydney", "tombolo.events.acme._.template.1"},
		{"sydney", "$JS.API.STREAM.PURGE.EVENTS"},
		{"sydney", "$JS.API.STREAM.DELETE.EVENTS"},
		{"sydney", "$JS.API.STREAM.UPDATE.EVENTS"},
		{"sydney", "$JS.API.STREAM.INFO.EVENTS_acme"},
		{"sydney", "$JS.API.CONSUMER.CREATE.EVENTS_acme.x"},
		{"sydney", "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.x"},
		{"sydney", "$JS.API.CONSUMER.CREATE.EVENTS"},
		{"admin", "tombolo.events._._.region.x"},
		{"admin", "tombolo.agent.sydney.acme.work.start"},
		{"admin", "tombolo.guard.$JS.API.CONSUMER.CREATE.EVENTS.x"},
	} {
		_, err := p.as(t, c.who).RequestMsgWithContext(brief(t), nats.NewMsg(c.subject))
		var e *bus.Error
		if !errors.As(err, &e) || e.Code != bus.NotPermitted {
			t.Errorf("%s may publish to %s: %v", c.who, c.subject, err)
		}
		select {
		case h := <-got:
			t.Errorf("%s reached %s: %+v", c.who, c.subject, h)
		default:
		}
	}
	for _, c := range []struct{ who, subject string }{
		{"ann", ">"},
		{"ann", "_INBOX.>"},
		{"ann", "_INBOX.rita.>"},
		{"ann", "tombolo.command.acme.>"},
		{"ann", "tombolo.progress.beta.>"},
		{"ann", "tombolo.events.acme.>"},
		{"rita", "_INBOX.ann.>"},
		{"sydney", "_INBOX.admin.>"},
		{"sydney", "tombolo.progress.>"},
		{"admin", "_INBOX.agent-sydney.>"},
	} {
		conn := p.as(t, c.who)
		sub, err := conn.SubscribeSync(c.subject)
		if err == nil {
			err = conn.Flush() // the refusal comes before the answer to this
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sub.NextMsgWithContext(brief(t)); !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s may subscribe to %s: %v", c.who, c.subject, err)
		}
	}
}
