// Package trust makes and keeps what regions prove themselves with to each
// other: one authority for an installation, and a certificate for each region
// whose URI names it (tombolo://region/<id>).
package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/transfer"
)

// Authority signs the regions' certificates.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// Lifetimes of certificates. Regions' are renewed at every enrolment.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	regionLife    = 2 * 365 * 24 * time.Hour
)

// OpenAuthority reads the authority kept in dir, or makes one there.
func OpenAuthority(dir string) (*Authority, error) {
	certPath, keyPath := filepath.Join(dir, "authority.pem"), filepath.Join(dir, "authority.key")
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeAuthority(certPath, keyPath); err != nil {
			return nil, fmt.Errorf("make the regions' authority: %w", err)
		}
		pair, err = tls.LoadX509KeyPair(certPath, keyPath)
	}
	if err != nil {
		return nil, fmt.Errorf("read the regions' authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read the regions' authority: %s is not an ECDSA key", keyPath)
	}
	raw, err := os.ReadFile(certPath)
	if err != nil {
		return nil, err
	}
	return &Authority{pair.Leaf, key, raw}, nil
}

func makeAuthority(certPath, keyPath string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Tombolo regions"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, MaxPathLenZero: true,
	}
	der, err := sign(template, template, &key.PublicKey, key, authorityLife)
	if err != nil {
		return err
	}
	return writePair(certPath, keyPath, der, key)
}

// Pool holds the authority, for verifying others.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// PEM is the authority's certificate, for a region on another host.
func (a *Authority) PEM() []byte { return a.pem }

// Region reads the region's certificate kept in dir, or signs one there.
func (a *Authority) Region(dir string, region events.RegionID) (tls.Certificate, error) {
	pair, err := a.kept(filepath.Join(dir, "region-"+string(region)), func(c *x509.Certificate) bool { return names(c, region) }, &x509.Certificate{
		Subject:     pkix.Name{CommonName: string(region)},
		URIs:        []*url.URL{transfer.RegionURI(string(region))},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the certificate of %s: %w", region, err)
	}
	return pair, nil
}

func names(c *x509.Certificate, region events.RegionID) bool {
	return slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return *u == *transfer.RegionURI(string(region)) })
}

// kept reads the pair at path.pem and path.key. Where there is none, or it is not
// this authority's, does not fit, or has less than a tenth of its life before it,
// the template is signed in its place.
func (a *Authority) kept(path string, fits func(*x509.Certificate) bool, template *x509.Certificate) (tls.Certificate, error) {
	certPath, keyPath := path+".pem", path+".key"
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err == nil && pair.Leaf.CheckSignatureFrom(a.certificate) == nil && time.Until(pair.Leaf.NotAfter) > regionLife/10 && fits(pair.Leaf) {
		return pair, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return tls.Certificate{}, fmt.Errorf("read it: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := sign(template, a.certificate, &key.PublicKey, a.key, regionLife)
	if err == nil {
		err = writePair(certPath, keyPath, der, key)
	}
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign it: %w", err)
	}
	return tls.LoadX509KeyPair(certPath, keyPath)
}

// Error is why a certificate or a ticket does not prove what it should.
type Error = fault.Error[Code]

// Code of an Error.
type Code string

// Codes of an Error about a certificate.
const (
	CertificateElsewhere Code = "certificate-elsewhere"
	CertificateExpired   Code = "certificate-expired"
	CertificateUntrusted Code = "certificate-untrusted"
)

// CheckRegion says whether others will believe a region's certificate at this
// time: signed by the authority, for this region, neither over nor still to
// begin. Errors: *Error.
func CheckRegion(pair tls.Certificate, authority *x509.CertPool, region events.RegionID, now time.Time) error {
	c := pair.Leaf
	if !names(c, region) {
		return fault.New(CertificateElsewhere, "the certificate is %s's, and does not name region %s", c.Subject.CommonName, region)
	}
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fault.New(CertificateExpired, "the certificate of %s is good from %s to %s, and here it is %s", region,
			c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: authority, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		return fault.Wrap(CertificateUntrusted, err, "the certificate of %s is not the installation's authority's", region)
	}
	return nil
}

// EndsSoon is how long before its end a region's certificate is spoken of; an
// enrolment gives a new one by then.
const EndsSoon = 30 * 24 * time.Hour

func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, signer *ecdsa.PrivateKey, life time.Duration) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour) // other hosts' clocks may be behind
	template.NotAfter = time.Now().Add(life)
	return x509.CreateCertificate(rand.Reader, template, parent, public, signer)
}

func writePair(certPath, keyPath string, der []byte, key *ecdsa.PrivateKey) error {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// Without a certificate there is no pair, whatever is left when this ends half
	// way: the old one goes first, and the new one comes last and whole.
	if err := os.Remove(certPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	begun := certPath + ".begun"
	if err := os.WriteFile(begun, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return err
	}
	return os.Rename(begun, certPath)
}
