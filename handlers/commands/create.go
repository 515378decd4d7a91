package commands

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/name"
	"github.com/tombolo-vdc/tombolo/aggregates/number"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/documents"
	"github.com/tombolo-vdc/tombolo/projections"
)

const (
	// ClaimTime is how long what a command claimed is held for an owner that has
	// not appeared. A process confirms the claims when it sees the owner's first
	// event; after a refusal in between they run out by themselves.
	ClaimTime = 10 * time.Minute
	// UploadTime is how long the disks of a declared environment are waited for.
	UploadTime = 24 * time.Hour
	// candidates is how many numbers are tried. With a tenth of all numbers taken,
	// one command in 10^16 finds none free.
	candidates = 16
)

// TemplateRequest is the body of template.create.
type TemplateRequest struct {
	Environment events.EnvironmentID `json:"environment" jsonschema:"the environment that version 1 is saved from"`
	Region      events.RegionID      `json:"region" jsonschema:"where the environment is"`
	Name        string               `json:"name" jsonschema:"as people call it; the reference is derived from it"`
	Number      events.TemplateID    `json:"number,omitempty" jsonschema:"eight digits; chosen by Tombolo unless given"`
	Regions     []events.RegionID    `json:"regions,omitempty" jsonschema:"that should hold it; the environment's own always does"`
	Keep        int                  `json:"keep,omitempty" jsonschema:"how many superseded versions stay"`
	Choices     []events.Choice      `json:"choices,omitempty" jsonschema:"values that you name for resources"`
	Protected   bool                 `json:"protected,omitempty" jsonschema:"against deletion"`
	Memory      bool                 `json:"memory,omitempty" jsonschema:"with the memory of running machines, so that what is made of it resumes"`
}

func createTemplate() Verb {
	return composed("template", "create", "Save an environment as version 1 of a new template and keep it in the regions.", MaxBody,
		func(_ context.Context, c *call, r TemplateRequest) error {
			slug, err := Slug(r.Name)
			if err != nil {
				return err
			}
			if number.Valid(events.TemplateID(slug)) {
				return aggregates.RefuseAs(aggregates.Invalid, "name-invalid", "the name %q could be taken for a template's number", r.Name).
					WithNext("use a name with a letter in it; --number asks for a number")
			}
			for what, id := range map[string]string{"environment": string(r.Environment), "region": string(r.Region)} {
				if !events.IsToken(id) {
					return badRequest("the field %q is not an id: %.80q", what, id)
				}
			}
			c.region = events.None
			c.run = func(ctx context.Context) (Answer, error) { return c.createTemplate(ctx, r, slug) }
			return nil
		})
}

// createTemplate claims a number, then the name, then creates. The order of the
// steps is that of what is rarer to collide; each can be repeated.
func (c *call) createTemplate(ctx context.Context, r TemplateRequest, slug string) (Answer, error) {
	if err := c.checkCreate(ctx, r); err != nil {
		return Answer{}, err
	}
	n, again, err := c.claimNumber(ctx, r.Number)
	if err != nil {
		return Answer{}, err
	}
	created, there := Outcome{}, false
	if again { // this command was here before and may have come to its end
		created, there, err = Recall[template.State, events.TemplateEvent](ctx, c.door.executor, c.origin, mainRole, template.Of(c.origin.Account, n))
	}
	if err == nil && !there && again {
		_, err = hold(ctx, c, "number-again", number.Claim{Number: n, Account: c.origin.Account, Owner: string(c.operation()), Until: c.until()})
	}
	if err == nil && !there {
		_, err = hold(ctx, c, "name", name.Claim{Name: slug, Owner: string(n), Until: c.until()})
	}
	if err == nil && !there {
		created, err = Execute(ctx, c.door.executor, c.origin, mainRole, template.Create{
			Template: n, Name: slug, Display: strings.TrimSpace(r.Name), Source: events.Source{Environment: r.Environment, Region: r.Region},
			Regions: r.Regions, Keep: r.Keep, Choices: r.Choices, Operation: c.operation(), Memory: r.Memory,
		})
	}
	if err != nil {
		return Answer{}, err
	}
	if r.Protected {
		if _, err := Execute(ctx, c.door.executor, c.origin, "protect", template.Protect{Template: n, Protected: true}); err != nil {
			return Answer{}, err
		}
	}
	return c.answer(created), nil
}

