package events

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// moved is an event in its third shape. First it named a place, then the place
// was split in two, then a reason became required.
type moved struct {
	Country string `json:"country"`
	City    string `json:"city"`
	Reason  string `json:"reason"`
}

func (moved) EventType() Type { return "thing.moved" }

func movedRegistry() *Registry {
	return registryOf([]Definition{define[moved]("thing",
		func(old json.RawMessage) (json.RawMessage, error) {
			var v1 struct {
				Place string `json:"place"`
			}
			if err := json.Unmarshal(old, &v1); err != nil {
				return nil, err
			}
			city, country, ok := strings.Cut(v1.Place, ", ")
			if !ok {
				return nil, errors.New("the place has no country")
			}
			return json.Marshal(map[string]string{"city": city, "country": country})
		},
		func(old json.RawMessage) (json.RawMessage, error) {
			var v2 map[string]string
			if err := json.Unmarshal(old, &v2); err != nil {
				return nil, err
			}
			v2["reason"] = "not recorded"
			return json.Marshal(v2)
		},
	)})
}

func TestUpcast(t *testing.T) {
	r := movedRegistry()
	for schema, payload := range map[int]string{
		1: `{"place":"Sydney, Australia"}`,
		2: `{"city":"Sydney","country":"Australia"}`,
		3: `{"country":"Australia","city":"Sydney","reason":"not recorded"}`,
	} {
		got, err := r.Decode("thing.moved", schema, []byte(payload))
		if want := (moved{"Australia", "Sydney", "not recorded"}); err != nil || got != want {
			t.Errorf("schema %d: %+v, %v; want %+v", schema, got, err, want)
		}
	}
	if b, schema, err := r.Encode(moved{"A", "B", "C"}); err != nil || schema != 3 || string(b) != `{"country":"A","city":"B","reason":"C"}` {
		t.Errorf("encoded as schema %d: %s, %v", schema, b, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	r := movedRegistry()
	for name, c := range map[string]struct {
		t       Type
		schema  int
		payload string
		unknown bool
	}{
		"a newer schema":      {"thing.moved", 4, `{}`, true},
		"schema 0":            {"thing.moved", 0, `{}`, true},
		"an unknown type":     {"thing.lost", 1, `{}`, true},
		"an unknown field":    {"thing.moved", 3, `{"colour":"red"}`, false},
		"an old shape as new": {"thing.moved", 3, `{"place":"Sydney, Australia"}`, false},
		"a failing upcast":    {"thing.moved", 1, `{"place":"Atlantis"}`, false},
		"trailing data":       {"thing.moved", 3, `{}{}`, false},
		"no JSON":             {"thing.moved", 3, `moved`, false},
	} {
		e, err := r.Decode(c.t, c.schema, []byte(c.payload))
		if err == nil || errors.Is(err, ErrUnknownEvent) != c.unknown {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
	if _, _, err := NewRegistry().Encode(moved{}); !errors.Is(err, ErrUnknownEvent) {
		t.Errorf("encoding an event without a line: %v", err)
	}
	if _, _, err := r.Encode(moved{City: strings.Repeat("c", MaxPayload)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("encoding a large event: %v", err)
	}
}

// A payload that cannot be read, wherever it breaks, has no part in the next.
func TestDecodeAfterErrors(t *testing.T) {
	r := movedRegistry()
	const good = `{"country":"Australia","city":"Sydney","reason":"r"}`
	for _, bad := range []string{"", "{", `{"country":"Peru"`, good + "{", good + good, good + " 1", `{"country":"Peru","city":"Lima","reason":"r","more":1}`, `{"city":1}`, "null x"} {
		if e, err := r.Decode("thing.moved", 3, []byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, e)
		}
		got, err := r.Decode("thing.moved", 3, []byte(" "+good+"\n"))
		if want := (moved{"Australia", "Sydney", "r"}); err != nil || got != want {
			t.Errorf("after %q: %+v, %v", bad, got, err)
		}
	}
}
