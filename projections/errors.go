package projections

import "fmt"

// Code is the stable name of a failure, for clients and users.
type Code string

// The codes of this package.
const (
	CodeInUse         Code = "reads-in-use"            // another process, or another Store of this one, has the directory
	CodeFormatUnknown Code = "reads-format-unknown"    // the directory was written by another kind or version of program
	CodeBehind        Code = "reads-behind"            // the position asked for is not reached yet
	CodeBuilding      Code = "projection-building"     // the projection cannot answer before it is built
	CodeUnknown       Code = "projection-unknown"      // no projection of that name is in the set, or in the view
	CodeUndeclared    Code = "projection-undeclared"   // a table is used that its projection does not declare, or from outside
	CodeRowMissing    Code = "row-missing"             // a row that an event changes is not there
	CodeResumeInvalid Code = "resume-invalid"          // the resume token is not one of this question
	CodeOutOfOrder    Code = "position-out-of-order"   // a consumer's commit is not later than its position
	CodeFailed        Code = "projection-feed-stopped" // the feed stopped at an event
	CodeSetBack       Code = "journal-set-back"        // the journal has another event where the feed's last one was

	CodeTemplateUnknown    Code = "template-unknown"    // the account never had the template
	CodeTemplateDeleted    Code = "template-deleted"    // the template was deleted; the error says when
	CodeVersionUnknown     Code = "version-unknown"     // the template has no such version
	CodeVersionGone        Code = "version-gone"        // the version was abandoned or retired; the error says when
	CodeLocationUnknown    Code = "location-unknown"    // no instance was ever at the place
	CodeLocationEmpty      Code = "location-empty"      // the place's region does not hold the active version
	CodeReferenceAmbiguous Code = "reference-ambiguous" // the reference may mean several templates; the error lists them
)

// Error is a failure with a code.
type Error struct {
	Code   Code
	Detail string
	Err    error // what lies beneath; may be nil
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Detail
	}
	return e.Detail + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// ErrorCode is the failure's code; every error type of this package has it.
func (e *Error) ErrorCode() Code { return e.Code }

func fail(code Code, err error, format string, args ...any) error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...), Err: err}
}

// BehindError (CodeBehind) says that the rows have not reached a position.
type BehindError struct {
	Wanted   uint64
	Position uint64 // where the rows are
	Err      error  // why waiting ended: the context's error, or that of a stopped feed; nil if nobody waited
}

func (e *BehindError) Error() string {
	s := fmt.Sprintf("reads are at position %d, %d is wanted", e.Position, e.Wanted)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *BehindError) Unwrap() error { return e.Err }

// ErrorCode is CodeBehind.
func (e *BehindError) ErrorCode() Code { return CodeBehind }

// StoppedError (CodeFailed) says at which event a fold stopped and why. Nothing
// of that event, and nothing after it, is in the rows.
type StoppedError struct {
	Sequence   uint64
	Projection string // whose Apply failed; empty if the stream itself is at fault
	Err        error
}

func (e *StoppedError) Error() string {
	if e.Projection == "" {
		return fmt.Sprintf("stopped at sequence %d: %v", e.Sequence, e.Err)
	}
	return fmt.Sprintf("projection %s stopped at sequence %d: %v", e.Projection, e.Sequence, e.Err)
}

func (e *StoppedError) Unwrap() error { return e.Err }

// ErrorCode is CodeFailed.
func (e *StoppedError) ErrorCode() Code { return CodeFailed }
