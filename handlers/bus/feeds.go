package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/tombolo-vdc/tombolo/events"
)

const (
	// MaxSubscriptions is how many subscriptions an account may have.
	MaxSubscriptions = 64
	// maxFilters bounds the subjects of one subscription: regions times kinds.
	maxFilters = 64
	// maxWindow is the most events on their way to one subscriber.
	maxWindow = 1000
)

// Feeds gives tenants their own events: a stream for each, with the journal's
// sequences, and subscriptions on it that the tenants ask for. It mirrors the
// tenant's events and the regions', which are everybody's (that a region was
// added, drains, is retired); nothing else of account None.
type Feeds struct {
	js      jetstream.JetStream
	service micro.Service
	log     *slog.Logger
	mu      sync.Mutex // one change of subscriptions at a time
}

// Subscription is what a tenant asks for.
type Subscription struct {
	// Name is chosen by the subscriber, a token of [a-z0-9-]; its place in the
	// stream is kept under it.
	Name string `json:"name"`
	// Kinds and Regions narrow what is sent; empty means all. Events of things
	// that belong to no region are of region "_".
	Kinds   []events.Kind     `json:"kinds,omitempty"`
	Regions []events.RegionID `json:"regions,omitempty"`
	// After is the sequence to begin after; 0 is the beginning.
	After uint64 `json:"after,omitempty"`
	// Window is how many events are on their way at once; 0 is 1, which keeps
	// the order whatever happens.
	Window int `json:"window,omitempty"`
}

// Subscribed is the answer.
type Subscribed struct {
	Stream    string `json:"stream"`
	Consumer  string `json:"consumer"`
	APIPrefix string `json:"api_prefix"`
}

// Codes of what Feeds refuses.
const (
	BadSubscription      Code = "bad-subscription"
	SubscriptionDiffers  Code = "subscription-differs"   // the name stands for another subscription
	SubscriptionUnknown  Code = "subscription-unknown"   // there is none of this name
	TooManySubscriptions Code = "too-many-subscriptions" // MaxSubscriptions
	AccountUnknown       Code = "account-unknown"        // it has no stream
)

// OpenFeeds starts to answer tombolo.subscribe and tombolo.unsubscribe over the
// control plane's connection, which is the caller's to close. The journal is there already.
func OpenFeeds(ctx context.Context, conn *nats.Conn, log *slog.Logger) (*Feeds, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, fmt.Errorf("open the feeds: %w", err)
	}
	if _, err := js.Stream(ctx, journalStream); err != nil {
		return nil, fmt.Errorf("open the feeds: stream %s: %w", journalStream, err)
	}
	f := &Feeds{js: js, log: log}
	f.service, err = micro.AddService(conn, micro.Config{Name: "tombolo-feeds", Version: "1.0.0",
		Description: "Subscriptions to the account's own events: " + subscribePrefix + "<account>"})
	if err != nil {
		return nil, fmt.Errorf("open the feeds: %w", err)
	}
	for _, e := range []struct {
		name, prefix, doc string
		do                func(context.Context, events.AccountID, []byte) (any, error)
	}{
		{"subscribe", subscribePrefix, `{"name","kinds","regions","after","window"}: makes a durable subscription`, f.subscribe},
		{"unsubscribe", unsubscribePrefix, `{"name"}: ends a subscription`, f.unsubscribe},
	} {
		err := f.service.AddEndpoint(e.name, micro.HandlerFunc(func(r micro.Request) { go f.serve(r, e.prefix, e.do) }),
			micro.WithEndpointSubject(e.prefix+"*"), micro.WithEndpointMetadata(map[string]string{"doc": e.doc}))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open the feeds: %s: %w", e.name, err), f.service.Stop())
		}
	}
	return f, conn.Flush()
}

// Close stops answering.
func (f *Feeds) Close() error { return f.service.Stop() }

// Add makes the account's stream, or finds it as it should be. It is called for
// every account at every start.
func (f *Feeds) Add(ctx context.Context, account events.AccountID) error {
	if !events.IsToken(string(account)) {
		return &Error{Code: AccountUnknown, Text: fmt.Sprintf("%q is not a tenant", account)}
	}
	own, regions := events.SubjectPrefix+string(account)+".>", events.SubjectPrefix+regionEvents("*")
	_, err := f.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        StreamOf(account),
		Description: "The events of account " + string(account) + ", a mirror of the journal",
		Mirror: &jetstream.StreamSource{Name: journalStream, SubjectTransforms: []jetstream.SubjectTransformConfig{
			{Source: own}, {Source: regions}, // without a destination they only filter
		}},
		// What a power cut takes from the end of a mirror comes again from the journal, which is synced: to sync
		// the mirror too would cost every event a second write to the disk.
		// No MaxBytes: nats-server 2.15 leaves a mirror that was full once standing where it was, without a word to its
		// readers, also when its limit is raised. What bounds the mirrors is the journal's limit, for a tenant's events
		// are in one mirror only (mostOfJournal, in the program); how much they take is counted in Server.Room.
		Storage: jetstream.FileStorage, PersistMode: jetstream.AsyncPersistMode, Compression: jetstream.S2Compression, MaxConsumers: MaxSubscriptions,
		DenyDelete: true, DenyPurge: true,
	})
	if err != nil {
		return fmt.Errorf("make the stream of account %s: %w", account, err)
	}
	return nil
}

// regionEvents is the subject of a region's own events after the prefix.
func regionEvents(region string) string {
	return events.None + "." + region + "." + string(events.KindRegion) + ".*"
}