// until is when a claim made now runs out.
func (c *call) until() time.Time { return c.door.executor.now().UTC().Add(ClaimTime) }

// hold claims something and makes sure that it is still held: of a claim made by
// an earlier try of this command only the record is sure, so it is claimed again.
func hold[S aggregates.State[S, E], E events.Event](ctx context.Context, c *call, role string, claim aggregates.Command[S, E]) (Outcome, error) {
	for next := role; ; {
		o, err := Execute(ctx, c.door.executor, c.origin, next, claim)
		if err != nil || !o.Replayed {
			return o, err
		}
		next = fmt.Sprintf("%s/%d", role, o.Head.Revision) // the head grows, so this ends
	}
}

// claimNumber claims the number asked for, or the first candidate that never was
// anybody's, and tells whether an earlier try of this command had claimed it.
//
// A retry must come to the same number. Therefore a candidate counts as taken
// once another command ever claimed it, even if that claim ran out: what the
// first try saw as taken, every later one sees as taken.
func (c *call) claimNumber(ctx context.Context, asked events.TemplateID) (events.TemplateID, bool, error) {
	claim := number.Claim{Number: asked, Account: c.origin.Account, Owner: string(c.operation()), Until: c.until()}
	if asked != "" {
		o, err := Execute(ctx, c.door.executor, c.origin, "number", claim)
		return asked, o.Replayed, err
	}
	fresh, untouched := c.origin, uint64(0)
	fresh.IfRevision = &untouched
	for role, n := range c.numbers("") {
		claim.Number = n
		o, err := Execute(ctx, c.door.executor, fresh, role, claim)
		if r, refused := aggregates.AsRefusal(err); refused && r.Class == aggregates.Conflict && r.Code != "command-id-reused" {
			continue
		}
		return claim.Number, o.Replayed, err
	}
	return "", false, aggregates.Refuse("number-in-use", "none of %d numbers tried is free", candidates).WithNext("send a new command, or name a number")
}

// numbers lists the roles of the claims to a number, and which number each is
// about: the one asked for, or the candidates.
func (c *call) numbers(asked events.TemplateID) iter.Seq2[string, events.TemplateID] {
	return func(yield func(string, events.TemplateID) bool) {
		if asked != "" {
			yield("number", asked)
			return
		}
		for k := range candidates {
			if role := fmt.Sprintf("number/%d", k); !yield(role, candidate(c.origin, role)) {
				return
			}
		}
	}
}

// candidate is a number from 10000000 to 99999999.
func candidate(o Origin, role string) events.TemplateID {
	sum := sha256.Sum256([]byte(events.DeriveID(o.Account, o.Command.ID, role)))
	return events.TemplateID(fmt.Sprint(10_000_000 + binary.BigEndian.Uint64(sum[:8])%90_000_000))
}

// EnvironmentRequest is the body of environment.create.
type EnvironmentRequest struct {
	Name   string          `json:"name" jsonschema:"as people call it; unique in the region"`
	Region events.RegionID `json:"region"`
	Graph  graph.Graph     `json:"graph" jsonschema:"nodes and edges; disks carry sizes, their bytes follow"`
}

func createEnvironment() Verb {
	return composed("environment", "create", "Declare an environment; its disks are then taken in by the region.", documents.MaxBytes,
		func(_ context.Context, c *call, r EnvironmentRequest) error {
			slug, err := Slug(r.Name)
			if err != nil {
				return err
			}
			if !events.IsToken(string(r.Region)) {
				return badRequest("the field %q is not a region: %.80q", "region", string(r.Region))
			}
			if findings := findings(r.Graph); len(findings) > 0 {
				return &GraphError{Findings: findings, Refusal: aggregates.RefuseAs(aggregates.Invalid, "graph-invalid",
					"the graph does not hang together, in %d places; the first: %s: %s", len(findings), findings[0].Path, findings[0].Text)}
			}
			c.region = r.Region
			c.run = func(ctx context.Context) (Answer, error) { return c.createEnvironment(ctx, r, slug) }
			return nil
		})
}

