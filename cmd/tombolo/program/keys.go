package program

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/events"
)

// key is one user's secrets, in a file of its own that only its owner can read.
// What the journal learns of it are the public key and the token's digest.
type key struct {
	Account events.AccountID `json:"account"`
	User    events.UserID    `json:"user"`
	Role    events.Role      `json:"role"`
	Region  events.RegionID  `json:"region,omitempty"`
	NKey    string           `json:"nkey"`
	Seed    string           `json:"seed"`
	Token   string           `json:"token"`
}

// keyOf reads a user's key from dir, or makes one. A file that cannot be read is
// an error: a new key would lock out whoever has the old one.
func keyOf(dir string, want key) (key, error) {
	name := string(want.Account) + "-" + string(want.User) + ".json"
	if want.Account == events.None {
		name = string(want.User) + ".json"
	}
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		var k key
		if err := json.Unmarshal(b, &k); err != nil {
			return key{}, fmt.Errorf("the key %s cannot be read: %w", path, err)
		}
		if k.Account != want.Account || k.User != want.User || k.Token == "" || k.Seed == "" {
			return key{}, fmt.Errorf("the key %s is not that of user %s in account %s", path, want.User, want.Account)
		}
		return k, nil
	case !errors.Is(err, fs.ErrNotExist):
		return key{}, err
	}
	pair, err := nkeys.CreateUser()
	if err != nil {
		return key{}, err
	}
	defer pair.Wipe()
	seed, err := pair.Seed()
	if err != nil {
		return key{}, err
	}
	if want.NKey, err = pair.PublicKey(); err != nil {
		return key{}, err
	}
	want.Seed, want.Token = string(seed), NewToken()
	if b, err = json.MarshalIndent(want, "", "  "); err != nil {
		return key{}, err
	}
	return want, contexts.WritePrivate(path, append(b, '\n'))
}

// NewToken is a bearer token: 256 random bits.
func NewToken() string {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return "tmb_" + hex.EncodeToString(b[:])
}
