package trust

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/transfer"
)

// Local says whether an address, host or host:port, is on loopback. What is not
// is reached by TLS only.
func Local(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// URL is where HTTP at the address is: https where it is not on loopback.
func URL(address string) string {
	if Local(address) {
		return "http://" + address
	}
	return "https://" + address
}

// Control reads the control plane's certificate kept in dir, or signs one there,
// for these names and addresses of its host.
func (a *Authority) Control(dir string, names []string) (tls.Certificate, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Tombolo control plane"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	pair, err := a.kept(filepath.Join(dir, "control"), func(c *x509.Certificate) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return c.VerifyHostname(n) != nil })
	}, template)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("the control plane's certificate: %w", err)
	}
	return pair, nil
}

// ToControl is how to reach a control plane whose certificate the authority signed.
func ToControl(authority *x509.CertPool) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority}
}

// ToRegions is how to reach regions that the authority signed. A region's
// certificate names the region, not its host: an agent may come up anywhere, and
// tells its address over the bus.
func ToRegions(authority *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Only the comparison with the host's name is left out; the rest is below.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: authority, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return err
			}
			if !slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool { return *u == *transfer.RegionURI(strings.TrimPrefix(u.Path, "/")) }) {
				return errors.New("the certificate is not a region's")
			}
			return nil
		},
	}
}

// Reach is how HTTP requests get to an installation: its control plane, at the
// host of this base URL, and its regions, at all others. An authority of nil
// leaves TLS to the system's certificates.
func Reach(control string, authority *x509.CertPool) (http.RoundTripper, error) {
	at, err := url.Parse(control)
	if err != nil {
		return nil, err
	}
	if authority == nil {
		return http.DefaultTransport, nil
	}
	to := func(c *tls.Config) *http.Transport {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = c
		return t
	}
	return &reach{at.Host, to(ToControl(authority)), to(ToRegions(authority))}, nil
}

type reach struct {
	host             string
	control, regions *http.Transport
}

func (r *reach) RoundTrip(q *http.Request) (*http.Response, error) {
	if q.URL.Host == r.host {
		return r.control.RoundTrip(q)
	}
	return r.regions.RoundTrip(q)
}

// CloseIdleConnections is for http.Client.
func (r *reach) CloseIdleConnections() {
	r.control.CloseIdleConnections()
	r.regions.CloseIdleConnections()
}
