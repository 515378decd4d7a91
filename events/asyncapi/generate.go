package asyncapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/tombolo-vdc/tombolo/events"
)

// Words are what the source says: "Type" and "Type.Field" to the comment there, in Go's names.
type Words map[string]string

// SchemaOf makes the schema of what is written of an event today.
func SchemaOf(d events.Definition, words Words) (*jsonschema.Schema, error) {
	t := reflect.TypeOf(d.Zero)
	s, err := jsonschema.ForType(t, &jsonschema.ForOptions{TypeSchemas: map[reflect.Type]*jsonschema.Schema{
		reflect.TypeFor[time.Time](): {Type: "string", Format: "date-time"},
		// The empty string stands for none.
		reflect.TypeFor[events.Digest](): {Type: "string", Pattern: "^(sha256:[0-9a-f]{64})?$"},
	}})
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", d.Type, err)
	}
	describe(s, t, words)
	s.Title, s.Description = string(d.Type), words[t.Name()]
	return s, nil
}

// describe puts the comments of fields to their properties.
func describe(s *jsonschema.Schema, t reflect.Type, words Words) {
	switch t.Kind() {
	case reflect.Pointer:
		describe(s, t.Elem(), words)
	case reflect.Slice, reflect.Array:
		describe(s.Items, t.Elem(), words)
	case reflect.Map:
		describe(s.AdditionalProperties, t.Elem(), words)
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			property := s.Properties[name]
			if property == nil {
				continue
			}
			if w := words[t.Name()+"."+f.Name]; w != "" {
				property.Description = w
			}
			describe(property, f.Type, words)
		}
	}
}

// File is a generated file.
type File struct {
	Name    string
	Content []byte
}

// Generate makes the document, and the schema of every event as it is written today.
func Generate(registry *events.Registry, words Words) ([]File, error) {
	document := newDocument()
	var out []File
	for _, d := range registry.Definitions() {
		s, err := SchemaOf(d, words)
		if err != nil {
			return nil, err
		}
		document.add(d, s)
		own := *s
		own.Schema, own.ID = "https://json-schema.org/draft/2020-12/schema", fmt.Sprintf("urn:tombolo:event:%s:%d", d.Type, d.Schema)
		if out, err = appendFile(out, schemaFile(d.Type, d.Schema), &own); err != nil {
			return nil, err
		}
	}
	return appendFile(out, documentFile, document)
}

func appendFile(to []File, name string, content any) ([]File, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(content)
	return append(to, File{name, b.Bytes()}), err
}

// document is an AsyncAPI document, as far as it is needed here (https://www.asyncapi.com/docs/reference/specification/v3.0.0).
type document struct {
	AsyncAPI           string               `json:"asyncapi"`
	ID                 string               `json:"id"`
	Info               info                 `json:"info"`
	DefaultContentType string               `json:"defaultContentType"`
	Channels           map[string]channel   `json:"channels"`
	Operations         map[string]operation `json:"operations"`
	Components         components           `json:"components"`
}

type info struct {
	Title       string  `json:"title"`
	Version     string  `json:"version"`
	Description string  `json:"description"`
	License     license `json:"license"`
}

type license struct {
	Name string `json:"name"`
}

type reference struct {
	Ref string `json:"$ref"`
}

type channel struct {
	Address     string               `json:"address"`
	Description string               `json:"description"`
	Parameters  map[string]parameter `json:"parameters"`
	Messages    map[string]reference `json:"messages"`
}

type parameter struct {
	Description string `json:"description"`
}

type operation struct {
	Action  string    `json:"action"`
	Channel reference `json:"channel"`
	Summary string    `json:"summary"`
}

type components struct {
	Messages map[string]message            `json:"messages"`
	Schemas  map[string]*jsonschema.Schema `json:"schemas"`
}

type message struct {
	Name        string             `json:"name"`
	Title       string             `json:"title"`
	Summary     string             `json:"summary"`
	ContentType string             `json:"contentType"`
	Headers     reference          `json:"headers"`
	Payload     *jsonschema.Schema `json:"payload"`
}

func newDocument() *document {
	return &document{
		AsyncAPI: "3.0.0", ID: "urn:tombolo:events", DefaultContentType: "application/json",
		Info: info{Title: "Tombolo's events", Version: "1", License: license{"Apache-2.0"},
			Description: "Every fact that Tombolo records: one message, stored for ever, on the subject of what it is about. CloudEvents 1.0 in binary mode over NATS: " +
				"the attributes are headers, the payload is the event's data. A wire name never changes; a shape that changes gets the next tombolo-schema, and old ones stay readable."},
		Channels: map[string]channel{}, Operations: map[string]operation{},
		Components: components{Messages: map[string]message{}, Schemas: map[string]*jsonschema.Schema{"headers": headers()}},
	}
}

func (d *document) add(e events.Definition, s *jsonschema.Schema) {
	kind := string(e.Kind)
	c, ok := d.Channels[kind]
	if !ok {
		c = channel{Address: events.SubjectPrefix + "{account}.{region}." + kind + ".{id}", Description: "What happens to one " + kind + ", in order.",
			Parameters: map[string]parameter{
				"account": {"whose it is; _ where it belongs to no account"},
				"region":  {"where it was born; _ where it belongs to no region"},
				"id":      {"of the " + kind},
			}, Messages: map[string]reference{}}
		d.Channels[kind] = c
		d.Operations["record-"+kind] = operation{"send", reference{"#/channels/" + kind}, "Tombolo records what happened to a " + kind + "."}
	}
	name := string(e.Type)
	c.Messages[name] = reference{"#/components/messages/" + name}
	d.Components.Messages[name] = message{name, name, s.Description, "application/json", reference{"#/components/schemas/headers"}, s}
}

// headers are those of package journal, whose documentation defines them.
func headers() *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "object", Properties: map[string]*jsonschema.Schema{}}
	add := func(required bool, name, description string) {
		s.Properties[name] = &jsonschema.Schema{Type: "string", Description: description}
		s.PropertyOrder = append(s.PropertyOrder, name)
		if required {
			s.Required = append(s.Required, name)
		}
	}
	add(true, "ce-specversion", "1.0")
	add(true, "ce-id", "the same for every retry of the command")
	add(true, "ce-source", "urn:uuid: and the id of the journal")
	add(true, "ce-type", "the event's wire name")
	add(true, "ce-time", "when it was decided, RFC 3339, UTC")
	add(true, "ce-subject", "the subject without tombolo.events.")
	add(true, "ce-datacontenttype", "application/json")
	add(true, "tombolo-schema", "of the payload, decimal, from 1")
	add(true, "tombolo-revision", "position within what it is about, decimal, from 1")
	add(false, "tombolo-previous", "digest of the event before it with the same subject; absent at revision 1")
	add(false, "tombolo-actor-account", "the account of who caused it")
	add(false, "tombolo-actor-user", "who caused it")
	add(false, "tombolo-command", "id of the command")
	add(false, "tombolo-command-digest", "digest of the command's body")
	add(false, "tombolo-correlation", "the operation, or what a client gave")
	add(false, "tombolo-causation", "id of the event that led to the command")
	add(false, "traceparent", "W3C Trace Context")
	return s
}
