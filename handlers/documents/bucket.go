package documents

import (
	"context"
	"crypto/ed25519"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
)

// BucketName is the key-value bucket that holds the documents.
const BucketName = "tombolo-documents"

// signatureSuffix makes a document's key that of its signature.
const signatureSuffix = ".signature"

// Bucket is a Store in a JetStream key-value bucket. A document's key is its
// digest in hexadecimal. Nothing is ever deleted or overwritten.
type Bucket struct {
	kv  jetstream.KeyValue
	key ed25519.PrivateKey
}

var _ Store = (*Bucket)(nil)

// Open opens the bucket, and creates it with so many replicas (0 means 1) if it
// is not there. It signs what it stores with the key. The connection is the
// caller's to close.
func Open(ctx context.Context, conn *nats.Conn, key ed25519.PrivateKey, replicas int) (*Bucket, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, &Error{Invalid, "the signing key is not an Ed25519 private key", nil}
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, &Error{Failed, "open the bucket " + BucketName, err}
	}
	kv, err := js.KeyValue(ctx, BucketName)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: BucketName, Description: "Graphs and manifests by digest, with signatures",
			History: 1, MaxValueSize: MaxBytes + 4<<10, // the limit counts headers, too
			Storage: jetstream.FileStorage, Replicas: max(replicas, 1),
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // another process was faster
			kv, err = js.KeyValue(ctx, BucketName)
		}
	}
	if err != nil {
		return nil, &Error{Failed, "open the bucket " + BucketName, err}
	}
	return &Bucket{kv: kv, key: key}, nil
}

// Put stores the document, then its signature. What is there already is left as
// it is, so that a put that was cut short is finished by the next.
func (b *Bucket) Put(ctx context.Context, document []byte) (events.Digest, error) {
	if err := admissible(document); err != nil {
		return "", err
	}
	digest := events.DigestOf(document)
	if err := b.create(ctx, digest.Hex(), document); err != nil {
		return "", err
	}
	return digest, b.create(ctx, digest.Hex()+signatureSuffix, Sign(b.key, digest))
}

func (b *Bucket) create(ctx context.Context, key string, value []byte) error {
	if _, err := b.kv.Create(ctx, key, value); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return &Error{Failed, "store " + key, err}
	}
	return nil
}

// Get gives the document.
func (b *Bucket) Get(ctx context.Context, digest events.Digest) ([]byte, error) {
	document, err := b.get(ctx, digest, "")
	if err != nil {
		return nil, err
	}
	return checked(digest, document)
}

// Signature gives the signature beside the document.
func (b *Bucket) Signature(ctx context.Context, digest events.Digest) ([]byte, error) {
	return b.get(ctx, digest, signatureSuffix)
}

func (b *Bucket) get(ctx context.Context, digest events.Digest, suffix string) ([]byte, error) {
	if err := addressed(digest); err != nil {
		return nil, err
	}
	entry, err := b.kv.Get(ctx, digest.Hex()+suffix)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, unknown(digest)
	case err != nil:
		return nil, &Error{Failed, "read " + digest.Hex() + suffix, err}
	}
	return entry.Value(), nil
}
