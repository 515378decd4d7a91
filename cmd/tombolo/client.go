package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
)

// client asks one server over HTTP.
type client struct {
	app     *app
	context contexts.Context
	http    *http.Client
}

func accountID(s string) events.AccountID { return events.AccountID(s) }

// request makes a request with the credentials and the account.
func (c *client) request(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Request, error) {
	if query == nil {
		query = url.Values{}
	}
	if c.context.Account != "" && c.context.Account != c.context.Home {
		query.Set("account", string(c.context.Account))
	}
	target := strings.TrimSuffix(c.context.HTTP, "/") + path
	if len(query) > 0 {
		separator := "?"
		if strings.Contains(path, "?") {
			separator = "&"
		}
		target += separator + query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+c.context.Token)
	r.Header.Set("Accept", "application/json")
	return r, nil
}

// sendPlain does a request whose answer may be anything.
func (c *client) sendPlain(r *http.Request) ([]byte, *http.Response, error) {
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, nil, c.unreachable(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	return b, resp, err
}

// send does a request and gives the answer's body.
func (c *client) send(r *http.Request) ([]byte, *http.Response, error) {
	start := time.Now()
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, nil, c.unreachable(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, c.unreachable(err)
	}
	c.traced(r, resp, start)
	if resp.StatusCode >= 400 {
		return nil, nil, c.problem(resp, b)
	}
	return b, resp, nil
}

// traced tells of a request where the command line is verbose.
func (c *client) traced(r *http.Request, resp *http.Response, start time.Time) {
	if c.app.verbose > 0 {
		c.app.say("%s %s: %d in %s", r.Method, r.URL.Path, resp.StatusCode, time.Since(start).Round(time.Millisecond))
	}
}

func (c *client) unreachable(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fail(exitRunning, "timed-out", "%s did not answer in time", c.context.HTTP)
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	at := c.context.HTTP
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
		if to, perr := url.Parse(u.URL); perr == nil {
			at = to.Scheme + "://" + to.Host // a region, perhaps
		}
	}
	return fail(exitError, "server-unreachable", "the server at %s cannot be reached: %v", at, err).
		withNext("is it running (tombolo up)? tombolo doctor looks closer")
}

func (c *client) problem(resp *http.Response, body []byte) error {
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
		return fail(exitError, "not-tombolo", "%s answered %s, and not as a Tombolo server does", c.context.HTTP, resp.Status)
	}
	f := fail(exitOf(&p), p.Code, "%s", p.Detail)
	f.Next, f.Findings, f.Plan = p.Next, p.Findings, p.Plan
	switch {
	case p.Operation != "":
		f.Where = "operation " + string(p.Operation)
	case p.Region != "":
		f.Where = "region " + string(p.Region)
	}
	return f
}

// read asks for something, as of the moment that the flags name.
func (c *client) read(ctx context.Context, path string, query url.Values) ([]byte, error) {
	if query == nil {
		query = url.Values{}
	}
	if c.app.asOf != "" {
		query.Set("as-of", c.app.asOf)
	} else if c.app.position > 0 {
		query.Set("after", strconv.FormatUint(c.app.position, 10))
	}
	r, err := c.request(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	b, _, err := c.send(r)
	return b, err
}

// write sends a command. The answer's position is what later reads wait for.
func (c *client) write(ctx context.Context, method, path string, body any) ([]byte, api.Accepted, error) {
	var accepted api.Accepted
	if c.app.asOf != "" { // it would be done now, and shown as it was then
		return nil, accepted, usage("--as-of is for what is read; this command would change how things are now; nothing was done").withNext("leave --as-of away")
	}
	if strings.ContainsFunc(c.app.key, unicode.IsControl) {
		return nil, accepted, usage("--idempotency-key %q has a control character in it", c.app.key)
	}
	if body == nil {
		body = struct{}{}
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, accepted, err
	}
	if err := ctx.Err(); err != nil {
		return nil, accepted, err
	}
	asking, stop := outlive(ctx, answerPatience)
	defer stop()
	r, err := c.request(asking, method, path, nil, bytes.NewReader(b))
	if err != nil {
		return nil, accepted, err
	}
	r.Header.Set("Content-Type", "application/json")
	if c.app.key != "" {
		r.Header.Set("Idempotency-Key", c.app.key)
	}
	if c.app.revision > 0 {
		r.Header.Set("If-Match", fmt.Sprintf("%q", strconv.FormatUint(c.app.revision, 10)))
	}
	answer, _, err := c.send(r)
	if errors.Is(err, context.Canceled) {
		return nil, accepted, fail(exitError, "interrupted", "interrupted before the server answered: whether it took the command is not known").
			withNext("the same command with the same --idempotency-key is done once only")
	}
	if err != nil {
		return nil, accepted, err
	}
	if err := json.Unmarshal(answer, &accepted); err != nil {
		return nil, accepted, fail(exitError, "not-tombolo", "the server's answer cannot be read: %v", err)
	}
	c.app.position = max(c.app.position, accepted.Sequence)
	if accepted.Because != "" {
		c.app.say("nothing to do: %s", accepted.Because)
	}
	return answer, accepted, nil
}

// answerPatience is how long a command that was interrupted still waits for the
// answer to what it has sent: who does not know what was begun cannot end it.
const answerPatience = 5 * time.Second

// outlive is a context that ends that long after its parent.
func outlive(parent context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		t := time.AfterFunc(patience, cancel)
		context.AfterFunc(ctx, func() { t.Stop() })
	})
	return ctx, func() { stop(); cancel() }
}

// list reads all pages of a list and gives them as one.
func (c *client) list(ctx context.Context, path string, query url.Values) ([]byte, error) {
	var all struct {
		Position uint64            `json:"position"`
		Lag      *uint64           `json:"lag"`
		Items    []json.RawMessage `json:"items"`
	}
	all.Items = []json.RawMessage{}
	if query == nil {
		query = url.Values{}
	}
	for next := ""; ; {
		if next != "" {
			query.Set("next", next)
		}
		b, err := c.read(ctx, path, query)
		if err != nil {
			return nil, err
		}
		var page struct {
			Position uint64            `json:"position"`
			Lag      *uint64           `json:"lag"`
			Items    []json.RawMessage `json:"items"`
			Next     string            `json:"next"`
		}
		if err := json.Unmarshal(b, &page); err != nil {
			return nil, fail(exitError, "not-tombolo", "the server's answer cannot be read: %v", err)
		}
		if next == "" {
			all.Position, all.Lag = page.Position, page.Lag
			query.Set("as-of", strconv.FormatUint(page.Position, 10)) // all pages of one moment
		}
		all.Items = append(all.Items, page.Items...)
		if next = page.Next; next == "" {
			return json.Marshal(all)
		}
	}
}
