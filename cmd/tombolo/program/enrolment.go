package program

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// enrolmentFormat is the version of an enrolment's file.
const enrolmentFormat = 1

// Enrolment is all that a region's agent must know of the installation and prove
// itself with. It holds secrets.
type Enrolment struct {
	Format      int             `json:"format"`
	Region      events.RegionID `json:"region"`
	NATS        string          `json:"nats"`        // URL of the bus
	HTTP        string          `json:"http"`        // base URL of the control plane
	Journal     string          `json:"journal"`     // id of the journal: another one is refused
	Seed        string          `json:"seed"`        // of the agent's nkey
	Signer      []byte          `json:"signer"`      // Ed25519: what the control plane signs manifests with
	Authority   string          `json:"authority"`   // PEM: who signs the regions' certificates
	Certificate string          `json:"certificate"` // PEM: names the region
	Key         string          `json:"key"`         // PEM: of the certificate
}

// ReadEnrolment reads an enrolment from its file. Errors: *Error with
// enrolment-unreadable or enrolment-invalid.
func ReadEnrolment(path string) (Enrolment, error) {
	var e Enrolment
	next := "ask an administrator for a new one: tombolo agent enroll --region R -o FILE"
	b, err := os.ReadFile(path)
	if err != nil {
		return e, &Error{Code: "enrolment-unreadable", Text: fmt.Sprintf("the enrolment cannot be read: %v", err), Next: next}
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, &Error{Code: "enrolment-invalid", Text: fmt.Sprintf("%s is not an enrolment: %v", path, err), Next: next}
	}
	if e.Format != enrolmentFormat {
		return e, &Error{Code: "enrolment-invalid", Text: fmt.Sprintf("%s is of form %d, this program reads %d", path, e.Format, enrolmentFormat), Next: next}
	}
	if !events.IsToken(string(e.Region)) || e.NATS == "" || e.Journal == "" || e.Seed == "" || len(e.Signer) != ed25519.PublicKeySize {
		return e, &Error{Code: "enrolment-invalid", Text: path + " lacks its region, the bus, the journal, the key or whom to believe", Next: next}
	}
	if _, _, err := e.identity(); err != nil {
		return e, &Error{Code: "enrolment-invalid", Text: fmt.Sprintf("%s: %v", path, err), Next: next}
	}
	return e, nil
}

// Write stores the enrolment for its owner alone.
func (e Enrolment) Write(path string) error {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	return contexts.WritePrivate(path, append(b, '\n'))
}

// identity is the region's certificate, and who may have signed others'.
func (e Enrolment) identity() (tls.Certificate, *x509.CertPool, error) {
	certificate, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("the region's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(e.Authority)) {
		return tls.Certificate{}, nil, fmt.Errorf("the authority is not a certificate in PEM")
	}
	return certificate, pool, nil
}

// enrolment gathers what the agent of a region needs. The region's key and
// certificate are made if they are not there yet.
func (p *Program) enrolment(id events.RegionID, k key) (Enrolment, error) {
	certificate, err := p.authority.Region(p.dir("keys"), id)
	if err != nil {
		return Enrolment{}, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		return Enrolment{}, err
	}
	var chain []byte
	for _, der := range certificate.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	at := p.Addresses()
	return Enrolment{Format: enrolmentFormat, Region: id, NATS: at.NATS, HTTP: at.HTTP, Journal: p.journalID, Seed: k.Seed, Signer: p.signer, Authority: string(p.authority.PEM()),
		Certificate: string(chain), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))}, nil
}

// Enrol gives what the agent of a region on another host needs, as JSON; asked
// again, it gives the same key. The caller must have made sure that an
// administrator asks. Errors: region-unknown, region-retired.
func (p *Program) Enrol(ctx context.Context, id events.RegionID) (json.RawMessage, error) {
	v, err := p.feed.Now(projections.Regions{}.Name())
	if err != nil {
		return nil, err
	}
	defer v.Close()
	row, ok, err := projections.Regions{}.Region(v, id)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, aggregates.RefuseAs(aggregates.NotFound, "region-unknown", "there is no region %q", id).WithNext("tombolo region add %s", id)
	case row.State == projections.RegionRetired:
		return nil, aggregates.Refuse("region-retired", "region %s is retired", id)
	}
	k, err := keyOf(p.dir("keys"), agentKey(id))
	if err != nil {
		return nil, err
	}
	if err := p.addUser(ctx, k); err != nil {
		return nil, err
	}
	e, err := p.enrolment(id, k)
	if err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

// agentKey names the key of a region's agent.
func agentKey(id events.RegionID) key {
	return key{Account: events.None, User: events.UserID("agent-" + string(id)), Role: events.Agent, Region: id}
}

// regionDir is where the agent of a region in this process keeps its data.
func (p *Program) regionDir(id events.RegionID) string {
	return filepath.Join(p.dir("regions"), string(id))
}
