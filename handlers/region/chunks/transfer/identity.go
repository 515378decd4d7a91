// Package transfer moves chunks between regions: a Server hands out what a region's store holds, a Puller fetches what
// another lacks, from several regions at once.
//
// The protocol is HTTP/1.1 over TLS 1.3, both sides with certificates of the deployment's own authority. Who a peer is
// says the one URI in its certificate, tombolo://region/<id>; names and addresses of hosts say nothing.
//
//	GET  /v1/indexes/<digest>   the encoded disk index (chunks.DiskIndex)
//	POST /v1/chunks             body: ids of 32 bytes, at most MaxBatch; answer: for each id, in order, a length in 4
//	                            bytes, big-endian, and so many bytes of record (chunks.Record); 0 where it is not there
//
// Errors are problem+json (RFC 9457) with a member "code".
package transfer

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"regexp"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// The codes of transfers, beside those of package chunks.
const (
	TLSInvalid      chunks.Code = "tls-invalid"      // the configuration lacks an authority or a region's certificate
	PeerRefused     chunks.Code = "peer-refused"     // the other side is not who it should be, or does not want us
	SourceInvalid   chunks.Code = "source-invalid"   // no usable source was named
	SourceFailed    chunks.Code = "source-failed"    // a connection or an answer broke
	SourceBad       chunks.Code = "source-bad"       // a source sent bytes that are not what it said
	TransferStalled chunks.Code = "transfer-stalled" // no byte came for the time that was allowed
	TransferFailed  chunks.Code = "transfer-failed"  // no source is left; the cause has the last failure of each
	RequestInvalid  chunks.Code = "request-invalid"
	ServerBusy      chunks.Code = "server-busy"
	ServerFailed    chunks.Code = "server-failed"
)

var regionID = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

// RegionURI is the name of a region in a certificate: a URI in its subject alternative names.
func RegionURI(region string) *url.URL {
	return &url.URL{Scheme: "tombolo", Host: "region", Path: "/" + region}
}

// regionOf gives the region that a certificate names. Error: peer-refused.
func regionOf(c *x509.Certificate) (string, error) {
	if len(c.URIs) != 1 {
		return "", chunks.Errorf(PeerRefused, "the certificate of %q names %d URIs, one is wanted", c.Subject, len(c.URIs))
	}
	u := c.URIs[0]
	if u.Scheme != "tombolo" || u.Host != "region" || len(u.Path) < 2 || !regionID.MatchString(u.Path[1:]) || u.String() != RegionURI(u.Path[1:]).String() {
		return "", chunks.Errorf(PeerRefused, "the certificate of %q names %s, not a region", c.Subject, u)
	}
	return u.Path[1:], nil
}

// checkConfig wants an authority, and that a certificate that is given names the region. Error: tls-invalid.
func checkConfig(c *tls.Config, region string) error {
	if !regionID.MatchString(region) {
		return chunks.Errorf(TLSInvalid, "%q is not a region", region)
	}
	if c == nil || c.RootCAs == nil {
		return chunks.Errorf(TLSInvalid, "the TLS configuration of region %s names no authority (RootCAs)", region)
	}
	if len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetClientCertificate == nil {
		return chunks.Errorf(TLSInvalid, "region %s has no certificate", region)
	}
	for _, cert := range c.Certificates {
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			return chunks.Wrap(TLSInvalid, err, "the certificate of region %s", region)
		}
		if named, err := regionOf(leaf); err != nil || named != region {
			return chunks.Wrap(TLSInvalid, err, "the certificate of region %s names %q", region, named)
		}
	}
	return nil
}

// verifyPeer checks the chain up to the authorities and gives the region. Error: peer-refused.
func verifyPeer(c *tls.Config, state tls.ConnectionState, usage x509.ExtKeyUsage) (string, error) {
	if len(state.PeerCertificates) == 0 {
		return "", chunks.Errorf(PeerRefused, "the peer has no certificate")
	}
	opts := x509.VerifyOptions{Roots: c.RootCAs, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	if c.Time != nil {
		opts.CurrentTime = c.Time()
	}
	for _, between := range state.PeerCertificates[1:] {
		opts.Intermediates.AddCert(between)
	}
	if _, err := state.PeerCertificates[0].Verify(opts); err != nil {
		return "", chunks.Wrap(PeerRefused, err, "the peer's certificate")
	}
	return regionOf(state.PeerCertificates[0])
}

// clientConfig is for a connection to one region.
func clientConfig(base *tls.Config, region string) *tls.Config {
	c := base.Clone()
	c.MinVersion = tls.VersionTLS13
	c.NextProtos = []string{"http/1.1"}
	c.ClientSessionCache = nil
	// Go's own check wants a host name. verifyPeer replaces it: the same chain, and a region instead of a host.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(state tls.ConnectionState) error {
		named, err := verifyPeer(base, state, x509.ExtKeyUsageServerAuth)
		if err == nil && named != region {
			err = chunks.Errorf(PeerRefused, "the peer is region %s, not %s", named, region)
		}
		return err
	}
	return c
}

// serverConfig asks every client for its certificate; peer hears who it is, and may refuse.
func serverConfig(base *tls.Config, peer func(hello *tls.ClientHelloInfo, region string) error) *tls.Config {
	c := base.Clone()
	c.MinVersion = tls.VersionTLS13
	c.NextProtos = []string{"http/1.1"}
	c.SessionTicketsDisabled = true
	c.ClientAuth = tls.RequireAnyClientCert
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		own := c.Clone()
		own.GetConfigForClient = nil
		own.VerifyConnection = func(state tls.ConnectionState) error {
			region, err := verifyPeer(base, state, x509.ExtKeyUsageClientAuth)
			if err != nil {
				return err
			}
			return peer(hello, region)
		}
		return own, nil
	}
	return c
}
