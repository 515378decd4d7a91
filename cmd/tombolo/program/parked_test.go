package program_test

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/processes"
)

// TestParkedCommand: a durable command that cannot be executed is put aside, can
// be tried again, and is left out by a person.
func TestParkedCommand(t *testing.T) {
	p := start(t, t.TempDir())
	operator, administrator := p.Operator(), p.Administrator()
	within, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	conn, err := bus.Connect(operator.NATS, operator.Seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	send := func(name string) {
		m := nats.NewMsg("tombolo.inbox.default.environment.create")
		m.Header.Set("tombolo-command-id", "the-same")
		m.Data = []byte(`{"name":"` + name + `","region":"sydney","graph":{"nodes":[{"id":"web","name":"web","type":"machine","power":"running"}]}}`)
		answer, err := conn.RequestMsgWithContext(within, m)
		if err != nil || answer.Header.Get("Nats-Service-Error") != "" {
			t.Fatalf("%v %s", err, answer.Data)
		}
	}
	send("First")
	send("Second") // the same command id with another body
	key := ""
	for key == "" {
		if within.Err() != nil {
			t.Fatal("the command was not parked")
		}
		if all := parked(t, ask(t, administrator, http.MethodGet, "/v1/handlers", nil)); len(all) == 1 {
			key = all[0].Key
			if all[0].Process != "inbox" || all[0].Cause.Code != "command-parked" {
				t.Fatalf("%+v", all[0])
			}
		}
	}
	ask(t, administrator, http.MethodPost, "/v1/handlers/inbox/"+key+"/retry", nil)
	again := key
	for again == key { // parked anew: its body is still another one
		if within.Err() != nil {
			t.Fatal("the command was not tried again")
		}
		if all := parked(t, ask(t, administrator, http.MethodGet, "/v1/handlers", nil)); len(all) == 1 {
			again = all[0].Key
		}
	}
	if left := parked(t, ask(t, administrator, http.MethodPost, "/v1/handlers/inbox/"+again+"/skip", nil)); len(left) != 0 {
		t.Errorf("%+v", left)
	}
}

func parked(t *testing.T, answer []byte) []processes.Parked {
	t.Helper()
	var list struct{ Items []processes.Parked }
	if err := json.Unmarshal(answer, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}
