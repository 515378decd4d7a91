package program

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// TestAgentsCertificate: an agent whose certificate others would not believe
// does not start and says what to do; one whose certificate ends says so a month
// before.
func TestAgentsCertificate(t *testing.T) {
	enrolled := func() Enrolment {
		t.Helper()
		dir := t.TempDir()
		authority, err := trust.OpenAuthority(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := authority.Region(dir, "sydney"); err != nil {
			t.Fatal(err)
		}
		certificate, err := os.ReadFile(filepath.Join(dir, "region-sydney.pem"))
		key, kerr := os.ReadFile(filepath.Join(dir, "region-sydney.key"))
		if err := errors.Join(err, kerr); err != nil {
			t.Fatal(err)
		}
		return Enrolment{Region: "sydney", NATS: "nats://127.0.0.1:1", Authority: string(authority.PEM()), Certificate: string(certificate), Key: string(key)}
	}
	wrong, stranger := enrolled(), enrolled()
	wrong.Certificate, wrong.Key = stranger.Certificate, stranger.Key
	_, err := NewAgent(t.Context(), AgentConfig{Dir: t.TempDir(), Enrolment: wrong, Log: slog.New(slog.DiscardHandler)})
	var told *Error
	if !errors.As(err, &told) || told.Code != "certificate-untrusted" || !strings.Contains(told.Next, "tombolo agent enroll --region sydney") {
		t.Errorf("another authority's certificate: %v", err)
	}

	var log bytes.Buffer
	now := time.Now()
	a := &RegionAgent{log: slog.New(slog.NewTextHandler(&log, nil)), region: "sydney", ends: now.Add(trust.EndsSoon)}
	if a.tellEnd(now); log.Len() != 0 {
		t.Errorf("said too soon: %s", log.String())
	}
	if a.tellEnd(now.Add(time.Second)); !strings.Contains(log.String(), "tombolo agent enroll --region sydney") {
		t.Errorf("not said: %q", log.String())
	}
}
