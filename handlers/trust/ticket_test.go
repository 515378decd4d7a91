package trust

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// TestTickets: a ticket opens the one region for the one purpose until its time
// is over, and nobody but its signer can make or change one.
func TestTickets(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	ask := Ticket{Region: "sydney", Account: "acme", User: "ann", For: ToAsk, Until: now.Add(TicketLife)}
	upload := ask
	upload.For, upload.Environment = ToUpload, "shop"
	issue := func(t2 Ticket, key ed25519.PrivateKey) string {
		t.Helper()
		s, err := t2.Issue(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	forged := func() string { // another user under the same signature
		_, signature, _ := strings.Cut(issue(ask, private), ".")
		body, _, _ := strings.Cut(issue(Ticket{Region: "sydney", Account: "acme", User: "eve", For: ToAsk, Until: ask.Until}, other), ".")
		return body + "." + signature
	}()
	unmarked := base64.RawURLEncoding.EncodeToString([]byte(`{}`)) + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(`{}`)))
	for _, c := range []struct {
		name, shown string
		region      events.RegionID
		purpose     Purpose
		environment events.EnvironmentID
		at          time.Time
		code        Code
	}{
		{"to ask", issue(ask, private), "sydney", ToAsk, "", now, ""},
		{"to upload", issue(upload, private), "sydney", ToUpload, "shop", now, ""},
		{"just in time", issue(ask, private), "sydney", ToAsk, "", ask.Until.Add(-time.Nanosecond), ""},
		{"too late", issue(ask, private), "sydney", ToAsk, "", ask.Until, TicketExpired},
		{"another region", issue(ask, private), "chicago", ToAsk, "", now, "ticket-elsewhere"},
		{"asks with an upload's", issue(upload, private), "sydney", ToAsk, "", now, "ticket-elsewhere"},
		{"uploads with an asker's", issue(ask, private), "sydney", ToUpload, "shop", now, "ticket-elsewhere"},
		{"another environment", issue(upload, private), "sydney", ToUpload, "site", now, "ticket-elsewhere"},
		{"another signer", issue(ask, other), "sydney", ToAsk, "", now, "ticket-invalid"},
		{"another's name", forged, "sydney", ToAsk, "", now, "ticket-invalid"},
		{"a signature of something else", unmarked, "sydney", ToAsk, "", now, "ticket-invalid"},
		{"a token", "tmb_0123456789abcdef", "sydney", ToAsk, "", now, "ticket-invalid"},
		{"nothing", "", "sydney", ToAsk, "", now, "ticket-invalid"},
	} {
		got, err := ReadTicket(c.shown, public, c.region, c.purpose, c.environment, c.at)
		refused, _ := errors.AsType[*Error](err)
		switch {
		case c.code == "" && (err != nil || got.User != "ann" || got.Account != "acme"):
			t.Errorf("%s: %+v, %v", c.name, got, err)
		case c.code != "" && (refused == nil || refused.Code != c.code || refused.Next == ""):
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
}