// findings are the graph's own, and those of an item that names content: what
// comes in is bytes; a digest would reach into the store for another's.
func findings(g graph.Graph) []graph.Finding {
	out := g.Validate()
	for _, n := range g.Nodes {
		for _, it := range n.Items {
			if it.Kind == graph.Memory {
				out = append(out, graph.Finding{Code: "memory-not-allowed", Path: "nodes/" + n.ID + "/items/" + it.Name, Text: "a new environment's machines boot: memory comes with a template only"})
			}
			if it.Digest != "" {
				out = append(out, graph.Finding{Code: "digest-not-allowed", Path: "nodes/" + n.ID + "/items/" + it.Name, Text: "a new environment's disks come as bytes, not by digest"})
			}
		}
	}
	return out
}

// createEnvironment stores the graph, claims the name, then declares.
func (c *call) createEnvironment(ctx context.Context, r EnvironmentRequest, slug string) (Answer, error) {
	ref := environment.Ref{Region: r.Region, Environment: events.EnvironmentID(events.DeriveID(c.origin.Account, c.origin.Command.ID, "environment"))}
	if o, there, err := Recall[environment.State, events.EnvironmentEvent](ctx, c.door.executor, c.origin, mainRole, ref.Aggregate(c.origin.Account)); there || err != nil {
		return c.answer(o), err
	}
	if c.door.reads != nil {
		if err := c.atTipWith(ctx, func(v *projections.View) error { return usable(v, r.Region) }); err != nil {
			return Answer{}, err
		}
	}
	canonical, _, err := documents.Canonical(r.Graph)
	if err != nil {
		return Answer{}, err
	}
	digest, err := c.door.documents.Put(ctx, canonical)
	if err != nil {
		return Answer{}, err
	}
	declared := events.EnvironmentDeclared{Name: slug, Display: strings.TrimSpace(r.Name), Graph: digest, Operation: c.operation(),
		Networks: r.Graph.Count(graph.Network), Machines: r.Graph.Count(graph.Machine)}
	for _, d := range r.Graph.Disks() {
		declared.Disks = append(declared.Disks, events.DiskWanted{Name: d.Name(), Bytes: d.Size})
	}
	for _, res := range r.Graph.Resources() {
		declared.Resources = append(declared.Resources, events.ResourceRef{ID: res.ID, Type: string(res.Type), Value: res.Value, LeansOn: res.LeansOn})
	}
	if len(declared.Disks) > 0 {
		declared.Until = c.door.executor.now().UTC().Add(UploadTime)
	}
	if _, err := hold(ctx, c, "name", name.Claim{Region: r.Region, Name: slug, Owner: string(ref.Environment), Until: c.until()}); err != nil {
		return Answer{}, err
	}
	o, err := Execute(ctx, c.door.executor, c.origin, mainRole, environment.Declare{Ref: ref, EnvironmentDeclared: declared})
	if err != nil {
		return Answer{}, err
	}
	return c.answer(o), nil
}

// Slug derives a reference from a name: NFKC, lower case, a-z, 0-9 and single
// hyphens for what stands between, at most 63. A letter that it would have to
// leave out is refused, so that two names never silently become one.
func Slug(text string) (string, error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", aggregates.RefuseAs(aggregates.Invalid, "name-invalid", format, args...).
			WithNext("use letters a to z, digits, spaces and hyphens, at most 63 in all")
	}
	if !utf8.ValidString(text) || len(text) > 200 {
		return refuse("the name is not text of at most 200 bytes")
	}
	var b strings.Builder
	for _, r := range strings.ToLower(norm.NFKC.String(text)) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case r >= utf8.RuneSelf:
			return refuse("the name %q has %q in it, which a reference cannot carry", text, r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	slug := strings.TrimRight(b.String(), "-")
	if !events.IsToken(slug) {
		return refuse("no reference can be made of the name %q", text)
	}
	return slug, nil
}
