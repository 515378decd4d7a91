package events

// KindAccount: a tenant. Subject account its own id, no region. The account
// None is that of the administrators.
const KindAccount Kind = "account"

// AccountEvent is a fact about an account.
type AccountEvent interface {
	Event
	ofAccount()
}

type inAccount struct{}

func (inAccount) ofAccount() {}

// Role is what a user may do, as the access policy reads it.
type Role string

// The roles.
const (
	Administrator Role = "administrator" // everything, everywhere (users of account None)
	Operator      Role = "operator"      // everything within its account
	Member        Role = "member"        // reads within its account, and the commands that its permissions name
	Reader        Role = "reader"        // reads within its account
	Agent         Role = "agent"         // reports of its own region only
)

// AccountCreated: the tenant exists.
type AccountCreated struct {
	inAccount
	Display string `json:"display"`
}

// EventType is the wire name.
func (AccountCreated) EventType() Type { return "account.created" }

// UserAdded: a credential may act for this account. Only public halves and
// digests stand here, never a secret.
type UserAdded struct {
	inAccount
	User   UserID   `json:"user"`
	Role   Role     `json:"role"`
	NKey   string   `json:"nkey"`             // public NATS user key
	Token  Digest   `json:"token"`            // digest of the HTTP bearer token
	Region RegionID `json:"region,omitempty"` // agents only
	// Permissions are the commands, "<kind>.<verb>", that a member may send. Sorted.
	Permissions []string `json:"permissions,omitempty"`
}

// EventType is the wire name.
func (UserAdded) EventType() Type { return "account.user-added" }

// UserRemoved: the credential is void from here on.
type UserRemoved struct {
	inAccount
	User UserID `json:"user"`
}

// EventType is the wire name.
func (UserRemoved) EventType() Type { return "account.user-removed" }
