package events

// KindOperation: everything that one command set in motion. It holds only what
// people ask of it and its result; the tree of its parts is a projection.
const KindOperation Kind = "operation"

// OperationEvent is a fact about an operation.
type OperationEvent interface {
	Event
	ofOperation()
}

type inOperation struct{}

func (inOperation) ofOperation() {}

// CancelAsked: what is not finished is to be undone.
type CancelAsked struct{ inOperation }

// EventType is the wire name.
func (CancelAsked) EventType() Type { return "operation.cancel-asked" }

// RetryAsked: what failed is to be tried again, in one region or in all.
type RetryAsked struct {
	inOperation
	Region  RegionID `json:"region,omitempty"`
	Attempt int      `json:"attempt"`
}

// EventType is the wire name.
func (RetryAsked) EventType() Type { return "operation.retry-asked" }

// Outcome is how an operation ended.
type Outcome string

// The outcomes.
const (
	Succeeded  Outcome = "succeeded"
	Partly     Outcome = "partly-succeeded" // some regions failed; each says why
	RolledBack Outcome = "failed"           // and everything is as before
	LeftBehind Outcome = "failed-not-undone"
	Cancelled  Outcome = "cancelled"
)

// OperationFinished: nothing more will happen by itself.
type OperationFinished struct {
	inOperation
	Outcome Outcome `json:"outcome"`
	Cause   *Cause  `json:"cause,omitempty"`
}

// EventType is the wire name.
func (OperationFinished) EventType() Type { return "operation.finished" }
