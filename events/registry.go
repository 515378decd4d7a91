package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Upcast turns the JSON of one schema of an event into that of the next.
type Upcast func(old json.RawMessage) (json.RawMessage, error)

// Definition is what the registry knows of one event type.
type Definition struct {
	Type    Type
	Kind    Kind
	Schema  int      // what is written today, from 1
	Upcasts []Upcast // Upcasts[i] lifts schema i+1 to i+2; always Schema-1 of them
	Zero    Event    // a zero value, for schemas and listings
	decode  func(*json.Decoder) (Event, error)
}

// ErrUnknownEvent says that a stored event is of a type or schema that this
// program does not know: written by a newer one, or not by Tombolo at all.
var ErrUnknownEvent = errors.New("unknown event type or schema")

// ErrTooLarge says that an event, or what accompanies it, is larger than the
// journal carries.
var ErrTooLarge = errors.New("too large for an event")

func define[E Event](kind Kind, upcasts ...Upcast) Definition {
	var zero E
	return Definition{
		Type: zero.EventType(), Kind: kind, Schema: len(upcasts) + 1, Upcasts: upcasts, Zero: zero,
		decode: func(d *json.Decoder) (Event, error) {
			var e E
			err := d.Decode(&e)
			return e, err
		},
	}
}

// Registry maps wire names to definitions. It is a value: New makes the one
// that holds everything in this package.
type Registry struct {
	byType   map[Type]Definition
	order    []Type
	decoders sync.Pool // of *decoder: a new one costs more than most events
}

// NewRegistry gives the registry of all events that Tombolo records.
func NewRegistry() *Registry { return registryOf(all()) }

func registryOf(definitions []Definition) *Registry {
	r := &Registry{byType: map[Type]Definition{}}
	for _, d := range definitions {
		if _, twice := r.byType[d.Type]; twice {
			panic("event type declared twice: " + d.Type)
		}
		r.byType[d.Type] = d
		r.order = append(r.order, d.Type)
	}
	slices.Sort(r.order)
	return r
}

// Definitions lists all definitions, sorted by wire name.
func (r *Registry) Definitions() []Definition {
	out := make([]Definition, 0, len(r.order))
	for _, t := range r.order {
		out = append(out, r.byType[t])
	}
	return out
}

// Encode gives an event's JSON and the schema it is written in.
func (r *Registry) Encode(e Event) ([]byte, int, error) {
	d, ok := r.byType[e.EventType()]
	if !ok {
		return nil, 0, fmt.Errorf("%w: %s has no line in the registry", ErrUnknownEvent, e.EventType())
	}
	b, err := json.Marshal(e)
	if err != nil {
		return nil, 0, fmt.Errorf("encode %s: %w", e.EventType(), err)
	}
	if len(b) > MaxPayload {
		return nil, 0, fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrTooLarge, e.EventType(), len(b), MaxPayload)
	}
	return b, d.Schema, nil
}

// Decode reads an event of any schema up to today's. Unknown types, unknown
// schemas and unknown fields are errors: skipping one would be a silent hole.
func (r *Registry) Decode(t Type, schema int, payload []byte) (Event, error) {
	d, ok := r.byType[t]
	if !ok || schema < 1 || schema > d.Schema {
		return nil, fmt.Errorf("%w: %s, schema %d", ErrUnknownEvent, t, schema)
	}
	for i, up := range d.Upcasts[schema-1:] {
		next, err := up(payload)
		if err != nil {
			return nil, fmt.Errorf("upcast %s from schema %d: %w", t, schema+i, err)
		}
		payload = next
	}
	from, _ := r.decoders.Get().(*decoder)
	if from == nil {
		from = newDecoder()
	}
	e, err := from.decode(d, payload)
	if err != nil { // then from has rests of the payload, and is not used again
		return nil, fmt.Errorf("decode %s, schema %d: %w", t, schema, err)
	}
	r.decoders.Put(from)
	return e, nil
}

// decoder decodes one payload after the other.
type decoder struct {
	payload bytes.Reader
	json    *json.Decoder // of payload
}

func newDecoder() *decoder {
	d := &decoder{}
	d.json = json.NewDecoder(&d.payload)
	d.json.DisallowUnknownFields()
	return d
}

// decode reads an event that is all of the payload.
func (d *decoder) decode(of Definition, payload []byte) (Event, error) {
	d.payload.Reset(payload)
	e, err := of.decode(d.json)
	if err != nil {
		return nil, err
	}
	if _, err := d.json.Token(); err != io.EOF {
		return nil, errors.New("data after the event")
	}
	d.payload.Reset(nil) // keeps no payload alive
	return e, nil
}
