package projections

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// every is a row of all that a row can hold.
type every struct {
	Text   string            `json:"text"`
	Bool   bool              `json:"bool"`
	Int    int64             `json:"int"`
	Small  int8              `json:"small"`
	Uint   uint64            `json:"uint"`
	Float  float64           `json:"float"`
	Raw    json.RawMessage   `json:"raw"`
	At     time.Time         `json:"at"`
	Stored Time              `json:"stored"`
	Nested nested            `json:"nested"`
	Maybe  *nested           `json:"maybe"`
	List   []nested          `json:"list"`
	Words  []string          `json:"words"`
	Map    map[string]string `json:"map"`
	Deep   map[string]nested `json:"deep"`
}

type nested struct {
	A string    `json:"a"`
	B []int     `json:"b"`
	C time.Time `json:"c"`
}

// random fills a value; many fields stay zero, and lists may be nil or empty.
func random(rng *rand.Rand, v reflect.Value) {
	text := func() string { return string(make([]byte, rng.IntN(200))) + fmt.Sprint(rng.Uint64()) + "é\x00" }
	if rng.IntN(4) == 0 {
		return
	}
	switch at := v.Addr().Interface().(type) {
	case *time.Time:
		*at = time.Unix(rng.Int64N(1e11)-5e10, rng.Int64N(1e9)).In(time.FixedZone("", (rng.IntN(25)-12)*1800))
		if rng.IntN(2) == 0 {
			*at = at.UTC()
		}
		return
	case *Time:
		at.Time = time.UnixMilli(rng.Int64N(1e13)).UTC()
		return
	case *json.RawMessage:
		*at = json.RawMessage(`{"a":1}`)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int64:
		v.SetInt(rng.Int64() >> (64 - v.Type().Bits()) * int64(1-2*rng.IntN(2)))
	case reflect.Uint64:
		v.SetUint(rng.Uint64() >> rng.IntN(64))
	case reflect.Float64:
		v.SetFloat(rng.NormFloat64())
	case reflect.Struct:
		for i := range v.NumField() {
			random(rng, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		random(rng, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rng.IntN(4), 4))
		for i := range v.Len() {
			random(rng, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range rng.IntN(4) {
			e := reflect.New(v.Type().Elem()).Elem()
			random(rng, e)
			v.SetMapIndex(reflect.ValueOf(text()), e)
		}
	}
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return string(b)
}

// What is stored is what is read, nil and empty lists apart, and equal rows have
// equal bytes. JSON of older stores reads the same.
func TestCodecRoundTrip(t *testing.T) {
	rng, c := rand.New(rand.NewPCG(5, 5)), codecOf[every]()
	for range 2000 {
		var row, again, old every
		random(rng, reflect.ValueOf(&row).Elem())
		stored := c.marshal(nil, &row)
		must(t, c.unmarshal(stored, &again))
		if got, want := asJSON(t, again), asJSON(t, row); got != want {
			t.Fatalf("read %s\nput %s", got, want)
		}
		if second := c.marshal([]byte{}, &again); string(second) != string(stored) {
			t.Fatalf("%q is stored again as %q", stored, second)
		}
		must(t, c.unmarshal([]byte(asJSON(t, row)), &old))
		if got, want := asJSON(t, old), asJSON(t, row); got != want {
			t.Fatalf("read from JSON %s\nput %s", got, want)
		}
	}
}

// A struct that gained, lost, moved and retyped fields reads what another wrote.
func TestCodecOtherStruct(t *testing.T) {
	type before struct {
		Gone   nested    `json:"gone"`
		Number int       `json:"number"`
		Kept   []string  `json:"kept"`
		Last   string    `json:"last"`
		At     time.Time `json:"at"`
	}
	type now struct {
		Last string    `json:"last"`
		New  string    `json:"new"`
		At   time.Time `json:"at"`
		Kept []string  `json:"kept"`
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)
	stored := codecOf[before]().marshal(nil, &before{nested{A: "x", B: []int{1, 2}}, -7, []string{"a", ""}, "z", at})
	var row now
	must(t, codecOf[now]().unmarshal(stored, &row))
	if want := (now{"z", "", at, []string{"a", ""}}); !reflect.DeepEqual(row, want) {
		t.Fatalf("read %+v, want %+v", row, want)
	}
}

// Bytes that no codec wrote are an error or a row, never a panic or a huge allocation.
func TestCodecDamaged(t *testing.T) {
	rng, c := rand.New(rand.NewPCG(6, 6)), codecOf[every]()
	failed := 0
	for range 20000 {
		var row every
		random(rng, reflect.ValueOf(&row).Elem())
		stored := c.marshal(nil, &row)
		for range 1 + rng.IntN(3) {
			stored[rng.IntN(len(stored))] = byte(rng.Uint32())
		}
		stored = stored[:1+rng.IntN(len(stored))]
		if err := c.unmarshal(stored, &row); err != nil {
			failed++
			if stored[0] == rowFormat && !errors.Is(err, errRow) {
				t.Fatalf("%q: %v", stored, err)
			}
		}
	}
	if failed == 0 {
		t.Error("nothing was noticed")
	}
	for _, bad := range []string{"", "\x02abc"} {
		var row every
		if err := c.unmarshal([]byte(bad), &row); !errors.Is(err, errRow) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Types that would lose something are refused when the program starts.
func TestCodecRefuses(t *testing.T) {
	for name, make := range map[string]func(){
		"interface":  func() { codecOf[struct{ A any }]() },
		"unexported": func() { codecOf[struct{ a int }]() },
		"embedded":   func() { codecOf[struct{ nested }]() },
		"left out": func() {
			codecOf[struct {
				A int `json:"-"`
			}]()
		},
		"keys":       func() { codecOf[struct{ A map[int]string }]() },
		"nil inside": func() { codecOf[struct{ A [][]string }]() },
		"no struct":  func() { codecOf[string]() },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it was taken")
				}
			}()
			make()
		})
	}
}
