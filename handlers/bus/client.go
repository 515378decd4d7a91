package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Codes of an Error of a Conn.
const (
	NotPermitted   Code = "not-permitted"   // the bus does not let this user publish there
	ConnectionLost Code = "connection-lost" // while an answer was waited for; whether the request arrived is not known
)

// Conn is a user's connection. Its RequestMsgWithContext tells at once what the bus does
// not permit, of which an ordinary client hears no more than a time-out.
type Conn struct {
	*nats.Conn
	mu      sync.Mutex
	waiting map[string]map[*refusable]struct{} // by subject
}

// refusable is a request that waits for its answer.
type refusable struct{ refuse context.CancelCauseFunc }

// Connect connects a user by the seed of its nkey. The connection's answers come
// under the prefix that the user may subscribe to. It reconnects for ever; the
// options may say otherwise.
func Connect(url, seed string, options ...nats.Option) (*Conn, error) {
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return nil, &Error{Code: BadOptions, Text: "the seed is not an nkey's"} // nkeys' error could quote it
	}
	public, err := pair.PublicKey()
	if err != nil || !nkeys.IsValidPublicUserKey(public) {
		return nil, &Error{Code: BadOptions, Text: "the seed is not a user's"}
	}
	c := &Conn{waiting: map[string]map[*refusable]struct{}{}}
	all := append([]nats.Option{nats.Nkey(public, pair.Sign), nats.CustomInboxPrefix(InboxOf(public)), nats.MaxReconnects(-1),
		nats.PermissionErrOnSubscribe(true)}, options...)
	// Last, so that it sees what an option before wanted to see.
	all = append(all, func(o *nats.Options) error {
		next := o.AsyncErrorCB
		o.AsyncErrorCB = func(nc *nats.Conn, sub *nats.Subscription, err error) {
			if !c.refused(err) && next != nil {
				next(nc, sub, err)
			}
		}
		return nil
	})
	if c.Conn, err = nats.Connect(url, all...); err != nil {
		return nil, fmt.Errorf("connect to the bus: %w", err)
	}
	go c.watch(c.StatusChanged(nats.RECONNECTING, nats.CLOSED))
	return c, nil
}

// watch tells the requests that wait when the connection breaks.
func (c *Conn) watch(lost chan nats.Status) {
	for s := range lost {
		c.mu.Lock()
		for subject, requests := range c.waiting {
			for r := range requests {
				r.refuse(&Error{Code: ConnectionLost, Text: "the connection to the bus was lost while the answer of " + subject + " was waited for"})
			}
		}
		c.mu.Unlock()
		if s == nats.CLOSED {
			c.RemoveStatusListener(lost)
		}
	}
}

// InboxOf is the prefix under which the user with this public key gets answers.
func InboxOf(public string) string { return "_INBOX." + public }

// RequestMsgWithContext sends a request and gives its answer. A connection that
// breaks meanwhile is told at once: the answer would go to nobody. Errors: *Error
// with NotPermitted or ConnectionLost, nats.ErrNoResponders, the context's, the
// connection's.
func (c *Conn) RequestMsgWithContext(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &refusable{cancel}
	c.mu.Lock()
	if c.waiting[m.Subject] == nil {
		c.waiting[m.Subject] = map[*refusable]struct{}{}
	}
	c.waiting[m.Subject][r] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.waiting[m.Subject], r); len(c.waiting[m.Subject]) == 0 {
			delete(c.waiting, m.Subject)
		}
	}()
	answer, err := c.Conn.RequestMsgWithContext(ctx, m)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return answer, err
}

// refused tells the requests that a violation concerns, and whether there were
// any. The protocol names the subject nowhere but in the error's text, quoted
// (nats-server, client.go, pubPermissionViolation).
func (c *Conn) refused(err error) bool {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var any bool
	for subject, requests := range c.waiting {
		if !strings.Contains(err.Error(), strconv.Quote(subject)) {
			continue
		}
		for r := range requests {
			r.refuse(&Error{Code: NotPermitted, Text: "this user may not publish to " + subject})
			any = true
		}
	}
	return any
}
