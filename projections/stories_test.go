package projections_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// history is a journal of records that grows; it follows like a journal.
type history struct {
	mu        sync.Mutex
	records   []events.Record
	revisions map[string]uint64
	grown     chan struct{}
}

func newHistory() *history {
	return &history{revisions: map[string]uint64{}, grown: make(chan struct{})}
}

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// add completes a record: its sequence, its revision, its times, its id.
func (h *history) add(r events.Record) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.Sequence = uint64(len(h.records)) + 1
	h.revisions[r.Aggregate.Subject()]++
	r.Revision = h.revisions[r.Aggregate.Subject()]
	r.Time = epoch.Add(time.Duration(r.Sequence) * time.Second)
	r.Stored = r.Time.Add(time.Millisecond)
	r.ID = fmt.Sprintf("event-%d", r.Sequence)
	h.records = append(h.records, r)
	close(h.grown)
	h.grown = make(chan struct{})
	return r.Sequence
}

func (h *history) Follow(ctx context.Context, after uint64, each func(events.Record) error) error {
	for {
		h.mu.Lock()
		batch, grown := h.records[after:], h.grown
		h.mu.Unlock()
		for _, r := range batch {
			if err := each(r); err != nil {
				return err
			}
			after++
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grown:
		}
	}
}

// reads is a store with the whole set, following a history.
type reads struct {
	*projections.Feed
	stop func()
}

func follow(t testing.TB, h projections.Follower) reads {
	t.Helper()
	store, err := projections.Open(t.TempDir(), projections.Options{})
	check(t, err)
	feed, err := store.Feed(projections.All()...)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- feed.Run(ctx, h) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the feed ended with %v", err)
		}
		check(t, store.Close())
	})
	t.Cleanup(stop)
	return reads{feed, stop}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// at gives a view as of a position, once it is there.
func (f reads) at(t testing.TB, seq uint64) *projections.View {
	t.Helper()
	check(t, f.WaitFor(t.Context(), seq))
	v, err := f.AsOf(seq)
	check(t, err)
	return v
}

// digests gives the digests of the whole set at a position.
func (f reads) digests(t testing.TB, seq uint64) map[string]events.Digest {
	t.Helper()
	v := f.at(t, seq)
	out := map[string]events.Digest{}
	for _, p := range projections.All() {
		d, err := v.Digest(p.Name())
		check(t, err)
		out[p.Name()] = d
	}
	check(t, v.Close())
	return out
}

// agree checks that the digests that were taken when each position was the tip
// are those as of that position now, and those of rows that are built anew.
func agree(t *testing.T, h *history, f reads, taken map[uint64]map[string]events.Digest) {
	t.Helper()
	anew := follow(t, h)
	check(t, anew.WaitFor(t.Context(), uint64(len(h.records))))
	for seq, want := range taken {
		now, rebuilt := f.digests(t, seq), anew.digests(t, seq)
		for name := range want {
			if now[name] != want[name] {
				t.Errorf("%s as of %d has the digest %s; when that was the tip it was %s", name, seq, now[name], want[name])
			}
			if rebuilt[name] != want[name] {
				t.Errorf("%s built anew has as of %d the digest %s; it was %s", name, seq, rebuilt[name], want[name])
			}
		}
	}
	anew.stop()
}

// TestStories reads testdata/*.txt. Commands:
//
//	events [by=user] [of=account]   one event a line: subject type {payload}
//	<question> [as-of=n]            one question a line: its arguments
//
// In payloads and arguments #x stands for the digest of x. After each story,
// every digest that was taken at a tip must hold as of that position, and for
// rows that are built anew.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		h := newHistory()
		f := follow(t, h)
		taken := map[uint64]map[string]events.Digest{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "events" {
				return tell(t, d, h, func(seq uint64) { taken[seq] = f.digests(t, seq) })
			}
			ask, ok := questions[d.Cmd]
			if !ok {
				d.Fatalf(t, "there is no question %q", d.Cmd)
			}
			seq := uint64(len(h.records))
			if d.HasArg("as-of") {
				d.ScanArgs(t, "as-of", &seq)
			}
			v := f.at(t, seq)
			defer v.Close()
			var out strings.Builder
			lines := strings.Split(strings.TrimSpace(expand(d.Input)), "\n")
			for _, line := range lines {
				if len(lines) > 1 {
					fmt.Fprintf(&out, "%s:\n", line)
				}
				answer, err := ask(v, arguments(line))
				write(&out, answer, err)
			}
			return shorten(out.String())
		})
		agree(t, h, f, taken)
	})
}

// arguments splits a line at commas: names may have spaces in them.
func arguments(line string) []string {
	out := append(strings.Split(line, ","), "", "", "", "")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

var (
	digestOf  = regexp.MustCompile(`#(\w+)`)
	digestHex = regexp.MustCompile(`sha256:([0-9a-f]{64})`)
)

func expand(s string) string {
	return digestOf.ReplaceAllStringFunc(s, func(m string) string {
		sum := sha256.Sum256([]byte(m[1:]))
		return "sha256:" + hex.EncodeToString(sum[:])
	})
}

func shorten(s string) string {
	return digestHex.ReplaceAllStringFunc(s, func(m string) string { return m[:len("sha256:")+6] + "…" })
}

func tell(t *testing.T, d *datadriven.TestData, h *history, stored func(seq uint64)) string {
	registry := events.NewRegistry()
	by, of, causation := "ann", "acme", ""
	if d.HasArg("by") {
		d.ScanArgs(t, "by", &by)
	}
	if d.HasArg("of") {
		d.ScanArgs(t, "of", &of)
	}
	if by == "control-plane" {
		causation = "some-event"
	}
	var out strings.Builder
	for line := range strings.Lines(expand(d.Input)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "//") {
			continue
		}
		subject, rest, _ := strings.Cut(line, " ")
		kind, payload, _ := strings.Cut(rest, " ")
		if payload == "" {
			payload = "{}"
		}
		a, err := events.ParseSubject(events.SubjectPrefix + subject)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		e, err := registry.Decode(events.Type(kind), 1, []byte(payload))
		if err != nil {
			d.Fatalf(t, "%s: %v", line, err)
		}
		command := events.CommandRef{ID: events.CommandID("command-" + strconv.Itoa(len(h.records)+1)), Digest: events.DigestOf([]byte(payload))}
		seq := h.add(events.Record{Aggregate: a, Event: e, Causation: causation, Command: command,
			Actor: events.Actor{Account: events.AccountID(of), User: events.UserID(by)}})
		stored(seq)
		fmt.Fprintf(&out, "%d ", seq)
	}
	return strings.TrimSpace(out.String()) + "\n"
}

// write prints an answer, a list's elements one a line.
func write(out *strings.Builder, answer any, err error) {
	if err != nil {
		fmt.Fprintf(out, "error %s: %v\n", codeOf(err), err)
		return
	}
	one := func(v any) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		if err := e.Encode(v); err != nil {
			fmt.Fprintln(out, err)
		}
		out.Write(b.Bytes())
	}
	v := reflect.ValueOf(answer)
	if v.Kind() != reflect.Slice {
		one(answer)
		return
	}
	for i := range v.Len() {
		one(v.Index(i).Interface())
	}
	if v.Len() == 0 {
		fmt.Fprintln(out, "none")
	}
}

func codeOf(err error) projections.Code {
	var missing *projections.NotFoundError
	var ambiguous *projections.AmbiguousError
	switch {
	case errors.As(err, &missing):
		return missing.Code
	case errors.As(err, &ambiguous):
		return projections.CodeReferenceAmbiguous
	}
	return "unexpected"
}
