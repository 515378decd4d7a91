package events

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// update writes goldens that are missing. One that exists is never changed: it
// is what old journals hold.
var update = flag.Bool("update", false, "write missing golden files")

const wireDir = "testdata/wire"

func goldenFile(t Type, schema int) string {
	return filepath.Join(wireDir, fmt.Sprintf("%s.v%d.json", t, schema))
}

// TestWireShapes holds every event to the bytes that journals may hold of it.
func TestWireShapes(t *testing.T) {
	r := NewRegistry()
	expected := map[string]bool{}
	for _, d := range r.Definitions() {
		for schema := 1; schema <= d.Schema; schema++ {
			expected[filepath.Base(goldenFile(d.Type, schema))] = true
		}
		t.Run(string(d.Type), func(t *testing.T) { checkShape(t, r, d) })
	}
	files, err := os.ReadDir(wireDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !expected[f.Name()] {
			t.Errorf("%s/%s belongs to no event. A type or schema that was released must stay readable; if it never was released, delete the file.", wireDir, f.Name())
		}
	}
}

func checkShape(t *testing.T, r *Registry, d Definition) {
	sample := fill(t, reflect.TypeOf(d.Zero))
	fresh, _, err := r.Encode(sample.Interface().(Event))
	if err != nil {
		t.Fatal(err)
	}
	file := goldenFile(d.Type, d.Schema)
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) && *update {
		if err := os.WriteFile(file, append(fresh, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for schema := 1; schema <= d.Schema; schema++ {
		golden, err := os.ReadFile(goldenFile(d.Type, schema))
		if err != nil {
			t.Fatalf("%v. Write it with: go test ./events -run TestWireShapes -update", err)
		}
		golden = bytes.TrimSuffix(golden, []byte("\n"))
		e, err := r.Decode(d.Type, schema, golden)
		if err != nil {
			t.Errorf("schema %d, as journals hold it, cannot be read any more: %v. Keep the old shape readable with an upcast.", schema, err)
			continue
		}
		if schema < d.Schema {
			continue
		}
		again, _, err := r.Encode(e)
		if err != nil || !bytes.Equal(again, golden) {
			t.Errorf("%s is written differently now (%v):\n%s\nwas\n%s\nRaise the schema with an upcast; or, if this shape was never released, delete the file and run with -update.", d.Type, err, again, golden)
		}
		if now, was := shapeOf(t, fresh), shapeOf(t, golden); !slices.Equal(now, was) {
			t.Errorf("the shape of %s has changed:\n%s\nwas\n%s\nPrograms of yesterday refuse unknown fields, so this is a new schema: raise it with an upcast; or, if this one was never released, delete %s and run with -update.",
				d.Type, strings.Join(now, " "), strings.Join(was, " "), file)
		}
	}
}

// TestOlderShapesAreWrittenAsTheyWere: an event that has only gained fields since
// an older schema is, read and written again, what it was byte for byte.
func TestOlderShapesAreWrittenAsTheyWere(t *testing.T) {
	r := NewRegistry()
	for _, e := range []Event{EnvironmentDeclared{}, PowerSet{}, TemplateCreated{}, ReplacementStaged{}, ReplacementQueued{}, WorkOrdered{}, WorkDone{}} {
		old, err := os.ReadFile(goldenFile(e.EventType(), 1))
		if err != nil {
			t.Fatal(err)
		}
		old = bytes.TrimSuffix(old, []byte("\n"))
		read, err := r.Decode(e.EventType(), 1, old)
		if err != nil {
			t.Fatal(err)
		}
		if again, _, err := r.Encode(read); err != nil || !bytes.Equal(again, old) {
			t.Errorf("%s: %s, %v; was %s", e.EventType(), again, err, old)
		}
	}
}

// TestRoundTrip: whatever is written is read as it was.
func TestRoundTrip(t *testing.T) {
	r := NewRegistry()
	for _, d := range r.Definitions() {
		for name, e := range map[string]Event{"filled": fill(t, reflect.TypeOf(d.Zero)).Interface().(Event), "zero": d.Zero} {
			b, schema, err := r.Encode(e)
			if err != nil {
				t.Fatal(err)
			}
			back, err := r.Decode(d.Type, schema, b)
			if err != nil {
				t.Errorf("%s, %s: %v", d.Type, name, err)
			} else if !reflect.DeepEqual(back, e) {
				t.Errorf("%s, %s: %+v became %+v by way of %s", d.Type, name, e, back, b)
			}
		}
	}
}

// TestNames: wire names carry their kind, JSON keys are snake_case.
func TestNames(t *testing.T) {
	typeName := regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*\.[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	for _, d := range NewRegistry().Definitions() {
		if kind, _, _ := strings.Cut(string(d.Type), "."); kind != string(d.Kind) || !typeName.MatchString(string(d.Type)) {
			t.Errorf("%s is of kind %s: the wire name must be %s.<past-tense>, in lower case with hyphens", d.Type, d.Kind, d.Kind)
		}
		if len(d.Upcasts) != d.Schema-1 {
			t.Errorf("%s has schema %d and %d upcasts", d.Type, d.Schema, len(d.Upcasts))
		}
		checkKeys(t, string(d.Type), reflect.TypeOf(d.Zero), map[reflect.Type]bool{})
	}
}

func checkKeys(t *testing.T, path string, typ reflect.Type, seen map[reflect.Type]bool) {
	key := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		checkKeys(t, path, typ.Elem(), seen)
	case reflect.Interface:
		t.Errorf("%s is an interface: the vocabulary has concrete types only", path)
	case reflect.Struct:
		if seen[typ] || encodesItself(typ) {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous && name == "":
				checkKeys(t, path, f.Type, seen)
			case !f.IsExported():
			case !key.MatchString(name):
				t.Errorf("%s: field %s has the JSON key %q: give it a tag in snake_case", path, f.Name, name)
			default:
				checkKeys(t, path+"."+name, f.Type, seen)
			}
		}
	}
}

func encodesItself(typ reflect.Type) bool {
	return typ.Implements(reflect.TypeFor[json.Marshaler]()) || typ.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}

// fill makes a value with something in every field, the same every time.
func fill(t *testing.T, typ reflect.Type) reflect.Value {
	t.Helper()
	n := 0
	return filled(t, typ, typ.Name(), &n, 0)
}

func filled(t *testing.T, typ reflect.Type, name string, n *int, depth int) reflect.Value {
	t.Helper()
	v := reflect.New(typ).Elem()
	*n++
	switch typ {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Date(2026, 11, 21, 10, 30, *n%60, 123000000, time.UTC)))
		return v
	case reflect.TypeFor[Digest]():
		v.Set(reflect.ValueOf(DigestOf([]byte(name))))
		return v
	case reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{203, 0, 113, byte(*n)})))
		return v
	case reflect.TypeFor[netip.Prefix]():
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, 0}), 24)))
		return v
	case reflect.TypeFor[json.RawMessage]():
		v.Set(reflect.ValueOf(json.RawMessage(fmt.Sprintf(`{"n":%d}`, *n))))
		return v
	}
	if encodesItself(typ) {
		t.Fatalf("%s (%s) encodes itself: teach filled a sample of it", name, typ)
	}
	switch typ.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("%s-%d", name, *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(float64(*n) + 0.5)
	case reflect.Pointer:
		if depth < 6 { // a type may contain itself
			v.Set(reflect.New(typ.Elem()))
			v.Elem().Set(filled(t, typ.Elem(), name, n, depth+1))
		}
	case reflect.Slice:
		if depth < 6 {
			v.Set(reflect.MakeSlice(typ, 2, 2))
			for i := range 2 {
				v.Index(i).Set(filled(t, typ.Elem(), name, n, depth+1))
			}
		}
	case reflect.Array:
		for i := range typ.Len() {
			v.Index(i).Set(filled(t, typ.Elem(), name, n, depth+1))
		}
	case reflect.Map:
		if depth < 6 {
			v.Set(reflect.MakeMap(typ))
			for range 2 {
				v.SetMapIndex(filled(t, typ.Key(), name, n, depth+1), filled(t, typ.Elem(), name, n, depth+1))
			}
		}
	case reflect.Struct:
		for i := range typ.NumField() {
			f := typ.Field(i)
			if !f.IsExported() {
				continue // markers such as inRegion
			}
			key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			v.Field(i).Set(filled(t, f.Type, key, n, depth+1))
		}
	default:
		t.Fatalf("%s is a %s, which no event may hold", name, typ)
	}
	return v
}

// shapeOf lists the paths of a JSON document with the kind of value at each,
// array elements merged and the keys of maps (which filled numbers) made alike.
func shapeOf(t *testing.T, document []byte) []string {
	t.Helper()
	var v any
	if err := json.Unmarshal(document, &v); err != nil {
		t.Fatal(err)
	}
	var out []string
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				if strings.Contains(key, "-") {
					key = "*"
				}
				walk(path+"."+key, value)
			}
		case []any:
			for _, value := range v {
				walk(path+"[]", value)
			}
		default:
			out = append(out, fmt.Sprintf("%s:%T", path, v))
		}
	}
	walk("", v)
	slices.Sort(out)
	return slices.Compact(out)
}
