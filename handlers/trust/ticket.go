package trust

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// Purpose is what a ticket is good for.
type Purpose string

// The purposes. A ticket for one is refused for the other.
const (
	ToAsk    Purpose = "ask"    // the region's HTTP interface, exports among it
	ToUpload Purpose = "upload" // the disks of one environment
)

// Ticket is the control plane's word, given to one region's agent, on who
// somebody is and what they come for. People show it to the agent in the place of
// their token: an agent that was stolen learns nothing that opens another door.
// What the user may do, the agent knows itself.
type Ticket struct {
	Region      events.RegionID      `json:"region"`
	Account     events.AccountID     `json:"account"` // of the user
	User        events.UserID        `json:"user"`
	Key         string               `json:"key"` // the user's public nkey, so that it ends with the credential
	For         Purpose              `json:"for"`
	Environment events.EnvironmentID `json:"environment,omitempty"` // of ToUpload
	Until       time.Time            `json:"until"`
}

// TicketLife is the longest time for which a ticket is given.
const TicketLife = time.Hour

// Codes of an Error about a ticket.
const (
	TicketInvalid   Code = "ticket-invalid"
	TicketElsewhere Code = "ticket-elsewhere" // for another region or purpose
	TicketExpired   Code = "ticket-expired"   // a new one helps
)

// ticketForm keeps a ticket's signature from being taken for that of anything else.
const ticketForm = "tombolo-ticket-1\n"

// Issue gives the ticket as people carry it: base64url of its JSON, a dot, and
// base64url of the Ed25519 signature (RFC 8032) over "tombolo-ticket-1", a line
// feed and that JSON.
func (t Ticket) Issue(key ed25519.PrivateKey) (string, error) {
	body, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	signature := ed25519.Sign(key, append([]byte(ticketForm), body...))
	return base64.RawURLEncoding.EncodeToString(body) + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// ReadTicket checks, with the control plane's public key, a ticket that was
// shown in this region for this purpose; environment is that of an upload.
// Errors: *Error.
func ReadTicket(shown string, key ed25519.PublicKey, here events.RegionID, purpose Purpose, environment events.EnvironmentID, now time.Time) (Ticket, error) {
	ask := fmt.Sprintf("ask the control plane: POST /v1/regions/%s/ticket", here)
	if purpose == ToUpload {
		ask = fmt.Sprintf("ask the control plane: GET /v1/environments/%s says it in uploads", environment)
	}
	encoded, sealed, _ := strings.Cut(shown, ".")
	body, err := base64.RawURLEncoding.DecodeString(encoded)
	signature, serr := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil || serr != nil || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(ticketForm), body...), signature) {
		return Ticket{}, &Error{Code: TicketInvalid, Text: "a region takes the control plane's tickets, and this is none; a token is shown to the control plane alone", Next: ask}
	}
	var t Ticket
	if err := json.Unmarshal(body, &t); err != nil {
		return Ticket{}, &Error{Code: TicketInvalid, Text: fmt.Sprintf("the ticket cannot be read: %v", err), Next: ask}
	}
	switch {
	case t.Region != here:
		return Ticket{}, &Error{Code: TicketElsewhere, Text: fmt.Sprintf("the ticket is for region %s, this is %s", t.Region, here), Next: ask}
	case t.For != purpose || t.Environment != environment:
		return Ticket{}, &Error{Code: TicketElsewhere, Text: strings.TrimSpace(fmt.Sprintf("the ticket is to %s %s, and not to %s %s", t.For, t.Environment, purpose, environment)), Next: ask}
	case !now.Before(t.Until):
		return Ticket{}, &Error{Code: TicketExpired, Text: fmt.Sprintf("the ticket was good until %s, and here it is %s", t.Until.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)), Next: ask}
	}
	return t, nil
}
