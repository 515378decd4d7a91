// Package commands is the bus's front door: it takes commands in, checks who
// sends them and whether they may, and has the aggregates decide. Execute is the
// one place where a decision becomes an event; the table in table.go is the one
// where a command gets its name.
//
// # On the wire
//
// A command is a NATS request: one JSON object under
//
//	tombolo.command.<account>.<kind>.<verb>          answered when it is recorded
//	tombolo.inbox.<account>.<kind>.<verb>            answered when it is stored, executed later by what the sender is then (Receipt)
//	tombolo.agent.<region>.<account>.<kind>.<verb>   from a region's agent
//
// with the headers tombolo-command-id (or Nats-Msg-Id), tombolo-if-revision,
// tombolo-correlation and traceparent, all optional. Regions, pools and accounts
// are commanded in account "_". The answer is an Answer, or {"command_id","error"}
// with a Failure and micro's headers Nats-Service-Error and
// Nats-Service-Error-Code (Failure.Status). Schemas: nats micro info tombolo.
//
// The same command id with the same body (by its canonical JSON, RFC 8785) gets
// the same answer and has one effect; with another body it is refused
// (command-id-reused). A refused command is decided again when it comes again.
//
// Who may publish where is the bus's business and what the door relies on:
// tenants through shared imports with a fixed account token, an agent under its
// own region's prefix only, and under the other prefixes within the control
// plane's account nobody but the control plane.
package commands
