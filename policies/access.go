package policies

import (
	_ "embed"
	"strings"
)

//go:embed builtin/access.cel
var accessSource string

// AccessInput is what the access policy judges: who wants to do what, on whose
// behalf, where.
type AccessInput struct {
	Actor   Actor  `cel:"actor" json:"actor"`
	Account string `cel:"account" json:"account"` // on whose behalf; "_" is nobody's
	Kind    string `cel:"kind" json:"kind"`       // of the aggregate
	Verb    string `cel:"verb" json:"verb"`
	Region  string `cel:"region" json:"region"` // that it concerns; "_" is none
}

// Actor is the sender, as the directory of users knows it.
type Actor struct {
	Account string `cel:"account" json:"account"`
	User    string `cel:"user" json:"user"`
	Role    string `cel:"role" json:"role"`
	Region  string `cel:"region" json:"region,omitempty"` // agents only
	// Permissions are the commands that a member may send, with a space before and behind each.
	Permissions string `cel:"permissions" json:"permissions,omitempty"`
}

// Granted writes permissions as the policy reads them.
func Granted(permissions []string) string {
	if len(permissions) == 0 {
		return ""
	}
	return " " + strings.Join(permissions, " ") + " "
}

// Access compiles the built-in access policy.
func Access() (*Policy[AccessInput], error) { return Compile[AccessInput]("access", accessSource) }
