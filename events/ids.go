package events

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Ids are typed so that one cannot be passed where another is meant. All of
// them are tokens of the bus: [a-z0-9-]+.
type (
	AccountID     string
	UserID        string
	RegionID      string
	EnvironmentID string
	TemplateID    string // eight digits, "73291467"
	InstanceID    string
	WorkID        string
	OperationID   string
	PoolID        string
	LeaseID       string
	CommandID     string // chosen by whoever commands; at most 64 printable characters
)

// None stands where an aggregate belongs to no account or to no region.
const None = "_"

// Digest is "sha256:" and 64 hexadecimal digits.
type Digest string

// DigestOf is the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Valid reports whether d has the form of a digest.
func (d Digest) Valid() bool {
	const prefix = "sha256:"
	if len(d) != len(prefix)+64 || d[:len(prefix)] != prefix {
		return false
	}
	for _, c := range d[len(prefix):] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Hex is the digest without its prefix, as file names and bus keys carry it.
func (d Digest) Hex() string {
	if !d.Valid() {
		return ""
	}
	return string(d[len("sha256:"):])
}

// namespace is the UUID under which Tombolo derives its ids (drawn once, at
// random; changing it would make every retry of an old command a new one).
var namespace = [16]byte{0x5b, 0x6d, 0x1c, 0x84, 0x90, 0x3e, 0x4f, 0x6a, 0x8d, 0x0b, 0x2e, 0x71, 0xaf, 0x35, 0xc9, 0x12}

// DeriveID gives the id that the command creates in the given role: the UUIDv5
// (RFC 9562, 5.5) of account, command and role. The same command therefore
// makes the same things however often it is sent.
func DeriveID(account AccountID, command CommandID, role string) string {
	h := sha1.New()
	h.Write(namespace[:])
	// Lengths keep ("a","bc") and ("ab","c") apart.
	fmt.Fprintf(h, "%d:%s%d:%s%d:%s", len(account), account, len(command), command, len(role), role)
	var u [16]byte
	copy(u[:], h.Sum(nil))
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	s := hex.EncodeToString(u[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
