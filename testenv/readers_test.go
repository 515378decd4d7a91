package testenv

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// readerEnv names the variable with the file of the reader that this test's
// binary is to be.
const readerEnv = "TOMBOLO_TESTENV_READER"

// reader is a process of its own that asks every region in turn, at the region's
// own endpoint, which version of a template is active, and always for no less
// than the highest position that it has had from any. It writes down what it is
// told and ends when its stdin does.
type reader struct {
	Home     string // the control plane, which knows where the regions are
	Token    string
	Template string
	Regions  []string
	Out      string

	client  http.Client
	at      map[string]string // where regions answer, as far as it is known
	tickets map[string]string // that they take
}

// seen is one answer to "which version?", a line of a reader's file.
type seen struct {
	Region   string          `json:"region"`
	After    uint64          `json:"after"`            // asked for
	Code     string          `json:"code,omitempty"`   // of a refusal; "unreachable" where nobody answered
	Position uint64          `json:"position"`         // of the answer
	Active   int             `json:"active"`           // version
	Digest   string          `json:"digest"`           // of the answer without its position
	Answer   json.RawMessage `json:"answer,omitempty"` // where it is not the one before
}

const unreachable = "unreachable"

// readEvery is how often a reader asks.
const readEvery = 100 * time.Millisecond

// mainReader is the process; its exit code.
func mainReader(plan string) int {
	raw, err := os.ReadFile(plan)
	r := reader{tickets: map[string]string{}}
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err == nil {
		err = r.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (r *reader) run() (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // it ends with the test, however that ends
		cancel()
	}()
	f, err := os.Create(r.Out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := json.NewEncoder(f)
	ticks := time.NewTicker(readEvery)
	defer ticks.Stop()
	var highest uint64
	last := ""
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		s, err := r.ask(ctx, r.Regions[i%len(r.Regions)], highest)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		highest = max(highest, s.Position)
		if s.Digest == last {
			s.Answer = nil
		} else if s.Digest != "" {
			last = s.Digest
		}
		if err := lines.Encode(s); err != nil {
			return err
		}
	}
}

// ask asks one region for no less than a position.
func (r *reader) ask(ctx context.Context, region string, after uint64) (seen, error) {
	s := seen{Region: region, After: after}
	status, body := 0, []byte(nil)
	if r.at[region] != "" {
		status, body = r.do(ctx, http.MethodGet, r.tickets[region], "http://"+r.at[region]+"/v1/templates/"+r.Template+"/where?after="+strconv.FormatUint(after, 10))
	}
	if status == 0 { // an agent that has come up again may be elsewhere
		s.Code = unreachable
		if status, body = r.do(ctx, http.MethodGet, r.Token, r.Home+"/v1/regions"); status != http.StatusOK {
			return s, nil
		}
		var all struct {
			Items []struct{ Region, HTTP string }
		}
		if err := json.Unmarshal(body, &all); err != nil {
			return s, err
		}
		r.at = map[string]string{}
		for _, i := range all.Items {
			if r.tickets[i.Region] == "" {
				var got struct{ Ticket string }
				if status, body = r.do(ctx, http.MethodPost, r.Token, r.Home+"/v1/regions/"+i.Region+"/ticket"); status != http.StatusOK {
					continue
				}
				if err := json.Unmarshal(body, &got); err != nil {
					return s, err
				}
				r.tickets[i.Region] = got.Ticket
			}
			r.at[i.Region] = i.HTTP
		}
		return s, nil
	}
	if status != http.StatusOK {
		var p struct{ Code string }
		if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
			return s, fmt.Errorf("%s answers %d %s", region, status, body)
		}
		s.Code = p.Code
		return s, nil
	}
	var answer map[string]json.RawMessage
	if err := json.Unmarshal(body, &answer); err != nil {
		return s, fmt.Errorf("%s answers %s: %w", region, body, err)
	}
	if err := errors.Join(json.Unmarshal(answer["position"], &s.Position), json.Unmarshal(answer["active_version"], &s.Active)); err != nil {
		return s, fmt.Errorf("%s answers %s: %w", region, body, err)
	}
	delete(answer, "position")
	delete(answer, "lag") // of the moment, not of the answer
	canonical, err := json.Marshal(answer)
	sum := sha256.Sum256(canonical)
	s.Answer, s.Digest = canonical, hex.EncodeToString(sum[:8])
	return s, err
}

// do is one request; status 0: nobody answered.
func (r *reader) do(ctx context.Context, method, credential, target string) (status int, body []byte) {
	u, err := url.Parse(target)
	if err != nil {
		return 0, nil
	}
	q := u.Query()
	q.Set("account", "default")
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Authorization", "Bearer "+credential)
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil
	}
	return resp.StatusCode, body
}

// readers are processes that read while something goes on.
type readers struct {
	t     *testing.T
	files []string
	stop  []func() error
}

// read starts so many readers of a template.
func (w *World) read(t *testing.T, n int, template string) *readers {
	t.Helper()
	all := &readers{t: t}
	for i := range n {
		out := filepath.Join(w.Dir, fmt.Sprintf("reader-%d.jsonl", i))
		plan, err := json.Marshal(reader{Home: "http://" + w.HTTP.Address(), Token: w.Admin.Token, Template: template, Regions: w.Regions(), Out: out})
		if err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(w.Context(), os.Args[0])
		c.Env = []string{readerEnv + "=" + w.File(fmt.Sprintf("reader-%d.json", i), plan)}
		c.Stderr = os.Stderr
		alive, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		all.files = append(all.files, out)
		all.stop = append(all.stop, func() error { return errors.Join(alive.Close(), c.Wait()) })
	}
	return all
}

// end ends the readers and demands that they ended well.
func (r *readers) end() {
	r.t.Helper()
	for _, stop := range r.stop {
		if err := stop(); err != nil {
			r.t.Errorf("a reader: %v", err)
		}
	}
}

// histories gives what each reader has written down so far, in its own order.
func (r *readers) histories() [][]seen {
	r.t.Helper()
	var out [][]seen
	for _, path := range r.files {
		history, err := history(path)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, history)
	}
	return out
}

// lines counts the lines so far, of all readers, that contain all of this.
func (r *readers) lines(parts ...string) (n int) {
	r.t.Helper()
	for i := range r.files {
		n += r.linesOf(i, parts...)
	}
	return n
}

// linesOf counts those of one reader.
func (r *readers) linesOf(i int, parts ...string) (n int) {
	r.t.Helper()
	content, err := os.ReadFile(r.files[i])
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Fatal(err)
	}
	for line := range bytes.Lines(content) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !bytes.Contains(line, []byte(p)) }) {
			n++
		}
	}
	return n
}

func history(path string) ([]seen, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it has not begun
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []seen
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil // what is being written is not a line yet
		}
		if err != nil {
			return nil, err
		}
		var s seen
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, s)
	}
}
