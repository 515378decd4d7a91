package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/ovf"
)

// The exit codes.
const (
	exitOK         = 0
	exitError      = 1
	exitUsage      = 2
	exitNotFound   = 3
	exitConflict   = 4 // stale revision, taken address, name in use
	exitDenied     = 5
	exitConfirm    = 6 // nothing was done
	exitRunning    = 7 // waiting timed out
	exitRolledBack = 8 // failed, and everything is as before
	exitLeftBehind = 9 // failed, and not everything is as before
)

// failure is how a run of the command line fails: what, why, what next.
type failure struct {
	Exit     int           `json:"-"`
	Code     string        `json:"code"`
	Text     string        `json:"text"`
	Where    string        `json:"where,omitempty"`
	Next     string        `json:"next,omitempty"`
	Findings []api.Finding `json:"findings,omitempty"`

	Plan json.RawMessage `json:"plan,omitempty"` // of what has to be confirmed
}

func (f *failure) Error() string { return f.Text + " (" + f.Code + ")" }

func (f *failure) withNext(format string, args ...any) *failure {
	f.Next = fmt.Sprintf(format, args...)
	return f
}

func fail(exit int, code, format string, args ...any) *failure {
	return &failure{Exit: exit, Code: code, Text: fmt.Sprintf(format, args...)}
}

func usage(format string, args ...any) *failure { return fail(exitUsage, "usage", format, args...) }

// failed makes any error one that can be shown.
func failed(err error) error {
	var f *failure
	var known fault.Known
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return f
	case errors.As(err, &known):
		code, text, next := known.Tell()
		exit := exitError
		if code == string(ovf.CodeExists) {
			exit = exitConflict
		}
		return fail(exit, code, "%s", text).withNext("%s", next)
	case errors.Is(err, context.Canceled):
		return fail(exitError, "interrupted", "interrupted")
	}
	return fail(exitError, "error", "%v", err)
}

// print shows the failure on stderr: text for people, one JSON line with -o json.
func (f *failure) print(a *app) {
	if a.output == "json" {
		if b, err := json.Marshal(f); err == nil {
			fmt.Fprintln(a.err, string(b))
			return
		}
	}
	red, plain := "", ""
	if a.color() {
		red, plain = "\x1b[31m", "\x1b[0m"
	}
	fmt.Fprintf(a.err, "%serror:%s %s (%s)\n", red, plain, f.Text, f.Code)
	if f.Where != "" {
		fmt.Fprintf(a.err, "  where: %s\n", f.Where)
	}
	if text := planText(f.Plan); text != "" {
		fmt.Fprintf(a.err, "  plan: %s\n", text)
	}
	if len(f.Findings) > 1 || len(f.Findings) == 1 && f.Findings[0].Code != f.Code { // else the text is the finding's
		for _, finding := range f.Findings {
			fmt.Fprintf(a.err, "  - %s (%s)\n", strings.TrimPrefix(finding.Path+": "+finding.Text, ": "), finding.Code)
		}
	}
	if f.Next != "" {
		fmt.Fprintf(a.err, "  next: %s\n", f.Next)
	}
}

// exitOf is the exit code of a problem.
func exitOf(p *api.Problem) int {
	switch p.Status {
	case 404:
		return exitNotFound
	case 409, 412:
		return exitConflict
	case 403:
		return exitDenied
	case 428:
		return exitConfirm
	}
	return exitError
}
