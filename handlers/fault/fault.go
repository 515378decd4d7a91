// Package fault is the form of failures that have a stable code. Each package
// declares a type of codes and its codes; what the errors are made of, how they
// read and how they are found is here.
package fault

import (
	"errors"
	"fmt"
)

// Error is a failure with a code of one package. Codes of two packages that
// are spelled alike are different types, and so are their errors.
type Error[C ~string] struct {
	Code C
	Text string // what failed, where, why
	Next string // what a person can do about it; may be empty
	Err  error  // the cause; may be nil
}

// Error is the code, the text and the cause.
func (e *Error[C]) Error() string {
	code, text, _ := e.Tell()
	return code + ": " + text
}

// Unwrap gives the cause.
func (e *Error[C]) Unwrap() error { return e.Err }

// Tell gives what a person is shown; the text names the cause.
func (e *Error[C]) Tell() (code, text, next string) {
	if e.Err != nil {
		return string(e.Code), e.Text + ": " + e.Err.Error(), e.Next
	}
	return string(e.Code), e.Text, e.Next
}

// Known is an Error of whichever package, for errors.As.
type Known interface {
	error
	Tell() (code, text, next string)
}

// New makes an Error without a cause.
func New[C ~string](code C, format string, args ...any) error {
	return &Error[C]{Code: code, Text: fmt.Sprintf(format, args...)}
}

// Wrap makes an Error from its cause.
func Wrap[C ~string](code C, cause error, format string, args ...any) error {
	return &Error[C]{Code: code, Text: fmt.Sprintf(format, args...), Err: cause}
}

// CodeOf gives the outermost code of this type in err's chain, or "" where there is none.
func CodeOf[C ~string](err error) C {
	if e, ok := errors.AsType[*Error[C]](err); ok {
		return e.Code
	}
	return ""
}
