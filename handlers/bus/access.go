package bus

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/events"
)

// User is who holds a key. Account, User and Region are tokens of the bus.
type User struct {
	Account events.AccountID
	User    events.UserID
	Role    events.Role
	Region  events.RegionID // agents only
}

// Users knows who may connect. It is asked at every connection, from many
// goroutines, and must answer from memory.
type Users interface {
	// ByNKey finds the user with this public NATS user key.
	ByNKey(public string) (User, bool)
}

// gate decides who connects, to which account, with which permissions. There
// is one kind of credential: an nkey that signs the server's nonce.
type gate struct {
	users Users // nil: nobody but the control plane
	core  string
	log   *slog.Logger
	nats  *server.Server // set before the server starts
	house *house
}

// Check is nats-server's question whether the client may stay. It also comes
// for every further CONNECT of a connection.
func (g *gate) Check(c server.ClientAuthentication) bool {
	if err := g.admit(c); err != nil {
		g.log.Warn("a connection is refused", "from", fmt.Sprint(c.RemoteAddress()), "key", c.GetOpts().Nkey, "why", err)
		return false
	}
	return true
}

func (g *gate) admit(c server.ClientAuthentication) error {
	o := c.GetOpts()
	switch {
	case c.Kind() != server.CLIENT:
		return errors.New("it is not a client")
	// Nats-Request-Info names the nkey before any other credential, so an nkey
	// beside a password would be taken for the user without being proven. A JWT
	// is no danger: without operators the server drops it before it asks here.
	case o.Username != "" || o.Password != "" || o.Token != "":
		return errors.New("it gives a user name, password or token: only an nkey counts, and nothing beside it")
	case o.Nkey == "":
		return errors.New("it gives no nkey")
	}
	if err := proven(o.Nkey, o.Sig, c.GetNonce()); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(o.Nkey), []byte(g.core)) == 1 {
		core, err := g.nats.LookupAccount(Core)
		if err != nil {
			return err
		}
		c.RegisterUser(&server.User{Account: core})
		return nil
	}
	if g.users == nil {
		return errors.New("nobody but the control plane may connect")
	}
	u, ok := g.users.ByNKey(o.Nkey)
	if !ok {
		return errors.New("nobody is known by this key")
	}
	granted, err := permissions(u, o.Nkey)
	if err != nil {
		return err
	}
	account, err := g.house.account(u.Account)
	if err != nil {
		return err
	}
	c.RegisterUser(&server.User{Account: account, Permissions: granted})
	return nil
}

// proven checks that whoever connects holds the key: the signature is of the
// nonce that this connection was given.
func proven(public, signature string, nonce []byte) error {
	if len(nonce) == 0 || !nkeys.IsValidPublicUserKey(public) {
		return errors.New("the nkey is not a user's")
	}
	sig, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil { // clients differ; nats-server takes both as well
		if sig, err = base64.StdEncoding.DecodeString(signature); err != nil {
			return errors.New("the signature is not base64")
		}
	}
	key, err := nkeys.FromPublicKey(public)
	if err != nil {
		return err
	}
	if err := key.Verify(nonce, sig); err != nil {
		return errors.New("the signature is not the key's")
	}
	return nil
}

// Disconnect ends all connections of the user with this public key, and says
// how many there were. A user who is taken out of Users first does not come back.
func (s *Server) Disconnect(public string) (int, error) {
	if public == "" {
		return 0, errors.New("there is no key to disconnect")
	}
	// One look is enough: a connection that is being admitted has its key set
	// before Users is asked, so it is listed, or asks after the removal.
	open, err := s.nats.Connz(&server.ConnzOptions{Username: true, User: public, State: server.ConnOpen, Limit: math.MaxInt32})
	if err != nil {
		return 0, fmt.Errorf("list the connections of %s: %w", public, err)
	}
	var n int
	for _, c := range open.Conns {
		if s.nats.DisconnectClientByID(c.Cid) == nil { // else it has just gone by itself
			n++
		}
	}
	return n, nil
}
