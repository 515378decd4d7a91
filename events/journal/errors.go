package journal

import (
	"errors"
	"fmt"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
)

// Errors of a journal. The typed errors below carry more and match these.
var (
	// ErrConflict: the aggregate has other events than Expect says; nothing was
	// stored. See ConflictError.
	ErrConflict = errors.New("the aggregate has other events than expected")
	// ErrAmbiguous: whether the event was stored could not be found out before
	// the context ended. Appending the same proposal again is safe.
	ErrAmbiguous = errors.New("whether the event was stored is not known")
	// ErrProposal: the proposal is incomplete or contradicts itself.
	ErrProposal = errors.New("the proposal cannot be stored")
	// ErrFull: the journal's limit is reached and the event is not one of those
	// that finish, undo or release. See FullError.
	ErrFull = errors.New("the journal is full")
	// ErrGap: a sequence is missing. Nothing is ever deleted from the journal,
	// so the store beneath has lost an event; a reader must stop. See GapError.
	ErrGap = errors.New("the journal has a gap")
	// ErrSetBack: the journal has another event where a reader has been: it was
	// restored to an earlier state, and has grown since. See SetBackError.
	ErrSetBack = errors.New("the journal was set back")
	// ErrChain: an event does not continue its aggregate's hash chain. See ChainError.
	ErrChain = errors.New("the aggregate's hash chain is broken")
	// ErrVanished: a stream that once existed is gone, or is another one.
	// It is never made anew: that would present an empty history as the truth.
	ErrVanished = errors.New("the journal's stream has vanished")
	// ErrMismatch: the stream's configuration would not keep what the journal
	// promises. See MismatchError.
	ErrMismatch = errors.New("the journal's stream is configured otherwise")
	// ErrOptions: the options given to Open cannot work.
	ErrOptions = errors.New("the journal's options cannot be used")
)

// ConflictError is an ErrConflict with both heads.
type ConflictError struct {
	Aggregate        events.Aggregate
	Expected, Actual events.Head
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v: %s is at revision %d (sequence %d), expected was revision %d (sequence %d)",
		ErrConflict, e.Aggregate, e.Actual.Revision, e.Actual.Sequence, e.Expected.Revision, e.Expected.Sequence)
}

// Unwrap makes it an ErrConflict.
func (e *ConflictError) Unwrap() error { return ErrConflict }

// FullError is an ErrFull with the journal's size, in bytes.
type FullError struct {
	Type        events.Type
	Finishing   bool // it is one of those that the last tenth is kept for, and that is used up too
	Used, Limit uint64
}

// Code is journal-nearly-full where only the last tenth is left, and journal-full where nothing is.
func (e *FullError) Code() string {
	if e.Finishing {
		return "journal-full"
	}
	return "journal-nearly-full"
}

func (e *FullError) Error() string {
	return fmt.Sprintf("%v: %d of %d bytes are used; %s is not accepted", ErrFull, e.Used, e.Limit, e.Type)
}

// Unwrap makes it an ErrFull.
func (e *FullError) Unwrap() error { return ErrFull }

// GapError is an ErrGap: Missing should have come next, Found came (0: nothing,
// the journal ends before it).
type GapError struct{ Missing, Found uint64 }

func (e *GapError) Error() string {
	if e.Found == 0 {
		return fmt.Sprintf("%v: it ends before sequence %d, which a reader has seen", ErrGap, e.Missing)
	}
	return fmt.Sprintf("%v: sequence %d is missing, %d follows", ErrGap, e.Missing, e.Found)
}

// Unwrap makes it an ErrGap.
func (e *GapError) Unwrap() error { return ErrGap }

// SetBackError is an ErrSetBack: which event is another one, and the digests of
// the one that was seen and of the one that is there.
type SetBackError struct {
	Sequence    uint64
	Seen, Found events.Digest
}

func (e *SetBackError) Error() string {
	return fmt.Sprintf("%v: event %d is not the one that a reader has seen (%s, not %s)", ErrSetBack, e.Sequence, e.Found, e.Seen)
}

// Unwrap makes it an ErrSetBack.
func (e *SetBackError) Unwrap() error { return ErrSetBack }

// ChainError is an ErrChain: the first event that does not fit, and why.
type ChainError struct {
	Aggregate events.Aggregate
	Sequence  uint64
	Reason    string
	Cause     error // may be nil
}

func (e *ChainError) Error() string {
	return fmt.Sprintf("%v: %s, sequence %d: %s", ErrChain, e.Aggregate, e.Sequence, e.Reason)
}

// Unwrap makes it an ErrChain, and its cause.
func (e *ChainError) Unwrap() []error {
	if e.Cause == nil {
		return []error{ErrChain}
	}
	return []error{ErrChain, e.Cause}
}

// MismatchError is an ErrMismatch with each difference spelled out.
type MismatchError struct{ Differences []string }

func (e *MismatchError) Error() string {
	return ErrMismatch.Error() + ": " + strings.Join(e.Differences, "; ")
}

// Unwrap makes it an ErrMismatch.
func (e *MismatchError) Unwrap() error { return ErrMismatch }
