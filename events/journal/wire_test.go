package journal_test

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// TestDigestAsDocumented recomputes digests from the package documentation
// alone, as an auditor in another language would.
func TestDigestAsDocumented(t *testing.T) {
	m := journal.NewMemory(events.NewRegistry(), time.Now)
	p := proposal("sydney", 1, events.Head{})
	p.Actor.User, p.Causation = "Zoë \"Z\" 100%", "line\nbreak"
	first, err := m.Append(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	second, err := m.Append(t.Context(), proposal("sydney", 2, first.Head()))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []events.Record{first, second} {
		subject, header, payload := m.Message(r.Sequence)
		parts := []string{"tombolo-event-1", subject}
		for _, name := range []string{
			"ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-subject", "ce-datacontenttype",
			"tombolo-schema", "tombolo-revision", "tombolo-previous", "tombolo-actor-account", "tombolo-actor-user",
			"tombolo-command", "tombolo-command-digest", "tombolo-correlation", "tombolo-causation", "traceparent",
		} {
			value := ""
			if len(header[name]) == 1 {
				value = header[name][0]
			}
			parts = append(parts, value)
		}
		framed := ""
		for _, part := range append(parts, string(payload)) {
			framed += fmt.Sprintf("%d:%s,", len(part), part)
		}
		want := events.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(framed))))
		if r.Digest != want || journal.DigestOf(subject, header, payload) != want {
			t.Errorf("revision %d has digest %s, the documentation gives %s", r.Revision, r.Digest, want)
		}
	}
	_, header, _ := m.Message(1)
	for name, want := range map[string]string{
		"ce-subject":         "_.sydney.region.sydney",
		"ce-type":            "region.epoch-started",
		"tombolo-actor-user": "Zo%C3%AB%20%22Z%22%20100%25",
		"tombolo-causation":  "line%0Abreak",
		"tombolo-revision":   "1",
	} {
		if got := header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if _, there := header["tombolo-previous"]; there {
		t.Error("a first event names one before it")
	}
}