func (f *Feeds) serve(r micro.Request, prefix string, do func(context.Context, events.AccountID, []byte) (any, error)) {
	ctx, cancel := context.WithTimeout(context.Background(), apiWait)
	defer cancel()
	answer, err := do(ctx, events.AccountID(strings.TrimPrefix(r.Subject(), prefix)), r.Data())
	if err == nil {
		err = r.RespondJSON(answer)
		if err != nil {
			f.log.Warn("an answer could not be sent", "error", err)
		}
		return
	}
	e := &Error{}
	status := "400"
	if !errors.As(err, &e) {
		f.log.Error("a subscription failed", "subject", r.Subject(), "error", err)
		e, status = &Error{Code: "internal", Text: "the subscription failed for a reason that is not yours: try again"}, "500"
	}
	var body struct {
		Error struct {
			Code Code   `json:"code"`
			Text string `json:"text"`
		} `json:"error"`
	}
	body.Error.Code, body.Error.Text = e.Code, e.Text
	data, err := json.Marshal(body)
	if err == nil {
		err = r.Error(status, e.Text, data)
	}
	if err != nil {
		f.log.Warn("an answer could not be sent", "error", err)
	}
}

func (f *Feeds) subscribe(ctx context.Context, account events.AccountID, body []byte) (any, error) {
	var s Subscription
	if err := strictly(body, &s); err != nil {
		return nil, err
	}
	filters, err := s.filters(account)
	if err != nil {
		return nil, err
	}
	c := jetstream.ConsumerConfig{Durable: s.Name, FilterSubjects: filters, AckPolicy: jetstream.AckExplicitPolicy,
		DeliverPolicy: jetstream.DeliverAllPolicy, MaxAckPending: max(s.Window, 1), MaxDeliver: -1}
	if s.After > 0 {
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, s.After+1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err = f.js.CreateConsumer(ctx, StreamOf(account), c)
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrConsumerExists):
		return nil, &Error{Code: SubscriptionDiffers, Text: "the subscription " + s.Name + " is there with other filters or another beginning: choose another name, or unsubscribe it"}
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, unknownAccount(account)
	case errors.As(err, &api) && api.ErrorCode == codeMaxConsumers:
		return nil, &Error{Code: TooManySubscriptions, Text: fmt.Sprintf("the account has %d subscriptions: unsubscribe one that is not used", MaxSubscriptions)}
	case err != nil:
		return nil, err
	}
	return Subscribed{StreamOf(account), s.Name, APIPrefix}, nil
}

// codeMaxConsumers is nats-server's "maximum consumers limit reached"
// (server/errors.json), for which nats.go has no name.
const codeMaxConsumers jetstream.ErrorCode = 10026

func (f *Feeds) unsubscribe(ctx context.Context, account events.AccountID, body []byte) (any, error) {
	var s struct {
		Name string `json:"name"`
	}
	if err := strictly(body, &s); err != nil {
		return nil, err
	}
	if !validName(s.Name) {
		return nil, badName(s.Name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.js.DeleteConsumer(ctx, StreamOf(account), s.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, unknownAccount(account)
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return nil, &Error{Code: SubscriptionUnknown, Text: "there is no subscription " + s.Name}
	case err != nil:
		return nil, err
	}
	return Subscribed{StreamOf(account), s.Name, APIPrefix}, nil
}

func unknownAccount(account events.AccountID) error {
	return &Error{Code: AccountUnknown, Text: fmt.Sprintf("account %.80q has no stream of events", account)}
}

// filters checks the subscription and gives the subjects that it wants; none means all.
func (s Subscription) filters(account events.AccountID) ([]string, error) {
	bad := func(format string, args ...any) ([]string, error) {
		return nil, &Error{Code: BadSubscription, Text: fmt.Sprintf(format, args...)}
	}
	if !validName(s.Name) {
		return nil, badName(s.Name)
	}
	if s.Window < 0 || s.Window > maxWindow {
		return bad("the window is %d, and is to be 1 to %d", s.Window, maxWindow)
	}
	for _, k := range s.Kinds {
		if !events.IsToken(string(k)) {
			return bad("%.80q is not a kind", k)
		}
	}
	for _, r := range s.Regions {
		if r != events.None && !events.IsToken(string(r)) {
			return bad("%.80q is not a region", r)
		}
	}
	kinds, regions := slices.Compact(slices.Sorted(slices.Values(s.Kinds))), slices.Compact(slices.Sorted(slices.Values(s.Regions)))
	if len(kinds) == 0 && len(regions) == 0 {
		return nil, nil
	}
	if max(len(kinds), 1)*max(len(regions), 1) > maxFilters {
		return bad("%d kinds in %d regions are too many for one subscription: at most %d pairs", len(kinds), len(regions), maxFilters)
	}
	everyKind := len(kinds) == 0
	if len(regions) == 0 {
		regions = []events.RegionID{"*"}
	}
	var out []string
	for _, r := range regions {
		if everyKind {
			out = append(out, events.SubjectPrefix+string(account)+"."+string(r)+".>")
		}
		for _, k := range kinds {
			out = append(out, events.SubjectPrefix+string(account)+"."+string(r)+"."+string(k)+".*")
		}
		if r != events.None && (everyKind || slices.Contains(kinds, events.KindRegion)) {
			out = append(out, events.SubjectPrefix+regionEvents(string(r)))
		}
	}
	return out, nil
}

func validName(name string) bool { return len(name) <= 64 && events.IsToken(name) }

func badName(name string) error {
	return &Error{Code: BadSubscription, Text: fmt.Sprintf("%.80q is not a name: at most 64 of [a-z0-9-]", name)}
}

func strictly(body []byte, to any) error {
	decoder := json.NewDecoder(strings.NewReader(string(body)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(to); err != nil {
		return &Error{Code: BadSubscription, Text: "the body: " + err.Error()}
	}
	return nil
}
