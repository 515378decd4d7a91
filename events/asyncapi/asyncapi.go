// Package asyncapi is the published contract of the events: an AsyncAPI 3.0 document and a JSON Schema for each
// event in each schema that journals may hold. Both are generated from the registry (generate.go), committed, and part
// of the program; a test demands that they are current:
//
//	go test ./events/asyncapi -update
package asyncapi

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/tombolo-vdc/tombolo/events"
)

//go:generate go test . -run TestCurrent -update

//go:embed asyncapi.json schemas/*.json
var files embed.FS

// ErrUnknown says that there is no event of this type, or no such schema of it.
var ErrUnknown = errors.New("unknown event type or schema")

// Document is the AsyncAPI 3.0 document, as JSON.
func Document() ([]byte, error) { return files.ReadFile(documentFile) }

// Schema is the JSON Schema (2020-12) of an event's data in a schema's number, as JSON. ErrUnknown.
func Schema(t events.Type, schema int) ([]byte, error) {
	b, err := files.ReadFile(schemaFile(t, schema))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		return nil, fmt.Errorf("%w: %s, schema %d", ErrUnknown, t, schema)
	}
	return b, err
}

const documentFile = "asyncapi.json"

func schemaFile(t events.Type, schema int) string {
	return fmt.Sprintf("schemas/%s.v%d.json", t, schema)
}
