package events

import (
	"fmt"
	"strings"
)

// Kind is a kind of aggregate, a token of the subject.
type Kind string

// Aggregate names one aggregate, and with it the one subject that its events
// are stored under. Account and region are those of its birth and never change.
type Aggregate struct {
	Account AccountID // None for regions, pools, policies and numbers
	Region  RegionID  // None where it belongs to no region
	Kind    Kind
	ID      string
}

// SubjectPrefix is what every event's subject starts with.
const SubjectPrefix = "tombolo.events."

// Subject is tombolo.events.<account>.<region>.<kind>.<id>.
func (a Aggregate) Subject() string {
	return SubjectPrefix + string(a.Account) + "." + string(a.Region) + "." + string(a.Kind) + "." + a.ID
}

// String is the subject.
func (a Aggregate) String() string { return a.Subject() }

// Validate reports the first part of the name that the bus could not carry.
func (a Aggregate) Validate() error {
	for _, part := range []struct{ what, token string }{
		{"account", string(a.Account)}, {"region", string(a.Region)}, {"kind", string(a.Kind)}, {"id", a.ID},
	} {
		if part.token == None && (part.what == "account" || part.what == "region") {
			continue
		}
		if !IsToken(part.token) {
			return fmt.Errorf("aggregate %s: %q is not a token ([a-z0-9-]+, at most 63 characters)", part.what, part.token)
		}
	}
	return nil
}

// ParseSubject is the inverse of Subject.
func ParseSubject(subject string) (Aggregate, error) {
	rest, ours := strings.CutPrefix(subject, SubjectPrefix)
	account, rest, _ := strings.Cut(rest, ".")
	region, rest, _ := strings.Cut(rest, ".")
	kind, id, four := strings.Cut(rest, ".")
	if !ours || !four || strings.Contains(id, ".") {
		return Aggregate{}, fmt.Errorf("subject %q is not %s<account>.<region>.<kind>.<id>", subject, SubjectPrefix)
	}
	a := Aggregate{AccountID(account), RegionID(region), Kind(kind), id}
	return a, a.Validate()
}

// IsToken reports whether s can stand in a subject: [a-z0-9-]+, at most 63.
func IsToken(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
