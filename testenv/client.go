package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Client asks over HTTP. A request to a server that is not there, or that
// cannot answer now, is sent again with the same idempotency key until the
// context ends.
type Client struct {
	base, token string // of a region: a ticket
	http        *http.Client
	written     *atomic.Uint64 // the last event of what was written: reads wait for it
}

// Client is the administrator's, acting in the account default.
func (w *World) Client() *Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &Client{"http://" + w.HTTP.Address(), w.Admin.Token, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, &w.written}
}

// Client asks the region itself.
func (a *Agent) Client() *Client {
	a.world.mu.Lock()
	defer a.world.mu.Unlock()
	return &Client{a.At.HTTP, a.ticket, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}, &a.world.written}
}

// Refused is an answer that is a problem.
type Refused struct{ api.Problem }

// Error is the problem in words.
func (r *Refused) Error() string {
	return fmt.Sprintf("%d %s: %s %s", r.Status, r.Code, r.Detail, JSON(r.Findings))
}

// CodeOf is the code of a refusal; empty if it is none.
func CodeOf(err error) string {
	var r *Refused
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

// Do sends a request and reads the answer into a value, which may be nil.
func (c *Client) Do(ctx context.Context, method, path string, body, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.send(ctx, method, path, b, "application/json", into)
}

func (c *Client) send(ctx context.Context, method, path string, body []byte, kind string, into any) error {
	key := uuid.NewString()
	for {
		err := c.try(ctx, method, path, body, kind, key, into)
		if err == nil || final(err) || ctx.Err() != nil {
			return err
		}
		if perr := pause(ctx); perr != nil {
			return errors.Join(perr, err)
		}
	}
}

// final is an answer that asking again does not change.
func final(err error) bool {
	var r *Refused
	return errors.As(err, &r) && r.Status != http.StatusServiceUnavailable && r.Status != http.StatusInternalServerError
}

// pause is between two attempts to reach a server that is not there: there is
// nothing to wait for that would tell.
func pause(ctx context.Context) error {
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Once sends a request that is not repeated.
func (c *Client) Once(ctx context.Context, method, path string, body, into any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.try(ctx, method, path, b, "application/json", uuid.NewString(), into)
}

func (c *Client) try(ctx context.Context, method, path string, body []byte, kind, key string, into any) error {
	target := path
	if strings.HasPrefix(path, "/") {
		target = c.base + path
	}
	var reader io.Reader
	if method != http.MethodGet {
		reader = bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, target, reader)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if strings.HasPrefix(r.URL.Path, "/v1/") && !strings.HasPrefix(r.URL.Path, "/v1/uploads") && !strings.HasPrefix(r.URL.Path, "/v1/orphans") {
		if !q.Has("account") {
			q.Set("account", "default")
		}
		if seen := c.written.Load(); method == http.MethodGet && seen > 0 && !q.Has("as-of") && !strings.HasPrefix(r.URL.Path, "/v1/events") &&
			!strings.HasSuffix(r.URL.Path, "/host") {
			after, err := strconv.ParseUint(q.Get("after"), 10, 64)
			if err != nil || after < seen {
				q.Set("after", strconv.FormatUint(seen, 10))
			}
		}
		r.URL.RawQuery = q.Encode()
	}
	r.Header.Set("Authorization", "Bearer "+c.token)
	if method != http.MethodGet {
		r.Header.Set("Content-Type", kind)
		r.Header.Set("Idempotency-Key", key)
		if strings.HasPrefix(r.URL.Path, "/v1/uploads") {
			r.Header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(body)-1, len(body)))
		}
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		refused := &Refused{}
		if err := json.Unmarshal(answer, &refused.Problem); err != nil {
			return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
		}
		return refused
	}
	if position, err := strconv.ParseUint(resp.Header.Get("Tombolo-Position"), 10, 64); err == nil && method != http.MethodGet {
		raise(c.written, position)
	}
	if into == nil || len(answer) == 0 {
		return nil
	}
	return json.Unmarshal(answer, into)
}

