package ovf

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	_ "crypto/sha1" // the digests of older packages
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"hash"
	"regexp"
	"strings"
	"time"
)

// digest is a line of a manifest: "SHA256(disk.vmdk)= 1f…" (DSP0243 6.2, 5.1 in 1.0).
type digest struct {
	algorithm crypto.Hash
	file      string
	value     []byte
}

var (
	manifestLine = regexp.MustCompile(`^\s*(SHA1|SHA224|SHA256|SHA384|SHA512)\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)\s*$`)
)

// hashNamed gives the algorithm of a manifest's name for it.
func hashNamed(name string) crypto.Hash {
	switch name {
	case "SHA1":
		return crypto.SHA1
	case "SHA224":
		return crypto.SHA224
	case "SHA256":
		return crypto.SHA256
	case "SHA384":
		return crypto.SHA384
	}
	return crypto.SHA512
}

// parseManifest reads a .mf file.
func parseManifest(data []byte) (map[string]digest, error) {
	out := map[string]digest{}
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xEF\xBB\xBF"))))
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		d, err := parseDigest(lines.Text())
		if err != nil {
			return nil, refuseFor(err, CodeManifest, "line %d of the manifest", n)
		}
		name, err := localName(d.file)
		if err != nil {
			return nil, refuseFor(err, CodeManifest, "line %d of the manifest", n)
		}
		d.file = name
		if _, twice := out[name]; twice {
			return nil, refuse(CodeManifest, "the manifest lists %q twice", name)
		}
		out[name] = d
	}
	if err := lines.Err(); err != nil {
		return nil, refuseFor(err, CodeManifest, "the manifest cannot be read")
	}
	if len(out) == 0 {
		return nil, refuse(CodeManifest, "the manifest lists no file")
	}
	return out, nil
}

func parseDigest(line string) (digest, error) {
	m := manifestLine.FindStringSubmatch(line)
	if m == nil {
		return digest{}, refuse(CodeManifest, "%.80q is not of the form SHA256(file)= digest", line)
	}
	value, err := hex.DecodeString(m[3])
	if err != nil {
		return digest{}, refuseFor(err, CodeManifest, "%.80q", line)
	}
	return digest{hashNamed(m[1]), strings.TrimSpace(m[2]), value}, nil
}

// newHash is the hash that a file's line asks for; SHA-256 for a file that has none.
func newHash(lines map[string]digest, file string) hash.Hash {
	if d, ok := lines[file]; ok {
		return d.algorithm.New()
	}
	return crypto.SHA256.New()
}

// Signer is who signed a package's manifest.
type Signer struct {
	Subject     string
	Issuer      string
	Fingerprint string // SHA-256 of the certificate, in hexadecimal
	NotBefore   time.Time
	NotAfter    time.Time
	Trusted     bool // by Options.Roots, which were given
}

// verifyCertificate checks a .cert file: the signed digest of the manifest in its first line, followed by the signer's
// X.509 certificate and those that vouch for it, in PEM (DSP0243 6.2, 5.1 in 1.0). The signature is that of
// "openssl dgst -sha256 -sign".
func verifyCertificate(cert, manifest []byte, manifestName string, roots *x509.CertPool, now time.Time) (*Signer, error) {
	first, rest, _ := bytes.Cut(bytes.TrimLeft(cert, "\xEF\xBB\xBF \r\n"), []byte("\n"))
	d, err := parseDigest(string(first))
	if err != nil {
		return nil, refuseFor(err, CodeCertificate, "the certificate file does not begin with the manifest's signature")
	}
	if d.file != manifestName {
		return nil, refuse(CodeCertificate, "the certificate is for %q, the manifest is %q", d.file, manifestName)
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(rest); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, refuseFor(err, CodeCertificate, "the certificate cannot be read")
		}
		if chain = append(chain, c); len(chain) > 16 {
			return nil, refuse(CodeCertificate, "more than 16 certificates")
		}
	}
	if len(chain) == 0 {
		return nil, refuse(CodeCertificate, "the certificate file holds no X.509 certificate")
	}
	h := d.algorithm.New()
	h.Write(manifest)
	sum := h.Sum(nil)
	valid := false
	switch key := chain[0].PublicKey.(type) {
	case *rsa.PublicKey:
		valid = rsa.VerifyPKCS1v15(key, d.algorithm, sum, d.value) == nil
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(key, sum, d.value)
	default:
		return nil, refuse(CodeCertificate, "a key of type %s: RSA and ECDSA are known", chain[0].PublicKeyAlgorithm)
	}
	if !valid {
		return nil, refuse(CodeSignature, "the signature of %s is not that of the manifest: the package was changed after %s signed it", chain[0].Subject, chain[0].Subject)
	}
	s := &Signer{Subject: chain[0].Subject.String(), Issuer: chain[0].Issuer.String(), Fingerprint: fingerprint(chain[0]),
		NotBefore: chain[0].NotBefore, NotAfter: chain[0].NotAfter}
	if roots != nil {
		between := x509.NewCertPool()
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			return nil, refuseFor(err, CodeSignerUntrusted, "the package is signed by %s, whom no given root vouches for", chain[0].Subject)
		}
		s.Trusted = true
	}
	return s, nil
}

func fingerprint(c *x509.Certificate) string {
	h := crypto.SHA256.New()
	h.Write(c.Raw)
	return hex.EncodeToString(h.Sum(nil))
}
