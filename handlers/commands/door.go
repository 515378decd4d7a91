package commands

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/gowebpki/jcs"
	"github.com/nats-io/nats.go"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/policies"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Reads opens the projections for what no aggregate can decide alone: what a
// reference means, which region holds what.
type Reads interface {
	// AtTip gives a view that shows everything that the journal had when it was
	// asked. The caller closes it.
	AtTip(ctx context.Context) (*projections.View, error)
}

// Options of New. All but Holdings, Restart and Reads are required.
type Options struct {
	Executor  *Executor
	Directory Directory
	Access    *policies.Policy[policies.AccessInput]
	Documents documents.Store
	Log       *slog.Logger
	// Holdings counts what the catalogue says a region still holds; without it
	// a region can be retired with lost only.
	Holdings func(ctx context.Context, region events.RegionID) (int, error)
	// Restart judges whether machines that died are started again; the built-in
	// policy where it is nil.
	Restart *policies.Policy[policies.RestartInput]
	// Reads serves the commands that go by references; without it they are
	// refused, and values that are named for resources are looked at later.
	Reads Reads
}

// Door takes commands in, whatever way they come: it decodes, asks the access
// policy, and executes. It may be used from many goroutines.
type Door struct {
	executor  *Executor
	directory Directory
	access    *policies.Policy[policies.AccessInput]
	restart   *policies.Policy[policies.RestartInput]
	documents documents.Store
	log       *slog.Logger
	holdings  func(ctx context.Context, region events.RegionID) (int, error)
	reads     Reads            // may be nil
	verbs     map[string]*Verb // by String
}

// New makes a door.
func New(o Options) (*Door, error) {
	if o.Executor == nil || o.Directory == nil || o.Access == nil || o.Documents == nil || o.Log == nil {
		return nil, errors.New("commands: the door needs an executor, a directory, an access policy, a store of documents and a log")
	}
	if o.Holdings == nil {
		o.Holdings = func(context.Context, events.RegionID) (int, error) {
			return 0, aggregates.Refuse("catalogue-missing", "what the region holds cannot be counted here").
				WithNext("retire it with lost where it is gone for good")
		}
	}
	if o.Restart == nil {
		var err error
		if o.Restart, err = policies.Restart(); err != nil {
			return nil, err
		}
	}
	d := &Door{executor: o.Executor, directory: o.Directory, access: o.Access, restart: o.Restart, documents: o.Documents, log: o.Log,
		holdings: o.Holdings, reads: o.Reads, verbs: map[string]*Verb{}}
	for _, v := range table() {
		if d.verbs[v.String()] != nil {
			return nil, fmt.Errorf("commands: %s stands twice in the table", v)
		}
		d.verbs[v.String()] = &v
	}
	return d, nil
}

// Verbs lists every command that can be sent, by name.
func (d *Door) Verbs() []Verb {
	var out []Verb
	for _, name := range slices.Sorted(maps.Keys(d.verbs)) {
		out = append(out, *d.verbs[name])
	}
	return out
}

// Request is a command as it came in, with its sender made out.
type Request struct {
	Account     events.AccountID // on whose behalf
	Kind        events.Kind
	Verb        string
	Command     events.CommandID // empty: one is made
	Body        []byte           // one JSON object
	From        Identity
	IfRevision  *uint64
	Correlation string
	Causation   string
	TraceParent string
}

// Do executes a command. Errors: a *aggregates.Refusal, a *GraphError, or what
// the journal and the directory answer; FailureOf turns them into what a client is told.
// It takes no longer than patience: a journal that cannot be written would be tried without end.
func (d *Door) Do(ctx context.Context, r Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := d.admit(ctx, r)
	if err != nil {
		return Answer{}, err
	}
	return c.run(ctx)
}

// Plan says what a command would do and does nothing: the body of a dry run. It
// is refused where the command would be refused, and with no-plan where its verb
// has none. It takes no longer than patience.
func (d *Door) Plan(ctx context.Context, r Request) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := d.admit(ctx, r)
	if err != nil {
		return nil, err
	}
	if c.plan == nil {
		return nil, aggregates.RefuseAs(aggregates.Invalid, "no-plan", "%s has no plan to show", c.verb)
	}
	plan, err := c.plan(ctx)
	if err != nil {
		return nil, err
	}
	return json.Marshal(plan)
}

