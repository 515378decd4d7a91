// Package policies judges: each policy is a CEL expression over one typed input
// that gives a Verdict. There is one environment for all of them, without I/O,
// clock or randomness, limited in cost. Whatever goes wrong is a denial.
package policies

import (
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"

	"github.com/tombolo-vdc/tombolo/events"
)

// Verdict is what a policy says.
type Verdict struct {
	Allowed bool   `cel:"allowed" json:"allowed"`
	Why     string `cel:"why" json:"why"`
}

// Decision is a verdict with everything that is needed to explain or repeat it.
type Decision[I any] struct {
	Policy string        `json:"policy"`
	Digest events.Digest `json:"digest"` // of the policy's source
	Input  I             `json:"input"`
	Verdict
	Failed bool `json:"failed,omitempty"` // the policy could not be evaluated, hence the denial
}

// CostLimit bounds one evaluation, in the cost units of the CEL specification
// (about one per operation or comparison). The built-in policies need under 100.
const CostLimit = 10_000

// ErrInvalid is what Compile fails with: the source is not an expression over
// the input that gives a Verdict. Its text says where.
var ErrInvalid = errors.New("the policy does not compile")

// Policy is a compiled policy over inputs of type I, a struct whose fields carry
// `cel` tags. It may be used from many goroutines.
type Policy[I comparable] struct {
	name    string
	digest  events.Digest
	program cel.Program

	// A verdict depends on the input alone, and few inputs make up nearly all
	// commands: an evaluation costs 8 µs, this map 50 ns.
	mu    sync.RWMutex
	known map[I]Verdict
}

// remembered bounds known.
const remembered = 4096

// Compile checks the source against the types of I and Verdict; an unknown
// field is an error. Errors match ErrInvalid.
func Compile[I comparable](name, source string) (*Policy[I], error) {
	input, verdict := reflect.TypeFor[I](), reflect.TypeFor[Verdict]()
	env, err := cel.NewEnv(
		ext.NativeTypes(input, verdict, ext.ParseStructTags(true)),
		cel.Variable("input", cel.ObjectType(input.String())),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	ast, issues := env.Compile(source)
	if issues.Err() != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, issues.Err())
	}
	if want := cel.ObjectType(verdict.String()); !ast.OutputType().IsExactType(want) {
		return nil, fmt.Errorf("%w: %s: it gives %s, not %s", ErrInvalid, name, ast.OutputType(), want)
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(CostLimit))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return &Policy[I]{name: name, digest: events.DigestOf([]byte(source)), program: program, known: map[I]Verdict{}}, nil
}

// Digest is that of the policy's source.
func (p *Policy[I]) Digest() events.Digest { return p.digest }

// Decide judges the input. A policy that fails or costs too much denies.
func (p *Policy[I]) Decide(input I) Decision[I] {
	d := Decision[I]{Policy: p.name, Digest: p.digest, Input: input}
	p.mu.RLock()
	verdict, ok := p.known[input]
	p.mu.RUnlock()
	if ok {
		d.Verdict = verdict
		return d
	}
	out, _, err := p.program.Eval(map[string]any{"input": input})
	if err == nil {
		var native any
		if native, err = out.ConvertToNative(reflect.TypeFor[Verdict]()); err == nil {
			d.Verdict = native.(Verdict)
			p.remember(input, d.Verdict)
			return d
		}
	}
	d.Failed, d.Why = true, fmt.Sprintf("the policy %s could not be evaluated: %v", p.name, err)
	return d
}

func (p *Policy[I]) remember(input I, v Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= remembered {
		clear(p.known)
	}
	p.known[input] = v
}
