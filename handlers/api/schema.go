package api

import (
	"encoding/json"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events/graph"
)

// SpecSchema is the JSON Schema (2020-12) of an environment's file, the same
// that the interface checks it against.
func SpecSchema() ([]byte, error) {
	registry := huma.NewMapRegistry("#/$defs/", huma.DefaultSchemaNamer)
	registry.Schema(typeOf[graph.Spec](), true, "Spec")
	document := struct {
		Schema string                  `json:"$schema"`
		ID     string                  `json:"$id"`
		Title  string                  `json:"title"`
		Ref    string                  `json:"$ref"`
		Defs   map[string]*huma.Schema `json:"$defs"`
	}{"https://json-schema.org/draft/2020-12/schema", "urn:tombolo:environment", "An environment", "#/$defs/Spec", registry.Map()}
	return json.MarshalIndent(document, "", "  ")
}
