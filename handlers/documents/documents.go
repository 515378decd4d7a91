// Package documents keeps what is too large for an event: graphs and manifests,
// addressed by the digest of their canonical JSON, kept for ever, with the
// control plane's signature beside each. A Store is in memory, on the bus, or
// at the other end of the bus (agents).
package documents

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gowebpki/jcs"

	"github.com/tombolo-vdc/tombolo/events"
)

// MaxBytes is the most bytes one document may have: with its headers it stays
// under the bus's largest message, 1 MiB.
const MaxBytes = 900 << 10

// Code is an error's stable code.
type Code string

// The codes of an Error.
const (
	Unknown  Code = "document-unknown"   // no such document was ever stored here
	TooLarge Code = "document-too-large" // more than MaxBytes
	Damaged  Code = "document-damaged"   // what is stored does not match its digest or signature
	Invalid  Code = "document-invalid"   // a digest or a document that cannot be one
	Failed   Code = "document-store-failed"
)

// Error is what a Store fails with, unless the transport failed or the context ended.
type Error struct {
	Code   Code
	Detail string
	Cause  error // may be nil
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Detail + ": " + e.Cause.Error() + " (" + string(e.Code) + ")"
	}
	return e.Detail + " (" + string(e.Code) + ")"
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// CodeOf finds the code of an Error in err; empty if there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// Store keeps documents. All methods may be called from many goroutines.
type Store interface {
	// Put stores the document and its signature and gives its digest. Storing
	// it again changes nothing. Errors: Invalid (empty), TooLarge.
	Put(ctx context.Context, document []byte) (events.Digest, error)
	// Get gives the document, checked against the digest. Errors: Invalid (not a
	// digest), Unknown, Damaged.
	Get(ctx context.Context, digest events.Digest) ([]byte, error)
	// Signature gives the signature beside the document; see Verify. Errors: as
	// for Get.
	Signature(ctx context.Context, digest events.Digest) ([]byte, error)
}

// Canonical gives v's canonical JSON (RFC 8785) and its digest. Integers must
// be exact in a float64: below 2^53.
func Canonical(v any) ([]byte, events.Digest, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return nil, "", fmt.Errorf("canonical JSON: %w", err)
	}
	canonical, err := jcs.Transform(plain)
	if err != nil {
		return nil, "", fmt.Errorf("canonical JSON: %w", err)
	}
	return canonical, events.DigestOf(canonical), nil
}

// signed is what a signature is over. The first line keeps it from being taken
// for a signature of anything else.
func signed(digest events.Digest) []byte { return []byte("tombolo-document-1\n" + string(digest)) }

// Sign gives the Ed25519 signature (RFC 8032) that stands beside a document:
// over "tombolo-document-1", a line feed and the digest.
func Sign(key ed25519.PrivateKey, digest events.Digest) []byte {
	return ed25519.Sign(key, signed(digest))
}

// Verify checks a document and its signature against the control plane's public
// key. Errors: Damaged.
func Verify(key ed25519.PublicKey, document, signature []byte) error {
	digest := events.DigestOf(document)
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, signed(digest), signature) {
		return &Error{Damaged, fmt.Sprintf("the signature of document %s is not the control plane's", digest), nil}
	}
	return nil
}

// admissible says why the document cannot be stored.
func admissible(document []byte) error {
	switch {
	case len(document) == 0:
		return &Error{Invalid, "the document is empty", nil}
	case len(document) > MaxBytes:
		return &Error{TooLarge, fmt.Sprintf("the document has %d bytes, at most %d are allowed", len(document), MaxBytes), nil}
	}
	return nil
}

// addressed says why the digest cannot be one.
func addressed(digest events.Digest) error {
	if !digest.Valid() {
		return &Error{Invalid, fmt.Sprintf("%.80q is not a digest: sha256: and 64 hexadecimal digits", string(digest)), nil}
	}
	return nil
}

func unknown(digest events.Digest) error {
	return &Error{Unknown, fmt.Sprintf("there is no document %s", digest), nil}
}

// checked gives the document if it has the digest.
func checked(digest events.Digest, document []byte) ([]byte, error) {
	if have := events.DigestOf(document); have != digest {
		return nil, &Error{Damaged, fmt.Sprintf("document %s is stored with the content of %s", digest, have), nil}
	}
	return document, nil
}
