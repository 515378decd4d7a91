// Package journal stores events and gives them back: Append, Load and Follow
// over a JetStream stream, with a twin in memory that passes the same
// conformance suite (package journaltest).
//
// # On the wire
//
// An event is one message on its aggregate's subject. The payload is the event's
// JSON; everything else is in headers: CloudEvents 1.0 in binary mode, and what
// Tombolo adds. Values are encoded as the CloudEvents HTTP binding says (1.0.2,
// 3.1.3.2): space, double quote, percent and all but printable ASCII become
// %XX per UTF-8 byte. An empty value is an absent header.
//
//	 1  ce-specversion          1.0
//	 2  ce-id                   derived from the command, the same for every retry
//	 3  ce-source               urn:uuid:<id of the journal>
//	 4  ce-type                 the event's wire name, "instance.copy-wanted"
//	 5  ce-time                 when it was decided, RFC 3339, UTC
//	 6  ce-subject              the subject without "tombolo.events."
//	 7  ce-datacontenttype      application/json
//	 8  tombolo-schema          of the payload, decimal, from 1
//	 9  tombolo-revision        position within the aggregate, decimal, from 1
//	10  tombolo-previous        digest of the aggregate's previous event; absent at revision 1
//	11  tombolo-actor-account   the credential's account
//	12  tombolo-actor-user      the credential's user
//	13  tombolo-command         id of the command
//	14  tombolo-command-digest  digest of the command's body
//	15  tombolo-correlation     the operation, or what a client gave
//	16  tombolo-causation       id of the event that led to the command
//	17  traceparent             W3C Trace Context
//
// 1 to 9 are always there. Headers that are not in the table (the store's own,
// Nats-…) are not part of the event.
//
// # The digest
//
// An event's digest is "sha256:" and the lower-case hexadecimal SHA-256 of these
// byte strings in this order, each as a netstring (its length in decimal, ":",
// the bytes, ","):
//
//	"tombolo-event-1", the full subject, the values of headers 1 to 17 as they are
//	on the wire (the empty string for an absent one), the payload as stored
//
// tombolo-previous is among them, so that the digest of an aggregate's last event
// vouches for all of them; ce-source is, so that an event of another journal does not fit.
// Sequence and time of storing are the store's and not covered.
package journal
