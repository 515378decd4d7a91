package bus_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"golang.org/x/sync/errgroup"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
)

// TestTenantsAreAddedWhileRunning: their users may connect at once, many
// together, and those who are connected notice nothing.
func TestTenantsAreAddedWhileRunning(t *testing.T) {
	p := newPlace(t)
	p.listen(t, "tombolo.command.>")
	p.append(t, "gamma", "gamma", "before")
	ann := p.as(t, "ann")
	gina := p.users.add(t, bus.User{Account: "gamma", User: "gina", Role: events.Operator})
	var all errgroup.Group
	for range 8 {
		all.Go(func() error {
			conn, err := bus.Connect(p.server.URL(), gina.seed)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.RequestMsgWithContext(brief(t), nats.NewMsg("tombolo.command.gamma.template.create"))
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := p.feeds.Add(t.Context(), "gamma"); err != nil {
		t.Fatal(err)
	}
	p.people["gina"] = gina
	s, err := p.subscribe(t, "gina", "gamma", bus.Subscription{Name: "s"})
	if err != nil {
		t.Fatal(err)
	}
	if got := next(t, p.as(t, "gina"), s, 1); got[0] != "1 before" {
		t.Errorf("got %q", got)
	}
	if _, err := ann.RequestMsgWithContext(brief(t), nats.NewMsg("tombolo.command.acme.template.create")); err != nil {
		t.Errorf("who was connected: %v", err)
	}
}

// TestConnect: within the process as over the network, and no secret in an error.
func TestConnect(t *testing.T) {
	p := newPlace(t)
	p.listen(t, "tombolo.command.>")
	conn, err := bus.Connect("", p.people["ann"].seed, p.server.InProcess())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.RequestMsgWithContext(brief(t), nats.NewMsg("tombolo.command.acme.template.create")); err != nil {
		t.Error(err)
	}
	if _, err := conn.RequestMsgWithContext(brief(t), nats.NewMsg("tombolo.inbox.acme.template.create")); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("with nobody there: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := conn.RequestMsgWithContext(ended, nats.NewMsg("tombolo.command.acme.template.create")); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	accountSeed, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	for _, seed := range []string{"", "SUACSECRET", string(accountSeed)} {
		_, err := bus.Connect(p.server.URL(), seed)
		if e := (*bus.Error)(nil); !errors.As(err, &e) || e.Code != bus.BadOptions || seed != "" && strings.Contains(err.Error(), seed) {
			t.Errorf("a seed that is none: %v", err)
		}
	}
	if _, err := bus.Connect(p.server.URL(), stranger(t).seed); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a stranger: %v", err)
	}
}

// TestTLS: with it there is nothing in the clear over the network, and the
// process itself still connects.
func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	users := &directory{users: map[string]bus.User{}}
	ann := users.add(t, bus.User{Account: "acme", User: "ann", Role: events.Operator})
	s, err := bus.Embedded(bus.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Sync: bus.SyncLazy, Users: users, Log: slog.New(slog.DiscardHandler),
		TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	trusted := x509.NewCertPool()
	trusted.AddCert(leaf)
	conn, err := bus.Connect(s.URL(), ann.seed, nats.Secure(&tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS13}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if state, err := conn.TLSConnectionState(); err != nil || state.Version != tls.VersionTLS13 {
		t.Errorf("the connection is not by TLS 1.3: %v", err)
	}
	core, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	core.Close()
	if conn, err := bus.Connect(s.URL(), ann.seed, nats.Secure(&tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13})); err == nil {
		conn.Close()
		t.Error("a client is content with any certificate")
	}
	clear := dial(t, s.URL())
	if answer := clear.connect(map[string]any{"nkey": ann.public, "sig": sign(t, ann.seed, clear.nonce)}); answer == "PONG" {
		t.Error("a client in the clear is let in")
	}
}
