package ovf

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
)

// checkSigner says whether OVF tools can check what the key signs: they do it as "openssl dgst -verify" does.
func checkSigner(signer crypto.Signer, chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return refuse(CodeSignerUnusable, "the signer's certificate is missing")
	}
	var same bool
	switch key := signer.Public().(type) {
	case *rsa.PublicKey:
		same = key.Equal(chain[0].PublicKey)
	case *ecdsa.PublicKey:
		same = key.Equal(chain[0].PublicKey)
	default:
		return refuse(CodeSignerUnusable, "a key of type %T: OVF tools check RSA and ECDSA", key)
	}
	if !same {
		return refuse(CodeSignerUnusable, "the first certificate is not that of the signer's key")
	}
	return nil
}

// certificate makes a .cert file: the signature of the manifest, then the certificates in PEM (DSP0243 5.1).
func certificate(manifestName string, manifest []byte, signer crypto.Signer, chain []*x509.Certificate) ([]byte, error) {
	sum := sha256.Sum256(manifest)
	signature, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	out := fmt.Appendf(nil, "SHA256(%s)= %x\n", manifestName, signature)
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out, nil
}
