package testenv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// accepted is the answer to a write.
type accepted struct {
	ID        string `json:"id"`
	Operation string `json:"operation"`
	Sequence  uint64 `json:"sequence"`
}

// must sends a command that has to be accepted.
func (w *World) must(method, path string, body any) accepted {
	w.t.Helper()
	var a accepted
	if err := w.Client().Do(w.ctx, method, path, body, &a); err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// Disk is content that does not compress and has no chunk twice.
func Disk(seed uint64, size int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	out := make([]byte, size)
	r.Read(out) // never fails (math/rand/v2)
	return out
}

// Pools gives each region a pool of public addresses of its own.
func (w *World) Pools(size int) {
	w.t.Helper()
	for i, r := range w.Regions() {
		bits := 32
		for n := 1; n < size; n *= 2 {
			bits--
		}
		body := map[string]any{"region": r, "type": "public-address", "prefix": fmt.Sprintf("203.0.%d.0/%d", 112+i, bits)}
		if err := w.Client().Do(w.ctx, "POST", "/v1/pools", body, nil); err != nil {
			w.t.Fatalf("pool of %s: %v", r, err)
		}
	}
}

// Create makes an environment of one machine, "web", with a public address, one
// disk "web/root" with this content, and waits until it is there.
func (w *World) Create(name, region string, content []byte) string {
	w.t.Helper()
	id, err := w.create(w.ctx, name, region, content)
	if err != nil {
		w.t.Fatalf("create environment %s: %v", name, err)
	}
	return id
}

func (w *World) create(ctx context.Context, name, region string, content []byte) (string, error) {
	return w.createFrom(ctx, region, w.oneMachine(name, len(content)), content)
}

// oneMachine describes an environment of one machine, "web", with a public
// address and one disk.
func (w *World) oneMachine(name string, bytes int) map[string]any {
	return map[string]any{"name": name, "networks": []any{map[string]any{"name": "lan", "subnet": "10.0.0.0/24"}},
		"machines": []any{map[string]any{"name": "web", "memory_mib": guestMemory, "disks": []any{map[string]any{"name": "root", "bytes": bytes}},
			"interfaces": []any{map[string]any{"network": "lan", "address": "10.0.0.2", "public_address": "auto"}}}}}
}

// createFrom makes an environment with one disk as it is described.
func (w *World) createFrom(ctx context.Context, region string, spec map[string]any, content []byte) (string, error) {
	c := w.Client()
	var made accepted
	if err := c.Do(ctx, "POST", "/v1/environments", map[string]any{"region": region, "spec": spec}, &made); err != nil {
		return "", err
	}
	for after := made.Sequence; ; after++ {
		var e struct {
			State    string `json:"state"`
			Position uint64 `json:"position"`
			Uploads  []struct {
				URL    string `json:"url"`
				Ticket string `json:"ticket"`
			} `json:"uploads"`
		}
		if err := c.Get(ctx, fmt.Sprintf("/v1/environments/%s?after=%d", made.ID, after), &e); err != nil {
			return "", err
		}
		if e.State == "receiving" && len(e.Uploads) == 1 {
			err := (&Client{c.base, e.Uploads[0].Ticket, c.http, c.written}).upload(ctx, e.Uploads[0].URL, content)
			if err == nil {
				break
			}
			// The agent may have ended, or come up elsewhere: look again.
			if code := CodeOf(err); code == "upload-complete" || code == "upload-not-wanted" {
				break
			}
			if ctx.Err() != nil {
				return "", err
			}
			if err := pause(ctx); err != nil {
				return "", err
			}
			after--
			continue
		}
		if e.State != "declaring" && e.State != "receiving" {
			break
		}
		after = e.Position
	}
	o, err := c.Finished(ctx, made.Operation)
	if err == nil && o.State != "succeeded" {
		err = fmt.Errorf("operation %s", JSON(o))
	}
	return made.ID, err
}

func (c *Client) upload(ctx context.Context, target string, content []byte) error {
	if err := c.try(ctx, "PUT", target, content, "application/octet-stream", "", nil); err != nil {
		return err
	}
	return c.try(ctx, "POST", target+"/complete", nil, "application/octet-stream", "", nil)
}

// Save asks for a template of an environment and gives its number and operation.
func (w *World) Save(environment, name string, regions ...string) (number, operation string) {
	w.t.Helper()
	var a accepted
	err := w.Client().Do(w.ctx, "POST", "/v1/templates", map[string]any{"environment": environment, "name": name, "regions": regions}, &a)
	if err != nil {
		w.t.Fatalf("template of %s: %v", environment, err)
	}
	return a.ID, a.Operation
}

// Replace asks for a further version and gives its operation.
func (w *World) Replace(number, environment string) string {
	w.t.Helper()
	var a accepted
	if err := w.Client().Do(w.ctx, "POST", "/v1/templates/"+number+"/replace", map[string]any{"environment": environment, "policy": "all"}, &a); err != nil {
		w.t.Fatalf("replace %s: %v", number, err)
	}
	return a.Operation
}

// Done waits for an operation's end and demands success.
func (w *World) Done(operation string) Operation {
	w.t.Helper()
	o, err := w.Client().Finished(w.ctx, operation)
	if err != nil {
		w.t.Fatal(err)
	}
	if o.State != "succeeded" {
		w.t.Fatalf("operation %s", JSON(o))
	}
	return o
}

// settled: what is wanted is what is there, verified, and nothing else is.
func (w Where) settled() bool {
	return !slices.ContainsFunc(w.Regions, func(r WhereRegion) bool { return r.Wanted != r.Verified || r.Wanted != r.Observed })
}

// Verified waits until what is held is what is wanted, and demands that exactly
// these regions hold the version, with one digest in all of them.
func (w *World) Verified(number string, version int, regions ...string) Where {
	w.t.Helper()
	at := w.Until(number, number+" does not settle", Where.settled)
	var ready []string
	digests := map[string]bool{}
	for _, r := range at.Regions {
		if r.Version == version && r.Verified {
			ready = append(ready, r.Region)
			digests[r.Digest] = true
		}
	}
	if strings.Join(ready, ",") != strings.Join(regions, ",") || len(digests) != 1 || at.Active != version {
		w.t.Errorf("%s@%d is held by %v with %d digests, active is %d; want %v: %s", number, version, ready, len(digests), at.Active, regions, JSON(at))
	}
	return at
}

// Pool is a region's stock.
type Pool struct {
	Region   string `json:"region"`
	Size     int    `json:"size"`
	Free     int    `json:"free"`
	Reserved int    `json:"reserved"`
	Bound    int    `json:"bound"`
}

// PoolOf gives the region's pool of public addresses and demands that its
// numbers add up.
func (w *World) PoolOf(region string) Pool {
	w.t.Helper()
	var all struct{ Items []Pool }
	if err := w.Client().Get(w.ctx, "/v1/pools", &all); err != nil {
		w.t.Fatal(err)
	}
	for _, p := range all.Items {
		if p.Region == region {
			if p.Free+p.Reserved+p.Bound != p.Size {
				w.t.Errorf("the pool of %s does not add up: %+v", region, p)
			}
			return p
		}
	}
	w.t.Fatalf("%s has no pool", region)
	return Pool{}
}

// Clean demands that no region's host has anything that no order owns.
func (w *World) Clean() {
	w.t.Helper()
	for _, r := range w.Regions() {
		found, err := w.Agents[r].Orphans()
		if err != nil {
			w.t.Errorf("orphans of %s: %v", r, err)
		}
		if len(found) > 0 {
			w.t.Errorf("orphans of %s: %s", r, JSON(found))
		}
	}
}

// Fact is an event as it is shown.
type Fact struct {
	ID       string         `json:"id"`
	Sequence uint64         `json:"sequence"`
	Type     string         `json:"type"`
	Subject  string         `json:"subject"`
	Stored   time.Time      `json:"stored"`
	Data     map[string]any `json:"data"`
}

// Facts gives the journal's events from a sequence on, of these types; a
// trailing * stands for any end.
func (w *World) Facts(from uint64, types ...string) []Fact {
	w.t.Helper()
	out, err := w.facts(w.ctx, from, types...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *World) facts(ctx context.Context, from uint64, types ...string) ([]Fact, error) {
	var out []Fact
	for {
		q := url.Values{"type": types, "from": {strconv.FormatUint(from, 10)}, "limit": {"1000"}}
		var page struct {
			Items []Fact
			Next  uint64
		}
		if err := w.Client().Get(ctx, "/v1/events?"+q.Encode(), &page); err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if from = page.Next; from == 0 {
			return out, nil
		}
	}
}

// Happened waits until an event of the type has been stored after the position,
// and gives the first; reads from then on know of it.
func (w *World) Happened(after uint64, t string) Fact {
	w.t.Helper()
	for {
		position := w.Position()
		if found := w.Facts(after+1, t); len(found) > 0 {
			w.saw(found[0].Sequence)
			return found[0]
		}
		if err := w.Client().Get(w.ctx, fmt.Sprintf("/v1/regions?after=%d", position+1), nil); err != nil {
			w.t.Fatalf("no %s: %v", t, err)
		}
	}
}

// Position is how far the control plane's reads are.
func (w *World) Position() uint64 {
	w.t.Helper()
	var regions struct{ Position uint64 }
	if err := w.Client().Get(w.ctx, "/v1/regions", &regions); err != nil {
		w.t.Fatal(err)
	}
	return regions.Position
}

// Until waits until a template's regions fulfil a condition.
func (w *World) Until(number string, what string, fulfilled func(Where) bool) Where {
	w.t.Helper()
	var at Where
	for {
		next, err := w.Client().Where(w.ctx, number, fmt.Sprintf("?after=%d", at.Position))
		if err != nil {
			w.t.Fatalf("%s: %v: %s", what, err, JSON(at))
		}
		if at = next; fulfilled(at) {
			return at
		}
		at.Position++
	}
}

// Rest waits until no region has work to do.
func (w *World) Rest() {
	w.t.Helper()
	for after := uint64(0); ; after++ {
		var open struct {
			Position uint64
			Items    []map[string]any
		}
		if err := w.Client().Get(w.ctx, "/v1/work?state=open&after="+strconv.FormatUint(after, 10), &open); err != nil {
			w.t.Fatalf("there is work left: %v: %s", err, JSON(open.Items))
		}
		if len(open.Items) == 0 {
			return
		}
		after = open.Position
	}
}