// saw has further reads wait for a position.
func (w *World) saw(position uint64) { raise(&w.written, position) }

func raise(to *atomic.Uint64, position uint64) {
	for seen := to.Load(); seen < position && !to.CompareAndSwap(seen, position); seen = to.Load() {
	}
}

// Get reads something.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	return c.Do(ctx, http.MethodGet, path, nil, into)
}

// Operation is an operation as it is shown.
type Operation struct {
	projections.OperationRow
	Position uint64                `json:"position"`
	Ended    bool                  `json:"ended"`
	Parts    []projections.PartRow `json:"parts"`
}

// Await waits until the operation fulfils a condition, and looks whenever the
// journal has moved.
func (c *Client) Await(ctx context.Context, operation string, until func(Operation) bool) (Operation, error) {
	after := uint64(0)
	for {
		var o Operation
		err := c.Get(ctx, "/v1/operations/"+operation+"?after="+strconv.FormatUint(after, 10), &o)
		if err != nil {
			return o, fmt.Errorf("await operation %s: %w", operation, err)
		}
		if until(o) {
			return o, nil
		}
		after = o.Position + 1
	}
}

// Finished waits for the operation's end.
func (c *Client) Finished(ctx context.Context, operation string) (Operation, error) {
	return c.Await(ctx, operation, func(o Operation) bool { return o.Ended })
}

// Where is which regions hold which version.
type Where struct {
	Template string        `json:"template"`
	Active   int           `json:"active_version"`
	Position uint64        `json:"position"`
	Regions  []WhereRegion `json:"regions"`
}

// WhereRegion is one region's copy of one version.
type WhereRegion struct {
	Region   string `json:"region"`
	Version  int    `json:"version"`
	Wanted   bool   `json:"wanted"`
	Observed bool   `json:"observed"`
	Verified bool   `json:"verified"`
	State    string `json:"state"`
	Active   bool   `json:"active"`
	Digest   string `json:"digest"`
	Received int64  `json:"received"`
}

// Where asks which regions hold which version. query may be empty.
func (c *Client) Where(ctx context.Context, ref, query string) (Where, error) {
	var out Where
	err := c.Get(ctx, "/v1/templates/"+url.PathEscape(ref)+"/where"+query, &out)
	return out, err
}

// Orphans is what the region's host has and no order owns.
func (a *Agent) Orphans() ([]map[string]string, error) {
	var out struct{ Items []map[string]string }
	for {
		// The agent may come up again, and then elsewhere.
		err := a.Client().Once(a.world.ctx, "GET", "/v1/orphans", nil, &out)
		if err == nil || final(err) {
			return out.Items, err
		}
		if perr := pause(a.world.ctx); perr != nil {
			return nil, errors.Join(perr, err)
		}
	}
}

// Ran is what came of a run of the command line.
type Ran struct {
	Exit     int
	Out, Err string
}

// CLI runs the command line as a person does, without a terminal.
func (w *World) CLI(binary string, args ...string) Ran { return w.CLIin(w.Dir, binary, args...) }

// CLIin runs it in a folder.
func (w *World) CLIin(dir, binary string, args ...string) Ran {
	w.t.Helper()
	c := exec.CommandContext(w.ctx, binary, args...)
	c.Dir = dir
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(w.Dir, "home"), "TOMBOLO_CONTEXT=" + w.contextFile(), "TMPDIR=" + os.TempDir()}
	var out, talk strings.Builder
	c.Stdout, c.Stderr = &out, &talk
	err := c.Run()
	if c.ProcessState == nil {
		w.t.Fatalf("tombolo %s: %v", strings.Join(args, " "), err)
	}
	return Ran{c.ProcessState.ExitCode(), out.String(), talk.String()}
}

func join(s []string) string { return strings.Join(s, ",") }

func hostPort(u string) string { _, rest, _ := strings.Cut(u, "://"); return rest }
