package asyncapi_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/asyncapi"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

var update = flag.Bool("update", false, "write the document and the schemas again")

// words reads the comments of the vocabulary.
func words(t *testing.T) asyncapi.Words {
	t.Helper()
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	out := asyncapi.Words{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			d, ok := n.(*ast.GenDecl)
			if !ok {
				return true
			}
			for _, spec := range d.Specs {
				s, ok := spec.(*ast.TypeSpec)
				if !ok {
					continue
				}
				if doc := cmpDoc(s.Doc, d.Doc); doc != "" {
					doc = strings.TrimPrefix(strings.TrimPrefix(doc, s.Name.Name), ":")
					out[s.Name.Name] = strings.TrimSpace(doc)
				}
				fields, ok := s.Type.(*ast.StructType)
				if !ok {
					continue
				}
				for _, field := range fields.Fields.List {
					for _, id := range field.Names {
						if doc := cmpDoc(field.Doc, field.Comment); doc != "" {
							out[s.Name.Name+"."+id.Name] = doc
						}
					}
				}
			}
			return false
		})
	}
	return out
}

func cmpDoc(first, second *ast.CommentGroup) string {
	for _, g := range []*ast.CommentGroup{first, second} {
		if text := strings.Join(strings.Fields(g.Text()), " "); text != "" {
			return text
		}
	}
	return ""
}

// TestCurrent: the committed files are what the registry and the source give now.
func TestCurrent(t *testing.T) {
	generated, err := asyncapi.Generate(events.NewRegistry(), words(t))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, d := range events.NewRegistry().Definitions() {
		for schema := 1; schema <= d.Schema; schema++ {
			if _, err := asyncapi.Schema(d.Type, schema); err != nil && !*update {
				t.Errorf("%v. A schema that journals may hold stays published: restore its file", err)
			}
			known[fmt.Sprintf("%s.v%d.json", d.Type, schema)] = true
		}
	}
	for _, f := range generated {
		if *update {
			if err := os.WriteFile(f.Name, f.Content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		committed, err := os.ReadFile(f.Name)
		if err != nil || !bytes.Equal(committed, f.Content) {
			t.Errorf("%s is not what the events are now (%v).\ncure: go test ./events/asyncapi -update", f.Name, err)
		}
	}
	entries, err := os.ReadDir("schemas")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !known[e.Name()] {
			t.Errorf("schemas/%s is of no event. If it was never released, delete it", e.Name())
		}
	}
}

func compiled(t *testing.T, kind events.Type, schema int) *jsonschema.Resolved {
	t.Helper()
	b, err := asyncapi.Schema(kind, schema)
	if err != nil {
		t.Fatal(err)
	}
	var s jsonschema.Schema
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	r, err := s.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestWireShapes: the bytes that journals hold are valid under the published schemas, and others are not.
func TestWireShapes(t *testing.T) {
	registry := events.NewRegistry()
	for _, d := range registry.Definitions() {
		t.Run(string(d.Type), func(t *testing.T) {
			zero, _, err := registry.Encode(d.Zero)
			if err != nil {
				t.Fatal(err)
			}
			golden, err := os.ReadFile(filepath.Join("..", "testdata", "wire", string(d.Type)+".v1.json"))
			if err != nil {
				t.Fatal(err)
			}
			schema := compiled(t, d.Type, 1)
			check := func(document map[string]any) error { return schema.Validate(document) }
			for _, b := range [][]byte{golden, zero} {
				document := map[string]any{}
				if err := json.Unmarshal(b, &document); err != nil {
					t.Fatal(err)
				}
				if err := check(document); err != nil {
					t.Errorf("%s: %v", b, err)
				}
				document["never_heard_of"] = 1
				if check(document) == nil {
					t.Errorf("%s with a field more is valid too", b)
				}
				delete(document, "never_heard_of")
				for name := range document {
					was := document[name]
					if document[name] = []any{[]any{}}; check(document) == nil {
						t.Errorf("%s with lists in the place of %s is valid too", b, name)
					}
					document[name] = was
				}
			}
		})
	}
}

// TestDocument: every event has its message on its kind's channel, with every header that the journal writes.
func TestDocument(t *testing.T) {
	b, err := asyncapi.Document()
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		AsyncAPI string `json:"asyncapi"`
		Channels map[string]struct {
			Address  string         `json:"address"`
			Messages map[string]any `json:"messages"`
		} `json:"channels"`
		Components struct {
			Messages map[string]struct {
				Summary string          `json:"summary"`
				Payload json.RawMessage `json:"payload"`
			} `json:"messages"`
			Schemas map[string]struct {
				Properties map[string]any `json:"properties"`
				Required   []string       `json:"required"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(b, &d); err != nil || d.AsyncAPI != "3.0.0" {
		t.Fatal(d.AsyncAPI, err)
	}
	for _, e := range events.NewRegistry().Definitions() {
		c := d.Channels[string(e.Kind)]
		if c.Address != "tombolo.events.{account}.{region}."+string(e.Kind)+".{id}" || c.Messages[string(e.Type)] == nil {
			t.Errorf("%s is not on its channel: %+v", e.Type, c)
		}
		if m := d.Components.Messages[string(e.Type)]; m.Summary == "" || len(m.Payload) == 0 {
			t.Errorf("%s has no summary or no payload", e.Type)
		}
	}
	// The journal writes these headers and no others.
	m := journal.NewMemory(events.NewRegistry(), time.Now)
	r, err := m.Append(t.Context(), journal.Proposal{Aggregate: events.Aggregate{Account: events.None, Region: "sydney", Kind: events.KindRegion, ID: "sydney"}, ID: "e", Time: time.Now(),
		Actor: events.Actor{Account: "a", User: "u"}, Command: events.CommandRef{ID: "c", Digest: events.DigestOf(nil)}, Correlation: "o", Causation: "e0", TraceParent: "00", Event: events.RegionAdded{Region: "sydney"}})
	if err != nil {
		t.Fatal(err)
	}
	_, header, _ := m.Message(r.Sequence)
	headers := d.Components.Schemas["headers"]
	for name := range header {
		if headers.Properties[name] == nil {
			t.Errorf("header %s is not in the document", name)
		}
	}
	for name := range headers.Properties {
		if header.Get(name) == "" && name != "tombolo-previous" {
			t.Errorf("header %s is in the document, and was not written", name)
		}
	}
	for _, name := range headers.Required {
		if header.Get(name) == "" {
			t.Errorf("header %s is required, and was not written", name)
		}
	}
	if !slices.Contains(headers.Required, "tombolo-revision") {
		t.Error("the document requires too little")
	}
}

// TestUnknown: what is not there is said to be unknown.
func TestUnknown(t *testing.T) {
	for _, kind := range []events.Type{"region.vanished", "../asyncapi", "", "region.added/../../asyncapi"} {
		if _, err := asyncapi.Schema(kind, 1); !errors.Is(err, asyncapi.ErrUnknown) {
			t.Errorf("%q: %v", kind, err)
		}
	}
}
