package documents

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"sync"

	"github.com/tombolo-vdc/tombolo/events"
)

// Memory is a Store in memory, for tests.
type Memory struct {
	key  ed25519.PrivateKey
	mu   sync.Mutex
	docs map[events.Digest][]byte
}

var _ Store = (*Memory)(nil)

// NewMemory makes an empty store that signs with the key.
func NewMemory(key ed25519.PrivateKey) *Memory {
	return &Memory{key: key, docs: map[events.Digest][]byte{}}
}

// Put stores the document.
func (m *Memory) Put(ctx context.Context, document []byte) (events.Digest, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := admissible(document); err != nil {
		return "", err
	}
	digest := events.DigestOf(document)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.docs[digest] = bytes.Clone(document)
	return digest, nil
}

// Get gives the document.
func (m *Memory) Get(ctx context.Context, digest events.Digest) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := addressed(digest); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	document, ok := m.docs[digest]
	if !ok {
		return nil, unknown(digest)
	}
	return checked(digest, bytes.Clone(document))
}

// Signature gives the signature beside the document.
func (m *Memory) Signature(ctx context.Context, digest events.Digest) ([]byte, error) {
	if _, err := m.Get(ctx, digest); err != nil {
		return nil, err
	}
	return Sign(m.key, digest), nil
}