// admit checks everything about a command that can be checked before an
// aggregate is asked: form, scope, access.
func (d *Door) admit(ctx context.Context, r Request) (*call, error) {
	v := d.verbs[string(r.Kind)+"."+r.Verb]
	if v == nil {
		return nil, aggregates.RefuseAs(aggregates.NotFound, "command-unknown", "there is no command %.60q for a %.60q", r.Verb, r.Kind).
			WithNext("nats micro info tombolo lists all commands; for a %.60s: %s", r.Kind, strings.Join(d.verbsOf(r.Kind), ", "))
	}
	switch {
	case ours(r.Kind) != (r.Account == events.None) && !(r.Kind == events.KindOperation && r.Account == events.None):
		return nil, aggregates.RefuseAs(aggregates.Denied, "wrong-account", "%s is not commanded in account %s", v, r.Account).
			WithNext("regions, pools and accounts are commanded in account %s, everything else in its tenant's", events.None)
	case len(r.Body) > v.MaxBody:
		return nil, aggregates.RefuseAs(aggregates.Invalid, "too-large", "the body has %d bytes; %s takes at most %d", len(r.Body), v, v.MaxBody)
	case v.Creates && r.IfRevision != nil:
		return nil, badRequest("%s makes something new: there is no revision to compare", v)
	}
	if r.Command == "" {
		r.Command = events.CommandID(rand.Text())
	}
	if err := checkCommandID(r.Command); err != nil {
		return nil, err
	}
	canonical, err := jcs.Transform(r.Body)
	if err != nil {
		return nil, badRequest("the body is not JSON: %v", err)
	}
	c := &call{door: d, verb: v, origin: Origin{
		Account: r.Account, Actor: r.From.Actor,
		Command:     events.CommandRef{ID: r.Command, Digest: events.DigestOf(append([]byte(v.String()+"\n"), canonical...))},
		Correlation: r.Correlation, Causation: r.Causation, TraceParent: r.TraceParent, IfRevision: r.IfRevision,
	}}
	if v.Starts {
		c.origin.Correlation = string(c.operation())
	}
	if err := v.bind(ctx, r.Body, c); err != nil {
		return nil, err
	}
	for _, needed := range append([]string{v.Name}, c.also...) {
		if err := d.may(r, v.Kind, needed, c.region); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// may asks the access policy whether the sender may send a command.
func (d *Door) may(r Request, kind events.Kind, verb string, region events.RegionID) error {
	verdict := d.access.Decide(policies.AccessInput{
		Actor: policies.Actor{Account: string(r.From.Actor.Account), User: string(r.From.Actor.User),
			Role: string(r.From.Role), Region: string(r.From.Region), Permissions: policies.Granted(r.From.Permissions)},
		Account: string(r.Account), Kind: string(kind), Verb: verb, Region: string(region),
	})
	if verdict.Failed {
		d.log.Error("the access policy failed", "command", string(kind)+"."+verb, "why", verdict.Why)
	}
	if !verdict.Allowed {
		return aggregates.RefuseAs(aggregates.Denied, "access-denied", "%s.%s: %s", kind, verb, verdict.Why)
	}
	return nil
}

func (d *Door) verbsOf(k events.Kind) []string {
	var out []string
	for _, v := range d.Verbs() {
		if v.Kind == k {
			out = append(out, v.Name)
		}
	}
	if out == nil {
		return []string{"none"}
	}
	return out
}

func checkCommandID(id events.CommandID) error {
	printable := func(r rune) bool { return r > ' ' && r < 0x7f }
	if len(id) > 64 || strings.ContainsFunc(string(id), func(r rune) bool { return !printable(r) }) {
		return badRequest("a command id is 1 to 64 printable ASCII characters without spaces")
	}
	return nil
}

// request makes a message a Request.
func (d *Door) request(ctx context.Context, a address, h nats.Header, body []byte) (Request, error) {
	r := Request{Account: a.account, Kind: a.kind, Verb: a.verb, Body: body,
		Command: events.CommandID(h.Get(CommandIDHeader)), Correlation: h.Get(CorrelationHeader)}
	if r.Command == "" {
		r.Command = events.CommandID(h.Get(nats.MsgIdHdr))
	}
	if r.Command == "" {
		r.Command = events.CommandID(rand.Text())
	}
	if len(r.Correlation) > 128 {
		return r, badRequest("a correlation has at most 128 bytes")
	}
	if text := h.Get(IfRevisionHeader); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return r, badRequest("the header %s: %.40q is not a revision", IfRevisionHeader, text)
		}
		r.IfRevision = &n
	}
	if t := h.Get(TraceParentHeader); len(t) == len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") {
		r.TraceParent = t // one of another length is not version 00 and is to be ignored (W3C Trace Context, 3.2.2)
	}
	who, err := d.identify(ctx, a, h)
	if err != nil {
		return r, err
	}
	r.From = who
	if a.agent == "" && h.Get(requestInfoHeader) == "" {
		r.Causation = h.Get(CausationHeader)
	}
	return r, nil
}
